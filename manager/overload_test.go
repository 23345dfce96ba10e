package manager

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A crowd is what became of many visitors of a town; under its fate, until all have gone.
type crowd struct {
	v      *town
	ended  map[outcome]int
	queued map[outcome][]time.Duration
}

func (v *town) newCrowd() *crowd {
	return &crowd{v, make(map[outcome]int), make(map[outcome][]time.Duration)}
}

// comeFor has so many visitors a second come for a while.
func (c *crowd) comeFor(length time.Duration, rate float64, takes, patience time.Duration) {
	for range int(length.Seconds() * rate) {
		c.come(takes, patience)
		time.Sleep(time.Duration(float64(time.Second) / rate))
	}
}

// come has a visitor come; what it returns is closed at the end.
func (c *crowd) come(takes, patience time.Duration) <-chan struct{} {
	ended := make(chan struct{})
	c.v.visit(takes, patience, func(o outcome, queued time.Duration) {
		c.ended[o]++
		c.queued[o] = append(c.queued[o], queued)
		close(ended)
	})
	return ended
}

// so counts those who have ended with o so far.
func (c *crowd) so(o outcome) (n int) {
	c.v.set(func() { n = c.ended[o] })
	return n
}

// median is that of how long those queued who ended with o.
func (c *crowd) median(o outcome) time.Duration {
	if len(c.queued[o]) == 0 {
		return 0
	}
	slices.Sort(c.queued[o])
	return c.queued[o][len(c.queued[o])/2]
}

func (v *town) wantTold(begun, over int) {
	v.t.Helper()
	if b, o := v.told("msg=\"pool overloaded\""), v.told("msg=\"overload is over\""); b != begun || o != over {
		v.t.Errorf("overload began %d times and was over %d times, want %d and %d", b, o, begun, over)
	}
}

// fourOf20ms can do 200 requests a second that take 20 ms.
var fourOf20ms = PoolConfig{PM: Static, Workers: 4}

// Under overload, all that a pool can do is for clients who are still there; those who are served have hardly
// waited, those who are refused have waited for overloadWait, and nobody has to leave. It is told of once, and when it
// is over. Afterwards, those who wait are served in the order in which they came.
func TestOverload(t *testing.T) {
	for _, tt := range []struct {
		name     string
		rate     float64
		takes    time.Duration
		patience time.Duration
	}{
		{"impatient", 400, 20 * time.Millisecond, 2 * time.Second},
		{"more impatient than we are", 400, 20 * time.Millisecond, 500 * time.Millisecond},
		{"patient", 400, 20 * time.Millisecond, 0},
		{"many", 1000, 20 * time.Millisecond, 2 * time.Second},
		{"a little", 210, 20 * time.Millisecond, 2 * time.Second},
		{"a slow application", 0.4, 20 * time.Second, time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inTown(t, fourOf20ms, nil, func(t *testing.T, v *town) {
				v.wait(time.Minute)
				scale := max(time.Second, tt.takes*50) // to the application's pace
				v.newCrowd().comeFor(60*scale, tt.rate, tt.takes, tt.patience)
				v.wantTold(1, 0)
				c := v.newCrowd()
				c.comeFor(60*scale, tt.rate, tt.takes, tt.patience)
				can := int(4 * 60 * scale / tt.takes)
				early := c.so(clientGone)
				v.wait(time.Hour)
				v.many.Wait()
				t.Logf("%d can be done, %v", can, c.ended)
				if c.ended[ok] < can*97/100 {
					t.Errorf("%d were served, want about %d", c.ended[ok], can)
				}
				if m := c.median(ok); m > tt.takes*2 {
					t.Errorf("half of them waited for more than %v, want less than %v", m, tt.takes*2)
				}
				if refused := c.ended[queueFull] + c.ended[queueTimeout]; refused == 0 && (tt.patience == 0 || tt.patience > overloadWait) {
					t.Error("nobody was refused")
				}
				if tt.patience > overloadWait && tt.takes < overloadWait && early > 0 {
					t.Errorf("%d had to leave", early)
				}
				v.wantTold(1, 1)
				var order []int
				for i := range 20 {
					v.visit(tt.takes, 0, func(outcome, time.Duration) { order = append(order, i) })
					v.wait(time.Nanosecond)
				}
				v.many.Wait()
				if !slices.IsSorted(order[4:]) && !slices.IsSorted(order) {
					t.Errorf("afterwards, they were served in the order %v", order)
				}
			})
		})
	}
}

