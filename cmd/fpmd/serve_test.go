package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fpmd/fcgi"
)

const helloApp = `
import os
def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/pid":
        body = str(os.getpid()).encode()
    elif path == "/env":
        body = "\n".join("%s=%s" % i for i in sorted(environ.items())).encode("latin-1", "replace")
    elif path == "/echo":
        body = environ["wsgi.input"].read()
    else:
        body = b"hello"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]
`

// An application answers behind a real nginx with its stock parameters, over
// kept connections, and gets an environ that fits.
func TestBehindNginx(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 2"))
	url := d.nginx("")
	for range 20 {
		if status, body := get(t, url+"/a%20b?q=1"); status != 200 || body != "hello" {
			t.Fatalf("%d %q", status, body)
		}
	}
	_, env := get(t, url+"/env?q=1")
	for _, want := range []string{
		"SCRIPT_NAME=\n", "PATH_INFO=/env\n", "QUERY_STRING=q=1\n", "REQUEST_METHOD=GET\n", "SERVER_PROTOCOL=HTTP/1.1\n",
		"wsgi.url_scheme=http", "wsgi.multiprocess=True", "wsgi.multithread=False", "wsgi.run_once=False", "HTTP_USER_AGENT=Go-http-client/1.1\n",
	} {
		if !strings.Contains(env+"\n", want) {
			t.Errorf("no %q in\n%s", want, env)
		}
	}
	resp, body, err := fetch(t.Context(), "POST", url+"/echo", strings.NewReader(strings.Repeat("x", 300000)))
	if err != nil || resp.StatusCode != 200 || len(body) != 300000 {
		t.Errorf("POST: %v, %d bytes back", err, len(body))
	}
	if code := stopGently(d); code != 0 {
		t.Errorf("exit code %d after TERM", code)
	}
}

func stopGently(d *process) int {
	d.t.Helper()
	d.signal(syscall.SIGTERM)
	return d.waitExit()
}

const versionApp = `
import time
VERSION = %q
def application(environ, start_response):
    time.sleep(0.002)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [VERSION.encode()]
`

// HUP under load, ten times, with new code each time and the configuration
// untouched: nothing fails, and each new code is seen.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	app := filepath.Join(dir, "app.py")
	write(t, app, fmt.Sprintf(versionApp, "v0"))
	d := serve(t, dir, wsgiPool(dir, "workers = 2"))
	url := d.nginx("")
	var n atomic.Int64
	l := startLoad(t, 8, func(ctx context.Context) (int, string, error) {
		method, body := "GET", io.Reader(nil)
		if n.Add(1)%3 == 0 {
			method, body = "POST", strings.NewReader("x=1")
		}
		resp, got, err := fetch(ctx, method, url+"/", body)
		if err != nil {
			return 0, "", err
		}
		return resp.StatusCode, got, nil
	})
	d.wait("answers of v0", func() bool { return l.total("v0") > 10 })
	for i := 1; i <= 10; i++ {
		v := fmt.Sprintf("v%d", i)
		write(t, app, fmt.Sprintf(versionApp, v))
		d.signal(syscall.SIGHUP)
		d.waitLogTimes("msg=reloaded", i)
		d.wait("answers of "+v, func() bool { return l.total(v) > 10 })
	}
	served, failed := l.stop()
	if len(failed) > 0 {
		t.Errorf("%s, of %d", summary(failed), len(served))
	}
}

