package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"fpmd/manager"
)

// healthApp answers its version, and the probe as its body of health does.
const healthApp = `
import os, sys, time
VERSION = %q
def health(environ):
    %s
def application(environ, start_response):
    status, body = "200 OK", VERSION.encode()
    if environ["PATH_INFO"].startswith("/healthz"):
        print("probed by", environ["REQUEST_METHOD"], environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["QUERY_STRING"], environ["REQUEST_URI"],
            environ["wsgi.url_scheme"], environ["HTTP_HOST"], environ["SERVER_NAME"], environ["SERVER_PORT"], environ["REMOTE_ADDR"],
            environ["HTTP_USER_AGENT"], len(environ["REQUEST_ID"]), flush=True)
        status, body = health(environ)
    start_response(status, [("Content-Type", "text/plain")])
    return [body] if isinstance(body, bytes) else body
`

// A reload serves only once its first worker has answered the probe, as it has to. Else the old workers
// go on serving, and who has asked is told what was wrong, with what the worker answered and printed.
func TestProbe(t *testing.T) {
	dir := appDir(t)
	app, file := filepath.Join(dir, "app.py"), filepath.Join(dir, "fpmd.toml")
	const fine = `return "200 OK", b"fine"`
	write(t, app, fmt.Sprintf(healthApp, "v0", fine))
	config := func(probe string) string {
		return wsgiPool(dir, "workers = 2\nrequest_timeout = \"2s\"\ndrain_timeout = \"5s\"\nstop_timeout = \"1s\"\n"+probe)
	}
	const probe = "probe = \"/healthz?deep=1\""
	d := serve(t, dir, config(probe))
	if want := "probed by GET  /healthz deep=1 /healthz?deep=1 http localhost localhost 80 127.0.0.1 fpmd-probe 16"; strings.Count(d.log.String(), want) != 1 {
		t.Errorf("the log has not once %q", want)
	}
	if !regexp.MustCompile(`msg="worker ready" pool=app worker=1 .* probe=200\n`).MatchString(d.log.String()) {
		t.Error("the log does not say that the first worker has answered the probe")
	}
	serves := "v0"
	for i, tt := range []struct {
		name   string
		probe  string
		health string
		told   string // nothing: it works
	}{
		{
			"an error", probe, `print("no database", flush=True); return "503 Busy", b"wait\x1b[2J"`,
			`(?s)the old ones go on serving: .*: probe /healthz\?deep=1: status 503, want one below 400; the answer begins "wait\\x1b\[2J"; its last lines:\n.*\n    no database\n`,
		},
		{
			"an exception", probe, `raise RuntimeError("not today")`,
			`(?s): probe /healthz\?deep=1: the application failed, with status 500; its last lines:\n.*\n    RuntimeError: not today\n`,
		},
		{"silence", "probe = \"/healthz\"", `time.sleep(1000)`, `: probe /healthz: no complete answer in request_timeout = 2s; `},
		{
			"an answer without an end", "probe = \"/healthz\"", `return "200 OK", iter(lambda: time.sleep(0.1) or b"x", b"")`,
			`: probe /healthz: no complete answer in request_timeout = 2s; `,
		},
		{"a death", "probe = \"/healthz\"", `print("farewell", flush=True); os._exit(3)`, `: probe /healthz: the worker is gone: exited with status 3; its last lines:\n(.*\n)*    farewell\n`},
		{"another status", "probe = \"/healthz\"\nprobe_status = 204", fine, `: probe /healthz: status 200, want probe_status = 204; the answer begins "fine"; `},
		{"an error that is wanted", "probe = \"/healthz\"\nprobe_status = 404", `return "404 Nothing", b""`, ""},
		{"where it leads elsewhere", "probe = \"/healthz\"", `return "302 Found", b""`, ""},
		{
			"as a host", "probe = \"https://www.example.com:8443/healthz\"",
			`return ("200 OK" if environ["wsgi.url_scheme"] + " " + environ["HTTP_HOST"] + " " + environ["SERVER_NAME"] + " " + environ["SERVER_PORT"] == "https www.example.com:8443 www.example.com 8443" else "400 Who"), b""`, "",
		},
		{"a large answer", "probe = \"/healthz\"", `return "200 OK", b"x" * 3000000`, ""},
		{"the same without a probe", "", `raise RuntimeError("not asked")`, ""},
	} {
		version := fmt.Sprintf("v%d", i+1)
		write(t, app, fmt.Sprintf(healthApp, version, tt.health))
		write(t, file, config(tt.probe))
		said, code := d.told("reload")
		if tt.told == "" {
			serves = version
			if code != 0 || said != "" {
				t.Errorf("%s: exit code %d, %s", tt.name, code, said)
			}
		} else if code != exitFailure || !regexp.MustCompile(tt.told).MatchString(said) || strings.Contains(said, "\x1b") {
			t.Errorf("%s: exit code %d, %q, want %s", tt.name, code, said, tt.told)
		}
		if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, serves) {
			t.Errorf("%s: then %q, %v, want %s", tt.name, answer, err, serves)
		}
		d.wait("an end of all that do not serve", func() bool { return len(d.status().Pools[0].Workers) == 2 })
	}
	events, _ := d.told("events")
	if n := strings.Count(events, "| RuntimeError: not today"); n != 1 {
		t.Errorf("events tells %d times what a worker that failed the probe had printed:\n%s", n, events)
	}
	if n := d.status().Pools[0].Requests; len(n) != 1 || n["ok"] != 11 {
		t.Errorf("requests that were counted, of which none is a probe: %v", n)
	}
}

