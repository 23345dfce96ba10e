package manager

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

// all reads what there is.
func (f *Follower) all() (events []Event) {
	for {
		some, _ := f.Next()
		if len(some) == 0 {
			return events
		}
		events = append(events, some...)
	}
}

// A pool that crashes all the time costs no other, nor fpmd, its history; and there is an end to its own.
func TestRecordIsBounded(t *testing.T) {
	var r record
	r.add(Event{Kind: EventStart})
	r.add(Event{Kind: EventSpawn, Pool: "quiet", Worker: 1})
	for i := range 3*keptEvents + 7 {
		r.add(Event{Kind: EventNotStarted, Pool: "loud", Worker: i + 2})
	}
	counts := map[string]int{}
	last := uint64(0)
	for _, e := range r.follow(time.Time{}, nil).all() {
		counts[e.Pool]++
		if e.Seq <= last {
			t.Fatalf("event %d comes behind event %d", e.Seq, last)
		}
		last = e.Seq
	}
	if last != r.seq || counts[""] != 1 || counts["quiet"] != 1 || counts["loud"] != keptEvents || len(counts) != 3 {
		t.Errorf("kept up to event %d of %d: %v", last, r.seq, counts)
	}
	if n := len(r.follow(time.Time{}, []string{"quiet"}).all()); n != 1 {
		t.Errorf("of pool quiet alone there are %d, want 1", n)
	}
	if since := r.reaches("quiet"); !since.IsZero() {
		t.Errorf("pool quiet is known since %v, want from the beginning", since)
	}
	if r.reaches("loud").IsZero() {
		t.Error("pool loud is known from the beginning, and can't be")
	}
}

// What an event holds of what others have written has an end, and ends in a whole character.
func TestEventIsCut(t *testing.T) {
	long := strings.Repeat("a€", 10_000)
	var many []string
	var changes []Change
	for range 100 {
		many = append(many, long)
		changes = append(changes, Change{Key: "pool.blog.env", Old: long, New: long})
	}
	var r record
	r.add(Event{Cause: long, By: long, Request: long, Exit: long, Next: long, Last: many, Command: many, Changes: changes})
	e := r.follow(time.Time{}, nil).all()[0]
	text, err := json.Marshal(e)
	if err != nil || len(text) > 16<<10 {
		t.Errorf("%d bytes, %v, want 16 KiB at most", len(text), err)
	}
	if !strings.HasPrefix(e.Cause, "a€") || !strings.HasSuffix(e.Cause, "...") || !utf8.ValidString(e.Cause) {
		t.Errorf("cause: %q", e.Cause)
	}
	for _, tt := range []struct {
		lines []string
		want  int
	}{
		{[]string{"one", strings.Repeat("x", keptLast-3), "two"}, 2},
		{[]string{"one", strings.Repeat("x", keptLast), "two"}, 1},
		{[]string{"one", strings.Repeat("x", 2*keptLast)}, 1},
		{nil, 0},
	} {
		got := lastOf(tt.lines, keptLast)
		if len(got) != tt.want || len(strings.Join(got, "")) > keptLast {
			t.Errorf("of %d lines %d are kept, want the last %d", len(tt.lines), len(got), tt.want)
		}
	}
}

// Who reads more slowly than things happen is told how many he has missed, and misses nothing that is kept; who was
// not there yet misses nothing.
func TestFollowerIsToldWhatItMissed(t *testing.T) {
	var r record
	f := r.follow(time.Time{}, nil)
	const n = keptEvents + 10
	for range n {
		r.add(Event{Kind: EventSpawn, Pool: "a"})
	}
	r.add(Event{Kind: EventSpawn, Pool: "b"})
	events := f.all()
	if len(events) != 1+keptEvents+1 || events[0].Kind != EventMissed || events[0].Count != n-keptEvents {
		t.Fatalf("%d events, the first %+v: want word of %d that are missed, and those that are kept", len(events), events[0], n-keptEvents)
	}
	for i, e := range events[1:] {
		if want := uint64(n - keptEvents + 1 + i); e.Seq != want {
			t.Fatalf("event %d is number %d, want %d", i, e.Seq, want)
		}
	}
	late := r.follow(time.Time{}, nil).all()
	if len(late) != keptEvents+1 || late[0].Kind == EventMissed {
		t.Errorf("who comes later gets %d events, the first %+v", len(late), late[0])
	}
	if events := r.follow(time.Now(), nil).all(); len(events) > 0 {
		t.Errorf("from now on there are %d events", len(events))
	}
}

