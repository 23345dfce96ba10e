package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"fpmd/fcgi"
	"fpmd/protocol"
)

// A pool is one application: its listeners, its queue, and its workers.
type pool struct {
	name      string
	mgr       *Manager
	log       *slog.Logger
	server    atomic.Pointer[fcgi.Server] // takes new connections
	front     atomic.Pointer[PoolConfig]  // what server and listeners were made by, or changed to
	listeners []*listener                 // guarded by Manager.reload
	access    atomic.Pointer[accessLog]   // nil: off
	numbers   atomic.Uint64
	cutting   atomic.Bool                  // the stop is out of time: what has begun is not waited for
	counts    [len(outcomes)]atomic.Uint64 // of requests that have ended
	resent    atomic.Uint64                // times that one which never started was sent again
	patience  time.Duration                // of a second exchange
	seconds   bool                         // the kernel has what it takes to send some
	cfg       atomic.Pointer[PoolConfig]   // of the serving generation; stored under mu
	claim     *claim                       // on a share of max_workers

	arrives bool       // it is a new one, and nobody asks it yet: it has no steward, who would want more; guarded by Manager.reload
	rolling sync.Mutex // held while the serving generation is about to be replaced; before mu

	// mu guards the states of workers and what follows. No I/O and no wait
	// happens under it.
	mu       sync.Mutex
	gen      *generation // the serving one; nil before the first
	size     int         // workers that there are to be, or may be; what the configuration says, unless it was scaled
	workers  map[*worker]struct{}
	idle     []*slot         // free slots of the serving generation, most recently used last
	queue    list[*exchange] // in the order in which they came
	over     overload
	open     list[*slot]    // of slots that are held, and whose exchange another may be sent behind; the oldest first
	recent   time.Duration  // an exchange's run time, of the recent ones
	plain    int            // answers in succession that were small and came in one piece
	left     time.Time      // when it was removed; zero: it was not
	ending   bool           // it has been told to stop, and answers what was accepted
	stopped  bool           // no request is given to a worker any more
	ready    bool           // a worker has been ready; readyOnce is closed
	formerly []*fcgi.Server // those before server, that have connections left
	lastErr  error          // why the serving generation's last worker that did not come up did not
	failing  bool           // nobody serves, and so many have not come up that nobody who asks waits
	full     episode        // of a queue without room
	limit    episode        // of requests that wait, and as many workers as there may be
	pressed  bool           // so it was when it was looked last
	gens     int

	kept     *keep     // for a rollback; nil: no generation is,
	unkept   string    // for this reason,
	unkeptAt time.Time // since then

	bringUp func(context.Context, *worker) error // worker.start; a test that lives on a fake clock has another

	readyOnce  chan struct{}  // closed when the pool is ready for the first time
	failedOnce chan struct{}  // closed when a worker has not come up, or not lived, for the first time
	parted     chan struct{}  // closed when it is removed
	wg         sync.WaitGroup // stewards, what they launch, and workers until they are gone
}

func newPool(m *Manager, cfg *PoolConfig) *pool {
	p := &pool{
		name: cfg.Name, mgr: m,
		log:       m.log.With("pool", cfg.Name),
		workers:   make(map[*worker]struct{}),
		recent:    secondWait, // not known to be less
		patience:  secondWait,
		seconds:   protocol.CanWithdraw(),
		unkept:    "there was no reload or restart since fpmd was started",
		readyOnce: make(chan struct{}), failedOnce: make(chan struct{}), parted: make(chan struct{}),
		bringUp: func(ctx context.Context, w *worker) error { return w.start(ctx) },
	}
	p.size = cfg.Workers
	p.claim = m.rations.join(cfg)
	p.cfg.Store(cfg)
	p.front.Store(cfg)
	p.server.Store(p.newServer(cfg))
	return p
}

func (p *pool) config() *PoolConfig { return p.cfg.Load() }

