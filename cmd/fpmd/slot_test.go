package main

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fpmd/protocol"
	"fpmd/worker/python"
)

// A host is a real Python worker that a test talks to as the supervisor
// would, through a slot.
type host struct {
	t    *testing.T
	cmd  *exec.Cmd
	sock string
	page *protocol.Page
	log  lockedBuffer
	died chan struct{}
}

func startHost(t *testing.T, app string) *host {
	t.Helper()
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), app)
	archive, err := python.Archive()
	if err != nil {
		t.Fatal(err)
	}
	zip := filepath.Join(dir, "host.zip")
	if err := os.WriteFile(zip, archive, 0o644); err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, sock: filepath.Join(dir, "worker"), died: make(chan struct{})}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	lf, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	page, pf, err := protocol.NewPage()
	if err != nil {
		t.Fatal(err)
	}
	h.page = page
	t.Cleanup(func() { page.Close() })
	ready, readyW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lifeW.Close() })
	hf, err := os.Open(zip)
	if err != nil {
		t.Fatal(err)
	}
	files := []*os.File{lf, pf, readyW, lifeR, hf} // descriptors 3 to 7
	argv := python.Command(interpreter, "app:application", 7)
	h.cmd = exec.Command(argv[0], argv[1:]...)
	h.cmd.Dir = dir
	h.cmd.ExtraFiles = files
	h.cmd.Stdout, h.cmd.Stderr = &h.log, &h.log
	h.cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), protocol.MagicCookieKey + "=" + protocol.MagicCookieValue,
		protocol.EnvVersions + "=1", protocol.EnvListen + "=3", protocol.EnvPage + "=4", protocol.EnvHandshake + "=5",
		protocol.EnvLifeline + "=6", "FPMD_HOST_FD=7", protocol.EnvThreads + "=1", protocol.EnvPool + "=app",
		protocol.EnvWorkerID + "=1", protocol.EnvDebug + "=0", "FPMD_DIRECTORY=" + dir,
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	go func() { h.cmd.Wait(); close(h.died) }()
	t.Cleanup(func() {
		h.cmd.Process.Kill()
		<-h.died
		if t.Failed() {
			t.Logf("worker: %s", h.log.String())
		}
	})
	line, err := io.ReadAll(ready)
	if err != nil || string(line) != "1|1|unix|1|exchange\n" {
		t.Fatalf("handshake %q, %v: %s", line, err, h.log.String())
	}
	return h
}

func (h *host) dial() *net.UnixConn {
	h.t.Helper()
	nc, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: h.sock, Net: "unix"})
	if err != nil {
		h.t.Fatal(err)
	}
	return nc
}

// slot is a greeted slot.
func (h *host) slot() *protocol.Slot {
	h.t.Helper()
	s := protocol.NewSlot(0, h.page)
	if err := s.Connect(h.dial(), time.Now().Add(patience)); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(s.Close)
	return s
}

func send(s *protocol.Slot, path string, number uint64) {
	head := make([]byte, protocol.RequestHead)
	for _, kv := range [][2]string{{"REQUEST_METHOD", "GET"}, {"PATH_INFO", path}, {"SCRIPT_NAME", ""}, {"SERVER_NAME", "x"}, {"SERVER_PORT", "80"}, {"SERVER_PROTOCOL", "HTTP/1.1"}} {
		head = protocol.AppendPair(head, kv[0], kv[1])
	}
	s.Send(head, nil, true, number)
	s.SetDeadline(time.Now().Add(patience))
}

// noFrame leaves the room for the front's heads as it is.
type noFrame struct{}

func (noFrame) Frame([]byte, int) {}

func receive(s *protocol.Slot) (string, error) {
	b := new(protocol.Buffer)
	var out []byte
	for {
		a, err := s.Receive(b, noFrame{})
		out = append(out, a.Bytes...)
		if err != nil || a.Last || a.Cut {
			return string(out), err
		}
	}
}

const slotApp = `
import os, time
def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/sleep":
        print("begun", flush=True)
        time.sleep(float(os.environ.get("SLEEP", "1000")))
    if path == "/die":
        os.kill(os.getpid(), 9)
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/endless":
        def body():
            try:
                while True:
                    yield b"x" * 1000
            finally:
                print("closed", flush=True)
        return body()
    return [path.encode()]
`

func (h *host) waitLog(text string) {
	h.t.Helper()
	end := time.Now().Add(patience)
	for !strings.Contains(h.log.String(), text) {
		if time.Now().After(end) {
			h.t.Fatalf("the worker did not print %q", text)
		}
		time.Sleep(time.Millisecond)
	}
}

