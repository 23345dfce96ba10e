package main

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A visitor is who runs make demo.
type visitor struct {
	name    string
	account string      // "" is whoever runs the tests
	mode    os.FileMode // of the folder that the checkout is in
	serves  string      // who the workers must be
}

// visitors are all that this test can be: root and, by root's leave, others.
func visitors(t *testing.T) []visitor {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if me.Uid != "0" {
		return []visitor{{"plain user", "", 0o700, me.Username}}
	}
	return []visitor{
		{"root, with a clone that nobody can read", "", 0o700, "nobody"},
		{"nobody", "nobody", 0o755, "nobody"},
		{"another plain user", "daemon", 0o755, "daemon"}, // whom the configuration does not name
	}
}

// The demo shows its page, and another worker answers when the one that did is
// killed. It ends at ^C and at TERM, and leaves no process, no file, no listener.
func TestDemo(t *testing.T) {
	for _, v := range visitors(t) {
		t.Run(v.name, func(t *testing.T) {
			clone := checkout(t, v)
			for _, end := range []struct {
				name string
				sig  syscall.Signal
				all  bool // the whole foreground group, as a terminal does it
			}{{"^C", syscall.SIGINT, true}, {"INT", syscall.SIGINT, false}, {"TERM", syscall.SIGTERM, false}} {
				t.Run(end.name, func(t *testing.T) {
					d := startDemo(t, v, clone)
					d.tryOut(v)
					d.endBy(end.sig, end.all)
				})
			}
		})
	}
}

// tryOut does what the demo's page proposes.
func (d *demo) tryOut(v visitor) {
	t := d.t
	t.Helper()
	base := "http://" + d.addr
	d.waitLog("ends it, and leaves nothing behind")
	for _, path := range []string{"/hello", "/env", "/pool", "/stream", "/boom"} {
		if !strings.Contains(d.log.String(), " "+base+path+" ") {
			t.Errorf("%s is not among what there is to try", path)
		}
	}
	if log := d.log.String(); strings.Contains(log, "pool.demo.listen") {
		t.Errorf("it warns of its socket, which is for nobody but the demo:\n%s", log)
	}
	status, page := get(t, base+"/")
	shown := regexp.MustCompile(`Worker <b>(\d+)</b>(?s:.*)<b>([^<]+)</b>who it is`).FindStringSubmatch(page)
	if status != 200 || shown == nil {
		t.Fatalf("%d, no worker named in\n%s", status, page)
	}
	if shown[2] != v.serves {
		t.Errorf("served by %s, want %s", shown[2], v.serves)
	}
	for _, part := range []string{"<th>REQUEST_ID<td>", "kill -9 " + shown[1], "curl -i " + base + "/hello"} {
		if !strings.Contains(page, part) {
			t.Errorf("no %q in the page", part)
		}
	}

	if status, _ := get(t, base+"/boom"); status != 500 {
		t.Errorf("/boom: %d, want 500", status)
	}
	d.waitLog("this was asked for: /boom")                               // the traceback's last line
	app := strconv.Quote(filepath.Join(d.clone, "examples/demo/app.py")) // as the log has it
	inPlace := strings.Contains(d.log.String(), strings.Trim(app, `"`))
	if root := os.Getuid() == 0 && v.account == ""; inPlace == root {
		t.Errorf("root: %v, served in place: %v", root, inPlace)
	}

	killed, _ := strconv.Atoi(shown[1])
	d.waitLogTimes("worker ready", 2)
	before := d.pool()
	if !slices.Contains(before, killed) {
		t.Errorf("the pool is %v, without worker %d", before, killed)
	}
	if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status, body := get(t, base+"/hello"); status != 200 || strings.Contains(body, "worker "+shown[1]+",") {
		t.Errorf("after worker %d was killed: %d %q", killed, status, body)
	}
	d.waitLogTimes("worker ready", 3) // two, and the one in place of the killed
	if after := d.pool(); slices.Contains(after, killed) || slices.Equal(after, before) {
		t.Errorf("after worker %d was killed, the pool is %v; it was %v", killed, after, before)
	}
}

// pool is what /pool says of the workers: exactly those that there are, each
// with what the page shows of it.
func (d *demo) pool() (pids []int) {
	t := d.t
	t.Helper()
	var pool struct {
		Answers, Served, Parent int
		Workers                 []struct {
			PID, Memory int
			Age, CPU    float64
		}
	}
	status, body := get(t, "http://"+d.addr+"/pool")
	if err := json.Unmarshal([]byte(body), &pool); err != nil || status != 200 {
		t.Fatalf("/pool: %d %q, %v", status, body, err)
	}
	for _, w := range pool.Workers {
		pids = append(pids, w.PID)
		if w.Memory < 1<<20 || w.Age < 0 || w.Age > time.Hour.Seconds() || w.CPU < 0 || w.CPU > w.Age+1 {
			t.Errorf("worker %+v: that can't be a Python started by this test", w)
		}
	}
	slices.Sort(pids)
	there := children(pool.Parent)
	slices.Sort(there)
	if len(pids) != 2 || !slices.Equal(pids, there) || !slices.Contains(pids, pool.Answers) || pool.Served < 1 {
		t.Errorf("/pool has %+v; fpmd's children are %v", pool, there)
	}
	return pids
}

