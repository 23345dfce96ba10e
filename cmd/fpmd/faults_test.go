package main

import (
	"context"
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

// plainUser is a number that nobody has.
const plainUser = 61718

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
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: plainUser, Gid: plainUser}}
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
	binary, err := os.ReadFile(os.Args[0]) // in a folder that is ours alone
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "fpmd")
	if err := os.WriteFile(program, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	d.cmd = exec.Command(program, "serve", "-c", path)
	d.cmd.Env = append(os.Environ(), "FPMD_TEST_MAIN=1")
	d.cmd.SysProcAttr = asPlain()
	d.start()
	d.waitLog("every pool is ready")
	return d
}