// A reload whose code does not import, or whose configuration is broken, leaves
// the old workers serving, and says so with the reason.
func TestReloadThatFails(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	app := filepath.Join(dir, "app.py")
	write(t, app, fmt.Sprintf(versionApp, "old"))
	config := wsgiPool(dir, "workers = 2")
	d := serve(t, dir, config)
	url := d.nginx("")

	write(t, app, "import no_such_module_anywhere\n")
	d.signal(syscall.SIGHUP)
	d.waitLog("level=ERROR msg=\"reload failed\" pools=app")
	why := regexp.MustCompile(`level=ERROR msg="new workers did not come up" pool=app worker=\d+ cause="exited with status 1 before it was ready" ` +
		`last="fpmd: no application: app: needs the module 'no_such_module_anywhere', .*" command=.* user=\w+ directory=.* next="the old ones go on serving"`)
	if !why.MatchString(d.log.String()) {
		t.Errorf("the log has no %s", why)
	}
	if status, body := get(t, url+"/"); status != 200 || body != "old" {
		t.Errorf("after a reload of broken code: %d %q", status, body)
	}
	write(t, filepath.Join(dir, "fpmd.toml"), config+"wrokers = 3\nthreds = 1\n")
	d.signal(syscall.SIGHUP)
	d.waitLog("level=ERROR msg=\"reload refused\" cause=\"errors in the configuration: 2\" next=\"all stays as it is\"")
	for _, key := range []string{"wrokers", "threds"} {
		if !strings.Contains(d.log.String(), "level=ERROR msg=configuration error=\""+dir+"/fpmd.toml:") || !strings.Contains(d.log.String(), "pool.app."+key) {
			t.Errorf("the log does not name %s", key)
		}
	}
	if status, body := get(t, url+"/"); status != 200 || body != "old" {
		t.Errorf("after a reload of a broken configuration: %d %q", status, body)
	}
	write(t, filepath.Join(dir, "fpmd.toml"), strings.Replace(config, "run\"", "other\"", 1))
	d.signal(syscall.SIGHUP)
	d.waitLog("level=ERROR msg=\"reload refused\" cause=\"supervisor.runtime_dir is now " + dir + "/other, not " + dir + "/run: restart fpmd for that\"")
	write(t, filepath.Join(dir, "fpmd.toml"), strings.Replace(config, "log_level = \"debug\"", "log_level = \"info\"", 1))
	write(t, app, fmt.Sprintf(versionApp, "new"))
	d.signal(syscall.SIGHUP)
	d.waitLog("warning=\"supervisor.log_level is now info, not debug: that counts from the next start on\"")
	d.waitLog("msg=reloaded")
	if status, body := get(t, url+"/"); status != 200 || body != "new" {
		t.Errorf("after a good reload: %d %q", status, body)
	}
}

// INT ends what is not answered, and says so to its clients and in the log: who waits and who
// has begun gets 503, an answer that has begun is cut. Nobody else is blamed, and
// where nothing is under way there is nothing to say.
func TestStopNow(t *testing.T) {
	t.Parallel()
	const app = `
import time
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/begun":
        yield b"first"
    print("begun", flush=True)
    time.sleep(3600)
    yield b"last"
`
	for _, tt := range []struct {
		name  string
		paths []string
		want  []string // what each answer has
		sig   []syscall.Signal
	}{
		{"idle", nil, nil, []syscall.Signal{syscall.SIGINT}},
		{"one at work and two queued", []string{"/", "/", "/"}, []string{stoppedAnswer, stoppedAnswer, stoppedAnswer}, []syscall.Signal{syscall.SIGINT}},
		{"an answer under way", []string{"/begun", "/"}, []string{"\r\n\r\nfirst", stoppedAnswer}, []syscall.Signal{syscall.SIGINT}},
		{"TERM twice", []string{"/", "/"}, []string{stoppedAnswer, stoppedAnswer}, []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := appDir(t)
			write(t, filepath.Join(dir, "app.py"), app)
			d := serve(t, dir, wsgiPool(dir, "workers = 1\naccess_log = \"-\""))
			idle, err := dialBacklog(d.sock()) // a connection without a request is no request
			if err != nil {
				t.Fatal(err)
			}
			defer idle.Close()
			var clients []net.Conn
			for i, path := range tt.paths {
				clients = append(clients, dialFCGI(t, d.sock(), path))
				if i == 0 {
					d.waitLog("msg=begun")
				}
			}
			for i, sig := range tt.sig {
				d.signal(sig)
				d.waitLogTimes("msg=stopping", i+1)
			}
			for i, c := range clients {
				c.SetDeadline(time.Now().Add(patience))
				answer, err := io.ReadAll(c)
				if !bytes.Contains(answer, []byte(tt.want[i])) {
					t.Errorf("answer %d: %q, %v", i, answer, err)
				}
				c.Close()
			}
			if code := d.waitExit(); code != 0 {
				t.Errorf("exit code %d", code)
			}
			log := d.log.String()
			if n := strings.Count(log, "msg=request "); n != len(clients) || strings.Count(log, " outcome=stopping bytes=") != n {
				t.Errorf("%d requests in the access log, not all of them outcome=stopping", n)
			}
			said := strings.Contains(log, fmt.Sprintf("msg=\"requests cut by the stop\" pool=app requests=%d cause=\"stopped by a signal that does not wait\"", len(clients)))
			if said != (len(clients) > 0) || strings.Contains(log, "requests cut") != said {
				t.Error("the log does not say how many were cut, or that some were")
			}
			for _, wrong := range []string{"stuck", "client_gone", "level=ERROR"} {
				if strings.Contains(log, wrong) {
					t.Errorf("the log has %q", wrong)
				}
			}
		})
	}
}

