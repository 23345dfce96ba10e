package manager

import (
	"context"
	"fmt"
	"time"
)

// A keep is a generation that serves no more, and whose workers stay ready for a rollback. Its steward
// starts none and has none leave: whoever dies is gone.
type keep struct {
	gen   *generation
	until time.Time
	timer *time.Timer // ends it then
}

// keepLocked keeps old, which serves no more, for so long, and returns the generations that are to be
// retired: old, where it is not kept, and the one that was kept before. pool.mu is held.
func (p *pool) keepLocked(old *generation, keepFor time.Duration) (leave []*generation) {
	if p.kept != nil {
		leave = append(leave, p.kept.gen)
	}
	switch {
	case old == nil:
		p.unkeepLocked("there was no reload or restart since the pool came")
		return leave
	case keepFor == 0:
		p.unkeepLocked("at the last reload or restart keep_generation was 0")
	case !old.servesLocked():
		p.unkeepLocked(fmt.Sprintf("generation %d had no worker when it was replaced", old.n))
	default:
		p.unkeepLocked("")
		k := &keep{gen: old, until: time.Now().Add(keepFor)}
		k.timer = time.AfterFunc(keepFor, func() { p.keptLongEnough(k) })
		p.kept = k
		return leave
	}
	return append(leave, old)
}

// unkeepLocked notes that no generation is kept any more, and why. Whoever calls it sees to
// the one that was. pool.mu is held.
func (p *pool) unkeepLocked(why string) {
	if p.kept != nil {
		p.kept.timer.Stop()
		p.kept = nil
	}
	p.unkept, p.unkeptAt = why, time.Now()
}

// keptLongEnough retires a generation when its time is over.
func (p *pool) keptLongEnough(k *keep) {
	p.mu.Lock()
	over := p.kept == k // else it was not the timer that ended it
	if over {
		p.unkeepLocked(fmt.Sprintf("generation %d was kept until its keep_generation was over", k.gen.n))
	}
	p.mu.Unlock()
	if over {
		p.tellUnkept(k.gen, causeKept, "")
		k.gen.retire(causeKept)
	}
}

// keptDiedLocked notes, when w has left, that the generation which is kept has nobody left. pool.mu is held.
func (p *pool) keptDiedLocked(w *worker) {
	g := w.gen
	if p.kept == nil || p.kept.gen != g || g.servesLocked() {
		return
	}
	p.unkeepLocked(fmt.Sprintf("the last worker of generation %d, which was kept, has ended: %s", g.n, w.cause))
	g.cancel() // its steward, and whoever is still on the way
	p.wg.Go(func() { p.tellUnkept(g, "its last worker has ended", "a rollback is refused") })
}

// servesLocked reports whether a worker of g is in service, or would be if g served. pool.mu is held.
func (g *generation) servesLocked() bool {
	for w := range g.pool.workers {
		if w.gen == g && w.servesLocked() {
			return true
		}
	}
	return false
}

// Rollback has the generation that the pool of this name keeps serve again, at once and with the configuration
// that it had; the one that served finishes what it has. It is refused where none is kept. It waits for a
// reload of that pool that is under way, and for those of no other. by is who asks; when
// ctx ends before its turn has come, nothing is done.
func (m *Manager) Rollback(ctx context.Context, pool, by string) error {
	pools, err := m.named([]string{pool})
	if err != nil {
		return err
	}
	return pools[0].rollback(ctx, by)
}

func (p *pool) rollback(ctx context.Context, by string) error {
	p.rolling.Lock()
	defer p.rolling.Unlock()
	if ctx.Err() != nil { // who has asked does not wait for it any more
		return context.Cause(ctx)
	}
	p.mu.Lock()
	if p.stopped {
		p.mu.Unlock()
		return ErrStopping
	}
	if p.kept == nil {
		err := fmt.Errorf("generation %d goes on serving, for no other is kept: %s", p.gen.n, p.unkept)
		if !p.unkeptAt.IsZero() {
			err = fmt.Errorf("%w (%v ago)", err, time.Since(p.unkeptAt).Round(time.Second))
		}
		p.mu.Unlock()
		p.tellRollbackRefused(err, by)
		return fmt.Errorf("pool %s: %w", p.name, err)
	}
	g := p.kept.gen
	var ws []*worker
	for w := range p.workers {
		if w.gen == g && w.servesLocked() {
			ws = append(ws, w)
		}
	}
	p.unkeepLocked(fmt.Sprintf("generation %d, which was, serves again", g.n))
	old := p.takeOverLocked(g, ws)
	p.mu.Unlock()
	g.kick() // who died meanwhile is replaced
	p.tellRolledBack(g, old, len(ws), by)
	old.retire(causeRollback)
	return nil
}
