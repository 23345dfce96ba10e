package manager

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// A Unix socket has owner, group and mode from the moment that it has its name, in
// the place of what a dead process left; one that is in use stays.
func TestListenUnix(t *testing.T) {
	owner, group := os.Geteuid(), os.Getegid()
	if owner == 0 {
		owner, group = 65534, 65533
	}
	path := filepath.Join(t.TempDir(), "sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()

	cfg := &PoolConfig{Name: "app", ListenOwner: owner, ListenGroup: group, ListenMode: 0o624, ListenBacklog: 8}
	a := Address{Network: "unix", Address: path}
	l, err := listen(a, cfg)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode() != os.ModeSocket|0o624 {
		t.Errorf("mode %v", fi.Mode())
	}
	if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != owner || int(st.Gid) != group {
		t.Errorf("belongs to %d and %d, want %d and %d", st.Uid, st.Gid, owner, group)
	}
	if _, err := listen(a, cfg); err == nil || !strings.Contains(err.Error(), "another process is listening there") {
		t.Errorf("listening a second time: %v", err)
	}
	l.close()
	wantEmpty(t, filepath.Dir(path))
}

// A link in the socket's place is not followed, and what it points to stays as it is.
func TestDressFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	cfg := &PoolConfig{ListenOwner: -1, ListenGroup: -1, ListenMode: 0o666}
	for _, path := range []string{link, target} {
		if _, err := dress(path, cfg); err == nil {
			t.Errorf("%s is dressed as a socket", path)
		}
	}
	if fi, err := os.Stat(target); err != nil || fi.Mode() != 0o600 {
		t.Errorf("the target is %v now, %v", fi.Mode(), err)
	}
}

