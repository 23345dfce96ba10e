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
	// mu is held while whole records are written, which is aheadAfter at the most. It
	// is the one lock that is held over I/O: what it orders is the I/O.
	mu     sync.Mutex
	err    error // why nothing can be written any more
	behind *behind
	noFile bool // there was no room for one: none is tried until an answer has ended

	// Of who holds mu, but of the flusher while there is one.
	out     []byte             // what send writes next
	outErr  error              // why it can't
	trying  bool               // the rest will be kept
	blocked time.Time          // since when it waits for room; zero: it does not
	moved   int                // bytes since the clock was told
	taking  clock              // of the client
	sending func(uintptr) bool // c.send, made once
}

// behind is what has been kept of records, while there is any.
type behind struct {
	hold          hold
	memory        int          // bytes of it that are not in a file, those included that are being written
	kept, written int64        // bytes, in all
	change        sync.Cond    // there is more written, or an error; of outbox.mu
	holding       atomic.Int32 // who waits for room, and has something that others may want
}

const (
	// aheadAfter is how long a client may take to take records before they are kept.
	// Most take them at once, and save the copy and the second goroutine.
	aheadAfter = 10 * time.Millisecond
	// shares is how many times AnswerBuffer all the answers of a Server may take.
	shares = 64
)

// A writer is who writes, and so how long it waits.
type writer uint8

const (
	working writer = iota // a request that has more to say: until the records are written, or kept within bounds
	ending                // a request that ends: until all is written, which is kept meanwhile, bounds or not
	reading               // the connection's reader: as working, but it keeps nothing from others meanwhile
)

// write sends whole records. After an error nothing can follow that a peer could make
// sense of, so the connection is closed.
func (c *conn) write(b []byte, who writer) error {
	o := &c.outbox
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.behind != nil && o.err == nil {
		held, err := c.hold(b, who == ending)
		switch {
		case err != nil:
			o.noFile = true
			o.mu.Unlock() // the log may be slow
			c.srv.logger().Warn("answer not kept in a file", "client", c.nc.RemoteAddr().String(), "cause", err, "next", "its worker waits until the client takes it")
			o.mu.Lock()
		case held && who == ending:
			return c.awaitWritten()
		case held:
			return nil
		default:
			o.awaitChange(who == working)
		}
	}
	if o.err != nil {
		return o.err
	}
	o.out, o.trying = b, true
	if err := c.push(); err != nil {
		return c.fail(err)
	}
	rest := o.out
	o.out, o.trying = nil, false
	if len(rest) == 0 {
		o.taking = clock{}
		o.noFile = o.noFile && who != ending
		return nil
	}
	o.behind = new(behind)
	o.behind.change.L = &o.mu
	c.keep(rest)
	c.srv.wg.Go(c.flush) // ends with what was kept, or with the connection
	if who == ending {
		return c.awaitWritten()
	}
	return nil
}

// drain waits until all is written that has been kept by now.
func (c *conn) drain() {
	c.outbox.mu.Lock()
	defer c.outbox.mu.Unlock()
	_ = c.awaitWritten() // the connection ends in any case
}

// awaitWritten waits, at the end of an answer, until all is written that has been kept by now; others may
// keep more meanwhile. outbox.mu is held.
func (c *conn) awaitWritten() error {
	o := &c.outbox
	o.noFile = false
	if b := o.behind; b != nil {
		for mark := b.kept; b.written < mark && o.err == nil; {
			o.awaitChange(false)
		}
	}
	return o.err
}

// awaitChange waits for a piece to be written. holds says that meanwhile something
// is kept from others. mu is held.
func (o *outbox) awaitChange(holds bool) {
	b := o.behind
	if holds {
		b.holding.Add(1)
		defer b.holding.Add(-1)
	}
	b.change.Wait()
}

// hold has p written by the flusher, and reports whether it has found room for it, in memory or in the file;
// with must, it has in any case. After an error, that of the file, it is to be tried again. outbox.mu is held.
func (c *conn) hold(p []byte, must bool) (held bool, err error) {
	b := c.outbox.behind
	h := &b.hold
	inFile := h.waiting() > int64(h.memory())
	lends := c.srv.lends(b.memory, len(p))
	switch {
	case (inFile || !lends) && !c.outbox.noFile && h.spills(len(p), c.srv.AnswerFile):
		if err := h.spill(c.srv.spoolDir(), p); err != nil {
			return false, fmt.Errorf("keep an answer in a file: %w", err)
		}
		b.kept += int64(len(p))
	case lends || must:
		c.keep(p)
	default:
		return false, nil
	}
	return true, nil
}

// keep copies p for the flusher. outbox.mu is held.
func (c *conn) keep(p []byte) {
	b := c.outbox.behind
	b.hold.keep(p)
	b.kept += int64(len(p))
	b.memory += len(p)
	c.srv.held.Add(int64(len(p)))
}

// lends reports whether an answer that has size bytes of them may keep n more.
func (s *Server) lends(size, n int) bool {
	return size+n <= s.AnswerBuffer && s.held.Load()+int64(n) <= int64(shares*s.AnswerBuffer)
}

// flush writes what was kept until there is no more.
func (c *conn) flush() {
	o := &c.outbox
	o.mu.Lock()
	defer o.mu.Unlock()
	b := o.behind
	for p, f, at := b.hold.pop(); p != nil; p, f, at = b.hold.pop() {
		o.mu.Unlock()
		err := c.writePiece(p, f, at)
		o.mu.Lock()
		b.written += int64(p.n)
		freed := 0
		if f == nil {
			freed = p.n
		}
		pieces.Put(p)
		if err != nil {
			_ = c.fail(err)
			b.hold.drop()
			b.written, freed = b.kept, b.memory
		}
		b.memory -= freed
		c.srv.held.Add(int64(-freed))
		b.change.Broadcast()
	}
	b.hold.drop()
	o.out, o.behind, o.taking = nil, nil, clock{}
}

// writePiece writes one piece, the content of which is in f at at, unless f is nil.
func (c *conn) writePiece(p *piece, f *os.File, at int64) error {
	if f != nil {
		if _, err := f.ReadAt(p.b[:p.n], at); err != nil {
			return fmt.Errorf("read what was kept of an answer: %w", err)
		}
	}
	c.outbox.out = p.b[:p.n]
	return c.push()
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

// push writes what is in out: all of it, or, where trying is set, what the client
// takes within aheadAfter.
func (c *conn) push() error {
	o := &c.outbox
	for {
		o.outErr = nil
		err := c.raw.Write(o.sending)
		waited, blocked := time.Duration(0), !o.blocked.IsZero()
		if blocked {
			waited = time.Since(o.blocked)
			o.blocked = time.Time{}
			if !c.patience(time.Time{}) {
				return net.ErrClosed
			}
		}
		o.taking.wait(waited, o.moved)
		o.moved = 0
		switch {
		case err == nil:
			return o.outErr
		case !blocked || !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case o.trying:
			return nil
		}
		if err := c.srv.judge(&o.taking, "took", o.behind.holding.Load() > 0); err != nil {
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
			o.moved += n
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
	wait := aheadAfter
	if !o.trying {
		wait = c.srv.tick(&o.taking)
	}
	if wait > 0 && !c.patience(o.blocked.Add(wait)) {
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
