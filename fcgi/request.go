package fcgi

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"sync"
	"time"
)

// ErrBodyClosed is what Read returns after CloseBody.
var ErrBodyClosed = errors.New("the request's body is not wanted any more")

// ErrGone is what a request's methods return once its client has left.
var ErrGone = errors.New("the web server has aborted the request")

// An Aborter is told when the client of a request leaves. Abort is called at
// most once, with locks held: it must not block and must not call the request.
type Aborter interface {
	Abort()
}

// A Request is one request of a web server. Its methods are for the Handler
// and what it starts and waits for; Read may run beside the writing ones.
// Nothing of it may be used after the Handler has returned.
type Request struct {
	conn *conn
	id   uint16
	role Role
	keep bool

	// The reader's until the request starts, then the Handler's.
	received time.Time
	params   []byte
	tooLarge bool
	arriving clock // of the body that Read waits for

	// Guarded by conn.mu.
	paramsDone bool
	started    bool
	slow       bool
	stdinDone  bool // no STDIN will be stored any more
	gone       bool
	finished   bool
	watcher    Aborter
	leaving    chan struct{} // closed when the client leaves
	in         []byte        // body that has come and was not read: in[inRead:]
	inRead     int
	behind     hold // what came after in
	full       bool // more than may wait for the start has come
	bodyClosed bool
	length     int64         // of the body, as CONTENT_LENGTH has it; -1: not looked for yet
	wake       chan struct{} // has room for one; filled when a Read may go on

	first []byte // what First gave away
	ended bool   // the Handler's: End, SendLast or Cut was called
}

var requests = sync.Pool{New: func() any {
	return &Request{leaving: make(chan struct{}), wake: make(chan struct{}, 1)}
}}

const keptBuffer = 256 << 10 // larger ones are not worth keeping for the next request

func newRequest(c *conn, id uint16, role Role, keep bool) *Request {
	r := requests.Get().(*Request)
	r.conn, r.id, r.role, r.keep, r.received, r.length = c, id, role, keep, time.Now(), -1
	return r
}

// release ends a request whose Handler has returned. One that the reader has
// no more business with is used again.
func (r *Request) release() {
	if !r.ended {
		_ = r.End(0)
	}
	r.conn.mu.Lock()
	again := r.stdinDone && !r.gone
	r.dropLocked()
	r.conn.mu.Unlock()
	if !again {
		return
	}
	in, params := r.in, r.params
	if in == nil {
		in = r.first
	}
	if cap(in) > keptBuffer {
		in = nil
	}
	if cap(params) > keptBuffer {
		params = nil
	}
	select {
	case <-r.wake:
	default:
	}
	*r = Request{params: params[:0], in: in[:0], leaving: r.leaving, wake: r.wake}
	requests.Put(r)
}

// Role is what the web server asks for: RoleResponder or RoleAuthorizer.
func (r *Request) Role() Role { return r.role }

// Received is when the request began to arrive.
func (r *Request) Received() time.Time { return r.received }

// TooLarge reports whether the request had more parameters than
// Server.MaxParams; then it has none.
func (r *Request) TooLarge() bool { return r.tooLarge }

// Slow reports whether the request did not arrive within Server.PeerTimeout. What
// has come of it may be anything, and is not to be used.
func (r *Request) Slow() bool { return r.slow }

// MaxParams and PeerTimeout are those of the Server that has the request.
func (r *Request) MaxParams() int             { return r.conn.srv.maxParams() }
func (r *Request) PeerTimeout() time.Duration { return r.conn.srv.PeerTimeout }

// Params is the request's parameters as they were sent, to be walked with
// NextParam: whole pairs, in any order, names possibly repeated.
func (r *Request) Params() []byte { return r.params }

// Gone is closed when the client leaves.
func (r *Request) Gone() <-chan struct{} { return r.leaving }

// Err is why the client counts as gone before it has left: an error that wraps
// ErrSlow, or that of a write that failed. It is nil while the answer can go on.
func (r *Request) Err() error {
	r.conn.mu.Lock()
	defer r.conn.mu.Unlock()
	return r.conn.broken
}

// Watch has a told when the client leaves, in place of whom it was told to
// tell; nil tells nobody. It reports false, and tells nobody, when the client
// has left already. When it returns, no call for the former is under way.
func (r *Request) Watch(a Aborter) bool {
	r.conn.mu.Lock()
	defer r.conn.mu.Unlock()
	if r.gone && a != nil {
		return false
	}
	r.watcher = a
	return true
}

// leaveLocked notes that the client has left. conn.mu is held.
func (r *Request) leaveLocked() {
	if r.gone || r.finished {
		return
	}
	r.gone = true
	close(r.leaving)
	r.wakeLocked()
	if !r.started { // nobody reads
		r.dropLocked()
	}
	if r.watcher != nil {
		r.watcher.Abort()
		r.watcher = nil
	}
	if r.conn.paused == r {
		r.conn.paused = nil
		r.conn.poke()
	}
}

