package fcgi

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// An outbox is what a connection has to say. Records are written by whom they
// belong to. When the client does not take them at once, they are kept, and a
// goroutine writes them, so that the worker whose answer it is can go on.
type outbox struct {
	// mu is held while whole records are written. It is the one lock that is held
	// over I/O: what it orders is the I/O.
	mu     sync.Mutex
	err    error // why nothing can be written any more
	behind *behind

	// Of who holds mu, but of the flusher while there is one.
	out     []byte             // what send writes next
	outErr  error              // why it can't
	ahead   bool               // whose it is need not wait long
	blocked time.Time          // since when it waits for room; zero: it does not
	moved   int                // bytes since then
	taking  clock              // of the client
	sending func(uintptr) bool // c.send, made once
}

// behind is what has been kept of records, while there is any.
type behind struct {
	pieces  []*piece
	size    int          // bytes that are not written yet
	change  sync.Cond    // size has become less, or there is an error; of outbox.mu
	waiting atomic.Int32 // who wants more room than there is, and has something that others may want
}

// A piece is as much as is written at once of what was kept. It is small: of a Unix
// socket's buffer, nothing is free again before all of a write has been read.
type piece struct {
	b [16 << 10]byte
	n int
}

var pieces = sync.Pool{New: func() any { return new(piece) }}

const (
	// aheadAfter is how long a client may take to take records before they are kept.
	// Most take them at once, and save the copy and the second goroutine.
	aheadAfter = 10 * time.Millisecond
	// shares is how many times AnswerBuffer all the answers of a Server may take.
	shares = 64
)

// write sends whole records. With ahead, it returns as soon as they are written
// or kept, else when they are written, and all before them. After an error nothing
// can follow that a peer could make sense of, so the connection is closed.
func (c *conn) write(b []byte, ahead bool) error {
	o := &c.outbox
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.behind != nil && o.err == nil {
		if ahead && c.srv.lend(o.behind.size, len(b)) {
			o.behind.keep(b)
			return nil
		}
		o.awaitChange(ahead)
	}
	if o.err != nil {
		return o.err
	}
	o.out, o.ahead = b, ahead
	if err := c.push(); err != nil {
		return c.fail(err)
	}
	if len(o.out) == 0 {
		o.taking = clock{}
	} else {
		c.srv.held.Add(int64(len(o.out))) // lent or not: it has to be somewhere
		o.behind = new(behind)
		o.behind.change.L = &o.mu
		o.behind.keep(o.out)
		c.srv.wg.Go(c.flush) // ends with what was kept, or with the connection
	}
	o.out = nil
	return nil
}

// drain waits until all is written that was kept.
func (c *conn) drain() {
	o := &c.outbox
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.behind != nil {
		o.awaitChange(false)
	}
}

// awaitChange waits for a piece to be written. holds says that meanwhile something
// is kept from others. mu is held.
func (o *outbox) awaitChange(holds bool) {
	b := o.behind
	if holds {
		b.waiting.Add(1)
		defer b.waiting.Add(-1)
	}
	b.change.Wait()
}

// lend takes n bytes more for an answer that has size of them, and reports whether
// that is within the bounds.
func (s *Server) lend(size, n int) bool {
	if size+n > s.AnswerBuffer {
		return false
	}
	if s.held.Add(int64(n)) > int64(shares*s.AnswerBuffer) {
		s.held.Add(int64(-n))
		return false
	}
	return true
}

func (b *behind) keep(p []byte) {
	b.size += len(p)
	for len(p) > 0 {
		var last *piece
		if n := len(b.pieces); n > 0 && b.pieces[n-1].n < len(last.b) {
			last = b.pieces[n-1]
		} else {
			last = pieces.Get().(*piece)
			last.n = 0
			b.pieces = append(b.pieces, last)
		}
		n := copy(last.b[last.n:], p)
		last.n += n
		p = p[n:]
	}
}

// flush writes what was kept until there is no more.
func (c *conn) flush() {
	o := &c.outbox
	o.mu.Lock()
	defer o.mu.Unlock()
	b := o.behind
	o.ahead = false
	for len(b.pieces) > 0 {
		p := b.pieces[0]
		b.pieces[0] = nil
		b.pieces = b.pieces[1:]
		o.out = p.b[:p.n]
		o.mu.Unlock()
		err := c.push()
		o.mu.Lock()
		n := p.n
		pieces.Put(p)
		if err != nil {
			_ = c.fail(err)
			n = b.size
			b.pieces = nil
		}
		b.size -= n
		c.srv.held.Add(int64(-n))
		b.change.Broadcast()
	}
	o.out, o.behind, o.taking = nil, nil, clock{}
}

// fail ends the connection, to which nothing can be written any more. outbox.mu is held.
func (c *conn) fail(err error) error {
	o := &c.outbox
	o.err = fmt.Errorf("write to the web server: %w", err)
	o.out = nil
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken == nil {
		c.broken = o.err
	}
	c.killLocked()
	return o.err
}

// push writes what is in out, but for what a client has not taken within aheadAfter
// where ahead is set.
func (c *conn) push() error {
	o := &c.outbox
	for {
		o.outErr = nil
		err := c.raw.Write(o.sending)
		if o.blocked.IsZero() {
			if err == nil {
				err = o.outErr
			}
			return err
		}
		o.taking.wait(time.Since(o.blocked), o.moved)
		o.blocked, o.moved = time.Time{}, 0
		if !c.patience(time.Time{}) {
			return net.ErrClosed
		}
		switch {
		case err == nil:
			return o.outErr
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case o.ahead:
			return nil
		}
		holds := o.behind != nil && o.behind.waiting.Load() > 0
		if err := c.srv.judge(&o.taking, "took", holds); err != nil {
			return err
		}
	}
}

// send runs inside RawConn.Write: it writes what is in out, and reports false
// to wait while the socket is full.
func (c *conn) send(fd uintptr) (done bool) {
	o := &c.outbox
	for len(o.out) > 0 {
		n, errno := write(fd, o.out)
		switch {
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			return !c.block()
		case errno != 0:
			o.outErr = errno
			return true
		default:
			o.out = o.out[n:]
			if !o.blocked.IsZero() {
				o.moved += n
			}
		}
	}
	return true
}

// block begins to wait for a client that takes nothing for now, unless the
// connection ends.
func (c *conn) block() bool {
	o := &c.outbox
	if !o.blocked.IsZero() {
		return true // the deadline stands
	}
	o.blocked = time.Now()
	wait := c.srv.tick(&o.taking)
	if o.ahead {
		wait = aheadAfter
	}
	if wait == 0 {
		return true
	}
	if !c.patience(o.blocked.Add(wait)) {
		o.outErr = net.ErrClosed
		return false
	}
	return true
}

// patience sets until when to wait for room; zero: for ever. It reports false when
// the connection ends, of which the deadline is the sign.
func (c *conn) patience(until time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.killed {
		c.nc.SetWriteDeadline(until)
	}
	return !c.killed
}
