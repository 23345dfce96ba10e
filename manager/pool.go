package manager

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"fpmd/fcgi"
	"fpmd/protocol"
)

// A pool is one application: its listeners, its queue, and its workers.
type pool struct {
	name      string
	mgr       *Manager
	log       *slog.Logger
	server    *fcgi.Server
	listeners []*listener
	access    *accessLog // nil: off
	numbers   atomic.Uint64
	cutting   atomic.Bool  // the stop is out of time: what has begun is not waited for
	cuts      atomic.Int64 // requests that this has ended
	backoff   backoff
	patience  time.Duration              // of a second exchange
	seconds   bool                       // the kernel has what it takes to send some
	cfg       atomic.Pointer[PoolConfig] // of the serving generation; stored under mu

	// mu guards the states of workers and what follows. No I/O and no wait
	// happens under it.
	mu      sync.Mutex
	gen     *generation // the serving one; nil before the first
	workers map[*worker]struct{}
	idle    []*slot // free slots of the serving generation, most recently used last
	queue   list[*exchange]
	open    list[*slot]   // of slots that are held, and whose exchange another may be sent behind; the oldest first
	recent  time.Duration // an exchange's run time, of the recent ones
	plain   int           // answers in succession that were small and came in one piece
	stopped bool          // no request is given to a worker any more
	ready   bool          // a worker has been ready; readyOnce is closed
	lastErr error
	proven  bool // the last start has worked
	gens    int

	trial     chan struct{}  // has room for the one start that there is while none has worked
	readyOnce chan struct{}  // closed when the pool is ready for the first time
	wg        sync.WaitGroup // keepers of places, and workers until they are gone
}

func newPool(m *Manager, cfg *PoolConfig) *pool {
	p := &pool{
		name: cfg.Name, mgr: m,
		log:       m.log.With("pool", cfg.Name),
		workers:   make(map[*worker]struct{}),
		recent:    secondWait, // not known to be less
		patience:  secondWait,
		seconds:   protocol.CanWithdraw(),
		trial:     make(chan struct{}, 1),
		readyOnce: make(chan struct{}),
	}
	p.cfg.Store(cfg)
	p.server = &fcgi.Server{
		Handler:      p.serve,
		MaxParams:    int(cfg.MaxEnviron),
		AnswerBuffer: int(cfg.BufferResponse),
		PeerTimeout:  cfg.ClientTimeout,
		Hurry:        p.crowded,
		MaxConns:     cfg.MaxConnections,
		Logger:       p.log,
		Allow:        allowed(cfg.AllowedClients),
	}
	return p
}

func (p *pool) config() *PoolConfig { return p.cfg.Load() }

// enrol lists w until it is gone.
func (p *pool) enrol(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.workers[w] = struct{}{}
	p.wg.Go(func() { // ends with the worker
		<-w.gone
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.workers, w)
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

func (p *pool) servedBy(w *worker) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return w.served
}

// tried notes what has become of a start: err is the reason why there is no worker.
func (p *pool) tried(err error) {
	if err != nil {
		p.backoff.fail()
		p.log.Error("worker did not start", notStarted(err)...)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proven = err == nil; !p.proven {
		p.lastErr = err
	}
}

// turn waits until one more worker may be started, and returns what is to be called when that
// start is over, or nil when ctx has ended. As long as no start has worked, there is one at a time: an
// application that is broken says so once, and not once for each worker.
func (p *pool) turn(ctx context.Context) (over func()) {
	unproven := func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return !p.proven
	}
	over = func() {}
	if unproven() {
		select {
		case p.trial <- struct{}{}:
			over = func() { <-p.trial }
		case <-ctx.Done():
			return nil
		}
		if !unproven() { // meanwhile
			over()
			over = func() {}
		}
	}
	if delay := p.backoff.delay(); delay > 0 {
		p.log.Info("next worker delayed", "start_in", delay.Round(time.Millisecond))
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			over()
			return nil
		}
	}
	return over
}

// begin starts the pool's first generation, whose workers come up, and come
// up again, on their own.
func (p *pool) begin() {
	g := p.newGeneration(p.config())
	p.mu.Lock()
	p.gen = g
	p.mu.Unlock()
	for range g.cfg.Workers {
		p.wg.Go(func() { g.keep(nil) }) // ends when the generation is retired
	}
}

