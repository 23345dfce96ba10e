package manager

import (
	"math/rand/v2"
	"sync"
	"time"
)

// A backoff spaces out the starts of a pool's workers while they fail: a
// moment after the first failure, then twice as long each time.
type backoff struct {
	mu       sync.Mutex
	failures int
}

func (b *backoff) fail() {
	b.mu.Lock()
	b.failures++
	b.mu.Unlock()
}

func (b *backoff) reset() {
	b.mu.Lock()
	b.failures = 0
	b.mu.Unlock()
}

// failing reports whether so much has failed in a row that the next start is
// not worth waiting for.
func (b *backoff) failing() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failures >= 3
}

// delay is how long the next start should wait: a quarter more or less, so that pools
// that fell together do not rise together.
func (b *backoff) delay() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures == 0 {
		return 0
	}
	d := min(firstWait<<min(b.failures-1, 20), maxWait)
	return d*3/4 + rand.N(d/2)
}