const stoppedAnswer = "Status: 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n" +
	"Content-Length: 34\r\nRetry-After: 1\r\nFpmd-Outcome: stopping\r\n"

// What a worker prints is in the log whatever log_level is, as json with durations that
// can be read.
func TestLogLevel(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), "def application(environ, start_response):\n    raise ValueError('why it failed')\n")
	config := wsgiPool(dir, "workers = 1\naccess_log = \"-\"")
	config = strings.Replace(config, "log_level = \"debug\"", "log_level = \"warn\"\nlog_format = \"json\"", 1)
	d := launch(t, dir, config)
	d.wait("an answer", func() bool { _, err := askOnce(d.sock()); return err == nil })
	for _, want := range []string{
		`"level":"INFO","msg":"ValueError: why it failed","pool":"app","worker":1,`,
		`"level":"INFO","msg":"request","pool":"app","id":`,
		`"level":"WARN","msg":"request failed","pool":"app","outcome":"app_error","id":`,
	} {
		d.waitLog(want)
	}
	if !regexp.MustCompile(`"run":"[0-9.]+[mµ]s"`).MatchString(d.log.String()) {
		t.Errorf("no duration of a run in %s", d.log.String())
	}
	if strings.Contains(d.log.String(), "worker ready") {
		t.Error("fpmd's own lines of INFO are there")
	}
}

// A directory that is a link is followed when a generation begins: whoever starts later, or imports
// late, has the release of its generation, and a reload that fails leaves that whole.
func TestDeployByLink(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	deploy := func(version, code string) {
		t.Helper()
		release := filepath.Join(dir, version)
		if err := os.Mkdir(release, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(release, "app.py"), code)
		write(t, filepath.Join(release, "late.py"), fmt.Sprintf("VERSION = %q\n", version))
		next := filepath.Join(dir, "next")
		if err := errors.Join(os.Symlink(version, next), os.Rename(next, filepath.Join(dir, "current"))); err != nil {
			t.Fatal(err)
		}
	}
	const late = `
def application(environ, start_response):
    import late
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [late.VERSION.encode()]
`
	deploy("v1", late)
	d := serve(t, dir, strings.Replace(wsgiPool(dir, "workers = 1"), fmt.Sprintf("directory = %q", dir), fmt.Sprintf("directory = %q", filepath.Join(dir, "current")), 1))
	want := func(version string) {
		t.Helper()
		if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, version) {
			t.Errorf("got %q, %v, want the answer of %s", answer, err, version)
		}
	}
	killed := 0
	kill := func() {
		t.Helper()
		killed++
		ready := strings.Count(d.log.String(), "worker ready")
		syscall.Kill(workersOf(d)[0], syscall.SIGKILL)
		d.waitLogTimes("worker ready", ready+1)
		d.waitLogTimes("level=ERROR msg=\"worker gone\"", killed)
	}
	deploy("v2", late)
	want("v1") // imported only now
	kill()
	want("v1")
	if said, code := d.told("reload"); code != 0 {
		t.Fatalf("exit code %d: %s", code, said)
	}
	want("v2")
	deploy("v3", "import no_such_module_anywhere\n")
	if _, code := d.told("reload"); code == 0 {
		t.Error("the reload of broken code succeeds")
	}
	kill()
	want("v2")
}

