package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rogueApp does on every path what an application should not, or need not.
const rogueApp = `
import os, resource, signal, sys, threading, time
class Raising:
    def __init__(self, error): self.error = error
    def __iter__(self): return iter([b"fine"])
    def close(self): raise self.error
def application(environ, start_response):
    path = environ["PATH_INFO"]
    text = [("Content-Type", "text/plain")]
    if path == "/none": return None
    if path == "/unstarted": return [b"x"]
    if path == "/bad-status":
        start_response(200, text)
    if path == "/bad-headers":
        start_response("200 OK", {"A": "b"})
    if path == "/bad-header":
        start_response("200 OK", [("A", 1)])
    if path == "/bad-block":
        start_response("200 OK", text)
        return ["x"]
    if path == "/bad-result":
        start_response("200 OK", text)
        return 7
    if path == "/bad-write":
        start_response("200 OK", text)("x")
    if path == "/recursion":
        return application(environ, start_response)
    if path == "/sys.exit": sys.exit(3)
    if path == "/keyboard": raise KeyboardInterrupt
    if path == "/_exit": os._exit(3)
    if path == "/abort": os.abort()
    if path == "/exec": os.execv("/bin/sleep", ["sleep", "1000"])
    if path == "/stop": os.kill(os.getpid(), signal.SIGSTOP)
    if path == "/closerange":
        os.closerange(0, 65536)
    if path == "/close-connection":
        for fd in range(3, 256):
            try: os.close(fd)
            except OSError: pass
    if path == "/fork" and os.fork() == 0:
        time.sleep(1000)
    if path == "/fork-returns":
        os.fork()
    if path == "/daemon" and os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(3)
        os._exit(0)
    if path == "/descriptors":
        os.write(1, b"to descriptor 1\n")
        os.write(2, b"to descriptor 2\n")
        assert os.read(0, 1) == b""
    if path == "/mask": signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    if path == "/term": signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if path == "/thread": threading.Thread(target=time.sleep, args=(1000,)).start()
    if path == "/limit": resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    if path == "/streams":
        sys.stdout.close(); sys.stderr.close()
    if path == "/place":
        os.chdir("/"); os.umask(0o777); os.environ.clear()
    start_response("200 OK", text)
    if path == "/close-raises": return Raising(ValueError("in close"))
    if path == "/close-exits": return Raising(SystemExit(3))
    return [b"fine"]
`

// Whatever an application does to its process costs its own request at the
// most, and no slot for good: afterwards the pool has all its workers.
func TestRogueApplications(t *testing.T) {
	t.Parallel()
	const workers = 3
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), rogueApp)
	d := serve(t, dir, wsgiPool(dir, fmt.Sprintf("workers = %d\nrequest_timeout = \"2s\"\nstop_timeout = \"1s\"", workers)))
	url := d.nginx("")
	l := startLoad(t, 2, func(ctx context.Context) (int, string, error) {
		resp, body, err := fetch(ctx, "GET", url+"/", nil)
		if err != nil {
			return 0, "", err
		}
		return resp.StatusCode, resp.Header.Get("Fpmd-Outcome") + body, nil
	})
	d.wait("load", func() bool { return l.total("fine") > 20 })
	for path, want := range map[string]string{
		"/none": "500 app_error", "/unstarted": "500 app_error", "/bad-status": "500 app_error", "/bad-headers": "500 app_error", "/bad-header": "500 app_error",
		"/bad-block": "500 app_error", "/bad-result": "500 app_error", "/bad-write": "500 app_error", "/recursion": "500 app_error",
		"/sys.exit": "500 app_error", "/keyboard": "500 app_error",
		"/_exit": "502 worker_died", "/abort": "502 worker_died",
		"/exec": "502", "/closerange": "502", "/close-connection": "502", // the lifeline is closed as well, which kills it: either is first
		"/stop": "504 timeout",
		"/fork": "200", "/fork-returns": "200", "/daemon": "200", "/descriptors": "200", "/mask": "200", "/term": "200",
		"/thread": "200", "/limit": "200", "/streams": "200", "/place": "200", "/close-raises": "200", "/close-exits": "200",
	} {
		t.Run(path[1:], func(t *testing.T) {
			resp, body, err := fetch(t.Context(), "GET", url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.TrimSpace(fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Fpmd-Outcome")))
			if !strings.HasPrefix(got, want) || want == "200" && (got != want || body != "fine") {
				t.Errorf("got %s %q, want %s", got, body, want)
			}
			before := l.total("fine")
			d.wait("load after it", func() bool { return l.total("fine") > before+20 })
		})
	}
	if _, failed := l.stop(); len(failed) > 0 {
		t.Errorf("others: %s", summary(failed))
	}
	// All slots at once: none is taken by something of the past.
	d.wait("a whole pool", func() bool {
		lost := strings.Count(d.log.String(), "msg=\"worker gone\"")
		return strings.Count(d.log.String(), "msg=\"worker ready\"")-lost == workers
	})
}

// What somebody removes while fpmd runs is made again: the runtime folder, and
// the name of a socket; the log says so, and who is connected notices nothing.
func TestRemovedWhileRunning(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1"))
	if _, err := askOnce(d.sock()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "run"), d.sock()} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	d.waitLog("runtime_dir was removed")
	d.waitLog("socket was removed")
	for _, pid := range workersOf(d) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	d.waitLogTimes("msg=\"worker ready\"", 2)
	if _, err := askOnce(d.sock()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// Who waits in the backlog of a socket whose name is removed is served all the same.
func TestRemovedSocketKeepsItsBacklog(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1\nmax_connections = 1"))
	var first, second net.Conn
	for _, c := range []*net.Conn{&first, &second} {
		var err error
		if *c, err = net.Dial("unix", d.sock()); err != nil {
			t.Fatal(err)
		}
		defer (*c).Close()
	}
	d.waitLog("msg=\"all connections are in use\" pool=app listen=" + d.sock())
	if _, err := second.Write(fcgiRequest("/")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(d.sock()); err != nil {
		t.Fatal(err)
	}
	d.waitLog("socket was removed")
	first.Close()
	second.SetDeadline(time.Now().Add(patience))
	answer, err := io.ReadAll(second)
	if !strings.Contains(string(answer), "Status: 200") {
		t.Errorf("got %q, %v", answer, err)
	}
	if _, err := askOnce(d.sock()); err != nil {
		t.Errorf("the new one: %v", err)
	}
}

// Without descriptors fpmd says so, once, and goes on when there are some again:
// who waited in the backlog is served, who died is replaced.
func TestNoDescriptorsLeft(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 2"))
	d.waitLogTimes("msg=\"worker ready\"", 2)
	if _, err := askOnce(d.sock()); err != nil {
		t.Fatal(err)
	}
	pid := d.cmd.Process.Pid
	var had unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &had); err != nil {
		t.Fatal(err)
	}
	few := unix.Rlimit{Cur: 3, Max: had.Max} // what is open stays open
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &few, nil); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() { // ends with the answer
		_, err := askOnce(d.sock())
		waiting <- err
	}()
	d.waitLog("msg=accept")
	syscall.Kill(workersOf(d)[0], syscall.SIGKILL)
	d.waitLog("too many open files")
	d.waitLog("worker did not start")
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &had, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != nil {
		t.Errorf("who waited: %v", err)
	}
	d.waitLog("accepting again")
	d.waitLogTimes("msg=\"worker ready\"", 3)
	if n := strings.Count(d.log.String(), "msg=accept "); n != 1 {
		t.Errorf("said %d times", n)
	}
}
