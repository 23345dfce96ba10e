package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// confinedApp tells what it is held to.
const confinedApp = `
import os, resource
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    status = dict(line.split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
    facts = {
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "oom_score_adj": open("/proc/self/oom_score_adj").read().strip(),
        "rlimit_nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
        "rlimit_nproc": resource.getrlimit(resource.RLIMIT_NPROC),
        "rlimit_core": resource.getrlimit(resource.RLIMIT_CORE),
        "no_new_privs": status["NoNewPrivs"].strip(),
        "env": [os.environ.get(name) for name in ("A", "B", "C")],
    }
    return [" ".join("%s=%s" % f for f in facts.items()).encode()]
`

// The application finds itself as its pool says, and after a reload as the pool says then; so
// does that of an fpmd which is not root.
func TestConfinedWorkers(t *testing.T) {
	const first = `
nice = 18
oom_score_adj = 1000
rlimit_nofile = 256
rlimit_nproc = 4000
rlimit_core = 0
env_file = "app.env"
env = { A = "of the pool" }
`
	change := strings.NewReplacer("nice = 18", "nice = 19", "= 256", "= 200", "= 4000", "= 3000", "of the pool", "new", "rlimit_core = 0", "no_new_privs = false\nrlimit_core = 0")
	for name, root := range map[string]bool{"root": true, "another user": false} {
		t.Run(name, func(t *testing.T) {
			dir := appDir(t)
			write(t, filepath.Join(dir, "app.py"), confinedApp)
			write(t, filepath.Join(dir, "app.env"), "# secrets\nA=of the file\nB=\"of the\nfile\"\n")
			var d *process
			if root {
				needRoot(t, "has workers of another user")
				if err := os.Chmod(filepath.Join(dir, "app.env"), 0o600); err != nil {
					t.Fatal(err)
				}
				d = serve(t, dir, wsgiPool(dir, "workers = 1"+first))
			} else {
				d = servePlain(t, dir, "workers = 1"+first)
			}
			expect := func(want string) {
				t.Helper()
				if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "\r\n\r\n"+want) {
					t.Errorf("%q, %v\nwant %q", answer, err, want)
				}
			}
			expect("nice=18 oom_score_adj=1000 rlimit_nofile=(256, 256) rlimit_nproc=(4000, 4000) rlimit_core=(0, 0) no_new_privs=1 env=['of the pool', 'of the\\nfile', None]")

			config, err := os.ReadFile(filepath.Join(dir, "fpmd.toml"))
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "fpmd.toml"), change.Replace(string(config)))
			write(t, filepath.Join(dir, "app.env"), "B=new\nC='$A'\n")
			d.signal(syscall.SIGHUP)
			d.waitLog("msg=reloaded")
			const changed = "nice=19 oom_score_adj=1000 rlimit_nofile=(200, 200) rlimit_nproc=(3000, 3000) rlimit_core=(0, 0) no_new_privs=0 env=['new', 'new', '$A']"
			expect(changed)

			write(t, filepath.Join(dir, "app.env"), "B=newer\nhunter2\n")
			d.signal(syscall.SIGHUP)
			d.waitLog(filepath.Join(dir, "app.env") + ":2: pool.app.env_file: no NAME=value")
			expect(changed)
			if strings.Contains(d.log.String(), "hunter2") {
				t.Error("a line of the file is in the log")
			}
		})
	}
}

// What fpmd may not give is an error before anything runs, and names the key.
func TestConfinementBeyondOurs(t *testing.T) {
	dir := appDir(t)
	config := strings.Replace(wsgiPool(dir, "nice = -1\noom_score_adj = -1000\nrlimit_nofile = 100000000"), "user = \"nobody\"\n", "", 1)
	write(t, filepath.Join(dir, "fpmd.toml"), config)
	cmd := exec.Command("/proc/self/exe", "check", "-c", filepath.Join(dir, "fpmd.toml"))
	cmd.Env = append(os.Environ(), "FPMD_TEST_MAIN=1")
	cmd.SysProcAttr = asPlain()
	out, _ := cmd.CombinedOutput() // its exit code is looked at
	if code := cmd.ProcessState.ExitCode(); code != exitConfig {
		t.Errorf("exit code %d, want %d", code, exitConfig)
	}
	for _, key := range []string{"nice: -1: ", "oom_score_adj: -1000: ", "rlimit_nofile: 100000000: "} {
		if !strings.Contains(string(out), "pool.app."+key) {
			t.Errorf("no word of %s in\n%s", key, out)
		}
	}
}

