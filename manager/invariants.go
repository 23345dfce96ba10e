package manager

import (
	"fmt"
	"time"
)

const (
	checkEvery = 5 * time.Second
	// wrongFor is how long something may not add up: a process that has ended, and what it leaves to be
	// settled, are not seen at the same moment.
	wrongFor = 3 * time.Second
)

// A checker looks whether what a pool keeps adds up.
type checker struct {
	pool  *pool
	since map[string]time.Time // what is wrong, and when it was first seen; zero: it is told
}

// check looks at the pool at now. What has been wrong for wrongFor is a bug of ours, and told once, as long as it lasts.
func (c *checker) check(now time.Time) {
	c.pool.mu.Lock()
	wrong := c.pool.wrongLocked()
	c.pool.mu.Unlock()
	since := make(map[string]time.Time, len(wrong))
	for _, w := range wrong {
		first, seen := c.since[w]
		if !seen {
			first = now
		}
		if !first.IsZero() && now.Sub(first) >= wrongFor {
			c.pool.log.Error("bug: it does not add up", "cause", w, "next", "go on; restart fpmd when the pool does not serve as it should, and report it")
			first = time.Time{}
		}
		since[w] = first
	}
	c.since = since
}

// wrongLocked is what does not add up of what the pool keeps: each slot is taken or free once, every worker
// is listed until it is gone and as it stands, and nobody waits while a slot is free. pool.mu is held.
func (p *pool) wrongLocked() (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	free := make(map[*worker]int)
	for _, s := range p.idle {
		free[s.w]++
		if s.w.gen != p.gen || !s.w.servesLocked() {
			say("a free slot is of worker %d, which is %v", s.w.id, s.w.state)
		}
		if _, listed := p.workers[s.w]; !listed {
			say("a free slot is of worker %d, which is in no list", s.w.id)
		}
	}
	if p.queue.n > 0 && len(p.idle) > 0 {
		say("requests wait, and slots are free")
	}
	for w := range p.workers {
		free := free[w] + len(w.spare)
		switch {
		case w.state == starting:
			if w.taken != w.ungreeted || free > 0 {
				say("worker %d is starting, %d of its slots are taken and %d free", w.id, w.taken, free)
			}
		case w.servesLocked():
			if w.taken+free != len(w.slots) {
				say("worker %d has %d slots, not all of which are taken or free", w.id, len(w.slots))
			}
			if (w.state == busy) != (w.taken > 0) {
				say("worker %d is %v, and %d of its slots are taken", w.id, w.state, w.taken)
			}
		case w.cause == "":
			say("worker %d is %v for no reason", w.id, w.state)
		case free > 0:
			say("worker %d is %v, and %d of its slots are free", w.id, w.state, free)
		}
		select {
		case <-w.gone:
			say("worker %d is gone, and still listed", w.id)
		default:
		}
	}
	return wrong
}
