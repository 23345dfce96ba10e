package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// plainUser is a number that nobody has, and no other run of the tests: the
// kernel counts his processes.
var plainUser = 61000 + os.Getpid()%1000

// Without processes left fpmd says so, with the limit's name, and lives: the workers
// that there are go on, and when it may have more, those that died are replaced.
func TestNoProcessesLeft(t *testing.T) {
	for name, tt := range map[string]struct {
		limit func(tasks int) int // of that many which the user has
		want  string
	}{
		"none":                  {func(int) int { return 1 }, "start fpmd exec-worker: resource temporarily unavailable: uid %d can have no more processes: RLIMIT_NPROC = %d ("},
		"one, without a thread": {func(tasks int) int { return tasks }, "before it was ready: resource temporarily unavailable: uid %d can have no more processes: RLIMIT_NPROC = %d ("},
	} {
		t.Run(name, func(t *testing.T) {
			if name != "none" {
				needRoot(t, "counts the processes of a user who has no others")
			}
			dir := appDir(t)
			write(t, filepath.Join(dir, "app.py"), helloApp)
			d := servePlain(t, dir, "workers = 2")
			d.waitLogTimes("msg=\"worker ready\"", 2)
			tasks := 0
			for _, pid := range append(workersOf(d), d.cmd.Process.Pid) {
				list, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
				if err != nil {
					t.Fatal(err)
				}
				tasks += len(list)
			}
			limit := tt.limit(tasks)
			had := limitProcesses(d, limit)
			syscall.Kill(workersOf(d)[0], syscall.SIGKILL)
			d.waitLog(fmt.Sprintf(tt.want, plainUID(), limit))
			// Each client and each failed start has fpmd look for a thread.
			l := startLoad(t, 16, func(context.Context) (int, string, error) {
				answer, err := askOnce(d.sock())
				return 200, answer[max(0, len(answer)-5):], err
			})
			d.waitLogTimes("msg=\"worker did not start\"", 4)
			d.wait("load", func() bool { return l.total("hello") > 500 })
			if served, failed := l.stop(); len(failed) > 0 || len(served) > 1 {
				t.Errorf("meanwhile: %v, %s", served, summary(failed))
			}
			limitProcesses(d, had)
			d.waitLogTimes("msg=\"worker ready\"", 3)
		})
	}
}

// Root itself may have any number of processes, the user of a pool may not.
func TestNoProcessesLeftOfAUser(t *testing.T) {
	needRoot(t, "starts workers as another user")
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 2"))
	d.waitLogTimes("msg=\"worker ready\"", 2)
	pid := d.cmd.Process.Pid
	var had unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NPROC, nil, &had); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NPROC, &unix.Rlimit{Cur: 1, Max: had.Max}, nil); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(workersOf(d)[0], syscall.SIGKILL)
	d.waitLog("exec /usr/bin/python3 as user nobody: resource temporarily unavailable: user nobody can have no more processes: RLIMIT_NPROC = 1 (")
	if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "hello") {
		t.Errorf("meanwhile: %q, %v", answer, err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NPROC, &had, nil); err != nil {
		t.Fatal(err)
	}
	d.waitLogTimes("msg=\"worker ready\"", 3)
}

// needRoot skips the test for others, which only root can set up: for others, and
// only for them.
func needRoot(t *testing.T, why string) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("the test %s, which needs root, and CI skips nothing", why)
	}
	t.Skipf("the test %s, which needs root", why)
}