// intruder tries what its argument, a file of JSON, says is another's, and tells of
// each attempt whether it got there, or the error.
const intruder = `
import ctypes, errno, glob, json, os, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def connect(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(5)
        s.connect(path)
def read(path):
    with open(path, "rb") as f: f.read(1)
def any_of(do, paths):
    paths = list(paths)
    failed = "none there"
    for p in paths:
        try: return do(p)
        except OSError as e: failed = e
    raise failed if isinstance(failed, OSError) else FileNotFoundError(errno.ENOENT, failed)
def sockets(pid):
    # What fpmd reaches the workers of pool b by: sockets that have lost their names in the file system.
    for fd in glob.glob("/proc/%d/fd/*" % pid) or ["/proc/%d/fd/0" % pid]:
        try: to = os.readlink(fd)
        except FileNotFoundError: continue # closed meanwhile
        if "/workers/b." in to: yield fd
def attach(pid):
    PTRACE_SEIZE, PTRACE_DETACH = 0x4206, 17
    if libc.ptrace(PTRACE_SEIZE, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
def attempts(o):
    worker, fpmd = o["worker"], o["fpmd"]
    return {
        "its web server's socket": lambda: connect(o["socket"]),
        "the folder of the workers' sockets": lambda: os.listdir(o["workers"]),
        "its worker's socket": lambda: any_of(connect, sockets(fpmd)),
        "what its worker has open": lambda: any_of(read, glob.glob("/proc/%d/fd/*" % worker) or ["/proc/%d/fd/4" % worker]),
        "its worker's environment": lambda: read("/proc/%d/environ" % worker),
        "its worker's memory": lambda: read("/proc/%d/maps" % worker),
        "its worker, traced": lambda: attach(worker),
        "its worker, signalled": lambda: os.kill(worker, 0),
        "its access log": lambda: read(o["log"]),
        "its env_file": lambda: read(o["env_file"]),
        "fpmd's environment": lambda: read("/proc/%d/environ" % fpmd),
        "fpmd, signalled": lambda: os.kill(fpmd, 0),
        "fpmd's control socket": lambda: connect(o["control"]),
        "fpmd's lock": lambda: read(o["lock"]),
    }
def intrude(path):
    told = {}
    for what, do in attempts(json.load(open(path))).items():
        try:
            do()
            told[what] = "reached"
        except OSError as e:
            told[what] = errno.errorcode.get(e.errno, str(e))
    return json.dumps(told).encode()
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [intrude(os.environ["OTHERS"])]
if __name__ == "__main__":
    print(intrude(sys.argv[1]).decode())
`

// SECURITY.md: an application reaches nothing of a pool of another user, and nothing of
// fpmd. All of it is there to be reached: root, who may, does.
func TestPoolsAreApart(t *testing.T) {
	needRoot(t, "has pools of two users")
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), intruder)
	write(t, filepath.Join(dir, "b.env"), "SECRET=hunter2\n")
	if err := os.Chmod(filepath.Join(dir, "b.env"), 0o600); err != nil {
		t.Fatal(err)
	}
	others := filepath.Join(dir, "others.json")
	more := fmt.Sprintf("workers = 1\nenv = { OTHERS = %q }\n", others)
	pool := func(name, user, more string) string {
		return fmt.Sprintf("[pool.%s]\nlisten = %q\nuser = %q\nwsgi = \"app:application\"\ndirectory = %q\npython = %q\n%s\n",
			name, filepath.Join(dir, name+".sock"), user, dir, interpreter, more)
	}
	d := serve(t, dir, wsgiPool(dir, more)+
		pool("b", "daemon", more+fmt.Sprintf("env_file = \"b.env\"\naccess_log = %q", filepath.Join(dir, "b.log"))))
	if _, err := askOnce(filepath.Join(dir, "b.sock")); err != nil { // so that there is a log to read
		t.Fatal(err)
	}
	worker := 0
	for _, pid := range workersOf(d) {
		if fi, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil && fi.Sys().(*syscall.Stat_t).Uid != 65534 {
			worker = pid
		}
	}
	target, err := json.Marshal(map[string]any{
		"worker": worker, "fpmd": d.cmd.Process.Pid,
		"socket": filepath.Join(dir, "b.sock"), "workers": filepath.Join(dir, "run", "workers"), "lock": filepath.Join(dir, "run", "lock"),
		"control": d.control(),
		"log":     filepath.Join(dir, "b.log"), "env_file": filepath.Join(dir, "b.env"),
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, others, string(target))

	told := func(text string) (attempts map[string]string) {
		t.Helper()
		if err := json.Unmarshal([]byte(text), &attempts); err != nil || len(attempts) < 14 {
			t.Fatalf("%q: %v", text, err)
		}
		return attempts
	}
	answer, err := askOnce(d.sock())
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(answer, "\r\n\r\n")
	attempts := told(body)
	for _, what := range slices.Sorted(maps.Keys(attempts)) {
		if e := attempts[what]; e != "EACCES" && e != "EPERM" {
			t.Errorf("the application of pool app, and %s of pool b: %s, want EACCES or EPERM", what, e)
		}
	}
	asRoot, err := exec.Command(interpreter, filepath.Join(dir, "app.py"), others).Output()
	if err != nil {
		t.Fatal(err)
	}
	for what, e := range told(string(asRoot)) {
		if e != "reached" {
			t.Errorf("root, and %s of pool b: %s: is it still there to be reached?", what, e)
		}
	}
}

// meddlingApp tries to change what it shares with fpmd.
const meddlingApp = `
import errno, os
def attempt(do):
    try: do()
    except OSError as e: return errno.errorcode[e.errno]
    return "done"
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    told = []
    for fd in os.listdir("/proc/self/fd"):
        try: to = os.readlink("/proc/self/fd/" + fd)
        except FileNotFoundError: continue
        if not to.startswith("/memfd:"): continue
        again = os.open("/proc/self/fd/" + fd, os.O_RDWR)
        told.append(" ".join([to.split()[0],
            "shrink", attempt(lambda: os.ftruncate(again, 0)),
            "grow", attempt(lambda: os.ftruncate(again, 1 << 20)),
            "write", attempt(lambda: os.pwrite(again, os.pread(again, 1, 0), 0))]))
    return ["; ".join(sorted(told)).encode()]
`

// What a worker shares with fpmd can't be shortened, which would kill fpmd, and is the page alone: the
// host's archive is closed by then.
func TestSharedMemoryIsSealed(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), meddlingApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1"))
	const want = "/memfd:fpmd-page shrink EPERM grow EPERM write done"
	if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "\r\n\r\n"+want) {
		t.Errorf("%q, %v\nwant %q", answer, err, want)
	}
}