func (p *pool) newGeneration(cfg *PoolConfig) *generation {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gens++
	g := &generation{pool: p, cfg: cfg, n: p.gens}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// roll replaces the serving generation by a new one of cfg: a first worker, to see
// whether it comes up at all, then the others side by side; only when all are
// ready do they take over, and the old ones finish what they have. When one does not come
// up, the new generation is given up, and the old one goes on serving, if it does.
func (p *pool) roll(ctx context.Context, cfg *PoolConfig) error {
	g := p.newGeneration(cfg)
	ws := make([]*worker, cfg.Workers)
	var err error
	if ws[0], err = g.startWorker(ctx); err == nil {
		rest, rctx := errgroup.WithContext(ctx)
		for i := 1; i < len(ws); i++ {
			rest.Go(func() (err error) {
				ws[i], err = g.startWorker(rctx)
				return err
			})
		}
		err = rest.Wait()
	}
	if err != nil {
		g.retire("its generation did not come up")
		if ctx.Err() != nil {
			return fmt.Errorf("pool %s: the reload was given up before the new workers had come up: %w", p.name, context.Cause(ctx))
		}
		next := "the old ones go on serving"
		p.mu.Lock()
		if p.noneReadyLocked() {
			next = "the old ones do not come up either, and are tried again"
		}
		p.mu.Unlock()
		p.log.Error("new workers did not come up", append(notStarted(err), "next", next)...)
		return fmt.Errorf("pool %s: the new workers did not come up, %s: %w", p.name, next, err)
	}
	p.mu.Lock()
	old := p.gen
	p.gen = g
	p.cfg.Store(cfg)
	p.backoff.reset() // what failed was the old generation
	p.lastErr, p.proven = nil, true
	p.readyLocked()
	var free []*slot
	for _, s := range p.idle {
		if s.w.gen != g {
			free = append(free, s) // of the old generation: leaveLocked, below, finds none
		}
	}
	p.idle = p.idle[:0]
	for _, w := range ws {
		for _, s := range w.spare {
			p.giveLocked(s)
		}
		w.spare = nil
	}
	p.mu.Unlock()
	closeAll(free)
	for _, w := range ws {
		p.wg.Go(func() { g.keep(w) }) // ends when the generation is retired
	}
	if old != nil {
		old.retire("replaced by a reload")
	}
	p.log.Info("generation serves", "generation", g.n, "workers", len(ws))
	return nil
}

func (p *pool) readyLocked() {
	if !p.ready {
		p.ready = true
		close(p.readyOnce)
	}
}

func (p *pool) noneReadyLocked() bool {
	for w := range p.workers {
		if w.gen == p.gen && (w.state == idle || w.state == busy) {
			return false
		}
	}
	return true
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
	for x, ok := p.queue.pop(); ok; x, ok = p.queue.pop() {
		x.place, x.verdict = refused, stopping
		x.tellLocked()
	}
	for w := range p.workers {
		if w.state == busy || w.state == draining { // the others have no exchange
			slots = append(slots, w.slots...)
		}
	}
	p.mu.Unlock()
	for _, s := range slots {
		s.Abort()
	}
}

// stop ends the pool. Until ctx ends, what was accepted is answered; then
// what is left is cut. It returns when no process of the pool is left.
func (p *pool) stop(ctx context.Context) {
	for _, l := range p.listeners {
		l.unlink() // nobody new finds it; who has connected is still accepted
	}
	told, enough := context.WithCancel(context.WithoutCancel(ctx))
	defer enough()
	late := context.AfterFunc(ctx, func() {
		p.cut()
		time.AfterFunc(cutTime, enough) // which ends Shutdown, if it has not ended
	})
	_ = p.server.Shutdown(told) // its error is told's
	if !late() {
		if n := p.cuts.Load(); n > 0 {
			p.log.Warn("requests cut by the stop", "requests", n, "cause", context.Cause(ctx))
		}
	}
	p.mu.Lock()
	p.stopped = true
	g := p.gen
	p.mu.Unlock()
	if g != nil {
		g.retire("stop")
	}
	kill := context.AfterFunc(ctx, func() {
		for _, w := range p.workersOf(nil) {
			w.kill()
		}
	})
	defer kill()
	p.wg.Wait()
}
