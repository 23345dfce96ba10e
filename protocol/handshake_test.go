package protocol

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// startedAs is set in a process that is a worker of a test.
const startedAs = "FPMD_TEST_STARTED"

func TestMain(m *testing.M) {
	if os.Getenv(startedAs) != "" {
		if err := beStarted(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// beStarted is what a worker does first.
func beStarted() error {
	s, err := Started()
	if err != nil {
		return err
	}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "FPMD_") && !strings.HasPrefix(kv, startedAs) {
			return fmt.Errorf("%s is left in the environment", kv)
		}
	}
	for fd := uintptr(3); fd <= 6; fd++ {
		if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			return fmt.Errorf("descriptor %d is left to children", fd)
		}
	}
	if _, err := unix.FcntlInt(6, unix.F_GETFD, 0); err != nil {
		return fmt.Errorf("the lifeline is not open: %w", err)
	}
	if !s.Page.Begin(2, 42) {
		return errors.New("page: a number was withdrawn")
	}
	if s.Threads != 7 || s.Pool != "blog" || s.WorkerID != "3" || !s.Debug || s.Version != 1 {
		return fmt.Errorf("started as %+v", s)
	}
	if err := s.Ready(s.Threads); err != nil {
		return err
	}
	nc, err := s.Listener.Accept()
	if err != nil {
		return err
	}
	defer nc.Close()
	_, err = io.WriteString(nc, "hello")
	return err
}

// given are the variables of a worker whose descriptors are 3 to 6.
func given() map[string]string {
	return map[string]string{
		MagicCookieKey: MagicCookieValue, EnvVersions: "2,1", EnvListen: "3", EnvPage: "4", EnvHandshake: "5", EnvLifeline: "6",
		EnvThreads: "7", EnvPool: "blog", EnvWorkerID: "3", EnvDebug: "1",
	}
}

// A worker takes over all that it was given, tells that it is ready, and
// leaves nothing of it to its children.
func TestStarted(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "w"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	listen, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	page, pageFile, err := NewPage()
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
	defer lifeline.Close()

	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = []string{startedAs + "=1"}
	for name, value := range given() {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.ExtraFiles = []*os.File{listen, pageFile, handshakeEnd, lifelineEnd}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	line, err := io.ReadAll(handshake) // ends, for the worker closes its end
	if version, slots, bad := ParseHandshake(line); err != nil || bad != nil || version != 1 || slots != 7 {
		t.Errorf("handshake %q: %d, %d, %v, %v", line, version, slots, err, bad)
	} else if nc, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		t.Error(err)
	} else if got, err := io.ReadAll(nc); string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, stderr.Bytes())
	}
	if !page.Begun(2, 42) {
		t.Error("the worker's page is not ours")
	}
}

// A process that fpmd has not started, or has started in a way that is not
// understood, is told why it cannot serve.
func TestNotStarted(t *testing.T) {
	tests := []struct {
		name, key, value string
		want             string
	}{
		{"no cookie", MagicCookieKey, "", "not started by fpmd"},
		{"another's cookie", MagicCookieKey, "x", "not started by fpmd"},
		{"newer supervisor", EnvVersions, "2,3", `the supervisor speaks exchange protocol "2,3", this worker 1`},
		{"no threads", EnvThreads, "", `FPMD_THREADS="": want 0 to 256`},
		{"too many threads", EnvThreads, "257", `FPMD_THREADS="257": want 0 to 256`},
		{"no listener", EnvListen, "", `FPMD_LISTEN_FD="": want the number of a descriptor`},
		{"standard output as listener", EnvListen, "1", `FPMD_LISTEN_FD="1": want the number of a descriptor`},
		{"a listener that is not open", EnvListen, "999", "FPMD_LISTEN_FD=999: bad file descriptor"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, value := range given() {
				t.Setenv(name, value)
			}
			t.Setenv(tt.key, tt.value)
			if s, err := Started(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%+v, %v; want %s", s, err, tt.want)
			}
		})
	}
}

// A line is refused, or is the one that AppendHandshake writes for what it says.
func FuzzHandshake(f *testing.F) {
	for _, line := range []string{"1|1|unix|4|exchange\n", "1|1|unix|256|exchange\n", "1|1|unix|04|exchange\n", "1|1|unix|+4|exchange\n", "1|1|tcp|4|grpc\n", "1|1|unix|4|exchange"} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		version, slots, err := ParseHandshake(line)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("%v does not wrap ErrProtocol", err)
			}
			return
		}
		if again, err := AppendHandshake(nil, version, slots); err != nil || !bytes.Equal(again, line) {
			t.Fatalf("%q read as %d, %d, written as %q, %v", line, version, slots, again, err)
		}
	})
}
