package manager

import (
	"time"

	"fpmd/protocol"
)

// A place is where an exchange stands in its pool between its arrival and its
// answer. It changes under pool.mu, and the exchange is told.
type place uint8

const (
	nowhere place = iota
	queued        // in pool.queue
	second        // sent, or about to be, behind the exchange that holds a slot
	holding       // holds a slot
	refused       // it gets no slot; exchange.verdict says why
)

const (
	// quick is the run time of a pool's recent exchanges below which a second
	// one is sent behind a first: it waits for that one, and no worker sleeps
	// between the two.
	quick = time.Millisecond
	// manyPlain is how many answers in succession must have been small and come
	// in one piece. Behind one that does not, a second has to be taken back.
	manyPlain = 64
	// secondWait is how long a second exchange waits for the first.
	secondWait = 10 * time.Millisecond
	// recentShare is the inverse of how much one exchange counts in pool.recent.
	recentShare = 8
)

// acquire takes a slot for x, which waits in the queue where none is free. It
// reports ok with x.slot set, or why there is none.
func (p *pool) acquire(x *exchange) outcome {
	p.mu.Lock()
	if p.stopped {
		p.mu.Unlock()
		return stopping
	}
	if len(p.idle) > 0 {
		p.holdLocked(x, p.takeIdleLocked())
		p.mu.Unlock()
		return ok
	}
	if p.hopelessLocked() {
		p.mu.Unlock()
		return bootFailed
	}
	now := time.Now()
	if !x.bounced { // else it has waited, and its time runs on
		if queued := p.queue.n; queued >= p.config().QueueSize && !p.makeRoomLocked() {
			begins := !p.over.on() && p.full.meet(now)
			p.mu.Unlock()
			if begins {
				p.tellQueueFull(queued)
			}
			return queueFull
		}
		x.waitEnd = now.Add(p.config().QueueTimeout)
	}
	p.queueLocked(x, now, x.bounced)
	end := p.patienceLocked(x, now)
	p.sendSecondsLocked()
	p.mu.Unlock()
	return p.wait(x, end)
}

// wait waits until x holds a slot, its client has left, or until end, or x.waitEnd if it is spared at end.
func (p *pool) wait(x *exchange, end time.Time) outcome {
	x.timer.Reset(time.Until(end))
	defer x.timer.Stop()
	gone := x.gone
	why := ok // the reason to wait no longer
	for {
		rang := false
		select {
		case <-x.turn:
		case <-gone:
			gone, why = nil, clientGone
		case <-x.timer.C:
			rang = true
			if why == ok && !time.Now().Before(end) {
				why = queueTimeout
			}
		}
		p.mu.Lock()
		at, s := x.place, x.slot
		if at == queued && why == queueTimeout && end.Before(x.waitEnd) {
			if now := time.Now(); p.sparedLocked(now) {
				end, why = p.patienceLocked(x, now), ok
			} else {
				x.cause = "the pool is overloaded, and no worker came free within " + overloadWait.String()
			}
		}
		if at == queued && why != ok {
			p.queue.remove(&x.link)
			if why == queueTimeout && p.noneReadyLocked() && p.lastErr != nil {
				why = bootFailed
			}
			x.place = nowhere
		}
		p.mu.Unlock()
		switch at {
		case queued:
			if why != ok {
				return why
			}
			x.timer.Reset(time.Until(end)) // it was taken back
		case second:
			if rang || why != ok {
				p.takeBack(s, x) // x is told where that has put it; else its turn is about to come
			} else if p.follow(x, s) {
				x.timer.Reset(p.patience)
			}
		case holding:
			if why == clientGone && !x.early {
				p.offer(s, ending{})
				x.slot = nil
				return clientGone
			}
			return ok // also when the client has left: the slot has to be given up
		case refused:
			return x.verdict
		case nowhere:
			panic("bug: an exchange waits that is in no place")
		}
	}
}

// crowded reports whether requests wait for a worker.
func (p *pool) crowded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queue.n > 0
}

// takeIdleLocked takes the slot that was used last.
func (p *pool) takeIdleLocked() *slot {
	n := len(p.idle) - 1
	s := p.idle[n]
	p.idle[n] = nil
	p.idle = p.idle[:n]
	s.takeLocked()
	return s
}

func (s *slot) takeLocked() {
	s.w.taken++
	s.w.moveLocked(busy)
}

// freeLocked is takeLocked undone. A slot is taken until it is greeted for the first time, too.
func (s *slot) freeLocked() {
	s.w.taken--
	if !s.greeted {
		s.greeted = true
		s.w.ungreeted--
	}
}

// holdLocked has x hold s, which is taken.
func (p *pool) holdLocked(x *exchange, s *slot) {
	x.place, x.slot = holding, s
	if x.all {
		p.open.pushBack(&s.link)
	}
}

// tellLocked has x look where it stands now.
func (x *exchange) tellLocked() {
	select {
	case x.turn <- struct{}{}:
	default: // it has not looked yet
	}
}

