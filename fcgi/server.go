package fcgi

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Server answers the FastCGI requests of any number of listeners. Its
// exported fields are set before Serve and not changed afterwards.
type Server struct {
	// Handler answers one request, in a goroutine of its own. When it returns,
	// the request is over: it is ended if the Handler has not ended it, and
	// may not be used again.
	Handler func(*Request)

	// MaxParams bounds the parameters of one request, in bytes as they are
	// sent; 0 means 256 KiB. A request with more has TooLarge set.
	MaxParams int
	// BodyBuffer is how much of a request's body is held when the Handler does
	// not read it, in bytes; 0 means 128 KiB. Beyond it the connection is
	// left unread, or, where it carries several requests at once, the body goes
	// to an unlinked file in SpoolDir: a slow body never stalls its neighbours.
	BodyBuffer int
	// BodyMemory is how much of a request's body is awaited before the Handler gets the request, in
	// bytes of memory; all bodies together have 64 times as much, beside BodyBuffer of each. 0: what comes at once, or
	// soon. Of a longer body, BodyFile bytes are awaited in an unlinked file in SpoolDir, until
	// less than a tenth of the file system is free; the rest comes when the Handler reads.
	BodyMemory int
	BodyFile   int64
	// AnswerBuffer is how much of an answer is held when the client does not take it,
	// in bytes, beside what the kernel holds, so that the Handler goes on; all
	// answers together have 64 times as much. 0: what one Send brings. Beyond that, AnswerFile bytes of it
	// are held in an unlinked file in SpoolDir, until less than a tenth of the file system is free.
	AnswerBuffer int
	AnswerFile   int64
	// MaxRequests bounds the requests at work at once on one connection; 0
	// means 256. One more is ended with OVERLOADED.
	MaxRequests int
	// PeerTimeout bounds how long a client is waited for without its moving as much as
	// 4 KiB: for parameters, for a body that is read or waited for before the
	// Handler starts, and for room to write to; 0 means no bound. A request
	// that has not arrived by then has Slow set; Read and the writing methods
	// return ErrSlow. A connection without a request may be idle for ever,
	// unless MaxConns is met.
	PeerTimeout time.Duration
	// Hurry, unless nil, reports whether somebody waits for what a Handler has that
	// waits for its client. Then 4 KiB must move in 10 s, if PeerTimeout is longer.
	// It is called about once a second for each such client, and must not block.
	Hurry func() bool
	// MaxConns bounds the connections of one listener, or of several that have the same
	// address; 0 means no bound. Where they are all in use, the next one waits when it is accepted, those behind it in the
	// backlog, and connections that have been idle for all of PeerTimeout make room.
	MaxConns int
	// SpoolDir is where bodies and answers go that do not fit; "" means os.TempDir().
	SpoolDir string
	// Allow, unless nil, says whether a client may connect.
	Allow func(remote net.Addr) bool
	// Logger takes what is worth a line: connections that broke the protocol,
	// accept errors. nil discards it.
	Logger *slog.Logger

	recheck rechecker
	held    atomic.Int64 // bytes of answers in outboxes
	bodies  atomic.Int64 // bytes of bodies in memory, behind what each has in Request.in

	mu        sync.Mutex // guards what follows; nothing that blocks is called under it
	listeners map[net.Listener]*accepting
	conns     map[*conn]struct{}
	most      int                      // conns at once, since Stats was asked for it
	idle      []chan *Request          // runners that wait for a request, last to stop first
	stopping  atomic.Bool              // set under mu
	hasty     atomic.Bool              // no body is awaited any more
	quit      chan struct{}            // closed then, if anybody has served
	rooms     map[string]chan struct{} // by address: has an element for each connection that was accepted there
	closing   bool                     // Close, or a Shutdown out of time: what is accepted now is closed

	// wg counts accept loops, readers, and runners at work. Shutdown waits for it.
	wg sync.WaitGroup
}

