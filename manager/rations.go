package manager

import (
	"slices"
	"sync"
	"time"
)

// rations share max_workers out among the pools. Each steward says what its pool has and
// needs whenever it looks, and is told how many workers the pool may have.
type rations struct {
	mu      sync.Mutex // locked after a pool's
	most    int        // workers of all pools; 0: no matter
	claims  []*claim   // one of each pool
	leaving int        // workers that were told to leave for others' sake, and are not gone
}

// A claim is what a pool asks for. Numbers are of workers.
type claim struct {
	gen  *generation // whose steward asks; nil: it has not asked yet
	at   time.Time   // when it last did
	have int         // that serve, and stay, or are on their way
	want [wants]int

	ration int
}

// What a pool wants, the most urgent first: none has its next want seen to before all have this one.
const (
	wantOne   = iota // one, of a pool that is needed at all
	wantFixed        // all that a static pool is to have
	wantBusy         // as many as there are requests for
	wantKept         // as many as it has already
	wantSpare        // as many as it may have
	wants
)

// decide is what g, which serves, and of which h is known, does next, if max_workers is kept to: of those that it
// may have, no more are started than others have made room for by now. g.pool.mu is held.
func (r *rations) decide(g *generation, h headcount) decision {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := g.pool.claim
	c.gen, c.at = g, h.now
	have, busy := h.stay()+h.launching, min(h.needed(g.sizes), h.limit)
	c.have = have
	c.want = [wants]int{wantOne: min(busy, 1), wantBusy: busy, wantKept: min(have, h.limit), wantSpare: h.limit}
	if g.sizes.PM == Static {
		c.want[wantFixed] = h.limit
	}
	h.size, h.room = h.limit, h.limit
	if r.most > 0 {
		h.size, h.room = r.divide(c, h.now)
	}
	d := h.decide(g.sizes)
	if c.have -= len(d.leave); d.replace == nil {
		c.have += d.start
	}
	r.leaving += len(d.leave)
	for _, l := range d.leave {
		l.w.vacates = true
	}
	return d
}

// divide divides anew, has the stewards look that it concerns, and returns the ration of c, and for how many
// workers more there is room.
func (r *rations) divide(c *claim, now time.Time) (ration, room int) {
	before := make([]int, len(r.claims))
	for i, o := range r.claims {
		before[i] = o.ration
	}
	divide(r.most, r.claims)
	short := c.ration < c.want[wantBusy]
	room = r.most - r.leaving
	for i, o := range r.claims {
		room -= o.have
		idles := short && o.have > o.want[wantFixed] && now.Sub(o.at) >= neededFor // it may need less by now
		if o != c && (o.ration != before[i] || idles) {
			o.kick()
		}
	}
	return c.ration, max(room, 0)
}

// join has a pool of cfg be counted, before its steward asks, with what it begins with.
func (r *rations) join(cfg *PoolConfig) *claim {
	c := &claim{want: [wants]int{wantOne: 1}}
	if cfg.PM == Static {
		c.want[wantFixed] = cfg.Workers
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claims = append(r.claims, c)
	return c
}

// hold has p, which does not serve yet, want nothing until its steward asks.
func (r *rations) hold(p *pool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p.claim.want = [wants]int{}
}

// leaveLocked has p, which stops, ask for nothing any more: its workers are others' as soon as they are gone. p.mu is held.
func (r *rations) leaveLocked(p *pool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claims = slices.DeleteFunc(r.claims, func(c *claim) bool { return c == p.claim })
	for w := range p.workers {
		if w.gen == p.gen && (w.state == starting || w.servesLocked()) && !w.vacates {
			w.vacates = true
			r.leaving++
		}
	}
	r.kickAll()
}

// set changes how many workers all pools may have.
func (r *rations) set(most int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if most != r.most {
		r.most = most
		r.kickAll()
	}
}

// limit is what was set.
func (r *rations) limit() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.most
}

// of is how many workers p may have, as far as others leave it some; 0: there is no limit over all pools.
func (r *rations) of(p *pool) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.most == 0 {
		return 0
	}
	return p.claim.ration
}

func (r *rations) kickAll() {
	for _, c := range r.claims {
		c.kick()
	}
}

func (c *claim) kick() {
	if c.gen != nil {
		c.gen.kick()
	}
}

// left notes that a worker is gone that vacates its place.
func (r *rations) left() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaving--
	r.kickAll()
}

// divide gives each claim its ration of most workers: want by want, and of each to those first that
// have the least, so that what one does not need is the others'.
func divide(most int, claims []*claim) {
	for _, c := range claims {
		c.ration = 0
	}
	for want := range wants {
		for most > 0 {
			var least *claim
			for _, c := range claims {
				if c.ration < c.want[want] && (least == nil || c.ration < least.ration) {
					least = c
				}
			}
			if least == nil {
				break
			}
			least.ration++
			most--
		}
	}
}
