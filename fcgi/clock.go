package fcgi

import (
	"errors"
	"fmt"
	"time"
)

// ErrSlow is wrapped by what is wrong with a peer that moved less than
// leastProgress bytes in all of Server.PeerTimeout.
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
