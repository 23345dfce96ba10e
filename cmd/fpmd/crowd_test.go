package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// private is the memory that a process shares with nobody, in KiB.
func private(t *testing.T, pid int) (kib int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Private_"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[1])
			if err != nil {
				t.Fatal(err)
			}
			kib += n
		}
	}
	return kib
}

// A crowd of connections, most of them idle and some that send a byte now and
// then, leaves others served, takes little memory, and gives it back.
func TestCrowd(t *testing.T) {
	idle, slow := 10000, 1000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if most := int(limit.Max) - slow - 200; most < idle {
		t.Logf("%d idle connections instead of %d: RLIMIT_NOFILE allows %d descriptors", most, idle, limit.Max)
		idle = most
	}
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), bigApp)
	// Not the test binary: the race detector's shadow memory is none of fpmd's.
	d := serveWith(t, buildFpmd(t, dir), dir, wsgiPool(dir, "workers = 2"))
	pid := d.cmd.Process.Pid
	served := func(n int) {
		t.Helper()
		for range n {
			if body, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(body, "\r\n\r\n0") {
				t.Fatalf("got %q, %v", body, err)
			}
		}
	}
	served(200)
	before := private(t, pid)

	var crowd []net.Conn
	leave := func() {
		for _, c := range crowd {
			c.Close()
		}
	}
	defer leave()
	for len(crowd) < idle+slow {
		c, err := dialBacklog(d.sock())
		if err != nil {
			t.Fatal(err)
		}
		crowd = append(crowd, c)
	}
	request := fcgiRequest("/")
	for _, c := range crowd[:slow] {
		if _, err := c.Write(request[:40]); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 { // a byte a second
		for _, c := range crowd[:slow] {
			if _, err := c.Write(request[40+i : 41+i]); err != nil {
				t.Fatal(err)
			}
		}
		served(100)
		time.Sleep(time.Second)
	}
	with := private(t, pid)
	t.Logf("private memory: %d KiB, with %d connections %d KiB: %.1f KiB each", before, len(crowd), with, float64(with-before)/float64(len(crowd)))
	if with-before > 100<<10 {
		t.Errorf("private memory has grown from %d to %d KiB", before, with)
	}
	leave()
	for end := time.Now().Add(patience); private(t, pid)-before > (with-before)*2/3; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d KiB are not given back", private(t, pid))
		}
	}
	served(100)
}
