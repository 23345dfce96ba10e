package fcgi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errProtocol is wrapped by what is wrong with a peer that breaks FastCGI.
var errProtocol = errors.New("fastcgi protocol broken")

const (
	readBuffer   = 80 << 10 // a body of 64 KiB, its records and its parameters come with one read
	maxGetValues = 1 << 10  // the questions that exist take 51 bytes
)

// readBuffers lends a buffer to a reader while there is something to read, so
// that an idle connection holds none.
var readBuffers = sync.Pool{New: func() any { return new([readBuffer]byte) }}

// A conn is one connection of a web server.
type conn struct {
	srv *Server
	nc  net.Conn
	raw syscall.RawConn

	doubted atomic.Bool // the rechecker has it

	// The reader's own: where it stands in the stream. What a read brought is
	// consumed whole, so nothing but this is kept between two reads.
	head    [HeaderLen]byte // of a record, as far as it has come
	headLen uint8
	rec     header
	left    int      // of the record's content
	pad     int      // of its padding
	cur     *Request // whose content it is; nil: to be discarded
	small   []byte   // content of a record that is handled whole
	ready   []*Request
	sawData bool

	gaveUp    bool      // what is to come was too slow, and nobody waits for it any more
	unstarted int       // requests that have begun to arrive and were not started
	clock     clock     // of what is still to come of them, and
	waiting   time.Time // since when it runs; zero: it stands
	alarm     *time.Timer
	room      chan struct{} // unless nil: gives back a place among the listener's connections

	grace time.Time // the end of the last moment that is given when the server stops
	last  bool      // that is over: what is there is read, and then the connection ends
	err   error

	outbox outbox

	// mu guards the active requests, all that is marked so in Request, and what
	// follows. Nothing blocks under it. Where both are taken, Server.mu comes after.
	mu      sync.Mutex
	active  []*Request
	ending  int       // requests that have left active, and whose end is being written
	mux     bool      // several requests at once have been seen or announced
	paused  *Request  // its body is full: the connection is left unread
	closing bool      // to be closed when the last request has ended
	unread  bool      // a request has ended before all that belongs to it had come
	linger  time.Time // unless zero: closed for writing; until then, what still comes is discarded
	killed  bool      // to be closed, whatever is going on
	broken  error     // why nothing can be written any more
	asked   time.Time // when its last request began; before the first, when it was accepted
	evicted bool      // to be closed when it is idle: others want its place
}

func newConn(s *Server, nc net.Conn) (*conn, error) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("connection of type %T: want a Unix or TCP one", nc)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	c := &conn{srv: s, nc: nc, raw: raw, asked: time.Now()}
	c.outbox.sending = c.send
	return c, nil
}

// serve reads the connection until it ends. It stays inside one call of
// raw.Read for all its life: the poller's edges are neither lost nor asked for
// twice, and a wait costs no read that only says EAGAIN.
func (c *conn) serve() {
	if c.srv.stopping.Load() {
		c.poke()
	}
	for {
		err := c.raw.Read(c.readable)
		if c.err != nil || err == nil {
			break
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			c.err = err
			break
		}
		// Poked, by stop, by a body that has room again, or by the clock; or a grace is over.
		if c.expired() {
			break
		}
	}
	c.unwait(0)
	if errors.Is(c.err, errProtocol) || errors.Is(c.err, ErrSlow) {
		c.srv.logger().Warn("connection closed", "client", c.nc.RemoteAddr().String(), "cause", c.err)
	}
	c.nc.Close()
	c.mu.Lock()
	for _, r := range c.active {
		r.leaveLocked()
		r.started = r.started || r.longForLocked()
	}
	c.active = slices.DeleteFunc(c.active, func(r *Request) bool { return !r.started })
	c.mu.Unlock()
	for _, r := range c.ready {
		if c.srv.BodyMemory > 0 {
			c.srv.run(r)
		}
	}
	c.srv.mu.Lock()
	delete(c.srv.conns, c)
	c.srv.mu.Unlock()
	if c.room != nil {
		<-c.room
	}
}

