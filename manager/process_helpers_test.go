package manager

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fpmd/protocol"
)

// ready is a shell's way of saying that it is ready for one exchange.
const ready = `echo '1|1|unix|1|exchange' >&5; exec 5>&-; `

// shell is a launch of a shell that runs script, as nobody when we are root.
func shell(t *testing.T, script string) launch {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l := launch{
		pool:         "blog",
		id:           3,
		argv:         []string{"sh", "-c", script},
		dir:          "/",
		env:          []string{"PATH=" + os.Getenv("PATH"), "GREETING=good day"},
		umask:        0o027,
		socketDir:    dir,
		startTimeout: time.Hour, // what waits for it would hang
		logger:       slog.New(slog.DiscardHandler),
	}
	if os.Geteuid() == 0 {
		l.cred = &Credential{UID: 65534, GID: 65534, Groups: []uint32{4242, 4243}, Name: "nobody"}
	}
	return l
}

// startWorker starts l, and sees to its end when the test is over.
func startWorker(t *testing.T, l launch) *process {
	t.Helper()
	p, err := start(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		<-p.done()
		if err := p.page.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
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

// A printed is one line of a worker as it is logged.
type printed struct {
	Msg, Stream string
	Worker, Pid int
}

// logInto is a logger that sends its records to a channel, which holds plenty.
func logInto(records chan<- printed) *slog.Logger {
	return slog.New(slog.NewJSONHandler(recordWriter(records), nil))
}

type recordWriter chan<- printed

func (w recordWriter) Write(b []byte) (int, error) {
	var p printed
	if err := json.Unmarshal(b, &p); err != nil {
		panic(err)
	}
	w <- p
	return len(b), nil
}

// nextPid reads the number of a process, which a worker has printed alone on a line.
func nextPid(t *testing.T, records <-chan printed) int {
	t.Helper()
	pid, err := strconv.Atoi((<-records).Msg)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// await waits until cond holds.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// A watched is a process that need not be our child.
type watched struct{ pid, pidfd int }

func watchPid(t *testing.T, pid int) watched {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("process %d: %v", pid, err)
	}
	t.Cleanup(func() {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		_ = unix.Close(fd)
	})
	return watched{pid, fd}
}

// awaitEnd waits for the process to end.
func (w watched) awaitEnd(t *testing.T) {
	t.Helper()
	if !w.ended(20_000) {
		t.Errorf("process %d is still alive", w.pid)
	}
}

func (w watched) ended(ms int) bool {
	fds := []unix.PollFd{{Fd: int32(w.pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, ms)
		if err != unix.EINTR {
			return n == 1
		}
	}
}

// procStatus is /proc/PID/status.
func procStatus(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

// descriptors says what each descriptor of a process is open on.
func descriptors(t *testing.T, pid int) map[int]string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	fds := map[int]string{}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // ReadDir's own, when it is our process
		}
		fd, _ := strconv.Atoi(e.Name())
		fds[fd], _, _ = strings.Cut(target, ":[")
	}
	return fds
}

// wantEmpty says what is left in a folder.
func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		t.Errorf("%s is left in %s", e.Name(), dir)
	}
}

// echoWorker is a worker that sends back what it gets, on two connections.
func echoWorker() int {
	fd := func(name string) *os.File {
		n, _ := strconv.Atoi(os.Getenv(name))
		return os.NewFile(uintptr(n), name)
	}
	ln, err := net.FileListener(fd(protocol.EnvListen))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	handshake := fd(protocol.EnvHandshake)
	fmt.Fprintln(handshake, "1|1|unix|2|exchange")
	handshake.Close()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return 0
		}
		go func() { // until the supervisor closes it
			_, _ = io.Copy(conn, conn)
			conn.Close()
		}()
	}
}
