package manager

import (
	"cmp"
	"slices"
	"sync"
	"time"
	"unicode/utf8"
)

// An EventKind says what has happened, in the one list that there is.
type EventKind string

// What happens in the life of a Manager, its pools and their workers.
const (
	EventStart           EventKind = "start"            // fpmd has started
	EventStop            EventKind = "stop"             // it begins to stop
	EventStopped         EventKind = "stopped"          // no process is left
	EventReopen          EventKind = "reopen"           // logs were opened again
	EventReloadBegin     EventKind = "reload_begin"     // or a restart, as What says
	EventReloadRefused   EventKind = "reload_refused"   // nothing has changed
	EventReloadChange    EventKind = "reload_change"    // the keys of a pool that have another value
	EventReloadEnd       EventKind = "reload_end"       // all pools that were asked for are rolled
	EventReloadFailed    EventKind = "reload_failed"    // some of them are not
	EventReloadGivenUp   EventKind = "reload_given_up"  // fpmd stops
	EventGeneration      EventKind = "generation"       // a pool's new workers have taken over
	EventGenerationLost  EventKind = "generation_lost"  // they did not come up, and the old ones serve on
	EventRollback        EventKind = "rollback"         // the workers that were kept have taken over again
	EventRollbackRefused EventKind = "rollback_refused" // none were kept
	EventUnkept          EventKind = "unkept"           // there is no going back to a generation any more
	EventScale           EventKind = "scale"            // a pool has another size
	EventAtLimit         EventKind = "at_limit"         // requests wait, and there may be no more workers
	EventLimitOver       EventKind = "limit_over"       //
	EventQueueFull       EventKind = "queue_full"       // requests are refused
	EventQueueFullOver   EventKind = "queue_full_over"  //
	EventOverloaded      EventKind = "overloaded"       // requests wait in vain: who came last is served first; it ends at_limit and queue_full
	EventOverloadOver    EventKind = "overload_over"    //
	EventFailing         EventKind = "failing"          // no worker of a pool comes up
	EventRecovered       EventKind = "recovered"        // one has
	EventSpawn           EventKind = "spawn"            // a worker's process was started
	EventReady           EventKind = "ready"            // it can take requests
	EventNotStarted      EventKind = "not_started"      // it never could
	EventTimeout         EventKind = "timeout"          // a request ran into request_timeout
	EventBadAnswer       EventKind = "bad_answer"       // a worker broke the exchange protocol
	EventStuck           EventKind = "stuck"            // it does not come back from a request whose client left
	EventFewSlots        EventKind = "few_slots"        // it greets fewer slots than it said
	EventMemory          EventKind = "memory"           // it has more than max_memory_hard
	EventRetire          EventKind = "retire"           // it takes no more requests
	EventDrainTimeout    EventKind = "drain_timeout"    // it has still one, and is stopped
	EventExit            EventKind = "exit"             // its process has ended
	EventMissed          EventKind = "missed"           // Count events, between the one before and the next, are not kept any more
)

// An Event is something that has happened. Its JSON is for programs: names are not changed, only added.
// It has no value of env.
type Event struct {
	Seq        uint64    `json:"seq"` // counts from 1; with an EventMissed it is 0
	Time       time.Time `json:"time"`
	Kind       EventKind `json:"kind"`
	Pool       string    `json:"pool,omitempty"`
	Worker     int       `json:"worker,omitempty"`
	PID        int       `json:"pid,omitempty"`
	Generation int       `json:"generation,omitempty"`
	What       string    `json:"what,omitempty"`     // "reload" or "restart"
	Pools      []string  `json:"pools,omitempty"`    // of a reload; none: all
	By         string    `json:"by,omitempty"`       // who asked for it: a signal, or who was at the control socket
	Cause      string    `json:"cause,omitempty"`    //
	Replaces   int       `json:"replaces,omitempty"` // the worker whose place a spawned one takes
	Request    string    `json:"request,omitempty"`  // method, path and id of the one that it is about
	Exit       string    `json:"exit,omitempty"`     // how the process ended
	Sent       string    `json:"sent,omitempty"`     // the last signal that fpmd had sent it before; "": none
	Last       []string  `json:"last,omitempty"`     // what it printed last, the oldest line first
	Served     uint64    `json:"served,omitempty"`   // exchanges answered
	Age        Seconds   `json:"age_s,omitempty"`    // of the process, or of what is over
	Took       Seconds   `json:"took_s,omitempty"`   // from its launch until it was ready
	Status     int       `json:"status,omitempty"`   // of its answer to the probe
	Workers    int       `json:"workers,omitempty"`
	Queued     int       `json:"queued,omitempty"`
	Count      int       `json:"count,omitempty"` // of requests refused, or of events missed
	Left       int       `json:"left,omitempty"`  // clients that did not wait
	Command    []string  `json:"command,omitempty"`
	Changes    []Change  `json:"changes,omitempty"`
	Next       string    `json:"next,omitempty"` // what fpmd does about it
}

