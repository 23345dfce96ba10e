package manager

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// claimed makes a Manager without pools, or with those given, for what it owns in the file system.
func claimed(t *testing.T, dir string, log io.Writer, pools ...*PoolConfig) *Manager {
	t.Helper()
	m, err := New(&Config{Supervisor: Supervisor{RuntimeDir: dir}, Pools: pools},
		Options{Logger: slog.New(slog.NewTextHandler(log, nil)), Logs: &Logs{}})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A runtime folder that was removed, and that another fpmd has by now, is left to it.
func TestRuntimeDirOfAnother(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	var log bytes.Buffer
	first := claimed(t, dir, &log)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	second := claimed(t, dir, io.Discard)
	for range 3 {
		first.restore()
	}
	if n := strings.Count(log.String(), "another fpmd runs with it"); n != 1 {
		t.Errorf("it was complained of %d times, want 1:\n%s", n, &log)
	}
	first.Stop(context.Background())
	if missing(second.socks) || !second.holdsRuntimeDir() {
		t.Error("the end of the first has removed what is the second's")
	}
	second.Stop(context.Background())
	if !missing(second.socks) {
		t.Error("the second has left its folder behind")
	}
}

// In the place of a runtime folder that was removed, a link of somebody else is not followed.
func TestRuntimeDirIsNoLinkOfOthers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("only root can make somebody else's link: what follows holds anyway")
	}
	parent := t.TempDir()
	if err := os.Chmod(parent, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(parent, "run")
	var log bytes.Buffer
	m := claimed(t, dir, &log)
	defer m.Stop(context.Background())
	elsewhere := t.TempDir()
	precious := filepath.Join(elsewhere, "workers", "precious")
	if err := os.Mkdir(filepath.Dir(precious), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.WriteFile(precious, nil, 0o600), os.RemoveAll(dir), os.Symlink(elsewhere, dir)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if os.Getuid() == 0 {
		if err := os.Lchown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		m.restore()
		if missing(precious) {
			t.Error("removed through a link")
		}
		if !strings.Contains(log.String(), "it is a link of user 65534") {
			t.Errorf("the log says\n%s", &log)
		}
	}
}

// A runtime folder that can't be made again is complained of once, and keeps
// no socket from being made again.
func TestSocketsWithoutRuntimeDir(t *testing.T) {
	top := t.TempDir()
	dir, sock := filepath.Join(top, "run"), filepath.Join(top, "app.sock")
	pool := &PoolConfig{Name: "app", Listen: []Address{{Network: "unix", Address: sock}}, ListenOwner: -1, ListenGroup: -1, ListenMode: 0o600, ListenBacklog: 8}
	var log bytes.Buffer
	m := claimed(t, dir, &log, pool)
	defer m.Stop(context.Background())
	for _, err := range []error{os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600), os.Remove(sock)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		m.restore()
	}
	if missing(sock) {
		t.Error("the socket is not made again")
	}
	if n := strings.Count(log.String(), "runtime_dir was removed"); n != 1 {
		t.Errorf("complained of %d times, want 1:\n%s", n, &log)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	m.restore()
	if missing(m.socks) {
		t.Error("the folder is not made again when it can be")
	}
}

// Complaints of a socket that can't be made again are said once, and again when they come again.
func TestSocketComplaints(t *testing.T) {
	top := t.TempDir()
	folder := filepath.Join(top, "sockets")
	sock := filepath.Join(folder, "app.sock")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	pool := &PoolConfig{Name: "app", Listen: []Address{{Network: "unix", Address: sock}}, ListenOwner: -1, ListenGroup: -1, ListenMode: 0o600, ListenBacklog: 8}
	var log bytes.Buffer
	m := claimed(t, filepath.Join(top, "run"), &log, pool)
	m.Start()
	defer m.Stop(context.Background())
	for said := 1; said <= 2; said++ {
		if err := os.RemoveAll(folder); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			m.restore()
		}
		if n := strings.Count(log.String(), "level=ERROR msg=\"socket was removed\""); n != said {
			t.Errorf("complained of %d times, want %d:\n%s", n, said, &log)
		}
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		m.restore()
		if missing(sock) {
			t.Error("the socket is not made again when it can be")
		}
	}
}

// A runtime folder that is a link may not be one that others can replace.
func TestRuntimeDirBehindALink(t *testing.T) {
	top := t.TempDir()
	real := filepath.Join(top, "run")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	for mode, wrong := range map[os.FileMode]bool{0o755: false, 0o777: true, 0o777 | os.ModeSticky: false} {
		folder := filepath.Join(t.TempDir(), "links")
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(folder, "run")
		if err := os.Symlink(real, link); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(folder, mode); err != nil {
			t.Fatal(err)
		}
		if err := oursAlone(link); (err != nil) != wrong {
			t.Errorf("%v: %v", mode, err)
		}
	}
}