// enrolLocked lists w until it is gone.
func (p *pool) enrolLocked(w *worker) {
	p.workers[w] = struct{}{}
	p.wg.Go(func() { // ends with the worker
		<-w.gone
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.workers, w)
		if w.vacates {
			p.mgr.rations.left()
		}
		w.gen.kick() // another may wait to be replaced until it is
	})
}

// workersOf lists the workers of g, or of all generations when g is nil.
func (p *pool) workersOf(g *generation) (ws []*worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for w := range p.workers {
		if g == nil || w.gen == g {
			ws = append(ws, w)
		}
	}
	return ws
}

// failed keeps the reason why a worker of g did not come up, with what it printed.
func (p *pool) failed(g *generation, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g == p.gen && p.lastErr != nil { // nobody has come up since
		p.lastErr = err
	}
}

// hopelessLocked reports whether nobody serves, and so many workers have failed in a row
// that the next is not worth waiting for.
func (p *pool) hopelessLocked() bool { return p.gen.backoff.failing() && p.noneReadyLocked() }

// refuseQueuedLocked ends the waiting of all that are queued.
func (p *pool) refuseQueuedLocked(o outcome) {
	for x, ok := p.queue.pop(); ok; x, ok = p.queue.pop() {
		x.place, x.verdict = refused, o
		x.tellLocked()
	}
}

// begin starts the pool's first generation, whose workers come up, and come
// up again, on their own.
func (p *pool) begin() {
	g := p.newGeneration(p.config())
	p.mu.Lock()
	p.gen = g
	p.mu.Unlock()
	p.wg.Go(g.steward) // ends when the generation is retired
}