// accepting is the Serve of one listener.
type accepting struct {
	retired  bool          // guarded by Server.mu: nobody finds the listener any more, and Serve ends with its backlog
	released chan struct{} // closed when the listener is another's to serve
	left     chan struct{} // closed when Serve has left it
}

// acceptingLocked is what there is, or will be, of the Serve of l. s.mu is held.
func (s *Server) acceptingLocked(l net.Listener) *accepting {
	if s.listeners == nil {
		s.listeners = make(map[net.Listener]*accepting)
	}
	if s.listeners[l] == nil {
		s.listeners[l] = &accepting{released: make(chan struct{}), left: make(chan struct{})}
	}
	return s.listeners[l]
}

// ErrServerClosed is what Serve returns after Shutdown or Close.
var ErrServerClosed = errors.New("fastcgi server closed")

const (
	defaultMaxParams   = 256 << 10
	defaultBodyBuffer  = 128 << 10
	defaultMaxRequests = 256
	parkedRunners      = 64 // idle runners kept; the others end, and their stacks with them

	// firstRequestGrace is how long a connection that has not sent anything
	// may do so once the server stops: its client connected in good faith.
	firstRequestGrace = time.Second
	lingerTime        = 2 * time.Second
	backlogDrain      = 250 * time.Millisecond

	evictedAtOnce = 32 // idle connections, where others want their places
)

func (s *Server) maxParams() int   { return orDefault(s.MaxParams, defaultMaxParams) }
func (s *Server) bodyBuffer() int  { return orDefault(s.BodyBuffer, defaultBodyBuffer) }
func (s *Server) maxRequests() int { return orDefault(s.MaxRequests, defaultMaxRequests) }

func (s *Server) spoolDir() string {
	return cmp.Or(s.SpoolDir, os.TempDir())
}

func orDefault(n, d int) int {
	if n > 0 {
		return n
	}
	return d
}

func (s *Server) logger() *slog.Logger {
	if s.Logger != nil {
		return s.Logger
	}
	return slog.New(slog.DiscardHandler)
}

// A deadlineListener is what net's TCP and Unix listeners are.
type deadlineListener interface {
	net.Listener
	syscall.Conn
	SetDeadline(time.Time) error
}

// Serve accepts from l, a Unix or TCP listener, until Shutdown or Close, and
// then returns ErrServerClosed; it closes l. Errors of accept (no descriptor
// left, most likely) are logged once, and tried again until they end.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.stopping.Load() {
		if a := s.listeners[l]; a != nil {
			delete(s.listeners, l)
			close(a.left)
		}
		s.mu.Unlock()
		return errors.Join(ErrServerClosed, l.Close())
	}
	if s.conns == nil {
		s.conns = make(map[*conn]struct{})
		s.rooms = make(map[string]chan struct{})
	}
	if s.quit == nil {
		s.quit = make(chan struct{})
	}
	a := s.acceptingLocked(l)
	var room chan struct{}
	if s.MaxConns > 0 {
		if room = s.rooms[l.Addr().String()]; room == nil {
			room = make(chan struct{}, s.MaxConns)
			s.rooms[l.Addr().String()] = room
		}
	}
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
		select {
		case <-a.released:
		default:
			l.Close()
		}
		close(a.left)
	}()

	full, leaving := false, false
	delay := time.Duration(0)
	for !leaving || waiting(l) {
		nc, err := l.Accept()
		switch {
		case err == nil:
			if delay > 0 {
				s.logger().Warn("accepting again", "listen", l.Addr().String())
				delay = 0
			}
			got, stays := s.place(a, room, l, &full)
			if !s.open(nc, got) && got != nil {
				<-got
			}
			if !stays {
				return s.drainBacklog(l)
			}
		case s.stopping.Load():
			return s.drainBacklog(l)
		case errors.Is(err, net.ErrClosed):
			return ErrServerClosed
		case isTimeout(err):
			select {
			case <-a.released:
				return ErrServerClosed
			default:
				leaving = s.retired(a, l)
			}
		default:
			if delay == 0 {
				s.logger().Error("accept", "listen", l.Addr().String(), "cause", err, "next", "trying again until it works")
				delay = 5 * time.Millisecond
			}
			time.Sleep(delay)
			delay = min(2*delay, time.Second)
		}
	}
	return ErrServerClosed
}

