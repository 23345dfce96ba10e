package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fpmd/manager"
)

// told runs a command that asks d, and returns what it prints, and its exit code.
func (d *process) told(args ...string) (string, int) {
	d.t.Helper()
	var stdout, stderr bytes.Buffer
	args = append([]string{args[0], "-c", filepath.Join(d.dir, "fpmd.toml")}, args[1:]...)
	err := run(d.t.Context(), args, &stdout, &stderr)
	if err != nil && err.Error() != "" { // as main does
		fmt.Fprintln(&stderr, err)
	}
	return stdout.String() + stderr.String(), exitCode(err)
}

// status is what fpmd status --json says.
func (d *process) status() (r report) {
	d.t.Helper()
	said, code := d.told("status", "--json")
	if err := json.Unmarshal([]byte(said), &r); err != nil {
		d.t.Fatalf("status --json: %v, exit code %d: %s", err, code, said)
	}
	return r
}

// Whoever asks over the control socket is told how fpmd is, has it changed, and is told the
// end of what he asked for, in words and by the exit code.
func TestControl(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	app := filepath.Join(dir, "app.py")
	write(t, app, fmt.Sprintf(versionApp, "old"))
	d := serve(t, dir, wsgiPool(dir, "workers = 2\nenv = { SECRET = \"hunter2\" }"))
	asks(t, d, "/", 3)
	expect := func(code int, want string, args ...string) {
		t.Helper()
		said, got := d.told(args...)
		if got != code || !regexp.MustCompile(want).MatchString(said) {
			t.Errorf("fpmd %s: exit code %d, want %d:\n%s\nwant %s", strings.Join(args, " "), got, code, said, want)
		}
		if strings.Contains(said, "hunter2") {
			t.Errorf("fpmd %s says a value of env", strings.Join(args, " "))
		}
	}

	expect(0, `(?s)^fpmd .*  pid \d+  up \d+s  .*/fpmd.toml\n\n`+
		`pool app: serving, static, generation 1, on .*/app.sock\n`+
		`  0 of 2 slots busy, 0 of 512 places in the queue taken, 0 connections; 3 requests, 0 failed\n`+
		`  WORKER  PID +STATE +BUSY +SERVED +READY FOR +MEMORY\n`+
		`  1 +\d+ +idle +0/1 .* MiB\n  2 +\d+ +idle +0/1 .* MiB\n$`, "status")
	r := d.status()
	if p := r.Pools[0]; r.PID != d.cmd.Process.Pid || p.Requests["ok"] != 3 || p.Size != 2 || len(p.Workers) != 2 || p.Workers[0].Memory < 1<<20 {
		t.Errorf("status: %+v", r)
	}

	expect(0, "^$", "scale", "app", "3")
	d.waitWorkerCount(3)
	expect(1, `^there is no pool "aap": want one of app\n$`, "scale", "aap", "3")
	expect(64, "want a number of workers", "scale", "app", "0")
	expect(1, "want a number from 1 to", "scale", "app", "1000000")

	write(t, app, fmt.Sprintf(versionApp, "new"))
	expect(0, "^$", "reload")
	if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "new") {
		t.Errorf("when a reload has ended: %q, %v", answer, err)
	}
	if p := d.status().Pools[0]; p.Generation != 2 || p.Size != 3 {
		t.Errorf("after a reload: %+v", p)
	}
	write(t, app, "import no_such_module_anywhere\n")
	expect(1, `(?s)the old ones go on serving: .*\n    ModuleNotFoundError: No module named 'no_such_module_anywhere'\n`, "reload")
	write(t, app, fmt.Sprintf(versionApp, "new"))
	write(t, filepath.Join(dir, "fpmd.toml"), wsgiPool(dir, "workers = 2\nwrokers = 3"))
	expect(1, "wrokers: 3: unknown key: did you mean workers\\?\n", "reload")
	write(t, filepath.Join(dir, "fpmd.toml"), wsgiPool(dir, "workers = 2\nenv = { SECRET = \"hunter2\" }"))

	expect(0, "^$", "reopen")
	d.waitLog("logs opened again")
	expect(0, "^$", "stop")
	if code := d.waitExit(); code != 0 {
		t.Errorf("stopped, its exit code is %d", code)
	}
	expect(69, "no fpmd runs there", "status")
	expect(69, "no fpmd runs there", "stop")
}