func (p *pool) newGeneration(cfg *PoolConfig) *generation {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gens++
	g := &generation{pool: p, cfg: cfg, sizes: cfg, from: cfg.settled(), n: p.gens, wake: make(chan struct{}, 1), fresh: true, slots: max(1, cfg.Threads)}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// roll replaces the serving generation by a new one of cfg: a first worker, to see
// whether it comes up at all, then the others one by one, as many as there are to be by then, so that loading
// takes no more than a processor from those who serve; only when all are ready, and the first has lived for goodLife, do they take over, and the old ones finish
// what they have. Others take the place of those that do not come up, or do not live; when these are more than
// max_boot_failures, the new generation is given up, and the old one goes on serving, if it does.
func (p *pool) roll(ctx context.Context, cfg *PoolConfig) error {
	p.rolling.Lock()
	defer p.rolling.Unlock()
	g := p.newGeneration(cfg)
	var ws []*worker // that have come up
	for failures := 0; ; {
		wanted := 1
		if len(ws) > 0 {
			wanted = p.rolled(cfg)
		}
		var failed []error
		if len(ws) < wanted {
			if w, err := g.startWorker(ctx); err != nil {
				failed = []error{err}
			} else {
				ws = append(ws, w)
			}
		} else {
			select {
			case <-time.After(time.Until(ws[0].readyAt.Add(goodLife))): // set once it is ready, and not after
			case <-ws[0].leaving:
			case <-ctx.Done():
				return p.notRolled(ctx, g, context.Cause(ctx))
			}
			if ws, failed = p.switchTo(g, ws); len(failed) == 0 {
				break
			}
		}
		failures += len(failed)
		if ctx.Err() != nil || failures > cfg.MaxBootFailures {
			err := errors.Join(failed...)
			if cfg.MaxBootFailures > 0 {
				err = fmt.Errorf("%d of them, where max_boot_failures = %d: %w", failures, cfg.MaxBootFailures, err)
			}
			return p.notRolled(ctx, g, err)
		}
		for _, err := range failed {
			p.log.Warn("new worker did not come up", append(notStarted(err), "failures", failures, "max_boot_failures", cfg.MaxBootFailures, "next", "try another")...)
		}
		g.pause(ctx)
	}
	return nil
}

// pause waits until the next start of a worker is due after those that have failed.
func (g *generation) pause(ctx context.Context) {
	g.pool.mu.Lock()
	next := g.backoff.next
	g.pool.mu.Unlock()
	select {
	case <-time.After(time.Until(next)):
	case <-ctx.Done():
	}
}

// switchTo has g serve, with ws, unless some of them have ended: then it returns the others, and why these have.
func (p *pool) switchTo(g *generation, ws []*worker) (living []*worker, failed []error) {
	p.mu.Lock()
	var dead []*worker
	for _, w := range ws {
		if w.servesLocked() {
			living = append(living, w)
		} else {
			dead = append(dead, w)
		}
	}
	if len(dead) > 0 {
		p.mu.Unlock()
		for _, w := range dead {
			failed = append(failed, &startError{w.proc.launch, errors.New("it came up, and ended before it could serve: " + w.cause), w.proc.tail()})
		}
		return living, failed
	}
	leave := p.keepLocked(p.takeOverLocked(g, ws), g.cfg.KeepGeneration)
	p.mu.Unlock()
	if !p.arrives {
		p.wg.Go(g.steward) // ends when the generation is retired
	}
	p.tellGeneration(g, len(ws))
	for _, g := range leave {
		g.retire(causeReload)
	}
	return ws, nil
}

// takeOverLocked has g serve, with ws, in the place of the generation that it returns, whose free slots are
// its workers' own again; nil: there was none.
func (p *pool) takeOverLocked(g *generation, ws []*worker) (old *generation) {
	old = p.gen
	if old != nil && old.sizes.Workers != g.sizes.Workers {
		p.size = g.sizes.Workers
	}
	now := time.Now()
	p.gen = g
	g.fresh, g.batch, g.batchAt = false, len(ws), now
	p.cfg.Store(g.sizes)
	p.worksLocked() // what the old one did counts no more
	p.readyLocked()
	for _, s := range p.idle {
		s.w.spare = append(s.w.spare, s)
	}
	clear(p.idle)
	p.idle = p.idle[:0]
	for _, w := range ws {
		w.idleAt = now
		for _, s := range w.spare {
			p.giveLocked(s)
		}
		w.spare = nil
	}
	return old
}

// Why workers leave that somebody has asked to.
const (
	causeReload   = "replaced by a reload"
	causeRollback = "replaced by a rollback"
	causeScale    = "scaled down"
	causeStop     = "stop"
	causeRemoved  = "its pool was removed"
	causeKept     = "keep_generation is over"
)

// notRolled gives g up, and says why.
func (p *pool) notRolled(ctx context.Context, g *generation, err error) error {
	g.retire("its generation did not come up")
	if ctx.Err() != nil {
		return fmt.Errorf("pool %s: the reload was given up before the new workers had come up: %w", p.name, context.Cause(ctx))
	}
	next := "the old ones go on serving"
	p.mu.Lock()
	switch {
	case p.gen == nil:
		next = "there is no such pool, until a reload finds it well"
	case p.hopelessLocked():
		next = "the old ones do not come up either, and are tried again"
	}
	p.mu.Unlock()
	p.tellGenerationLost(g, err, next)
	return fmt.Errorf("pool %s: the new workers did not come up, %s: %w", p.name, next, err)
}

// rolled is with how many workers a new generation takes over from the one that serves.
func (p *pool) rolled(cfg *PoolConfig) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	size := p.size
	if p.gen != nil && p.gen.sizes.Workers != cfg.Workers {
		size = cfg.Workers
	}
	if cfg.PM == Static {
		return size
	}
	serving, _, _ := p.servingLocked()
	least := 1
	if cfg.PM == Dynamic {
		least = cfg.StartWorkers
	}
	return min(max(serving, least), size)
}

