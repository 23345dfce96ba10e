package manager

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A listener is one address of a pool, bound and listening. A Unix socket is
// made under a name of its own in its folder and renamed into place, so that at no moment
// it has the wrong owner or mode, and no link that somebody put there is followed.
type listener struct {
	net.Listener
	addr Address
	dev  uint64 // of the socket's file: only what we made is removed
	ino  uint64

	unit   bool   // a socket unit's, whose name is not ours to remove
	named  bool   // by that unit's FileDescriptorName=, not by an address of the configuration
	stored string // its name in systemd's store; "": it is not there
	left   bool   // to the fpmd after this one, under its name
}

// listen binds a as cfg says.
func listen(a Address, cfg *PoolConfig) (*listener, error) {
	if a.Network != "unix" {
		l, err := listenTCP(a.Address, cfg.ListenBacklog)
		if err != nil {
			return nil, fmt.Errorf("pool.%s.listen: %q: %w: %s", cfg.Name, a.Address, bare(err), addressRemedy(err, a.Address))
		}
		return &listener{Listener: l, addr: a}, nil
	}
	l, err := listenUnix(a, cfg)
	if err != nil {
		return nil, fmt.Errorf("pool.%s.listen: %q: %w", cfg.Name, a.Address, err)
	}
	return l, nil
}

// listenTCP leaves the resolving to net and the backlog, which net does not
// let one choose, to a second listen(2).
func listenTCP(address string, backlog int) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	if err := setBacklog(l.(*net.TCPListener), backlog); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func setBacklog(l syscall.Conn, backlog int) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var lerr error
	err = raw.Control(func(fd uintptr) { lerr = unix.Listen(int(fd), backlog) })
	return errors.Join(err, lerr)
}

func listenUnix(a Address, cfg *PoolConfig) (_ *listener, err error) {
	dir, name := filepath.Split(a.Address)
	if err := inUse(a.Address); err != nil {
		return nil, err
	}
	// A name that nobody can have put there before us, nor an earlier run left.
	random := strconv.FormatUint(uint64(rand.Uint32()), 36)
	temp := filepath.Join(dir, "."+name+"."+random)
	if len(temp) > maxSocketPath { // a name that is as long as can be leaves no room for more
		temp = filepath.Join(dir, "."+random)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil { // which names temp, as nobody has called it
		return nil, fmt.Errorf("%w: %s", bare(err), pathRemedy(err, a.Address, "a socket"))
	}
	l.SetUnlinkOnClose(false)
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
			os.Remove(temp) // there or not: it was ours
		}
	}()
	if err := setBacklog(l, cfg.ListenBacklog); err != nil {
		return nil, err
	}
	st, err := dress(temp, cfg)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(temp, a.Address); err != nil {
		return nil, err
	}
	return &listener{Listener: unixListener{l, &net.UnixAddr{Name: a.Address, Net: "unix"}}, addr: a, dev: st.Dev, ino: st.Ino}, nil
}

// A unixListener goes by the name that its socket has in the end.
type unixListener struct {
	*net.UnixListener
	addr *net.UnixAddr
}

func (l unixListener) Addr() net.Addr { return l.addr }

// dress gives the socket at path its owner, group and mode. It holds on to the
// file by a descriptor: in a folder where others may write, the name could become a
// link to something else between two steps.
func dress(path string, cfg *PoolConfig) (st unix.Stat_t, err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return st, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &st); err != nil {
		return st, &os.PathError{Op: "fstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return st, fmt.Errorf("%s was a socket a moment ago: somebody else writes in this folder", path)
	}
	if cfg.ListenOwner >= 0 || cfg.ListenGroup >= 0 {
		if err := unix.Fchownat(fd, "", cfg.ListenOwner, cfg.ListenGroup, unix.AT_EMPTY_PATH); err != nil {
			return st, &os.PathError{Op: "chown", Path: path, Err: err}
		}
	}
	// A descriptor of this kind has no fchmod.
	if err := os.Chmod("/proc/self/fd/"+strconv.Itoa(fd), cfg.ListenMode); err != nil {
		return st, fmt.Errorf("chmod %s: %w", path, err)
	}
	return st, nil
}

// maxSocketPath is what sun_path holds, less its final NUL.
const maxSocketPath = 107

// inUse reports what stands in the way of a socket at path: something that is
// no socket, or one that somebody listens on. What a dead process left does not.
func inUse(path string) error {
	if err := noSocket(path); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return errors.New("another process is listening there: stop it, or choose another path")
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("find out whether the socket there is in use: %w", err)
}

// noSocket is nil when there is a socket at path.
func noSocket(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case err != nil:
		return err
	case fi.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("there is a file that is no socket (%v): remove it, or choose another path", fi.Mode().Type())
	}
	return nil
}

// stands reports whether l is a Unix socket, and the one that has its name.
func (l *listener) stands() bool {
	var st unix.Stat_t
	return l.addr.Network == "unix" && unix.Lstat(l.addr.Address, &st) == nil && st.Dev == l.dev && st.Ino == l.ino
}

// unlink removes the name of a Unix socket, if it is still ours.
func (l *listener) unlink() {
	if !l.unit && !l.left && l.stands() {
		os.Remove(l.addr.Address) // gone between the two or not: nothing is left to do
	}
}

// close undoes listen, for a listener that nobody serves.
func (l *listener) close() {
	l.unlink()
	l.Close()
}

// allowed is the filter of allowed_clients; it lets every Unix client pass.
func allowed(prefixes []netip.Prefix) func(net.Addr) bool {
	if len(prefixes) == 0 {
		return nil
	}
	return func(a net.Addr) bool {
		tcp, ok := a.(*net.TCPAddr)
		if !ok {
			return true
		}
		ip := tcp.AddrPort().Addr().Unmap()
		for _, p := range prefixes {
			if p.Contains(ip) {
				return true
			}
		}
		return false
	}
}
