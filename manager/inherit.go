package manager

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A handover is a listener that systemd has handed over at the start: a
// socket unit's, or one of an fpmd before this one, which had it stored there.
type handover struct {
	net.Listener
	name   string  // FileDescriptorName= of the socket unit
	addr   Address // that it is bound to
	stored *stored // nil: it is a socket unit's
}

// inherit looks at what systemd has handed over, which is closed but for what it returns.
func inherit(files []*os.File) (_ []*handover, err error) {
	var all []*handover
	defer func() {
		if err != nil {
			closeHandovers(all)
		}
	}()
	for i, f := range files {
		h, herr := inheritOne(f)
		f.Close()
		if herr != nil {
			err = errors.Join(err, fmt.Errorf("descriptor %d, %q, from systemd: %w", 3+i, f.Name(), herr))
			continue
		}
		all = append(all, h)
	}
	return all, err
}

func inheritOne(f *os.File) (*handover, error) {
	fd := int(f.Fd())
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, fmt.Errorf("%w: want a socket that listens", err)
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || kind != unix.SOCK_STREAM || listens != 1 {
		return nil, errors.New("no stream socket that listens: want ListenStream= in the socket unit, and no Accept=yes")
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	if l.Addr().Network() == "unix" && !strings.HasPrefix(l.Addr().String(), "/") {
		return nil, errors.Join(fmt.Errorf("%s: a socket without a path is open to everybody: want ListenStream= with a path", l.Addr()), l.Close())
	}
	h := &handover{Listener: l, name: f.Name(), addr: Address{Network: l.Addr().Network(), Address: l.Addr().String()}}
	if h.stored = parseStored(f.Name()); h.stored != nil {
		h.addr.Address = h.stored.address // a Unix socket was bound to a name that it has no more
	}
	return h, nil
}

func closeHandovers(hs []*handover) {
	for _, h := range hs {
		h.Close()
	}
}

// at reports whether h listens at a.
func (h *handover) at(a Address) bool {
	if h.addr.Network != a.Network {
		return false
	}
	if a.Network != "unix" {
		want, err := net.ResolveTCPAddr("tcp", a.Address)
		has := h.Addr().(*net.TCPAddr)
		return err == nil && want.Port == has.Port &&
			(want.IP.Equal(has.IP) || (want.IP == nil || want.IP.IsUnspecified()) && has.IP.IsUnspecified())
	}
	if h.stored != nil { // and nobody has put another there since
		return h.addr.Address == a.Address && h.stored.stands()
	}
	if h.addr.Address == a.Address {
		return true
	}
	has, err := os.Stat(h.addr.Address)
	if err != nil {
		return false
	}
	want, err := os.Stat(a.Address)
	return err == nil && os.SameFile(has, want) // by another way, such as /var/run
}

// heir takes the listener at a out of those that systemd has handed over; nil: there is none. A socket
// unit's wins over one that is stored.
func (m *Manager) heir(a Address) *handover {
	i := slices.IndexFunc(m.estate, func(h *handover) bool { return h.stored == nil && h.at(a) })
	if i < 0 {
		i = slices.IndexFunc(m.estate, func(h *handover) bool { return h.at(a) })
	}
	if i < 0 {
		return nil
	}
	h := m.estate[i]
	m.estate = slices.Delete(m.estate, i, i+1)
	return h
}

// adopt goes on with a listener that is there already, and may have clients in its backlog.
func (h *handover) adopt(a Address, cfg *PoolConfig) (*listener, error) {
	l := &listener{Listener: h.Listener, addr: a, unit: h.stored == nil}
	if a.Network == "unix" {
		l.Listener = unixListener{h.Listener.(*net.UnixListener), &net.UnixAddr{Name: a.Address, Net: "unix"}}
	}
	if l.unit { // whose owner, mode and backlog are the socket unit's to say
		return l, nil
	}
	l.stored, l.dev, l.ino = h.stored.name, h.stored.dev, h.stored.ino
	err := setBacklog(l.Listener.(syscall.Conn), cfg.ListenBacklog)
	if err == nil && a.Network == "unix" {
		_, err = dress(a.Address, cfg)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pool.%s.listen: %q: %w", cfg.Name, a.Address, err), l.Close())
	}
	return l, nil
}

// open has p listen at the addresses of its configuration, and at those that socket units have by its name.
func (m *Manager) open(p *pool, cfg *PoolConfig) error {
	for _, a := range cfg.Listen {
		var l *listener
		var err error
		if h := m.heir(a); h != nil {
			l, err = h.adopt(a, cfg)
		} else {
			l, err = listen(a, cfg)
		}
		if err != nil {
			return err
		}
		p.listeners = append(p.listeners, l)
	}
	for i := 0; i < len(m.estate); {
		h := m.estate[i]
		if h.stored != nil || h.name != cfg.Name {
			i++
			continue
		}
		if h.addr.Network != "unix" && !h.addr.loopback() && len(cfg.AllowedClients) == 0 {
			return fmt.Errorf("the socket unit with FileDescriptorName=%s: %w", h.name, errOpenToAll(cfg, h.addr))
		}
		l, err := h.adopt(h.addr, cfg)
		if err != nil {
			return err
		}
		l.named = true
		p.listeners = append(p.listeners, l)
		m.estate = slices.Delete(m.estate, i, i+1)
	}
	return nil
}

// errOpenToAll refuses a socket unit's address that is not this machine's alone.
func errOpenToAll(cfg *PoolConfig, a Address) error {
	return fmt.Errorf("pool.%s.allowed_clients: a socket unit listens on %s, which others than this machine reach: want allowed_clients, or a loopback address there", cfg.Name, a)
}

// disclaim gives up what systemd has handed over and is no pool's to take.
func (m *Manager) disclaim(hs []*handover) {
	for _, h := range hs {
		if h.stored == nil {
			m.log.Warn("socket without a pool", "listen", h.addr.Address, "name", h.name,
				"cause", "no pool listens there or has this name", "next", "it is closed; clients wait in vain until its socket unit is stopped")
			h.Close()
			continue
		}
		m.log.Info("socket given up", "listen", h.addr.Address, "cause", "no pool listens there any more, or it was removed")
		if h.addr.Network == "unix" {
			(&listener{addr: h.addr, dev: h.stored.dev, ino: h.stored.ino}).unlink()
		}
		m.forget(h.stored.name)
		h.shut()
		h.Close()
	}
}

// shut has h listen no more, whoever has it open: systemd takes its time to forget, and until then nobody else could
// listen there.
func (h *handover) shut() {
	raw, err := h.Listener.(syscall.Conn).SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) }) // if it fails, who listens says so
	}
}

