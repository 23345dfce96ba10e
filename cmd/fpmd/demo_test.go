package main

import (
	"net"
	"net/http"
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
		for _, end := range []struct {
			name string
			sig  syscall.Signal
			all  bool // the whole foreground group, as a terminal does it
		}{{"^C", syscall.SIGINT, true}, {"INT", syscall.SIGINT, false}, {"TERM", syscall.SIGTERM, false}} {
			t.Run(v.name+", "+end.name, func(t *testing.T) {
				d, addr, temp := startDemo(t, v)
				base := "http://" + addr

				status, page := get(t, base+"/")
				shown := regexp.MustCompile(`Worker <b>(\d+)</b>(?s:.*)<b>(\w+)</b>who it is`).FindStringSubmatch(page)
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

				killed, _ := strconv.Atoi(shown[1])
				if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				if status, body := get(t, base+"/hello"); status != 200 || strings.Contains(body, "worker "+shown[1]+",") {
					t.Errorf("after worker %d was killed: %d %q", killed, status, body)
				}
				d.waitLogTimes("worker ready", 3) // two, and the one in place of the killed

				family := children(d.cmd.Process.Pid)
				if len(family) < 3 {
					t.Errorf("below the demo are %v, want fpmd and two workers", family)
				}
				target := d.cmd.Process.Pid
				if end.all {
					target = -target
				}
				if err := syscall.Kill(target, end.sig); err != nil {
					t.Fatal(err)
				}
				if code := d.waitExit(); code != 128+int(end.sig) {
					t.Errorf("exit code %d, want %d", code, 128+int(end.sig))
				}
				if left := slices.DeleteFunc(family, func(pid int) bool { return !alive(pid) }); len(left) > 0 {
					t.Errorf("processes are left: %v", left)
				}
				if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
					t.Errorf("left in TMPDIR: %v, %v", left, err)
				}
				if c, err := net.Dial("tcp", addr); err == nil {
					c.Close()
					t.Errorf("somebody still listens on %s", addr)
				}
			})
		}
	}
}

// A demo on an address that is taken says so, says what to do, and leaves
// nothing behind.
func TestDemoAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, temp := launchDemo(t, visitors(t)[0], l.Addr().String())
	if code := d.waitExit(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	for _, part := range []string{l.Addr().String() + ": bind: address already in use", "make demo DEMO_ADDR="} {
		if !strings.Contains(d.log.String(), part) {
			t.Errorf("no %q in\n%s", part, d.log.String())
		}
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left in TMPDIR: %v, %v", left, err)
	}
}

// startDemo starts the demo as v and waits until it says what to try.
func startDemo(t *testing.T, v visitor) (d *process, addr, temp string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = l.Addr().String()
	l.Close()
	d, temp = launchDemo(t, v, addr)
	d.waitLog("The demo is at  http://" + addr + "/")
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return d, addr, temp
}

// launchDemo runs what make demo runs, from a checkout of the files that it
// needs, as v and in a process group of its own. All that it makes is in temp.
func launchDemo(t *testing.T, v visitor, addr string) (d *process, temp string) {
	t.Helper()
	dir := appDir(t)
	clone, temp := filepath.Join(dir, "clone"), filepath.Join(dir, "tmp")
	if err := os.CopyFS(filepath.Join(clone, "examples/demo"), os.DirFS("../../examples/demo")); err != nil {
		t.Fatal(err)
	}
	fpmd := buildFpmd(t, clone)
	if err := os.Chmod(clone, v.mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(temp, 0o755); err != nil {
		t.Fatal(err)
	}

	d = &process{t: t, dir: dir, exited: make(chan struct{})}
	d.cmd = exec.Command("bash", "examples/demo/run.sh", fpmd)
	d.cmd.Dir = clone
	d.cmd.Env = append(d.cmd.Environ(), "DEMO_ADDR="+addr, "TMPDIR="+temp)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if v.account != "" {
		who, err := user.Lookup(v.account)
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.ParseUint(who.Uid, 10, 32)
		gid, _ := strconv.ParseUint(who.Gid, 10, 32)
		d.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(temp, int(uid), int(gid)); err != nil {
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
	return d, temp
}
