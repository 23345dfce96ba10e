package manager

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A roster is the pools that there are, in the order of the configuration. Any goroutine may read it at any time; who has read it may
// go on with what he has, also with a pool that has been removed since. It is changed as a whole.
type roster struct{ now atomic.Pointer[[]*pool] }

// all are the pools. The slice is not to be changed.
func (r *roster) all() []*pool {
	if ps := r.now.Load(); ps != nil {
		return *ps
	}
	return nil
}

// named is the pool of this name; nil: there is none.
func (r *roster) named(name string) *pool { return poolNamed(r.all(), name) }

func poolNamed(ps []*pool, name string) *pool {
	for _, p := range ps {
		if p.name == name {
			return p
		}
	}
	return nil
}

func (r *roster) change(next func(ps []*pool) []*pool) {
	for {
		old := r.now.Load()
		var ps []*pool
		if old != nil {
			ps = slices.Clone(*old)
		}
		ps = next(ps)
		if r.now.CompareAndSwap(old, &ps) {
			return
		}
	}
}

func (r *roster) add(p *pool) { r.change(func(ps []*pool) []*pool { return append(ps, p) }) }

func (r *roster) remove(p *pool) {
	r.change(func(ps []*pool) []*pool { return slices.DeleteFunc(ps, func(o *pool) bool { return o == p }) })
}

// sort puts the pools in the order that they have in cfg; one that is not there, and stays because it could not be replaced, comes last.
func (r *roster) sort(cfg *Config) {
	place := func(p *pool) int {
		if i := slices.IndexFunc(cfg.Pools, func(c *PoolConfig) bool { return c.Name == p.name }); i >= 0 {
			return i
		}
		return len(cfg.Pools)
	}
	r.change(func(ps []*pool) []*pool {
		slices.SortStableFunc(ps, func(a, b *pool) int { return cmp.Compare(place(a), place(b)) })
		return ps
	})
}

// leaving are the pools that were removed.
type leaving struct {
	mu    sync.Mutex // held while one goes from the roster to pools, or from there to past
	pools []*pool    // which still answer what they have
	past  uint64     // requests of those that are gone
}

// A taking is a listener that a new pool has of one that leaves: its address is never without somebody who listens.
type taking struct {
	from *pool
	l    *listener
}

// arrive prepares a pool of cfg, which there was none of by this name; of those that are leaving, it takes the listeners that it is to
// have. m.reload is held.
func (m *Manager) arrive(cfg *PoolConfig, leaving []*pool) (_ *refront, err error) {
	r := &refront{p: newPool(m, cfg), cfg: cfg, arrives: true}
	m.rations.hold(r.p) // until it is asked, the others go on with what they have
	r.p.arrives = true
	defer func() {
		if err != nil {
			r.undo()
		}
	}()
	for _, p := range leaving {
		for _, l := range p.listeners {
			if !l.named && slices.Contains(cfg.Listen, l.addr) {
				if err := openToAll(cfg, l); err != nil {
					return nil, err
				}
				r.takes = append(r.takes, taking{p, l})
			}
		}
	}
	if err := r.bind(); err != nil {
		return nil, err
	}
	if r.access, err = m.opts.Logs.access(cfg, m.cfg.Supervisor); err != nil {
		return nil, err
	}
	return r, nil
}

// comeAndGo has new pools come up, side by side, and those that are leaving go, and returns for which that has failed, and why. A new pool
// that does not come up is not there; then nobody leaves, nor comes who was to take what one that leaves listens at: it could be the same pool
// by another name. m.reload is held.
func (m *Manager) comeAndGo(ctx context.Context, arrivals []*refront, leaving []*pool) (failed map[*pool]error) {
	var steps []step
	for _, r := range arrivals {
		steps = append(steps, step{r.p, func() error {
			err := r.p.roll(ctx, r.cfg)
			if err == nil && len(r.takes) == 0 { // whatever becomes of the others
				return r.commit()
			}
			return err
		}})
	}
	failed = sideBySide(steps)
	broken := ""
	for _, r := range arrivals {
		if r.p.arrives && failed[r.p] != nil {
			broken = r.p.name
		}
	}
	for _, r := range arrivals {
		switch {
		case !r.p.arrives: // it is there
		case failed[r.p] != nil:
			r.undo()
		case broken != "" && len(r.takes) > 0:
			failed[r.p] = fmt.Errorf("pool %s: it has come up, and is given up: it was to listen where pool %s does, which goes on serving, for pool %s did not come up", r.p.name, r.takes[0].from.name, broken)
			r.undo()
		default:
			if err := r.commit(); err != nil {
				failed[r.p] = err
			}
		}
	}
	for _, p := range leaving {
		if broken != "" {
			failed[p] = fmt.Errorf("pool %s: it goes on serving, for pool %s, which is new, did not come up", p.name, broken)
			continue
		}
		m.part(p)
	}
	return failed
}

