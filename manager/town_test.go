package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"fpmd/fcgi"
	"fpmd/protocol"
)

// A town is a pool in which all is real but the processes and what is asked of them: on the fake
// clock of testing/synctest, workers load, come up or do not, and die, as the test says.
type town struct {
	*pool
	t    *testing.T
	log  *lines
	many sync.WaitGroup // who asks

	launched atomic.Int64 // workers that have begun to load
	comes    bool         // by a reload, and not at the start
	reloads  atomic.Bool  // one is under way
	before   int          // workers at the last check, but for what is replaced

	fate     sync.Mutex // guards what follows
	rnd      *rand.Rand
	slots    int           // of a worker
	load     time.Duration // how long one loads, at most
	saying   time.Duration // how long it takes the log to say that it is ready, at most
	steady   bool          // both are always as long
	failing  float64       // the share of them that do not come up then
	lives    map[*worker]func()
	outcomes map[outcome]int
}

// newTown starts a pool of cfg, where nobody waits in vain; prepare, unless nil, comes before. It
// is ended with end.
func newTown(t *testing.T, cfg PoolConfig, prepare func(*town)) *town {
	_, defaults := Defaults()
	cfg.Name = "town"
	cfg.QueueSize, cfg.QueueTimeout, cfg.DrainTimeout, cfg.StopTimeout = defaults.QueueSize, time.Hour, time.Hour, time.Second
	cfg.IdleTimeout = cmp.Or(cfg.IdleTimeout, defaults.IdleTimeout)
	cfg.StartWorkers = max(cfg.StartWorkers, 1)
	cfg.MaxSpareWorkers = max(cfg.MaxSpareWorkers, cfg.MinSpareWorkers, 1)
	log := new(lines)
	m := &Manager{log: slog.New(slog.NewTextHandler(log, nil)), starts: newTurns(2), someReady: make(chan struct{})}
	v := &town{
		pool: newPool(m, &cfg), t: t, log: log, rnd: rand.New(rand.NewPCG(1, 1)), slots: 1, load: 100 * time.Millisecond, saying: 10 * time.Millisecond, steady: true,
		lives: make(map[*worker]func()), outcomes: make(map[outcome]int),
	}
	v.bringUp = v.raise
	if prepare != nil {
		prepare(v)
	}
	if !v.comes {
		v.begin()
		return v
	}
	for v.roll(t.Context(), &cfg) != nil { // a reload tries again
		if v.gen != nil || v.ready {
			t.Error("a pool that has not come up serves")
		}
	}
	return v
}

// end stops the pool once nobody asks any more.
func (v *town) end() {
	v.many.Wait()
	v.stop(context.Background(), causeStop)
	synctest.Wait()
	if n := len(v.workers); n > 0 {
		v.t.Errorf("%d workers are left", n)
	}
}

// upTo is a time up to most.
func upTo(rnd *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(rnd.Int64N(int64(most) + 1))
}

func (v *town) chance(of float64) bool {
	v.fate.Lock()
	defer v.fate.Unlock()
	return v.rnd.Float64() < of
}

// set changes what fate guards.
func (v *town) set(change func()) {
	v.fate.Lock()
	defer v.fate.Unlock()
	change()
}