// limitProcesses sets how many processes the user of d, started by servePlain,
// may have, and returns what it was.
func limitProcesses(d *process, limit int) (had int) {
	d.t.Helper()
	prlimit := func(args ...string) string {
		cmd := exec.Command("prlimit", append([]string{"--pid", fmt.Sprint(d.cmd.Process.Pid)}, args...)...)
		cmd.SysProcAttr = asPlain() // root is not allowed it where it has not all capabilities
		out, err := cmd.CombinedOutput()
		if err != nil {
			d.t.Fatalf("%v: %v %s", cmd, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	had, err := strconv.Atoi(prlimit("--nproc", "--raw", "--noheadings", "--output=SOFT"))
	if err != nil {
		d.t.Fatalf("RLIMIT_NPROC: %v: want a number", err) // "unlimited" is one, the hard limit, on no machine of ours
	}
	prlimit(fmt.Sprintf("--nproc=%d:", limit))
	return had
}

// plainUID is who asPlain starts processes as.
func plainUID() int {
	if os.Getuid() != 0 {
		return os.Getuid()
	}
	return plainUser
}

// asPlain starts a process as a user that is not root.
func asPlain() *syscall.SysProcAttr {
	if os.Getuid() != 0 {
		return nil
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(plainUser), Gid: uint32(plainUser)}}
}

// plainBinary puts the test's binary, which is in a folder that is ours alone, into dir.
func plainBinary(t *testing.T, dir string) (program string) {
	t.Helper()
	binary, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	program = filepath.Join(dir, "fpmd")
	if err := os.WriteFile(program, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	return program
}

// servePlain is serve of a WSGI pool by a user that is not root, and has no
// other processes when the test is root's.
func servePlain(t *testing.T, dir, more string) *process {
	t.Helper()
	d := &process{t: t, dir: dir, exited: make(chan struct{})}
	path := filepath.Join(dir, "fpmd.toml")
	config := wsgiPool(dir, more)
	if os.Getuid() == 0 {
		config = strings.Replace(config, "user = \"nobody\"\n", "", 1)
		os.Chown(dir, plainUser, plainUser)
	}
	write(t, path, config)
	d.cmd = exec.Command(plainBinary(t, dir), "serve", "-c", path)
	d.cmd.Env = append(os.Environ(), "FPMD_TEST_MAIN=1")
	d.cmd.SysProcAttr = asPlain()
	d.start()
	d.waitWorkers(config)
	return d
}

// serveIn is serve in mounts of its own, which setup, a line of shell, makes.
func serveIn(t *testing.T, setup, dir, config string) *process {
	t.Helper()
	d := launchIn(t, setup, dir, config)
	d.waitWorkers(config)
	return d
}

// launchIn is serveIn that does not wait.
func launchIn(t *testing.T, setup, dir, config string) *process {
	t.Helper()
	needRoot(t, "mounts")
	d := &process{t: t, dir: dir, exited: make(chan struct{})}
	path := filepath.Join(dir, "fpmd.toml")
	write(t, path, config)
	d.cmd = exec.Command("unshare", "--mount", "--propagation", "private",
		"sh", "-ec", setup+`; exec "$0" serve -c "$1"`, os.Args[0], path)
	d.cmd.Env = append(os.Environ(), "FPMD_TEST_MAIN=1")
	d.start()
	return d
}

// inside is path as d sees it, in its own mounts.
func (d *process) inside(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", d.cmd.Process.Pid, path)
}

// fill leaves no room in dir, for content or for files, and returns what makes it again.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	var names []string
	for {
		name := filepath.Join(dir, fmt.Sprintf("fill.%d", len(names)))
		f, err := os.Create(name)
		if errors.Is(err, unix.ENOSPC) && len(names) > 0 {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
		for err == nil {
			_, err = f.Write(make([]byte, 512))
		}
		f.Close()
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	return func() {
		for _, name := range names {
			if err := os.Remove(name); err != nil {
				t.Error(err)
			}
		}
	}
}

// With runtime_dir full no further worker starts, and a reload that wants some says
// so; those that there are go on, and one that dies is replaced, for it leaves
// its room. When there is more again, so there is for a reload.
func TestRuntimeDirFull(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	run := filepath.Join(dir, "run")
	d := serveIn(t, "mkdir "+run+"; mount -t tmpfs -o size=32k,nr_inodes=16,mode=755 tmpfs "+run, dir, wsgiPool(dir, "workers = 2"))
	d.waitLogTimes("msg=\"worker ready\"", 2)
	free := fill(t, d.inside(run))
	d.signal(syscall.SIGHUP)
	d.waitLog("next=\"the old ones go on serving\"")
	if !strings.Contains(d.log.String(), "no space left on device") {
		t.Error("the log does not say why")
	}
	syscall.Kill(workersOf(d)[0], syscall.SIGKILL)
	d.waitLogTimes("msg=\"worker ready\"", 3)
	for range 20 {
		if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "hello") {
			t.Fatalf("meanwhile: %q, %v", answer, err)
		}
	}
	free()
	d.signal(syscall.SIGHUP)
	d.waitLog("msg=reloaded")
}

// A log that has no room loses lines, which standard error says once, and costs no
// request; when there is room again, it goes on with a whole line.
func TestLogFull(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	logs := filepath.Join(dir, "logs")
	config := strings.Replace(wsgiPool(dir, "workers = 1\naccess_log = \"-\""), "log_level", fmt.Sprintf("log = %q\nlog_level", logs+"/fpmd.log"), 1)
	d := launchIn(t, "mkdir "+logs+"; mount -t tmpfs -o size=64k,nr_inodes=16,mode=755 tmpfs "+logs, dir, config)
	log := func() string {
		b, err := os.ReadFile(d.inside(logs + "/fpmd.log"))
		if err != nil {
			return "" // not there yet
		}
		return string(b)
	}
	ask := func(n int) {
		t.Helper()
		for range n {
			if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "hello") {
				t.Fatalf("%q, %v", answer, err)
			}
		}
	}
	d.wait("a ready pool", func() bool { return strings.Contains(log(), "every pool is ready") })
	ask(1)
	d.wait("a line", func() bool { return strings.Count(log(), "msg=request") == 1 })
	free := fill(t, d.inside(logs))
	for strings.Count(d.log.String(), "write the log") == 0 {
		ask(50)
	}
	ask(50)
	free()
	before := strings.Count(log(), "msg=request")
	d.wait("a line again", func() bool {
		ask(1)
		return strings.Count(log(), "msg=request") > before
	})
	d.waitLog("fpmd.log is written again, ") // it is said after the line is there
	torn := 0
	for line := range strings.Lines(log()) {
		if strings.Count(line, "time=") != 1 {
			t.Errorf("not a line: %q", line)
		}
		if !strings.Contains(line, "msg=") || strings.Contains(line, "msg=request") && !strings.Contains(line, "worker=1\n") {
			torn++ // where the room ended
		}
	}
	if torn > 1 {
		t.Errorf("%d lines are cut:\n%s", torn, log())
	}
	for _, want := range []string{"lines are lost until it works again", "fpmd.log is written again, "} {
		if n := strings.Count(d.log.String(), want); n != 1 {
			t.Errorf("%q %d times on standard error, want once:\n%s", want, n, d.log.String())
		}
	}
}

// A user who is no more keeps a configuration from being read, which the log
// says; the workers of the old one, and who replaces them, go on under his number.
func TestUserGone(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	there, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	passwd := filepath.Join(dir, "passwd")
	setUsers := func(text string) { // in place: the mount is of the file, not of its name
		t.Helper()
		if err := os.WriteFile(passwd, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	with := string(there) + fmt.Sprintf("fpmd-gone:x:%d:%d::/nonexistent:/bin/false\n", plainUser, plainUser)
	setUsers(with)
	config := strings.Replace(wsgiPool(dir, "workers = 1"), "nobody", "fpmd-gone", 1)
	d := serveIn(t, "mount --bind "+passwd+" /etc/passwd", dir, config)
	setUsers(string(there))
	d.signal(syscall.SIGHUP)
	d.waitLog("msg=configuration error=\"" + dir + "/fpmd.toml:8: pool.app.user: \\\"fpmd-gone\\\": no such user")
	syscall.Kill(workersOf(d)[0], syscall.SIGKILL)
	d.waitLogTimes("msg=\"worker ready\"", 2)
	if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "hello") {
		t.Errorf("meanwhile: %q, %v", answer, err)
	}
	for _, pid := range workersOf(d) {
		fi, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
		if err != nil || int(fi.Sys().(*syscall.Stat_t).Uid) != plainUser {
			t.Errorf("the new worker: %+v, %v", fi, err)
		}
	}
	setUsers(with)
	d.signal(syscall.SIGHUP)
	d.waitLog("msg=reloaded")
}

// Without its interpreter no worker starts and no reload is taken, which the log
// says; those that there are go on, and when it is back the pool is whole again.
func TestInterpreterGone(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	python := filepath.Join(dir, "python")
	if err := os.Symlink(interpreter, python); err != nil { // as in a virtual environment
		t.Fatal(err)
	}
	d := serve(t, dir, strings.Replace(wsgiPool(dir, "workers = 2"), interpreter, python, 1))
	d.waitLogTimes("msg=\"worker ready\"", 2)
	if err := os.Rename(python, python+".gone"); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(workersOf(d)[0], syscall.SIGKILL)
	d.waitLog("look up " + python + ": ")
	d.signal(syscall.SIGHUP)
	d.waitLog("msg=configuration error=\"" + dir + "/fpmd.toml:")
	d.waitLog(": pool.app.python: ")
	for range 20 {
		if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "hello") {
			t.Fatalf("meanwhile: %q, %v", answer, err)
		}
	}
	if err := os.Rename(python+".gone", python); err != nil {
		t.Fatal(err)
	}
	d.waitLogTimes("msg=\"worker ready\"", 3)
	d.signal(syscall.SIGHUP)
	d.waitLog("msg=reloaded")
}
