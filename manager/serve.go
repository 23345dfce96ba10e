package manager

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"fpmd/fcgi"
	"fpmd/protocol"
)

// An exchange is one request on its way through a pool.
type exchange struct {
	pool *pool
	req  *fcgi.Request
	env  environ
	body []byte // the first part of the request's body
	all  bool   // it is all of it

	slot   *slot
	worker int // id of the worker that had it last
	buf    *protocol.Buffer

	pump     sync.WaitGroup // the goroutine that sends the rest of the body
	waiting  atomic.Bool    // it waits for the client
	bodySent bool           // its word that it has sent all of it, or the end in its place

	queuedFor time.Duration
	ranFor    time.Duration
	sent      bool // something of an answer has gone to the web server
	status    int
	bytes     int64  // of the answer's body
	cause     string // what the outcome does not say by itself

	number uint64 // in the protocol
	early  bool   // it was sent behind another; under slot.settling until it holds the slot
	alone  bool   // nobody is behind it, and nobody comes

	// The queue's, under pool.mu, but for turn and timer, which are the exchange's.
	place   place
	verdict outcome // of the place refused
	link    link[*exchange]
	turn    chan struct{} // has room for one: look where you stand
	timer   *time.Timer
}

var exchanges = sync.Pool{New: func() any {
	t := time.NewTimer(time.Hour)
	t.Stop()
	x := &exchange{turn: make(chan struct{}, 1), timer: t, env: environ{seen: new(nameSet)}}
	x.link.of = x
	return x
}}

// maxResends bounds how often a request that provably never started is sent again.
const maxResends = 2

// serve answers one request. Read downwards, it is a request's whole life in
// the manager: there is no other path.
func (p *pool) serve(r *fcgi.Request) {
	x := exchanges.Get().(*exchange)
	x.pool, x.req = p, r
	o := x.prepare()
	for sends := 0; o == ok; sends++ {
		waiting := time.Now()
		if o = p.acquire(x); o != ok {
			x.queuedFor += time.Since(waiting)
			break
		}
		running := time.Now()
		x.queuedFor += running.Sub(waiting)
		var again bool
		o, again = x.run(running)
		x.ranFor = time.Since(running)
		if !again || sends == maxResends {
			break
		}
		o = ok // it never started: another worker may have it
	}
	if !x.sent && o != ok && o != appError && o != clientGone {
		x.refuse(o)
	}
	x.account(o)
	x.free()
}

// prepare makes the environ, and the frame that carries it with the first
// part of the body.
func (x *exchange) prepare() outcome {
	if x.req.TooLarge() {
		x.env.refuse("more parameters than max_environ = %d bytes", x.pool.server.MaxParams)
		return tooLarge
	}
	x.env.block = append(x.env.block[:0], make([]byte, protocol.RequestHead)...)
	if o := x.env.normalise(x.req.Params(), x.pool.config().ScriptName); o != ok {
		return o
	}
	x.body, x.all = x.req.First()
	return ok
}

// run hands the exchange to the worker behind x.slot and relays its answer. It reports
// again, with the outcome that it would be else, when the worker has provably never begun it.
func (x *exchange) run(now time.Time) (o outcome, again bool) {
	s := x.slot
	cfg := s.w.gen.cfg
	x.worker = s.w.id
	if x.early {
		x.early = false
		s.Advance()
	} else {
		x.number = x.pool.numbers.Add(1)
		s.Send(x.env.block, x.body, x.all, x.number)
	}
	deadline := after(now, cfg.RequestTimeout)
	s.SetDeadline(deadline)
	if !x.req.Watch(s) {
		return x.lost(protocol.ErrAborted, now)
	}
	if !x.all {
		if err := s.Flush(); err != nil {
			return x.lost(err, now)
		}
		x.pump.Go(func() { x.sendBody(s) }) // not x.slot, which an answer takes away; ends with the body, with CloseBody, or with the slot's connection
	}
	if x.buf == nil {
		x.buf = protocol.Buffers.Get().(*protocol.Buffer)
	}
	x.alone = !x.all
	var kept []byte // the answer, when another must not wait for this one's client
	for {
		a, err := s.Receive(x.buf, x.req)
		if err != nil {
			return x.lost(err, now)
		}
		if a.Withdrawn {
			x.cause = "withdrawn from its worker"
			x.giveBack(unanswered)
			return badAnswer, true
		}
		if a.Status != 0 {
			x.status = a.Status
		}
		if a.Failed {
			o = appError
		}
		x.bytes += int64(a.Body)
		if kept != nil {
			kept = append(kept, a.Bytes...)
			a.Bytes = kept
		}
		if a.Last || a.Cut {
			return x.finish(a, o, now), false
		}
		if !x.alone && kept == nil {
			if x.alone = x.pool.takeBack(s, nil); !x.alone { // the worker has begun the next, so all of this answer is here
				kept = append(make([]byte, 0, 2*len(a.Bytes)), a.Bytes...)
			}
		}
		if len(kept) > maxAhead {
			return x.lost(errAhead, now)
		}
		if kept != nil {
			continue
		}
		x.sent = true
		if err := x.req.Send(a.Bytes); err != nil {
			return x.lost(protocol.ErrAborted, now)
		}
		if cfg.RequestTimeout > 0 && !x.waiting.Load() {
			s.SetDeadline(time.Now().Add(cfg.RequestTimeout)) // the clock starts anew with every block
		}
	}
}

