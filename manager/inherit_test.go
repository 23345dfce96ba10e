package manager

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A fakeStore keeps descriptors as systemd does.
type fakeStore struct {
	t    *testing.T
	conn *net.UnixConn
	kept map[string]*os.File
}

func newFakeStore(t *testing.T) *fakeStore {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	s := &fakeStore{t: t, conn: conn, kept: map[string]*os.File{}}
	t.Cleanup(func() {
		conn.Close()
		for _, f := range s.kept {
			f.Close()
		}
	})
	t.Setenv("NOTIFY_SOCKET", conn.LocalAddr().String())
	return s
}

// read does what it has been told.
func (s *fakeStore) read() {
	s.t.Helper()
	b, oob := make([]byte, 4096), make([]byte, 1024)
	for {
		n, oobn, err := 0, 0, error(nil)
		raw, _ := s.conn.SyscallConn()
		raw.Read(func(fd uintptr) bool {
			n, oobn, _, _, err = unix.Recvmsg(int(fd), b, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			return true
		})
		if err != nil {
			return
		}
		state, name, _ := strings.Cut(string(b[:n]), "\nFDNAME=")
		switch state {
		case "FDSTORE=1":
			messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
			fds, _ := unix.ParseUnixRights(&messages[0])
			s.kept[name] = os.NewFile(uintptr(fds[0]), name)
		case "FDSTOREREMOVE=1":
			if f := s.kept[name]; f != nil {
				f.Close()
			}
			delete(s.kept, name)
		default:
			s.t.Errorf("systemd is told %q", b[:n])
		}
	}
}

// hand hands over what is kept.
func (s *fakeStore) hand() (files []*os.File) {
	s.t.Helper()
	s.read()
	for name, f := range s.kept {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			s.t.Fatal(err)
		}
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	return files
}

// listenPool is a pool that is never started, for its sockets.
func listenPool(name string, listen ...Address) *PoolConfig {
	return &PoolConfig{Name: name, Listen: listen, ListenOwner: -1, ListenGroup: -1, ListenMode: 0o600, ListenBacklog: 8}
}

// heirOf is a Manager that systemd has handed files over to. Its sockets are in the store, as after Start.
func heirOf(t *testing.T, dir string, log io.Writer, files []*os.File, pools ...*PoolConfig) *Manager {
	t.Helper()
	m, err := New(&Config{Supervisor: Supervisor{RuntimeDir: dir}, Pools: pools},
		Options{Logger: slog.New(slog.NewTextHandler(log, nil)), Logs: &Logs{}, Inherited: files})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range m.pools.all() {
		for _, l := range p.listeners {
			m.store(l)
		}
	}
	return m
}

// die closes what the kernel closes when m's process is killed.
func die(m *Manager) {
	for _, p := range m.pools.all() {
		for _, l := range p.listeners {
			l.Close()
		}
	}
	m.lock.Close()
}

func unixAt(path string) Address { return Address{"unix", path} }

// Who waits in a socket when fpmd is killed is accepted by the next one, in any kind of socket and under any name;
// the socket has the mode that this one's configuration wants.
func TestStoredSockets(t *testing.T) {
	dir, sockets := filepath.Join(t.TempDir(), "run"), t.TempDir()
	odd := filepath.Join(sockets, "ä: b,%2F.sock")
	plain := filepath.Join(sockets, "plain.sock")
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp := Address{"tcp", probe.Addr().String()}
	probe.Close()
	store := newFakeStore(t)
	pools := func() []*PoolConfig {
		return []*PoolConfig{listenPool("a", unixAt(plain), tcp), listenPool("b", unixAt(odd))}
	}
	m := heirOf(t, dir, t.Output(), nil, pools()...)
	for round := range 2 { // the second time, one that was handed over itself
		store.read()
		if len(store.kept) != 3 {
			t.Fatalf("round %d: systemd keeps %d sockets, want 3", round, len(store.kept))
		}
		die(m)
		var waiting []net.Conn
		for _, a := range []Address{unixAt(plain), tcp, unixAt(odd)} {
			c, err := net.Dial(a.Network, a.Address)
			if err != nil {
				t.Fatalf("round %d: while fpmd is down: %v", round, err)
			}
			defer c.Close()
			waiting = append(waiting, c)
		}
		again := pools()
		again[1].ListenMode = 0o640
		m = heirOf(t, dir, t.Output(), store.hand(), again...)
		listeners := append(m.pools.all()[0].listeners, m.pools.all()[1].listeners...)
		for i, c := range waiting {
			l := listeners[i]
			if got := l.Addr().String(); got != l.addr.Address {
				t.Errorf("the listener at %s goes by %s", l.addr, got)
			}
			l.Listener.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(time.Minute))
			accepted, err := l.Accept()
			if err != nil {
				t.Fatalf("round %d: %s: %v", round, l.addr, err)
			}
			if _, err := accepted.Write([]byte("you")); err != nil {
				t.Fatal(err)
			}
			accepted.Close()
			if said, err := io.ReadAll(c); string(said) != "you" {
				t.Errorf("round %d: who waited at %s got %q, %v", round, l.addr, said, err)
			}
		}
		if fi, err := os.Stat(odd); err != nil || fi.Mode().Perm() != 0o640 {
			t.Errorf("the socket is %v, %v; want mode 0640", fi, err)
		}
	}
	// A stop takes them back, and their names away.
	m.Stop(context.Background())
	store.read()
	if len(store.kept) != 0 || !missing(plain) || !missing(odd) {
		t.Errorf("after the stop systemd keeps %v; there is a socket: %v, %v", store.kept, !missing(plain), !missing(odd))
	}
}