// place takes a place in room for a connection that was accepted, and waits where there is
// none; full says whether that has been said. When l is released or the server stops first, the connection has none, and with
// the server, it is the last.
func (s *Server) place(a *accepting, room chan struct{}, l net.Listener, full *bool) (got chan struct{}, stays bool) {
	if room == nil {
		return nil, true
	}
	select {
	case room <- struct{}{}:
		*full = false
		return room, true
	default:
	}
	if !*full {
		s.logger().Warn("all connections are in use", "listen", l.Addr().String(), "connections", s.MaxConns, "next", "new ones wait until one ends")
		*full = true
	}
	t := time.NewTicker(clockTick)
	defer t.Stop()
	for {
		select {
		case room <- struct{}{}:
			return room, true
		case <-t.C:
			s.makeRoom(room)
		case <-a.released:
			return nil, true
		case <-s.quit:
			return nil, false
		}
	}
}

// makeRoom closes some of the connections of room that have been idle for all of
// PeerTimeout, the longest ones first: somebody waits for a place.
func (s *Server) makeRoom(room chan struct{}) {
	if s.PeerTimeout == 0 {
		return
	}
	s.mu.Lock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		if c.room == room {
			conns = append(conns, c)
		}
	}
	s.mu.Unlock()
	now := time.Now()
	idle := make(map[*conn]time.Duration, len(conns))
	conns = slices.DeleteFunc(conns, func(c *conn) bool {
		idle[c] = c.idleFor(now)
		return idle[c] < s.PeerTimeout
	})
	slices.SortFunc(conns, func(a, b *conn) int { return cmp.Compare(idle[b], idle[a]) })
	for _, c := range conns[:min(len(conns), evictedAtOnce)] {
		c.evict()
	}
}

// Retire has the Serve of l, which has begun or is about to and which nobody finds any more, take who waits in its
// backlog already, within MaxConns, and return.
func (s *Server) Retire(l net.Listener) {
	dl, ok := l.(deadlineListener)
	if !ok {
		l.Close()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acceptingLocked(l).retired = true
	dl.SetDeadline(time.Unix(1, 0))
}

// Release has the Serve of l, which has begun or is about to, return without closing it: l, and who waits in its
// backlog, is another's to serve once Release has returned, which is when Serve has left it. Connections that it has
// brought stay here. l is a Unix or TCP listener.
func (s *Server) Release(l net.Listener) {
	dl := l.(deadlineListener)
	s.mu.Lock()
	a := s.acceptingLocked(l)
	close(a.released)
	dl.SetDeadline(time.Unix(1, 0))
	s.mu.Unlock()
	<-a.left
	dl.SetDeadline(time.Time{})
}

// retired reports whether l is, which it is told by a deadline, and takes that back.
func (s *Server) retired(a *accepting, l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.retired && !s.stopping.Load() {
		l.(deadlineListener).SetDeadline(time.Time{})
	}
	return a.retired
}

// drainBacklog takes the connections that the kernel has accepted for us
// already: closing the listener would reset them.
func (s *Server) drainBacklog(l net.Listener) error {
	dl, ok := l.(deadlineListener)
	if !ok {
		return ErrServerClosed
	}
	dl.SetDeadline(time.Now().Add(backlogDrain))                                // whoever else has the socket may be first
	for began := time.Now(); time.Since(began) < backlogDrain && waiting(dl); { // new ones might come for ever
		nc, err := dl.Accept()
		if err != nil {
			return ErrServerClosed
		}
		s.open(nc, nil)
	}
	return ErrServerClosed
}

// waiting reports whether somebody waits to be accepted by l, a Unix or TCP listener.
func waiting(l net.Listener) bool {
	sc, ok := l.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	ready := 0
	err = raw.Control(func(fd uintptr) {
		ready, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0) // interrupted or not: it says 0
	})
	return err == nil && ready == 1
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// open starts the reader of a connection, which gives back its place in room,
// unless that is nil, at its end.
func (s *Server) open(nc net.Conn, room chan struct{}) (opened bool) {
	if s.Allow != nil && !s.Allow(nc.RemoteAddr()) {
		s.logger().Warn("connection refused", "client", nc.RemoteAddr().String(), "cause", "not among allowed_clients")
		nc.Close()
		return false
	}
	c, err := newConn(s, nc)
	if err != nil {
		s.logger().Error("connection given up", "cause", err)
		nc.Close()
		return false
	}
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		nc.Close()
		return false
	}
	c.room = room
	s.conns[c] = struct{}{}
	s.most = max(s.most, len(s.conns))
	s.mu.Unlock()
	s.wg.Go(c.serve) // ends when the client leaves, or at Shutdown or Close
	return true
}

