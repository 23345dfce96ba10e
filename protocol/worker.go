package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// readRoom is what a connection of a worker reads at once: an environ with
	// cookies and a form, but not an upload.
	readRoom = 16 << 10
	// writeRoom is how much of an answer is collected before it is sent.
	writeRoom = 16 << 10
	// keepRoom is the largest buffer that outlives its exchange.
	keepRoom = 64 << 10
	// smallEnd is up to where an answer's end is copied, to be written in one
	// piece: that is less than two pieces cost the kernel.
	smallEnd = 2 << 10
	// directRead is from where on a body is read straight to where it is wanted.
	directRead = 4 << 10
)

// Errors of an Exchange.
var (
	// ErrGone: nobody waits for the answer any more. The client has left, or a
	// deadline has passed.
	ErrGone = errors.New("client gone")
	// ErrOver: the exchange was used after its answer, or itself, had ended.
	ErrOver = errors.New("exchange is over")
)

var errDrained = errors.New("worker draining")

// A Worker is the worker's end of the exchange: it accepts the supervisor's
// connections, one for each slot, and has every request handled. The fields
// are set before Serve.
type Worker struct {
	Listener *net.UnixListener
	Page     *Page
	Slots    int

	// Handle answers one exchange, in the goroutine of its connection; as many
	// run at once as there are Slots. It must not keep x. An error ends the
	// connection, and is reported. An answer that was not ended is cut.
	Handle func(x *Exchange) error

	// Report is told, by any goroutine, why a connection was ended that the
	// supervisor did not end.
	Report func(error)

	wg       sync.WaitGroup
	watcher  watcher
	mu       sync.Mutex // guards what follows; nothing blocks under it
	draining bool
	conns    map[*workerConn]bool
}

// Serve runs until Drain, and returns when the exchanges that have begun by
// then have ended, or at once when the listener fails.
func (w *Worker) Serve() error {
	w.mu.Lock()
	w.conns = make(map[*workerConn]bool)
	w.mu.Unlock()
	failed := make(chan error, w.Slots)
	for range w.Slots {
		w.wg.Go(func() { w.slot(failed) }) // ends with Drain, or when the listener fails
	}
	w.wg.Wait()
	w.watcher.close()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// Drain has Serve return when the exchanges that have begun have ended. No
// other begins.
func (w *Worker) Drain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.draining {
		return
	}
	w.draining = true
	w.Listener.Close()
	for c := range w.conns {
		c.drain()
	}
}

// slot accepts a connection and serves it to its end, again and again. Because
// there are as many slots as these, no more connections are ever greeted.
func (w *Worker) slot(failed chan<- error) {
	over := false
	defer func() {
		if !over { // the application ended its goroutine, which is ours: the slot goes on in another
			w.wg.Go(func() { w.slot(failed) })
		}
	}()
	for {
		nc, err := w.Listener.AcceptUnix()
		if err == nil {
			w.serve(nc)
			continue
		}
		w.mu.Lock()
		draining := w.draining
		w.mu.Unlock()
		switch {
		case draining:
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOBUFS):
			// The application has used up what there is. It may give it back.
			w.report(err)
			time.Sleep(100 * time.Millisecond)
			continue
		case errors.Is(err, unix.ECONNABORTED):
			continue
		default:
			failed <- fmt.Errorf("accept from the supervisor: %w", err)
			w.Drain() // a worker without its listener is of no use
		}
		over = true
		return
	}
}

// serve greets one connection and serves it to its end.
func (w *Worker) serve(nc *net.UnixConn) {
	defer nc.Close()
	c, err := newWorkerConn(w, nc)
	if err != nil {
		w.report(err)
		return
	}
	w.mu.Lock()
	if w.draining {
		w.mu.Unlock()
		return
	}
	w.conns[c] = true
	w.mu.Unlock()
	defer func() {
		c.x.unwatch() // while the descriptor is still ours, also when the application ended our goroutine
		w.mu.Lock()
		delete(w.conns, c)
		w.mu.Unlock()
	}()
	if err := c.serve(); err != nil {
		w.report(err)
	}
}

