package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"fpmd/manager"
)

// knownPeers lets nobody connect but root, our own user and members of a group, whatever has become of the
// socket's mode.
type knownPeers struct {
	net.Listener
	group int // -1: none
}

// operators is the group of who may use the control socket; -1: there is none.
func operators(s manager.Supervisor) int {
	if s.ControlGroup == "" {
		return -1
	}
	return s.ControlGID
}

func (l knownPeers) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if p, err := peerOf(c); err == nil && p.mayAsk(l.group) {
			return peerConn{c, p}, nil
		}
		c.Close()
	}
}

// A peer is who is at the other end of a Unix socket, as he was when he connected.
type peer struct {
	uid, pid int
	groups   []int // his own, and the others
}

func (p peer) mayAsk(group int) bool {
	return p.uid == 0 || p.uid == os.Geteuid() || group >= 0 && slices.Contains(p.groups, group)
}

// String names him, as far as the machine knows him.
func (p peer) String() string {
	name := "uid " + strconv.Itoa(p.uid)
	if u, err := user.LookupId(strconv.Itoa(p.uid)); err == nil {
		name = u.Username
	}
	return fmt.Sprintf("%s (pid %d)", name, p.pid)
}

func peerOf(c net.Conn) (p peer, err error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return p, fmt.Errorf("connection of type %T: want a Unix one", c)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return p, err
	}
	cerr := raw.Control(func(fd uintptr) { p, err = peerOfSocket(int(fd)) })
	return p, errors.Join(cerr, err)
}

func peerOfSocket(fd int) (peer, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return peer{}, err
	}
	p := peer{uid: int(cred.Uid), pid: int(cred.Pid), groups: []int{int(cred.Gid)}}
	// Package unix has none for a list of numbers.
	const most = 65536 // NGROUPS_MAX
	gids := make([]uint32, 64)
	for {
		size := uint32(4 * len(gids))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&gids[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && size <= 4*most:
			gids = make([]uint32, size/4)
			continue
		case errno != 0:
			return peer{}, errno
		}
		for _, gid := range gids[:size/4] {
			p.groups = append(p.groups, int(gid))
		}
		return p, nil
	}
}

// A peerConn remembers who connected.
type peerConn struct {
	net.Conn
	peer peer
}

type peerKey struct{}

// withPeer is a ConnContext.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	if pc, ok := c.(peerConn); ok {
		ctx = context.WithValue(ctx, peerKey{}, pc.peer)
	}
	return ctx
}

// whoAsks names who has sent r.
func whoAsks(r *http.Request) string {
	p, ok := r.Context().Value(peerKey{}).(peer)
	if !ok {
		return "somebody"
	}
	return p.String()
}