// after is t later than now, or never when t is 0.
func after(now time.Time, t time.Duration) time.Time {
	if t == 0 {
		return time.Time{}
	}
	return now.Add(t)
}

// maxAhead bounds how much of an answer there may be still to read, in bytes,
// once its worker has begun the next exchange: more than a socket's buffers hold.
const maxAhead = 2 << 20

var errAhead = fmt.Errorf("%w: the next exchange begun before an answer had ended", protocol.ErrProtocol)

// giveBack gives the slot back, and reports whether somebody has it already.
func (x *exchange) giveBack(ran time.Duration) (waited bool) {
	s := x.slot
	x.req.Watch(nil)
	x.slot = nil
	return x.pool.offer(s, ran)
}

// finish ends an exchange whose answer has ended. Where somebody waits for the
// slot, he gets it before the web server gets the answer: the worker should
// not sleep in the meantime.
func (x *exchange) finish(a protocol.Answer, o outcome, began time.Time) outcome {
	s := x.slot
	if !x.all {
		x.req.Watch(nil)
	} else if x.giveBack(time.Since(began)) {
		runtime.Gosched() // he sends his request first: the worker is idle until then
	}
	switch {
	case a.Last:
		x.sent = true
		if err := x.req.SendLast(a.Bytes); err != nil {
			o = clientGone
		}
	case x.sent || a.Status != 0: // cut: the web server must see it
		if len(a.Bytes) > 0 {
			_ = x.req.Send(a.Bytes) // its error changes nothing: the connection ends anyway
		}
		x.sent = true
		x.cause = "the answer was cut"
		x.req.Cut()
		o = appError
	default:
		x.cause = "the worker had no answer"
		o = appError
		if !a.Failed {
			o = badAnswer
		}
	}
	if !x.all {
		x.endBody(s)
	}
	return o
}

// endBody waits for the body's sender, which an answer may overtake, and
// gives the slot back.
func (x *exchange) endBody(s *slot) {
	x.slot = nil
	x.req.CloseBody()
	stuck := time.AfterFunc(s.w.gen.cfg.StopTimeout, s.Abort) // a worker that answers must read off the rest
	x.pump.Wait()
	inTime := stuck.Stop() // else an Abort is under way, which may hit the slot's next exchange
	if x.bodySent && inTime {
		x.pool.offer(s, unmeasured)
		return
	}
	s.Close() // it holds no exchange that could be abandoned: its answer is complete
	s.w.settle(s, time.Now().Add(s.w.gen.cfg.StopTimeout), "it did not read a request's body off")
}

// sendBody sends what of the body did not come with the request, as it comes. It
// sets x.bodySent when the worker has had the last of it.
func (x *exchange) sendBody(s *slot) {
	b := protocol.Buffers.Get().(*protocol.Buffer)
	defer protocol.Buffers.Put(b)
	buf := b.Bytes()
	timeout := s.w.gen.cfg.RequestTimeout
	for {
		// The application's clock stands while the client is waited for: a slow
		// upload is no slow application.
		x.waiting.Store(true)
		s.SetDeadline(time.Time{})
		n, err := x.req.Read(buf[protocol.HeaderLen:])
		x.waiting.Store(false)
		if timeout > 0 {
			s.SetDeadline(time.Now().Add(timeout))
		}
		h := protocol.Header{Type: protocol.Body, Length: uint32(n)}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			h.Flags = protocol.FlagLast
		case errors.Is(err, fcgi.ErrBodyClosed):
			h.Flags = protocol.FlagLast | protocol.FlagCut
		default:
			s.Abort() // the client is gone, or its body could not be kept
			return
		}
		protocol.PutHeader(buf, h)
		if s.SendBody(buf[:protocol.HeaderLen+n], time.Time{}) != nil {
			return // Receive finds the same, and more
		}
		if err != nil {
			x.bodySent = true
			return
		}
	}
}