// commitArrival has the pool, whose workers serve, be asked. An error is commit's.
func (r *refront) commitArrival() error {
	p, m := r.p, r.p.mgr
	p.access.Store(r.access)
	var errs []error
	for _, t := range r.takes {
		t.from.server.Load().Release(t.l.Listener)
		t.from.listeners = slices.DeleteFunc(t.from.listeners, func(l *listener) bool { return l == t.l })
		if err := t.l.adjust(r.cfg); err != nil {
			errs = append(errs, r.stays(t.l, err))
			p.front.Store(r.cfg.dressedAs(t.from.front.Load()))
		}
		p.listeners = append(p.listeners, t.l)
	}
	p.listeners = append(p.listeners, r.fresh...)
	p.arrives = false
	p.wg.Go(p.gen.steward) // ends when the generation is retired
	m.pools.add(p)
	for _, l := range p.listeners {
		m.store(l)
		m.serve(p, l)
		p.log.Info("listens", "listen", l.addr.Address)
	}
	return r.tellNotAdjusted(errs)
}

// mayLeave refuses to remove p where a socket unit goes on listening for it, and no pool of fronts takes that over.
func mayLeave(p *pool, fronts map[string]*refront) error {
	for _, l := range p.listeners {
		taken := false
		for _, r := range fronts {
			taken = taken || r != nil && slices.Contains(r.takes, taking{p, l})
		}
		if l.unit && !taken {
			return fmt.Errorf("pool.%s is missing: a socket unit listens at %q for it: want systemctl stop of that, and a restart of fpmd", p.name, l.addr.Address)
		}
	}
	return nil
}

// part removes p: nobody new is let in, and what was accepted is answered, within drain_timeout, beside everything else. It does not
// wait. m.reload is held.
func (m *Manager) part(p *pool) {
	m.leaving.mu.Lock()
	m.pools.remove(p)
	m.leaving.pools = append(m.leaving.pools, p)
	m.leaving.mu.Unlock()
	close(p.parted)
	for _, l := range p.listeners { // now: another reload may bring somebody who listens there
		l.unlink()
		m.forget(l.stored)
		l.stored = ""
		delete(m.complaints, l.addr.Address)
	}
	p.mu.Lock()
	kept := p.kept
	p.unkeepLocked("the pool was removed")
	if p.left = time.Now(); p.gen != nil {
		p.gen.kick()
	}
	p.mu.Unlock()
	if kept != nil {
		kept.gen.retire(causeRemoved)
	}
	m.draining.Go(func() { // ends within drain_timeout, and what killing takes
		ctx, cancel := p.drainUntil(m.hurry)
		defer cancel()
		p.stop(ctx, causeRemoved)
		m.leaving.mu.Lock()
		m.leaving.pools = slices.DeleteFunc(m.leaving.pools, func(o *pool) bool { return o == p })
		m.leaving.past += p.ended()
		m.leaving.mu.Unlock()
		m.opts.Logs.release(p.access.Load())
		p.log.Info("pool removed")
	})
}

// andLeaving are the pools that there are, and behind them those that were removed and still have somebody to answer, or workers.
func (m *Manager) andLeaving() []*pool {
	m.leaving.mu.Lock()
	defer m.leaving.mu.Unlock()
	return slices.Concat(m.pools.all(), m.leaving.pools)
}

// drainUntil is for how long p may answer what it has, when it is to end.
func (p *pool) drainUntil(ctx context.Context) (context.Context, context.CancelFunc) {
	d := p.config().DrainTimeout
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("drain_timeout = %v is over", d))
}
