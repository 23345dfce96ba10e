package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A generation is one launch of a pool's configuration and code. Its steward keeps
// it at the size that the configuration and the load ask for, until it is retired.
type generation struct {
	pool  *pool
	cfg   *PoolConfig
	sizes *PoolConfig // cfg, but of the size that a reload has given it since; guarded by pool.mu
	from  *PoolConfig // cfg, with directory where its links led when the generation began
	n     int

	ctx    context.Context // ends when no worker of it is to be started any more
	cancel context.CancelFunc
	wake   chan struct{} // has room for one: something has changed

	// Guarded by pool.mu.
	backoff  backoff   // between starts
	proven   bool      // the last start has worked
	probed   int       // the status with which a worker has answered the probe; 0: none has
	fresh    bool      // it has not had those workers yet that it begins with
	slots    int       // of one worker, as the last that came has them
	batch    int       // how many workers were started at once the last time
	batchAt  time.Time // when that was
	shrunkAt time.Time // when one was last told to leave because there were too many
	hungry   bool      // a request that has to wait is worth a look at the size
	vacant   []int     // of a static pool: workers that have ended, and in whose place none was started yet
}

// kick has the steward look at what has changed.
func (g *generation) kick() {
	select {
	case g.wake <- struct{}{}:
	default: // it has not looked yet
	}
}

// askedLocked notes that a request has come to wait. pool.mu is held.
func (g *generation) askedLocked() {
	if g.hungry {
		g.hungry = false
		g.kick()
	}
}

// steward starts and retires workers until the generation is retired.
func (g *generation) steward() {
	p := g.pool
	t := time.NewTimer(0)
	defer t.Stop()
	said := time.Time{} // which delay the log knows of
	for {
		select {
		case <-g.wake:
		case <-t.C:
		case <-g.ctx.Done():
			return
		}
		now := time.Now()
		p.mu.Lock()
		if g != p.gen || p.stopped { // it is kept, and rollback kicks it, or about to be retired
			p.mu.Unlock()
			t.Stop()
			continue
		}
		h := g.headcountLocked(now)
		d := p.mgr.rations.decide(g, h)
		starts := make([]*worker, d.start)
		for i := range starts {
			starts[i] = g.newWorkerLocked(h.reason(g.sizes, d))
		}
		g.succeedLocked(h, d, starts)
		if d.start > 0 {
			g.batch, g.batchAt = d.start, now
		}
		if d.replace != nil {
			d.replace.due = d.replace.overdue(now)
			d.replace.next = starts[0]
		}
		for _, l := range d.leave {
			l.w.due = cmp.Or(l.w.due, l.why)
			g.shrunkAt = now
		}
		g.fresh, g.hungry = d.fresh, d.hungry
		p.mu.Unlock()
		for _, w := range starts {
			p.wg.Go(func() { g.fill(w, d.replace) }) // ends when w has proved itself, or will not be
		}
		for _, l := range d.leave {
			l.w.retire(l.w.due)
		}
		if !d.delayed.IsZero() && !d.delayed.Equal(said) {
			said = d.delayed
			p.log.Info("next worker delayed", "start_in", said.Sub(now).Round(time.Millisecond))
		}
		if again := p.tellOverload(time.Now(), false); !again.IsZero() {
			d.lookAt(again)
		}
		if d.again.IsZero() {
			t.Stop()
		} else {
			t.Reset(time.Until(d.again))
		}
	}
}

// fill launches w, in whose favour old leaves, unless it is nil. Where w does not come up, or
// dies before it has served anybody or lived for goodLife, old stays.
func (g *generation) fill(w, old *worker) {
	p := g.pool
	if err := w.launch(g.ctx); err != nil {
		if g.ctx.Err() == nil {
			p.log.Error("worker did not start", append(notStarted(err), "next", "try again")...)
			p.failed(g, err)
		}
		return
	}
	if old == nil {
		return
	}
	t := time.NewTimer(goodLife)
	defer t.Stop()
	select {
	case <-w.proved:
	case <-t.C:
	case <-w.leaving:
	case <-g.ctx.Done():
	}
	p.mu.Lock()
	serves, why := w.servesLocked(), old.due // still
	p.mu.Unlock()
	if serves {
		old.retire(why)
	}
}

// cameLocked notes that w is ready. pool.mu is held.
func (g *generation) cameLocked(w *worker) {
	w.readyAt = time.Now()
	w.idleAt = w.readyAt
	w.planEnd()
	g.proven, g.slots = true, max(1, len(w.slots))
	if g == g.pool.gen {
		g.pool.worksLocked()
	}
	g.kick()
}

