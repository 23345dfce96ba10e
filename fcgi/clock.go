package fcgi

import (
	"errors"
	"fmt"
	"time"
)

// ErrSlow is wrapped by what is wrong with a peer that moved less than
// leastProgress bytes in all of Server.PeerTimeout, or less when Server.Hurry says so.
var ErrSlow = errors.New("the web server is too slow")

// leastProgress is what a peer has to move, in bytes, in each PeerTimeout that it is
// waited for. A bound on the time between two bytes would be kept by one byte a minute.
const leastProgress = 4 << 10

// A clock adds up, for one connection or one stream of a request, how long a peer is waited for. It stands while nobody waits.
type clock struct {
	waited time.Duration
	moved  int // bytes since waited was 0
}

// wait notes that the peer was waited for, and moved n bytes.
func (k *clock) wait(t time.Duration, n int) {
	k.waited += t
	if k.moved += n; k.moved >= leastProgress {
		*k = clock{}
	}
}

// left is how much longer the peer may be waited for.
func (k *clock) left(limit time.Duration) time.Duration { return limit - k.waited }

// slow is the error of a clock that has run out while the peer was to do what.
func (k *clock) slow(what string, limit time.Duration) error {
	return fmt.Errorf("%w: it %s %d bytes in %v, at least %d are wanted", ErrSlow, what, k.moved, limit, leastProgress)
}

const (
	// hurried is in place of PeerTimeout where somebody else waits.
	hurried = 10 * time.Second
	// clockTick is how long a client is waited for until the clock is looked at. Of a
	// full Unix socket, the poller tells only when three quarters of it are free
	// again: what has moved meanwhile shows in another try.
	clockTick = time.Second
)

// tick is how long to wait for the peer until k is to be judged; 0: for ever.
func (s *Server) tick(k *clock) time.Duration {
	switch {
	case s.PeerTimeout > 0:
		return max(1, min(clockTick, k.left(s.PeerTimeout)))
	case s.Hurry != nil:
		return clockTick
	}
	return 0
}

// judge gives the error of a clock that has run out. With holds, the peer keeps
// something from others.
func (s *Server) judge(k *clock, what string, holds bool) error {
	limit := s.PeerTimeout
	if holds && k.waited >= hurried && (limit == 0 || limit > hurried) && s.Hurry != nil && s.Hurry() {
		limit = hurried
	}
	if limit > 0 && k.left(limit) <= 0 {
		return k.slow(what, limit)
	}
	return nil
}