// raise is worker.start, but for the process.
func (v *town) raise(ctx context.Context, w *worker) error {
	v.launched.Add(1)
	v.fate.Lock()
	load, saying, failing, slots := v.load, v.saying, v.failing, v.slots
	if !v.steady {
		load, saying = upTo(v.rnd, load), upTo(v.rnd, saying)
	}
	v.fate.Unlock()
	select {
	case <-time.After(load):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if v.chance(failing) {
		return errors.New("as it was told to")
	}
	page, f, err := protocol.NewPage()
	if err != nil {
		return err
	}
	f.Close()
	proc := &process{slots: slots, page: page, output: &output{}, gone: make(chan struct{}), reaped: true}
	v.mu.Lock()
	w.proc = proc
	w.taken, w.ungreeted = slots, slots
	v.mu.Unlock()
	for i := range slots {
		w.slots = append(w.slots, newSlot(w, i))
	}
	die := make(chan struct{})
	v.set(func() { v.lives[w] = sync.OnceFunc(func() { close(die) }) })
	go func() { // ends with the worker, whose end it is
		select {
		case <-w.drained:
			time.Sleep(20 * time.Millisecond)
		case <-die:
		}
		v.set(func() { delete(v.lives, w) })
		close(proc.gone)
	}()
	go w.watch() // ends with the process
	if w.gen.ctx.Err() != nil {
		w.retire("its generation was retired")
	}
	v.offer(w.slots[0], ending{})
	go func() { // ends when it has greeted all
		for _, s := range w.slots[1:] {
			time.Sleep(time.Millisecond)
			v.offer(s, ending{})
		}
	}()
	time.Sleep(saying) // while it is in service
	return nil
}

// ask has n requests come at once, each of which takes so long.
func (v *town) ask(n int, takes time.Duration) {
	for range n {
		v.visit(takes, 0, func(o outcome, _ time.Duration) { v.outcomes[o]++ })
	}
}

// visit has a request come that takes so long, of a client who leaves when he has waited for patience;
// 0: never. The end is told under fate: with what, and when the request's turn came, or it was over, after it had come.
func (v *town) visit(takes, patience time.Duration, end func(o outcome, queued time.Duration)) {
	v.many.Go(func() { // ends with the request
		gone := make(chan struct{})
		if patience > 0 {
			defer time.AfterFunc(patience, func() { close(gone) }).Stop()
		}
		x := &exchange{pool: v.pool, req: new(fcgi.Request), gone: gone, all: true, turn: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
		x.timer.Stop()
		x.link.Value = x
		x.env.block = make([]byte, protocol.RequestHead)
		came := time.Now()
		o := v.acquire(x)
		x.queuedFor = time.Since(came)
		if s := x.slot; o == ok {
			done := time.After(takes)
			select {
			case <-done:
				v.offer(s, ending{answered: true, ran: takes})
			case <-gone:
				o, x.ranFor = clientGone, time.Since(came)-x.queuedFor
				v.takeBack(s, nil)
				v.many.Go(func() { // ends with what the worker does for nobody, or with the worker
					select {
					case <-done:
						v.offer(s, ending{})
					case <-s.w.proc.done():
						v.discard(s)
					}
				})
			case <-s.w.proc.done():
				v.takeBack(s, nil)
				v.discard(s)
			}
		}
		v.set(func() { end(o, x.queuedFor) })
		if x.inVain(o) { // as account has it
			v.miss(o)
		}
	})
}

// takeSecond places who is next behind one who holds a slot, from where it is taken
// back unless that one is done by then.
func (v *town) takeSecond() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.queue.n == 0 || v.open.n == 0 {
		return
	}
	s, _ := v.open.pop()
	x, _ := v.popNextLocked()
	s.behind = x
	x.place, x.slot = second, s
	x.tellLocked()
}

// kill has a worker die, if it lives; 0: any.
func (v *town) kill(id int) {
	v.fate.Lock()
	defer v.fate.Unlock()
	for w, die := range v.lives {
		if id == 0 || w.id == id {
			die()
			return
		}
	}
}

// serving counts workers in service.
func (v *town) serving() (n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for w := range v.workers {
		if w.gen == v.gen && w.servesLocked() {
			n++
		}
	}
	return n
}

func (v *town) told(what string) int { return strings.Count(v.log.String(), what) }

// check sees, when nothing moves, whether all that the pool keeps adds up.
func (v *town) check(when string) {
	v.t.Helper()
	synctest.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	wrong := func(format string, args ...any) {
		v.t.Helper()
		v.t.Errorf("%s: %s", when, fmt.Sprintf(format, args...))
	}
	v.set(func() {
		for w := range v.lives {
			if _, listed := v.workers[w]; !listed {
				wrong("worker %d lives, and is in no list", w.id)
			}
		}
	})
	for _, w := range v.wrongLocked() {
		wrong("%s", w)
	}
	if v.kept != nil {
		switch k := v.kept.gen; {
		case k == v.gen:
			wrong("generation %d serves and is kept", k.n)
		case !k.servesLocked():
			wrong("generation %d is kept, and has no worker", k.n)
		case k.ctx.Err() != nil:
			wrong("generation %d is kept, and was retired", k.n)
		}
	}
	for w := range v.workers {
		if w.gen != v.gen && w.servesLocked() && !v.reloads.Load() && (v.kept == nil || v.kept.gen != w.gen) {
			wrong("worker %d of generation %d is %v, which neither serves nor is kept", w.id, w.gen.n, w.state)
		}
	}
	have := v.ofLocked(v.gen)
	if l := &v.over; l.missed < 0 || l.missed > 1 || l.on() != l.told || !l.on() && l.refused+l.left > 0 {
		wrong("of overload there is %+v", *l)
	}
	if have > max(v.size, v.before) {
		wrong("%d workers, there may be %d, and there were %d", have, v.size, v.before)
	}
	v.before = have
}

// ofLocked counts the workers of g that serve, or are on their way, but for those who have a successor. pool.mu is held.
func (v *town) ofLocked(g *generation) (n int) {
	for w := range v.workers {
		if w.gen != g || w.state != starting && !w.servesLocked() {
			continue
		}
		if next := w.next; next == nil || next.state != starting && !next.servesLocked() { // else it is as good as gone
			n++
		}
	}
	return n
}

// Whatever happens to a pool, in any order, what it keeps adds up and it keeps to its size; and when nothing
// happens any more, it is where it should be, serves who comes, and starts no worker for nobody.
func TestTown(t *testing.T) {
	rolledBack := 0
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { rolledBack += liveInTown(t, seed) }) })
	}
	if !t.Failed() && rolledBack < 20 {
		t.Errorf("%d rollbacks in all lives: want enough of them to see something", rolledBack)
	}
}

