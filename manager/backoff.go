package manager

import (
	"math/rand/v2"
	"time"
)

const (
	firstWait = 100 * time.Millisecond
	maxWait   = 30 * time.Second

	forgetAfter = time.Minute
)

// A backoff spaces out the starts of a generation's workers while they fail: a
// moment after the first failure, then twice as long each time. Workers that
// fail together, as those of a pool do, count as one failure; what lies longer back than
// forgetAfter behind the delay that it brought counts no more.
type backoff struct {
	failures int
	next     time.Time // no start before
}

// fail notes that a worker did not come up, or did not live.
func (b *backoff) fail() {
	now := time.Now()
	if now.Before(b.next) {
		return
	}
	if now.After(b.next.Add(forgetAfter)) {
		b.failures = 0
	}
	d := min(firstWait<<min(b.failures, 20), maxWait)
	b.failures++
	// A quarter more or less: pools that fell together need not rise together.
	b.next = now.Add(d*3/4 + rand.N(d/2))
}

func (b *backoff) reset() { *b = backoff{} }

// failing reports whether so much has failed in a row that the next start is
// not worth waiting for.
func (b *backoff) failing() bool {
	return b.failures >= 3 && time.Now().Before(b.next.Add(forgetAfter))
}
