package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// What becomes of workers and pools is told here, once: to the record of events, and to the log, which may take its time.

// event is one of w's, whose process has pid.
func (w *worker) event(kind EventKind, pid int) Event {
	return Event{Kind: kind, Pool: w.gen.pool.name, Worker: w.id, PID: pid, Generation: w.gen.n}
}

// record adds e, of w's process, to what has happened.
func (w *worker) record(e Event) { w.gen.pool.mgr.events.add(e) }

// tellSpawned says that w has a process; it is ready later, or never.
func (w *worker) tellSpawned(pid int, argv []string) {
	w.spawned = spawned{pid, time.Now()}
	e := w.event(EventSpawn, pid)
	e.Cause, e.Replaces, e.Command = w.why, w.replaces, argv
	w.record(e)
}

// tellReady says that w can take requests, took after its launch, and what status it has answered its probe
// with; 0: there was none.
func (w *worker) tellReady(took time.Duration, status int) {
	e := w.event(EventReady, w.proc.pid)
	e.Took, e.Status = seconds(took), status
	w.record(e)
	fields := []any{"slots", w.proc.slots, "after", took.Round(time.Millisecond)}
	if status != 0 {
		fields = append(fields, "probe", status)
	}
	w.log.Info("worker ready", fields...)
}

// tellNotStarted keeps why w did not come up. The log has it from who wanted w.
func (w *worker) tellNotStarted(err error) {
	e := w.event(EventNotStarted, w.spawned.pid)
	e.Cause = err.Error()
	if s := new(startError); errors.As(err, &s) {
		e.Cause, e.Last = s.cause.Error(), s.lines
	}
	w.record(e)
}

func (w *worker) tellFewSlots(err error) {
	const next = "replace it"
	e := w.event(EventFewSlots, w.proc.pid)
	e.Cause, e.Next = err.Error(), next
	w.record(e)
	w.log.Error("worker greets fewer slots than it has", "slots", len(w.slots), "cause", err, "next", next)
}

// tellStuck says that w does not come back from the request of this id, which was abandoned.
func (w *worker) tellStuck(id, cause string, err error) {
	const next = "replace it"
	e := w.event(EventStuck, w.proc.pid)
	e.Cause, e.Next = cause, next
	w.record(e)
	w.log.Warn("worker stuck in an abandoned request", "id", id, "cause", cause, "error", err, "next", next)
}

// tellTimeout says that x has run into request_timeout, and what comes of it.
func (w *worker) tellTimeout(x *exchange, next string) {
	e := w.event(EventTimeout, w.proc.pid)
	e.Request, e.Cause, e.Next = x.env.name(), x.cause, next
	w.record(e)
	w.log.Warn("request timed out", "id", x.env.id, "method", string(x.env.method), "uri", string(x.env.uri), "cause", x.cause, "next", next)
}

func (w *worker) tellBadAnswer(x *exchange, err error) {
	const next = "replace it"
	e := w.event(EventBadAnswer, w.proc.pid)
	e.Request, e.Cause, e.Next = x.env.name(), err.Error(), next
	w.record(e)
	w.log.Error("worker broke the exchange protocol", "id", x.env.id, "cause", err, "next", next)
}

// name is what a request is called where there is one line for it.
func (e *environ) name() string { return fmt.Sprintf("%s %s (id %s)", e.method, e.uri, e.id) }

func (w *worker) tellMemory(cause string) {
	const next = "kill it"
	e := w.event(EventMemory, w.proc.pid)
	e.Cause, e.Next = cause, next
	w.record(e)
	w.log.Warn("worker takes too much memory", "cause", cause, "next", next)
}

// tellRetiredLocked keeps why w takes no more; the log has it once w is gone. pool.mu is held, so
// that its end is not told before.
func (w *worker) tellRetiredLocked() {
	e := w.event(EventRetire, w.proc.pid)
	e.Cause, e.Served = w.cause, w.served
	w.record(e)
}

// tellDrainTimeout says that w still has so many requests, when it is to have none.
func (w *worker) tellDrainTimeout(requests int) {
	const next = "stop it, which cuts them"
	e := w.event(EventDrainTimeout, w.proc.pid)
	e.Cause, e.Next = "drain_timeout = "+w.gen.cfg.DrainTimeout.String(), next
	w.record(e)
	w.log.Warn("worker not idle within drain_timeout", "drain_timeout", w.gen.cfg.DrainTimeout, "requests", requests, "next", next)
}