func liveInTown(t *testing.T, seed uint64) (rolledBack int) {
	rnd := rand.New(rand.NewPCG(seed, 25))
	cfg := PoolConfig{PM: []PM{Static, Dynamic, OnDemand}[seed%3], Workers: 1 + rnd.IntN(6), IdleTimeout: upTo(rnd, 3*time.Second) + time.Millisecond}
	if cfg.PM == Dynamic {
		cfg.StartWorkers = 1 + rnd.IntN(cfg.Workers)
		cfg.MinSpareWorkers = rnd.IntN(4)
		cfg.MaxSpareWorkers = 1 + cfg.MinSpareWorkers + rnd.IntN(4)
	}
	if rnd.IntN(2) == 0 {
		cfg.MaxRequests = 1 + rnd.IntN(20)
	}
	if rnd.IntN(2) == 0 {
		cfg.MaxAge = 100*time.Millisecond + upTo(rnd, 5*time.Second)
	}
	cfg.MaxBootFailures = rnd.IntN(3)
	peaceful := rnd.IntN(3) == 0 // nothing fails, and nobody changes anything
	v := newTown(t, cfg, func(v *town) {
		v.rnd, v.slots, v.steady = rand.New(rand.NewPCG(seed, 1)), []int{1, 1, 3, 20}[rnd.IntN(4)], false
		v.load = []time.Duration{50 * time.Millisecond, time.Second, 20 * time.Second}[rnd.IntN(3)]
		if !peaceful && rnd.IntN(4) == 0 {
			v.failing = 1 // at first
		}
		if seed%7 == 3 {
			v.comes, v.failing = true, min(v.failing, 0.5)
		}
	})
	defer v.end()
	reloads, endReloads := context.WithCancel(context.Background())
	var rolling sync.WaitGroup
	defer rolling.Wait()
	defer endReloads()
	var rollOne sync.Mutex // as the Manager has it
	whole, kills := false, 0
	for i := range 300 {
		trail := fmt.Sprintf("seed %d, step %d", seed, i)
		what := rnd.IntN(21)
		switch {
		case what < 5:
			v.ask(1, upTo(rnd, time.Second))
		case what == 5: // a crowd that does not wait for long
			for range rnd.IntN(60) {
				v.visit(upTo(rnd, 200*time.Millisecond), upTo(rnd, 5*time.Second)+time.Millisecond, func(o outcome, queued time.Duration) {
					if o == queueFull || o == queueTimeout && queued < overloadWait {
						t.Errorf("%s: refused with %v after %v, and there was room", trail, o, queued)
					}
				})
			}
		case what == 6:
			v.ask(rnd.IntN(30), upTo(rnd, 500*time.Millisecond))
		case what < 9:
			v.takeSecond()
		case what < 15:
			time.Sleep(upTo(rnd, 500*time.Millisecond))
		case what == 15:
			time.Sleep(upTo(rnd, 20*time.Second))
		case peaceful:
		case what == 16:
			kills++
			v.kill(0)
		case what == 17:
			v.set(func() { v.failing = []float64{0, 0, 0.3, 1}[rnd.IntN(4)] })
		case what == 18:
			v.scale(1 - 2*rnd.IntN(2))
		case !rollOne.TryLock():
		case what == 19:
			next := *v.config()
			next.Workers = max(next.StartWorkers, next.Workers+rnd.IntN(3)-1, 1)
			next.KeepGeneration = max(0, upTo(rnd, 40*time.Second)-10*time.Second)
			v.reloads.Store(true)
			rolling.Go(func() { // ends when it is rolled, or not
				defer rollOne.Unlock()
				defer v.reloads.Store(false)
				_ = v.roll(reloads, &next) // which may fail
			})
		default:
			v.mu.Lock()
			from, to := v.gen, v.kept
			kept := 0 // who was on the way when it was replaced still is
			if to != nil {
				kept = v.ofLocked(to.gen)
			}
			v.mu.Unlock()
			err := v.rollback(v.t.Context(), "")
			rollOne.Unlock()
			if (err == nil) != (to != nil) || err == nil && v.gen != to.gen || err != nil && v.gen != from {
				t.Errorf("%s: a rollback from generation %d: %v", trail, from.n, err)
			}
			if err == nil {
				rolledBack++
				v.before = kept
			}
		}
		v.check(trail)
		if n := v.serving(); peaceful && cfg.PM == Static {
			if whole = whole || n >= cfg.Workers; whole && n < cfg.Workers {
				t.Errorf("%s: %d workers serve, want never fewer than %d", trail, n, cfg.Workers)
			}
		}
		if t.Failed() {
			return rolledBack
		}
	}
	if peaceful && v.told("there are more than are needed") > 0 && cfg.PM == Static {
		t.Error("workers left because there were too many, and nobody had asked for that")
	}
	endReloads()
	rolling.Wait()
	v.set(func() { v.failing = 0 })
	time.Sleep(2 * time.Minute) // more than the longest delay
	v.many.Wait()
	if delays, failures := v.told("next worker delayed"), v.told("worker did not start")+kills; delays > failures {
		t.Errorf("%d delays are told of, after %d failures", delays, failures)
	}
	if begun, over := v.told("pool overloaded"), v.told("overload is over"); begun != over {
		t.Errorf("overload began %d times, and was over %d times", begun, over)
	}
	v.set(func() { clear(v.outcomes) })
	v.ask(20, 10*time.Millisecond)
	v.wantOutcomes(map[outcome]int{ok: 20})
	time.Sleep(2 * time.Minute)
	v.check(fmt.Sprintf("seed %d, in the end", seed))
	v.mu.Lock()
	once, ready, free, size := v.ready, 0, len(v.idle), v.size
	for w := range v.workers {
		if w.servesLocked() {
			ready++
		}
	}
	v.mu.Unlock()
	switch {
	case !once:
		t.Errorf("seed %d: it was never ready", seed)
	case cfg.PM == Static && ready != size && (cfg.MaxAge == 0 || ready != size+1):
		t.Errorf("seed %d: %d workers, want %d", seed, ready, size)
	case cfg.PM == OnDemand && ready > 0:
		t.Errorf("seed %d: %d workers are idle on demand", seed, ready)
	case cfg.PM == Dynamic && free < cfg.MinSpareWorkers && ready < size:
		t.Errorf("seed %d: %d slots are spare, want %d", seed, free, cfg.MinSpareWorkers)
	case cfg.PM == Dynamic && free-v.slots >= cfg.MaxSpareWorkers && cfg.MaxAge == 0:
		t.Errorf("seed %d: %d slots are spare, want at most about %d", seed, free, cfg.MaxSpareWorkers)
	}
	launched := v.launched.Load()
	time.Sleep(5 * time.Minute)
	if n := v.launched.Load() - launched; n > 0 && (cfg.MaxAge == 0 || cfg.PM == OnDemand) {
		t.Errorf("seed %d: %d workers were started for nobody", seed, n)
	}
	return rolledBack
}

