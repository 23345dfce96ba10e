package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A tree is a control group, with all below it, that is a test's own, as systemd gives one
// to a unit with Delegate=yes.
type tree struct {
	t    *testing.T
	path string
}

// ownTree makes a tree where control groups v2 are mounted.
func ownTree(t *testing.T) *tree {
	t.Helper()
	needRoot(t, "makes control groups")
	g := &tree{t, filepath.Join(rootGroup(t), fmt.Sprintf("fpmd-test-%d-%d", os.Getpid(), writes.Add(1)))}
	if err := os.Mkdir(g.path, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.remove)
	if err := unix.Setxattr(g.path, "user.delegate", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	return g
}

// rootGroup is where control groups v2 are mounted.
func rootGroup(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			return f[1]
		}
	}
	t.Fatal("control groups v2 are not mounted: mount -t cgroup2 none /sys/fs/cgroup")
	return ""
}

// inOtherKernel runs the test in a kernel of its own, user-mode Linux, where this one has not all
// of these controllers for control groups v2, because they are in use in v1, and reports whether it did.
func inOtherKernel(t *testing.T, controllers ...string) bool {
	t.Helper()
	needRoot(t, "makes control groups")
	root := rootGroup(t)
	there, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		t.Fatal(err)
	}
	lacks := slices.ContainsFunc(controllers, func(c string) bool { return !slices.Contains(strings.Fields(string(there)), c) })
	if !lacks {
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+strings.Join(controllers, " +")), 0); err != nil {
			t.Fatal(err)
		}
		return false
	}
	kernel, err := exec.LookPath("linux.uml")
	if err != nil {
		why := fmt.Sprintf("control groups v2 have %q here, want %v, or user-mode Linux: %v", there, controllers, err)
		if os.Getenv("CI") != "" {
			t.Fatal(why + ", and CI skips nothing")
		}
		t.Skip(why)
	}
	dir := appDir(t)
	binary := filepath.Join(dir, "fpmd.test")
	build := exec.Command("go", "test", "-c", "-o", binary, ".") // the race detector wants more addresses than there are
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v\n%s", err, out)
	}
	write(t, filepath.Join(dir, "init"), fmt.Sprintf(`#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin CI=1 TMPDIR=/run
mount -t proc proc /proc && mount -t cgroup2 none /sys/fs/cgroup && mount -t tmpfs run /run
ip link set lo up
%s -test.v -test.run '^%s$' && echo it has passed
echo o >/proc/sysrq-trigger
sleep 1000
`, binary, t.Name()))
	if err := os.Chmod(filepath.Join(dir, "init"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	uml := exec.CommandContext(ctx, kernel, "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "mem=1G", "quiet", "con=null", "con0=null,fd:1",
		"init="+filepath.Join(dir, "init"))
	uml.Env = append(os.Environ(), "TMPDIR="+dir) // where its memory is
	uml.WaitDelay = time.Second
	out, err := uml.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "it has passed") {
		t.Errorf("in user-mode Linux: %v\n%s", err, out)
	}
	return true
}

// remove ends what is left in the tree, and it.
func (g *tree) remove() {
	os.WriteFile(filepath.Join(g.path, "cgroup.kill"), []byte("1"), 0)
	exec.Command("find", g.path, "-depth", "-type", "d", "-exec", "sh", "-c", `for i in $(seq 200); do rmdir "$1" && exit; sleep .05; done`, "-", "{}", ";").Run()
	if _, err := os.Stat(g.path); err == nil {
		g.t.Errorf("%s is left", g.path)
	}
}