// TERM under load: every request that was accepted is answered; fpmd ends
// with 0, and no process, socket or folder is left.
func TestStopUnderLoad(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), `
import os, time
def application(environ, start_response):
    with open(os.environ["STARTED"], "a") as f:
        f.write("x")
    time.sleep(0.05)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]
`)
	started := filepath.Join(dir, "started")
	write(t, started, "")
	if err := os.Chmod(started, 0o666); err != nil {
		t.Fatal(err)
	}
	d := serve(t, dir, wsgiPool(dir, fmt.Sprintf("workers = 2\nenv = { STARTED = %q }", started)))
	// Each client has a connection of its own, and asks once: all of them are
	// accepted, and most are queued, when the signal comes.
	const clients = 20
	type result struct {
		answer string
		err    error
	}
	results := make(chan result, clients)
	for range clients {
		go func() {
			answer, err := askOnce(d.sock())
			results <- result{answer, err}
		}()
	}
	d.wait("two requests at work", func() bool {
		fi, err := os.Stat(started)
		return err == nil && fi.Size() >= 2
	})
	workers := children(d.cmd.Process.Pid)
	if code := stopGently(d); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for range clients {
		r := <-results
		if r.err != nil || !strings.HasSuffix(r.answer, "done") {
			t.Errorf("a request that was accepted got %q, %v", r.answer, r.err)
		}
	}
	for _, pid := range workers {
		if alive(pid) {
			t.Errorf("worker %d is left", pid)
		}
	}
	nothingLeft(t, dir)
}

func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(dir, "app.sock")); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "run"))
	if err == nil && len(left) > 0 {
		t.Errorf("left in runtime_dir: %v", left)
	}
}

// SIGKILL of fpmd ends its workers and their children, also where one is stuck
// in C code; and fpmd starts again over what is left.
func TestSupervisorKilled(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), `
import os, subprocess
def application(environ, start_response):
    if environ["PATH_INFO"] == "/stuck":
        subprocess.Popen(["sleep", "1000"])
        open(os.environ["STUCK"], "w").close()
        sum(range(10 ** 12))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"fine"]
`)
	run := filepath.Join(dir, "mark")
	if err := os.Mkdir(run, 0o777); err != nil {
		t.Fatal(err)
	}
	os.Chmod(run, 0o777)
	config := wsgiPool(dir, fmt.Sprintf("workers = 2\nenv = { STUCK = %q }", filepath.Join(run, "stuck")))
	d := serve(t, dir, config)
	go askPath(d.sock(), "/stuck")
	d.wait("a stuck worker", func() bool {
		_, err := os.Stat(filepath.Join(run, "stuck"))
		return err == nil
	})
	pids := children(d.cmd.Process.Pid)
	if len(pids) < 3 {
		t.Fatalf("only %d processes below fpmd: want two workers and a child", len(pids))
	}
	d.signal(syscall.SIGKILL)
	d.waitExit()
	end := time.Now().Add(patience)
	for _, pid := range pids {
		for alive(pid) {
			if time.Now().After(end) {
				t.Fatalf("process %d outlives fpmd", pid)
			}
			time.Sleep(time.Millisecond)
		}
	}
	again := serve(t, dir, config)
	if answer, err := askOnce(again.sock()); err != nil || !strings.HasSuffix(answer, "fine") {
		t.Errorf("after the restart: %q, %v", answer, err)
	}
	if code := stopGently(again); code != 0 {
		t.Errorf("exit code %d", code)
	}
	nothingLeft(t, dir)
}