// inTown runs a test of a pool on a fake clock.
func inTown(t *testing.T, cfg PoolConfig, prepare func(*town), test func(*testing.T, *town)) {
	synctest.Test(t, func(t *testing.T) {
		v := newTown(t, cfg, prepare)
		defer v.end()
		test(t, v)
	})
}

// wait lets time go by, and has all that comes of it happen.
func (v *town) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (v *town) wantLaunched(n int64) {
	v.t.Helper()
	if got := v.launched.Load(); got != n {
		v.t.Errorf("%d workers were launched, want %d", got, n)
	}
}

// wantOutcomes waits until nobody asks any more, and forgets what became of them.
func (v *town) wantOutcomes(want map[outcome]int) {
	v.t.Helper()
	v.many.Wait()
	v.fate.Lock()
	defer v.fate.Unlock()
	if !maps.Equal(v.outcomes, want) {
		v.t.Errorf("outcomes %v, want %v", v.outcomes, want)
	}
	clear(v.outcomes)
}

func (v *town) wantServing(n int) {
	v.t.Helper()
	if got := v.serving(); got != n {
		v.t.Errorf("%d workers serve, want %d", got, n)
	}
}

// What asks for a pool on demand that has failed again and again, and was mended, is served; and workers
// that come then leave again.
func TestOnDemandMended(t *testing.T) {
	inTown(t, PoolConfig{PM: OnDemand, Workers: 2, IdleTimeout: 100 * time.Millisecond}, nil, func(t *testing.T, v *town) {
		v.wait(time.Second)
		v.wantServing(0)
		v.set(func() { v.failing = 1 })
		v.ask(1, 0)
		v.wantOutcomes(map[outcome]int{bootFailed: 1})
		v.set(func() { v.failing = 0 })
		v.wait(time.Minute)
		v.wantServing(0)
		launched := v.launched.Load()
		v.wait(time.Hour)
		v.wantLaunched(launched) // for nobody
		for range 10 {
			v.ask(1, 0)
			v.wait(time.Second)
		}
		v.wantOutcomes(map[outcome]int{ok: 10})
		v.wantLaunched(launched + 10)
	})
}