// When systemd restarts fpmd, the stop leaves its sockets in place and in the store.
func TestSocketsStayForARestart(t *testing.T) {
	dir, path := filepath.Join(t.TempDir(), "run"), filepath.Join(t.TempDir(), "app.sock")
	store := newFakeStore(t)
	m := heirOf(t, dir, t.Output(), nil, listenPool("app", unixAt(path)))
	m.restarts = func(_ context.Context, n int) bool { return n == 1 }
	m.Stop(context.Background())
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m = heirOf(t, dir, t.Output(), store.hand(), listenPool("app", unixAt(path)))
	defer m.Stop(context.Background())
	if l := m.pools.all()[0].listeners[0]; l.stored == "" || !waits(l) {
		t.Error("who connected between the two does not wait at the second")
	}
}

// waits reports whether somebody waits to be accepted.
func waits(l *listener) bool {
	l.Listener.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(time.Minute))
	c, err := l.Accept()
	if err == nil {
		c.Close()
	}
	return err == nil
}

// A stored socket that no pool wants any more goes, with its name and its place in the store; one that was replaced meanwhile
// is left to whoever has put it there, and the pool gets a new one.
func TestStoredSocketsThatAreNotTaken(t *testing.T) {
	dir, sockets := filepath.Join(t.TempDir(), "run"), t.TempDir()
	gone, moved := filepath.Join(sockets, "gone.sock"), filepath.Join(sockets, "moved.sock")
	store := newFakeStore(t)
	first := heirOf(t, dir, t.Output(), nil, listenPool("gone", unixAt(gone)), listenPool("moved", unixAt(moved)))
	store.read()
	die(first)
	if err := os.Remove(moved); err != nil {
		t.Fatal(err)
	}
	other, _ := unitSocket(t, "", "unix", moved) // of somebody who has ended
	other.Close()
	var log bytes.Buffer
	m := heirOf(t, dir, &log, store.hand(), listenPool("moved", unixAt(moved)))
	defer m.Stop(context.Background())
	store.read()
	if len(store.kept) != 1 || !missing(gone) {
		t.Errorf("systemd keeps %v, want one socket; the other's name is there: %v", store.kept, !missing(gone))
	}
	if n := strings.Count(log.String(), "socket given up"); n != 2 {
		t.Errorf("%d were given up, want 2:\n%s", n, &log)
	}
	c, err := net.Dial("unix", moved)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// A stored TCP socket does not keep its pool from the address that the configuration has for it now, with the same port.
func TestStoredSocketOfAnotherAddress(t *testing.T) {
	for _, hosts := range [][2]string{{"127.0.0.1", "[::]"}, {"[::]", "127.0.0.1"}} {
		probe, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(probe.Addr().String())
		probe.Close()
		dir := filepath.Join(t.TempDir(), "run")
		store := newFakeStore(t)
		die(heirOf(t, dir, t.Output(), nil, listenPool("app", Address{"tcp", hosts[0] + ":" + port})))
		m := heirOf(t, dir, t.Output(), store.hand(), listenPool("app", Address{"tcp", hosts[1] + ":" + port}))
		l := m.pools.all()[0].listeners[0]
		if got := l.Listener.Addr().String(); got != hosts[1]+":"+port {
			t.Errorf("after %s, %s is wanted and it listens at %s", hosts[0], hosts[1], got)
		}
		store.read()
		if len(store.kept) != 1 || store.kept[l.stored] == nil {
			t.Errorf("after %s, systemd keeps %v, want %s", hosts[0], store.kept, l.stored)
		}
		m.Stop(context.Background())
	}
}

// A socket that somebody has removed is made again, and kept in the place of the one before.
func TestSocketMadeAgainIsStored(t *testing.T) {
	dir, path := filepath.Join(t.TempDir(), "run"), filepath.Join(t.TempDir(), "app.sock")
	store := newFakeStore(t)
	m := heirOf(t, dir, t.Output(), nil, listenPool("app", unixAt(path)))
	defer m.Stop(context.Background())
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	m.restore()
	store.read()
	if l := m.pools.all()[0].listeners[0]; len(store.kept) != 1 || store.kept[l.stored] == nil {
		t.Errorf("systemd keeps %v, want %s", store.kept, l.stored)
	}
}

// unitSocket is a listener as a socket unit has it.
func unitSocket(t *testing.T, name, network, address string) (f *os.File, bound Address) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	defer l.Close()
	dup, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	defer dup.Close()
	fd, err := unix.FcntlInt(dup.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name), Address{network, l.Addr().String()}
}