// tellGone says how w, which has answered served exchanges, has ended: as it was told to, or not.
func (w *worker) tellGone(unexpected bool, served uint64) {
	exit := w.proc.exit().String()
	e := w.event(EventExit, w.proc.pid)
	e.Exit, e.Sent, e.Served = exit, w.proc.sentBefore(), served
	if !w.readyAt.IsZero() { // else tellNotStarted has its lines
		e.Last = w.proc.lastLines()
	}
	if !unexpected {
		e.Cause = w.cause
	}
	if !w.spawned.at.IsZero() {
		e.Age = seconds(time.Since(w.spawned.at))
	}
	w.record(e)
	if !unexpected {
		w.log.Info("worker gone", "cause", w.cause, "exit", exit, "served", served)
		return
	}
	fields := []any{"cause", w.cause, "served", served}
	if words := w.proc.lastWords(); words != "" {
		fields = append(fields, "last", words)
	}
	w.log.Error("worker gone", fields...)
}

// event is one of p's.
func (p *pool) event(kind EventKind) Event { return Event{Kind: kind, Pool: p.name} }

func (p *pool) record(e Event) { p.mgr.events.add(e) }

func (p *pool) tellScaled(workers int, by string) {
	e := p.event(EventScale)
	e.Workers, e.By = workers, by
	p.record(e)
	p.log.Info("pool scaled", "workers", workers, "by", by)
}

func (p *pool) tellGeneration(g *generation, workers int) {
	e := p.event(EventGeneration)
	e.Generation, e.Workers = g.n, workers
	p.record(e)
	p.log.Info("generation serves", "generation", g.n, "workers", workers)
}

// tellRolledBack says that g, which was kept, serves again in the place of old, and what has another value with that.
func (p *pool) tellRolledBack(g, old *generation, workers int, by string) {
	p.mu.Lock()
	was, is := old.sizes, g.sizes
	p.mu.Unlock()
	changes := slices.DeleteFunc(changesOf(was, is), Change.ofFront) // which stays as it is
	next := "a reload rolls it to the code that is there then"
	if len(changes) > 0 {
		next = "a reload rolls it to the code, and to the keys of the configuration, that are there then"
	}
	e := p.event(EventRollback)
	e.Generation, e.Workers, e.Changes, e.By, e.Next = g.n, workers, changes, by, next
	p.record(e)
	for _, c := range changes {
		p.log.Info("configuration", "change", c.String())
	}
	p.log.Info("rolled back", "generation", g.n, "workers", workers, "replaced", old.n, "by", by, "next", next)
}

func (p *pool) tellRollbackRefused(err error, by string) {
	const next = "all stays as it is"
	e := p.event(EventRollbackRefused)
	e.Cause, e.By, e.Next = err.Error(), by, next
	p.record(e)
	p.log.Error("rollback refused", "by", by, "cause", err, "next", next)
}

// tellUnkept says that there is no going back to g any more. Where that was not to be so soon, next says what
// comes of it.
func (p *pool) tellUnkept(g *generation, cause, next string) {
	e := p.event(EventUnkept)
	e.Generation, e.Cause, e.Next = g.n, cause, next
	p.record(e)
	if next == "" {
		p.log.Info("generation is kept no longer", "generation", g.n, "cause", cause)
	} else {
		p.log.Warn("generation is kept no longer", "generation", g.n, "cause", cause, "next", next)
	}
}

func (p *pool) tellGenerationLost(g *generation, err error, next string) {
	e := p.event(EventGenerationLost)
	e.Generation, e.Cause, e.Next = g.n, err.Error(), next
	if s := new(startError); errors.As(err, &s) { // of which what it printed is told already
		e.Cause = fmt.Sprintf("worker %d: %v", s.launch.id, s.cause)
	}
	p.record(e)
	p.log.Error("new workers did not come up", append(notStarted(err), "next", next)...)
}

// failsLocked notes that no worker comes up, and who asks is told so. p.mu is held.
func (p *pool) failsLocked() {
	if p.failing {
		return
	}
	p.failing = true
	p.record(p.event(EventFailing))
}