// A pool on demand, or a dynamic one that keeps none to spare, whose first worker does not come up tries again, though
// nobody asks: it has to say that it is ready.
func TestFirstWorkerFails(t *testing.T) {
	for _, pm := range []PM{OnDemand, Dynamic} {
		inTown(t, PoolConfig{PM: pm, Workers: 4}, func(v *town) { v.failing = 1 }, func(t *testing.T, v *town) {
			v.wait(150 * time.Millisecond)
			v.wantLaunched(1)
			v.set(func() { v.failing = 0 })
			v.wait(time.Second)
			select {
			case <-v.readyOnce:
			default:
				t.Errorf("%s: it was mended, and is not ready", pm)
			}
		})
	}
}

// When a pool is scaled up while its application does not come up, and down again, who serves stays.
func TestScaledWhileBroken(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 1}, nil, func(t *testing.T, v *town) {
		v.wait(time.Second)
		v.set(func() { v.load, v.failing = 10*time.Second, 1 })
		v.scale(1)
		v.wait(time.Second)
		v.scale(-1)
		v.wait(time.Second)
		v.wantServing(1)
		v.wait(time.Minute)
		v.wantServing(1)
		v.wantLaunched(2)
	})
}

// While the first worker that requests on demand have had started is still loading, others are
// started beside it, twice as many each second.
func TestOnDemandLoadsSlowly(t *testing.T) {
	inTown(t, PoolConfig{PM: OnDemand, Workers: 9, IdleTimeout: time.Second}, func(v *town) { v.mgr.starts = newTurns(9) }, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.wantServing(0)
		v.set(func() { v.load = 5 * time.Second })
		v.ask(8, time.Minute)
		for _, n := range []int64{1, 3, 7, 8, 8} {
			v.wait(10 * time.Millisecond)
			v.wantLaunched(1 + n)
			v.wait(990 * time.Millisecond)
		}
	})
}

// The slots of a worker that loads, or is about to greet them, are as good as free: no other worker
// is started for who waits for them.
func TestSlotsGreetedOneByOne(t *testing.T) {
	inTown(t, PoolConfig{PM: OnDemand, Workers: 4, IdleTimeout: time.Second}, func(v *town) { v.slots = 32 }, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.wantServing(0)
		v.set(func() { v.load = 3 * time.Second })
		v.ask(32, 100*time.Millisecond)
		v.wantOutcomes(map[outcome]int{ok: 32})
		v.wantLaunched(2)
	})
}