func (w *Worker) report(err error) {
	if w.Report != nil {
		w.Report(err)
	}
}

// Whether a connection may begin an exchange: Drain and the connection's own
// goroutine settle it by exchanging one for the other.
const (
	connWaiting  uint32 = iota // for a request
	connBusy                   // with an exchange
	connLast                   // with its last exchange
	connDraining               // begins no other
)

// A workerConn is the worker's end of one connection. Everything but state
// and nc's deadline is its goroutine's.
type workerConn struct {
	w     *Worker
	nc    *net.UnixConn
	raw   syscall.RawConn
	fd    uintptr // of nc, for as long as serve runs
	ready func(uintptr) bool
	state atomic.Uint32
	err   error // why serve has to end

	buf        []byte
	from, have int // buf[from:have] has come and was not used

	x Exchange
}

func newWorkerConn(w *Worker, nc *net.UnixConn) (*workerConn, error) {
	c := &workerConn{w: w, nc: nc, buf: make([]byte, readRoom)}
	c.x.c = c
	c.x.out = make([]byte, 0, writeRoom)
	c.ready = c.readable
	var err error
	if c.raw, err = nc.SyscallConn(); err == nil {
		err = c.raw.Control(func(fd uintptr) { c.fd = fd })
	}
	return c, err
}

func (c *workerConn) drain() {
	if c.state.CompareAndSwap(connWaiting, connDraining) {
		c.nc.SetReadDeadline(time.Unix(1, 0))
		return
	}
	c.state.CompareAndSwap(connBusy, connLast)
}

// serve greets the supervisor, then answers one request after the other. It
// returns nil when the supervisor, or Drain, has ended the connection.
func (c *workerConn) serve() error {
	var greeting [HeaderLen]byte
	PutHeader(greeting[:], Header{Type: Greeting, Aux: Version})
	if _, err := c.nc.Write(greeting[:]); err != nil {
		return nil // it has left already
	}
	for {
		if err := c.raw.Read(c.ready); err != nil {
			return nil // Drain
		}
		if c.err == nil {
			c.run() // readable has left it a request whose body is to be read from nc
		}
		switch {
		case c.err == nil:
		case errors.Is(c.err, io.EOF), errors.Is(c.err, io.ErrUnexpectedEOF),
			errors.Is(c.err, unix.ECONNRESET), errors.Is(c.err, ErrGone), errors.Is(c.err, errDrained):
			return nil
		default:
			return c.err
		}
	}
}

// readable runs inside RawConn.Read: it reads requests, and answers those that
// are there whole. The poller stays armed all that time, so there is no need
// for a read that could only say EAGAIN. True: c.err says why it is over, or
// the request's body is still to come, which must be read outside.
func (c *workerConn) readable(fd uintptr) (done bool) {
	drained := false // the last read had room for more
	for {
		answered := false
		for {
			here, err := c.next()
			if err != nil {
				c.err = err
				return true
			}
			if !here {
				break
			}
			if !c.x.ended || c.x.rest > c.have-c.from {
				return true
			}
			c.run()
			if c.err != nil {
				return true
			}
			answered = true
		}
		// What comes from now on wakes us again. An end of file that came
		// together with what was read does not, but then the answer could not
		// have been written.
		if drained && answered && c.from == c.have {
			return false
		}
		room := len(c.buf) - c.have
		n, errno := read(fd, c.buf[c.have:])
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			return false
		case errno != 0:
			c.err = errno
			return true
		case n == 0:
			c.err = io.EOF
			return true
		}
		c.have += n
		drained = n < room
	}
}