// The runtime folder is one where nobody else can put a socket in a worker's place.
func TestRuntimeDirIsOurs(t *testing.T) {
	claim := func(dir string) error {
		m := &Manager{log: slog.New(slog.DiscardHandler), socks: filepath.Join(dir, "workers")}
		defer m.release()
		return m.claim(dir)
	}
	dir := filepath.Join(t.TempDir(), "run")
	if err := errors.Join(oursOnceMade(dir), oursOnceMade(dir+"/below"), claim(dir)); err != nil {
		t.Error(err)
	}
	parent := filepath.Dir(dir)
	if err := os.Chmod(parent, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := oursOnceMade(dir + "2"); err == nil || !strings.Contains(err.Error(), "others may write in the folder that it is in (mode 0777)") {
		t.Errorf("one to be made where all may write: %v", err)
	}
	if err := claim(dir); err == nil || !strings.Contains(err.Error(), "others may write in the folder that it is in (mode 0777)") {
		t.Errorf("in a folder where all may write: %v", err)
	}
	if err := os.Chmod(parent, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if err := claim(dir); err != nil {
		t.Errorf("in a folder such as /tmp: %v", err)
	}
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if err := claim(dir); err == nil || !strings.Contains(err.Error(), "others may write there (mode 01777)") {
		t.Errorf("a folder where all may write: %v", err)
	}
	if os.Geteuid() != 0 {
		return // only root can make a folder that is somebody else's
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, 65534, -1)); err != nil {
		t.Fatal(err)
	}
	if err := claim(dir); err == nil || !strings.Contains(err.Error(), "it belongs to user 65534") {
		t.Errorf("a folder of somebody else's: %v", err)
	}
}

// A log that can't be written is complained of once, on standard error.
func TestLogThatCannotBeWritten(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stderr := os.Stderr
	os.Stderr = w
	defer func() { os.Stderr = stderr }()

	log, logs, err := OpenLogs(Supervisor{Log: "/dev/full"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("one")
	log.Info("two")
	logs.Close()
	w.Close()
	said, _ := io.ReadAll(r)
	if want := "fpmd: write the log: write /dev/full: " + unix.ENOSPC.Error(); strings.Count(string(said), want) != 1 {
		t.Errorf("said %q, want %q once", said, want)
	}
}

// A line that was cut is ended before the next one; whole lines are not.
func TestLogGoesOnWithAWholeLine(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stderr := os.Stderr
	os.Stderr = w
	defer func() { os.Stderr = stderr }()

	disk := &smallDisk{room: 10}
	f := &lineFile{name: "/var/log/x", w: disk}
	for _, line := range []string{"one\n", "two\n", "three\n", "four\n"} { // of "three" there is room for "th"
		f.Write([]byte(line))
	}
	disk.room = 9
	f.Write([]byte("five\n"))
	f.Write([]byte("sixth\n")) // for three of it, after five and the end of "th"
	disk.room = 100
	f.Write([]byte("7\n"))
	f.Write([]byte("8\n"))
	if got, want := disk.String(), "one\ntwo\nth\nfive\nsix\n7\n8\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	w.Close()
	said, _ := io.ReadAll(r)
	for _, want := range []string{"/var/log/x is written again, 2 lines were lost\n", "/var/log/x is written again, 1 lines were lost\n"} {
		if strings.Count(string(said), want) != 1 {
			t.Errorf("said %q, want %q once", said, want)
		}
	}
}

// A line that was cut is not ended in a file that is new: that begins with a whole line. One that
// is opened again as it was goes on as before.
func TestReopenAfterACutLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f := &lineFile{name: path}
	if err := os.WriteFile(path, []byte("cu"), 0o600); err != nil {
		t.Fatal(err)
	}
	opened := func(want string) {
		t.Helper()
		old, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		f.w, f.c, f.torn = old, old, true
		if err := f.reopen(); err != nil {
			t.Fatal(err)
		}
		defer f.close()
		if _, err := f.Write([]byte("whole\n")); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("%q, %v; want %q", b, err, want)
		}
	}
	opened("cu\nwhole\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	opened("whole\n")
}

// A smallDisk has room for so many bytes.
type smallDisk struct {
	strings.Builder
	room int
}

func (d *smallDisk) Write(b []byte) (int, error) {
	n := min(len(b), d.room)
	d.room -= n
	d.Builder.Write(b[:n])
	if n < len(b) {
		return n, unix.ENOSPC
	}
	return n, nil
}

// Lines of an access log wait for others, but not for long, and not when there are many; a
// line of the log takes them along, so that all stay in order.
func TestAccessLogLinesAreKeptForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var file strings.Builder
		f := &lineFile{w: &file}
		wrote := func(want string) {
			t.Helper()
			synctest.Wait()
			f.mu.Lock()
			defer f.mu.Unlock()
			if file.String() != want {
				t.Errorf("%d bytes are written, want %d", file.Len(), len(want))
			}
		}
		f.keep([]byte("one\n"))
		time.Sleep(flushAfter - 1)
		wrote("")
		time.Sleep(time.Nanosecond)
		wrote("one\n")
		f.keep([]byte("two\n"))
		f.Write([]byte("log\n"))
		wrote("one\ntwo\nlog\n")
		f.keep([]byte("three\n"))
		many := strings.Repeat("x", keptLines) + "\n"
		f.keep([]byte(many))
		wrote("one\ntwo\nlog\nthree\n" + many)
	})
}

