package manager

import (
	"cmp"
	"os"
	"slices"
	"time"
)

// A Status is what there is to see of a Manager at one moment. Its JSON is for programs: names are
// not changed, only added.
type Status struct {
	PID    int          `json:"pid"`
	Config string       `json:"config"`
	Since  time.Time    `json:"since"` // when it was started
	Pools  []PoolStatus `json:"pools"` // in order of their names
}

// A PoolStatus is a pool's part of a Status.
type PoolStatus struct {
	Name        string         `json:"name"`
	PM          PM             `json:"pm"`
	State       string         `json:"state"`                // "serving", "starting", "idle" (on demand, and nobody asks), "failing", "stopping"
	Error       string         `json:"error,omitempty"`      // why the last worker that failed to start did
	Overloaded  *time.Time     `json:"overloaded,omitempty"` // since when requests wait in vain
	Listen      []string       `json:"listen"`
	Generation  int            `json:"generation"`
	Size        int            `json:"size"`             // workers that there are to be, or may be
	Ration      int            `json:"ration,omitempty"` // the same, as far as max_workers has them for this pool now
	Slots       int            `json:"slots"`            // of workers in service
	Busy        int            `json:"busy"`             // slots that have something to do
	Queued      int            `json:"queued"`
	QueueSize   int            `json:"queue_size"`
	AtLimit     *time.Time     `json:"at_limit,omitempty"`   // since when requests wait, and there may be no more workers
	QueueFull   *time.Time     `json:"queue_full,omitempty"` // since when requests are refused, on and off
	Refused     int            `json:"refused,omitempty"`    // how many, since then, or since it is overloaded
	Connections int            `json:"connections"`
	Requests    map[string]int `json:"requests"` // since the start, by outcome
	Resent      uint64         `json:"resent"`   // times that a request which its worker never began was sent to another, since the start
	Workers     []WorkerStatus `json:"workers"`  // the oldest first
	Kept        *KeptStatus    `json:"kept,omitempty"`
}

// A KeptStatus is the generation that a rollback would have serve.
type KeptStatus struct {
	Generation int       `json:"generation"`
	Workers    int       `json:"workers"` // those that it would begin with
	Until      time.Time `json:"until"`
}

// A WorkerStatus is a worker's part of a PoolStatus.
type WorkerStatus struct {
	ID         int        `json:"id"`
	PID        int        `json:"pid,omitempty"` // none before it is launched
	Generation int        `json:"generation"`
	State      string     `json:"state"`
	Cause      string     `json:"cause,omitempty"` // why it takes no more
	Slots      int        `json:"slots"`
	Busy       int        `json:"busy"`
	Served     uint64     `json:"served"`
	Ready      *time.Time `json:"ready,omitempty"` // since when
	Memory     int64      `json:"memory"`          // bytes, with what it shares with others
}

// Status looks at every pool, those included that were removed, and still answer what they have. It takes each pool's lock for a moment.
func (m *Manager) Status() Status {
	s := Status{PID: os.Getpid(), Config: m.path, Since: m.since}
	for _, p := range m.andLeaving() {
		s.Pools = append(s.Pools, p.status())
	}
	return s
}

func (p *pool) status() PoolStatus {
	cfg := p.config()
	conns, _ := p.connections()
	s := PoolStatus{
		Name: p.name, PM: cfg.PM, State: "starting", QueueSize: cfg.QueueSize,
		Listen:      texts(p.front.Load().Listen, Address.String),
		Connections: conns,
		Requests:    make(map[string]int),
		Resent:      p.resent.Load(),
		Workers:     []WorkerStatus{},
	}
	for o := range p.counts {
		if n := p.counts[o].Load(); n > 0 {
			s.Requests[outcome(o).String()] = int(n)
		}
	}
	p.mu.Lock()
	s.Size, s.Queued, s.Generation = p.size, p.queue.n, p.gen.n
	s.Ration = p.mgr.rations.of(p)
	s.AtLimit, s.QueueFull, s.Refused = p.limit.started(), p.full.started(), p.full.count
	if p.lastErr != nil {
		s.Error = p.lastErr.Error()
	}
	if p.over.on() {
		since := p.over.since
		s.Overloaded, s.Refused = &since, p.over.refused
	}
	serving, slots, busy := p.servingLocked()
	s.Slots, s.Busy = slots, busy
	if k := p.kept; k != nil {
		s.Kept = &KeptStatus{Generation: k.gen.n, Until: k.until}
	}
	for w := range p.workers {
		ws := WorkerStatus{
			ID: w.id, Generation: w.gen.n, State: w.state.String(), Cause: w.cause, Slots: len(w.slots), Busy: w.busySlots(), Served: w.served,
		}
		if w.proc != nil {
			ws.PID = w.proc.pid
		}
		if p.kept != nil && w.gen == p.kept.gen && w.servesLocked() {
			s.Kept.Workers++
			if w.state == idle {
				ws.State = "kept"
			}
		}
		if !w.readyAt.IsZero() {
			ready := w.readyAt
			ws.Ready = &ready
		}
		s.Workers = append(s.Workers, ws)
	}
	switch {
	case !p.left.IsZero():
		s.State = "removed"
	case p.ending:
		s.State = "stopping"
	case serving > 0:
		s.State = "serving"
	case p.gen.backoff.failing():
		s.State = "failing"
	case p.ready && cfg.PM == OnDemand:
		s.State = "idle"
	}
	p.mu.Unlock()
	slices.SortFunc(s.Workers, func(a, b WorkerStatus) int { return cmp.Compare(a.ID, b.ID) })
	for i := range s.Workers {
		if w := &s.Workers[i]; w.PID > 0 {
			w.Memory, _, _ = residentOf(procDir(w.PID)) // 0: it is gone
		}
	}
	return s
}

// ended is how many requests have.
func (p *pool) ended() (n uint64) {
	for o := range p.counts {
		n += p.counts[o].Load()
	}
	return n
}

// Figures are what there is to say of a Manager in a line.
type Figures struct {
	Slots, Busy, Queued int
	Requests            uint64 // that have ended since the start
}

// Figures adds up all pools, those that were removed included. It takes each pool's lock for a moment.
func (m *Manager) Figures() (f Figures) {
	m.leaving.mu.Lock()
	defer m.leaving.mu.Unlock()
	f.Requests = m.leaving.past
	for _, p := range slices.Concat(m.pools.all(), m.leaving.pools) {
		f.Requests += p.ended()
		p.mu.Lock()
		f.Queued += p.queue.n
		_, slots, busy := p.servingLocked()
		p.mu.Unlock()
		f.Slots += slots
		f.Busy += busy
	}
	return f
}