// next looks whether a request's head has come, with all of its environ, and
// takes it. Otherwise there is room to read more of it.
func (c *workerConn) next() (here bool, err error) {
	if c.from == c.have {
		c.from, c.have = 0, 0
		if len(c.buf) > keepRoom {
			c.buf = make([]byte, readRoom)
		}
	}
	in := c.buf[c.from:c.have]
	need := HeaderLen + RequestFixed
	if len(in) >= HeaderLen {
		h, err := ParseHeader(in)
		if err != nil {
			return false, err
		}
		if h.Type != Request {
			return false, fmt.Errorf("%w: %v, want REQUEST", ErrProtocol, h.Type)
		}
		if int(h.Aux) >= c.w.Slots {
			return false, fmt.Errorf("%w: REQUEST for slot %d of %d", ErrProtocol, h.Aux, c.w.Slots)
		}
		if len(in) >= need {
			environ := binary.LittleEndian.Uint32(in[HeaderLen+8:])
			if environ > MaxEnviron || environ > h.Length-RequestFixed {
				return false, fmt.Errorf("%w: environ of %d bytes in a REQUEST of %d", ErrProtocol, environ, h.Length)
			}
			number := binary.LittleEndian.Uint64(in[HeaderLen:])
			if number == 0 { // the page would say that it was withdrawn
				return false, fmt.Errorf("%w: REQUEST with number 0", ErrProtocol)
			}
			need += int(environ)
			if len(in) >= need {
				c.x.start(h, number, in[HeaderLen+RequestFixed:need:need])
				c.from += need
				c.x.base = c.from
				return true, nil
			}
		}
	}
	// The body is read into what is behind the environ, so there has to be some.
	if need += directRead; need > len(c.buf)-c.from {
		buf := c.buf
		if need > len(buf) {
			buf = make([]byte, need)
		}
		c.have = copy(buf, in)
		c.from, c.buf = 0, buf
	}
	return false, nil
}

// run has the exchange that next took handled, and leaves the connection
// ready for another, or with an error.
func (c *workerConn) run() {
	if !c.state.CompareAndSwap(connWaiting, connBusy) {
		c.err = errDrained
		return
	}
	x := &c.x
	if c.w.Page.Begin(x.slot, x.number) {
		c.err = c.w.Handle(x)
		x.unwatch()
		if c.err == nil && x.answer != answered {
			_ = x.Cut(true)
		}
	} else {
		x.withdraw()
	}
	if c.err == nil {
		c.err = x.err
	}
	if c.err == nil {
		c.err = x.discard()
	}
	if !c.state.CompareAndSwap(connBusy, connWaiting) && c.err == nil {
		c.err = errDrained
	}
}

// fill reads more behind what has come, or to base when all of that was used.
// It must not run inside readable.
func (c *workerConn) fill(base int) error {
	switch {
	case c.from == c.have:
		c.from, c.have = base, base
	case c.have == len(c.buf):
		c.have = base + copy(c.buf[base:], c.buf[c.from:c.have])
		c.from = base
	}
	n, err := c.nc.Read(c.buf[c.have:])
	c.have += n
	if n > 0 {
		return nil
	}
	return gone(err)
}

// write writes a and b, and waits where the supervisor is slow to read.
func (c *workerConn) write(a, b []byte) error {
	var n int
	var errno syscall.Errno
	if len(b) == 0 {
		n, errno = write(c.fd, a)
	} else {
		n, errno = writev(c.fd, []iovec{iov(a), iov(b)})
	}
	if errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR {
		return gone(errno)
	}
	if n == len(a)+len(b) {
		return nil
	}
	k := min(n, len(a))
	rest := net.Buffers{a[k:], b[n-k:]}
	_, err := rest.WriteTo(c.nc)
	return gone(err)
}

func gone(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrGone, err)
}

// An Exchange is the worker's end of one exchange. Read may be called by one
// goroutine, Watch by any, and the methods that answer by a third, but none
// when Handle has returned: the connection's next exchange is the same
// Exchange.
type Exchange struct {
	c       *workerConn
	slot    int
	number  uint64
	environ []byte
	base    int // where in the connection's buffer environ ends: what is behind it may be overwritten

	rest    int  // bytes of the current frame of the body that were not read
	ended   bool // it is the last one
	cut     bool // and the body is incomplete
	bodyErr error

	head   Header // of the frame that out is becoming
	out    []byte // room for a header, and what was written behind it; empty: no frame
	answer answerState
	err    error // why nothing can be sent any more

	watch *watch
}

// An answerState is how far an answer has come.
type answerState uint8

const (
	unanswered answerState = iota
	answering
	answered
)