// endBy ends the demo by sig and looks for what is left.
func (d *demo) endBy(sig syscall.Signal, all bool) {
	t := d.t
	t.Helper()
	family := children(d.cmd.Process.Pid)
	if len(family) < 3 {
		t.Errorf("below the demo are %v, want fpmd and two workers", family)
	}
	target := d.cmd.Process.Pid
	if all {
		target = -target
	}
	if err := syscall.Kill(target, sig); err != nil {
		t.Fatal(err)
	}
	want := 128 + int(sig)
	if sig == syscall.SIGINT { // else make would call it an error
		want = 0
	}
	if code := d.waitExit(); code != want {
		t.Errorf("exit code %d, want %d", code, want)
	}
	if left := slices.DeleteFunc(family, func(pid int) bool { return !alive(pid) }); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if c, err := net.Dial("tcp", d.addr); err == nil {
		c.Close()
		t.Errorf("somebody still listens on %s", d.addr)
	}
	d.nothingLeft()
}

// nothingLeft looks for files that the demo made.
func (d *demo) nothingLeft() {
	d.t.Helper()
	if left, err := os.ReadDir(d.temp); err != nil || len(left) > 0 {
		d.t.Errorf("left in TMPDIR: %v, %v", left, err)
	}
	if cache, err := os.Stat(filepath.Join(d.clone, "examples/demo/__pycache__")); !os.IsNotExist(err) {
		d.t.Errorf("left in the checkout: %v, %v", cache, err)
	}
}

// Each path of the demo does what its page says of it.
func TestDemoPaths(t *testing.T) {
	v := visitors(t)[0]
	d := startDemo(t, v, checkout(t, v))
	for _, ask := range []struct {
		path   string
		status int
		part   string
	}{
		{"/hello", 200, "Hello from worker "},
		{"/pool", 200, `{"answers": `},
		{"/env?q=1", 200, "QUERY_STRING='q=1'\n"},
		{"/slow?s=0", 200, " answers after 0 s."},
		{"/slow?s=nan", 400, "a number of seconds"},
		{"/slow?s=-1", 400, "a number of seconds"},
		{"/slow?s=1e400", 400, "a number of seconds"},
		{"/boom", 500, ""},
		{"/elsewhere", 404, "/hello"},
	} {
		status, body := get(t, "http://"+d.addr+ask.path)
		if status != ask.status || !strings.Contains(body, ask.part) {
			t.Errorf("%s: %d %q, want %d and %q", ask.path, status, body, ask.status, ask.part)
		}
		if !strings.HasSuffix(body, "\n") { // the prompt of who asks with curl would stand behind it
			t.Errorf("%s: no newline at the end of %q", ask.path, body)
		}
	}
	leaveAfter(t, "http://"+d.addr+"/stream", regexp.MustCompile(`^1: worker \d+, `))
}

// A demo on an address that is taken says so, says what to do, and leaves
// nothing behind.
func TestDemoAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	v := visitors(t)[0]
	d := launchDemo(t, v, checkout(t, v), l.Addr().String())
	if code := d.waitExit(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	for _, part := range []string{d.addr + ": bind: address already in use: another process listens there: stop it, or want another ADDR\n", "If the address is in use: make demo DEMO_ADDR="} {
		if !strings.Contains(d.log.String(), part) {
			t.Errorf("no %q in\n%s", part, d.log.String())
		}
	}
	d.nothingLeft()
}

// A demo is one that runs: the process is its script, above fpmd.
type demo struct {
	*process
	addr  string
	clone string
	temp  string // its TMPDIR
}

// checkout makes one of the files that the demo needs, and bin/fpmd. Its
// folder's name has what a shell, TOML and a configuration's variables mistake.
func checkout(t *testing.T, v visitor) (clone string) {
	t.Helper()
	clone = filepath.Join(appDir(t), `a "clone" of $HOME`)
	if err := os.CopyFS(filepath.Join(clone, "examples/demo"), os.DirFS("../../examples/demo")); err != nil {
		t.Fatal(err)
	}
	if v.account != "" { // so that what keeps the checkout clean is the demo, not permissions
		uid, gid := ids(t, v.account)
		if err := os.Chown(filepath.Join(clone, "examples/demo"), uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(clone, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	buildFpmd(t, filepath.Join(clone, "bin"))
	if err := os.Chmod(clone, v.mode); err != nil {
		t.Fatal(err)
	}
	return clone
}

func ids(t *testing.T, account string) (uid, gid int) {
	t.Helper()
	who, err := user.Lookup(account)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ = strconv.Atoi(who.Uid)
	gid, _ = strconv.Atoi(who.Gid)
	return uid, gid
}

// startDemo starts the demo as v and waits until it says what to try.
func startDemo(t *testing.T, v visitor, clone string) *demo {
	t.Helper()
	addr := freeAddr(t)
	d := launchDemo(t, v, clone, addr)
	d.waitLog("The demo is at  http://" + addr + "/")
	return d
}

// launchDemo runs what make demo runs, as v and in a process group of its own.
func launchDemo(t *testing.T, v visitor, clone, addr string) *demo {
	t.Helper()
	dir := appDir(t)
	d := &demo{&process{t: t, dir: dir, exited: make(chan struct{})}, addr, clone, filepath.Join(dir, "tmp")}
	if err := os.Mkdir(d.temp, 0o755); err != nil {
		t.Fatal(err)
	}
	d.cmd = exec.Command("bash", "examples/demo/run.sh", "bin/fpmd")
	d.cmd.Dir = clone
	d.cmd.Env = append(d.cmd.Environ(), "DEMO_ADDR="+addr, "TMPDIR="+d.temp)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if v.account != "" {
		uid, gid := ids(t, v.account)
		d.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(d.temp, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { d.err = d.cmd.Wait(); close(d.exited) }() // ends with the demo, which the cleanup sees to
	t.Cleanup(func() {
		select {
		case <-d.exited:
		default:
			d.cmd.Process.Signal(syscall.SIGTERM)
			d.waitExit()
		}
		if t.Failed() {
			t.Logf("the demo:\n%s", d.log.String())
		}
	})
	return d
}
