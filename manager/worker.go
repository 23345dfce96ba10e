package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"fpmd/protocol"
)

// A workerState is where a worker stands in its life; a replacement is a new
// worker.
type workerState uint8

const (
	starting workerState = iota // wanted, and launched when it is its turn; no slot of it was greeted yet
	idle                        // ready, and no slot taken
	busy                        // ready, and at least one slot taken
	draining                    // takes no new exchange, finishes those it has
	gone                        // reaped; nothing follows
)

var workerStates = [...]string{starting: "starting", idle: "idle", busy: "busy", draining: "draining", gone: "gone"}

func (s workerState) String() string { return workerStates[s] }

// workerMoves lists every step that a worker may take. Why it takes one is kept apart,
// in worker.cause, so that a new reason to retire does not add a state.
var workerMoves = [...][]workerState{
	starting: {idle, draining, gone},
	idle:     {busy, draining, gone},
	busy:     {idle, draining, gone},
	draining: {gone},
	gone:     {},
}

// A slot is one connection to a worker, and what dispatch hands out.
type slot struct {
	*protocol.Slot
	w *worker

	settling sync.Mutex // held while behind is sent, or taken back; locked before pool.mu
	behind   *exchange  // is served next: sent behind the one that holds the slot. Under pool.mu, as
	link     link       // its place in pool.open is, and whether
	greeted  bool       // it was greeted ever, or will not be

	clock *stopwatch // nil: the pool has no slow_timeout
}

func newSlot(w *worker, i int) *slot {
	s := &slot{Slot: protocol.NewSlot(i, w.proc.page), w: w}
	s.link.Value = s
	if w.gen.cfg.SlowTimeout > 0 {
		s.clock = new(stopwatch)
	}
	return s
}

// A worker is one process of a pool, from its launch until it is reaped.
type worker struct {
	gen   *generation
	id    int      // set once, when it is launched; 0: it waits for its turn
	proc  *process // with slots, set once, before the worker is ready
	slots []*slot
	log   *slog.Logger

	why      string  // it is started; set once, as is
	replaces int     // the id of the worker in whose place it is; 0: of none
	spawned  spawned // who launches it sets it once, when there is a process

	// Guarded by pool.mu.
	state     workerState
	cause     string    // why it left service, once it has
	taken     int       // slots that are not free: with an exchange, or not greeted,
	ungreeted int       // not even once
	spare     []*slot   // free slots of a generation that does not serve yet
	served    uint64    // exchanges answered
	readyAt   time.Time // when it was; zero: not yet
	idleAt    time.Time // when it last became idle, or was ready, of an elastic pool
	maxServed uint64    // exchanges after which it is due for replacement; 0: never
	dieAt     time.Time // when it is due; zero: never
	due       string    // why it is; it stays so
	limited   bool      // it is said that it has met a limit of its control group
	next      *worker   // takes its place as soon as it is ready; nil, or it has failed: nobody does
	vacates   bool      // nobody has its share of max_workers until it is gone

	proved  chan struct{}  // closed when it has answered its first exchange
	leaving chan struct{}  // closed when it takes no further exchange
	drained chan struct{}  // closed when, after that, no slot is taken any more
	gone    chan struct{}  // closed when nothing of it is left
	wg      sync.WaitGroup // goroutines that connect slots
}

// spawned is a process, and since when.
type spawned struct {
	pid int
	at  time.Time
}

// moveLocked is the only way a worker's state changes. A step that is not listed is a bug:
// no application can bring it about. pool.mu is held.
func (w *worker) moveLocked(to workerState) {
	if w.state == to {
		return
	}
	if !slices.Contains(workerMoves[w.state], to) {
		panic(fmt.Sprintf("bug: worker %d from %v to %v", w.id, w.state, to))
	}
	w.state = to
}

// leaveLocked takes the worker out of service and returns its free slots, for the
// caller to close once pool.mu is released.
func (w *worker) leaveLocked(to workerState, cause string) (free []*slot) {
	p := w.gen.pool
	w.moveLocked(to)
	if w.cause == "" {
		w.cause = cause
		close(w.leaving)
		w.gen.leftLocked(w)
	}
	p.idle = slices.DeleteFunc(p.idle, func(s *slot) bool {
		if s.w != w {
			return false
		}
		free = append(free, s)
		return true
	})
	free = append(free, w.spare...)
	w.spare = nil
	w.drainedLocked()
	return free
}