func (d *process) control() string { return manager.ControlSocket(filepath.Join(d.dir, "run")) }

// A pool of which no worker comes up is said to fail, with what the last one printed.
func TestStatusOfAFailingPool(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), "raise RuntimeError('not today')\n")
	d := launch(t, dir, wsgiPool(dir, "workers = 2"))
	d.waitLogTimes("worker did not start", 3)
	d.wait("failing", func() bool { return d.status().Pools[0].State == "failing" })
	said, code := d.told("status")
	if code != exitFailure || !strings.Contains(said, "pool app: failing, static") || !strings.Contains(said, "\n        RuntimeError: not today\n") {
		t.Errorf("exit code %d:\n%s", code, said)
	}
}

// A reload of some pools leaves the others as they are; a plan says before what it would do,
// with the keys that have changed; a restart does not look at the configuration.
func TestReloadOfSome(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	config := func(a, b string) string {
		second := strings.SplitAfter(wsgiPool(dir, b), "\n\n")[1]
		return wsgiPool(dir, "workers = 1\n"+a) + strings.NewReplacer("pool.app", "pool.two", "app.sock", "two.sock").Replace(second)
	}
	const old = "env = { KEPT = \"1\", GONE = \"hunter1\" }"
	d := serve(t, dir, config(old, "workers = 1"))
	generations := func() string {
		var n []int
		for _, p := range d.status().Pools {
			n = append(n, p.Generation)
		}
		return fmt.Sprint(n)
	}
	for _, step := range []struct {
		a, b string
		args string
		code int
		want string // what is said
		gens string // of app and two
	}{
		{old, "workers = 1", "plan", 0, "pool app: new workers, with the same configuration\npool two: new workers, with the same configuration\n", "[1 1]"},
		{old, "workers = 1", "plan --changed", 0, "nothing is rolled: no key has changed\n", "[1 1]"},
		{old, "workers = 1", "reload two", 0, "", "[1 2]"},
		{old, "workers = 1", "reload --changed", 0, "", "[1 2]"},
		{old, "workers = 1", "restart app", 0, "", "[2 2]"},
		{old, "workers = 1", "restart one", 1, "there is no pool \"one\": want one of app, two\n", "[2 2]"},
		{old, "workers = 1", "reload one", 1, "there is no pool \"one\": want one of app, two\n", "[2 2]"},
		{old, "workers = 2\nqueue_size = 9", "plan", 0, "pool app: new workers, with the same configuration\npool two: new workers\n" +
			"  pool.two.workers is now 2, not 1\n  pool.two.queue_size is now 9, not 512\n", "[2 2]"},
		{old, "workers = 2\nqueue_size = 9", "restart two", 0, "", "[2 3]"},
		{old, "workers = 2\nqueue_size = 9", "plan app", 0, "pool app: new workers, with the same configuration\n", "[2 3]"},
		{old, "workers = 2\nqueue_size = 9", "reload --changed", 0, "", "[2 4]"},
		{"env = { KEPT = \"1\", NEW = \"hunter2\" }", "workers = 2\nqueue_size = 9", "plan --changed", 0, "pool app: new workers\n  pool.app.env is now NEW, not GONE\n", "[2 4]"},
		{old, "workers = 2\nqueue_size = 9\naccess_log = \"-\"", "plan --changed", 0, "pool two: another access log\n  pool.two.access_log is now -, not \"\"\n", "[2 4]"},
		{old, "workers = 2\nqueue_size = 9\naccess_log = \"-\"", "reload --changed", 0, "", "[2 4]"},
		{old, "workers = 2\nqueue_size = 9\naccess_log = \"-\"", "reload app", 0, "", "[3 4]"},
		{old, "workers = 3\nqueue_size = 9\nlisten_backlog = 7\nmax_connections = 7", "plan --changed", 0, "pool two: resized, with the workers that it has, listeners rebound, other terms for new connections, another access log\n" +
			"  pool.two.workers is now 3, not 2\n  pool.two.listen_backlog is now 7, not 511\n  pool.two.max_connections is now 7, not 16384\n  pool.two.access_log is now \"\", not -\n", "[3 4]"},
		{old, "workers = 3\nqueue_size = 9\nlisten_backlog = 7\nmax_connections = 7", "reload --changed", 0, "", "[3 4]"},
		{old, "workers = 3\nqueue_size = 9\nlisten_backlog = 7\nmax_connections = 7", "plan --changed", 0, "nothing is rolled: no key has changed\n", "[3 4]"},
	} {
		write(t, filepath.Join(dir, "fpmd.toml"), config(step.a, step.b))
		said, code := d.told(strings.Fields(step.args)...)
		if code != step.code || said != step.want {
			t.Errorf("%s: exit code %d, want %d:\n%s\nwant\n%s", step.args, code, step.code, said, step.want)
		}
		if got := generations(); got != step.gens {
			t.Errorf("%s: generations %s, want %s", step.args, got, step.gens)
		}
	}
	if size := d.status().Pools[1].Size; size != 3 {
		t.Errorf("pool two has %d workers, want 3", size)
	}
	other := strings.Replace(config(old, "workers = 3"), "run\"", "other\"", 1)
	write(t, filepath.Join(dir, "fpmd.toml"), other)
	refused := fmt.Sprintf("supervisor.runtime_dir is now %s/other, not %s/run: restart fpmd for that\n", dir, dir)
	for command, want := range map[string]string{"plan": "refused: " + refused + "all stays as it is\n", "reload": refused} {
		if said, code := d.told(command, "--socket", d.control()); code != 1 || said != want {
			t.Errorf("%s to another runtime_dir: exit code %d: %s, want %s", command, code, said, want)
		}
	}
	write(t, filepath.Join(dir, "fpmd.toml"), config(old, "workers = 3"))
	if strings.Contains(d.log.String(), "hunter") {
		t.Error("the log has a value of env")
	}
	if said, code := d.told("reload", "--wait=false", "app"); code != 0 || said != "" {
		t.Errorf("reload --wait=false: exit code %d, %s", code, said)
	}
	d.wait("the reload that nobody waited for", func() bool { return generations() == "[4 4]" })
}