// Workers that are recycled while nobody asks are not: on demand they leave.
func TestOnDemandIdleAndDue(t *testing.T) {
	inTown(t, PoolConfig{PM: OnDemand, Workers: 2, IdleTimeout: time.Hour, MaxAge: time.Minute}, nil, func(t *testing.T, v *town) {
		v.wait(time.Hour)
		v.wantServing(0)
		v.wantLaunched(1)
		v.ask(1, 2*time.Minute) // it is due as it serves, and the next one takes its place
		v.wait(90 * time.Second)
		v.wantServing(1)
		v.wantLaunched(3)
	})
}

// Who is to be replaced stays when the worker that was to take its place dies as soon as it is ready.
func TestReplacementDies(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 1, MaxAge: time.Minute}, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute + 200*time.Millisecond + v.saying/2)
		v.wantServing(2)
		v.kill(2)
		v.wait(v.saying)
		v.wantServing(1)
		if v.told("cause=max_age") > 0 {
			t.Error("it has left")
		}
		v.wait(time.Second)
		v.wantServing(2) // the next one has not proved itself yet
		v.wait(time.Second)
		v.wantServing(1)
		v.wantLaunched(3)
		if v.told("cause=max_age") != 1 {
			t.Error("it has not left")
		}
	})
}

// Code that comes up and dies takes no healthy worker's place, however many are due.
func TestRecyclingIntoDyingCode(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 4, MaxAge: time.Minute}, nil, func(t *testing.T, v *town) {
		v.wait(30 * time.Second)
		v.wantServing(4)
		v.mu.Lock()
		old := maps.Clone(v.workers)
		v.mu.Unlock()
		serving := func() (n int) {
			v.mu.Lock()
			defer v.mu.Unlock()
			for w := range old {
				if w.servesLocked() {
					n++
				}
			}
			return n
		}
		for range 90 * 100 { // each new worker lives for 50 ms
			v.wait(10 * time.Millisecond)
			v.mu.Lock()
			die := 0
			for w := range v.workers {
				if _, there := old[w]; !there && w.servesLocked() && time.Since(w.readyAt) >= 50*time.Millisecond {
					die = w.id
				}
			}
			v.mu.Unlock()
			if die > 0 {
				v.kill(die)
			}
		}
		if n := serving(); n != 4 {
			t.Errorf("%d of the 4 workers that served are left", n)
		}
		v.wait(time.Minute) // the code is mended
		if n := serving(); n != 0 {
			t.Errorf("%d of the 4 workers that are due are left", n)
		}
		v.wantServing(4)
	})
}

// However long requests take, no more than one worker that was replaced is still at them, and the
// number of processes is bounded.
func TestRecyclingDoesNotPileUp(t *testing.T) {
	for _, slots := range []int{1, 20} {
		inTown(t, PoolConfig{PM: Static, Workers: 4, MaxRequests: 5}, func(v *town) { v.slots = slots }, func(t *testing.T, v *town) {
			v.wait(10 * time.Second)
			most := 0
			for range 300 {
				v.ask(1, 50*time.Second)
				v.ask(20, 10*time.Millisecond)
				v.wait(time.Second)
				v.mu.Lock()
				most = max(most, len(v.workers))
				v.mu.Unlock()
			}
			if most != 5 { // beside those that there are to be, one that drains, or who takes the next one's place
				t.Errorf("%d slots: %d workers at once, want 5", slots, most)
			}
			if v.told("cause=max_requests") < 4 {
				t.Error("nobody was replaced")
			}
		})
	}
}

// Who waits is told when an application comes up and dies again and again, as he is when
// it does not come up.
func TestUpAndDiesIsTold(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 1}, nil, func(t *testing.T, v *town) {
		v.wait(time.Second)
		v.ask(20, time.Hour)
		var mended atomic.Bool
		go func() { // ends when it is
			for !mended.Load() {
				v.kill(0)
				time.Sleep(100 * time.Millisecond)
			}
		}()
		for range 10 {
			v.wait(time.Second)
			v.mu.Lock()
			hopeless, n := v.hopelessLocked(), v.queue.n
			v.mu.Unlock()
			if hopeless && n > 0 {
				t.Errorf("no worker is worth waiting for, and %d wait", n)
			}
		}
		mended.Store(true)
		v.wait(2 * time.Minute)
		v.wantServing(1)
	})
}

