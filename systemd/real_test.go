package systemd

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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

// boot boots a container in which a fresh fpmd is installed, with config. It needs
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
			t.Logf("journal:\n%s", b.try("journalctl", "--no-pager", "-u", "fpmd*", "-o", "cat"))
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
	install(t, b.path+"/root")
	b.write("/etc/fpmd/fpmd.toml", config)
	b.write("/srv/pid/pid.py", `
import os, time

def daemon():
    r, w = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(w, str(os.getpid()).encode())
            time.sleep(100000)
        os._exit(0)
    os.wait()
    return os.read(r, 20)

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [daemon() if environ["PATH_INFO"] == "/daemon" else str(os.getpid()).encode()]
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
	return strings.Fields(b.run("find", "/sys/fs/cgroup"+group, "-name", "cgroup.procs", "-exec", "cat", "{}", "+"))
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
// rolls them as well, under the same supervisor, and when it is stopped nothing is left. What
// has left its worker's process group and session is gone when the worker is: that has a control group.
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

	old, daemon := worker, b.run(program, "request", "pid", "/daemon")
	if !slices.Contains(b.processes(), daemon) {
		t.Fatalf("the worker has left no process %s behind", daemon)
	}
	b.run("systemctl", "reload", "fpmd")
	b.until("what the old worker has left behind is gone", func() bool { return !slices.Contains(b.processes(), daemon) })
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

// A pool that is to go before others does so under the unit, and fpmd with it. The hardened unit does not let it, and so refuses the pool.
func TestUnitWithARealTimePool(t *testing.T) {
	b := boot(t, pidPool+"scheduling = \"rr\"\n")
	b.run("systemctl", "start", "fpmd")
	for _, pid := range []string{b.property("MainPID"), b.worker()} {
		if got := b.run("chrt", "-p", pid); !strings.Contains(got, "SCHED_RR") {
			t.Errorf("process %s: %s", pid, got)
		}
	}
	b.run("systemctl", "stop", "fpmd")
	b.run("install", "-D", "-m", "644", "/usr/share/fpmd/hardened.conf", "/etc/systemd/system/fpmd.service.d/hardened.conf")
	b.run("systemctl", "daemon-reload")
	if out, err := b.command("systemctl", "start", "fpmd").CombinedOutput(); err == nil {
		t.Errorf("the hardened unit starts: %s", out)
	}
	log := b.run("journalctl", "--no-pager", "-u", "fpmd", "-o", "cat")
	if want := "pool.pid.scheduling: \"rr\": fpmd itself can't have that"; !strings.Contains(log, want) || !strings.Contains(log, "as hardened.conf does") {
		t.Errorf("the hardened unit says why it does not start: %s", log)
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

// A line in the journal has the priority of its level, and its pool, worker and request to look for; what a worker prints
// has its pool and worker. None is lost with a journald that is started anew.
func TestJournal(t *testing.T) {
	b := boot(t, strings.Replace(pidPool, "pid:application", "boom:application", 1)+"access_log = \"-\"\n")
	b.write("/srv/pid/boom.py", "import os, sys\ndef application(environ, start_response):\n"+
		"    print('said by', os.getpid(), file=sys.stderr, flush=True)\n    raise ValueError('boom')\n")
	b.run("systemctl", "start", "fpmd")
	for round := 1; round <= 2; round++ {
		head := b.try(program, "request", "pid", "/", "-i")
		id := regexp.MustCompile("Fpmd-Request-Id: ([0-9a-f]+)").FindStringSubmatch(head)
		if id == nil {
			t.Fatalf("the answer has no id:\n%s", head)
		}
		// entries are those of fpmd that match.
		entries := func(match ...string) []string {
			t.Helper()
			out := b.run(append([]string{"journalctl", "--no-pager", "-u", "fpmd", "-o", "json"}, match...)...)
			return slices.DeleteFunc(strings.Split(out, "\n"), func(line string) bool { return !strings.HasPrefix(line, "{") })
		}
		var failed []string
		b.until("the failed request is in the journal, and in its access log", func() bool {
			failed = entries("POOL=pid", "WORKER=1", "OUTCOME=app_error", "REQUEST_ID="+id[1])
			return len(failed) == 2
		})
		priorities := map[string]string{}
		for _, line := range failed {
			var entry struct{ MESSAGE, PRIORITY string }
			if err := json.Unmarshal([]byte(line), &entry); err != nil {
				t.Fatal(err)
			}
			message, _, _ := strings.Cut(entry.MESSAGE, " pool=")
			priorities[message] = entry.PRIORITY
		}
		if want := map[string]string{`level=WARN msg="request failed"`: "4", "level=INFO msg=request": "6"}; !maps.Equal(priorities, want) {
			t.Errorf("the request has entries with the priorities %v, want %v", priorities, want)
		}
		printed := entries("POOL=pid", "WORKER=1", "STREAM=stderr", "PRIORITY=6")
		if said := strings.Count(strings.Join(printed, "\n"), "said by "); said != round {
			t.Errorf("the worker has printed %d times, and the journal has it %d times: %q", round, said, printed)
		}
		b.run("systemctl", "restart", "systemd-journald")
	}
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
	if log := b.run("journalctl", "--no-pager", "-u", "fpmd", "-o", "cat", "-p", "err"); !strings.Contains(log, "colour") {
		t.Errorf("the journal has no error that names the wrong key:\n%s", log)
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

// An instance of fpmd@.service has its own configuration and folder, and is
// reloaded and stopped without the others.
func TestInstances(t *testing.T) {
	b := boot(t, pidPool)
	socket := "/run/fpmd/pid.sock"
	for _, name := range []string{"one", "two"} {
		b.write("/etc/fpmd/"+name+".toml", "[supervisor]\nruntime_dir = \"/run/fpmd-"+name+"\"\n"+
			strings.ReplaceAll(pidPool, socket, "/run/fpmd-"+name+"/pid.sock"))
	}
	b.run("systemctl", "start", "fpmd", "fpmd@one", "fpmd@two")
	worker := func(name string) string {
		t.Helper()
		return b.run(program, "request", "pid", "/", "-c", "/etc/fpmd/"+name+".toml")
	}
	old := map[string]string{}
	for _, name := range []string{"fpmd", "one", "two"} {
		old[name] = worker(name)
	}
	b.run("systemctl", "reload", "fpmd@one")
	for name, pid := range old {
		if rolled := worker(name) != pid; rolled != (name == "one") {
			t.Errorf("after the reload of fpmd@one, the worker of %s is another: %v", name, rolled)
		}
	}
	b.run("systemctl", "stop", "fpmd@one")
	if b.command("test", "-e", "/run/fpmd-one").Run() == nil {
		t.Error("after the stop /run/fpmd-one is left")
	}
	for _, name := range []string{"fpmd", "two"} {
		if got := worker(name); got != old[name] {
			t.Errorf("after the stop of fpmd@one, worker %s of %s answers, want %s", got, name, old[name])
		}
		b.run(program, "status", "-c", "/etc/fpmd/"+name+".toml")
	}
}

// Log rotation, as make install sets it up, loses no line of a log, of the service or
// of an instance, while requests are served; and it minds neither that they do not run, nor that there are no logs.
func TestLogRotation(t *testing.T) {
	logs := func(name string) string { return "access_log = \"/var/log/fpmd/" + name + ".access.log\"\n" }
	b := boot(t, "[supervisor]\nlog = \"/var/log/fpmd/fpmd.log\"\n"+pidPool+logs("fpmd"))
	b.write("/etc/fpmd/one.toml", "[supervisor]\nruntime_dir = \"/run/fpmd-one\"\n"+
		strings.ReplaceAll(pidPool, "/run/fpmd/", "/run/fpmd-one/")+logs("one"))
	rotate := func() {
		t.Helper()
		if out := b.run("/usr/sbin/logrotate", "--force", "/etc/logrotate.d/fpmd"); out != "" {
			t.Errorf("logrotate says:\n%s", out)
		}
	}
	rotate()
	b.run("systemd-tmpfiles", "--create", "fpmd.conf")
	if got := b.run("stat", "-c", "%U %a", "/var/log/fpmd"); got != "root 755" {
		t.Errorf("/var/log/fpmd is %q, want %q", got, "root 755")
	}
	rotate()
	b.run("systemd-sysusers", "fpmd.conf")
	if got := b.run("getent", "group", "fpmd"); !strings.HasPrefix(got, "fpmd:") {
		t.Errorf("the group fpmd is %q", got)
	}

	b.run("systemctl", "start", "fpmd", "fpmd@one")
	const rotations = 3
	for _, name := range []string{"fpmd", "one"} {
		// The file "end" ends them; the number of requests is what is written.
		requests := b.command("sh", "-c", `n=0; until [ -e /end ]; do n=$((n+1)); fpmd request pid "/$n." -c "$0" >/dev/null || exit; done; echo $n`,
			"/etc/fpmd/"+name+".toml")
		var sent strings.Builder
		requests.Stdout, requests.Stderr = &sent, &sent
		if err := requests.Start(); err != nil {
			t.Fatal(err)
		}
		log := "/var/log/fpmd/" + name + ".access.log"
		for n := range rotations {
			b.until(fmt.Sprintf("%s has lines before rotation %d", log, n+1), func() bool {
				return b.command("test", "-s", log).Run() == nil
			})
			rotate()
		}
		b.until("there are lines after the last rotation", func() bool { return b.command("test", "-s", log).Run() == nil })
		b.write("/end", "")
		if err := requests.Wait(); err != nil {
			t.Fatalf("requests: %v\n%s", err, sent.String())
		}
		b.run("rm", "/end")
		want, err := strconv.Atoi(strings.TrimSpace(sent.String()))
		if err != nil {
			t.Fatal(err)
		}
		b.run(program, "reopen", "-c", "/etc/fpmd/"+name+".toml") // writes what is kept for a moment
		lines := b.run("sh", "-c", "zcat -f "+log+"*")
		if got := strings.Count(lines, "msg=request "); got != want {
			t.Errorf("%s has %d lines, want %d", log, got, want)
		}
		for n := 1; n <= want; n++ {
			if uri := fmt.Sprintf(" uri=/%d. ", n); strings.Count(lines, uri) != 1 {
				t.Errorf("%s has%s%d times", log, uri, strings.Count(lines, uri))
			}
		}
		if got := strings.Fields(b.run("sh", "-c", "ls "+log+"*")); len(got) != 1+rotations || !strings.HasSuffix(got[rotations], ".gz") {
			t.Errorf("there are %v, want one that is written and %d old ones, compressed", got, rotations)
		}
	}
	b.run("systemctl", "stop", "fpmd", "fpmd@one")
	rotate()
}

// attempts is an application that tries what its path says, and answers with
// "done" or why not.
const attempts = `
import mmap, os, socket, subprocess, ctypes

def home():       open("/home/blog/upload", "w").close()
def own_folder(): open("/srv/blog/upload", "w").close()
def shared_tmp(): os.stat("/tmp/of-others")
def jit():        mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
def sendmail():   assert subprocess.check_output(["/usr/local/bin/sendmail", "-u"]) == b"0\n", "not as root"
def group_folder(): os.chmod("/srv/blog/shared", 0o2775)
def netlink():    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
def meminfo():    open("/proc/meminfo").close()
def others():     os.stat("/proc/1")
def tunables():   open("/proc/sys/vm/swappiness").close()
def sandbox():
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def nice():       os.setpriority(os.PRIO_PROCESS, 0, 5)

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    try:
        globals()[environ["PATH_INFO"][1:]]()
    except Exception as e:
        return [str(e).encode()]
    return [b"done"]
`

// tryPool serves attempts from a folder, as a user of its own who may gain privileges.
func tryPool(directory string) string {
	return `
[pool.try]
listen       = "/run/fpmd/try.sock"
listen_group = "www-data"
wsgi         = "attempts:application"
directory    = "` + directory + `"
python       = "./python"
user         = "blog"
workers      = 1
no_new_privs = false
`
}

// prepare makes the application's folder, which is closed to all but its user, and what
// it tries to reach.
func (b *box) prepare(directory string) {
	b.t.Helper()
	b.run("useradd", "--create-home", "blog")
	b.run("install", "-d", "-o", "blog", "/srv/blog", "/srv/blog/shared", directory)
	b.run("ln", "-s", "/usr/bin/python3", directory+"/python")
	b.write(directory+"/attempts.py", attempts)
	b.run("chmod", "700", directory)
	b.run("touch", "/tmp/of-others") // /tmp is the container's own
	b.run("install", "-D", "-m", "4755", "/usr/bin/id", "/usr/local/bin/sendmail")
}

// The unit is in the way of no application: one in a home, that compiles at run time, and
// calls a setuid program, as sendmail may be.
func TestUnitIsInTheWayOfNoApplication(t *testing.T) {
	b := boot(t, tryPool("/home/blog/app"))
	b.prepare("/home/blog/app")
	b.run("systemctl", "start", "fpmd")
	for _, what := range []string{
		"home", "own_folder", "shared_tmp", "jit", "sendmail", "group_folder", "netlink", "meminfo", "others", "tunables", "sandbox", "nice",
	} {
		if got := b.run(program, "request", "try", "/"+what); got != "done" {
			t.Errorf("%s: %s", what, got)
		}
	}
	if log := b.run("journalctl", "--no-pager", "-u", "fpmd", "-o", "cat"); strings.Contains(log, "level=WARN") {
		t.Errorf("fpmd warns:\n%s", log)
	}
}

// Without its line ProtectControlGroups=, hardened.conf lets fpmd have control groups, though it forbids clone3.
func TestHardenedUnitWithControlGroups(t *testing.T) {
	b := boot(t, pidPool)
	b.run("install", "-D", "-m", "644", "/usr/share/fpmd/hardened.conf", "/etc/systemd/system/fpmd.service.d/hardened.conf")
	b.run("sed", "-i", "/^ProtectControlGroups=/d", "/etc/systemd/system/fpmd.service.d/hardened.conf")
	b.run("systemctl", "daemon-reload")
	b.run("systemctl", "start", "fpmd")
	worker := b.run(program, "request", "pid", "/")
	if got := b.run("cat", "/proc/"+worker+"/cgroup"); !strings.HasSuffix(got, "/fpmd.service/pid.1") {
		t.Errorf("the worker is in %q, want a control group of its own", got)
	}
}

// With hardened.conf, Flask is served as another user, reloaded and stopped; and
// applications lose what hardened.conf says.
func TestHardenedUnit(t *testing.T) {
	b := boot(t, tryPool("/srv/try")+`
[pool.flask]
listen       = "/run/fpmd/flask.sock"
listen_group = "www-data"
wsgi         = "hello:app"
directory    = "/srv/flask"
python       = "/usr/bin/python3"
user         = "nobody"
workers      = 1
access_log   = "/var/log/fpmd/flask.log"
`)
	b.prepare("/srv/try")
	b.write("/srv/flask/hello.py", `
import os
from flask import Flask

app = Flask(__name__)

@app.route("/<name>")
def hello(name):
    return f"{name} {os.getuid()} {os.getpid()}"
`)
	b.run("install", "-D", "-m", "644", "/usr/share/fpmd/hardened.conf", "/etc/systemd/system/fpmd.service.d/hardened.conf")
	b.run("systemctl", "daemon-reload")
	b.run("systemctl", "start", "fpmd")

	nobody := b.run("id", "-u", "nobody")
	first := b.run(program, "request", "flask", "/x")
	if !strings.HasPrefix(first, "x "+nobody+" ") {
		t.Errorf("Flask answers %q, want it as the user %s", first, nobody)
	}
	b.run("systemctl", "reload", "fpmd")
	second := b.run(program, "request", "flask", "/x")
	if second == first {
		t.Errorf("after a reload the old worker answers: %s", second)
	}
	socket := b.run("stat", "-c", "%i", "/run/fpmd/flask.sock")
	b.run("systemctl", "restart", "fpmd")
	if got := b.run("stat", "-c", "%i", "/run/fpmd/flask.sock"); got != socket {
		t.Error("a restart has made the socket anew")
	}
	for what, want := range map[string]string{
		"home":         "Permission denied",
		"own_folder":   "Read-only file system",
		"shared_tmp":   "No such file",
		"jit":          "Operation not permitted",
		"sendmail":     "not as root",
		"group_folder": "Operation not permitted",
		"netlink":      "Address family not supported",
		"meminfo":      "No such file",
		"others":       "No such file",
		"tunables":     "No such file",
		"sandbox":      "Operation not permitted",
		"nice":         "Operation not permitted",
	} {
		if got := b.run(program, "request", "try", "/"+what); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	for line := range strings.Lines(b.run("journalctl", "--no-pager", "-u", "fpmd", "-o", "cat")) {
		if strings.Contains(line, "level=WARN") && !strings.Contains(line, "SCHED_BATCH") {
			t.Errorf("fpmd warns: %s", line)
		}
	}
	b.run("systemctl", "stop", "fpmd")
	b.want("Result", "success")
	if lines := b.run("cat", "/var/log/fpmd/flask.log"); strings.Count(lines, "msg=request ") != 2 {
		t.Errorf("the access log does not have two requests:\n%s", lines)
	}
}