func (r *Request) wakeLocked() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// storeLocked takes a part of the body in: into memory, or, where there may be one and it has room, into
// a file. When more has come than may wait, the connection is left unread. An error is that of the file, and
// the body's bytes are there all the same. A file system may make it wait, and every request of the
// connection with it: the alternative is memory without a bound. conn.mu is held.
func (r *Request) storeLocked(b []byte) (err error) {
	if r.gone || r.finished || r.bodyClosed {
		return nil
	}
	c, h := r.conn, &r.behind
	switch {
	case h.waiting() == int64(h.memory()) && r.roomLocked(len(b)):
		r.keepLocked(b)
	case r.awaitedLocked() && h.spills(len(b), c.srv.BodyFile), c.mux && h.spills(len(b), math.MaxInt64):
		r.full = r.full || !h.spills(len(b), c.srv.BodyFile)
		if err = h.spill(c.srv.spoolDir(), b); err == nil {
			break
		}
		err = fmt.Errorf("keep a request's body in a file: %w", err)
		fallthrough
	default:
		r.keepLocked(b) // it has been read already: no more is
		r.full, c.paused = true, r
	}
	if !c.mux && !r.awaitedLocked() && r.unreadLocked() >= int64(c.srv.bodyBuffer()) {
		c.paused = r
	}
	r.wakeLocked()
	return err
}

// awaitedLocked reports whether all of the body is to come before the request starts. conn.mu is held.
func (r *Request) awaitedLocked() bool {
	return r.conn.srv.BodyMemory > 0 && !r.started && !r.full && !r.conn.srv.hasty.Load()
}

// longForLocked reports whether the request's body is awaited for longer than others': the Handler gets
// the request also when its client leaves meanwhile, since somebody has waited for it. conn.mu is held.
func (r *Request) longForLocked() bool {
	return r.conn.srv.BodyMemory > 0 && r.paramsDone && !r.started
}

// roomLocked reports whether n bytes more of the body may be in memory. conn.mu is held.
func (r *Request) roomLocked(n int) bool {
	srv := r.conn.srv
	n += len(r.in) - r.inRead + r.behind.memory()
	return n <= srv.bodyBuffer() ||
		r.awaitedLocked() && n <= srv.BodyMemory && srv.bodies.Load()+int64(n) <= int64(shares*srv.BodyMemory)
}

// keepLocked puts a part of the body into memory. conn.mu is held.
func (r *Request) keepLocked(b []byte) {
	if r.behind.waiting() > 0 || len(r.in)-r.inRead+len(b) > r.conn.srv.bodyBuffer()+readBuffer {
		r.conn.srv.bodies.Add(int64(len(b)))
		r.behind.keep(b)
		return
	}
	if r.inRead > 0 && len(r.in)+len(b) > cap(r.in) {
		r.in = r.in[:copy(r.in, r.in[r.inRead:])]
		r.inRead = 0
	}
	r.in = append(r.in, b...)
}

// unreadLocked is how much of the body has come and was not read. conn.mu is held.
func (r *Request) unreadLocked() int64 { return int64(len(r.in)-r.inRead) + r.behind.waiting() }

// dropLocked lets go of what nobody reads any more. conn.mu is held.
func (r *Request) dropLocked() {
	if h := &r.behind; h.waiting() > 0 || h.file != nil {
		r.conn.srv.bodies.Add(-int64(h.memory()))
		h.drop()
	}
}

// comingLocked reports whether more of the body is worth waiting for before
// the request starts: its length is known, and the buffer has room, or Server.BodyMemory asks for it. A client that
// is slow to send it keeps nobody busy so. conn.mu is held.
func (r *Request) comingLocked() bool {
	if r.awaitedLocked() {
		return true
	}
	if r.length < 0 {
		r.length = contentLength(r.params)
	}
	return r.length > 0 && r.conn.paused != r && !r.full && r.behind.waiting() == 0 && !r.conn.srv.hasty.Load()
}

// contentLength is what CONTENT_LENGTH says; 0: nothing that helps.
func contentLength(params []byte) int64 {
	for rest := params; len(rest) > 0; {
		var name, value []byte
		var err error
		if name, value, rest, err = NextParam(rest); err != nil {
			return 0
		}
		if string(name) == "CONTENT_LENGTH" {
			n, err := strconv.ParseInt(string(value), 10, 64)
			if err != nil || n < 0 {
				return 0
			}
			return n
		}
	}
	return 0
}

// First gives what has arrived of the body, without waiting, and reports
// whether that is all of it. The bytes are the Handler's until it returns.
// It is called at most once, before any Read.
func (r *Request) First() (b []byte, all bool) {
	r.conn.mu.Lock()
	defer r.conn.mu.Unlock()
	r.first, r.in = r.in, nil
	r.resumeLocked()
	return r.first, r.stdinDone && !r.gone && r.behind.waiting() == 0
}

