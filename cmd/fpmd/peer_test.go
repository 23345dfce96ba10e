package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Members of control_group, and nobody else besides root and fpmd's own user, may use the control socket, even if
// somebody opens it to all, and also when it had to be made again.
func TestControlGroup(t *testing.T) {
	needRoot(t, "asks as other users")
	const group, gid = "daemon", 1
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), helloApp)
	d := serve(t, dir, strings.Replace(wsgiPool(dir, "workers = 1"), "[supervisor]\n", "[supervisor]\ncontrol_group = \""+group+"\"\n", 1))
	program := plainBinary(t, dir)
	many := []uint32{gid}
	for i := range uint32(200) {
		many = append(many, 5000+i)
	}
	for name, c := range map[string]struct {
		as   syscall.Credential
		code int
	}{
		"a member":                       {syscall.Credential{Uid: uint32(plainUser), Gid: uint32(plainUser), Groups: []uint32{gid}}, 0},
		"a member of many groups":        {syscall.Credential{Uid: uint32(plainUser), Gid: uint32(plainUser), Groups: many}, 0},
		"one whose own group it is":      {syscall.Credential{Uid: uint32(plainUser), Gid: gid}, 0},
		"another user":                   {syscall.Credential{Uid: uint32(plainUser), Gid: uint32(plainUser)}, exitUnavailable},
		"another user, of many groups":   {syscall.Credential{Uid: uint32(plainUser), Gid: uint32(plainUser), Groups: many[1:]}, exitUnavailable},
		"root, who is not in that group": {syscall.Credential{}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			for _, mode := range []os.FileMode{0o660, 0o666} {
				if err := os.Chmod(d.control(), mode); err != nil {
					t.Fatal(err)
				}
				ask := exec.Command(program, "scale", "--socket", d.control(), "app", "1")
				ask.Env = append(os.Environ(), "FPMD_TEST_MAIN=1")
				ask.SysProcAttr = &syscall.SysProcAttr{Credential: &c.as}
				ask.Dir = "/"
				said, _ := ask.CombinedOutput() // its exit code is looked at
				if code := ask.ProcessState.ExitCode(); code != c.code {
					t.Errorf("mode %#o: exit code %d, want %d: %s", mode, code, c.code, said)
				}
			}
		})
	}
	if n, want := strings.Count(d.log.String(), "msg=\"pool scaled\""), 8; n != want {
		t.Errorf("it was scaled %d times, want %d", n, want)
	}
	if err := os.Remove(d.control()); err != nil {
		t.Fatal(err)
	}
	var fi fs.FileInfo
	d.wait("the socket", func() bool {
		var err error
		fi, err = os.Stat(d.control())
		return !errors.Is(err, fs.ErrNotExist)
	})
	if st := fi.Sys().(*syscall.Stat_t); fi.Mode().Perm() != 0o660 || st.Gid != gid || st.Uid != 0 {
		t.Errorf("made again, it has mode %v, user %d, group %d", fi.Mode(), st.Uid, st.Gid)
	}
}