// An exchange that is abandoned in its answer ends the application's iterable;
// the worker greets the next connection then, and serves on it.
func TestSlotAbandonedWhileAnswering(t *testing.T) {
	h := startHost(t, slotApp)
	s := h.slot()
	send(s, "/endless", 1)
	if _, err := s.Receive(new(protocol.Buffer), noFrame{}); err != nil {
		t.Fatal(err)
	}
	if s.State() != protocol.SlotAnswering {
		t.Errorf("slot is %v", s.State())
	}
	s.Abandon()
	if err := s.Connect(h.dial(), time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	h.waitLog("closed")
	send(s, "/next", 2)
	if got, err := receive(s); err != nil || !strings.HasSuffix(got, "/next") {
		t.Errorf("%q, %v", got, err)
	}
}

// A worker that is stuck in an abandoned exchange greets nobody, though the
// kernel connects and takes bytes for it.
func TestSlotNotGreetedWhileStuck(t *testing.T) {
	h := startHost(t, slotApp)
	s := h.slot()
	send(s, "/sleep", 1)
	s.SetDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := receive(s); !errors.Is(err, protocol.ErrDeadline) {
		t.Fatalf("%v, want %v", err, protocol.ErrDeadline)
	}
	if !s.Begun() {
		h.waitLog("begun") // it began late; the page says so by then
		if !s.Begun() {
			t.Error("the page does not say that the exchange has begun")
		}
	}
	s.Abandon()
	if err := s.Connect(h.dial(), time.Now().Add(200*time.Millisecond)); !errors.Is(err, protocol.ErrDeadline) {
		t.Errorf("connected with %v, want %v", err, protocol.ErrDeadline)
	}
	if s.State() != protocol.SlotClosed {
		t.Errorf("slot is %v", s.State())
	}
}

// The death of the worker ends its slot, and the page tells whether the exchange had begun.
func TestSlotOfDeadWorker(t *testing.T) {
	for _, begun := range []bool{true, false} {
		h := startHost(t, slotApp)
		s := h.slot()
		if begun {
			send(s, "/die", 1)
		} else {
			syscall.Kill(h.cmd.Process.Pid, syscall.SIGSTOP)
			send(s, "/next", 1)
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			h.cmd.Process.Kill()
		}
		if _, err := receive(s); !errors.Is(err, protocol.ErrLost) {
			t.Errorf("%v, want %v", err, protocol.ErrLost)
		}
		<-h.died
		if s.Begun() != begun {
			t.Errorf("begun is %v, want %v", s.Begun(), begun)
		}
	}
}

// A second exchange behind the first is answered after it, in order, and one
// that was withdrawn in time never begins and says so.
func TestSlotSecondInFlight(t *testing.T) {
	h := startHost(t, slotApp)
	for _, withdraw := range []bool{false, true} {
		nc := h.dial()
		t.Cleanup(func() { nc.Close() })
		nc.SetDeadline(time.Now().Add(patience))
		frames := func(number uint64, path string) []byte {
			s := []byte{1, 1, 0, 0}
			var env []byte
			for _, kv := range [][2]string{{"REQUEST_METHOD", "GET"}, {"PATH_INFO", path}, {"SERVER_NAME", "x"}, {"SERVER_PORT", "80"}, {"SERVER_PROTOCOL", "HTTP/1.1"}} {
				env = protocol.AppendPair(env, kv[0], kv[1])
			}
			s = binary.LittleEndian.AppendUint32(s, uint32(12+len(env)))
			s = binary.LittleEndian.AppendUint64(s, number)
			s = binary.LittleEndian.AppendUint32(s, uint32(len(env)))
			return append(s, env...)
		}
		first, second := uint64(11), uint64(12)
		if withdraw {
			first, second = 21, 22
			if !h.page.Withdraw(0, second) {
				t.Fatal("what was not even sent could not be withdrawn")
			}
		}
		if _, err := nc.Write(append(frames(first, "/a"), frames(second, "/b")...)); err != nil {
			t.Fatal(err)
		}
		var got []string
		for range 3 { // the greeting and two answers
			var head [8]byte
			if _, err := io.ReadFull(nc, head[:]); err != nil {
				t.Fatal(err)
			}
			fh, err := protocol.ParseHeader(head[:])
			if err != nil {
				t.Fatal(err)
			}
			payload := make([]byte, fh.Length)
			if _, err := io.ReadFull(nc, payload); err != nil {
				t.Fatal(err)
			}
			switch fh.Type {
			case protocol.Response:
				got = append(got, string(payload[len(payload)-2:]))
			case protocol.Withdrawn:
				got = append(got, "withdrawn "+strconv.FormatUint(binary.LittleEndian.Uint64(payload), 10))
			}
		}
		want := "/a /b"
		if withdraw {
			want = "/a withdrawn 22"
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("answers %q, want %q", s, want)
		}
		nc.Close()
	}
}