// A worker killed under load costs the request that it had begun, with a 502 that
// names the outcome, and no other.
func TestWorkerKilledUnderLoad(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), `
import os, time
def application(environ, start_response):
    if environ["PATH_INFO"] == "/suicide":
        os.kill(os.getpid(), 9)
    time.sleep(0.002)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"fine"]
`)
	d := serve(t, dir, wsgiPool(dir, "workers = 2"))
	url := d.nginx("")
	l := startLoad(t, 8, func(ctx context.Context) (int, string, error) {
		resp, got, err := fetch(ctx, "GET", url+"/", nil)
		if err != nil {
			return 0, "", err
		}
		return resp.StatusCode, got, nil
	})
	d.wait("load", func() bool { return l.total("") > 20 })
	for i := range 3 {
		resp, body, err := fetch(t.Context(), "GET", url+"/suicide", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 502 || resp.Header.Get("Fpmd-Outcome") != "worker_died" || resp.Header.Get("Fpmd-Request-Id") == "" {
			t.Errorf("the killed worker's request got %d %v %q", resp.StatusCode, resp.Header, body)
		}
		d.waitLogTimes("msg=\"worker ready\"", 2+i+1) // its replacement
		before := l.total("")
		d.wait("load after it", func() bool { return l.total("") > before+20 })
	}
	if _, failed := l.stop(); len(failed) > 0 {
		t.Errorf("others: %s", summary(failed))
	}
	if !strings.Contains(d.log.String(), "killed by SIGKILL") {
		t.Error("the log does not say how the worker ended")
	}
}

// A worker stopped from outside while it is idle, or while a request has been sent to
// it that it has not begun, costs nothing at all.
func TestRequestNeverBegunIsSentAgain(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 2"))
	var workers []int
	d.wait("two workers", func() bool { workers = children(d.cmd.Process.Pid); return len(workers) == 2 })
	d.waitLogTimes("msg=\"worker ready\"", 2)
	// Both are stopped: whichever gets the request has not begun it when it is killed.
	for _, pid := range workers {
		syscall.Kill(pid, syscall.SIGSTOP)
	}
	type result struct {
		answer string
		err    error
	}
	got := make(chan result, 2)
	for range 2 {
		go func() {
			answer, err := askOnce(d.sock())
			got <- result{answer, err}
		}()
	}
	d.wait("both requests at the workers", func() bool { return unread(t) == 2 })
	for _, pid := range workers {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	for range 2 {
		if r := <-got; r.err != nil || !strings.HasSuffix(r.answer, "hello") {
			t.Errorf("a request that never began got %q, %v", r.answer, r.err)
		}
	}
	if n := d.status().Pools[0].Resent; n < 2 {
		t.Errorf("%d requests count as sent again, want 2 or more", n)
	}
}

// unread counts the connections of the pool's workers on which something waits
// to be read. The kernel names them by where they were bound.
func unread(t *testing.T) (n int) {
	t.Helper()
	out, err := exec.Command("ss", "-xH", "state", "established").CombinedOutput()
	if err != nil {
		t.Fatalf("ss: %v %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line) // netid, bytes to read, bytes to send, name
		if len(f) > 3 && f[1] != "0" && strings.Contains(f[3], "/app.") && !strings.HasSuffix(f[3], ".sock") {
			n++
		}
	}
	return n
}

// A client that leaves frees its place: in the queue at once, at a worker as soon as the
// application notices.
func TestClientLeaves(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), `
import os, time
class Body:
    def __iter__(self):
        while True:
            yield b"x" * 1000
            time.sleep(0.01)
    def close(self):
        print("closed", flush=True)
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/endless":
        return Body()
    return [b"fine"]
`)
	d := serve(t, dir, wsgiPool(dir, "workers = 1\naccess_log = \"-\""))
	c := dialFCGI(t, d.sock(), "/endless")
	if _, err := io.ReadFull(c, make([]byte, 2000)); err != nil {
		t.Fatal(err)
	}
	queued := dialFCGI(t, d.sock(), "/")
	queued.Close() // while it waits: the one worker is busy
	d.waitLog("outcome=client_gone")
	c.Close()
	d.waitLog("msg=closed")
	d.waitLogTimes("outcome=client_gone", 2)
	if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "fine") {
		t.Errorf("the next request got %q, %v", answer, err)
	}
	if n := strings.Count(d.log.String(), "msg=closed"); n != 1 {
		t.Errorf("close() was called %d times", n)
	}
}