// Many may read while many write: each sees what happens in its order, and all of it, or how much it has missed.
func TestFollowersAtOnce(t *testing.T) {
	var r record
	const writers, each, readers = 4, 3 * keptEvents, 8
	var writing, reading sync.WaitGroup
	over := make(chan struct{})
	for range readers {
		f := r.follow(time.Time{}, nil)
		reading.Go(func() {
			last, n := uint64(0), 0
			for {
				events, more := f.Next()
				for _, e := range events {
					if n++; e.Kind == EventMissed {
						n += e.Count - 1
						continue
					}
					if e.Seq <= last {
						t.Errorf("event %d comes behind event %d", e.Seq, last)
					}
					last = e.Seq
				}
				if len(events) > 0 {
					continue
				}
				if n == writers*each {
					return
				}
				select {
				case <-more:
				case <-over:
					if events, _ := f.Next(); len(events) == 0 {
						t.Errorf("it knows of %d events, want %d", n, writers*each)
						return
					}
				}
			}
		})
	}
	for i := range writers {
		writing.Go(func() {
			for range each {
				r.add(Event{Pool: fmt.Sprint(i)})
			}
		})
	}
	writing.Wait()
	close(over)
	reading.Wait()
}

// An episode begins when trouble is met, and is over when it was not met for a while.
func TestEpisode(t *testing.T) {
	at := func(s int) time.Time { return noon.Add(time.Duration(s) * time.Second) }
	var e episode
	if _, ended := e.end(at(0), quietTime); ended || e.started() != nil {
		t.Error("an episode that has not begun ends")
	}
	for i, s := range []int{0, 1, 1, 4, 8} {
		if begins := e.meet(at(s)); begins != (i == 0) {
			t.Errorf("met after %d s, it begins: %v", s, begins)
		}
		if _, ended := e.end(at(s), quietTime); ended {
			t.Errorf("it ends after %d s, when it was met", s)
		}
	}
	if _, ended := e.end(at(12), quietTime); ended {
		t.Error("it ends after 12 s, and was met after 8")
	}
	was, ended := e.end(at(13), quietTime)
	if !ended || was.count != 5 || was.length() != 8*time.Second || e.started() != nil {
		t.Errorf("after 13 s it has ended: %v, %+v", ended, was)
	}
	if !e.meet(at(14)) {
		t.Error("no other one begins")
	}
}

func TestAtLimit(t *testing.T) {
	for _, tt := range []struct {
		queued, workers, size int
		want                  bool
	}{
		{0, 2, 2, false},
		{1, 2, 2, true},
		{1, 1, 2, false}, // another one may be started
		{1, 0, 2, false},
		{9, 3, 2, true}, // scaled down
	} {
		if got := atLimit(tt.queued, tt.workers, tt.size); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// lookFor is what upkeep does, for so many seconds.
func (v *town) lookFor(seconds int) {
	for range seconds {
		v.wait(lookEvery)
		v.look(time.Now())
	}
}

// A pool at its limit says so once, however many requests that is, and when it is over; a moment is no limit.
func TestPoolAtItsLimit(t *testing.T) {
	for _, pm := range []PM{Static, Dynamic, OnDemand} {
		t.Run(string(pm), func(t *testing.T) {
			inTown(t, PoolConfig{PM: pm, Workers: 2}, nil, func(t *testing.T, v *town) {
				want := func(when string, begun, over int) {
					t.Helper()
					if b, o := v.told("pool at its limit"), v.told("pool below its limit again"); b != begun || o != over {
						t.Errorf("%s: told %d times of a limit, and %d times of its end, want %d and %d", when, b, o, begun, over)
					}
					if told := v.status().AtLimit != nil; told != (begun > over) {
						t.Errorf("%s: in the status: %v", when, told)
					}
				}
				v.lookFor(3)
				v.ask(20, 130*time.Millisecond) // some wait when it is looked next, and none the time after that
				v.lookFor(10)
				want("after a burst", 0, 0)
				for range 3 { // at its limit, on and off
					v.ask(40, 500*time.Millisecond)
					v.lookFor(8)
				}
				want("while many ask", 1, 0)
				v.lookFor(20)
				want("when nobody asks any more", 1, 1)
				v.ask(40, 500*time.Millisecond)
				v.lookFor(5)
				want("when many ask again", 2, 1)
			})
		})
	}
}

// A pool whose workers are all still loading is not at its limit: who waits does not wait for want of more.
func TestLoadingIsNoLimit(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 2}, func(v *town) { v.load = 10 * time.Second }, func(t *testing.T, v *town) {
		v.ask(4, 20*time.Second)
		v.lookFor(19) // one comes up after the other
		if v.told("pool at its limit") > 0 {
			t.Error("it is said to be")
		}
		v.lookFor(5)
		if v.told("pool at its limit") != 1 {
			t.Error("then, it is not said")
		}
	})
}