// fpmd is ready when the first worker of each pool has answered its probe; one that does not is
// a worker that does not come up.
func TestProbeAtTheStart(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), fmt.Sprintf(healthApp, "v", `return open(os.environ["HEALTH"]).read(), b"ill"`))
	health := filepath.Join(dir, "health")
	write(t, health, "500 Ill")
	config := wsgiPool(dir, fmt.Sprintf("workers = 2\nscript_name = \"/app\"\nprobe = \"/app/healthz\"\nenv = { HEALTH = %q }", health))
	d := launch(t, dir, config)
	d.waitLogTimes("worker did not start", 3)
	if strings.Contains(d.log.String(), "worker ready") {
		t.Error("it is said that a worker is ready")
	}
	if said, code := d.told("status"); code != exitFailure || !strings.Contains(said, "probe /app/healthz: status 500, want one below 400; the answer begins \"ill\"") {
		t.Errorf("status: exit code %d, %s", code, said)
	}
	checked := func() string {
		cmd := exec.Command(os.Args[0], "check", "-c", filepath.Join(dir, "fpmd.toml"), "--boot")
		cmd.Env = append(os.Environ(), "FPMD_TEST_MAIN=1")
		out, _ := cmd.CombinedOutput() // its exit code is told in words
		return string(out)
	}
	if said := checked(); !strings.Contains(said, "  error        probe /app/healthz: status 500, want one below 400; ") {
		t.Errorf("check --boot: %s", said)
	}
	write(t, health, "400 Who is localhost?")
	if said := checked(); !strings.Contains(said, "  usually      the application answers for hosts that it knows (ALLOWED_HOSTS of Django)") {
		t.Errorf("check --boot: %s", said)
	}
	write(t, health, "200 OK")
	d.waitWorkers(config)
	if said := checked(); !strings.Contains(said, "for 1 at once, and answered the probe with 200\n") {
		t.Errorf("check --boot: %s", said)
	}
}

// A worker of many slots is in service, with all of them, once one of them has brought the answer of the probe.
func TestProbeOfManySlots(t *testing.T) {
	dir := appDir(t)
	program := filepath.Join(dir, "application")
	if out, err := exec.Command("go", "build", "-o", program, "../../examples/go-application").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	config := func(status int) string {
		return poolConfig(dir, fmt.Sprintf("workers = 1\ncommand = [%q]\nthreads = 8\nprobe = \"/hello\"\nprobe_status = %d", program, status))
	}
	d := serve(t, dir, config(200))
	all := func() bool { p := d.status().Pools[0]; return p.Slots == 8 && p.Busy == 0 }
	d.wait("8 free slots", all)
	write(t, filepath.Join(dir, "fpmd.toml"), config(204))
	if said, code := d.told("reload"); code != exitFailure || !strings.Contains(said, "probe /hello: status 200, want probe_status = 204") {
		t.Errorf("exit code %d, %s", code, said)
	}
	d.wait("an end of who failed", func() bool { return len(d.status().Pools[0].Workers) == 1 })
	if !all() {
		t.Errorf("%+v", d.status().Pools[0])
	}
}

