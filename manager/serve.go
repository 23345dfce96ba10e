package manager

import (
	"cmp"
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
	gone <-chan struct{} // closed when the client leaves
	env  environ
	body []byte // the first part of the request's body
	all  bool   // it is all of it

	slot   *slot
	worker int // id of the worker that had it last
	buf    *protocol.Buffer

	pump     sync.WaitGroup // the goroutine that sends the rest of the body
	waiting  atomic.Bool    // it waits for the client
	bodySent bool           // its word that it has sent all of it, or the end in its place
	bodyErr  error          // its word why it could not

	queuedFor time.Duration
	ranFor    time.Duration
	sent      bool // something of an answer has gone to the web server
	status    int
	bytes     int64  // of the answer's body
	cause     string // what the outcome does not say by itself

	number uint64 // in the protocol
	early  bool   // it was sent behind another; under slot.settling until it holds the slot
	alone  bool   // nobody is behind it, and nobody comes
	pieces bool   // its answer did not come at once
	slow   bool   // the client was too slow to send its body, or to take its answer

	bounced bool      // it came back withdrawn: it is not sent behind another again
	waitEnd time.Time // of its waiting in the queue

	// The queue's, under pool.mu, but for turn and timer, which are the exchange's.
	place   place
	verdict outcome // of the place refused
	link    link
	turn    chan struct{} // has room for one: look where you stand
	timer   *time.Timer
}

var exchanges = sync.Pool{New: func() any {
	t := time.NewTimer(time.Hour)
	t.Stop()
	x := &exchange{turn: make(chan struct{}, 1), timer: t, env: environ{seen: new(nameSet)}}
	x.link.Value = x
	return x
}}

// maxResends bounds how often a request that provably never started is sent again.
const maxResends = 2

// serve answers one request. Read downwards, it is a request's whole life in
// the manager: there is no other path.
func (p *pool) serve(r *fcgi.Request) {
	x := exchanges.Get().(*exchange)
	x.pool, x.req, x.gone = p, r, r.Gone()
	o := x.prepare()
	for sends := 0; o == ok; {
		waiting := time.Now()
		if o = p.acquire(x); o != ok {
			x.queuedFor += time.Since(waiting)
			break
		}
		running := time.Now()
		x.queuedFor += running.Sub(waiting)
		bounced := x.bounced
		var again bool
		o, again = x.run(running)
		x.ranFor = time.Since(running)
		if !again {
			break
		}
		// It never started: another worker may have it.
		if x.bounced == bounced {
			if sends++; sends > maxResends {
				break
			}
			p.resent.Add(1)
		}
		o, x.cause = ok, ""
	}
	if o == clientGone && p.cutting.Load() {
		o = stopping // it is we who left
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
		x.env.refuse("more parameters than max_environ = %d bytes", x.req.MaxParams())
		return tooLarge
	}
	if x.req.Slow() {
		x.env.refuse("it had not arrived within client_timeout = %v", x.req.PeerTimeout())
		return slowClient
	}
	x.env.block = append(x.env.block[:0], make([]byte, protocol.RequestHead)...)
	if o := x.env.normalise(x.req.Params(), x.pool.config().ScriptName); o != ok {
		return o
	}
	x.body, x.all = x.req.First()
	select {
	case <-x.req.Gone(): // while its body was awaited, most likely
		return clientGone
	default:
		return ok
	}
}