// groups lists the groups in the tree.
func (g *tree) groups() (names []string) {
	g.t.Helper()
	entries, err := os.ReadDir(g.path)
	if err != nil {
		g.t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// procs lists the processes of a group in the tree; "" is the tree's own.
func (g *tree) procs(name string) (pids []int) {
	b, err := os.ReadFile(filepath.Join(g.path, name, "cgroup.procs"))
	if err != nil {
		return nil // it is gone
	}
	for f := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			g.t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// launch starts fpmd in the tree, as systemd would.
func (g *tree) launch(dir, config string) *process {
	g.t.Helper()
	in, err := os.Open(g.path)
	if err != nil {
		g.t.Fatal(err)
	}
	defer in.Close()
	d := &process{t: g.t, dir: dir, exited: make(chan struct{})}
	path := filepath.Join(dir, "fpmd.toml")
	write(g.t, path, config)
	d.cmd = exec.Command(os.Args[0], "serve", "-c", path)
	d.cmd.Env = append(os.Environ(), "FPMD_TEST_MAIN=1")
	d.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(in.Fd())}
	d.start()
	return d
}

// serve is launch that waits until the pools are ready.
func (g *tree) serve(dir, config string) *process {
	g.t.Helper()
	d := g.launch(dir, config)
	d.waitWorkers(config)
	return d
}

// spawningApp leaves a process behind that has left its group, session and parent, and answers with its
// number and its own.
const spawningApp = `
import os, time
def daemon():
    r, w = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in (0, 1, 2): os.close(fd)
            os.write(w, str(os.getpid()).encode())
            time.sleep(100000)
        os._exit(0)
    os.wait()
    return os.read(r, 20).decode()
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [("%s %d" % (daemon(), os.getpid())).encode()]
`

// daemonOf has a worker leave a process behind.
func daemonOf(d *process) (daemon, worker int) {
	d.t.Helper()
	answer, err := askOnce(d.sock())
	if err != nil {
		d.t.Fatal(err)
	}
	_, body, _ := strings.Cut(answer, "\r\n\r\n")
	if _, err := fmt.Sscan(body, &daemon, &worker); err != nil {
		d.t.Fatalf("%q: %v", answer, err)
	}
	return daemon, worker
}

// Where fpmd has control groups of its own, each worker has one, and what it has started is gone
// when it is, however it ends, and whatever that has done to its process group; a stop leaves nothing.
func TestGrandchildrenEndWithTheirWorker(t *testing.T) {
	g := ownTree(t)
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), spawningApp)
	d := g.serve(dir, wsgiPool(dir, "workers = 1"))
	if got := g.procs("supervisor"); !slices.Equal(got, []int{d.cmd.Process.Pid}) {
		t.Errorf("in the group of the supervisor are %v, want fpmd, which is %d", got, d.cmd.Process.Pid)
	}
	for name, end := range map[string]func(worker int){
		"by a kill":   func(worker int) { syscall.Kill(worker, syscall.SIGKILL) },
		"by a reload": func(int) { d.signal(syscall.SIGHUP) },
		"by a signal": func(worker int) { syscall.Kill(worker, syscall.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			daemon, worker := daemonOf(d)
			gone := strings.Count(d.log.String(), "msg=\"worker gone\"")
			end(worker)
			d.wait("end of the worker", func() bool { return strings.Count(d.log.String(), "msg=\"worker gone\"") > gone })
			d.wait("end of what it left behind", func() bool { return !alive(daemon) })
			d.wait("end of its control group", func() bool { return len(g.groups()) == 2 }) // of fpmd, and of the next worker
		})
	}
	daemon, _ := daemonOf(d)
	d.signal(syscall.SIGTERM)
	d.waitExit()
	if alive(daemon) {
		t.Error("a stop leaves a process of a worker")
	}
	if got := g.groups(); !slices.Equal(got, []string{"supervisor"}) {
		t.Errorf("a stop leaves the control groups %v", got)
	}
}

// What an fpmd that was killed has left in its control groups ends with the start of the next; what
// is not fpmd's there is left alone.
func TestControlGroupsOfAKilledFpmd(t *testing.T) {
	g := ownTree(t)
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), spawningApp)
	config := wsgiPool(dir, "workers = 1")
	d := g.serve(dir, config)
	daemon, _ := daemonOf(d)
	d.signal(syscall.SIGKILL)
	d.waitExit()
	if !alive(daemon) {
		t.Fatal("the process has ended with fpmd: there is nothing left to be ended")
	}
	if err := os.Mkdir(filepath.Join(g.path, ".control"), 0o755); err != nil { // as systemd has it for ExecReload=
		t.Fatal(err)
	}
	d = g.serve(dir, config)
	d.wait("end of the process", func() bool { return !alive(daemon) })
	d.wait("end of its control group", func() bool { return len(g.groups()) == 3 })

	// A second fpmd in the same tree would take the first one's workers for left over.
	other := filepath.Join(dir, "other")
	second := g.launch(other, strings.ReplaceAll(wsgiPool(dir, "workers = 1"), dir+"/", other+"/"))
	second.waitLog("every pool is ready")
	if _, worker := daemonOf(d); !alive(worker) {
		t.Error("a second fpmd has ended the workers of the first")
	}
}