// Whoever asks twice for a gentle stop gets a gentle stop: requests are answered. Meanwhile nothing
// else is done, and that is said.
func TestStopAskedTwice(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), "import time\n"+strings.Replace(helloApp, `path == "/pid"`, `path == "/slow"`, 1)+`
hello = application
def application(environ, start_response):
    if environ["PATH_INFO"] == "/wait":
        print("begun", flush=True)
        while not os.path.exists(os.environ["GO"]): time.sleep(0.01)
    return hello(environ, start_response)
`)
	goes := filepath.Join(dir, "go")
	d := serve(t, dir, wsgiPool(dir, fmt.Sprintf("workers = 1\nenv = { GO = %q }", goes)))
	answer := make(chan string, 1)
	go func() { // ends with the answer
		text, err := askPath(d.sock(), "/wait")
		answer <- fmt.Sprint(text, err)
	}()
	d.waitLog("msg=begun")
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			if said, code := d.told("stop"); code != 0 {
				t.Errorf("stop: exit code %d, %s", code, said)
			}
		})
		if i == 0 {
			d.waitLog("msg=stopping")
		}
	}
	d.wait("the state", func() bool { return d.status().Pools[0].State == "stopping" })
	if said, code := d.told("status"); code != exitFailure || !strings.Contains(said, "pool app: stopping, ") {
		t.Errorf("status: exit code %d, %s", code, said)
	}
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTTIN, syscall.SIGTTOU} {
		d.signal(sig)
		d.waitLog("msg=\"signal ignored\" signal=" + signalName(sig))
	}
	for _, args := range []string{"reload", "reload --wait=false", "restart app", "scale app 3"} {
		if said, code := d.told(strings.Fields(args)...); code != exitFailure || said != "fpmd is stopping\n" {
			t.Errorf("%s: exit code %d, %s", args, code, said)
		}
	}
	write(t, goes, "")
	if got := <-answer; !strings.HasPrefix(got, "Status: 200") {
		t.Errorf("the request that was under way got %s", got)
	}
	wg.Wait()
	if code := d.waitExit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if n := strings.Count(d.log.String(), "msg=stopping"); n != 1 {
		t.Errorf("it was told to stop %d times", n)
	}
}