// worksLocked notes that a worker has come up that serves. p.mu is held.
func (p *pool) worksLocked() {
	p.lastErr = nil
	if p.failing {
		p.failing = false
		p.record(p.event(EventRecovered))
	}
}

// tellAtLimit says that requests wait for the workers that there may be; rationed: by max_workers, and not by the
// pool's own workers.
func (p *pool) tellAtLimit(workers, queued int, rationed bool) {
	next := "they wait for up to queue_timeout, as many as queue_size; more workers answer more at once"
	if rationed {
		next = "they wait for up to queue_timeout, as many as queue_size; max_workers leaves the pool no more for now"
	}
	e := p.event(EventAtLimit)
	e.Workers, e.Queued = workers, queued
	if rationed {
		e.Cause = "max_workers leaves it no more"
	}
	p.record(e)
	p.log.Warn("pool at its limit", "workers", workers, "queued", queued, "next", next)
}

func (p *pool) tellLimitOver(was episode) {
	e := p.event(EventLimitOver)
	e.Age = seconds(was.length())
	p.record(e)
	p.log.Info("pool below its limit again", "after", was.length().Round(time.Millisecond))
}

func (p *pool) tellQueueFull(queued int) {
	e := p.event(EventQueueFull)
	e.Queued = queued
	p.record(e)
	p.log.Warn("queue full", "queued", queued, "next", "answer 503 until there is room")
}

func (p *pool) tellQueueFullOver(was episode) {
	e := p.event(EventQueueFullOver)
	e.Count, e.Age = was.count, seconds(was.length())
	p.record(e)
	p.log.Info("queue has room again", "refused", was.count, "after", was.length().Round(time.Millisecond))
}

func (p *pool) tellOverloaded(queued, slots int, missed float64) {
	next := "who came last is served first; who has waited for " + overloadWait.String() + " is answered 503"
	e := p.event(EventOverloaded)
	e.Queued, e.Next = queued, next
	p.record(e)
	p.log.Warn("pool overloaded", "queued", queued, "slots", slots, "in_vain", fmt.Sprintf("%.0f%%", 100*missed), "next", next)
}

func (p *pool) tellOverloadOver(was overload) {
	lasted := was.lastMiss.Sub(was.since)
	e := p.event(EventOverloadOver)
	e.Count, e.Left, e.Age = was.refused, was.left, seconds(lasted)
	p.record(e)
	p.log.Warn("overload is over", "lasted", lasted.Round(time.Millisecond), "refused", was.refused, "left", was.left)
}

func (m *Manager) tellRefused(err error) {
	const next = "all stays as it is"
	m.events.add(Event{Kind: EventReloadRefused, What: "reload", Cause: err.Error(), Next: next})
	m.log.Error("reload refused", "cause", err, "next", next)
}

func (m *Manager) tellChanges(p PoolPlan) {
	if len(p.Changes) > 0 {
		m.events.add(Event{Kind: EventReloadChange, Pool: p.Name, Changes: p.Changes})
	}
	for _, c := range p.Changes {
		m.log.Info("configuration", "pool", p.Name, "change", c.String())
	}
}

// tellRolled says how a reload or restart, as what says, has ended for which pools, and returns what has failed.
func (m *Manager) tellRolled(ctx context.Context, what string, steps []step, errs map[*pool]error) error {
	var worked, failed []*pool
	var all []error
	for _, s := range steps {
		if err := errs[s.pool]; err != nil {
			failed = append(failed, s.pool)
			all = append(all, err)
		} else {
			worked = append(worked, s.pool)
		}
	}
	givenUp := context.Cause(ctx)
	tell := func(kind EventKind, pools []*pool, cause string) {
		m.events.add(Event{Kind: kind, What: what, Cause: cause, Pools: texts(pools, func(p *pool) string { return p.name })})
	}
	switch {
	case len(failed) == 0:
		tell(EventReloadEnd, worked, "")
		m.log.Info(what+"ed", "pools", poolNames(worked))
	case givenUp != nil:
		tell(EventReloadGivenUp, failed, givenUp.Error())
		m.log.Info(what+" given up", "pools", poolNames(failed), "cause", givenUp)
	default:
		tell(EventReloadFailed, failed, "")
		m.log.Error(what+" failed", "pools", poolNames(failed), what+"ed", poolNames(worked))
	}
	return errors.Join(all...)
}