// A socket unit's listener is the pool's that listens there, or that has its name; its file is left alone, and it is
// not stored. One that is nobody's is told of.
func TestSocketUnits(t *testing.T) {
	dir, sockets := filepath.Join(t.TempDir(), "run"), t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(sockets, link); err != nil {
		t.Fatal(err)
	}
	byAddress, byLink, byName := filepath.Join(sockets, "a.sock"), filepath.Join(sockets, "l.sock"), filepath.Join(sockets, "n.sock")
	store := newFakeStore(t)
	var files []*os.File
	for _, u := range [][2]string{{"x.socket", byAddress}, {"x.socket", byLink}, {"named", byName}, {"stranger", filepath.Join(sockets, "s.sock")}} {
		f, _ := unitSocket(t, u[0], "unix", u[1])
		files = append(files, f)
	}
	f, tcp := unitSocket(t, "y.socket", "tcp", "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(tcp.Address)
	files = append(files, f)
	f, named := unitSocket(t, "named", "tcp", "127.0.0.1:0")
	files = append(files, f)
	own := filepath.Join(t.TempDir(), "own.sock")
	var log bytes.Buffer
	m := heirOf(t, dir, &log, files,
		listenPool("by-address", unixAt(byAddress), Address{"tcp", "localhost:" + port}), listenPool("by-link", unixAt(filepath.Join(link, "l.sock"))), listenPool("named", unixAt(own)))
	want := [][]string{{byAddress, "localhost:" + port}, {filepath.Join(link, "l.sock")}, {own, byName, named.Address}}
	for i, p := range m.pools.all() {
		var got []string
		for _, l := range p.listeners {
			got = append(got, l.addr.Address)
			if unit := l.addr.Address != own; l.unit != unit || (l.stored == "") != unit {
				t.Errorf("%s: of a socket unit: %v; stored as %q", l.addr, l.unit, l.stored)
			}
		}
		if strings.Join(got, " ") != strings.Join(want[i], " ") {
			t.Errorf("pool %s listens at %q, want %q", p.name, got, want[i])
		}
	}
	if !strings.Contains(log.String(), `msg="socket without a pool"`) || !strings.Contains(log.String(), "name=stranger") {
		t.Errorf("the log says\n%s", &log)
	}
	if fi, err := os.Stat(byAddress); err != nil || fi.Mode().Perm() == 0o600 {
		t.Errorf("a socket unit's socket was given the pool's mode: %v, %v", fi, err)
	}
	if err := os.Rename(byName, byName+".away"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		m.restore()
	}
	if n := strings.Count(log.String(), errSocketUnits.Error()); n != 1 || !missing(byName) {
		t.Errorf("a socket unit's socket that was removed is complained of %d times, want 1; made again: %v", n, !missing(byName))
	}
	if err := os.Rename(byName+".away", byName); err != nil {
		t.Fatal(err)
	}
	m.Stop(context.Background())
	for _, path := range []string{byAddress, byLink, byName} {
		if missing(path) {
			t.Errorf("%s was removed at the stop", path)
		}
	}
	store.read()
}

// What is no socket that listens, or would be open to all, is refused, by its name.
func TestSocketsThatAreRefused(t *testing.T) {
	pipeR, pipeW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	pipeW.Close()
	datagram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "d"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer datagram.Close()
	datagramFile, err := datagram.File()
	if err != nil {
		t.Fatal(err)
	}
	open, _ := unitSocket(t, "app", "tcp", "0.0.0.0:0")
	abstract, _ := unitSocket(t, "app", "unix", "@fpmd-test-"+strconv.Itoa(os.Getpid()))
	for what, tc := range map[string]struct {
		file *os.File
		want string
	}{
		"an abstract socket": {abstract, "want ListenStream= with a path"},
		"a pipe":             {pipeR, "want a socket that listens"},
		"a datagram socket":  {datagramFile, "want ListenStream="},
		"open to others":     {open, "want allowed_clients"},
	} {
		path := filepath.Join(t.TempDir(), "app.sock")
		_, err := New(&Config{Supervisor: Supervisor{RuntimeDir: filepath.Join(t.TempDir(), "run")}, Pools: []*PoolConfig{listenPool("app", unixAt(path))}},
			Options{Logger: slog.New(slog.DiscardHandler), Logs: &Logs{}, Inherited: []*os.File{tc.file}})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", what, err, tc.want)
		}
		if !missing(path) {
			t.Errorf("%s: the pool's own socket is left", what)
		}
	}
}

// What systemctl list-jobs says of a restart, in its words.
func TestRestartJob(t *testing.T) {
	for jobs, want := range map[string]bool{
		"107 fpmd.service restart running\n":     true,
		"155 fpmd.service try-restart waiting\n": true,
		"203 fpmd.service stop running\n":        false,
		"":                                       false,
		"1 other.service restart running\n2 fpmd.service stop waiting\n":                 false,
		"1 other.service stop running\n  2 fpmd.service       restart         running\n": true,
	} {
		if got := restartJob(jobs, "fpmd.service"); got != want {
			t.Errorf("%q: %v, want %v", jobs, got, want)
		}
	}
}