func (x *Exchange) start(h Header, number uint64, environ []byte) {
	x.slot, x.number, x.environ = int(h.Aux), number, environ
	x.rest, x.ended, x.cut, x.bodyErr = int(h.Length)-RequestFixed-len(environ), h.Last(), false, nil
	x.answer, x.err = unanswered, nil
	if x.out = x.out[:0]; cap(x.out) > keepRoom {
		x.out = make([]byte, 0, writeRoom)
	}
}

// Environ is the environ block, not yet checked. It must not be changed.
func (x *Exchange) Environ() []byte { return x.environ }

// Number is the exchange's.
func (x *Exchange) Number() uint64 { return x.number }

// Read reads the request's body, to io.EOF. It streams: while it is not
// called, the supervisor is held up. Where the client leaves before the end the
// error wraps ErrGone; where the answer is complete before it, it is
// io.ErrUnexpectedEOF.
func (x *Exchange) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c := x.c
	if err := x.more(); err != nil {
		return 0, err
	}
	if c.from == c.have && len(p) < directRead {
		if x.bodyErr = c.fill(x.base); x.bodyErr != nil {
			return 0, x.bodyErr
		}
	}
	n := min(len(p), x.rest)
	if c.from < c.have {
		n = copy(p[:n], c.buf[c.from:c.have])
		c.from += n
	} else {
		var err error
		if n, err = c.nc.Read(p[:n]); n == 0 {
			x.bodyErr = gone(err)
		}
	}
	x.rest -= n
	return n, x.bodyErr
}

// Ended reports whether nothing of the body is left to be read, without
// waiting for what has not come.
func (x *Exchange) Ended() bool { return x.rest == 0 && x.ended }

// more returns nil when there is more of the body: then rest is not 0.
func (x *Exchange) more() error {
	c := x.c
	for x.rest == 0 && x.bodyErr == nil {
		if x.cut {
			return io.ErrUnexpectedEOF
		}
		if x.ended {
			return io.EOF
		}
		if c.have-c.from < HeaderLen {
			x.bodyErr = c.fill(x.base)
			continue
		}
		h, err := ParseHeader(c.buf[c.from:])
		if err == nil && h.Type != Body {
			err = fmt.Errorf("%w: %v, want BODY", ErrProtocol, h.Type)
		}
		c.from += HeaderLen
		x.rest, x.ended, x.cut, x.bodyErr = int(h.Length), h.Last(), h.Flags&FlagCut != 0, err
	}
	return x.bodyErr
}