// A request longer than request_timeout gets 504 at once, or its answer is cut; its worker is replaced, and the
// next request is served by the replacement. The log has each clock that ran out, and what comes next.
func TestRequestTimeout(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), `
import time
def application(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(1000)
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"fine"
    if environ["PATH_INFO"] == "/stuck":
        time.sleep(1000)
`)
	d := serve(t, dir, wsgiPool(dir, "workers = 1\nrequest_timeout = \"500ms\"\nstop_timeout = \"200ms\""))
	answer, err := askPath(d.sock(), "/slow")
	if err != nil || !strings.HasPrefix(answer, "Status: 504") || !strings.Contains(answer, "Fpmd-Outcome: timeout\r\n") {
		t.Errorf("%q, %v", answer, err)
	}
	if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "fine") {
		t.Errorf("the next request got %q, %v", answer, err)
	}
	if answer, err := askPath(d.sock(), "/stuck"); err == nil || !strings.HasSuffix(answer, "fine") {
		t.Errorf("%q, %v, want an answer that was cut", answer, err)
	}
	d.waitLogTimes("worker gone", 2)
	for _, want := range []string{
		`method=GET uri=/slow cause="no answer in request_timeout=500ms" next="answer 504, replace the worker"`,
		`method=GET uri=/stuck cause="no further part of the answer in request_timeout=500ms" next="cut the answer, replace the worker"`,
		`msg="worker not stopped within stop_timeout" pool=app worker=1 pid=`, `stop_timeout=200ms next="kill it, and what it has started"`,
	} {
		d.waitLog(want)
	}
}

// A worker of which one request has run into request_timeout takes no more, and the others that it has
// run on, for longer than drain_timeout; then it ends.
func TestRequestTimeoutSparesOthers(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	program := filepath.Join(dir, "app")
	if out, err := exec.Command("go", "build", "-o", program, "./testdata/hangs").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	d := serve(t, dir, poolConfig(dir, fmt.Sprintf("command = [%q]\nworkers = 1\nrequest_timeout = \"2s\"\ndrain_timeout = \"100ms\"\nstop_timeout = \"100ms\"", program)))
	stream := dialFCGI(t, d.sock(), "/")
	defer stream.Close()
	ticks := make([]byte, 500)
	read := func() {
		t.Helper()
		if _, err := io.ReadFull(stream, ticks); err != nil {
			t.Fatalf("the stream has ended: %v", err)
		}
	}
	read()
	if answer, err := askPath(d.sock(), "/hang"); err != nil || !strings.HasPrefix(answer, "Status: 504") {
		t.Errorf("%q, %v", answer, err)
	}
	d.waitLogTimes("worker ready", 2)
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		read()
	}
	stream.Close()
	d.waitLog("msg=\"worker gone\" pool=app worker=1")
}

// What the queue does not take, or does not get rid of in time, is told so.
func TestQueueBounds(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), `
import time
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"begun"
    if environ["PATH_INFO"] == "/hold":
        time.sleep(1000)
`)
	d := serve(t, dir, wsgiPool(dir, "workers = 1\nqueue_size = 1\nqueue_timeout = \"1s\"\nstop_timeout = \"100ms\"\ndrain_timeout = \"100ms\""))
	hold := dialFCGI(t, d.sock(), "/hold")
	defer hold.Close()
	if _, err := io.ReadFull(hold, make([]byte, 50)); err != nil {
		t.Fatal(err)
	}
	answers := make(chan string, 2)
	for range 2 {
		go func() {
			answer, err := askOnce(d.sock())
			answers <- fmt.Sprint(answer, err)
		}()
	}
	all := <-answers + <-answers // one of them was refused at once, the other waited
	for _, want := range []string{"Status: 503", "Fpmd-Outcome: queue_full", "Fpmd-Outcome: queue_timeout", "Retry-After: "} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in %q", want, all)
		}
	}
}

// A pool whose application does not import answers 503 and says why in the log; it
// comes up when the application does.
func TestBootFailed(t *testing.T) {
	dir := appDir(t)
	app := filepath.Join(dir, "app.py")
	write(t, app, "raise RuntimeError('not today')\n")
	d := launch(t, dir, wsgiPool(dir, "workers = 1\nqueue_timeout = \"100ms\""))
	d.waitLogTimes("not today", 3)
	d.wait("an answer of boot_failed", func() bool {
		answer, err := askOnce(d.sock())
		return err == nil && strings.HasPrefix(answer, "Status: 503") && strings.Contains(answer, "Fpmd-Outcome: boot_failed\r\n")
	})
	write(t, app, helloApp)
	d.waitLog("every pool is ready")
	if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "hello") {
		t.Errorf("%q, %v", answer, err)
	}
}