// leftLocked notes that w takes no further exchange, or never took one. Whoever served,
// lived for long enough, or leaves by our own order has done well. When too many have failed
// in a row for the next to be worth waiting for, nobody waits. pool.mu is held.
func (g *generation) leftLocked(w *worker) {
	p := g.pool
	g.kick()
	p.keptDiedLocked(w)
	g.vacateLocked(w)
	switch {
	case g.ctx.Err() != nil: // not for its own sake
		return
	case w.proveLocked(), w.due != "" && w.state == draining: // by our own order: it was well
		g.backoff.reset()
		return
	}
	g.proven = g.proven && !w.readyAt.IsZero()
	g.backoff.fail()
	if g == p.gen {
		p.lastErr = errors.New(w.cause)
		select {
		case <-p.failedOnce:
		default:
			close(p.failedOnce)
		}
		if p.hopelessLocked() {
			p.failsLocked()
			p.refuseQueuedLocked(bootFailed)
		}
	}
}

// vacateLocked notes that w has left, and somebody is to take its place. pool.mu is held.
func (g *generation) vacateLocked(w *worker) {
	if g.cfg.PM == Static && w.due == "" && w.id != 0 {
		g.vacant = append(g.vacant, w.id)
	}
}

// succeedLocked says in whose place starts are started. pool.mu is held.
func (g *generation) succeedLocked(h headcount, d decision, starts []*worker) {
	for _, w := range starts {
		switch {
		case d.replace != nil:
			w.replaces = d.replace.id
		case len(g.vacant) > 0:
			w.replaces = g.vacant[0]
			g.vacant = g.vacant[1:]
		}
	}
	if len(h.ready)+h.launching+d.start >= h.limit {
		g.vacant = nil
	}
}

// retire ends the generation: its workers finish what they have. It does not
// wait; each worker's gone says when it is over.
func (g *generation) retire(cause string) {
	g.cancel()
	for _, w := range g.pool.workersOf(g) {
		w.retire(cause)
	}
}

// A headcount is what the size of a generation is decided by.
type headcount struct {
	now       time.Time
	limit     int       // workers that there may be; of a static pool, that there are
	size      int       // as limit, as far as max_workers has them for this pool
	room      int       // how many more max_workers has room for by now
	launching int       // on their way
	ready     []member  // in service, least recently used first
	waiting   bool      // one of them, for who takes its place
	draining  bool      // one that was due, or too many, still has requests to end
	removed   bool      // the pool was, and so needs no more than its requests do
	ahead     int       // how many may be on their way at once
	slots     int       // of one that comes
	queued    int       // requests that wait
	fresh     bool      // it has not had those workers yet that it begins with
	unproven  bool      // the last start has not worked, or there was none
	failing   bool      // workers fail, one after the other
	notBefore time.Time // for the next start
	batch     int       // started at once the last time,
	batchAt   time.Time // and when
	shrunkAt  time.Time
}

// A member is a worker in service.
type member struct {
	w     *worker
	slots int
	free  int       // slots, those included that are yet to be greeted for the first time
	idle  time.Time // since when all its slots are free
	until time.Time // when it is due for replacement; zero: never
	trust time.Time // when it has proved itself, at the latest; zero: it has
}

// A departure is a worker that is to leave with nobody in its place.
type departure struct {
	w   *worker
	why string
}

// A decision is what a steward does next.
type decision struct {
	start   int
	leave   []departure
	replace *worker   // by the one that is started
	again   time.Time // to look again, if nothing happens before; zero: never
	delayed time.Time // until when there is no start, though there is need, since those before have failed
	fresh   bool      // it has still not had those workers that it begins with
	hungry  bool      // a request more that waits would change it
}

const (
	// batchEvery is how long a batch of new workers may take before the next one, of twice
	// as many, is started beside it.
	batchEvery = time.Second
	mostAtOnce = 32
	// minLook is the least time between two looks for who is idle.
	minLook = 100 * time.Millisecond
)

