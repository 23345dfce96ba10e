package manager

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"
)

// rollKeeping rolls the pool, which keeps what served before for so long.
func (v *town) rollKeeping(keepFor time.Duration) {
	v.t.Helper()
	next := *v.config()
	next.KeepGeneration = keepFor
	if err := v.roll(v.t.Context(), &next); err != nil {
		v.t.Fatal(err)
	}
}

// workersIn lists the workers of generation n that could serve, by their ids.
func (v *town) workersIn(n int) (ids []int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for w := range v.workers {
		if w.gen.n == n && w.servesLocked() {
			ids = append(ids, w.id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (v *town) wantWorkersIn(n int, want ...int) {
	v.t.Helper()
	if got := v.workersIn(n); !slices.Equal(got, want) {
		v.t.Errorf("workers %v of generation %d, want %v", got, n, want)
	}
}

func (v *town) wantRefused(why string) {
	v.t.Helper()
	v.mu.Lock()
	before := v.gen
	v.mu.Unlock()
	if err := v.rollback(v.t.Context(), ""); err == nil || !strings.Contains(err.Error(), why) {
		v.t.Errorf("rollback: %v, want %q", err, why)
	}
	if v.gen != before {
		v.t.Error("a rollback that was refused has changed something")
	}
}

// The generation that was replaced stays warm for as long as it is to be, is neither replenished nor
// recycled, and serves again at once, at its size, when it is asked to; the other one leaves.
func TestRollback(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 3, MaxAge: 10 * time.Minute}, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.wantRefused("there was no reload or restart since fpmd was started")
		v.rollKeeping(time.Hour)
		v.wait(time.Second)
		v.wantWorkersIn(1, 1, 2, 3)
		v.wantWorkersIn(2, 4, 5, 6)
		v.kill(2)
		v.wait(30 * time.Minute)
		v.wantWorkersIn(1, 1, 3)
		v.ask(3, time.Minute) // who are answered by generation 2 all the same
		v.wait(time.Second)
		if err := v.rollback(v.t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		v.ask(2, time.Second)
		v.wantOutcomes(map[outcome]int{ok: 5})
		v.wait(time.Minute)
		if n := len(v.workersIn(1)); n != 3 {
			t.Errorf("%d workers serve, want 3", n)
		}
		v.wantWorkersIn(2)
		v.wantRefused("generation 1, which was, serves again")
		v.wait(time.Hour)
		if slices.Contains(v.workersIn(1), 1) {
			t.Error("what was due when it was kept is not replaced since it serves")
		}
	})
}

// A generation is kept until its time is over, its last worker has ended, or another takes its place: then
// nothing is left of it, and a rollback is refused, with the reason and since when.
func TestKeptGenerationEnds(t *testing.T) {
	for _, tt := range []struct {
		name  string
		end   func(v *town)
		after int // the generation that serves then
		why   string
	}{
		{"time", func(v *town) { v.wait(time.Minute + time.Second) }, 2, "generation 1 was kept until its keep_generation was over (21s ago)"},
		{"death", func(v *town) { v.kill(1); v.kill(2); v.wait(time.Second) }, 2, "the last worker of generation 1, which was kept, has ended: "},
		{"a reload that keeps none", func(v *town) { v.rollKeeping(0); v.wait(time.Second) }, 3, "at the last reload or restart keep_generation was 0"},
	} {
		inTown(t, PoolConfig{PM: Static, Workers: 2}, nil, func(t *testing.T, v *town) {
			v.wait(time.Minute)
			v.rollKeeping(time.Minute)
			v.wait(10 * time.Second)
			v.wantWorkersIn(1, 1, 2)
			tt.end(v)
			v.wait(10 * time.Second)
			v.check(tt.name)
			v.mu.Lock()
			n := len(v.workers)
			v.mu.Unlock()
			if n != 2 {
				t.Errorf("%s: %d workers are left, want 2", tt.name, n)
			}
			v.wantRefused(tt.why)
			v.wantServing(2)
			if v.gen.n != tt.after {
				t.Errorf("%s: generation %d serves", tt.name, v.gen.n)
			}
		})
	}
}

// The next reload keeps the generation before it, in the place of the one that was kept.
func TestOneGenerationIsKept(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 2}, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.rollKeeping(time.Hour)
		v.set(func() { v.failing = 1 })
		if err := v.roll(t.Context(), v.config()); err == nil {
			t.Fatal("it was rolled, though no worker comes up")
		}
		v.wantWorkersIn(1, 1, 2) // a reload that fails leaves it
		v.set(func() { v.failing = 0 })
		v.rollKeeping(time.Hour)
		v.wait(time.Second)
		v.wantWorkersIn(1)
		v.wantWorkersIn(2, 3, 4)
		if err := v.rollback(v.t.Context(), ""); err != nil || v.gen.n != 2 {
			t.Errorf("generation %d serves: %v", v.gen.n, err)
		}
	})
}

// A pool on demand that nobody asks has nobody to keep.
func TestNobodyToKeep(t *testing.T) {
	inTown(t, PoolConfig{PM: OnDemand, Workers: 2, IdleTimeout: time.Second}, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.wantServing(0)
		v.rollKeeping(time.Hour)
		v.wantRefused("generation 1 had no worker when it was replaced")
		v.wait(time.Minute)
		v.ask(2, 10*time.Second)
		v.wait(time.Second)
		v.rollKeeping(time.Hour)
		v.wait(time.Minute) // more than idle_timeout
		if n := len(v.workersIn(2)); n == 0 {
			t.Error("nobody is kept")
		}
		v.wantOutcomes(map[outcome]int{ok: 2})
	})
}

// A rollback brings back the size that its configuration has, or what the pool was scaled to where both have the same.
func TestRollbackSize(t *testing.T) {
	for _, tt := range []struct{ workers, scale, want int }{{4, 0, 2}, {2, 2, 4}, {2, -1, 1}} {
		inTown(t, PoolConfig{PM: Static, Workers: 2}, nil, func(t *testing.T, v *town) {
			v.wait(time.Minute)
			next := *v.config()
			next.Workers, next.KeepGeneration = tt.workers, time.Hour
			if err := v.roll(t.Context(), &next); err != nil {
				t.Fatal(err)
			}
			v.scale(tt.scale)
			v.wait(time.Minute)
			if err := v.rollback(v.t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			v.wait(time.Minute)
			v.wantServing(tt.want)
			if v.config().Workers != 2 {
				t.Errorf("workers = %d", v.config().Workers)
			}
		})
	}
}

// A rollback that nobody waits for any more when its turn comes, such as one that had to wait for a reload, does nothing.
func TestRollbackGivenUp(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 1}, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.rollKeeping(time.Hour)
		v.wait(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := v.rollback(ctx, ""); err == nil || v.gen.n != 2 {
			t.Errorf("generation %d serves, %v", v.gen.n, err)
		}
	})
}