// run has the Handler answer r in another goroutine, one that has just ended a
// request if there is one: its stack has the right size.
func (s *Server) run(r *Request) {
	s.mu.Lock()
	if n := len(s.idle); n > 0 {
		ch := s.idle[n-1]
		s.idle = s.idle[:n-1]
		s.mu.Unlock()
		ch <- r
		return
	}
	s.mu.Unlock()
	s.wg.Go(func() { s.runner(r) }) // ends when enough others are parked, or when the server stops
}

func (s *Server) runner(r *Request) {
	ch := make(chan *Request, 1)
	for {
		s.Handler(r)
		r.release()
		s.mu.Lock()
		if s.stopping.Load() || len(s.idle) >= parkedRunners {
			s.mu.Unlock()
			return
		}
		s.idle = append(s.idle, ch)
		s.mu.Unlock()
		if r = <-ch; r == nil {
			return
		}
	}
}

// Shutdown stops the server gently: what is in the listeners' backlogs is
// still accepted, requests at work are answered, connections are closed when
// idle. When ctx ends first, Close does the rest; Shutdown returns ctx's error
// then, and in any case only when no goroutine of the server is left.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }() // ends with the last of them, at Close at the latest
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.closeConns()
		<-done
		return ctx.Err()
	}
}

// Hasten gives the Handler the requests whose bodies are awaited, as far as these have come, and has no body
// awaited any more: for a Handler that has no time, but an answer.
func (s *Server) Hasten() {
	s.hasty.Store(true)
	s.mu.Lock()
	conns := s.connsLocked()
	s.mu.Unlock()
	for _, c := range conns {
		c.poke()
	}
}

// connsLocked lists the open connections.
func (s *Server) connsLocked() []*conn {
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	return conns
}

// Close ends every connection at once and waits for the server's goroutines;
// Handlers at work see their requests' clients gone.
func (s *Server) Close() error {
	s.stop()
	s.closeConns()
	s.wg.Wait()
	return nil
}

func (s *Server) stop() {
	s.mu.Lock()
	if s.quit != nil && !s.stopping.Load() {
		close(s.quit)
	}
	s.stopping.Store(true)
	for _, ch := range s.idle {
		ch <- nil // has room: a parked runner's channel is empty
	}
	s.idle = nil
	for l := range s.listeners {
		if dl, ok := l.(deadlineListener); ok {
			dl.SetDeadline(time.Unix(1, 0)) // Serve looks up, and drains the backlog
		} else {
			l.Close()
		}
	}
	conns := s.connsLocked()
	s.mu.Unlock()
	for _, c := range conns {
		c.poke()
	}
}

// closeConns closes what is open, and what the accept loops still bring.
func (s *Server) closeConns() {
	s.mu.Lock()
	conns := s.connsLocked()
	s.closing = true
	s.mu.Unlock()
	for _, c := range conns {
		c.kill()
	}
}

// Stats is a view of a Server at one moment.
type Stats struct {
	Conns int // open connections
	Most  int // the most that there have been at once since the last call of Stats
}

// Stats counts what is open now.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Conns: len(s.conns), Most: max(s.most, len(s.conns))}
	s.most = len(s.conns)
	return st
}