// headcountLocked counts. pool.mu is held.
func (g *generation) headcountLocked(now time.Time) headcount {
	p := g.pool
	h := headcount{
		now: now, limit: p.size, slots: g.slots, queued: p.queue.n, ahead: p.mgr.starts.n,
		fresh: g.fresh, unproven: !g.proven, failing: g.backoff.failing(), notBefore: g.backoff.next,
		batch: g.batch, batchAt: g.batchAt, shrunkAt: g.shrunkAt,
	}
	for w := range p.workers {
		switch {
		case w.gen != g:
		case w.state == starting:
			h.launching++
		case w.state == draining && w.due != "":
			h.draining = true
		case w.servesLocked():
			m := member{w: w, slots: len(w.slots), free: len(w.slots) - w.busySlots(), idle: w.idleAt, until: w.until()}
			if !w.proveLocked() {
				m.trust = w.readyAt.Add(goodLife)
			}
			h.ready = append(h.ready, m)
			h.waiting = h.waiting || w.next != nil && (w.next.state == starting || w.next.servesLocked())
		}
	}
	if h.removed = !p.left.IsZero(); h.removed && now.Sub(p.left) >= neededFor {
		h.limit = min(h.limit, max(h.busy(), min(len(h.ready), 1))) // one for who has connected, and has not said yet what he wants
	}
	slices.SortFunc(h.ready, func(a, b member) int { return a.idle.Compare(b.idle) })
	return h
}

// decide is the policy of a generation's size. It has no effect, and no memory of
// its own.
func (h headcount) decide(cfg *PoolConfig) (d decision) {
	stay := h.stay()
	if stay > h.limit { // who is on the way can leave when he has come, and may never come
		why := causeScale
		if h.removed {
			why = causeRemoved
		}
		d.leave = h.surplus(stay-h.limit, why)
	} else if stay > h.size {
		d.leave = h.surplus(stay-h.size, yielded)
	}
	have := stay + h.launching
	more := h.size - have
	lacking := min(more, h.first(cfg)-have) // of those that it begins with
	d.fresh = h.fresh && stay < min(h.size, h.first(cfg))
	if cfg.PM != Static {
		if more = min(more, h.demand(cfg)); d.fresh {
			more = max(more, lacking)
		}
		if len(d.leave) == 0 && !d.fresh {
			d.leave = h.idlers(cfg, &d)
		}
	}
	if more > h.room { // others may make some, without a word: by workers that do not come up
		d.lookAt(h.now.Add(batchEvery))
	}
	// Who is ordered waits for his turn, and comes even if nobody needs him by then.
	more = min(more, h.ahead-h.launching, h.room)
	if h.unproven { // an application that is broken says so once, and not once for each worker
		more = min(more, 1-h.launching)
	}
	switch {
	case more <= 0:
	case h.now.Before(h.notBefore):
		d.delayed = h.notBefore
		d.lookAt(h.notBefore)
	case cfg.PM == Static:
		d.start = more
	case d.fresh && lacking > 0:
		d.start = min(more, lacking)
	case h.launching > 0 && h.now.Before(h.batchAt.Add(batchEvery)):
		d.lookAt(h.batchAt.Add(batchEvery))
	case h.now.After(h.batchAt.Add(2 * batchEvery)):
		d.start = 1
	default:
		d.start = min(more, 2*h.batch, mostAtOnce)
	}
	if h.removed { // nobody tells when a request has ended
		d.lookAt(h.now.Add(batchEvery))
	}
	coming := h.launching + d.start
	grows := cfg.PM != Static && have < h.limit
	pressed := grows && h.queued > 0 && coming == 0 && (have >= h.size || h.room == 0) // others have what it needs
	d.hungry = grows && coming == 0 && d.delayed.IsZero() && !pressed
	// The spare ones are counted once in a while, not for each request; so are those that
	// wait while the next worker loads, or another pool's leaves.
	if cfg.PM == Dynamic || grows && coming > 0 || pressed {
		d.lookAt(h.now.Add(batchEvery))
	}
	if coming == 0 && len(d.leave) == 0 && !h.waiting && !h.draining && !h.removed {
		h.renew(&d)
	}
	return d
}

// reason says why workers are started, as d has it.
func (h headcount) reason(cfg *PoolConfig, d decision) string {
	switch {
	case d.replace != nil:
		return fmt.Sprintf("worker %d is due for replacement: %s", d.replace.id, d.replace.overdue(h.now))
	case h.fresh:
		return "the pool begins"
	case cfg.PM == Static:
		return fmt.Sprintf("%d of %d workers are there", len(h.ready)+h.launching, h.limit)
	case h.queued > 0:
		return fmt.Sprintf("requests wait: %d", h.queued)
	case cfg.PM == Dynamic:
		return fmt.Sprintf("fewer than min_spare_workers = %d slots are free", cfg.MinSpareWorkers)
	default:
		return "to see whether one comes up"
	}
}

func (d *decision) lookAt(t time.Time) {
	if d.again.IsZero() || t.Before(d.again) {
		d.again = t
	}
}