// What an application prints does nothing to the terminal of who asks, and while a reload is
// under way fpmd tells how it is, and what another would do. The configuration need not
// be well to ask.
func TestAskDuringAReload(t *testing.T) {
	dir := appDir(t)
	app, file := filepath.Join(dir, "app.py"), filepath.Join(dir, "fpmd.toml")
	write(t, app, helloApp)
	config := wsgiPool(dir, "workers = 1")
	d := serve(t, dir, config)
	goes := filepath.Join(dir, "go")
	write(t, app, fmt.Sprintf("import os, time\nprint('begun', flush=True)\nwhile not os.path.exists(%q): time.sleep(0.01)\nraise RuntimeError('\\x1b[2J')\n", goes))
	type end struct {
		said string
		code int
	}
	ended := make(chan end, 1)
	go func() { // ends with the reload
		said, code := d.told("reload")
		ended <- end{said, code}
	}()
	d.waitLog("msg=begun")
	if said, code := d.told("plan"); code != 0 || said != "pool app: new workers, with the same configuration\n" {
		t.Errorf("plan: exit code %d, %s", code, said)
	}
	if p := d.status().Pools[0]; p.State != "serving" || p.Slots != 1 || p.Generation != 1 || len(p.Workers) != 2 {
		t.Errorf("status: %+v", p)
	}
	write(t, file, config+"wrokers = 3\n")
	if said, code := d.told("status"); code != 0 || !strings.Contains(said, "pool app: serving") {
		t.Errorf("status with a broken configuration: exit code %d, %s", code, said)
	}
	write(t, file, config)
	write(t, goes, "")
	if e := <-ended; e.code != exitFailure || !strings.Contains(e.said, `RuntimeError: \x1b[2J`) || strings.Contains(e.said, "\x1b") {
		t.Errorf("reload: exit code %d, %q", e.code, e.said)
	}
}

// systemd is told of a start that has worked, and of reloads only after that.
func TestReadyIsNotSaidTooEarly(t *testing.T) {
	dir := appDir(t)
	app := filepath.Join(dir, "app.py")
	write(t, app, "raise RuntimeError('not today')\n")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", l.LocalAddr().String())
	d := launch(t, dir, wsgiPool(dir, "workers = 1"))
	d.waitLog("worker did not start")
	if _, code := d.told("reload"); code != exitFailure {
		t.Errorf("reload: exit code %d", code)
	}
	write(t, app, helloApp)
	d.waitLog("every pool is ready")
	if _, code := d.told("reload"); code != 0 {
		t.Errorf("reload: exit code %d", code)
	}
	if code := stopGently(d); code != 0 {
		t.Errorf("exit code %d", code)
	}
	var told []string
	b := make([]byte, 4096)
	for l.SetReadDeadline(time.Now().Add(patience)); !slices.Contains(told, "STOPPING=1"); {
		n, err := l.Read(b)
		if err != nil {
			t.Fatalf("%v after %q", err, told)
		}
		switch state, _, _ := strings.Cut(string(b[:n]), "\n"); state {
		case "WATCHDOG=1": // which comes by the clock
		case "FDSTORE=1", "FDSTOREREMOVE=1": // manager's
		default:
			told = append(told, state)
		}
	}
	if want := []string{"READY=1", "RELOADING=1", "READY=1", "STOPPING=1"}; !slices.Equal(told, want) {
		t.Errorf("systemd was told %q, want %q", told, want)
	}
}

