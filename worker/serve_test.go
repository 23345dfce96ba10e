package worker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"fpmd/protocol"
)

// runsApp is set in a process that is a worker of a test.
const runsApp = "FPMD_TEST_APP"

func TestMain(m *testing.M) {
	if os.Getenv(runsApp) == "" {
		goleak.VerifyTestMain(m)
		return
	}
	if err := Serve(HTTP(http.HandlerFunc(testApp)), &Options{Concurrency: 5}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}

func testApp(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/panic" {
		panic("oh no")
	}
	w.(http.Flusher).Flush()
	io.Copy(w, r.Body)
	fmt.Fprintf(w, "cookie %q", os.Getenv(protocol.MagicCookieKey))
}

// A started process is a worker as fpmd makes one.
type started struct {
	*exec.Cmd
	addr   string
	stderr *lines
	slots  int
}

func startProcess(t *testing.T, environ ...string) *started {
	t.Helper()
	p := &started{Cmd: exec.CommandContext(t.Context(), os.Args[0]), addr: filepath.Join(t.TempDir(), "w"), stderr: new(lines)}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.addr, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	listen, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	page, pageFile, err := protocol.NewPage()
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	handshake, handshakeEnd, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer handshake.Close()
	lifelineEnd, lifeline, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lifeline.Close() })
	p.ExtraFiles = []*os.File{listen, pageFile, handshakeEnd, lifelineEnd}
	p.Env = append([]string{
		"GORACE=atexit_sleep_ms=0", runsApp + "=1", protocol.MagicCookieKey + "=" + protocol.MagicCookieValue, protocol.EnvVersions + "=1",
		protocol.EnvListen + "=3", protocol.EnvPage + "=4", protocol.EnvHandshake + "=5", protocol.EnvLifeline + "=6",
	}, environ...)
	p.Stderr = p.stderr
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range p.ExtraFiles {
		f.Close()
	}
	line, err := io.ReadAll(handshake)
	if err != nil {
		t.Fatal(err)
	}
	if _, p.slots, err = protocol.ParseHandshake(line); err != nil {
		t.Fatalf("%v; %s", err, p.stderr)
	}
	return p
}

// Serve answers at once as many exchanges as the pool says, or else the program.
func TestConcurrency(t *testing.T) {
	for threads, want := range []int{5, 1, 2} {
		p := startProcess(t, protocol.EnvThreads+"="+strconv.Itoa(threads))
		if p.slots != want {
			t.Errorf("threads = %d: %d slots, want %d", threads, p.slots, want)
		}
		p.Process.Signal(syscall.SIGTERM)
		if err := p.Wait(); err != nil {
			t.Errorf("%v: %s", err, p.stderr)
		}
	}
}

// SIGTERM lets what has begun end, and the process with status 0.
func TestTermDrains(t *testing.T) {
	p := startProcess(t, protocol.EnvThreads+"=2")
	s, idle := &supervisor{log: p.stderr}, &supervisor{log: p.stderr}
	s.dial(t, p.addr)
	idle.dial(t, p.addr)
	s.send("a", true, "REQUEST_METHOD=POST")
	if h, _, err := s.read(); err != nil || h.Type != protocol.Response { // it has begun
		t.Fatalf("%+v, %v", h, err)
	}
	p.Process.Signal(syscall.SIGTERM)
	if n, err := idle.Read(make([]byte, 1)); !errors.Is(err, io.EOF) { // it drains
		t.Fatalf("%d, %v", n, err)
	}
	s.Write(protocol.AppendBody(nil, []byte("b"), true, false))
	if a := s.answer(t); a.body != `abcookie ""` {
		t.Errorf("got %+v", a)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("%v: %s", err, p.stderr)
	}
}

// A panic is told on standard error, and with debug = true to the client.
func TestPanicIsTold(t *testing.T) {
	for debug := range 2 {
		p := startProcess(t, protocol.EnvThreads+"=1", protocol.EnvDebug+"="+strconv.Itoa(debug))
		s := &supervisor{log: p.stderr}
		s.dial(t, p.addr)
		a := s.do(t, "REQUEST_URI=/panic", "REQUEST_ID=abc-1")
		if told := bytes.Contains([]byte(a.body), []byte("testApp")); a.status != 500 || !a.failed || told != (debug == 1) {
			t.Errorf("debug = %d: %+v", debug, a)
		}
		if outcome, id := a.header.Get("Fpmd-Outcome"), a.header.Get("Fpmd-Request-Id"); outcome != "app_error" || id != "abc-1" || !strings.HasPrefix(a.body, "500 Internal Server Error: app_error\n") {
			t.Errorf("debug = %d: outcome %q of request %q, page %q", debug, outcome, id, a.body)
		}
		s.Close()
		p.Process.Signal(syscall.SIGTERM)
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
		if log := p.stderr.String(); !bytes.Contains([]byte(log), []byte(`GET "/panic" (abc-1): panic: oh no`)) || !bytes.Contains([]byte(log), []byte("testApp")) {
			t.Errorf("logged %q", log)
		}
	}
}