// standLocked says, of a worker in service, whether it is idle or busy.
func (w *worker) standLocked() {
	if w.state == starting {
		w.moveLocked(idle)
		w.gen.cameLocked(w)
	}
	if w.taken > 0 {
		w.moveLocked(busy)
	} else {
		w.moveLocked(idle)
		if w.gen.cfg.PM != Static {
			w.idleAt = time.Now()
		}
	}
}

// busySlots counts its slots that have an exchange. pool.mu is held.
func (w *worker) busySlots() int { return w.taken - w.ungreeted }

// servesLocked reports whether it is in service. pool.mu is held.
func (w *worker) servesLocked() bool { return w.state == idle || w.state == busy }

// proveLocked reports whether it has done well: it has served somebody, or lived for goodLife.
func (w *worker) proveLocked() bool {
	return w.served > 0 || !w.readyAt.IsZero() && time.Since(w.readyAt) >= goodLife
}

// planEnd says when w, which is ready, is due for replacement. Jitter keeps workers that
// started together from ending together. pool.mu is held.
func (w *worker) planEnd() {
	cfg := w.gen.cfg
	if cfg.MaxRequests > 0 {
		w.maxServed = uint64(cfg.MaxRequests) + rand.N(uint64(cfg.MaxRequestsJitter)+1)
	}
	if cfg.MaxAge > 0 {
		w.dieAt = w.readyAt.Add(cfg.MaxAge + rand.N(cfg.MaxAgeJitter+1))
	}
}

// until is when w is due for replacement, or was, and zero if it never is. pool.mu is held.
func (w *worker) until() time.Time {
	if w.due != "" || w.maxServed > 0 && w.served >= w.maxServed {
		return w.readyAt
	}
	return w.dieAt
}

// overdue says why w is due for replacement by now, or "". pool.mu is held.
func (w *worker) overdue(now time.Time) string {
	switch {
	case w.due != "":
		return w.due
	case w.maxServed > 0 && w.served >= w.maxServed:
		return "max_requests"
	case !w.dieAt.IsZero() && !now.Before(w.dieAt):
		return "max_age"
	}
	return ""
}

// kill ends the process, if there is one, at once.
func (w *worker) kill() {
	w.gen.pool.mu.Lock()
	proc := w.proc
	w.gen.pool.mu.Unlock()
	if proc != nil {
		proc.kill()
	}
}

func (w *worker) drainedLocked() {
	if w.taken == 0 && (w.state == draining || w.state == gone) {
		select {
		case <-w.drained:
		default:
			close(w.drained)
		}
	}
}