// A socket that a living process listens on is not taken, one that a dead one
// left is, and what is no socket is left alone.
func TestSocketInTheWay(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	config := wsgiPool(dir, "workers = 1")
	sock := filepath.Join(dir, "app.sock")

	write(t, sock, "a file")
	d := launch(t, dir, config)
	if code := d.waitExit(); code != 1 || !strings.Contains(d.log.String(), "no socket") {
		t.Errorf("a file in the way: exit code %d, %s", code, d.log.String())
	}
	os.Remove(sock)

	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	d = launch(t, dir, config)
	if code := d.waitExit(); code != 1 || !strings.Contains(d.log.String(), "another process is listening") {
		t.Errorf("a living socket: exit code %d, %s", code, d.log.String())
	}
	l.Close()
	serve(t, dir, config)
	if answer, err := askOnce(sock); err != nil || !strings.HasSuffix(answer, "hello") {
		t.Errorf("over a dead socket: %q, %v", answer, err)
	}
}

// A second TERM stops at once, whatever is at work.
func TestSignals(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), `
import time
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"begun"
    if environ["PATH_INFO"] == "/hold":
        time.sleep(1000)
`)
	d := serve(t, dir, wsgiPool(dir, "workers = 1"))
	hold := dialFCGI(t, d.sock(), "/hold")
	defer hold.Close()
	if _, err := io.ReadFull(hold, make([]byte, 50)); err != nil {
		t.Fatal(err)
	}
	d.signal(syscall.SIGTERM) // waits for the request
	d.waitLog("msg=stopping")
	d.signal(syscall.SIGTERM) // does not
	if code := d.waitExit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	nothingLeft(t, dir)
}

// A broken configuration ends with 78 and says where.
func TestBrokenConfiguration(t *testing.T) {
	dir := appDir(t)
	d := launch(t, dir, "[pool.app]\nlisten = 5\n")
	if code := d.waitExit(); code != 78 || !strings.Contains(d.log.String(), "fpmd.toml:2") {
		t.Errorf("exit code %d, %s", code, d.log.String())
	}
}

// dialFCGI asks for path over a connection of its own.
func dialFCGI(t *testing.T, sock, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(fcgiRequest(path)); err != nil {
		t.Fatal(err)
	}
	return c
}

// fcgiRequest is a GET as a web server without kept connections sends it.
func fcgiRequest(path string) (b []byte) {
	record := func(typ byte, content []byte) {
		b = append(b, 1, typ, 0, 1, byte(len(content)>>8), byte(len(content)), 0, 0)
		b = append(b, content...)
	}
	var params []byte
	for _, kv := range [][2]string{{"REQUEST_METHOD", "GET"}, {"SCRIPT_NAME", path}, {"REQUEST_URI", path}, {"SERVER_PROTOCOL", "HTTP/1.1"}} {
		params = fcgi.AppendParam(params, kv[0], kv[1])
	}
	record(1, []byte{0, 1, 0, 0, 0, 0, 0, 0})
	record(4, params)
	record(4, nil)
	record(5, nil)
	return b
}

func askOnce(sock string) (string, error) { return askPath(sock, "/") }

// askPath returns the STDOUT of a whole answer; one that was cut is an error.
func askPath(sock, path string) (string, error) {
	c, err := dialBacklog(sock)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(fcgiRequest(path)); err != nil {
		return "", err
	}
	return readAnswer(c)
}

// readAnswer is what askPath returns, of a request that was sent.
func readAnswer(c net.Conn) (string, error) {
	var out []byte
	for {
		var h [8]byte
		if _, err := io.ReadFull(c, h[:]); err != nil {
			return string(out), fmt.Errorf("before the end of the request: %w", err)
		}
		content := make([]byte, int(h[4])<<8|int(h[5])+int(h[6]))
		if _, err := io.ReadFull(c, content); err != nil {
			return string(out), err
		}
		switch h[1] {
		case 6:
			out = append(out, content[:int(h[4])<<8|int(h[5])]...)
		case 3:
			return string(out), nil
		}
	}
}