// discard reads the body off, so that the next request can be read.
func (x *Exchange) discard() error {
	c := x.c
	for {
		switch err := x.more(); {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
		if c.from == c.have {
			if err := c.fill(x.base); err != nil {
				return err
			}
		}
		n := min(x.rest, c.have-c.from)
		c.from += n
		x.rest -= n
	}
}

// Respond begins the answer with a header block (AppendStatus, AppendField,
// AppendEnd), which is copied; failed says that the application failed and the
// worker answers for it. The block leaves with what is written behind it, at
// the next Flush or End at the latest.
func (x *Exchange) Respond(status int, block []byte, failed bool) error {
	switch {
	case x.err != nil:
		return x.err
	case x.answer != unanswered:
		return fmt.Errorf("respond twice: %w", ErrOver)
	case status < 200 || status > 599:
		return fmt.Errorf("respond with status %d, want 200 to 599", status)
	case len(block) > MaxHeaderBlock:
		return fmt.Errorf("header block of %d bytes, at most %d", len(block), MaxHeaderBlock)
	}
	x.answer = answering
	x.frame(Header{Type: Response, Aux: uint16(status)})
	if failed {
		x.head.Flags = FlagFailed
	}
	x.out = binary.LittleEndian.AppendUint16(x.out, uint16(len(block)))
	x.out = binary.LittleEndian.AppendUint16(x.out, Echo(x.number))
	x.out = append(x.out, block...)
	return nil
}

func (x *Exchange) frame(h Header) {
	x.head = h
	x.out = append(x.out[:0], 0, 0, 0, 0, 0, 0, 0, 0)
}

// writable says whether more of the answer's body can be written, and begins a
// frame for it when there is none.
func (x *Exchange) writable() error {
	if x.err != nil {
		return x.err
	}
	if x.answer != answering {
		return fmt.Errorf("write outside of an answer: %w", ErrOver)
	}
	if len(x.out) == 0 {
		x.frame(Header{Type: Data})
	}
	return nil
}

// Write adds to the answer's body. What is small is kept until there is more
// of it, or until Flush or End. An error wraps ErrGone when nobody wants the
// answer any more.
func (x *Exchange) Write(p []byte) (int, error) {
	if err := x.writable(); err != nil {
		return 0, err
	}
	if len(x.out)+len(p) <= writeRoom {
		x.out = append(x.out, p...)
		return len(p), nil
	}
	if err := x.send(p, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush sends what Write and Respond have kept.
func (x *Exchange) Flush() error {
	if err := x.writable(); err != nil {
		return err
	}
	if x.head.Type == Data && len(x.out) == HeaderLen {
		return nil
	}
	return x.send(nil, false)
}

// End ends the answer, with p as the last part of its body.
func (x *Exchange) End(p []byte) error {
	if err := x.writable(); err != nil {
		return err
	}
	x.answer = answered
	if len(x.out)+len(p) <= smallEnd {
		x.out = append(x.out, p...)
		p = nil
	}
	return x.send(p, true)
}

// Answered reports whether the answer has ended, by End or by Cut.
func (x *Exchange) Answered() bool { return x.answer == answered }

// send sends the current frame with p behind what it holds.
func (x *Exchange) send(p []byte, last bool) error {
	for {
		n := min(len(p), MaxPayload-(len(x.out)-HeaderLen))
		x.close(n, last && n == len(p))
		if x.err = x.c.write(x.out, p[:n]); x.err != nil {
			return x.err
		}
		x.out = x.out[:0]
		if p = p[n:]; len(p) == 0 {
			return nil
		}
		x.frame(Header{Type: Data})
	}
}

// close completes the header of the current frame, behind which n bytes will
// be sent.
func (x *Exchange) close(n int, last bool) {
	x.head.Length = uint32(len(x.out) - HeaderLen + n)
	if last {
		x.head.Flags |= FlagLast
	}
	PutHeader(x.out, x.head)
}

// Cut ends the answer, incomplete; before Respond, there is none. What was
// written is sent.
func (x *Exchange) Cut(failed bool) error {
	if x.err != nil {
		return x.err
	}
	if x.answer == answered {
		return fmt.Errorf("cut: %w", ErrOver)
	}
	switch {
	case x.head.Type == Data && len(x.out) == HeaderLen:
		x.out = x.out[:0]
	case len(x.out) > 0:
		x.close(0, false)
	}
	x.answer = answered
	h := Header{Type: Cut, Aux: Echo(x.number)}
	if failed {
		h.Flags = FlagFailed
	}
	return x.control(h, nil)
}

// control sends a frame, and what is kept before it, at once.
func (x *Exchange) control(h Header, payload []byte) error {
	at := len(x.out)
	x.out = append(x.out, 0, 0, 0, 0, 0, 0, 0, 0)
	h.Length = uint32(len(payload))
	PutHeader(x.out[at:], h)
	x.out = append(x.out, payload...)
	x.err = x.c.write(x.out, nil)
	x.out = x.out[:0]
	return x.err
}

// withdraw says that the exchange was taken back in time.
func (x *Exchange) withdraw() {
	var number [8]byte
	binary.LittleEndian.PutUint64(number[:], x.number)
	x.answer = answered
	_ = x.control(Header{Type: Withdrawn}, number[:])
}

// Watch has gone called, once and in another goroutine, when the client leaves
// before the exchange ends, or just when it ends. gone must not block. An
// exchange that is over within milliseconds costs nothing but a timer by it.
// Watch is called at most once for an exchange.
func (x *Exchange) Watch(gone func()) {
	x.watch = x.c.w.watcher.watch(x.c.fd, gone)
}

func (x *Exchange) unwatch() {
	if x.watch != nil {
		x.watch.stop()
		x.watch = nil
	}
}
