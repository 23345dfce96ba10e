package manager

import "time"

// An episode is a kind of trouble from when it is met first until it was not for a while: it is told of when it
// begins and when it is over, and not each time that it is met. Its owner's lock guards it.
type episode struct {
	since time.Time // zero: there is none
	last  time.Time // when it was met last
	count int       // how often
}

// meet notes that the trouble is met, and reports whether an episode begins with that.
func (e *episode) meet(now time.Time) (begins bool) {
	if begins = e.since.IsZero(); begins {
		*e = episode{since: now}
	}
	e.last = now
	e.count++
	return begins
}

// end ends an episode that was not met for quiet, and gives it.
func (e *episode) end(now time.Time, quiet time.Duration) (was episode, ended bool) {
	if e.since.IsZero() || now.Sub(e.last) < quiet {
		return episode{}, false
	}
	was, *e = *e, episode{}
	return was, true
}

// length is from when it was met first to when it was met last.
func (e *episode) length() time.Duration { return e.last.Sub(e.since) }

// started is when it began; nil: there is none.
func (e *episode) started() *time.Time {
	if e.since.IsZero() {
		return nil
	}
	since := e.since
	return &since
}

const (
	// lookEvery is how often is looked whether a pool is at its limit: where it is twice in succession,
	// that is no burst of a moment.
	lookEvery = time.Second
	// quietTime is how long trouble must not have been met to be over.
	quietTime = 5 * time.Second
)

// atLimit reports whether requests wait, and as many workers serve as there may be. Who waits for workers that are
// still loading does not wait for want of more.
func atLimit(queued, workers, size int) bool { return queued > 0 && workers >= size }

// look tells of episodes that begin or are over.
func (p *pool) look(now time.Time) {
	p.mu.Lock()
	workers := 0
	for w := range p.workers {
		if w.gen == p.gen && w.servesLocked() {
			workers++
		}
	}
	queued := p.queue.n
	most := p.size
	ration := p.mgr.rations.of(p)
	rationed := ration > 0 && ration < most
	if rationed {
		most = ration
	}
	at := atLimit(queued, workers, most) && !p.stopped && !p.over.on() // which says it already
	begins := at && p.pressed && p.limit.meet(now)
	p.pressed = at
	limit, limitOver := p.limit.end(now, quietTime)
	var full episode
	fullOver := false
	if queued < max(1, p.config().QueueSize) && !p.over.on() {
		full, fullOver = p.full.end(now, quietTime)
	}
	p.mu.Unlock()
	if begins {
		p.tellAtLimit(workers, queued, rationed)
	}
	if limitOver {
		p.tellLimitOver(limit)
	}
	if fullOver {
		p.tellQueueFullOver(full)
	}
}