// disclaimUnwanted gives up the stored listeners that no pool of cfg has an address for. It comes before any is
// opened: one at 127.0.0.1 would be in the way of 0.0.0.0 with the same port.
func (m *Manager) disclaimUnwanted(cfg *Config) {
	var unwanted []*handover
	m.estate = slices.DeleteFunc(m.estate, func(h *handover) bool {
		wanted := h.stored == nil || slices.ContainsFunc(cfg.Pools, func(p *PoolConfig) bool { return slices.ContainsFunc(p.Listen, h.at) })
		if !wanted {
			unwanted = append(unwanted, h)
		}
		return !wanted
	})
	m.disclaim(unwanted)
}

// A stored listener is one that systemd keeps for the fpmd after this one. Its name there has all that
// is to be known: which file a Unix socket is, for its own name is the one that it was bound to.
type stored struct {
	name     string
	dev, ino uint64
	address  string
}

const storedPrefix = "stored,"

// storedName is l's name in systemd's store, which takes ASCII without ":".
func storedName(l *listener) string {
	address := strings.ReplaceAll(url.PathEscape(l.addr.Address), "%2F", "/")
	return fmt.Sprintf("%s%x.%x,%s", storedPrefix, l.dev, l.ino, strings.ReplaceAll(address, ":", "%3A"))
}

// maxStoredName is how long a name in the store may be.
const maxStoredName = 255