// A pool that does not come up keeps no other from its start: systemd is told that fpmd is ready, and which pool is
// not; and, when it was mended, that all are.
func TestOneBrokenPoolHoldsUpNoStart(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	write(t, filepath.Join(dir, "broken.py"), "raise RuntimeError('not today')\n")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", l.LocalAddr().String())
	config := wsgiPool(dir, "workers = 1")
	_, pool, _ := strings.Cut(config, "[pool.app]")
	config += "\n[pool.broken]" + strings.NewReplacer("app.sock", "broken.sock", "app:application", "broken:application").Replace(pool)
	d := launch(t, dir, config)
	d.waitLog("msg=\"some pools are not ready\" pools=broken ")
	if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "hello") {
		t.Errorf("%q, %v", answer, err)
	}
	write(t, filepath.Join(dir, "broken.py"), helloApp)
	d.waitLog("every pool is ready")
	if code := stopGently(d); code != 0 {
		t.Errorf("exit code %d", code)
	}
	var told []string
	b := make([]byte, 4096)
	for l.SetReadDeadline(time.Now().Add(patience)); ; {
		n, err := l.Read(b)
		if err != nil {
			t.Fatalf("%v after %q", err, told)
		}
		state := string(b[:n])
		if strings.HasPrefix(state, "STOPPING=1") {
			break
		}
		if !strings.HasPrefix(state, "WATCHDOG=1") && !strings.HasPrefix(state, "FDSTORE") {
			told = append(told, state)
		}
	}
	if want := []string{"READY=1\nSTATUS=serving, but not yet broken", "STATUS=serving"}; !slices.Equal(told, want) {
		t.Errorf("systemd was told %q, want %q", told, want)
	}
}

// All who ask for a reload are told the end of one that began after they asked; there are
// no more of them than are needed for that.
func TestReloadsTogether(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), fmt.Sprintf(versionApp, "v"))
	d := serve(t, dir, wsgiPool(dir, "workers = 1"))
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if said, code := d.told("reload"); code != 0 {
				t.Errorf("exit code %d: %s", code, said)
			}
		})
	}
	wg.Wait()
	if n := strings.Count(d.log.String(), "msg=reloaded"); n < 1 || n >= 10 {
		t.Errorf("%d reloads", n)
	}
}

// The control socket is root's and fpmd's own user's, even if somebody opens it to all.
func TestControlIsNotForOthers(t *testing.T) {
	needRoot(t, "asks as another user")
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1"))
	fi, err := os.Stat(d.control())
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", fi.Mode(), err)
	}
	program := plainBinary(t, dir)
	for _, mode := range []os.FileMode{0o600, 0o666} {
		if err := os.Chmod(d.control(), mode); err != nil {
			t.Fatal(err)
		}
		ask := exec.Command(program, "reload", "--socket", d.control())
		ask.Env = append(os.Environ(), "FPMD_TEST_MAIN=1")
		ask.SysProcAttr = asPlain()
		ask.Dir = "/"
		said, _ := ask.CombinedOutput()
		if code := ask.ProcessState.ExitCode(); code != exitUnavailable {
			t.Errorf("mode %#o: exit code %d, %s", mode, code, said)
		}
	}
	if strings.Contains(d.log.String(), "reload") {
		t.Error("another user has had it reload")
	}
	if _, code := d.told("status"); code != 0 {
		t.Errorf("root gets exit code %d", code)
	}
}

// A control socket that somebody removes is made again.
func TestControlSocketRemoved(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1"))
	if err := os.Remove(d.control()); err != nil {
		t.Fatal(err)
	}
	if _, code := d.told("status"); code != exitUnavailable {
		t.Errorf("without it: exit code %d", code)
	}
	d.wait("the socket", func() bool { _, code := d.told("status"); return code == 0 })
	d.signal(syscall.SIGTERM)
	if code := d.waitExit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if _, err := os.Lstat(d.control()); err == nil {
		t.Error("it is left behind")
	}
}

// Who connects and says nothing, or nonsense, holds up nobody, the stop included.
func TestControlHostile(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1"))
	for _, text := range []string{"", "GET /sta", "\x00\xff\r\n\r\n", "POST /reload HTTP/1.1\r\nContent-Length: 99\r\n\r\n", "GET /events?follow=1 HTTP/1.1\r\nHost: fpmd\r\n\r\n"} {
		c, err := net.Dial("unix", d.control())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if r := d.status(); len(r.Pools) != 1 {
		t.Errorf("%+v", r)
	}
	if said, code := d.told("stop"); code != 0 {
		t.Errorf("stop: exit code %d, %s", code, said)
	}
	if code := d.waitExit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