// A queue without room says so once, and in the end how many it had no room for.
func TestQueueFullEpisode(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 1}, func(v *town) {
		cfg := *v.config()
		cfg.QueueSize = 3
		v.cfg.Store(&cfg)
	}, func(t *testing.T, v *town) {
		v.lookFor(1)
		for range 5 {
			v.ask(10, 100*time.Millisecond)
			v.lookFor(1)
		}
		refused := v.outcomes[queueFull]
		if refused < 20 || v.status().Refused != refused || v.status().QueueFull == nil {
			t.Errorf("%d refused, in the status %d, since %v", refused, v.status().Refused, v.status().QueueFull)
		}
		v.lookFor(10)
		if b, o := v.told("queue full"), v.told(fmt.Sprintf("refused=%d", refused)); b != 1 || o != 1 {
			t.Errorf("told %d times that it is full, %d times that %d were refused, want once each:\n%s", b, o, refused, v.log)
		}
		if v.status().QueueFull != nil {
			t.Error("in the status it is still full")
		}
	})
}

// Who takes whose place is known in a static pool, of one that died and of one that is due.
func TestSuccession(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 2, MaxRequests: 3}, nil, func(t *testing.T, v *town) {
		want := func(id, replaces int, why string) {
			t.Helper()
			v.mu.Lock()
			defer v.mu.Unlock()
			for w := range v.workers {
				if w.id == id {
					if w.replaces != replaces || w.why != why {
						t.Errorf("worker %d is in the place of %d, because %q, want %d, %q", id, w.replaces, w.why, replaces, why)
					}
					return
				}
			}
			t.Errorf("there is no worker %d", id)
		}
		v.wait(5 * time.Second)
		want(1, 0, "the pool begins")
		want(2, 0, "the pool begins")
		v.kill(1)
		v.wait(5 * time.Second)
		want(3, 1, "1 of 2 workers are there")
		v.kill(2)
		v.wait(5 * time.Second)
		want(4, 2, "1 of 2 workers are there")
		v.kill(4)
		v.wait(5 * time.Second)
		for range 3 { // of worker 5, which has come last
			v.ask(1, time.Millisecond)
			v.wait(5 * time.Second)
		}
		want(6, 5, "worker 5 is due for replacement: max_requests")
		v.scale(1)
		v.wait(5 * time.Second)
		want(7, 0, "2 of 3 workers are there")
		v.mu.Lock()
		v.size--
		v.mu.Unlock()
		v.kill(7) // nobody is to take its place
		v.wait(5 * time.Second)
		v.scale(1)
		v.wait(5 * time.Second)
		want(8, 0, "2 of 3 workers are there")
	})
}

// That no worker comes up any more is told once, and so is that one has.
func TestFailingIsToldOnce(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 3}, nil, func(t *testing.T, v *town) {
		want := func(when string, failing, recovered int) {
			t.Helper()
			n := map[EventKind]int{}
			for _, e := range v.mgr.events.follow(time.Time{}, nil).all() {
				n[e.Kind]++
			}
			if n[EventFailing] != failing || n[EventRecovered] != recovered {
				t.Errorf("%s: failing %d times, recovered %d times, want %d and %d", when, n[EventFailing], n[EventRecovered], failing, recovered)
			}
		}
		v.wait(5 * time.Second)
		want("at first", 0, 0)
		v.set(func() { v.failing = 1 })
		for id := range 3 {
			v.kill(id + 1)
		}
		v.wait(2 * time.Minute)
		want("when nobody comes up", 1, 0)
		v.set(func() { v.failing = 0 })
		v.wait(2 * time.Minute)
		want("when somebody has", 1, 1)
	})
}

// A process that a worker has started is not taken for a worker that had its number before; once it is gone, that is
// who had it.
func TestWhyOfANumberUsedAgain(t *testing.T) {
	m := &Manager{log: slog.New(slog.DiscardHandler)}
	p := newPool(m, &PoolConfig{Name: "app"})
	m.pools.add(p)
	p.gen = p.newGeneration(p.config())
	p.mu.Lock()
	w := p.gen.newWorkerLocked("")
	w.id, w.proc = 3, &process{pid: os.Getpid()}
	p.mu.Unlock()
	defer p.wg.Wait()
	defer close(w.gone)
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	pid := child.Process.Pid
	m.events.add(Event{Kind: EventExit, Pool: "app", Worker: 2, PID: pid})
	if s, err := m.Why(pid); err != nil || s.Worker != 3 || s.Child != pid {
		t.Errorf("while it lives: worker %d, %v", s.Worker, err)
	}
	_ = child.Process.Kill()
	_ = child.Wait()
	if s, err := m.Why(pid); err != nil || s.Worker != 2 || s.Child != 0 {
		t.Errorf("when it is gone: worker %d, %v", s.Worker, err)
	}
}
