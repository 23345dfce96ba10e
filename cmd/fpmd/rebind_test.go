package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A reload moves a pool from socket to socket under load, and changes what its connections get: whoever has connected is answered,
// also over a connection that was kept; the old name is gone, and the new one has the mode that it is to have.
func TestRebindUnderLoad(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	config := wsgiPool(dir, "workers = 2")
	d := serve(t, dir, config)
	first, second := filepath.Join(dir, "app.sock"), filepath.Join(dir, "second.sock")
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var failed []string
	asked := map[string]int{}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { // ends with ctx
			for ctx.Err() == nil {
				for _, sock := range []string{first, second} { // as a front whose configuration is changed at some moment
					c, err := net.Dial("unix", sock)
					if err != nil {
						continue // nobody listens there now
					}
					c.SetDeadline(time.Now().Add(patience))
					_, err = c.Write(fcgiRequest("/"))
					var answer string
					if err == nil {
						answer, err = readAnswer(c)
					}
					c.Close()
					mu.Lock()
					asked[sock]++
					if err != nil || !strings.HasSuffix(answer, "hello") {
						failed = append(failed, fmt.Sprintf("%s: %q, %v", sock, answer, err))
					}
					mu.Unlock()
				}
			}
		})
	}
	const rounds = 6
	for n := range rounds {
		at, gone, mode := second, first, os.FileMode(0o600)
		if n%2 == 1 {
			at, gone, mode = first, second, 0o660
		}
		text := strings.Replace(config, fmt.Sprintf("%q", first), fmt.Sprintf("%q", at), 1)
		text = strings.Replace(text, `listen_mode = "0666"`, fmt.Sprintf("listen_mode = \"%04o\"\nmax_connections = %d", mode, 1000+n), 1)
		write(t, filepath.Join(dir, "fpmd.toml"), text)
		if said, code := d.told("reload", "--changed"); code != 0 {
			t.Errorf("reload %d: exit code %d: %s", n, code, said)
		}
		fi, err := os.Stat(at)
		if err != nil || fi.Mode().Perm() != mode {
			t.Errorf("after reload %d, the socket at %s: %v, %v, want mode %v", n, at, fi, err, mode)
		}
		if _, err := os.Lstat(gone); !os.IsNotExist(err) {
			t.Errorf("after reload %d, the socket at %s is still there: %v", n, gone, err)
		}
		if pool := d.status().Pools[0]; len(pool.Listen) != 1 || pool.Listen[0] != at || pool.Generation != 1 {
			t.Errorf("after reload %d, pool app listens at %v with generation %d, want %s and 1", n, pool.Listen, pool.Generation, at)
		}
		mu.Lock()
		before := asked[at]
		mu.Unlock()
		d.wait("some answers of "+at, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return asked[at] > before+20 || len(failed) > 0
		})
	}
	cancel()
	wg.Wait()
	if len(failed) > 0 {
		t.Errorf("of %v requests %s", asked, summary(failed))
	}
	d.wait("every connection let go", func() bool { return d.status().Pools[0].Connections == 0 })
}

// What a connection gets is what counted when it came: one that is open goes on as it began, also beyond the reload that changes
// it, and the next gets what counts by then.
func TestTermsOfConnections(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	config := wsgiPool(dir, "workers = 1")
	d := serve(t, dir, config+"max_environ = \"64KiB\"\n")
	request := fcgiRequest("/" + strings.Repeat("x", 6000))
	kept, err := net.Dial("unix", d.sock())
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	kept.SetDeadline(time.Now().Add(patience))
	write(t, filepath.Join(dir, "fpmd.toml"), config+"max_environ = \"4KiB\"\n")
	d.wait("the connection that is kept", func() bool { return d.status().Pools[0].Connections == 1 })
	if said, code := d.told("reload", "--changed"); code != 0 {
		t.Fatalf("reload: exit code %d: %s", code, said)
	}
	for _, c := range []struct {
		what string
		conn func() net.Conn
		want string
	}{
		{"the one that was open", func() net.Conn { return kept }, "hello"},
		{"the next", func() net.Conn {
			c, err := net.Dial("unix", d.sock())
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(patience))
			return c
		}, "max_environ = 4096 bytes"},
	} {
		conn := c.conn()
		if _, err := conn.Write(request); err != nil {
			t.Fatal(err)
		}
		answer, err := readAnswer(conn)
		conn.Close()
		if c.want == "hello" && (err != nil || !strings.HasSuffix(answer, "hello")) || c.want != "hello" && !strings.Contains(answer, "Status: 4") {
			t.Errorf("%s is answered %q, %v, want %s", c.what, answer, err, c.want)
		}
		if c.want != "hello" {
			d.waitLog(c.want)
		}
	}
}