// A pool whose application takes long to load keeps no other from its workers for longer
// than one start.
func TestSlowStartsStarveNobody(t *testing.T) {
	for _, load := range []time.Duration{3 * time.Second, time.Hour} { // or hang
		inTown(t, PoolConfig{PM: OnDemand, Workers: 2, IdleTimeout: time.Second}, nil, func(t *testing.T, v *town) {
			v.wait(time.Minute)
			v.wantServing(0)
			v.config().QueueTimeout = 10 * time.Second
			other := newTown(t, PoolConfig{PM: OnDemand, Workers: 32, IdleTimeout: time.Second}, func(o *town) { o.mgr = v.mgr })
			defer other.end()
			other.wait(10 * time.Second)
			other.set(func() { other.load = load })
			other.ask(32, 30*time.Second)
			v.wait(100 * time.Millisecond)
			for range 10 {
				v.ask(1, 0)
				v.wait(5 * time.Second)
			}
			v.many.Wait()
			v.wantOutcomes(map[outcome]int{ok: 10})
			other.scale(-32)
			other.set(func() { other.load = time.Millisecond })
			if load > time.Minute {
				other.mu.Lock()
				other.refuseQueuedLocked(queueTimeout)
				other.mu.Unlock()
				other.gen.cancel() // who loads for ever is given up
			}
		})
	}
}

// What failed a day ago does not count today.
func TestFailuresAreForgotten(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 2}, func(v *town) { v.failing = 1 }, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.set(func() { v.failing = 0 })
		v.wait(24 * time.Hour)
		v.wantServing(2)
		v.mu.Lock()
		if err := v.lastErr; err != nil {
			t.Errorf("though workers have come up, the reason why there is none is %v", err)
		}
		v.mu.Unlock()
		v.set(func() { v.failing = 1 })
		v.scale(1)
		v.wait(200 * time.Millisecond)
		v.set(func() { v.failing = 0 })
		v.wait(time.Second)
		v.wantServing(3)
	})
}

// A pool that grows while its next generation loads is as large when that takes over, and
// nobody of it is taken for idle since before.
func TestRollKeepsGrowth(t *testing.T) {
	inTown(t, PoolConfig{PM: OnDemand, Workers: 6, IdleTimeout: 10 * time.Second}, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.wantServing(0)
		v.set(func() { v.load = 20 * time.Second })
		rolled := make(chan error, 1)
		go func() { rolled <- v.roll(t.Context(), v.config()) }() // ends with the reload
		v.wait(time.Second)
		v.set(func() { v.load = 100 * time.Millisecond })
		v.ask(6, time.Hour)
		v.wait(10 * time.Second)
		v.wantServing(6)
		v.set(func() { v.load = 15 * time.Second })
		if err := <-rolled; err != nil {
			t.Fatal(err)
		}
		v.wait(time.Second)
		v.wantServing(6)
	})
}

// A reload whose workers come up and die before they take over, or within a second, is one that
// has failed: those that served do so still.
func TestRollOfTheDead(t *testing.T) {
	for _, tt := range []struct {
		after time.Duration // of the reload's begin
		die   []int
	}{
		{105 * time.Millisecond, []int{4}}, // the first
		{215 * time.Millisecond, []int{5, 6}},
		{time.Second, []int{4, 5, 6}},
		{time.Second, []int{6}},
	} {
		inTown(t, PoolConfig{PM: Static, Workers: 3}, nil, func(t *testing.T, v *town) {
			v.wait(10 * time.Second)
			v.wantServing(3)
			go func() { // ends then
				time.Sleep(tt.after)
				for _, id := range tt.die {
					v.kill(id)
				}
			}()
			if err := v.roll(t.Context(), v.config()); err == nil {
				t.Errorf("%v die after %v: it is said to serve", tt.die, tt.after)
			}
			v.wantServing(3)
			if v.told("level=ERROR msg=\"new workers did not come up\"") != 1 {
				t.Error("nothing is said")
			}
		})
	}
}