// parseStored is nil when name is none that storedName has made.
func parseStored(name string) *stored {
	rest, ok := strings.CutPrefix(name, storedPrefix)
	id, escaped, ok2 := strings.Cut(rest, ",")
	dev, ino, ok3 := strings.Cut(id, ".")
	if !ok || !ok2 || !ok3 {
		return nil
	}
	s := &stored{name: name}
	var err [3]error
	s.dev, err[0] = strconv.ParseUint(dev, 16, 64)
	s.ino, err[1] = strconv.ParseUint(ino, 16, 64)
	s.address, err[2] = url.PathUnescape(escaped)
	if errors.Join(err[:]...) != nil {
		return nil
	}
	return s
}

// stands reports whether the Unix socket is still the one at its address.
func (s *stored) stands() bool {
	var st unix.Stat_t
	return unix.Lstat(s.address, &st) == nil && st.Dev == s.dev && st.Ino == s.ino
}

// store has systemd keep l, if there is one that does: when we are killed, it hands l to the fpmd that it starts
// in our place, with the clients that wait in its backlog.
func (m *Manager) store(l *listener) {
	if l.unit || l.stored != "" || m.notifySocket == "" {
		return
	}
	name := storedName(l)
	if len(name) > maxStoredName {
		m.log.Warn("socket not stored", "listen", l.addr.Address, "cause", "its path is too long for systemd's store", "effect", "clients in its backlog are lost if fpmd is killed")
		return
	}
	if err := sendDescriptor(m.notifySocket, "FDSTORE=1\nFDNAME="+name, l.Listener); err != nil {
		m.log.Warn("socket not stored", "listen", l.addr.Address, "cause", err, "effect", "clients in its backlog are lost if fpmd is killed")
		return
	}
	l.stored = name
}

// forget has systemd keep the listener no longer that it has by this name.
func (m *Manager) forget(name string) {
	if name == "" || m.notifySocket == "" {
		return
	}
	if err := sendDescriptor(m.notifySocket, "FDSTOREREMOVE=1\nFDNAME="+name, nil); err != nil {
		m.log.Warn("notify systemd", "cause", err)
	}
}

// sendDescriptor notifies systemd, with l's descriptor unless l is nil. (package net's datagram sockets send none,
// once they are connected, and go-systemd's SdNotify is one of them.)
func sendDescriptor(socket, state string, l net.Listener) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrUnix{Name: socket}
	if l == nil {
		return unix.Sendto(fd, []byte(state), unix.MSG_NOSIGNAL, to)
	}
	raw, err := l.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(lfd uintptr) {
		serr = unix.Sendmsg(fd, []byte(state), unix.UnixRights(int(lfd)), to, unix.MSG_NOSIGNAL)
	})
	return errors.Join(err, serr)
}

// bequeath reports whether systemd starts another fpmd as soon as this one has ended, and hands it the listeners
// that it keeps: so it does at systemctl restart, and not at systemctl stop, when they would keep clients waiting for nobody.
func (m *Manager) bequeath(ctx context.Context) bool {
	n := 0
	for _, p := range m.pools.all() {
		for _, l := range p.listeners {
			if l.stored != "" {
				n++
			}
		}
	}
	return n > 0 && m.restarts(ctx, n)
}

// unitRestarts asks systemd whether it restarts our unit, and keeps n descriptors.
func unitRestarts(ctx context.Context, n int) bool {
	name, user := ownUnit()
	if name == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	ask := func(args ...string) string {
		if user {
			args = append([]string{"--user"}, args...)
		}
		cmd := exec.CommandContext(ctx, "systemctl", args...)
		cmd.WaitDelay = time.Second
		out, err := cmd.Output()
		if err != nil {
			return ""
		}
		return string(out)
	}
	kept, err := strconv.Atoi(strings.TrimSpace(ask("show", "--value", "-p", "NFileDescriptorStore", name)))
	return err == nil && kept >= n && restartJob(ask("list-jobs", "--plain", "--no-legend", name), name)
}

// restartJob reads what systemctl list-jobs says: number, unit, what is done, how far it is.
func restartJob(jobs, name string) bool {
	for line := range strings.Lines(jobs) {
		if f := strings.Fields(line); len(f) >= 3 && f[1] == name {
			return strings.HasSuffix(f[2], "restart")
		}
	}
	return false
}