// Seconds is a duration as JSON has it here.
type Seconds float64

func seconds(d time.Duration) Seconds { return Seconds(d.Round(time.Millisecond).Seconds()) }

// Duration is s as Go has it.
func (s Seconds) Duration() time.Duration {
	return time.Duration(float64(s) * float64(time.Second)).Round(time.Millisecond)
}

// What is kept of an event, and how many events are, of each pool and of fpmd itself: a pool that crashes
// all the time costs no other its history.
const (
	keptEvents  = 512
	keptText    = 512  // bytes of one text
	keptLast    = 1024 // bytes of Last
	keptChanges = 16
	keptArgs    = 16
)

// cut bounds what the event takes in memory.
func (e *Event) cut() {
	for _, s := range []*string{&e.By, &e.Cause, &e.Request, &e.Exit, &e.Next} {
		*s = cutText(*s, keptText)
	}
	e.Last = lastOf(e.Last, keptLast)
	e.Command = cutList(e.Command, keptArgs, func(s string) string { return cutText(s, keptText/4) })
	e.Pools = cutList(e.Pools, keptArgs, func(s string) string { return s })
	e.Changes = cutList(e.Changes, keptChanges, func(c Change) Change {
		return Change{Key: c.Key, Old: cutText(c.Old, keptText/4), New: cutText(c.New, keptText/4)}
	})
}

// cutText is s, or its beginning where it is longer than n bytes.
func cutText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	const more = "..."
	n -= len(more)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + more
}

// cutList is a copy of the first n of list, each of them cut.
func cutList[T any](list []T, n int, cut func(T) T) (short []T) {
	for _, v := range list[:min(len(list), n)] {
		short = append(short, cut(v))
	}
	return short
}

// lastOf is the last of lines, as many as have room in n bytes.
func lastOf(lines []string, n int) (last []string) {
	left := n
	for _, line := range slices.Backward(lines) {
		line = cutText(line, n)
		if left -= len(line); left < 0 {
			break
		}
		last = append(last, line)
	}
	slices.Reverse(last)
	return last
}

// A record keeps what has happened, for a while. The zero record is empty. What is added to it is there at
// once, and who adds waits for nobody.
type record struct {
	mu    sync.Mutex // no other lock is taken, and nothing is waited for, under it
	seq   uint64
	rings map[string]*history // by pool; "" is fpmd itself
	wake  chan struct{}       // closed when something is added; nil: nobody waits

	pruned uint64    // events of histories that were forgotten,
	forgot time.Time // and when the last of them happened
}

// A history is the last events of a pool, the i-th of all that there were at i % keptEvents.
type history struct {
	pool   string
	events []Event
	n      uint64 // how many there were
}

// oldest counts those that are not kept any more.
func (g *history) oldest() uint64 { return g.n - uint64(len(g.events)) }

func (g *history) at(i uint64) *Event { return &g.events[i%keptEvents] }

func (r *record) add(e Event) {
	e.cut()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	e.Seq, e.Time = r.seq, time.Now()
	g := r.rings[e.Pool]
	if g == nil {
		if r.rings == nil {
			r.rings = make(map[string]*history)
		}
		g = &history{pool: e.Pool}
		r.rings[e.Pool] = g
	}
	if len(g.events) < keptEvents {
		g.events = append(g.events, e)
	} else {
		*g.at(g.n) = e
	}
	g.n++
	if r.wake != nil {
		close(r.wake)
		r.wake = nil
	}
}