// lost settles an exchange that got no complete answer.
func (x *exchange) lost(err error, began time.Time) (o outcome, again bool) {
	s, w := x.slot, x.slot.w
	cfg := w.gen.cfg
	x.req.Watch(nil)
	aborted, late := errors.Is(err, protocol.ErrAborted), errors.Is(err, protocol.ErrDeadline)
	behind := !x.pool.takeBack(s, nil) // somebody whom the worker has begun
	if behind && (aborted || late) {
		if err = x.readOff(); err == nil {
			x.giveBack(time.Since(began))
			o = clientGone
			if late {
				o, x.cause = timedOut, "no answer in request_timeout="+cfg.RequestTimeout.String()
			}
			if x.sent {
				x.req.Cut()
			}
			return o, false
		}
		aborted, late = false, false
	}
	x.slot = nil
	if !x.all {
		x.req.CloseBody()
	}
	s.Abandon()
	x.pump.Wait()
	switch {
	case aborted:
		o = clientGone
		w.settle(s, after(began, cfg.RequestTimeout), "a request whose client left runs longer than request_timeout")
	case late:
		o, x.cause = timedOut, "no answer in request_timeout="+cfg.RequestTimeout.String()
		w.log.Warn("request timed out", "id", x.env.id, "uri", string(x.env.uri), "cause", x.cause, "next", "answer 504, replace the worker")
		w.retire("request_timeout")
		x.pool.discard(s)
	case errors.Is(err, protocol.ErrLost):
		o, x.cause = workerDied, "the worker died"
		select {
		case <-w.proc.done():
			x.cause = "the worker " + w.proc.exit().String()
			again = !s.Begun() && x.all
			x.pool.refuseSecond(s, o, x.cause)
			x.pool.discard(s)
		case <-time.After(reapWait):
			o, x.cause = badAnswer, "the worker closed the connection without an answer"
			x.pool.refuseSecond(s, o, x.cause)
			w.settle(s, after(time.Now(), cfg.StopTimeout), x.cause)
		}
	default:
		o, x.cause = badAnswer, err.Error()
		w.log.Error("worker broke the exchange protocol", "id", x.env.id, "cause", err, "next", "replace it")
		x.pool.refuseSecond(s, o, x.cause)
		w.retire("bad_answer")
		x.pool.discard(s)
	}
	if x.sent {
		x.req.Cut()
		again = false
	}
	return o, again
}

// readOff reads the answer to its end, for nobody: all of it is here.
func (x *exchange) readOff() error {
	s := x.slot
	s.Resume(time.Now().Add(reapWait))
	for n := 0; n <= maxAhead; {
		a, err := s.Receive(x.buf, x.req)
		if err != nil {
			return err
		}
		if a.Last || a.Cut {
			return nil
		}
		n += len(a.Bytes)
	}
	return errAhead
}

// reapWait is how long a connection that has ended may be the first sign of
// its process's end.
const reapWait = time.Second

// refuse answers for the application.
func (x *exchange) refuse(o outcome) {
	x.status, x.sent = o.status(), true
	head := string(x.env.method) == "HEAD"
	records := make([]byte, fcgi.HeaderLen, 512)
	records = o.appendAnswer(records, x.env.id, head)
	x.req.Frame(records, len(records)-fcgi.HeaderLen)
	_ = x.req.SendLast(records) // its error is the client's having gone, which changes nothing now
}

// size is the length of the frame that carries the request, in bytes.
func (x *exchange) size() int { return len(x.env.block) + len(x.body) }

// account writes the request down.
func (x *exchange) account(o outcome) {
	p := x.pool
	if o == clientGone {
		x.status = o.status()
	}
	if x.cause == "" {
		x.cause = x.env.reason
	}
	if p.access != nil {
		p.access.write(x, o)
	}
	if o != ok && o != clientGone {
		if x.cause == "" {
			x.cause = "the application failed"
		}
		p.log.Warn("request failed", "outcome", o.String(), "id", x.env.id, "cause", x.cause, "status", x.status,
			"worker", x.worker, "method", string(x.env.method), "uri", string(x.env.uri),
			"queue", x.queuedFor.Round(time.Microsecond), "run", x.ranFor.Round(time.Microsecond))
	}
}

// keptBlock is the largest environ block kept for the next request.
const keptBlock = 128 << 10

func (x *exchange) free() {
	if x.buf != nil {
		x.buf.Free()
		protocol.Buffers.Put(x.buf)
	}
	block := x.env.block
	if cap(block) > keptBlock {
		block = nil
	}
	select {
	case <-x.turn:
	default:
	}
	*x = exchange{link: x.link, turn: x.turn, timer: x.timer, env: environ{block: block, seen: x.env.seen}}
	exchanges.Put(x)
}