// Workers that wait for their turn to start are not started once nobody needs them.
func TestNobodyIsStartedForNobody(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 2}, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.set(func() { v.load = 3 * time.Second })
		v.scale(20)
		v.wait(time.Second)
		v.scale(-20)
		v.wait(2 * time.Minute)
		v.wantServing(2)
		if n := v.launched.Load(); n > 4 {
			t.Errorf("%d workers were launched", n)
		}
	})
}

// A reload that does not come up leaves the generation that serves as it was: the next worker of
// it starts at once.
func TestFailedRollDelaysNobody(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 1}, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.set(func() { v.failing = 1 })
		for range 5 {
			if err := v.roll(t.Context(), v.config()); err == nil {
				t.Error("it was rolled, though no worker comes up")
			}
		}
		v.set(func() { v.failing = 0 })
		v.scale(1)
		v.wait(200 * time.Millisecond)
		v.wantServing(2)
		if v.told("next worker delayed") > 0 {
			t.Error("it was delayed")
		}
	})
}

// Each delay is told of once, with the time that is left.
func TestDelayIsToldOnce(t *testing.T) {
	inTown(t, PoolConfig{PM: Dynamic, Workers: 4, MinSpareWorkers: 2}, func(v *town) { v.failing = 1 }, func(t *testing.T, v *town) {
		for range 500 {
			v.ask(1, 0) // which has the steward look
			v.wait(50 * time.Millisecond)
		}
		delays, failures := v.told("next worker delayed"), v.told("worker did not start")
		if delays == 0 || delays > failures {
			t.Errorf("%d delays are told of, after %d failures", delays, failures)
		}
		v.set(func() { v.failing = 0 })
		v.wait(time.Minute)
	})
}

// An application that has served, and that does not come up any more, is tried by one worker at a time.
func TestBrokenIsTriedOneByOne(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 4}, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.wantServing(4)
		v.set(func() { v.failing = 1 })
		for id := range 4 {
			v.kill(id + 1)
		}
		v.wait(time.Minute)
		if tried, delays := v.told("worker did not start"), v.told("next worker delayed"); tried > delays+4 {
			t.Errorf("%d workers were tried in %d delays", tried, delays)
		}
		v.set(func() { v.failing = 0 })
		v.wait(time.Minute)
		v.wantServing(4)
	})
}

// A new generation may fail as often as max_boot_failures says, by workers that do not come up or that do not
// live, and others take their place; once more, and the old one goes on serving.
func TestMaxBootFailures(t *testing.T) {
	const starts, lives = "it does not come up", "it comes up, and dies"
	for _, tt := range []struct {
		allowed int
		fates   map[int64]string // of the new generation's workers, in the order of their launch
		worked  bool
	}{
		{0, nil, true},
		{0, map[int64]string{1: starts}, false},
		{2, map[int64]string{1: starts, 2: starts}, true},
		{2, map[int64]string{1: starts, 2: starts, 3: starts}, false},
		{2, map[int64]string{2: starts, 3: starts}, true},
		{2, map[int64]string{1: lives, 2: lives}, true},
		{2, map[int64]string{1: lives, 3: starts, 4: lives, 5: starts, 6: starts}, false},
		{1, map[int64]string{1: starts, 3: lives}, false},
	} {
		inTown(t, PoolConfig{PM: Static, Workers: 3}, nil, func(t *testing.T, v *town) {
			v.wait(time.Minute)
			before := v.launched.Load()
			v.bringUp = func(ctx context.Context, w *worker) error {
				switch tt.fates[v.launched.Load()+1-before] {
				case starts:
					v.launched.Add(1)
					return errors.New("as it was told to")
				case lives:
					time.AfterFunc(500*time.Millisecond, func() { v.kill(w.id) })
				}
				return v.raise(ctx, w)
			}
			next := *v.config()
			next.MaxBootFailures = tt.allowed
			err := v.roll(t.Context(), &next)
			if (err == nil) != tt.worked {
				t.Errorf("%v, %d allowed: %v", tt.fates, tt.allowed, err)
			}
			v.wantServing(3)
			told := v.told(`msg="new worker did not come up"`)
			if tt.worked && told != len(tt.fates) || !tt.worked && told > tt.allowed {
				t.Errorf("%v, %d allowed: %d failures are told of", tt.fates, tt.allowed, told)
			}
			v.check("in the end")
		})
	}
}