// A stop does not wait for a probe that is under way.
func TestStopDuringAProbe(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), fmt.Sprintf(healthApp, "v", `time.sleep(1000)`))
	d := launch(t, dir, wsgiPool(dir, "probe = \"/healthz\"\nrequest_timeout = \"0s\""))
	d.waitLog("probed by")
	d.signal(syscall.SIGTERM)
	if code := d.waitExit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// As many workers of a new generation may fail as max_boot_failures says, and are told of; with one
// more, the old ones go on serving.
func TestBootFailures(t *testing.T) {
	dir := appDir(t)
	app, tries := filepath.Join(dir, "app.py"), filepath.Join(dir, "tries")
	if err := os.Mkdir(tries, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(tries, 0o777); err != nil { // workers write there, whoever they are
		t.Fatal(err)
	}
	write(t, app, fmt.Sprintf(versionApp, "old"))
	d := serve(t, dir, wsgiPool(dir, fmt.Sprintf("workers = 1\nmax_boot_failures = 2\nenv = { TRIES = %q }", tries)))
	failing := func(times int, version string) {
		old, err := filepath.Glob(tries + "/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range old {
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
		write(t, app, fmt.Sprintf(versionApp, version)+fmt.Sprintf(`
import os
n = len(os.listdir(os.environ["TRIES"]))
open(os.path.join(os.environ["TRIES"], str(n)), "w").close()
if n < %d:
    raise RuntimeError("attempt %%d" %% n)
`, times))
	}
	failing(3, "broken")
	said, code := d.told("reload")
	if code != exitFailure || !strings.Contains(said, "RuntimeError: attempt 2\n") || !strings.Contains(said, "the old ones go on serving") {
		t.Errorf("exit code %d, %s", code, said)
	}
	if n := strings.Count(d.log.String(), `msg="new worker did not come up"`); n != 2 {
		t.Errorf("%d failures are told of that were allowed, want 2", n)
	}
	if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "old") {
		t.Errorf("%q, %v", answer, err)
	}
	failing(2, "new")
	if said, code := d.told("reload"); code != 0 || said != "" {
		t.Errorf("exit code %d, %s", code, said)
	}
	if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "new") {
		t.Errorf("%q, %v", answer, err)
	}
}