// A reload that can't have a listener is refused before anything is rolled, and leaves nothing: no other socket, no new
// worker; so does one whose workers do not come up.
func TestRebindThatFails(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	config := wsgiPool(dir, "workers = 1")
	second := strings.NewReplacer("pool.app", "pool.two", "app.sock", "two.sock").Replace(config[strings.Index(config, "[pool.app]"):])
	d := serve(t, dir, config+second)
	taken := filepath.Join(dir, "taken.sock")
	l, err := net.Listen("unix", taken)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sock := func(name string) string { return filepath.Join(dir, name+".sock") }
	for _, tt := range []struct {
		what, listen, more string
		want               string
	}{
		{"an address of somebody else", fmt.Sprintf("[%q, %q]", sock("new"), taken), "", "taken.sock\": another process is listening there"},
		{"an address of another pool", fmt.Sprintf("[%q, %q]", sock("new"), sock("two")), "", "pool two listens at"},
		{"code that does not come up", fmt.Sprintf("%q", sock("new")), "env = { X = \"1\" }\nwsgi = \"none:application\"", "did not come up"},
	} {
		text := strings.Replace(config, fmt.Sprintf("%q", sock("app")), tt.listen, 1)
		if tt.more != "" {
			text = strings.Replace(text, "wsgi = \"app:application\"", tt.more, 1)
		}
		if tt.what == "an address of another pool" { // which is to leave it
			text += strings.Replace(second, "two.sock", "third.sock", 1)
		} else {
			text += second
		}
		write(t, filepath.Join(dir, "fpmd.toml"), text)
		if said, code := d.told("reload"); code != exitFailure || !strings.Contains(said, tt.want) {
			t.Errorf("%s: exit code %d: %s, want %q", tt.what, code, said, tt.want)
		}
		for _, gone := range []string{"new", "third"} {
			if _, err := os.Lstat(sock(gone)); !os.IsNotExist(err) {
				t.Errorf("%s: the socket %s is there: %v", tt.what, gone, err)
			}
		}
		if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "hello") {
			t.Errorf("%s: then the pool answers %q, %v", tt.what, answer, err)
		}
		if g := d.status().Pools[0].Generation; g != 1 {
			t.Errorf("%s: generation %d serves, want 1", tt.what, g)
		}
	}
	write(t, filepath.Join(dir, "fpmd.toml"), strings.Replace(config, fmt.Sprintf("%q", sock("app")), fmt.Sprintf("%q", sock("new")), 1)+second)
	if said, code := d.told("reload"); code != 0 {
		t.Errorf("a good one after them: exit code %d: %s", code, said)
	}
	if answer, err := askOnce(sock("new")); err != nil || !strings.HasSuffix(answer, "hello") {
		t.Errorf("after it the pool answers %q, %v", answer, err)
	}
	d.signal(syscall.SIGTERM)
	d.waitExit()
	for _, name := range []string{"app", "two", "new"} {
		if _, err := os.Lstat(sock(name)); !os.IsNotExist(err) {
			t.Errorf("after the stop the socket %s is there: %v", name, err)
		}
	}
}

// A pool of which only the size changes keeps its workers under --changed, and has others beside them, or fewer.
func TestResizedLive(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	const elastic = "pm = \"dynamic\"\nworkers = 4\nstart_workers = 1\nmin_spare_workers = %d\nmax_spare_workers = %d"
	d := serve(t, dir, wsgiPool(dir, fmt.Sprintf(elastic, 1, 1)))
	pids := func() map[int]bool {
		all := map[int]bool{}
		for _, w := range d.status().Pools[0].Workers {
			if w.Ready != nil {
				all[w.PID] = true
			}
		}
		return all
	}
	d.wait("one worker", func() bool { return len(pids()) == 1 })
	before := pids()
	write(t, filepath.Join(dir, "fpmd.toml"), wsgiPool(dir, fmt.Sprintf(elastic, 3, 3)))
	if said, code := d.told("reload", "--changed"); code != 0 {
		t.Fatalf("reload: exit code %d: %s", code, said)
	}
	d.wait("three workers", func() bool { return len(pids()) == 3 })
	for pid := range before {
		if !pids()[pid] {
			t.Errorf("worker %d has left", pid)
		}
	}
	if g := d.status().Pools[0].Generation; g != 1 {
		t.Errorf("generation %d serves, want 1", g)
	}
}

// The built-in front goes where the pool went.
func TestFrontAfterARebind(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	config := wsgiPool(dir, "workers = 1")
	addr := freeAddr(t)
	d := launch(t, dir, config, "--http", addr)
	d.waitLog("every pool is ready")
	for _, sock := range []string{"app", "next", "app"} {
		write(t, filepath.Join(dir, "fpmd.toml"), strings.Replace(config, "app.sock", sock+".sock", 1))
		if said, code := d.told("reload", "--changed"); code != 0 {
			t.Fatalf("reload: exit code %d: %s", code, said)
		}
		for range 3 { // the first may be over a connection that was kept
			if status, body := get(t, "http://"+addr+"/"); status != 200 || body != "hello" {
				t.Errorf("after a reload to %s.sock: %d %q", sock, status, body)
			}
		}
		d.wait("connections to where it was gone", func() bool { return d.status().Pools[0].Connections <= 1 })
	}
}