// As long as those who wait are served in the end, waiting is no overload: many clients who ask again when they are
// answered, a burst of as many as may wait, more than that for a moment, a few who leave. They are
// served in the order in which they came.
func TestQueueIsNoOverload(t *testing.T) {
	for name, ask := range map[string]func(v *town, c *crowd){
		"many that ask again": func(v *town, c *crowd) {
			for range 300 {
				v.many.Go(func() { // ends when it has asked so often
					for range 20 {
						<-c.come(20*time.Millisecond, 0)
					}
				})
			}
			v.many.Wait()
			if longest := slices.Max(c.queued[ok]); longest > 1500*time.Millisecond {
				v.t.Errorf("one of 300 has waited for %v until 4 workers of 20 ms came round", longest)
			}
		},
		"a burst": func(v *town, c *crowd) {
			for range 500 {
				c.come(20*time.Millisecond, 0)
			}
			c.comeFor(5*time.Second, 100, 20*time.Millisecond, 0)
		},
		"some leave": func(v *town, c *crowd) {
			for i := range 3000 {
				patience := time.Duration(0)
				if i%20 == 0 {
					patience = 100 * time.Millisecond
				}
				c.come(20*time.Millisecond, patience)
				v.wait(4900 * time.Microsecond)
			}
			v.wait(time.Second)
			delete(c.ended, clientGone)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inTown(t, fourOf20ms, nil, func(t *testing.T, v *town) {
				v.wait(time.Minute)
				c := v.newCrowd()
				ask(v, c)
				v.many.Wait()
				if len(c.ended) != 1 {
					t.Errorf("not all were served: %v", c.ended)
				}
				v.wantTold(0, 0)
			})
		})
	}
}

// A burst that is larger than the queue has as many refused as do not fit, and those who wait
// are served.
func TestBurstBeyondQueue(t *testing.T) {
	inTown(t, fourOf20ms, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		c := v.newCrowd()
		for range 1000 {
			c.come(20*time.Millisecond, 0)
		}
		v.many.Wait()
		if fit := 4 + v.config().QueueSize; c.ended[ok] != fit || c.ended[queueFull] != 1000-fit {
			t.Errorf("of 1000, where %d fit: %v", fit, c.ended)
		}
		v.wantTold(0, 0)
	})
}

// Who waits for workers that are loading is not refused for overload, however many leave
// meanwhile: neither when nobody serves yet, nor when all have died under overload.
func TestNoOverloadWithoutWorkers(t *testing.T) {
	cfg := PoolConfig{PM: OnDemand, Workers: 4, IdleTimeout: time.Second}
	inTown(t, cfg, func(v *town) { v.mgr.starts = newTurns(4) }, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.wantServing(0)
		v.set(func() { v.load = 20 * time.Second })
		c := v.newCrowd()
		c.comeFor(19*time.Second, 100, 20*time.Millisecond, 2*time.Second)
		v.wantTold(0, 0)
		if n := c.so(queueFull) + c.so(queueTimeout); n > 0 {
			t.Errorf("%d were refused", n)
		}
		v.many.Wait()

		v.wait(time.Minute)
		v.set(func() { v.load = 100 * time.Millisecond })
		c = v.newCrowd()
		c.comeFor(10*time.Second, 400, 20*time.Millisecond, 2*time.Second)
		v.wantTold(1, 0)
		v.set(func() { v.load = 8 * time.Second })
		for range 4 {
			v.kill(0)
		}
		v.wait(3 * time.Second)
		v.wantServing(0)
		c = v.newCrowd()
		for range 100 {
			c.come(20*time.Millisecond, 0)
		}
		v.many.Wait()
		if c.ended[ok] != 100 {
			t.Errorf("of those who waited for a worker: %v", c.ended)
		}
	})
}

// When a queue is full under overload, who comes has the place of who has waited longest: the one is likely
// to be served, the other to leave.
func TestFullQueueHasRoomForTheLast(t *testing.T) {
	inTown(t, fourOf20ms, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.config().QueueSize = 50
		v.newCrowd().comeFor(10*time.Second, 400, 20*time.Millisecond, 0)
		v.wantTold(1, 0)
		c := v.newCrowd()
		c.comeFor(10*time.Second, 400, 20*time.Millisecond, 0)
		v.many.Wait()
		for _, queued := range c.queued[queueFull] {
			if queued < 100*time.Millisecond {
				t.Fatalf("one was refused after %v, though others had waited longer", queued)
			}
		}
		if c.ended[queueFull] == 0 {
			t.Error("nobody was refused")
		}
		if m := c.median(ok); m > 20*time.Millisecond {
			t.Errorf("half of the others have waited for more than %v", m)
		}
	})
}