// wait runs the clock, when the connection has no more to give for now but has
// begun something: a request that can't be started yet, or a record.
func (c *conn) wait() {
	limit := c.srv.PeerTimeout
	if limit == 0 || c.gaveUp || !c.waiting.IsZero() {
		return
	}
	if c.unstarted == 0 && c.headLen == 0 && (c.left == 0 && c.pad == 0 || c.cur != nil) {
		c.clock = clock{} // what comes next begins anew
		return
	}
	c.waiting = time.Now()
	if c.alarm == nil {
		c.alarm = time.AfterFunc(c.clock.left(limit), c.poke)
	} else {
		c.alarm.Reset(c.clock.left(limit))
	}
}

// unwait stops the clock, because n bytes have come.
func (c *conn) unwait(n int) {
	if c.waiting.IsZero() {
		return
	}
	c.alarm.Stop()
	c.clock.wait(time.Since(c.waiting), n)
	c.waiting = time.Time{}
}

// tooSlow gives up what has not arrived in time: its requests are handed to the
// Handler as Slow, and the connection ends behind them.
func (c *conn) tooSlow() (over bool) {
	c.mu.Lock()
	var slow []*Request
	for _, r := range c.active {
		if !r.started {
			r.slow, r.started, r.stdinDone = true, true, false
			slow = append(slow, r)
			if c.cur == r {
				c.cur = nil
			}
		}
	}
	c.closing, c.unread = true, true
	none := c.quietLocked()
	c.mu.Unlock()
	c.gaveUp, c.unstarted = true, 0
	clear(c.ready)
	c.ready = c.ready[:0]
	if none {
		c.err = c.clock.slow("sent", c.srv.PeerTimeout)
	}
	for _, r := range slow {
		c.srv.run(r)
	}
	return none
}

// expired decides after a deadline whether the connection is over, and sets
// the next one.
func (c *conn) expired() (over bool) {
	// Before anything is looked at: a poke that comes later than this is not lost.
	c.nc.SetReadDeadline(time.Time{})
	if !c.waiting.IsZero() {
		c.unwait(0)
		if c.clock.left(c.srv.PeerTimeout) <= 0 {
			return c.tooSlow()
		}
		c.wait()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.killed:
		return true
	case !c.linger.IsZero():
		c.nc.SetReadDeadline(c.linger)
		return !time.Now().Before(c.linger)
	case (c.srv.stopping.Load() || c.evicted) && c.quietLocked():
		// What the client has sent already is read and answered; one that has
		// only connected yet, or is in the middle of a record, is given the time to ask.
		now := time.Now()
		wait := time.Millisecond
		if !c.sawData || c.headLen > 0 || c.left > 0 || c.pad > 0 {
			wait = firstRequestGrace
		}
		if end := now.Add(wait); c.grace.IsZero() || end.Before(c.grace) {
			c.grace = end
		}
		if c.last = !now.Before(c.grace); !c.last { // or it was a poke, which comes any number of times
			c.nc.SetReadDeadline(c.grace)
		}
	}
	return false
}

// idleFor is how long the connection has had no request, but for the time that the last took; 0 if it has one.
func (c *conn) idleFor(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.evicted || !c.quietLocked() {
		return 0
	}
	return now.Sub(c.asked)
}

// evict has the connection closed as soon as it is idle.
func (c *conn) evict() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.evicted = true
	c.poke()
}

// quietLocked reports whether no request is under way. mu is held.
func (c *conn) quietLocked() bool { return len(c.active) == 0 && c.ending == 0 }

// poke makes the reader look up from its wait.
func (c *conn) poke() { c.nc.SetReadDeadline(time.Unix(1, 0)) }

// kill has the connection closed, by its reader: net's Close waits until the
// reader is out of raw.Read, and would wait for ever when the reader calls it there.
func (c *conn) kill() {
	c.mu.Lock()
	c.killLocked()
	c.mu.Unlock()
}

func (c *conn) killLocked() {
	c.killed = true
	c.nc.SetDeadline(time.Unix(1, 0)) // for writing as well: the reader may be in a write
}

