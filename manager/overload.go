package manager

import "time"

// An overload is a time in which a pool is asked for more than its workers do, for longer than a
// queue can bridge: whose turn it is has left by then, his answer is for nobody, and so is the next. It
// is told by just that. As long as those who wait are served in the end, however many they are, it is in the
// order in which they came. When the queue fails them, who has come last is served first, as the
// one who is most likely to be still there; who has come since and has waited for overloadWait is refused, since
// his turn would only come when it is over; and a full queue has room for who comes, in the place of the
// one who has waited longest. Where no more wait than there are slots, all of that is as without overload.
//
// All is guarded by pool.mu.
type overload struct {
	since    time.Time // zero: there is none
	told     bool      // the log knows of it
	standing time.Time // since when somebody waits at any time
	missed   float64   // the share of those who waited in vain, of the recent ones
	lastMiss time.Time // when one did
	lastLate time.Time // when one had waited for overloadWait
	refused  int       // by us, since it began
	left     int       // by themselves
}

const (
	// standingFor is how long somebody must have waited at any time for it to be more than a burst.
	standingFor = time.Second
	// manyMissed is the share of those who wait in vain at which it begins, and recentWaits the inverse
	// of how much one counts in it.
	manyMissed  = 1. / 8
	recentWaits = 64
	// overloadWait is how long one may wait under it.
	overloadWait = time.Second
	// calm is how long nobody must have waited in vain, or for overloadWait, and few wait then, for it to be over.
	calm = 10 * time.Second
)

func (l *overload) on() bool { return !l.since.IsZero() }

// queueLocked has x wait, where it is next if it has waited before.
func (p *pool) queueLocked(x *exchange, now time.Time, again bool) {
	if p.queue.n == 0 {
		p.over.standing = now
	}
	if again && !p.over.on() {
		p.queue.pushFront(&x.link)
	} else {
		p.queue.pushBack(&x.link)
	}
	x.place = queued
	p.gen.askedLocked()
}

// nextLocked is who is served next, of a queue that is not empty.
func (p *pool) nextLocked() *exchange {
	if p.over.on() && !p.fewWaitLocked() {
		return p.queue.last()
	}
	return p.queue.first()
}

// popNextLocked takes who is served next off the queue, if somebody waits.
func (p *pool) popNextLocked() (x *exchange, ok bool) {
	if p.queue.n == 0 {
		return nil, false
	}
	x = p.nextLocked()
	p.queue.remove(&x.link)
	p.over.missed -= p.over.missed / recentWaits
	return x, true
}

// makeRoomLocked refuses who has waited longest in the favour of who comes, if there is overload, and reports
// whether it has.
func (p *pool) makeRoomLocked() bool {
	if !p.over.on() || p.fewWaitLocked() { // who has waited longest has not waited for long
		return false
	}
	x, there := p.queue.pop()
	if there {
		x.place, x.verdict = refused, queueFull
		x.tellLocked()
	}
	return there
}

// patienceLocked is until when x waits, unless it is spared then.
func (p *pool) patienceLocked(x *exchange, now time.Time) time.Time {
	if end := now.Add(overloadWait); p.over.on() && end.Before(x.waitEnd) {
		return end
	}
	return x.waitEnd
}

// sparedLocked reports whether who has waited for overloadWait may wait on: it is over, workers are on
// their way, or so few wait that a slot might find nobody. That one has waited for so long is noted.
func (p *pool) sparedLocked(now time.Time) bool {
	if !p.over.on() {
		return true
	}
	p.over.lastLate = now
	return p.fewWaitLocked() || !p.wholeLocked()
}

// fewWaitLocked reports whether so few wait that the turn of all of them comes at once. The order in which they came is
// the best then: by another, who is first might wait for ever, though the pool does all that it is asked for.
func (p *pool) fewWaitLocked() bool {
	_, slots, _ := p.servingLocked()
	return p.queue.n <= slots
}

// wholeLocked reports whether the pool has the workers that it is going to have for now. A
// queue for those that are still loading is none for want of them.
func (p *pool) wholeLocked() bool {
	serving, launching := 0, 0
	for w := range p.workers {
		switch {
		case w.gen != p.gen:
		case w.state == starting:
			launching++
		case w.servesLocked():
			serving++
		}
	}
	return serving > 0 && (serving >= p.size || launching == 0)
}

// inVain reports whether x has waited for nothing, if it ends with o.
func (x *exchange) inVain(o outcome) bool {
	switch o {
	case queueFull, queueTimeout:
		return true
	case clientGone: // he had waited, and not for the application
		return !x.waitEnd.IsZero() && x.queuedFor > x.ranFor
	default:
		return false
	}
}

// miss notes that somebody has waited in vain, which overload may begin with. It reports whether he
// is summed up in what the log says of it.
func (p *pool) miss(o outcome) (summed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, now := &p.over, time.Now()
	if !l.on() && now.Sub(l.lastMiss) >= calm {
		l.missed = 0 // of another time
	}
	l.missed += (1 - l.missed) / recentWaits
	l.lastMiss = now
	if !l.on() {
		if p.queue.n == 0 || now.Sub(l.standing) < standingFor || l.missed < manyMissed || !p.wholeLocked() {
			return false
		}
		l.since = now
		p.full, p.limit = episode{}, episode{} // it is more of the same, and ends both
		p.gen.kick()                           // the steward tells of it
	}
	if o == clientGone {
		l.left++
	} else {
		l.refused++
	}
	return true
}

// tellOverload tells the log of an overload that has begun, and of one that is over, or that the pool's stop
// ends, once each. It returns when to look again, if there is one.
func (p *pool) tellOverload(now time.Time, stop bool) (again time.Time) {
	p.mu.Lock()
	l := p.over
	troubled := l.lastMiss
	if l.lastLate.After(troubled) {
		troubled = l.lastLate
	}
	calmed := now.Sub(troubled) >= calm
	begins, ends := l.on() && !l.told, l.on() && (stop || calmed && p.fewWaitLocked())
	p.over.told = l.on()
	if ends {
		p.over = overload{standing: l.standing}
	}
	queued := p.queue.n
	_, slots, _ := p.servingLocked()
	p.mu.Unlock()
	if begins {
		p.tellOverloaded(queued, slots, l.missed)
	}
	if ends {
		p.tellOverloadOver(l)
		return time.Time{}
	}
	switch {
	case !l.on():
		return time.Time{}
	case calmed: // many wait still
		return now.Add(time.Second)
	default:
		return troubled.Add(calm)
	}
}