// requeueLocked puts x, which was taken back, where it is first.
func (p *pool) requeueLocked(x *exchange) {
	x.slot, x.early = nil, false
	switch {
	case p.stopped:
		x.place, x.verdict = refused, stopping
	case len(p.idle) > 0:
		p.holdLocked(x, p.takeIdleLocked())
	default:
		p.queueLocked(x, time.Now(), true)
	}
	x.tellLocked()
}

// sendSecondsLocked places who is next behind exchanges that hold slots, where
// the pool's exchanges are quick: every slot is taken, or nobody would wait.
func (p *pool) sendSecondsLocked() {
	if p.recent >= quick || p.plain < manyPlain || !p.seconds {
		return
	}
	for range min(p.open.n, 4) { // more are not worth the search
		if p.queue.n == 0 {
			return
		}
		if x := p.nextLocked(); x.size() > protocol.MaxBehind || !x.all || x.bounced {
			return
		}
		s, _ := p.open.pop()
		if s.w.state != busy || s.w.gen != p.gen {
			continue
		}
		if !s.Open() {
			p.open.pushBack(&s.link)
			continue
		}
		x, _ := p.popNextLocked()
		s.behind = x
		x.place, x.slot = second, s
		x.tellLocked()
	}
}

// follow sends x behind the exchange that holds s, and reports whether that is
// where x stands.
func (p *pool) follow(x *exchange, s *slot) bool {
	s.settling.Lock()
	defer s.settling.Unlock()
	p.mu.Lock()
	there := s.behind == x
	p.mu.Unlock()
	if there && !x.early {
		x.number = p.numbers.Add(1)
		x.early = s.SendBehind(x.env.block, x.body, x.number)
	}
	return there
}

// takeBack puts who was sent behind the exchange that holds s back into the
// queue, and has nobody follow. It reports false when the worker has begun that
// one, and so was done with the one before. The holder calls it with nil; who
// was sent behind, with himself.
func (p *pool) takeBack(s *slot, self *exchange) bool {
	s.settling.Lock()
	defer s.settling.Unlock()
	p.mu.Lock()
	x := s.behind
	if self == nil {
		p.open.remove(&s.link)
	}
	p.mu.Unlock()
	if x == nil || self != nil && self != x {
		return true
	}
	if x.early && !s.Withdraw(x.number) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.behind == x {
		s.behind = nil
		p.requeueLocked(x)
	} else {
		x.early = false // x has called, holds the slot by now, and sends anew
	}
	return true
}

// refuseSecond ends the waiting of who was sent behind an exchange whose slot is
// lost, and was begun.
func (p *pool) refuseSecond(s *slot, o outcome, cause string) {
	s.settling.Lock() // who takes himself back is done with the page
	defer s.settling.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if x := s.behind; x != nil {
		s.behind = nil
		x.slot, x.early = nil, false
		x.worker = s.w.id
		x.place, x.verdict, x.cause = refused, o, cause
		x.tellLocked()
	}
}

// An ending is what the pool learns of an exchange that gives its slot back. The zero
// value: it had no answer, or there was none.
type ending struct {
	answered bool
	large    bool          // the answer was, or came in pieces
	ran      time.Duration // 0: as long as its client took, which tells nothing of the next
}

// offer gives a slot back that was taken and is greeted now. It reports whether
// somebody has it already.
func (p *pool) offer(s *slot, e ending) (waited bool) {
	w := s.w
	p.mu.Lock()
	if e.answered {
		w.served++
		if w.served == 1 {
			close(w.proved)
		}
		if w.served == w.maxServed {
			w.gen.kick()
		}
	}
	switch {
	case e.large:
		p.plain = 0
	case e.ran > 0:
		p.plain++
		p.recent += (min(e.ran, secondWait) - p.recent) / recentShare
	}
	p.open.remove(&s.link)
	if x := s.behind; x != nil {
		s.behind = nil
		p.holdLocked(x, s)
		x.tellLocked()
		p.sendSecondsLocked()
		p.mu.Unlock()
		return true
	}
	s.freeLocked()
	switch {
	case w.state == draining || w.state == gone:
		w.drainedLocked()
		p.mu.Unlock()
		s.Close()
		return false
	case p.gen != w.gen: // its turn has not come, or is over and w about to leave
		w.spare = append(w.spare, s)
		w.standLocked()
	default:
		w.standLocked()
		waited = p.giveLocked(s)
		p.readyLocked()
	}
	p.mu.Unlock()
	return waited
}

// giveLocked puts a free slot to use: for who is next of those that wait, or for who
// comes. It reports whether somebody had waited. mu is held.
func (p *pool) giveLocked(s *slot) (waited bool) {
	x, waited := p.popNextLocked()
	if !waited {
		p.idle = append(p.idle, s)
		return false
	}
	s.takeLocked()
	p.holdLocked(x, s)
	x.tellLocked()
	return true
}

// discard takes note that a slot is closed and does not come back.
func (p *pool) discard(s *slot) {
	s.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	s.freeLocked()
	s.w.drainedLocked()
}