// start launches the process and returns once the worker is ready and its
// first slot greeted, or with the reason why not and nothing left behind. The first of a generation
// has to answer the probe as well, before anything of it is in service.
func (w *worker) start(ctx context.Context) error {
	p, cfg := w.gen.pool, w.gen.cfg
	began := time.Now()
	launched := Aside()
	defer launched()
	l, err := p.launch(w.id, w.gen.from)
	if err != nil {
		return err
	}
	l.spawned = func(pid int) {
		w.tellSpawned(pid, l.argv)
		launched()
	}
	proc, err := start(ctx, l)
	if err != nil {
		return err
	}
	w.log = p.log.With("worker", w.id, "pid", proc.pid)
	p.mu.Lock()
	w.proc = proc
	w.taken, w.ungreeted = proc.slots, proc.slots
	for i := range proc.slots {
		w.slots = append(w.slots, newSlot(w, i))
	}
	p.mu.Unlock()
	if w.gen.ctx.Err() != nil { // its end came while there was no proc that retire could have seen
		w.retire("its generation was retired")
	}
	greeted := make(chan error, proc.slots)
	deadline := began.Add(cfg.StartTimeout)
	connect := func(slots []*slot, deadline time.Time) {
		for _, s := range slots {
			w.wg.Go(func() { greeted <- w.connect(s, deadline) }) // ends then, or with the process
		}
	}
	var rest []*slot // that wait for the probe
	status := 0
	if w.gen.wantsProbe() {
		rest = w.slots[1:]
		w.wg.Go(func() { // ends at deadline, or with the probe's time, or with the process
			var err error
			status, err = w.connectProbed(w.slots[0], deadline)
			greeted <- err
		})
	} else {
		connect(w.slots, deadline)
	}
	if cfg.SlowTimeout > 0 {
		w.wg.Go(w.watchSlow) // ends with the process
	}
	go w.watch() // ends with the process; its end is w.gone
	select {
	case err = <-greeted:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		if _, loaded := errors.AsType[*probeError](err); loaded {
			w.retire("it failed the probe") // and may have something to undo
			defer context.AfterFunc(ctx, proc.kill)()
		} else {
			why := "no greeting"
			if ctx.Err() != nil {
				why = "its start was given up"
			}
			w.retire(why)
			proc.kill()
		}
		for _, s := range rest {
			p.discard(s)
		}
		<-w.gone
		return &startError{launch: l, cause: err, lines: proc.tail()}
	}
	connect(rest, time.Now().Add(cfg.StartTimeout)) // the answer may have taken longer than what was left of the first
	w.tellReady(time.Since(began), status)
	go w.greetings(greeted, proc.slots-1) // ends when the goroutines do that connect
	return nil
}

// greetings awaits the other slots' greetings: a worker that takes fewer exchanges at once than
// it said is replaced.
func (w *worker) greetings(greeted <-chan error, n int) {
	for range n {
		err := <-greeted
		if err == nil {
			continue
		}
		select {
		case <-w.leaving: // that is why; or the process has ended, of which a connection often tells first
		case <-time.After(reapWait):
			w.tellFewSlots(err)
			w.retire("a slot was not greeted")
		}
	}
}

// connect is greet, and puts s at the pool's disposal.
func (w *worker) connect(s *slot, deadline time.Time) error {
	if err := w.greet(s, deadline); err != nil {
		return err
	}
	w.gen.pool.offer(s, ending{})
	return nil
}

// connectProbed is connect once the worker has answered the probe, with this status.
func (w *worker) connectProbed(s *slot, deadline time.Time) (status int, err error) {
	if err := w.greet(s, deadline); err != nil {
		return 0, err
	}
	if status, err = w.probe(s); err != nil {
		w.gen.pool.discard(s)
		return status, err
	}
	w.gen.noteProbe(status)
	w.gen.pool.offer(s, ending{})
	return status, nil
}

// greet dials the worker for s, and waits until the worker greets it, which it
// does when it is free.
func (w *worker) greet(s *slot, deadline time.Time) error {
	nc, err := w.proc.dial()
	if err == nil {
		if w.over() {
			s.Lose()
		}
		err = s.Connect(nc, deadline)
	}
	if err != nil {
		w.gen.pool.discard(s)
	}
	return err
}

func (w *worker) over() bool {
	select {
	case <-w.proc.done():
		return true
	default:
		return false
	}
}

// settle brings a slot back whose exchange, of the request id, was abandoned: the worker greets a
// new connection when it is done with the old. When it has not by deadline
// (zero: never), it is stuck, and is replaced.
func (w *worker) settle(s *slot, id string, deadline time.Time, cause string) {
	w.wg.Go(func() { // ends at deadline, or with the process
		err := w.connect(s, deadline)
		if err == nil {
			return
		}
		if !errors.Is(err, protocol.ErrDeadline) {
			select {
			case <-w.leaving: // that is why; or the process has ended, of which a connection often tells first
			case <-time.After(reapWait):
			}
		}
		select {
		case <-w.leaving: // its end has a clock already
		default:
			w.tellStuck(id, cause, err)
			w.retire(cause)
		}
	})
}

// retire takes the worker out of service, lets it finish what it has within drain_timeout, and
// stops it. It does not wait, and does nothing when the worker is leaving already.
func (w *worker) retire(cause string) { w.leave(cause, w.gen.cfg.DrainTimeout) }