// run hands the exchange to the worker behind x.slot and relays its answer. It reports
// again, with the outcome that it would be else, when the worker has provably never begun it.
func (x *exchange) run(now time.Time) (o outcome, again bool) {
	s := x.slot
	cfg := s.w.gen.cfg
	x.worker, x.alone, x.pieces = s.w.id, !x.all, false
	early := x.early
	if early {
		x.early = false
		s.Advance()
	} else {
		x.number = x.pool.numbers.Add(1)
		s.Send(x.env.block, x.body, x.all, x.number)
	}
	if x.buf == nil {
		x.buf = protocol.Buffers.Get().(*protocol.Buffer)
	} else {
		x.buf.Free() // of what another worker has sent
	}
	s.clock.start(x, now)
	s.SetDeadline(after(now, cfg.RequestTimeout))
	if !x.req.Watch(s) {
		return x.lost(protocol.ErrAborted)
	}
	if early {
		s.Admit()
	}
	if !x.all {
		if err := s.Flush(); err != nil {
			return x.lost(err)
		}
		x.pump.Go(func() { x.sendBody(s) }) // not x.slot, which an answer takes away; ends with the body, with CloseBody, or with the slot's connection
	}
	// Once the worker has begun an exchange behind this one, all of this answer is
	// here. It is kept until it is read, so that who comes next does not wait for
	// this one's client, whatever has become of him, or of the worker.
	var kept []byte
	var ended error // why this one would have ended else
	for {
		a, err := s.Receive(x.buf, x.req)
		if err != nil {
			if ended != nil || errors.Is(err, protocol.ErrProtocol) || x.takeBack() {
				return x.lost(cmp.Or(ended, err))
			}
			ended = err
			s.Resume(time.Now().Add(reapWait))
			kept = append(make([]byte, 0, 4<<10), kept...)
			continue
		}
		if a.Withdrawn {
			x.bounced = true
			s.clock.stop()
			x.giveBack(ending{})
			return ok, true
		}
		if a.Status != 0 {
			x.status = a.Status
		}
		if a.Failed {
			o = appError
		}
		x.bytes += int64(a.Body)
		s.clock.answered(a)
		if kept != nil {
			kept = append(kept, a.Bytes...)
			a.Bytes = kept
		}
		if a.Last || a.Cut {
			if o = x.finish(a, o, now); errors.Is(ended, protocol.ErrAborted) {
				o = clientGone
			}
			return o, false
		}
		x.pieces = true
		if kept == nil && !x.takeBack() {
			kept = append(make([]byte, 0, 2*len(a.Bytes)), a.Bytes...)
		}
		if len(kept) > maxAhead {
			return x.lost(errAhead)
		}
		if kept != nil {
			continue
		}
		x.sent = true
		s.clock.pause() // what the client takes its time for is not the application's
		err = x.req.Send(a.Bytes)
		s.clock.resume()
		if err != nil {
			x.noteSlow(err)
			return x.lost(protocol.ErrAborted)
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
const maxAhead = 8 << 20

var errAhead = fmt.Errorf("%w: the next exchange begun before an answer had ended", protocol.ErrProtocol)

// takeBack takes back who is behind, and has nobody follow. It reports false
// when the worker has begun that one.
func (x *exchange) takeBack() bool {
	if !x.alone {
		x.alone = x.pool.takeBack(x.slot, nil)
	}
	return x.alone
}

// smallAnswer is up to how long an answer's body may be, in bytes, for another
// one behind it to come with the same read.
const smallAnswer = 16 << 10

// giveBack gives the slot back, and reports whether somebody has it already.
func (x *exchange) giveBack(e ending) (waited bool) {
	s := x.slot
	x.req.Watch(nil)
	x.slot = nil
	return x.pool.offer(s, e)
}

// finish ends an exchange whose answer has ended. Where somebody waits for the
// slot, he gets it before the web server gets the answer: the worker should
// not sleep in the meantime.
func (x *exchange) finish(a protocol.Answer, o outcome, began time.Time) outcome {
	s := x.slot
	s.clock.stop()
	if !x.all {
		x.req.Watch(nil)
	} else if x.giveBack(ending{answered: true, large: x.pieces || x.bytes > smallAnswer, ran: time.Since(began)}) {
		runtime.Gosched() // he sends his request first: the worker is idle until then
	}
	var body sync.WaitGroup
	if !x.all {
		x.slot = nil
		body.Go(func() { x.endBody(s) }) // beside what follows, which may wait for a slow client
		defer body.Wait()
	}
	switch {
	case a.Last:
		x.sent = true
		if err := x.req.SendLast(a.Bytes); err != nil {
			if o = clientGone; x.noteSlow(err) {
				o = slowClient
			}
		}
	case x.status != 0: // cut: the web server must see it
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
	return o
}

// endBody waits for the body's sender, which an answer may overtake, and
// gives the slot back.
func (x *exchange) endBody(s *slot) {
	x.req.CloseBody()
	stuck := time.AfterFunc(s.w.gen.cfg.StopTimeout, s.Abort) // a worker that answers must read off the rest
	x.pump.Wait()
	inTime := stuck.Stop() // else an Abort is under way, which may hit the slot's next exchange
	if x.bodySent && inTime {
		x.pool.offer(s, ending{answered: true})
		return
	}
	s.Close() // it holds no exchange that could be abandoned: its answer is complete
	timeout := s.w.gen.cfg.StopTimeout
	s.w.settle(s, x.env.id, time.Now().Add(timeout), fmt.Sprintf("it did not read a request's body off within stop_timeout = %v", timeout))
}

// noteSlow keeps an error that says that the client is too slow.
func (x *exchange) noteSlow(err error) bool {
	if !errors.Is(err, fcgi.ErrSlow) {
		return false
	}
	x.slow, x.cause = true, err.Error()
	return true
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
		s.clock.pause()
		n, err := x.req.Read(buf[protocol.HeaderLen:])
		s.clock.resume()
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
			x.bodyErr = err
			s.Abort() // the client is gone or too slow, or its body could not be kept
			return
		}
		protocol.PutHeader(buf, h)
		if s.SendBody(buf[:protocol.HeaderLen+n], time.Time{}) != nil {
			return // Receive finds the same, and more
		}
		s.clock.sent(n, err != nil)
		if err != nil {
			x.bodySent = true
			return
		}
	}
}

// lost settles an exchange that got no complete answer.
func (x *exchange) lost(err error) (o outcome, again bool) {
	s, w := x.slot, x.slot.w
	cfg := w.gen.cfg
	s.clock.stop()
	x.req.Watch(nil)
	x.takeBack()
	x.slot = nil
	unheard := s.State() == protocol.SlotSent
	if !x.all {
		x.req.CloseBody()
	}
	s.Abandon()
	x.pump.Wait()
	x.noteSlow(x.bodyErr)
	switch {
	case errors.Is(err, protocol.ErrAborted):
		if o = clientGone; x.slow || x.noteSlow(x.req.Err()) {
			o = slowClient
		}
		if x.pool.cutting.Load() {
			x.pool.refuseSecond(s, stopping, "")
			x.pool.discard(s) // and its worker is stopped in a moment
			break
		}
		x.pool.refuseSecond(s, badAnswer, "the exchange before it was given up")
		w.settle(s, x.env.id, after(time.Now(), cfg.RequestTimeout), fmt.Sprintf("a request whose client left runs longer than request_timeout = %v", cfg.RequestTimeout))
	case errors.Is(err, protocol.ErrDeadline):
		next := "answer 504, replace the worker"
		if o, x.cause = timedOut, "no answer in request_timeout="+cfg.RequestTimeout.String(); x.sent {
			next, x.cause = "cut the answer, replace the worker", "no further part of the answer in request_timeout="+cfg.RequestTimeout.String()
		}
		w.tellTimeout(x, next)
		x.pool.refuseSecond(s, badAnswer, "the exchange before it was given up")
		w.leave("request_timeout", 0) // the others have done nothing to be cut for
		x.pool.discard(s)
	case errors.Is(err, protocol.ErrLost):
		o, x.cause = workerDied, "the worker died"
		select {
		case <-w.proc.done():
			x.cause = "the worker is gone: " + w.proc.exit().String()
			again = !s.Begun() && x.all
			x.pool.refuseSecond(s, o, x.cause)
			x.pool.discard(s)
		case <-time.After(reapWait):
			o, x.cause = badAnswer, "the worker closed the connection without an answer"
			again = x.all && s.WithdrawHeld()
			x.pool.refuseSecond(s, o, x.cause)
			w.settle(s, x.env.id, after(time.Now(), cfg.StopTimeout), x.cause)
		}
	default:
		o, x.cause = badAnswer, err.Error()
		w.tellBadAnswer(x, err)
		x.pool.refuseSecond(s, o, x.cause)
		w.retire("bad_answer")
		again = x.all && unheard && s.WithdrawHeld() // an answer that nobody asked for had come before
		x.pool.discard(s)
	}
	if x.sent {
		x.req.Cut()
		again = false
	}
	return o, again
}

// reapWait is how long a connection that has ended may be the first sign of
// its process's end.
const reapWait = time.Second

// refuse answers for the application.
func (x *exchange) refuse(o outcome) {
	x.status, x.sent = o.status(), true
	head := string(x.env.method) == "HEAD"
	records := make([]byte, fcgi.HeaderLen, 512)
	records, x.bytes = o.appendAnswer(records, x.env.id, head)
	x.req.Frame(records, len(records)-fcgi.HeaderLen)
	_ = x.req.SendLast(records) // its error is the client's having gone, which changes nothing now
}

// size is the length of the frame that carries the request, in bytes.
func (x *exchange) size() int { return len(x.env.block) + len(x.body) }

// account writes the request down.
func (x *exchange) account(o outcome) {
	p := x.pool
	p.counts[o].Add(1)
	if o == clientGone {
		x.status = o.status()
	}
	if x.cause == "" {
		x.cause = cmp.Or(x.env.reason, outcomes[o].cause)
	}
	if a := p.access.Load(); a != nil {
		a.write(x, o)
	}
	summed := x.inVain(o) && p.miss(o)
	if o != ok && o != clientGone && !summed {
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
