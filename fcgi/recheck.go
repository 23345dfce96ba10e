package fcgi

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// recheckAfter bounds how long a client that closed right behind its request
// may go unnoticed.
const recheckAfter = 10 * time.Millisecond

// A rechecker looks again at connections that were read to what seems their
// end. The poller tells of a change once: a peer's close that came before the
// last of its bytes were read was told together with them, and no second event
// follows. A read that finds nothing would prove that it did not come, at the
// cost of a system call for each request. Instead, at most once every
// recheckAfter, each connection that was read since is asked.
type rechecker struct {
	mu    sync.Mutex
	conns []*conn // whose doubted is set
}

// doubt has c looked at within recheckAfter. Its reader calls it.
func (s *Server) doubt(c *conn) {
	if c.doubted.Swap(true) {
		return
	}
	re := &s.recheck
	re.mu.Lock()
	re.conns = append(re.conns, c)
	first := len(re.conns) == 1
	re.mu.Unlock()
	if first {
		s.wg.Go(func() { // ends by itself
			time.Sleep(recheckAfter)
			re.run()
		})
	}
}

func (re *rechecker) run() {
	re.mu.Lock()
	conns := re.conns
	re.conns = nil
	re.mu.Unlock()
	for _, c := range conns {
		c.doubted.Store(false) // first: a read from now on doubts again
		unread := false
		err := c.raw.Control(func(fd uintptr) { unread = readable(int(fd)) })
		if err == nil && unread {
			c.poke()
		}
	}
}

// readable reports whether a read would bring something, be it the end.
func readable(fd int) bool {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
	n, err := unix.Poll(p[:], 0)
	return err != nil || n > 0
}