// yielded is why a worker leaves that max_workers has for another pool.
const yielded = "max_workers"

// stay is how many of those that are ready stay.
func (h headcount) stay() int {
	if h.waiting {
		return len(h.ready) - 1 // it is as good as gone
	}
	return len(h.ready)
}

// neededFor is how long a worker counts as needed after its last request: a lull of a moment is no
// reason to end it for another pool's sake, and to start it again.
const neededFor = time.Second

// needed is how many workers the requests that there are, or were a moment ago, keep busy; of a generation
// that has had none, or none that came up, at least the one that shows whether it does.
func (h headcount) needed(cfg *PoolConfig) int {
	if cfg.PM == Static {
		return h.limit
	}
	n := h.busy()
	if h.fresh || len(h.ready) == 0 && h.failing {
		return max(n, 1)
	}
	return n
}

// busy is how many workers the requests that there are, or were a moment ago, keep busy.
func (h headcount) busy() int {
	n, free := 0, 0
	for _, m := range h.ready {
		if free += m.free; m.free < m.slots || h.now.Sub(m.idle) < neededFor {
			n++
		}
	}
	return n + (max(h.queued-free, 0)+h.slots-1)/h.slots
}

// first is how many workers the generation begins with.
func (h headcount) first(cfg *PoolConfig) int {
	switch cfg.PM {
	case Static:
		return h.size
	case Dynamic:
		return cfg.StartWorkers
	default: // on demand: does it come up at all?
		return 1
	}
}

// demand is how many workers more the load asks for, of a pool that is not static.
func (h headcount) demand(cfg *PoolConfig) int {
	if len(h.ready) == 0 && h.launching == 0 && h.failing {
		return 1 // who asks is told so, and does not wait: somebody has to try
	}
	lack := h.queued - h.launching*h.slots
	for _, m := range h.ready {
		lack -= m.free
	}
	if cfg.PM == Dynamic {
		lack += cfg.MinSpareWorkers
	}
	return (max(lack, 0) + h.slots - 1) / h.slots
}

// surplus is n workers that leave because there may not be so many, idle ones first.
func (h headcount) surplus(n int, why string) (leave []departure) {
	for _, wantFree := range []bool{true, false} {
		for _, m := range h.ready {
			if (m.free == m.slots) == wantFree && len(leave) < n {
				leave = append(leave, departure{m.w, why})
			}
		}
	}
	return leave
}

// idlers is the workers that leave because they have been idle for idle_timeout, the least
// recently used first; of a dynamic pool, one a second of what exceeds max_spare_workers. Of a
// pool on demand, those that are due for replacement leave as well: whoever asks next starts another.
func (h headcount) idlers(cfg *PoolConfig, d *decision) (leave []departure) {
	free := 0
	for _, m := range h.ready {
		free += m.free
	}
	for _, m := range h.ready {
		if m.free < m.slots || h.queued > 0 {
			d.lookAt(h.now.Add(max(cfg.IdleTimeout, minLook))) // nobody tells when it becomes idle
			continue
		}
		leaves, why := m.idle.Add(cfg.IdleTimeout), "idle_timeout"
		switch {
		case cfg.PM == Dynamic && free-m.slots < cfg.MaxSpareWorkers:
			return leave
		case cfg.PM == Dynamic && leaves.Before(h.shrunkAt.Add(time.Second)):
			leaves = h.shrunkAt.Add(time.Second)
		case cfg.PM == OnDemand && !m.until.IsZero() && m.until.Before(leaves):
			leaves = m.until
		}
		if h.now.Before(leaves) {
			d.lookAt(leaves)
			continue
		}
		if cfg.PM == Dynamic {
			why = "max_spare_workers"
		}
		leave = append(leave, departure{m.w, why})
		if free -= m.slots; cfg.PM == Dynamic {
			d.lookAt(h.now.Add(time.Second))
			return leave
		}
	}
	return leave
}

// renew has one worker that is due replaced, as soon as those that there are have proved
// themselves: code that comes up and dies is not for all of them.
func (h headcount) renew(d *decision) {
	var trust time.Time
	for _, m := range h.ready {
		if m.trust.After(trust) {
			trust = m.trust
		}
	}
	for _, m := range h.ready {
		switch {
		case m.until.IsZero():
		case h.now.Before(m.until):
			d.lookAt(m.until)
		case h.now.Before(h.notBefore):
			d.lookAt(h.notBefore)
		case h.now.Before(trust):
			d.lookAt(trust)
		default:
			d.start, d.replace = 1, m.w
			return
		}
	}
}
