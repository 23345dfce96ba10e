package manager

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	"fpmd/protocol"
)

// A stopwatch is how long a slot's worker has had the exchange that holds the slot, without
// the time that the client was waited for. A slot of a pool without slow_timeout has none: all
// methods of a nil one do nothing.
type stopwatch struct {
	mu     sync.Mutex
	x      *exchange     // nil: nobody is timed
	ran    time.Duration // until since
	since  time.Time     // when it last began to run
	pauses int           // in progress: the client sends, and takes
	before *usage        // of the worker, when about half of slow_timeout was over
	told   bool          // it has been logged

	status int   // of the answer; 0: none yet
	bytes  int64 // of its body
	body   int64 // bytes of the request's body that the worker has
	whole  bool  // that is all of it
}

// start begins to time x, which has its worker since now.
func (k *stopwatch) start(x *exchange, now time.Time) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.x, k.ran, k.since, k.pauses, k.before, k.told = x, 0, now, 0, nil, false
	k.status, k.bytes, k.body, k.whole = 0, 0, int64(len(x.body)), x.all
}

// stop ends the timing of an exchange, of which nothing is looked at any more.
func (k *stopwatch) stop() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.x = nil
}

// pause stops the clock while the client is waited for, until as many calls of resume.
func (k *stopwatch) pause() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pauses++; k.pauses == 1 {
		k.ran += time.Since(k.since)
	}
}

func (k *stopwatch) resume() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pauses--; k.pauses == 0 {
		k.since = time.Now()
	}
}

// sent notes that the worker has n bytes more of the request's body.
func (k *stopwatch) sent(n int, last bool) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.body += int64(n)
	k.whole = last
}

// answered notes a part of the answer.
func (k *stopwatch) answered(a protocol.Answer) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if a.Status != 0 {
		k.status = a.Status
	}
	k.bytes += int64(a.Body)
}

// look reports whether the exchange has run for half of limit, and nobody has measured since; and when to look
// again, at the latest. It gives the exchange, once, when it has run for all of limit.
func (k *stopwatch) look(now time.Time, limit time.Duration) (slow *slowRequest, halfway bool, again time.Duration) {
	again = limit / 2 // who comes now has run for so long then
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.x == nil || k.told || k.pauses > 0 {
		return nil, false, again
	}
	switch ran := k.ran + now.Sub(k.since); {
	case ran >= limit:
		k.told = true
		return &slowRequest{
			id: k.x.env.id, method: string(k.x.env.method), uri: string(k.x.env.uri),
			ran: ran, before: k.before, body: k.bodyLocked(), answer: k.answerLocked(),
		}, false, again
	case ran >= limit/2:
		return nil, k.before == nil, min(again, limit-ran)
	default:
		return nil, false, min(again, limit/2-ran)
	}
}

// measured keeps what the worker has used so far, for the exchange to be compared with.
func (k *stopwatch) measured(u *usage) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.before = u
}

func (k *stopwatch) bodyLocked() string {
	more := ""
	if !k.whole {
		more = ", more is to come"
	}
	return strconv.FormatInt(k.body, 10) + " bytes" + more
}

func (k *stopwatch) answerLocked() string {
	if k.status == 0 {
		return "not begun"
	}
	return fmt.Sprintf("status %d, %d bytes so far", k.status, k.bytes)
}

// A slowRequest is a request that has run for slow_timeout, and runs.
type slowRequest struct {
	id, method, uri string
	ran             time.Duration
	before          *usage // of the worker, some time ago; or nil
	body, answer    string
}

// watchSlow tells of requests that w has had for slow_timeout, of each once, until the process ends.
func (w *worker) watchSlow() {
	limit, proc := w.gen.cfg.SlowTimeout, w.proc
	t := time.NewTimer(limit / 2)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-proc.done():
			return
		}
		next := limit
		for _, s := range w.slots {
			slow, halfway, again := s.clock.look(time.Now(), limit)
			next = min(next, again)
			if halfway {
				s.clock.measured(usageOf(proc.pid))
			}
			if slow != nil {
				w.tellSlow(slow)
			}
		}
		t.Reset(max(next, time.Millisecond))
	}
}

// tellSlow logs a slow request, with what the kernel says that its worker is at.
func (w *worker) tellSlow(r *slowRequest) {
	is := conditionOf(w.proc.pid, r.before)
	if w.proc.isReaped() {
		return // it may have been a stranger that has the number now; that the worker is gone is told
	}
	fields := []any{
		"id", r.id, "method", r.method, "uri", r.uri, "run", r.ran.Round(time.Millisecond),
		"slow_timeout", w.gen.cfg.SlowTimeout, "body", r.body, "answer", r.answer,
	}
	next := "it may run on"
	if limit := w.gen.cfg.RequestTimeout; limit > 0 {
		next = fmt.Sprintf("it may run on, %v at a time without a part of its answer (request_timeout)", limit)
	}
	w.log.Warn("request is slow", append(append(fields, is...), "next", next)...)
}
