package manager

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// How max_workers is shared out.
func TestDivide(t *testing.T) {
	static := func(n int) *claim { return &claim{want: [wants]int{wantOne: 1, wantFixed: n, wantSpare: n}} }
	elastic := func(busy, have, most int) *claim {
		return &claim{want: [wants]int{wantOne: min(busy, 1), wantBusy: busy, wantKept: have, wantSpare: most}}
	}
	for _, tt := range []struct {
		name   string
		most   int
		claims []*claim
		want   []int
	}{
		{"enough for all", 20, []*claim{static(4), elastic(2, 2, 8), elastic(0, 0, 8)}, []int{4, 8, 8}},
		{"static ones first", 10, []*claim{static(4), elastic(9, 9, 9), elastic(9, 0, 9)}, []int{4, 3, 3}},
		{"what one does not need is the others'", 10, []*claim{elastic(9, 0, 9), elastic(1, 0, 9), elastic(9, 0, 9)}, []int{5, 1, 4}},
		{"needed by others before kept", 4, []*claim{elastic(0, 4, 4), elastic(3, 0, 4)}, []int{1, 3}},
		{"kept before spare", 4, []*claim{elastic(0, 4, 4), elastic(0, 0, 4)}, []int{4, 0}},
		{"one each before a static pool that was scaled up", 4, []*claim{static(9), elastic(5, 0, 9)}, []int{3, 1}},
		{"too little for one each", 1, []*claim{static(2), static(2)}, []int{1, 0}},
	} {
		divide(tt.most, tt.claims)
		var got []int
		for _, c := range tt.claims {
			got = append(got, c.ration)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// beside has a town share its manager, and what there is for all pools, with v.
func (v *town) beside(prepare func(*town)) func(*town) {
	return func(o *town) {
		o.mgr = v.mgr
		o.claim = v.mgr.rations.join(o.config())
		if prepare != nil {
			prepare(o)
		}
	}
}

// living counts the workers of all towns that have a process or are about to; of two, one of which takes the
// other's place, it counts one.
func living(towns []*town) (n int) {
	for _, v := range towns {
		v.mu.Lock()
		second := make(map[*worker]bool)
		for w := range v.workers {
			if second[w.next] = true; w.state == gone || w.state == draining && !w.vacates { // in whose place there is another
				second[w] = true
			}
		}
		for w := range v.workers {
			if !second[w] {
				n++
			}
		}
		v.mu.Unlock()
	}
	return n
}

// inTowns runs a test of several pools with one max_workers.
func inTowns(t *testing.T, most int, cfgs []PoolConfig, test func(*testing.T, []*town)) {
	synctest.Test(t, func(t *testing.T) {
		var towns []*town
		for i, cfg := range cfgs {
			prepare := func(v *town) { v.mgr.rations.set(most) }
			if i > 0 {
				prepare = towns[0].beside(nil)
			}
			v := newTown(t, cfg, prepare)
			defer v.end()
			towns = append(towns, v)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		test(t, towns)
	})
}

func wantServing(t *testing.T, when string, towns []*town, want ...int) {
	t.Helper()
	synctest.Wait()
	var got []int
	for _, v := range towns {
		got = append(got, v.serving())
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: %v workers serve, want %v", when, got, want)
	}
}

// Pools that are all asked for more than max_workers has share it in equal parts, but for what a static one has; who
// is asked alone has all of the rest; and nobody who is asked for a moment takes anybody's for longer.
func TestMaxWorkersIsShared(t *testing.T) {
	ondemand := PoolConfig{PM: OnDemand, Workers: 20, IdleTimeout: 10 * time.Second}
	dynamic := PoolConfig{PM: Dynamic, Workers: 20, StartWorkers: 2, MinSpareWorkers: 2, MaxSpareWorkers: 4, IdleTimeout: 10 * time.Second}
	inTowns(t, 12, []PoolConfig{{PM: Static, Workers: 2}, ondemand, dynamic}, func(t *testing.T, towns []*town) {
		one, two := towns[1], towns[2]
		wantServing(t, "while nobody asks", towns, 2, 0, 2)
		one.ask(500, time.Second)
		time.Sleep(20 * time.Second)
		wantServing(t, "one is asked", towns, 2, 10, 0)
		two.ask(500, time.Second)
		time.Sleep(10 * time.Second)
		wantServing(t, "two are asked", towns, 2, 5, 5)
		two.many.Wait()
		one.many.Wait()
		time.Sleep(time.Minute)
		wantServing(t, "in the end", towns, 2, 0, 4)
	})
}

// A pool that has as many workers as max_workers leaves it says that, and not that it wants more of its own.
func TestLimitByMaxWorkers(t *testing.T) {
	ondemand := PoolConfig{PM: OnDemand, Workers: 20, IdleTimeout: 10 * time.Second}
	inTowns(t, 2, []PoolConfig{ondemand}, func(t *testing.T, towns []*town) {
		v := towns[0]
		v.ask(100, 500*time.Millisecond)
		v.lookFor(5)
		if v.told("pool at its limit") != 1 || v.told("max_workers leaves the pool no more") != 1 || v.told("more workers answer more") != 0 {
			t.Errorf("it has said:\n%s", v.log)
		}
		v.many.Wait()
	})
}

// A request that comes to a pool that has no worker, as others have all that there are, waits for no more than
// one of theirs to be done, and for the start of its own.
func TestNobodyStarves(t *testing.T) {
	ondemand := PoolConfig{PM: OnDemand, Workers: 9, IdleTimeout: time.Hour}
	inTowns(t, 3, []PoolConfig{ondemand, ondemand, ondemand}, func(t *testing.T, towns []*town) {
		towns[0].ask(500, 500*time.Millisecond)
		time.Sleep(10 * time.Second)
		for range 5 {
			for _, v := range towns[1:] {
				asked := time.Now()
				v.ask(1, time.Millisecond)
				v.many.Wait()
				if d := time.Since(asked); d > 2*time.Second {
					t.Errorf("it took %v", d)
				}
				time.Sleep(3 * time.Second)
			}
		}
		wantServing(t, "afterwards", towns, 3, 0, 0)
		towns[0].many.Wait()
	})
}

// A lull of a moment takes no worker from a pool.
func TestRationsDoNotFlap(t *testing.T) {
	ondemand := PoolConfig{PM: OnDemand, Workers: 9, IdleTimeout: time.Hour}
	inTowns(t, 8, []PoolConfig{ondemand, ondemand}, func(t *testing.T, towns []*town) {
		towns[1].ask(500, 400*time.Millisecond)
		for range 20 {
			towns[0].ask(4, 400*time.Millisecond)
			time.Sleep(900 * time.Millisecond)
		}
		if n := towns[0].launched.Load(); n > 8 {
			t.Errorf("%d workers were started for four", n)
		}
		wantServing(t, "between two bursts", towns, 4, 4)
		towns[1].many.Wait()
	})
}

// Whatever is asked of several pools, and whatever happens to them, there are never more workers than
// max_workers, and all who ask are served.
func TestMaxWorkersHolds(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 4))
		var cfgs []PoolConfig
		least := 0
		for range 2 + rnd.IntN(3) {
			cfg := PoolConfig{PM: []PM{Static, Dynamic, OnDemand}[rnd.IntN(3)], Workers: 1 + rnd.IntN(5), IdleTimeout: upTo(rnd, 3*time.Second) + time.Millisecond}
			if cfg.PM == Dynamic {
				cfg.StartWorkers, cfg.MinSpareWorkers, cfg.MaxSpareWorkers = 1, rnd.IntN(3), 3+rnd.IntN(3)
			}
			if least++; cfg.PM == Static {
				least += cfg.Workers - 1
			}
			if rnd.IntN(3) == 0 {
				cfg.MaxRequests = 1 + rnd.IntN(20)
			}
			cfgs = append(cfgs, cfg)
		}
		most := least + rnd.IntN(3)
		inTowns(t, most, cfgs, func(t *testing.T, towns []*town) {
			for i := range 300 {
				v := towns[rnd.IntN(len(towns))]
				switch what := rnd.IntN(10); {
				case what < 4:
					v.ask(1+rnd.IntN(10), upTo(rnd, time.Second))
				case what < 7:
					time.Sleep(upTo(rnd, 2*time.Second))
				case what == 7:
					v.kill(0)
				case what == 8:
					v.set(func() { v.failing = []float64{0, 0, 0.5}[rnd.IntN(3)] })
				default:
					v.set(func() { v.load = upTo(rnd, 2*time.Second) })
				}
				v.check(fmt.Sprintf("seed %d, step %d", seed, i))
				if n := living(towns); n > most {
					t.Fatalf("seed %d, step %d: %d workers, want at most %d", seed, i, n, most)
				}
			}
			for _, v := range towns {
				v.set(func() { v.failing = 0 })
			}
			time.Sleep(3 * time.Minute)
			for i, v := range towns {
				v.many.Wait()
				v.set(func() { clear(v.outcomes) })
				v.ask(5, 10*time.Millisecond)
				v.wantOutcomes(map[outcome]int{ok: 5})
				if n := v.serving(); cfgs[i].PM == Static && n != cfgs[i].Workers && cfgs[i].MaxRequests == 0 {
					t.Errorf("seed %d: %d workers of a static pool, want %d", seed, n, cfgs[i].Workers)
				}
			}
		})
	}
}

// A pool that has stopped, as others still have somebody to answer, leaves them its share of max_workers, and none of
// it is lost when it is told twice.
func TestStoppedPoolMakesRoom(t *testing.T) {
	ondemand := PoolConfig{PM: OnDemand, Workers: 3, IdleTimeout: time.Hour}
	inTowns(t, 3, []PoolConfig{ondemand, ondemand}, func(t *testing.T, towns []*town) {
		time.Sleep(2 * time.Hour)
		towns[0].ask(3, time.Second)
		towns[0].many.Wait()
		time.Sleep(neededFor)
		wantServing(t, "before", towns, 3, 0)
		towns[1].config().QueueTimeout = 10 * time.Second
		go towns[0].stop(t.Context(), causeStop) // ends with its workers
		towns[1].ask(3, 5*time.Second)
		time.Sleep(time.Second)
		wantServing(t, "when one has stopped", towns, 0, 3)
		towns[1].wantOutcomes(map[outcome]int{ok: 3})
		if n := towns[0].mgr.rations.leaving; n != 0 {
			t.Errorf("%d workers that are gone still count", n)
		}
	})
}

// A static pool that is to have more workers has them when others', that were on their way, have not come up.
func TestStaticPoolHasWhatOthersFailToTake(t *testing.T) {
	ondemand := PoolConfig{PM: OnDemand, Workers: 9, IdleTimeout: time.Second}
	inTowns(t, 6, []PoolConfig{ondemand, {PM: Static, Workers: 2}}, func(t *testing.T, towns []*town) {
		one, fixed := towns[0], towns[1]
		one.mgr.starts = newTurns(9)
		one.set(func() { one.load, one.failing = 10*time.Second, 1 })
		one.ask(20, time.Second)
		time.Sleep(5 * time.Second)
		fixed.scale(2)
		time.Sleep(10 * time.Second)
		wantServing(t, "when they have not come up", towns, 0, 4)
		one.set(func() { one.load, one.failing = time.Second, 0 })
		one.many.Wait()
	})
}