// over reports whether the reader is to stop while there is still something
// to read, and whether it is to leave it unread for now.
func (c *conn) over() (over, paused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.killed || !c.linger.IsZero() && !time.Now().Before(c.linger), c.paused != nil
}

// readable reads what is there. It reports true when the connection has ended,
// with the reason in c.err, and false when it is to wait for more.
func (c *conn) readable(fd uintptr) (done bool) {
	buf := readBuffers.Get().(*[readBuffer]byte)
	defer readBuffers.Put(buf)
	for {
		over, paused := c.over()
		if over {
			c.err = net.ErrClosed
			return true
		}
		if paused {
			c.startReady(true)
			if hungUp(int(fd)) {
				c.err = io.EOF
				return true
			}
			return false
		}
		n, errno := read(fd, buf[:])
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			c.startReady(true)
			c.wait()
			return c.last && c.quiet()
		case errno != 0:
			c.err = fmt.Errorf("read from the web server: %w", errno)
			return true
		case n == 0:
			c.err = io.EOF
			return true
		}
		c.unwait(n)
		first := !c.sawData
		c.sawData = true
		if err := c.consume(buf[:n]); err != nil {
			c.err = err
			return true
		}
		drained := n < len(buf)
		c.startReady(drained)
		// A connection that waited in the backlog is likelier to have been left
		// meanwhile than one that is kept: its first request is worth the read.
		if drained && !first && !c.last {
			c.srv.doubt(c)
			c.wait()
			return false
		}
	}
}

func (c *conn) quiet() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.quietLocked()
}

// hungUp reports whether the peer has closed, without reading what it sent before.
func hungUp(fd int) bool {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p[:], 0)
	return err == nil && n == 1 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}

// consume takes all of b, which may begin and end anywhere in a record.
func (c *conn) consume(b []byte) error {
	for {
		if c.left == 0 && c.pad == 0 {
			if len(b) == 0 {
				return nil
			}
			n := copy(c.head[c.headLen:], b)
			c.headLen += uint8(n)
			b = b[n:]
			if c.headLen < HeaderLen {
				return nil
			}
			c.headLen = 0
			if err := c.begin(parseHeader(&c.head)); err != nil {
				return err
			}
		}
		n := min(c.left, len(b))
		if n > 0 {
			c.content(b[:n])
			c.left -= n
			b = b[n:]
		}
		if c.left > 0 {
			return nil
		}
		p := min(c.pad, len(b))
		c.pad -= p
		b = b[p:]
		if c.pad > 0 {
			return nil
		}
		if err := c.end(); err != nil {
			return err
		}
	}
}

