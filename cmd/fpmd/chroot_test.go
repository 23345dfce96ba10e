package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// goJail makes a folder to chroot to, in which there is nothing but a Go worker, /bin/app.
func goJail(t *testing.T) string {
	t.Helper()
	needRoot(t, "changes the root folder")
	jail, err := os.MkdirTemp("/var", "fpmd-test-jail-") // the way to it is root's alone, as /tmp is not
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(jail) })
	for _, dir := range []string{"", "bin", "srv"} {
		if err := os.MkdirAll(filepath.Join(jail, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(jail, 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(jail, "bin/app"), "../../bench/goapp")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return jail
}

// A worker with a chroot has that for /: its program, found on PATH, and its directory are in it, and there
// need be nothing else, not even /proc. It is the pool's user, and has nothing open that leads out. check
// looks in there as well, and --boot starts it.
func TestChroot(t *testing.T) {
	jail := goJail(t)
	dir := appDir(t)
	config := poolConfig(dir, fmt.Sprintf("command = [\"app\"]\ndirectory = \"/srv\"\nworkers = 1\nchroot = %q\nenv_file = %q\n", jail, filepath.Join(dir, "env")))
	write(t, filepath.Join(dir, "env"), "SECRET=hunter2\n")
	d := serve(t, dir, config)
	if answer, err := askPath(d.sock(), "/hello"); err != nil || !strings.HasSuffix(answer, "Hello, World!\n") {
		t.Errorf("%q, %v", answer, err)
	}
	workers := children(d.cmd.Process.Pid)
	if len(workers) != 1 {
		t.Fatalf("workers are %v, want one", workers)
	}
	proc := fmt.Sprintf("/proc/%d/", workers[0])
	for link, want := range map[string]string{"root": jail, "cwd": jail + "/srv", "exe": jail + "/bin/app"} {
		if got, err := os.Readlink(proc + link); err != nil || got != want {
			t.Errorf("the worker's %s is %q, %v, want %s", link, got, err, want)
		}
	}
	if status, err := os.ReadFile(proc + "status"); err != nil || !strings.Contains(string(status), "Uid:\t65534\t65534\t65534\t65534\n") {
		t.Errorf("the worker is not nobody: %v\n%s", err, status)
	}
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if fi, err := os.Stat(proc + "fd/" + fd.Name()); err == nil && fi.IsDir() {
			t.Errorf("it has a folder open, by which to leave: %s", fd.Name())
		}
	}
	if environ, err := os.ReadFile(proc + "environ"); err != nil || !strings.Contains(string(environ), "SECRET=hunter2\x00") {
		t.Errorf("it does not have the variable of an env_file outside: %v", err)
	}
	if said, code := d.told("check", "--boot"); code != 0 || !strings.Contains(said, "a worker was ready") {
		t.Errorf("check --boot: exit code %d\n%s", code, said)
	}
	write(t, filepath.Join(dir, "fpmd.toml"), strings.Replace(config, `"app"`, `"/bin/sh"`, 1))
	if said, code := d.told("check"); code != exitConfig || !strings.Contains(said, "/bin/sh: no such file or directory within chroot = "+jail) {
		t.Errorf("a program that is outside alone: exit code %d\n%s", code, said)
	}
}

// A folder that others could change is no place to have for /.
func TestChrootIsRootsAlone(t *testing.T) {
	jail := goJail(t)
	dir := appDir(t)
	config := func(chroot string) string {
		return poolConfig(dir, fmt.Sprintf("command = [\"app\"]\nchroot = %q\n", chroot))
	}
	link := jail + ".link"
	if err := os.Symlink(jail, link); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(link)
	for name, tt := range map[string]struct {
		chroot string
		change func() error
		want   string
	}{
		"as it should be":     {jail, func() error { return nil }, ""},
		"a link":              {link, func() error { return nil }, "is no folder"},
		"gone":                {jail + "/nowhere", func() error { return nil }, "no such file or directory"},
		"another's":           {jail, func() error { return os.Chown(jail, 65534, 0) }, "belongs to user 65534"},
		"others may write":    {jail, func() error { return os.Chmod(jail, 0o777) }, "others may write in " + jail},
		"the way is writable": {jail + "/bin", func() error { return os.Chmod(jail, 0o777) }, "others may write in " + jail},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tt.change(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "fpmd.toml")
			write(t, path, config(tt.chroot))
			err := run(t.Context(), []string{"check", "-c", path}, new(lockedBuffer), new(lockedBuffer))
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("check says %v, want %q", err, tt.want)
			}
			if err := os.Chown(jail, 0, 0); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(jail, 0o755); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A Python application needs its interpreter in its chroot, and no /proc; the host is not in its way, nor in its
// tracebacks.
func TestChrootOfPython(t *testing.T) {
	jail := goJail(t)
	dir := appDir(t)
	write(t, filepath.Join(jail, "srv/app.py"), `
import os, sys
import beside
def application(environ, start_response):
    if environ["PATH_INFO"] == "/raise": raise ValueError("on purpose")
    start_response("200 OK", [("Content-Type", "text/plain")])
    facts = sorted(os.listdir("/")), os.getcwd(), os.getuid(), sys.path[0], "" in sys.path, sys.argv, [f for f in sys.meta_path if "Host" in str(f)]
    return [" ".join(map(str, facts)).encode()]
`)
	write(t, filepath.Join(jail, "srv/beside.py"), "")
	setup := fmt.Sprintf("cd %s; mkdir usr; mount --bind /usr usr; for d in lib lib64; do ln -s usr/$d; done; cd /", jail)
	d := serveIn(t, setup, dir, poolConfig(dir, fmt.Sprintf("wsgi = \"app:application\"\ndirectory = \"/srv\"\nworkers = 1\nchroot = %q\npython = \"/usr/bin/python3\"\n", jail)))
	const want = "['bin', 'lib', 'lib64', 'srv', 'usr'] /srv 65534 /srv False ['fpmd'] []"
	if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "\r\n\r\n"+want) {
		t.Errorf("%q, %v, want %q", answer, err, want)
	}
	if answer, err := askPath(d.sock(), "/raise"); err != nil || !strings.HasPrefix(answer, "Status: 500") {
		t.Errorf("an exception: %q, %v", answer, err)
	}
	d.waitLog("ValueError: on purpose")
	if log := d.log.String(); strings.Contains(log, "fpmd-host/") || !strings.Contains(log, "/srv/app.py") {
		t.Errorf("the traceback has frames of the host, or none of the application")
	}
}