// Who was sent behind another, and is taken back under overload, is next.
func TestTakenBackUnderOverload(t *testing.T) {
	inTown(t, fourOf20ms, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.newCrowd().comeFor(10*time.Second, 400, 20*time.Millisecond, 0)
		v.wantTold(1, 0)
		c := v.newCrowd()
		c.come(20*time.Millisecond, 0)
		synctest.Wait()
		v.mu.Lock()
		for range v.open.n - 1 { // behind the one that was begun last, which takes longer than he waits for
			s, _ := v.open.pop()
			v.open.pushBack(&s.link)
		}
		v.mu.Unlock()
		v.takeSecond()
		v.many.Wait()
		if c.ended[ok] != 1 || c.queued[ok][0] > 100*time.Millisecond {
			t.Errorf("it has waited for %v, and ended with %v", c.queued, c.ended)
		}
	})
}

// Overload is over when those who ask are no more than a pool can serve, though somebody waits at any time, such as a few
// clients who ask again as soon as they are answered; and none of them has to wait for the others for ever.
func TestOverloadEndsWhileFewWait(t *testing.T) {
	inTown(t, fourOf20ms, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.config().QueueTimeout = 10 * time.Second
		v.newCrowd().comeFor(30*time.Second, 400, 20*time.Millisecond, 2*time.Second)
		v.wantTold(1, 0)
		v.wait(2 * time.Second) // those who are left are refused
		c := v.newCrowd()
		end := time.Now().Add(time.Minute)
		for range 6 {
			v.many.Go(func() { // ends then
				for time.Now().Before(end) {
					<-c.come(20*time.Millisecond, 0)
				}
			})
		}
		v.wait(30 * time.Second)
		v.wantTold(1, 1)
		v.many.Wait()
		if len(c.ended) != 1 || slices.Max(c.queued[ok]) > 100*time.Millisecond {
			t.Errorf("they ended with %v, and waited for up to %v", c.ended, slices.Max(c.queued[ok]))
		}
	})
}

// A queue that has no more places than the pool has slots is short under overload, too: who comes, and finds it full, is
// refused, and not somebody whose turn is next.
func TestOverloadOfAShortQueue(t *testing.T) {
	inTown(t, fourOf20ms, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.config().QueueSize = 3
		v.newCrowd().comeFor(10*time.Second, 400, 20*time.Millisecond, 0)
		v.wantTold(1, 0)
		c := v.newCrowd()
		c.comeFor(10*time.Second, 400, 20*time.Millisecond, 0)
		v.many.Wait()
		if most := slices.Max(c.queued[queueFull]); most > 0 {
			t.Errorf("one was refused after %v", most)
		}
		if most := slices.Max(c.queued[ok]); most > 20*time.Millisecond || c.ended[ok] < 1900 {
			t.Errorf("%v, who waited for up to %v", c.ended, most)
		}
	})
}

// Who waits in vain is no sign of overload because many did so an hour ago, and nobody has waited since.
func TestOldMissesAreForgotten(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 1}, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		v.config().QueueSize = 2
		v.ask(100, 20*time.Millisecond)
		v.wait(time.Hour)
		v.ask(2, 5*time.Second)
		v.wait(time.Millisecond)
		v.newCrowd().come(20*time.Millisecond, 2*time.Second) // who leaves
		v.wait(time.Minute)
		v.wantTold(0, 0)
	})
}

// Under overload the log and the status have it alone: that its queue is full, and that it has all workers that it may
// have, is part of it, and over with it.
func TestOverloadSaysItAll(t *testing.T) {
	inTown(t, fourOf20ms, func(v *town) {
		cfg := *v.config()
		cfg.QueueSize = 20
		v.cfg.Store(&cfg)
	}, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		c := v.newCrowd()
		go c.comeFor(30*time.Second, 400, 20*time.Millisecond, time.Minute)
		v.lookFor(20)
		before := v.status()
		v.wantTold(1, 0)
		if full, limit := v.told("queue full"), v.told("pool at its limit"); full > 1 || limit > 1 {
			t.Errorf("told %d times of a full queue, and %d times of a limit, want what there was before the overload", full, limit)
		}
		if before.Overloaded == nil || before.QueueFull != nil || before.AtLimit != nil || before.Refused < 1000 {
			t.Errorf("the status: overloaded since %v, full since %v, at its limit since %v, %d refused", before.Overloaded, before.QueueFull, before.AtLimit, before.Refused)
		}
		v.lookFor(60)
		v.wantTold(1, 1)
		if room, below := v.told("queue has room again"), v.told("pool below its limit again"); room+below > 0 {
			t.Errorf("told %d times of room, and %d times of no limit", room, below)
		}
		if s := v.status(); s.Overloaded != nil || s.Refused != 0 {
			t.Errorf("in the end: %+v", s)
		}
	})
}