// begin starts a record: what it may be, and whose it is.
func (c *conn) begin(h header) error {
	if h.version != version1 {
		return fmt.Errorf("%w: record of version %d, want 1", errProtocol, h.version)
	}
	c.rec, c.left, c.pad, c.cur = h, int(h.length), int(h.padding), nil
	c.small = c.small[:0]
	switch h.typ {
	case typeParams, typeStdin:
		if h.id == 0 {
			return fmt.Errorf("%w: %v for request 0", errProtocol, h.typ)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		r := c.find(h.id)
		if r == nil || r.slow {
			return nil // ended already, or as good as: the specification has us ignore it (section 3.3)
		}
		if h.typ == typeParams && r.paramsDone {
			return fmt.Errorf("%w: PARAMS for request %d after their end", errProtocol, h.id)
		}
		if h.typ == typeStdin && (r.stdinDone || r.role == RoleAuthorizer) {
			return nil
		}
		if h.typ == typeStdin && !r.paramsDone {
			return fmt.Errorf("%w: STDIN for request %d before the end of its PARAMS", errProtocol, h.id)
		}
		c.cur = r
	case typeBeginRequest:
		if h.id == 0 {
			return fmt.Errorf("%w: BEGIN_REQUEST for request 0", errProtocol)
		}
		if h.length != 8 {
			return fmt.Errorf("%w: BEGIN_REQUEST of %d bytes, want 8", errProtocol, h.length)
		}
	case typeAbortRequest, typeData:
	case typeGetValues:
		if h.id != 0 {
			return fmt.Errorf("%w: GET_VALUES for request %d, want 0", errProtocol, h.id)
		}
		if h.length > maxGetValues {
			return fmt.Errorf("%w: GET_VALUES of %d bytes, at most %d", errProtocol, h.length, maxGetValues)
		}
	default:
		if h.id != 0 {
			return fmt.Errorf("%w: %v for request %d", errProtocol, h.typ, h.id)
		}
	}
	return nil
}

// content takes a part of the current record's content.
func (c *conn) content(b []byte) {
	switch c.rec.typ {
	case typeParams:
		if r := c.cur; r != nil && !r.tooLarge {
			if len(r.params)+len(b) > c.srv.maxParams() {
				r.tooLarge = true
				r.params = r.params[:0]
				return
			}
			r.params = append(r.params, b...)
		}
	case typeStdin:
		if c.cur != nil {
			c.mu.Lock()
			err := c.cur.storeLocked(b)
			c.mu.Unlock()
			if err != nil {
				c.srv.logger().Warn("body not kept in a file", "client", c.nc.RemoteAddr().String(), "cause", err, "next", "it is sent to its worker as it comes")
			}
		}
	case typeBeginRequest, typeGetValues:
		c.small = append(c.small, b...)
	default: // discarded
	}
}

// end handles a record that is there whole.
func (c *conn) end() error {
	h := c.rec
	switch h.typ {
	case typeParams:
		if r := c.cur; r != nil && h.length == 0 {
			return c.paramsEnd(r)
		}
	case typeStdin:
		if r := c.cur; r != nil && h.length == 0 {
			// With the lock, a Handler at work may end, and r belong to
			// another connection: it is not looked at again.
			c.mu.Lock()
			r.stdinDone = true
			r.wakeLocked()
			c.mu.Unlock()
		}
	case typeBeginRequest:
		return c.beginRequest(h.id, Role(binary.BigEndian.Uint16(c.small)), c.small[2]&flagKeep != 0)
	case typeAbortRequest:
		c.abort(h.id)
	case typeGetValues:
		return c.getValues()
	case typeData: // of the Filter role, which nobody here plays
	default: // a management record, as begin has checked
		b := appendHeader(nil, typeUnknownType, 0, 8)
		_ = c.write(append(b, byte(h.typ), 0, 0, 0, 0, 0, 0, 0), reading)
	}
	return nil
}

func (c *conn) find(id uint16) *Request {
	for _, r := range c.active {
		if r.id == id {
			return r
		}
	}
	return nil
}

func (c *conn) beginRequest(id uint16, role Role, keep bool) error {
	if role != RoleResponder && role != RoleAuthorizer {
		c.refuse(id, keep, StatusUnknownRole)
		return nil
	}
	c.mu.Lock()
	if c.find(id) != nil {
		c.mu.Unlock()
		return fmt.Errorf("%w: BEGIN_REQUEST for request %d, which has not ended", errProtocol, id)
	}
	if len(c.active) >= c.srv.maxRequests() {
		c.mu.Unlock()
		c.refuse(id, keep, StatusOverloaded)
		return nil
	}
	if !c.linger.IsZero() || c.killed || c.gaveUp {
		c.mu.Unlock()
		return nil // it could not be answered, or nobody would wait for it
	}
	if id != 1 || len(c.active) > 0 {
		c.mux = true
	}
	r := newRequest(c, id, role, keep)
	c.asked = r.received
	c.active = append(c.active, r)
	c.mu.Unlock()
	c.unstarted++
	return nil
}

// refuse ends a request that has only just begun.
func (c *conn) refuse(id uint16, keep bool, status ProtocolStatus) {
	_ = c.write(appendEnd(nil, id, 0, status), reading)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !keep {
		c.closing, c.unread = true, true
	}
	c.settleLocked()
}

func (c *conn) paramsEnd(r *Request) error {
	if err := CheckParams(r.params); err != nil && !r.tooLarge {
		return fmt.Errorf("%w: PARAMS of request %d: %w", errProtocol, r.id, err)
	}
	c.mu.Lock()
	r.paramsDone = true
	if r.role == RoleAuthorizer {
		r.stdinDone = true // an Authorizer gets no body (section 6.3)
	}
	c.mu.Unlock()
	c.ready = append(c.ready, r)
	return nil
}

// startReady starts the requests that are there whole, or as much of them as is
// worth waiting for; with drained, when the connection has no more to give for
// now, also those whose body is on its way.
func (c *conn) startReady(drained bool) {
	if len(c.ready) == 0 {
		return
	}
	kept := c.ready[:0]
	for _, r := range c.ready {
		c.mu.Lock()
		over := r.finished // it was aborted
		start := !over && (r.stdinDone || r.tooLarge || r.gone || len(r.in) >= readBuffer && !r.awaitedLocked() || drained && !r.comingLocked())
		r.started = start
		c.mu.Unlock()
		if start {
			c.unstarted--
			c.srv.run(r)
		} else if !over {
			kept = append(kept, r)
		}
	}
	clear(c.ready[len(kept):])
	c.ready = kept
}

// abort is ABORT_REQUEST (section 5.4): the Handler is told, and ends the
// request; one that never started ends here.
func (c *conn) abort(id uint16) {
	c.mu.Lock()
	r := c.find(id)
	if r == nil {
		c.mu.Unlock()
		return
	}
	r.leaveLocked()
	dropped := !r.started && !r.longForLocked() // else startReady sees to it
	c.mu.Unlock()
	if dropped {
		c.unstarted--
		_ = r.endAs(0, reading)
	}
}

// getValues answers the questions asked, and no others (section 4.1).
func (c *conn) getValues() error {
	answer := make([]byte, HeaderLen, 128)
	for rest := c.small; len(rest) > 0; {
		var name []byte
		var err error
		if name, _, rest, err = NextParam(rest); err != nil {
			return fmt.Errorf("%w: GET_VALUES: %w", errProtocol, err)
		}
		switch string(name) {
		case "FCGI_MAX_CONNS":
			answer = AppendParam(answer, "FCGI_MAX_CONNS", "65535")
		case "FCGI_MAX_REQS":
			answer = AppendParam(answer, "FCGI_MAX_REQS", strconv.Itoa(c.srv.maxRequests()))
		case "FCGI_MPXS_CONNS":
			answer = AppendParam(answer, "FCGI_MPXS_CONNS", "1")
			c.mu.Lock()
			c.mux = true
			c.mu.Unlock()
		}
	}
	putHeader(answer, typeGetValuesResult, 0, len(answer)-HeaderLen)
	_ = c.write(answer, reading)
	return nil
}

// remove takes r, which is about to end, off the connection. From here on its
// id may come again; the connection stays open until settle.
func (c *conn) remove(r *Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, a := range c.active {
		if a == r {
			n := len(c.active) - 1
			c.active[i] = c.active[n]
			c.active[n] = nil
			c.active = c.active[:n]
			break
		}
	}
	c.ending++
	r.finished = true
	r.watcher = nil
	if c.paused == r {
		c.paused = nil
		c.poke() // what is left of its body must be read off, and discarded
	}
	c.closing = c.closing || !r.keep
	// An Authorizer's empty STDIN may be on its way, though nobody asked for it.
	c.unread = c.unread || !r.stdinDone || r.role == RoleAuthorizer
}

// settle follows remove when the request's end has been written.
func (c *conn) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ending--
	c.settleLocked()
}

// settleLocked closes the connection behind its last request. Where something
// of a request is still arriving, that is read off first: a close with bytes
// unread is a reset, which may overtake the answer.
func (c *conn) settleLocked() {
	switch {
	case !c.quietLocked() || c.killed:
	case c.closing && !c.unread:
		c.killLocked()
	case c.closing && c.linger.IsZero():
		if cw, ok := c.nc.(interface{ CloseWrite() error }); ok {
			_ = cw.CloseWrite()
		}
		c.linger = time.Now().Add(lingerTime)
		c.nc.SetReadDeadline(c.linger)
	case c.srv.stopping.Load() || c.evicted:
		c.poke() // the reader sees to the end
	}
}