// leave is retire within limit; 0: what it has ends under its own clocks.
func (w *worker) leave(cause string, limit time.Duration) {
	p := w.gen.pool
	p.mu.Lock()
	if w.proc == nil || w.state == draining || w.state == gone {
		p.mu.Unlock() // a launch under way ends with its generation
		return
	}
	free := w.leaveLocked(draining, cause)
	w.tellRetiredLocked()
	w.wg.Add(1)
	p.mu.Unlock()
	closeAll(free)
	go func() { // ends with the process, whose end it brings about
		defer w.wg.Done()
		var over <-chan time.Time
		if limit > 0 {
			t := time.NewTimer(limit)
			defer t.Stop()
			over = t.C
		}
		select {
		case <-w.drained:
		case <-over:
			p.mu.Lock()
			n := w.busySlots()
			p.mu.Unlock()
			w.tellDrainTimeout(n)
		case <-w.proc.done():
			return
		}
		w.proc.stop(w.gen.cfg.StopTimeout, func() {
			w.log.Warn("worker not stopped within stop_timeout", "stop_timeout", w.gen.cfg.StopTimeout, "next", "kill it, and what it has started")
		})
		<-w.proc.done()
	}()
}

func closeAll(slots []*slot) {
	for _, s := range slots {
		s.Close()
	}
}

// watch waits for the process to end, and ends what depends on it.
func (w *worker) watch() {
	<-w.proc.done()
	p := w.gen.pool
	p.mu.Lock()
	unexpected := w.state != draining
	free := w.leaveLocked(gone, w.proc.exit().String())
	served := w.served
	p.mu.Unlock()
	closeAll(free)
	for _, s := range w.slots {
		s.Lose() // those in use are settled by who uses them
	}
	<-w.drained
	w.wg.Wait()
	if err := w.proc.page.Close(); err != nil {
		w.log.Error("unmap the worker's page", "cause", err)
	}
	w.tellGone(unexpected, served)
	close(w.gone)
}

// newWorkerLocked is a worker that is about to be launched, and why.
func (g *generation) newWorkerLocked(why string) *worker {
	w := &worker{
		gen: g, log: g.pool.log, why: why,
		proved: make(chan struct{}), leaving: make(chan struct{}), drained: make(chan struct{}), gone: make(chan struct{}),
	}
	g.pool.enrolLocked(w)
	return w
}

// startWorker starts one more, beside those that the steward sees to.
func (g *generation) startWorker(ctx context.Context) (*worker, error) {
	g.pool.mu.Lock()
	w := g.newWorkerLocked(fmt.Sprintf("generation %d begins", g.n))
	g.pool.mu.Unlock()
	return w, w.launch(ctx)
}

// turns are had by n at once, who came first first.
type turns struct {
	*semaphore.Weighted
	n int
}

func newTurns(n int) turns { return turns{semaphore.NewWeighted(int64(n)), n} }

// launch starts w when it is its turn: the supervisor starts only so many at once. With an
// error, nothing of w is left.
func (w *worker) launch(ctx context.Context) error {
	err := w.launchInTurn(ctx)
	if err != nil && w.id != 0 {
		w.tellNotStarted(err)
	}
	if err != nil && w.proc == nil {
		p := w.gen.pool
		p.mu.Lock()
		w.leaveLocked(gone, err.Error())
		p.mu.Unlock()
		close(w.gone) // else watch has
	}
	return err
}

func (w *worker) launchInTurn(ctx context.Context) error {
	p := w.gen.pool
	if p.mgr.starts.Acquire(ctx, 1) != nil {
		return context.Cause(ctx)
	}
	over := sync.OnceFunc(func() { p.mgr.starts.Release(1) })
	defer over()
	defer time.AfterFunc(startTurn, over).Stop()
	p.mu.Lock()
	w.id = p.mgr.nextWorker()
	p.mu.Unlock()
	return p.bringUp(ctx, w)
}

const (
	// goodLife is how long a worker must have been ready for its death not to
	// count as a failed start, if it has served nothing.
	goodLife = time.Second
	// startTurn is how long a worker that loads may keep others from their start: one that
	// takes longer waits for something, and is not to hold up another pool.
	startTurn = 5 * time.Second
)