// Read reads the body, and waits where none has come. At the body's end it
// returns io.EOF; when the client has left, ErrGone; when it is too slow, an
// error that wraps ErrSlow.
func (r *Request) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c := r.conn
	var late error // too late, unless something has come all the same
	for {
		c.mu.Lock()
		switch {
		case r.gone:
			c.mu.Unlock()
			return 0, ErrGone
		case r.bodyClosed:
			c.mu.Unlock()
			return 0, ErrBodyClosed
		case r.inRead < len(r.in):
			n := copy(p, r.in[r.inRead:])
			if r.inRead += n; r.inRead == len(r.in) {
				r.in, r.inRead = r.in[:0], 0
			}
			r.arriving.wait(0, n)
			r.resumeLocked()
			c.mu.Unlock()
			return n, nil
		case r.behind.waiting() > 0:
			n, f, at := r.behind.next(p)
			if f == nil {
				c.srv.bodies.Add(-int64(n))
			}
			r.arriving.wait(0, n)
			r.resumeLocked()
			c.mu.Unlock()
			if f == nil {
				return n, nil
			}
			if _, err := f.ReadAt(p[:n], at); err != nil {
				return 0, fmt.Errorf("read a request's body from a file: %w", err)
			}
			return n, nil
		case r.stdinDone:
			c.mu.Unlock()
			return 0, io.EOF
		}
		c.mu.Unlock()
		if late != nil {
			return 0, late
		}
		late = r.await()
	}
}

// await waits for more of the body, for its end, for CloseBody, or for the client's leaving. It
// gives an error when the client was too slow, whatever it has been woken by.
func (r *Request) await() error {
	srv, k := r.conn.srv, &r.arriving
	tick := srv.tick(k)
	if tick == 0 {
		<-r.wake
		return nil
	}
	t := time.NewTimer(tick)
	defer t.Stop()
	for {
		began, woken := time.Now(), false
		select {
		case <-r.wake:
			woken = true
		case <-t.C:
		}
		k.wait(time.Since(began), 0)
		if err := srv.judge(k, "sent", true); err != nil || woken {
			return err
		}
		t.Reset(srv.tick(k))
	}
}

// CloseBody discards the rest of the body, and ends a Read that waits for it
// with ErrBodyClosed. Any goroutine may call it.
func (r *Request) CloseBody() {
	c := r.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	r.bodyClosed = true
	r.in, r.inRead = r.in[:0], 0
	// What is behind it goes with the request: a Read of the file may be under way.
	r.wakeLocked()
	r.resumeLocked()
}

// resumeLocked has the reader go on when the body has room again. conn.mu is held.
func (r *Request) resumeLocked() {
	if c := r.conn; c.paused == r && r.unreadLocked() <= int64(c.srv.bodyBuffer()/2) {
		c.paused = nil
		c.poke()
	}
}

// Frame writes the head of a STDOUT record with n bytes of content, at most
// MaxContent, to the first HeaderLen bytes of b, for Send and SendLast.
func (r *Request) Frame(b []byte, n int) { putHeader(b, typeStdout, r.id, n) }

// Send writes records made with Frame. What the client does not take at once is
// copied, up to Server.AnswerBuffer and AnswerFile, and written behind the Handler's back; beyond
// that, Send waits. So an error may belong to what an earlier Send has sent.
func (r *Request) Send(records []byte) error { return r.conn.write(records, working) }

// SendLast writes records made with Frame, which may be none, and ends the
// request, in one write. It waits until the client has taken the whole answer. It
// appends TrailerLen bytes, in place where the capacity allows.
func (r *Request) SendLast(records []byte) error {
	records = appendHeader(records, typeStdout, r.id, 0)
	return r.end(appendEnd(records, r.id, 0, StatusRequestComplete), ending)
}

// End ends the request, once its records have been sent.
func (r *Request) End(appStatus uint32) error {
	return r.endAs(appStatus, ending)
}

func (r *Request) endAs(appStatus uint32, who writer) error {
	var b [TrailerLen]byte
	records := appendHeader(b[:0], typeStdout, r.id, 0)
	return r.end(appendEnd(records, r.id, appStatus, StatusRequestComplete), who)
}

func (r *Request) end(records []byte, who writer) error {
	c := r.conn
	r.ended = true
	c.remove(r)
	err := c.write(records, who)
	c.settle()
	return err
}

// Cut ends the request so that the web server sees an incomplete answer, once it has
// taken what was sent: by the end of the connection, since FastCGI has no other
// way that all of them understand.
func (r *Request) Cut() {
	c := r.conn
	r.ended = true
	c.remove(r)
	select {
	case <-r.leaving:
	default:
		c.drain()
	}
	c.mu.Lock()
	c.closing = true
	if len(c.active) > 0 || c.ending > 1 { // they can't be waited for: until the end, this answer looks as if it went on
		c.killLocked()
	}
	c.mu.Unlock()
	c.settle()
}

// Write sends p as part of the answer, as Send does: the header block of a CGI
// answer first, then its body.
func (r *Request) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil // an empty record would end the stream
	}
	if err := r.conn.write(appendRecord(nil, typeStdout, r.id, p), working); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteError sends p to the web server's error log (STDERR).
func (r *Request) WriteError(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	return r.conn.write(appendRecord(nil, typeStderr, r.id, p), working)
}
