package systemd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// patience is how long a test waits for a state; it fails by it and never
// passes by it.
const patience = 30 * time.Second

// A box is a container that systemd has booted; see testdata/box.sh.
type box struct {
	t    *testing.T
	path string
}

// boot boots a container with a fresh fpmd, its unit and config in it. It needs
// root, who alone can mount and boot it: for others, and only for them, the
// test is skipped.
func boot(t *testing.T, config string) *box {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("booting a container needs root, and CI skips nothing")
		}
		t.Skip("booting a container needs root")
	}
	b := &box{t: t, path: filepath.Join(t.TempDir(), "box")}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("journal:\n%s", b.try("journalctl", "--no-pager", "-u", "fpmd", "-o", "cat"))
		}
		if out, err := exec.Command("testdata/box.sh", "down", b.path).CombinedOutput(); err != nil {
			t.Errorf("box.sh down: %v\n%s", err, out)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	up := exec.CommandContext(ctx, "testdata/box.sh", "up", b.path)
	up.WaitDelay = time.Second // the container holds on to its output
	if out, err := up.CombinedOutput(); err != nil {
		t.Fatalf("box.sh up: %v\n%s", err, out)
	}
	build := exec.Command("go", "build", "-o", b.path+"/root"+program, "../cmd/fpmd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	unit, err := os.ReadFile("fpmd.service")
	if err != nil {
		t.Fatal(err)
	}
	b.write("/etc/systemd/system/fpmd.service", string(unit))
	b.write("/etc/fpmd/fpmd.toml", config)
	b.write("/srv/pid/pid.py", `
import os

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
`)
	b.run("systemctl", "daemon-reload")
	return b
}

func (b *box) write(path, content string) {
	b.t.Helper()
	path = filepath.Join(b.path, "root", path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// command is one that runs in the container.
func (b *box) command(args ...string) *exec.Cmd {
	return exec.Command("testdata/box.sh", append([]string{"run", b.path}, args...)...)
}

// run runs a command in the container, which has to succeed, and returns its output.
func (b *box) run(args ...string) string {
	b.t.Helper()
	out, err := b.command(args...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// try is run for a command that may fail, which its output then says.
func (b *box) try(args ...string) string {
	out, err := b.command(args...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// property is what systemd knows of the service.
func (b *box) property(name string) string {
	b.t.Helper()
	return b.run("systemctl", "show", "--value", "-p", name, "fpmd")
}

func (b *box) want(property, want string) {
	b.t.Helper()
	if got := b.property(property); got != want {
		b.t.Errorf("%s is %q, want %q", property, got, want)
	}
}

// until waits for a state.
func (b *box) until(what string, reached func() bool) {
	b.t.Helper()
	for end := time.Now().Add(patience); !reached(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// processes are the service's, by their pids in the container.
func (b *box) processes() []string {
	b.t.Helper()
	group := b.property("ControlGroup")
	if group == "" {
		return nil // it has ended, and its group with it
	}
	return strings.Fields(b.run("cat", "/sys/fs/cgroup"+group+"/cgroup.procs"))
}

// worker asks the pool for the pid of the worker that answers.
func (b *box) worker() string {
	b.t.Helper()
	return b.run(program, "request", "pid", "/")
}

const pidPool = `
[pool.pid]
listen    = "/run/fpmd/pid.sock"
wsgi      = "pid:application"
directory = "/srv/pid"
python    = "/usr/bin/python3"
user      = "nobody"
workers   = 1
`

// A service's life, under a real systemd: it is started when it is ready to
// answer, a reload ends when new workers serve, and fails when none comes up, HUP
// rolls them as well, under the same supervisor, and when it is stopped nothing is left.
func TestUnitUnderSystemd(t *testing.T) {
	b := boot(t, pidPool)
	b.run("systemctl", "start", "fpmd")
	worker := b.worker() // at once: start returned, so the pool is ready
	b.want("ActiveState", "active")
	b.want("SubState", "running")
	main := b.property("MainPID")
	if got := b.processes(); !slices.Contains(got, main) || !slices.Contains(got, worker) {
		t.Errorf("the service has the processes %v, want %s and its worker %s among them", got, main, worker)
	}
	if got := b.run("stat", "-c", "%U %a", "/run/fpmd"); got != "root 755" {
		t.Errorf("/run/fpmd is %q, want %q: web servers pass through it", got, "root 755")
	}
	if got := b.run("ps", "-o", "user=", "-p", worker); got != "nobody" {
		t.Errorf("the worker runs as %q, want nobody", got)
	}

	old := worker
	b.run("systemctl", "reload", "fpmd")
	if worker = b.worker(); worker == old { // at once: reload returned, so new workers serve
		t.Error("after systemctl reload the old worker answers")
	}
	b.want("MainPID", main)
	b.run("mv", "/srv/pid/pid.py", "/srv/pid/away")
	if b.command("systemctl", "reload", "fpmd").Run() == nil {
		t.Error("systemctl reload succeeds though no new worker comes up")
	}
	b.want("ActiveState", "active")
	if got := b.worker(); got != worker {
		t.Errorf("after a reload that failed worker %s answers, want %s", got, worker)
	}
	if log := b.run("journalctl", "--no-pager", "-u", "fpmd", "-o", "cat"); !strings.Contains(log, "fpmd: pool pid: the new workers did not come up, the old ones go on serving") {
		t.Errorf("the journal does not have what the reload said:\n%s", log)
	}
	b.run("mv", "/srv/pid/away", "/srv/pid/pid.py")

	for _, hup := range [][]string{
		{"systemctl", "kill", "--kill-whom=main", "-s", "HUP", "fpmd"},
	} {
		b.run(hup...)
		old := worker
		b.until(strings.Join(hup, " ")+" has the old worker replaced and gone", func() bool {
			worker = b.worker() // never fails meanwhile
			return worker != old && !slices.Contains(b.processes(), old)
		})
		b.until("systemd is told that the reload has ended", func() bool {
			return b.property("ActiveState") == "active" && strings.HasPrefix(b.property("StatusText"), "serving")
		})
		b.want("MainPID", main)
	}

	b.run("systemctl", "stop", "fpmd")
	b.want("ActiveState", "inactive")
	b.want("Result", "success")
	b.want("ExecMainStatus", "0")
	if got := b.processes(); len(got) > 0 {
		t.Errorf("after the stop the service has the processes %v", got)
	}
	for _, pid := range []string{main, worker} {
		if b.command("kill", "-0", pid).Run() == nil {
			t.Errorf("after the stop process %s is left", pid)
		}
	}
}

// A supervisor that is killed takes its workers with it, and systemd starts it
// again.
func TestUnitRestartsAfterAKill(t *testing.T) {
	b := boot(t, pidPool)
	b.run("systemctl", "start", "fpmd")
	main, worker := b.property("MainPID"), b.worker()
	b.run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", "fpmd")
	b.until("systemd has it running again", func() bool {
		return b.property("NRestarts") == "1" && b.property("ActiveState") == "active"
	})
	if got := b.property("MainPID"); got == main {
		t.Errorf("MainPID is still %s", got)
	}
	if got := b.worker(); got == worker || slices.Contains(b.processes(), worker) {
		t.Errorf("worker %s outlived its supervisor", worker)
	}
}

// systemd hears how the service is for as long as it can say so. One that can't is ended, and
// started again; one that waits for a worker that hangs is not.
func TestUnitWatchdog(t *testing.T) {
	b := boot(t, strings.Replace(pidPool, "pid:application", "hang:application", 1)+"request_timeout = \"0s\"\n")
	b.write("/srv/pid/hang.py", "import os, time\nfrom pid import application as pid\ndef application(environ, start_response):\n"+
		"    if environ['PATH_INFO'] == '/hang': time.sleep(3600)\n    return pid(environ, start_response)\n")
	b.write("/etc/systemd/system/fpmd.service.d/short.conf", "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n")
	b.run("systemctl", "daemon-reload")
	b.run("systemctl", "start", "fpmd")
	hang := b.command(program, "request", "pid", "/hang")
	if err := hang.Start(); err != nil {
		t.Fatal(err)
	}
	defer hang.Wait()
	defer hang.Process.Kill()
	b.until("its state in words", func() bool {
		return strings.HasPrefix(b.property("StatusText"), "serving: 1 of 1 slots busy, 0 requests wait, ")
	})
	began := b.property("WatchdogTimestampMonotonic")
	b.until("it has said for three times as long as the watchdog waits that it lives", func() bool {
		from, err := strconv.Atoi(began)
		to, err2 := strconv.Atoi(b.property("WatchdogTimestampMonotonic"))
		return err == nil && err2 == nil && to-from > 6_000_000 // microseconds
	})
	b.want("NRestarts", "0")
	main := b.property("MainPID")
	b.run("kill", "-STOP", main)
	b.until("systemd has it running again", func() bool {
		return b.property("NRestarts") == "1" && b.property("ActiveState") == "active"
	})
	if got := b.property("MainPID"); got == main {
		t.Errorf("MainPID is still %s", got)
	}
	b.worker()
}

// A configuration that is wrong stays wrong: fpmd says so and is not started
// again.
func TestUnitStaysDownWithAWrongConfiguration(t *testing.T) {
	b := boot(t, pidPool+"colour = \"blue\"\n")
	if b.command("systemctl", "start", "fpmd").Run() == nil {
		t.Error("systemctl start succeeded")
	}
	b.until("the start has failed", func() bool { return b.property("ActiveState") == "failed" })
	b.want("Result", "exit-code")
	b.want("ExecMainStatus", "78")
	b.want("NRestarts", "0")
	if log := b.run("journalctl", "--no-pager", "-u", "fpmd", "-o", "cat"); !strings.Contains(log, "colour") {
		t.Errorf("the journal does not name the wrong key:\n%s", log)
	}
}

// A unit that stops waiting before the configuration does is warned of, with
// the unit's figure: in the journal, and by check from a shell.
func TestUnitThatWaitsTooShort(t *testing.T) {
	b := boot(t, pidPool+"listen_group = \"www-data\"\ndrain_timeout = \"120s\"\n")
	b.run("systemctl", "start", "fpmd")
	want := "pool.pid.drain_timeout: 2m0s: with stop_timeout = 5s it is 2m5s, but fpmd.service has TimeoutStopSec=1m30s"
	for what, text := range map[string]string{
		"the journal": b.run("journalctl", "--no-pager", "-u", "fpmd", "-o", "cat"),
		"check":       b.run(program, "check"),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s has no %q:\n%s", what, want, text)
		}
	}
}