// resize has the serving generation be of the size that cfg says; nothing else of cfg counts.
func (p *pool) resize(cfg *PoolConfig) {
	p.rolling.Lock() // else the generation could be one that is replaced at this moment
	defer p.rolling.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	g := p.gen
	sizes := *g.sizes
	sizes.Workers, sizes.StartWorkers, sizes.IdleTimeout = cfg.Workers, cfg.StartWorkers, cfg.IdleTimeout
	sizes.MinSpareWorkers, sizes.MaxSpareWorkers = cfg.MinSpareWorkers, cfg.MaxSpareWorkers
	if g.sizes.Workers != sizes.Workers {
		p.size = sizes.Workers
	}
	g.sizes = &sizes
	p.cfg.Store(&sizes)
	g.kick()
}

// scale has the pool have by workers more, or fewer, but never less than one, until a
// reload changes workers; it returns how many then.
func (p *pool) scale(by int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.size = min(max(1, p.size+by), maxWorkers)
	p.gen.kick()
	return p.size
}

func (p *pool) readyLocked() {
	if !p.ready {
		p.ready = true
		close(p.readyOnce)
		p.mgr.firstReady.Do(func() { close(p.mgr.someReady) })
	}
}

// servingLocked counts the workers in service of the generation that serves, and their slots.
func (p *pool) servingLocked() (workers, slots, busy int) {
	for w := range p.workers {
		if w.gen == p.gen && w.servesLocked() {
			workers++
			slots += len(w.slots)
			busy += w.busySlots()
		}
	}
	return workers, slots, busy
}

func (p *pool) noneReadyLocked() bool {
	workers, _, _ := p.servingLocked()
	return workers == 0
}

// cutTime is how long clients whose requests are cut may take to be told so.
const cutTime = time.Second

// cut ends the requests that there are, and has none begin: all are answered that fpmd stops,
// but those whose answer has begun, which ends there.
func (p *pool) cut() {
	p.cutting.Store(true)
	var slots []*slot
	p.mu.Lock()
	p.stopped = true
	p.refuseQueuedLocked(stopping)
	for w := range p.workers {
		if w.state == busy || w.state == draining { // the others have no exchange
			slots = append(slots, w.slots...)
		}
	}
	p.mu.Unlock()
	for _, s := range slots {
		s.Abort()
	}
	for _, s := range p.servers() {
		s.Hasten()
	}
}

// stop ends the pool, because of cause. Until ctx ends, what was accepted is answered; then
// what is left is cut. It returns when no process of the pool is left.
func (p *pool) stop(ctx context.Context, cause string) {
	p.mu.Lock()
	p.ending = true
	p.mu.Unlock()
	for _, l := range p.listeners {
		if l.unit || l.left { // the kernel keeps it open: who has connected is the next fpmd's to accept
			l.Close()
			continue
		}
		l.unlink() // nobody new finds it; who has connected is still accepted
		p.mgr.forget(l.stored)
	}
	told, enough := context.WithCancel(context.WithoutCancel(ctx))
	defer enough()
	late := context.AfterFunc(ctx, func() {
		p.cut()
		time.AfterFunc(cutTime, enough) // which ends Shutdown, if it has not ended
	})
	var shut sync.WaitGroup
	for _, s := range p.servers() {
		shut.Go(func() { _ = s.Shutdown(told) }) // its error is told's
	}
	shut.Wait()
	if !late() {
		if n := p.counts[stopping].Load(); n > 0 {
			p.log.Warn("requests cut by the stop", "requests", n, "cause", context.Cause(ctx))
		}
	}
	p.mu.Lock()
	p.stopped = true
	gens := []*generation{p.gen} // nil where it was not begun
	if p.kept != nil {
		gens = append(gens, p.kept.gen)
	}
	p.unkeepLocked("the pool stops")
	p.mgr.rations.leaveLocked(p) // others may still have somebody to answer
	p.mu.Unlock()
	for _, g := range gens {
		if g != nil {
			g.retire(cause)
		}
	}
	kill := context.AfterFunc(ctx, func() {
		for _, w := range p.workersOf(nil) {
			w.kill()
		}
	})
	defer kill()
	p.wg.Wait()
	p.tellOverload(time.Now(), true)
}