// follow begins with the oldest event that is kept, and not before since, of the pools of these
// names; of fpmd and all pools, if there is none.
func (r *record) follow(since time.Time, pools []string) *Follower {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := &Follower{r: r, pools: pools, read: make(map[*history]uint64), pruned: r.pruned}
	for _, g := range r.rings {
		i := g.oldest() // what is lost before is not missed
		for i < g.n && g.at(i).Time.Before(since) {
			i++
		}
		f.read[g] = i
	}
	return f
}

// A Follower reads events, as fast as it likes. It is for one goroutine.
type Follower struct {
	r     *record
	pools []string            // none: all, and fpmd itself
	read  map[*history]uint64 // how many of each were read, or missed

	pruned uint64 // as the record had it
}

// atOnce is how many events Next gives at most: the record is held for so long.
const atOnce = 128

// Next gives some of the events that come next, the oldest first; before those, an EventMissed where some were lost
// since the last call, because more came than are kept. Where there is none yet, more is closed as soon as there is.
func (f *Follower) Next() (events []Event, more <-chan struct{}) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	var rings []*history
	missed := 0
	wanted := func(pool string) bool { return len(f.pools) == 0 || slices.Contains(f.pools, pool) }
	if more := f.r.pruned - f.pruned; more > 0 {
		f.pruned = f.r.pruned
		missed = int(more)
		for g, n := range f.read {
			if f.r.rings[g.pool] != g {
				missed -= int(n)
				delete(f.read, g)
			}
		}
		if len(f.pools) > 0 { // were they its pools'? More than keptHistories others have gone since
			missed = 0
		}
	}
	for pool, g := range f.r.rings {
		if !wanted(pool) {
			continue
		}
		rings = append(rings, g)
		if lost := g.oldest(); f.read[g] < lost {
			missed += int(lost - f.read[g])
			f.read[g] = lost
		}
	}
	if missed > 0 {
		events = append(events, Event{Kind: EventMissed, Time: time.Now(), Count: missed})
	}
	for len(events) < atOnce {
		var next *Event
		var from *history
		for _, g := range rings {
			if i := f.read[g]; i < g.n && (next == nil || g.at(i).Seq < next.Seq) {
				next, from = g.at(i), g
			}
		}
		if next == nil {
			break
		}
		f.read[from]++
		events = append(events, *next)
	}
	if len(events) > 0 {
		return events, nil
	}
	if f.r.wake == nil {
		f.r.wake = make(chan struct{})
	}
	return nil, f.r.wake
}

// reaches is when the oldest event happened that is kept of a pool, as long as older ones are not; zero: all are.
func (r *record) reaches(pool string) (since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g := r.rings[pool]; g != nil && g.oldest() > 0 {
		since = g.at(g.oldest()).Time
	}
	return since
}

// keptHistories is of how many pools that are gone something is kept.
const keptHistories = 64

// prune forgets what has happened in pools that are gone, but for the last keptHistories of them.
func (r *record) prune(gone func(pool string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for name := range r.rings {
		if name != "" && gone(name) {
			names = append(names, name)
		}
	}
	last := func(name string) uint64 { g := r.rings[name]; return g.at(g.n - 1).Seq }
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(last(b), last(a)) })
	for _, name := range names[min(len(names), keptHistories):] {
		g := r.rings[name]
		if at := g.at(g.n - 1).Time; at.After(r.forgot) {
			r.forgot = at
		}
		r.pruned += g.n
		delete(r.rings, name)
	}
}

// whole is since when everything is kept that has happened; zero: since the beginning.
func (r *record) whole() (since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	since = r.forgot
	for _, g := range r.rings {
		if at := g.at(g.oldest()).Time; g.oldest() > 0 && at.After(since) {
			since = at
		}
	}
	return since
}

// knows reports whether something has happened in the pool of this name.
func (r *record) knows(pool string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rings[pool] != nil
}

// Events has a Follower begin at the oldest event that is kept, and not before since. The error is about a pool
// that there neither is nor was.
func (m *Manager) Events(since time.Time, pools []string) (*Follower, error) {
	if gone := slices.DeleteFunc(slices.Clone(pools), m.events.knows); len(gone) > 0 { // of one that was removed there are events
		if err := m.Known(gone); err != nil {
			return nil, err
		}
	}
	return m.events.follow(since, pools), nil
}

// Record adds an event that did not come of the Manager.
func (m *Manager) Record(e Event) { m.events.add(e) }