// A rollback has the code before serve again at once, with its configuration, and no request fails,
// however many there are.
func TestRollbackUnderLoad(t *testing.T) {
	dir := appDir(t)
	app, file := filepath.Join(dir, "app.py"), filepath.Join(dir, "fpmd.toml")
	write(t, app, fmt.Sprintf(versionApp, "v0"))
	d := serve(t, dir, wsgiPool(dir, "workers = 2\nkeep_generation = \"1h\""))
	url := d.nginx("")
	l := startLoad(t, 8, func(ctx context.Context) (int, string, error) {
		resp, got, err := fetch(ctx, "GET", url+"/", nil)
		if err != nil {
			return 0, "", err
		}
		return resp.StatusCode, got, nil
	})
	if said, code := d.told("rollback", "app"); code != exitFailure || !strings.HasSuffix(said, "no other is kept: there was no reload or restart since fpmd was started\n") {
		t.Errorf("before a reload: exit code %d, %s", code, said)
	}
	for i := range 4 {
		write(t, app, fmt.Sprintf(versionApp, fmt.Sprintf("v%d", i+1)))
		write(t, file, wsgiPool(dir, fmt.Sprintf("workers = 3\nqueue_size = %d\nkeep_generation = \"1h\"", 100+i)))
		if said, code := d.told("reload"); code != 0 {
			t.Fatalf("reload: exit code %d, %s", code, said)
		}
		d.wait("answers of the new code", func() bool { return l.total(fmt.Sprintf("v%d", i+1)) > 10 })
		r := d.status()
		if k := r.Pools[0].Kept; k == nil || k.Workers != 2 || time.Until(k.Until) > time.Hour || k.Generation != 1 {
			t.Errorf("kept is %+v", k)
		}
		if said, _ := d.told("status"); !strings.Contains(said, "\n  generation 1, of 2 workers, is kept for 59m") || strings.Count(said, " kept ") < 2 {
			t.Errorf("status: %s", said)
		}
		if said, code := d.told("rollback", "app"); code != 0 || said != "" {
			t.Fatalf("rollback: exit code %d, %s", code, said)
		}
		if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "v0") {
			t.Errorf("right after a rollback: %q, %v", answer, err)
		}
		if p := d.status().Pools[0]; p.Generation != 1 || p.Size != 2 || p.QueueSize != 512 || p.Kept != nil {
			t.Errorf("after a rollback: %+v", p)
		}
		d.waitLog(fmt.Sprintf("change=\"pool.app.queue_size is now 512, not %d\"", 100+i))
		before := l.total("v0")
		d.wait("answers of the old code", func() bool { return l.total("v0") > before+10 })
	}
	if _, failed := l.stop(); len(failed) > 0 {
		t.Error(summary(failed))
	}
	if said, code := d.told("rollback", "app"); code != exitFailure || !regexp.MustCompile(`generation 1, which was, serves again \(\d+s ago\)\n$`).MatchString(said) {
		t.Errorf("a second rollback: exit code %d, %s", code, said)
	}
	for _, tt := range []struct {
		args []string
		code int
		said string
	}{
		{[]string{"rollback"}, exitUsage, "rollback wants more arguments: fpmd rollback [-c FILE] POOL"},
		{[]string{"rollback", "app", "app"}, exitUsage, "rollback takes no argument \"app\""},
		{[]string{"rollback", "nobody"}, exitFailure, "there is no pool \"nobody\": want one of app"},
	} {
		if said, code := d.told(tt.args...); code != tt.code || !strings.Contains(said, tt.said) {
			t.Errorf("%s: exit code %d, %s", tt.args, code, said)
		}
	}
}

