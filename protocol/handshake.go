package protocol

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The cookie proves to a worker that fpmd is its parent. It is no secret.
const (
	MagicCookieKey   = "FPMD_WORKER"
	MagicCookieValue = "0f7c4d6a-fcb1-4e0f-9d27-exchange"
)

// The other variables that a worker is told by (PROTOCOL.md section 2).
const (
	EnvVersions  = "FPMD_PROTOCOL_VERSIONS"
	EnvListen    = "FPMD_LISTEN_FD"
	EnvPage      = "FPMD_PAGE_FD"
	EnvHandshake = "FPMD_HANDSHAKE_FD"
	EnvLifeline  = "FPMD_LIFELINE_FD"
	EnvThreads   = "FPMD_THREADS"
	EnvPool      = "FPMD_POOL"
	EnvWorkerID  = "FPMD_WORKER_ID"
	EnvDebug     = "FPMD_DEBUG"
)

// ErrNotStarted says that the process was not started by fpmd.
var ErrNotStarted = errors.New("not started by fpmd")

// A Start is what a supervisor gives a worker at its start.
type Start struct {
	Listener *net.UnixListener
	Page     *Page
	Version  int    // of the protocol: the highest that both sides speak
	Threads  int    // exchanges at once; 0: the worker decides
	Pool     string // these two are names for messages
	WorkerID string
	Debug    bool

	handshake *os.File
}

// Started takes over what the supervisor gave this process, and removes the
// variables that say so from the environment, for the application's children
// must not take themselves for workers. Descriptors are set close-on-exec. It
// can be called once; without fpmd as its parent it returns ErrNotStarted and
// changes nothing.
func Started() (*Start, error) {
	if os.Getenv(MagicCookieKey) != MagicCookieValue {
		return nil, ErrNotStarted
	}
	take := func(name string) string {
		value := os.Getenv(name)
		os.Unsetenv(name)
		return value
	}
	take(MagicCookieKey)
	s := &Start{Pool: take(EnvPool), WorkerID: take(EnvWorkerID), Debug: take(EnvDebug) == "1"}
	versions, threads := take(EnvVersions), take(EnvThreads)
	fds := map[string]string{}
	for _, name := range []string{EnvListen, EnvPage, EnvHandshake, EnvLifeline} {
		fds[name] = take(name)
	}

	var err error
	if s.Version, err = NegotiateVersion(versions); err != nil {
		return nil, err
	}
	if s.Threads, err = strconv.Atoi(threads); err != nil || s.Threads < 0 || s.Threads > MaxSlots {
		return nil, fmt.Errorf("%s=%q: want 0 to %d", EnvThreads, threads, MaxSlots)
	}
	listen, err := inherited(EnvListen, fds[EnvListen])
	if err != nil {
		return nil, err
	}
	defer listen.Close() // net has its own copy then
	l, err := net.FileListener(listen)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", EnvListen, err)
	}
	unixListener, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%s: a %s socket, want a Unix stream socket", EnvListen, l.Addr().Network()), l.Close())
	}
	s.Listener = unixListener
	page, err := inherited(EnvPage, fds[EnvPage])
	if err != nil {
		return nil, err
	}
	defer page.Close()
	if s.Page, err = MapPage(page); err != nil {
		return nil, err
	}
	if s.handshake, err = inherited(EnvHandshake, fds[EnvHandshake]); err != nil {
		return nil, err
	}
	// The lifeline stays open until the process ends, so nothing owns it.
	if _, err = inheritedFD(EnvLifeline, fds[EnvLifeline]); err != nil {
		return nil, err
	}
	return s, nil
}

func inherited(name, value string) (*os.File, error) {
	fd, err := inheritedFD(name, value)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// inheritedFD returns the descriptor that a variable names, and keeps it from
// the application's children.
func inheritedFD(name, value string) (int, error) {
	fd, err := strconv.Atoi(value)
	if err != nil || fd < 3 {
		return 0, fmt.Errorf("%s=%q: want the number of a descriptor, 3 or more", name, value)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags|unix.FD_CLOEXEC)
	}
	if err != nil {
		return 0, fmt.Errorf("%s=%d: %w", name, fd, err)
	}
	return fd, nil
}

// Ready tells the supervisor that the worker accepts connections now, and
// takes slots exchanges at once. It is called once.
func (s *Start) Ready(slots int) error {
	line, err := AppendHandshake(nil, s.Version, slots)
	if err != nil {
		return err
	}
	_, err = s.handshake.Write(line)
	if err = errors.Join(err, s.handshake.Close()); err != nil {
		return fmt.Errorf("write the handshake: %w", err)
	}
	return nil
}

// AppendHandshake appends the handshake line.
func AppendHandshake(dst []byte, version, slots int) ([]byte, error) {
	if slots < 1 || slots > MaxSlots {
		return dst, fmt.Errorf("handshake of %d slots, want 1 to %d", slots, MaxSlots)
	}
	return fmt.Appendf(dst, "1|%d|unix|%d|exchange\n", version, slots), nil
}

// ParseHandshake reads a handshake line with its newline. Its error wraps
// ErrProtocol.
func ParseHandshake(line []byte) (version, slots int, err error) {
	text, ended := bytes.CutSuffix(line, []byte("\n"))
	if !ended || len(line) > MaxHandshake {
		return 0, 0, fmt.Errorf("%w: handshake %.60q: want one line of at most %d bytes", ErrProtocol, line, MaxHandshake)
	}
	fields := strings.Split(string(text), "|")
	if len(fields) != 5 || fields[0] != "1" || fields[2] != "unix" || fields[4] != "exchange" {
		return 0, 0, fmt.Errorf("%w: handshake %.60q: want 1|VERSION|unix|SLOTS|exchange", ErrProtocol, text)
	}
	if version, err = strconv.Atoi(fields[1]); err != nil || version != Version || fields[1] != strconv.Itoa(version) {
		return 0, 0, fmt.Errorf("%w: handshake of version %.20q, want %d", ErrProtocol, fields[1], Version)
	}
	if slots, err = ParseSlots(fields[3]); err != nil {
		return 0, 0, err
	}
	return version, slots, nil
}

// ParseSlots reads the SLOTS field of a handshake. Its error wraps
// ErrProtocol.
func ParseSlots(field string) (int, error) {
	n, err := strconv.Atoi(field)
	if err != nil || n < 1 || n > MaxSlots || field != strconv.Itoa(n) {
		return 0, fmt.Errorf("%w: %.20q slots, want 1 to %d", ErrProtocol, field, MaxSlots)
	}
	return n, nil
}

// NegotiateVersion returns the highest protocol version that both this package
// and the other side speak, whose versions are separated by commas.
func NegotiateVersion(theirs string) (int, error) {
	if slices.Contains(strings.Split(theirs, ","), strconv.Itoa(Version)) {
		return Version, nil
	}
	return 0, fmt.Errorf("the supervisor speaks exchange protocol %q, this worker %d: build it with a package worker of the supervisor's release", theirs, Version)
}