// Logs that are opened again wait for nobody who may come to read a pipe; it is written on as it was.
func TestReopenPipeThatNobodyReads(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "log")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	reader := func() *os.File {
		r, err := os.OpenFile(pipe, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := reader()
	log, logs, err := OpenLogs(Supervisor{Log: pipe, LogFormat: "text"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	r.Close()
	reopened := make(chan error, 1)
	go func() { reopened <- logs.Reopen() }() // ends at once
	select {
	case err = <-reopened:
	case <-time.After(10 * time.Second):
		reader().Close() // lets it go on
		t.Fatal("it waits for a reader")
	}
	if !errors.Is(err, unix.ENXIO) || !strings.Contains(err.Error(), pipe) {
		t.Errorf("opened again: %v, want that nobody reads %s", err, pipe)
	}
	for range 2 { // as it was, and opened again for the new reader
		r = reader()
		log.Info("still here")
		b := make([]byte, 1000)
		if n, err := r.Read(b); err != nil || !strings.Contains(string(b[:n]), "still here") {
			t.Errorf("read %q, %v", b[:n], err)
		}
		if err := logs.Reopen(); err != nil {
			t.Error(err)
		}
		r.Close()
	}
}

// A log that nobody uses any more is closed, and removed where it was made for nobody; one that has lines, or had, or is another's by now, stays.
func TestUnusedLogs(t *testing.T) {
	for _, tt := range []struct {
		what  string
		make  bool // before it is opened
		then  func(t *testing.T, ls *Logs, a *accessLog)
		stays bool
	}{
		{"nothing written", false, func(*testing.T, *Logs, *accessLog) {}, false},
		{"was there", true, func(*testing.T, *Logs, *accessLog) {}, true},
		{"written", false, func(_ *testing.T, _ *Logs, a *accessLog) { a.log.Info("line") }, true},
		{"truncated", false, func(t *testing.T, _ *Logs, a *accessLog) {
			a.log.Info("line")
			a.file.flush()
			if err := os.Truncate(a.file.name, 0); err != nil {
				t.Error(err)
			}
		}, true},
		{"rotated", false, func(t *testing.T, ls *Logs, a *accessLog) {
			if err := errors.Join(os.Rename(a.file.name, a.file.name+".1"), os.WriteFile(a.file.name, nil, 0o600), ls.Reopen()); err != nil {
				t.Error(err)
			}
		}, true},
		{"another's", false, func(t *testing.T, _ *Logs, a *accessLog) {
			if err := errors.Join(os.Remove(a.file.name), os.WriteFile(a.file.name, nil, 0o600)); err != nil {
				t.Error(err)
			}
		}, true},
		{"used again", false, func(t *testing.T, ls *Logs, a *accessLog) {
			ls.release(a)
			if err := os.Rename(a.file.name, a.file.name+".1"); err != nil {
				t.Error(err)
			}
			again, err := ls.access(&PoolConfig{AccessLog: a.file.name}, Supervisor{})
			if err != nil {
				t.Error(err)
				return
			}
			again.log.Info("line")
		}, true},
	} {
		t.Run(tt.what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "access.log")
			if tt.make {
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			ls := &Logs{files: make(map[string]*lineFile)}
			a, err := ls.access(&PoolConfig{AccessLog: path}, Supervisor{})
			if err != nil {
				t.Fatal(err)
			}
			tt.then(t, ls, a)
			ls.release(a)
			ls.sweep(time.Now().Add(unusedFor))
			closed := func() bool {
				a.file.mu.Lock()
				defer a.file.mu.Unlock()
				return a.file.c == nil
			}
			for end := time.Now().Add(10 * time.Second); !closed(); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("it is not closed")
				}
			}
			if _, err := os.Lstat(path); (err == nil) != tt.stays {
				t.Errorf("afterwards the file: %v, want it there: %v", err, tt.stays)
			}
			if err := ls.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A pipe whose reader does not read holds up who writes to it, and nobody else: not the sweep of others, nor their opening, nor a reload.
func TestPipeThatIsFullHoldsUpNobody(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	ls := &Logs{files: make(map[string]*lineFile)}
	a, err := ls.access(&PoolConfig{AccessLog: pipe}, Supervisor{})
	if err != nil {
		t.Fatal(err)
	}
	var held sync.WaitGroup
	held.Go(func() { _, _ = a.file.Write(bytes.Repeat([]byte("line\n"), 1<<16)) }) // ends when it is read
	for a.file.mu.TryLock() {
		a.file.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	held.Go(func() { _ = ls.Reopen() }) // so does this
	ls.sweep(time.Now())
	b, err := ls.access(&PoolConfig{AccessLog: filepath.Join(dir, "b.log")}, Supervisor{})
	if err != nil {
		t.Fatal(err)
	}
	ls.release(a)
	ls.release(b)
	ls.sweep(time.Now().Add(unusedFor))
	if len(ls.files) != 0 {
		t.Errorf("%d logs are left", len(ls.files))
	}
	go io.Copy(io.Discard, reader) // ends with the reader
	held.Wait()
	reader.Close()
}