// Workers that are kept leave when their time is over, and with fpmd.
func TestKeptWorkersLeave(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	file := filepath.Join(dir, "fpmd.toml")
	config := func(keep string) string { return wsgiPool(dir, "workers = 2\nkeep_generation = \""+keep+"\"") }
	d := serve(t, dir, config("1ms"))
	if said, code := d.told("reload"); code != 0 {
		t.Fatalf("reload: exit code %d, %s", code, said)
	}
	d.waitLog(`msg="generation is kept no longer" pool=app generation=1 cause="keep_generation is over"`)
	d.wait("an end of the old ones", func() bool { return len(d.status().Pools[0].Workers) == 2 })
	if said, code := d.told("rollback", "app"); code != exitFailure || !strings.Contains(said, "generation 1 was kept until its keep_generation was over") {
		t.Errorf("rollback: exit code %d, %s", code, said)
	}

	write(t, file, config("1h"))
	if said, code := d.told("reload"); code != 0 {
		t.Fatalf("reload: exit code %d, %s", code, said)
	}
	workers := children(d.cmd.Process.Pid)
	if len(workers) != 4 {
		t.Errorf("%d workers, want 2 that serve and 2 that are kept", len(workers))
	}
	if code := stopGently(d); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, pid := range workers {
		if alive(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
}

// A rollback waits for the reload of its own pool, and undoes that; the reload of another pool does not
// hold it up. systemd is told.
func TestRollbackDuringAReload(t *testing.T) {
	dir := appDir(t)
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", l.LocalAddr().String())
	app, goes := filepath.Join(dir, "app.py"), filepath.Join(dir, "go")
	write(t, app, helloApp)
	const more = "workers = 1\nkeep_generation = \"1h\""
	second := strings.SplitAfter(wsgiPool(dir, more), "\n\n")[1]
	d := serve(t, dir, wsgiPool(dir, more)+strings.NewReplacer("pool.app", "pool.two", "app.sock", "two.sock").Replace(second))
	generation := func() int { return d.status().Pools[0].Generation }
	reload := func(pool string, begun int) (end func()) {
		write(t, app, fmt.Sprintf("import os, time\nprint('begun', flush=True)\nwhile not os.path.exists(%q): time.sleep(0.01)\n", goes)+helloApp)
		ended := make(chan string, 1)
		go func() { // ends with the reload
			said, code := d.told("reload", pool)
			ended <- fmt.Sprint(code, said)
		}()
		d.waitLogTimes("msg=begun", begun)
		return func() {
			if got := <-ended; got != "0" {
				t.Errorf("reload of %s: %s", pool, got)
			}
		}
	}
	rollback := func() {
		if said, code := d.told("rollback", "app"); code != 0 {
			t.Errorf("rollback: exit code %d, %s", code, said)
		}
	}

	if said, code := d.told("reload", "app"); code != 0 {
		t.Fatalf("reload: exit code %d, %s", code, said)
	}
	end := reload("two", 1)
	rollback()
	if n := generation(); n != 1 {
		t.Errorf("while another pool is rolled: generation %d serves, want 1", n)
	}
	b := make([]byte, 4096)
	for l.SetReadDeadline(time.Now().Add(patience)); ; {
		n, err := l.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if string(b[:n]) == "STATUS=serving; pool app was rolled back" {
			break
		}
	}
	write(t, goes, "")
	end()
	if said, code := d.told("reload", "app"); code != 0 { // generation 3, beside which 1 is kept
		t.Fatalf("reload: exit code %d, %s", code, said)
	}

	if err := os.Remove(goes); err != nil {
		t.Fatal(err)
	}
	end = reload("app", 3)
	rolledBack := make(chan struct{})
	go func() { // ends with the rollback, behind the reload
		rollback()
		close(rolledBack)
	}()
	write(t, goes, "")
	end()
	<-rolledBack
	if n := generation(); n != 3 {
		t.Errorf("generation %d serves, want 3", n)
	}
}

// Where directory is a link, a worker that is started after a rollback is of the release that serves again,
// wherever the link leads by then.
func TestRollbackByALink(t *testing.T) {
	dir := appDir(t)
	link := filepath.Join(dir, "current")
	release := func(v string) {
		write(t, filepath.Join(dir, v, "app.py"), fmt.Sprintf(versionApp, v))
		if err := errors.Join(os.Symlink(v, link+".next"), os.Rename(link+".next", link)); err != nil {
			t.Fatal(err)
		}
	}
	release("v1")
	d := serve(t, dir, poolConfig(dir, fmt.Sprintf("wsgi = \"app:application\"\ndirectory = %q\npython = %q\nworkers = 2\nkeep_generation = \"1h\"", link, interpreter)))
	release("v2")
	if said, code := d.told("reload"); code != 0 {
		t.Fatalf("reload: exit code %d, %s", code, said)
	}
	killOne := func(state string) { // the oldest, until it is gone
		ws := d.status().Pools[0].Workers
		i := slices.IndexFunc(ws, func(w manager.WorkerStatus) bool { return w.State == state })
		if i < 0 {
			t.Fatalf("no worker is %s: %+v", state, ws)
		}
		if err := syscall.Kill(ws[i].PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		d.wait("its end", func() bool {
			return !slices.ContainsFunc(d.status().Pools[0].Workers, func(w manager.WorkerStatus) bool { return w.ID == ws[i].ID })
		})
	}
	killOne("kept")
	if said, code := d.told("rollback", "app"); code != 0 {
		t.Fatalf("rollback: exit code %d, %s", code, said)
	}
	d.wait("another in the place of who has died", func() bool { return d.status().Pools[0].Slots == 2 })
	d.wait("an end of the others", func() bool { return len(d.status().Pools[0].Workers) == 2 })
	killOne("idle") // who was warm: what is left came from the disk
	if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "v1") {
		t.Errorf("%q, %v, want v1", answer, err)
	}
}
