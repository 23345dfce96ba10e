package main

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A thousand clients that send a body a byte a second, and a thousand that take
// a long answer so: the pool is free for others again while they are all there,
// and memory has a bound.
func TestSlowReadersTogether(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), bigApp)
	d := serveWith(t, buildFpmd(t, dir), dir, wsgiPool(dir, "workers = 2\nqueue_timeout = \"3s\""))
	pid := d.cmd.Process.Pid
	var mu sync.Mutex
	var crowd []net.Conn
	stop := make(chan struct{})
	var dribblers sync.WaitGroup
	defer func() {
		close(stop)
		dribblers.Wait()
		for _, c := range crowd {
			c.Close()
		}
	}()
	// dribble moves a byte a second, with those of a group at once.
	join := func(n int, request []byte, move func(net.Conn)) {
		t.Helper()
		group := make([]net.Conn, n)
		for i := range group {
			var err error
			if group[i], err = dialBacklog(d.sock()); err != nil {
				t.Fatal(err)
			}
			if _, err := group[i].Write(request); err != nil {
				t.Fatal(err)
			}
		}
		mu.Lock()
		crowd = append(crowd, group...)
		mu.Unlock()
		dribblers.Go(func() { // until stop is closed
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Second):
				}
				for _, c := range group {
					move(c)
				}
			}
		})
	}
	send := func(c net.Conn) { c.SetWriteDeadline(time.Now().Add(time.Millisecond)); c.Write([]byte("x")) }
	take := func(c net.Conn) { c.SetReadDeadline(time.Now().Add(time.Millisecond)); c.Read(make([]byte, 1)) }
	// served waits until others are served, n in succession.
	served := func(n int, when string) {
		t.Helper()
		for end, good := time.Now().Add(patience), 0; good < n; {
			body, err := askOnce(d.sock())
			if good++; err != nil || !strings.HasSuffix(body, "\r\n\r\n0") {
				if good = 0; time.Now().After(end) {
					t.Fatalf("%s, others still get %.200q, %v", when, body, err)
				}
			}
		}
	}
	served(200, "before them")
	before := private(t, pid)
	upload := append(fcgiUpload("10485760"), 1, 5, 0, 1, 0x40, 0, 0, 0) // a record of 16 KiB
	join(1000, upload, send)
	if body, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(body, "\r\n\r\n0") {
		t.Fatalf("beside bodies on their way, another gets %.200q, %v", body, err)
	}
	// What fits is taken off the worker at once.
	join(50, fcgiRequest("/page"), take)
	served(50, "beside readers of 576 KiB")
	if n := strings.Count(d.log.String(), "outcome=slow_client"); n > 0 {
		t.Errorf("%d clients were given up, and nobody waited for them", n)
	}
	join(1000, fcgiRequest("/big"), take)
	most := private(t, pid)
	watch := time.NewTicker(100 * time.Millisecond)
	defer watch.Stop()
	done := make(chan struct{})
	go func() { // ends with served
		defer close(done)
		served(50, "beside readers of 100 MiB")
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-watch.C:
			most = max(most, private(t, pid))
		}
	}
	t.Logf("private memory: %d KiB before them, %d KiB at the most", before, most)
	if most-before > 160<<10 {
		t.Errorf("private memory has grown from %d to %d KiB", before, most)
	}
}

// dialBacklog connects as soon as the listener's backlog has room.
func dialBacklog(sock string) (c net.Conn, err error) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if c, err = net.Dial("unix", sock); !errors.Is(err, syscall.EAGAIN) {
			break
		}
	}
	return c, err
}