// Groups that a worker has made in its own go with it. A group that is left and can't be removed is in no worker's way.
func TestControlGroupsThatAreInTheWay(t *testing.T) {
	g := ownTree(t)
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	stuck := filepath.Join(g.path, "app.1")
	if err := os.Mkdir(stuck, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", stuck, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	d := g.serve(dir, wsgiPool(dir, "workers = 2"))
	if err := unix.Unmount(stuck, 0); err != nil {
		t.Fatal(err)
	}
	if log := d.log.String(); strings.Contains(log, "worker did not start") {
		t.Error("a worker did not start")
	}
	for _, name := range g.groups() {
		if name != "supervisor" {
			if err := os.MkdirAll(filepath.Join(g.path, name, "a/b"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	d.signal(syscall.SIGTERM)
	d.waitExit()
	if got := g.groups(); !slices.Equal(got, []string{"supervisor"}) {
		t.Errorf("a stop leaves the control groups %v", got)
	}
}

// Who asks for a limit of a control group is not to have none: without control groups of its own fpmd
// does not start, and says which key it is, and what would do.
func TestNoControlGroupForALimit(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	for _, key := range []string{`cgroup_memory_max = "64MiB"`, "cgroup_pids_max = 64"} {
		d := launch(t, dir, wsgiPool(dir, "workers = 1\n"+key))
		if code := d.waitExit(); code != exitConfig {
			t.Errorf("exit code %d, want %d", code, exitConfig)
		}
		name, _, _ := strings.Cut(key, " ")
		if said := d.log.String(); !strings.Contains(said, "fpmd.toml:") || !strings.Contains(said, ": pool.app."+name+": ") {
			t.Errorf("%s: fpmd says\n%s", key, said)
		}
	}
}

// greedyApp takes what its path says, until it is stopped.
const greedyApp = `
import os, time
def eat():
    kept = []
    kept.append(b"x" * (1 << 28)) # in one go: the kernel may take the interpreter's own pages for long, before it gives up
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    path = environ["PATH_INFO"]
    if path == "/eat": eat()
    if path == "/child":
        if os.fork() == 0: eat()
        time.sleep(1000)
    if path == "/fork":
        for n in range(1000):
            try:
                if os.fork() == 0: time.sleep(1000)
            except BlockingIOError: return [b"%d" % n]
    return [b"hello"]
`

// The kernel holds a worker, with all that it has started, to its control group's limits. One that has
// taken all of its memory is killed as a whole, whichever of its processes it was, and replaced; the log says what
// it was. Others notice nothing.
func TestControlGroupLimits(t *testing.T) {
	if inOtherKernel(t, "memory", "pids") {
		return
	}
	g := ownTree(t)
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), greedyApp)
	config := wsgiPool(dir, "workers = 1") + fmt.Sprintf(`
[pool.greedy]
listen = %q
user = "nobody"
wsgi = "app:application"
directory = %q
python = %q
workers = 1
cgroup_memory_max = "64MiB"
cgroup_pids_max = 32
`, filepath.Join(dir, "greedy.sock"), dir, interpreter)
	d := g.serve(dir, config)
	other, err := askOnce(d.sock())
	if err != nil {
		t.Fatal(err)
	}
	for n, path := range []string{"/eat", "/child"} {
		answer, err := askPath(filepath.Join(dir, "greedy.sock"), path)
		if err != nil || !strings.Contains(answer, "Fpmd-Outcome: worker_died") {
			t.Errorf("%s: %q, %v, want the outcome worker_died", path, answer, err)
		}
		d.waitLogTimes(`cause="killed by SIGKILL, out of memory: cgroup_memory_max = 64MiB"`, n+1)
		d.waitLogTimes("worker ready", n+3)
	}
	answer, err := askPath(filepath.Join(dir, "greedy.sock"), "/fork")
	_, body, _ := strings.Cut(answer, "\r\n\r\n")
	if n, err2 := strconv.Atoi(body); err != nil || err2 != nil || n < 1 || n > 31 {
		t.Errorf("a worker that forks: %q, %v, want less than 32 processes", answer, err)
	}
	d.waitLog(`msg="worker has met a limit" pool=greedy`)
	d.waitLog(`cause="no more processes: cgroup_pids_max = 32"`)
	if answer, err := askOnce(d.sock()); err != nil || answer != other {
		t.Errorf("another pool: %q, %v", answer, err)
	}
	if n := strings.Count(d.log.String(), `msg="worker gone" pool=app`); n > 0 {
		t.Errorf("%d workers of another pool have ended", n)
	}
	d.signal(syscall.SIGTERM)
	d.waitExit()
	if got := g.groups(); !slices.Equal(got, []string{"supervisor"}) {
		t.Errorf("a stop leaves the control groups %v", got)
	}
}
