package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A SlotState is where a slot stands in its life.
type SlotState uint8

// The states of a slot. Only a greeted one may be given an exchange: a worker
// that is stuck in an abandoned exchange still has connections accepted, and
// even bytes buffered, by the kernel on its behalf.
const (
	SlotClosed    SlotState = iota // no connection
	SlotDialled                    // connected; the greeting has not come: the worker may still be at work for somebody who left
	SlotGreeted                    // idle
	SlotSent                       // holds an exchange; whether the worker has begun it is not known
	SlotBegun                      // the worker has begun it
	SlotAnswering                  // the header block has come
	SlotAbandoned                  // given up by the supervisor, its connection closed; the worker may still be at work
)

var slotStates = [...]string{
	SlotClosed: "closed", SlotDialled: "dialled", SlotGreeted: "greeted", SlotSent: "sent",
	SlotBegun: "begun", SlotAnswering: "answering", SlotAbandoned: "abandoned",
}

func (s SlotState) String() string { return slotStates[s] }

// slotMoves lists every step a slot may take.
var slotMoves = [...][]SlotState{
	SlotClosed:    {SlotDialled},
	SlotDialled:   {SlotGreeted, SlotClosed},
	SlotGreeted:   {SlotSent, SlotClosed},
	SlotSent:      {SlotBegun, SlotAnswering, SlotGreeted, SlotAbandoned, SlotClosed}, // greeted: it was withdrawn, or cut with no answer
	SlotBegun:     {SlotAnswering, SlotGreeted, SlotAbandoned, SlotClosed},
	SlotAnswering: {SlotGreeted, SlotAbandoned, SlotClosed},
	SlotAbandoned: {SlotDialled, SlotClosed},
}

// Errors of a slot. ErrProtocol is the fourth.
var (
	// ErrAborted: Abort was called. The slot is to be abandoned.
	ErrAborted = errors.New("exchange aborted")
	// ErrDeadline: the worker did not answer in time. The slot is to be abandoned.
	ErrDeadline = errors.New("no answer from the worker in time")
	// ErrLost: the worker is dead, or has closed the connection. Only Begun
	// tells, once the process is reaped, whether the exchange had started.
	ErrLost = errors.New("worker lost")
)

// A Framer writes, to the eight bytes before n bytes of an answer, what the
// front's protocol has there. The frames of an answer have eight bytes before
// their content for that reason: it travels from socket to socket in place.
type Framer interface {
	Frame(head []byte, n int)
}

const (
	// maxPiece is the most content that one Frame call may cover: what one
	// FastCGI record carries.
	maxPiece = 1<<16 - 1
	// tailRoom is what stays free behind an answer for its sender to append to.
	tailRoom = 64
	// firstRead is so much that an answer with a body of 64 KiB comes with one read.
	firstRead = HeaderLen + ResponseFixed + MaxHeaderBlock + 4<<10
	bufferLen = firstRead + HeaderLen + tailRoom

	// A large frame's content is read into this many pieces at once.
	pieces   = 4
	largeLen = pieces*(HeaderLen+maxPiece) + tailRoom
)

// A Buffer is the memory that an answer is read into.
type Buffer struct {
	b     [bufferLen]byte
	from  int // b[from:have] has come and was not handed out
	have  int
	large *[largeLen]byte // nil unless there was a frame that takes it
}

var largeBuffers = sync.Pool{New: func() any { return new([largeLen]byte) }}

// Free gives back what the buffer has grown by, and makes it ready for
// another exchange.
func (b *Buffer) Free() {
	if b.large != nil {
		largeBuffers.Put(b.large)
	}
	b.large, b.from, b.have = nil, 0, 0
}

// Bytes is all of the buffer's memory, for another use than an answer's.
func (b *Buffer) Bytes() []byte { return b.b[:] }

// Buffers holds Buffers that nobody uses.
var Buffers = sync.Pool{New: func() any { return new(Buffer) }}

// An Answer is what one Receive brought.
type Answer struct {
	Bytes  []byte // framed by the Framer, to be sent as they are
	Block  []byte // part of Bytes: the header block, in the first Answer of an exchange
	Status int    // in the first Answer
	Body   int    // bytes of the answer's body in Bytes
	Last   bool   // the answer is complete
	Cut    bool   // the answer has ended without being complete
	Failed bool   // the application failed

	// The worker has not begun the exchange, because it was withdrawn, and
	// will not. Nothing else is set.
	Withdrawn bool
}

// A Slot is the supervisor's end of one slot of a worker. One goroutine at a
// time uses it, save Abort and Lose, which any may call, and what is said of
// the second exchange: SendBehind, Open and Withdraw.
type Slot struct {
	index  int
	page   *Page
	state  SlotState
	number uint64 // of the exchange that it holds

	nc    *net.UnixConn
	raw   syscall.RawConn
	ready func(uintptr) bool // s.transfer, made once

	aborted atomic.Bool
	lost    atomic.Bool
	gate    sync.Mutex // held while nc is exchanged, and while Abort and Lose poke it

	// What transfer does next, and what came of it.
	out   []byte // of the request's frame, and
	body  []byte // of its body: still to be written
	in    []byte // to be read into; nil: into parts
	parts [pieces]iovec
	got   int
	err   error

	deadline atomic.Int64 // in ns after epoch; 0: none

	rest     int // of the current frame's content, still to come
	restLast bool

	// The second exchange.
	whole      bool          // the first is all in its frame
	open       atomic.Bool   // that frame is written, and nothing behind it
	behind     atomic.Uint64 // number of what was sent behind it; 0: nothing
	asked      atomic.Uint64 // number that Withdraw was called for last
	salvage    bool          // Lose ends nothing
	stale      uint64        // number of what was withdrawn, and whose WITHDRAWN is still to come; 0: nothing
	left       []byte        // what has come behind an answer
	maxBehind  int           // bytes that the kernel takes whole or not at all
	sendSecond func(uintptr) // s.writeSecond, made once
	second     [2][]byte     // what it writes, and
	secondN    int           // how much it has written
}

// NewSlot makes slot index of a worker, closed, whose page is page.
func NewSlot(index int, page *Page) *Slot {
	s := &Slot{index: index, page: page}
	s.ready, s.sendSecond = s.transfer, s.writeSecond
	return s
}

// State is where the slot stands.
func (s *Slot) State() SlotState { return s.state }

// Number is that of the exchange that the slot holds, or held last.
func (s *Slot) Number() uint64 { return s.number }

// move is the only way a state changes. A step that is not listed is a bug of
// the supervisor: no worker can bring it about.
func (s *Slot) move(to SlotState) {
	for _, t := range slotMoves[s.state] {
		if t == to {
			s.state = to
			return
		}
	}
	panic(fmt.Sprintf("bug: slot %d from %v to %v", s.index, s.state, to))
}

// Connect gives the slot a connection to its worker, which the slot owns from
// now on, and waits for the greeting until deadline (zero: for ever). The
// slot is greeted then, or, with an error, closed.
func (s *Slot) Connect(nc *net.UnixConn, deadline time.Time) error {
	raw, err := nc.SyscallConn()
	if err != nil {
		return errors.Join(err, nc.Close())
	}
	s.move(SlotDialled)
	s.gate.Lock()
	s.nc, s.raw = nc, raw
	s.aborted.Store(false)
	s.gate.Unlock()
	s.rest, s.out, s.body = 0, nil, nil
	s.open.Store(false)
	s.behind.Store(0)
	s.stale, s.left, s.salvage = 0, s.left[:0], false
	if err := raw.Control(func(fd uintptr) {
		room, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF)
		s.maxBehind = min(MaxBehind, room/4)
	}); err != nil {
		s.maxBehind = 0
	}

	var b [HeaderLen]byte
	nc.SetDeadline(deadline)
	if s.lost.Load() { // Lose came before there was a connection to poke
		s.Close()
		return ErrLost
	}
	if _, err := io.ReadFull(nc, b[:]); err != nil {
		err = s.ended(err)
		s.Close()
		return fmt.Errorf("wait for the worker's greeting: %w", err)
	}
	h, err := ParseHeader(b[:])
	if err == nil && (h.Type != Greeting || h.Aux != Version) {
		err = fmt.Errorf("%w: %v with aux %d, want GREETING of version %d", ErrProtocol, h.Type, h.Aux, Version)
	}
	if err != nil {
		s.Close()
		return err
	}
	s.move(SlotGreeted)
	return nil
}

// Send gives the slot an exchange. head has RequestHead bytes of room at its
// beginning, which Send fills, then the environ; body is the first part of the body, and last
// says that it is all. Receive, or Flush, writes them; they must not change
// until one of the two has returned.
func (s *Slot) Send(head, body []byte, last bool, number uint64) {
	s.putRequest(head, len(body), last, number)
	s.open.Store(false)
	if behind := s.behind.Swap(0); behind != 0 {
		s.stale = behind // else it would have been for Advance
	}
	s.number, s.whole = number, last
	s.out, s.body = head, body
	s.aborted.Store(false) // one that came too late for the last exchange is not meant for this one
	s.move(SlotSent)
}

// MaxBehind is the longest frame that SendBehind takes, in bytes. It is less
// where the kernel's buffers are so small that it might take a part of one.
const MaxBehind = 16 << 10

// Open reports whether SendBehind may send: the slot holds an exchange that was
// sent with all of its body, and there is nothing behind it. Any goroutine may call it.
func (s *Slot) Open() bool { return s.open.Load() }

// SendBehind sends an exchange behind the one that the slot holds, beside
// Receive in another goroutine (PROTOCOL.md section 5.4). head and body are as for
// Send, all of the request and MaxBehind bytes at most. It does not wait; it
// reports false when it has sent nothing. Of what was sent, the slot is
// told by Advance that it holds it now, or by Withdraw that it is taken back.
func (s *Slot) SendBehind(head, body []byte, number uint64) bool {
	if len(head)+len(body) > s.maxBehind || !s.open.CompareAndSwap(true, false) {
		return false
	}
	s.putRequest(head, len(body), true, number)
	s.behind.Store(number) // before its answer can come
	s.second, s.secondN = [2][]byte{head, body}, 0
	err := s.raw.Control(s.sendSecond)
	s.second = [2][]byte{}
	switch {
	case err == nil && s.secondN == len(head)+len(body):
		return true
	case s.secondN > 0:
		s.Lose() // half a frame, which Linux does not write: nothing can follow it
	}
	s.behind.Store(0)
	return false
}

func (s *Slot) writeSecond(fd uintptr) {
	if len(s.second[1]) == 0 {
		s.secondN, _ = write(fd, s.second[0])
	} else {
		s.secondN, _ = writev(fd, []iovec{iov(s.second[0]), iov(s.second[1])})
	}
}

// Advance has a greeted slot hold the exchange that was sent behind the last
// one. Receive brings its answer. Nothing is sent behind it before Admit.
func (s *Slot) Advance() {
	s.number, s.whole = s.behind.Swap(0), true
	s.aborted.Store(false)
	s.move(SlotSent)
}

// Admit has SendBehind send behind an exchange that Advance brought, unless the
// worker may be about to say that it was withdrawn.
func (s *Slot) Admit() { s.open.Store(s.asked.Load() != s.number) }

// Withdraw takes an exchange back that was sent behind another. True: the worker
// will not begin it, and the slot may be used as if it had not been sent. False:
// the worker has begun it, and so was done with the one before; or it
// is just finding out that it must not, which Answer.Withdrawn tells then. It takes
// milliseconds.
func (s *Slot) Withdraw(number uint64) bool {
	s.asked.Store(number)
	return s.page.Withdraw(s.index, number)
}

// WithdrawHeld does the same with the exchange that the slot holds, once that has been given up. The
// page has one word for each slot: where another was sent behind, and perhaps
// taken back, that keeps it, and WithdrawHeld is false.
func (s *Slot) WithdrawHeld() bool {
	return s.behind.Load() == 0 && s.stale == 0 && s.Withdraw(s.number)
}

// Resume undoes Abort and Lose for this connection, for who reads what has come
// of an answer after all.
func (s *Slot) Resume(deadline time.Time) {
	s.salvage = true
	s.aborted.Store(false)
	s.SetDeadline(deadline)
}

// putRequest writes what stands before the environ.
func (s *Slot) putRequest(head []byte, body int, last bool, number uint64) {
	h := Header{Type: Request, Aux: uint16(s.index), Length: uint32(len(head) - HeaderLen + body)}
	if last {
		h.Flags = FlagLast
	}
	PutHeader(head, h)
	binary.LittleEndian.PutUint64(head[HeaderLen:], number)
	binary.LittleEndian.PutUint32(head[HeaderLen+8:], uint32(len(head)-RequestHead))
}

// RequestHead is the room that Send needs at the beginning of a head.
const RequestHead = HeaderLen + RequestFixed

// unsent reports whether some of the request is still to be written.
func (s *Slot) unsent() bool { return len(s.out) > 0 || len(s.body) > 0 }

// Flush writes what Send left to be written.
func (s *Slot) Flush() error {
	if !s.unsent() {
		return nil
	}
	s.nc.SetWriteDeadline(s.until())
	if s.aborted.Load() || s.lost.Load() { // before that line, and undone by it
		return s.ended(os.ErrDeadlineExceeded)
	}
	rest := net.Buffers{s.out, s.body}
	_, err := rest.WriteTo(s.nc)
	s.out, s.body = nil, nil
	if err != nil {
		return s.ended(err)
	}
	return nil
}

// SendBody writes frames that the caller has made (AppendBody), beside Receive
// in another goroutine. It waits as long as the worker does not read; deadline,
// unless zero, ends that.
func (s *Slot) SendBody(frames []byte, deadline time.Time) error {
	s.nc.SetWriteDeadline(deadline)
	if s.aborted.Load() || s.lost.Load() { // before that line, and undone by it
		return ErrAborted
	}
	if _, err := s.nc.Write(frames); err != nil {
		return s.ended(err)
	}
	return nil
}

// SetDeadline ends the waiting of this exchange at t; zero: never. An Abort
// or a Lose that came before is not undone by it. The goroutine that sends the
// body may call it too, while Receive waits.
func (s *Slot) SetDeadline(t time.Time) {
	if t.IsZero() {
		s.deadline.Store(0)
	} else {
		s.deadline.Store(int64(t.Sub(epoch)))
	}
	s.nc.SetReadDeadline(t)
	if s.aborted.Load() || s.lost.Load() && !s.salvage {
		s.poke()
	}
}

// epoch is what deadlines are counted from. A number of the wall clock's would
// move when that is set: a step forward would cut every exchange.
var epoch = time.Now()

// until is what SetDeadline was told; zero: never.
func (s *Slot) until() time.Time {
	if ns := s.deadline.Load(); ns != 0 {
		return epoch.Add(time.Duration(ns))
	}
	return time.Time{}
}

// transfer runs inside RawConn.Read: it writes the request, waits, and reads,
// with no call that could only say EAGAIN. The poller was armed before the
// write, so the answer's arrival cannot be missed.
func (s *Slot) transfer(fd uintptr) (done bool) {
	if s.unsent() {
		return s.writeRequest(fd)
	}
	for {
		var n int
		var errno syscall.Errno
		if s.in != nil {
			n, errno = read(fd, s.in)
		} else {
			n, errno = readv(fd, s.parts[:])
		}
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			return false
		case errno != 0:
			s.err = errno
		case n == 0:
			s.err = io.EOF
		default:
			s.got = n
		}
		return true
	}
}

// writeRequest reports false, to wait for the answer, when all is written, and
// true when the socket is full: fill writes the rest then.
func (s *Slot) writeRequest(fd uintptr) (full bool) {
	var n int
	var errno syscall.Errno
	if len(s.body) == 0 {
		n, errno = write(fd, s.out)
	} else {
		n, errno = writev(fd, []iovec{iov(s.out), iov(s.body)})
	}
	if k := min(n, len(s.out)); k > 0 {
		s.out, n = s.out[k:], n-k
	}
	s.body = s.body[n:]
	if errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR {
		s.err = errno
	}
	s.got = 0
	if s.unsent() || s.err != nil {
		return true
	}
	s.open.Store(s.whole && s.stale == 0)
	return false
}

// fill reads more into in, or into parts, after writing what is still to be
// written, and returns how much.
func (s *Slot) fill(in []byte) (int, error) {
	for {
		if s.aborted.Load() {
			return 0, ErrAborted
		}
		if s.lost.Load() && !s.salvage {
			return 0, ErrLost
		}
		s.in, s.got, s.err = in, 0, nil
		err := s.raw.Read(s.ready)
		s.in = nil
		if err == nil {
			err = s.err
		}
		if err != nil {
			return 0, s.ended(err)
		}
		if s.got > 0 {
			return s.got, nil
		}
		if err := s.Flush(); err != nil {
			return 0, err
		}
	}
}

// ended says why reading or writing has ended.
func (s *Slot) ended(err error) error {
	switch {
	case s.aborted.Load():
		return ErrAborted
	case s.lost.Load():
		return ErrLost
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrDeadline
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it closed the connection", ErrLost)
	default:
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
}

// Receive waits for the next part of the answer and has f frame it. With an
// error the slot is to be abandoned or closed. When the Answer is Last, Cut or
// Withdrawn, the slot is greeted again.
func (s *Slot) Receive(b *Buffer, f Framer) (Answer, error) {
	if s.rest > maxPiece {
		return s.receiveLarge(b, f)
	}
	var a Answer
	for {
		b.have = copy(b.b[:], b.b[b.from:b.have]) // what has come of a header, or of a header block
		b.from = 0
		if s.rest > 0 {
			b.have = HeaderLen // room for a head of its own
		}
		if len(s.left) > 0 {
			b.have += copy(b.b[b.have:], s.left)
			s.left = s.left[:0]
			if cap(s.left) > MaxBehind {
				s.left = nil
			}
		} else {
			n, err := s.fill(b.b[b.have:firstRead])
			if err != nil {
				return a, err
			}
			b.have += n
		}
		if err := s.parse(b, f, &a); err != nil {
			return a, err
		}
		if a.ended() {
			if len(s.left) > 0 && s.behind.Load() == 0 {
				return a, fmt.Errorf("%w: %d bytes behind the end of an answer", ErrProtocol, len(s.left))
			}
			b.from, b.have = 0, 0
			s.answered()
			return a, nil
		}
		if len(a.Bytes) > 0 {
			return a, nil
		}
	}
}

func (a *Answer) ended() bool { return a.Last || a.Cut || a.Withdrawn }

// answered ends the exchange. What nobody has sent behind it by now would stand
// before the next.
func (s *Slot) answered() {
	s.salvage = false
	s.open.Store(false)
	s.move(SlotGreeted)
}

// receiveLarge reads content of the current frame, and nothing behind it, in
// pieces that leave room for a head before each.
func (s *Slot) receiveLarge(b *Buffer, f Framer) (Answer, error) {
	if b.large == nil {
		b.large = largeBuffers.Get().(*[largeLen]byte)
	}
	buf := b.large[:]
	left := s.rest
	for i := range s.parts {
		at := i*(HeaderLen+maxPiece) + HeaderLen
		n := min(left, maxPiece)
		left -= n
		s.parts[i] = iov(buf[at : at+n])
	}
	n, err := s.fill(nil)
	if err != nil {
		return Answer{}, err
	}
	s.rest -= n
	a := Answer{Body: n, Last: s.rest == 0 && s.restLast}
	end := 0
	for n > 0 {
		size := min(n, maxPiece)
		f.Frame(buf[end:end+HeaderLen], size)
		end += HeaderLen + size
		n -= size
	}
	a.Bytes = buf[: end : end+tailRoom]
	if a.Last {
		s.answered()
	}
	return a, nil
}

// parse hands out what b holds. Frames stand one behind the other, so what it
// frames is one piece from start to end.
func (s *Slot) parse(b *Buffer, f Framer, a *Answer) error {
	p, start, end := 0, 0, 0
	if s.rest > 0 {
		p = HeaderLen
		p += s.content(b, p, p-HeaderLen, f, a)
		end = p
	}
	for !a.ended() && s.rest == 0 && b.have-p >= HeaderLen {
		h, err := ParseHeader(b.b[p:])
		if err != nil {
			return err
		}
		answering := s.state == SlotAnswering
		switch {
		case h.Type == Withdrawn && !answering:
			if b.have-p < HeaderLen+int(h.Length) {
				b.from = p
				return nil
			}
			switch n := binary.LittleEndian.Uint64(b.b[p+HeaderLen:]); {
			case n == s.stale && n != 0:
				s.stale = 0
				s.open.Store(s.whole && !s.unsent())
			case n == s.number && n == s.asked.Load():
				a.Withdrawn = true
			default:
				return fmt.Errorf("%w: WITHDRAWN for exchange %d, which was not withdrawn", ErrProtocol, n)
			}
			p += HeaderLen + int(h.Length)
		case s.stale != 0:
			return fmt.Errorf("%w: %v before the WITHDRAWN of exchange %d", ErrProtocol, h.Type, s.stale)
		case h.Type == Response && !answering:
			if b.have-p < HeaderLen+ResponseFixed {
				b.from = p
				return nil
			}
			n := int(binary.LittleEndian.Uint16(b.b[p+HeaderLen:]))
			if err := s.checkEcho(h.Type, binary.LittleEndian.Uint16(b.b[p+HeaderLen+2:])); err != nil {
				return err
			}
			if n > int(h.Length)-ResponseFixed {
				return fmt.Errorf("%w: header block of %d bytes in a RESPONSE of %d", ErrProtocol, n, h.Length)
			}
			block := p + HeaderLen + ResponseFixed
			if b.have < block+n {
				b.from = p // the block goes out in one record, so all of it must be here
				return nil
			}
			a.Block, a.Status, a.Failed = b.b[block:block+n], int(h.Aux), h.Flags&FlagFailed != 0
			if err := CheckHeaderBlock(a.Block, h.Aux); err != nil {
				return err
			}
			s.move(SlotAnswering)
			s.rest, s.restLast = int(h.Length)-ResponseFixed-n, h.Last()
			start = p + ResponseFixed
			p = block + n
			p += s.content(b, p, start, f, a)
			end = p
		case h.Type == Data && answering:
			if h.Length == 0 && !h.Last() {
				return fmt.Errorf("%w: empty DATA without LAST", ErrProtocol)
			}
			s.rest, s.restLast = int(h.Length), h.Last()
			p += HeaderLen
			n := s.content(b, p, p-HeaderLen, f, a)
			if n > 0 {
				if end == 0 {
					start = p - HeaderLen
				}
				p += n
				end = p
			}
		case h.Type == Cut:
			if err := s.checkEcho(h.Type, h.Aux); err != nil {
				return err
			}
			a.Cut, a.Failed = true, h.Flags&FlagFailed != 0
			p += HeaderLen
		default:
			return fmt.Errorf("%w: %v while %v", ErrProtocol, h.Type, s.state)
		}
	}
	b.from = p
	if a.ended() && p < b.have { // of the exchange behind
		s.left = append(s.left[:0], b.b[p:b.have]...)
		b.have = p
	}
	if end > 0 {
		// Behind the piece is room to append to, unless something stands there.
		room := end
		if p == b.have {
			room = min(end+tailRoom, len(b.b))
		}
		a.Bytes = b.b[start:end:room]
	}
	return nil
}

func (s *Slot) checkEcho(t FrameType, echo uint16) error {
	if want := Echo(s.number); echo != want {
		return fmt.Errorf("%w: %v for exchange %#04x while it is %#04x's turn", ErrProtocol, t, echo, want)
	}
	return nil
}

// content takes what has come of the current frame's content, which stands at
// at, and has it framed, with what stands between from+HeaderLen and at, in one piece.
func (s *Slot) content(b *Buffer, at, from int, f Framer, a *Answer) int {
	n := min(s.rest, b.have-at)
	s.rest -= n
	a.Body += n
	a.Last = s.rest == 0 && s.restLast
	size := at + n - from - HeaderLen
	if size > maxPiece {
		// The little that is too much for one piece moves up by a head. It is
		// the last that was read: what comes behind it stands behind it still.
		cut := from + HeaderLen + maxPiece
		copy(b.b[cut+HeaderLen:], b.b[cut:b.have])
		b.have += HeaderLen
		f.Frame(b.b[cut:cut+HeaderLen], size-maxPiece)
		size = maxPiece
		n += HeaderLen
	}
	if size > 0 {
		f.Frame(b.b[from:from+HeaderLen], size)
	}
	return n
}

// Begun reports whether the worker has begun the exchange that the slot holds
// or held. False is only final when the process is dead.
func (s *Slot) Begun() bool {
	if !s.page.Begun(s.index, s.number) {
		return false
	}
	if s.state == SlotSent {
		s.move(SlotBegun)
	}
	return true
}

// Abort ends the exchange's waiting with ErrAborted, now or when it next
// waits. Any goroutine may call it. It holds until the next Connect.
func (s *Slot) Abort() {
	s.aborted.Store(true)
	s.poke()
}

// Lose ends all waiting with ErrLost, for good: the process is dead. A child
// that it forked may hold the connection open, so end-of-file need not come.
// Any goroutine may call it.
func (s *Slot) Lose() {
	s.lost.Store(true)
	s.poke()
}

func (s *Slot) poke() {
	s.gate.Lock()
	defer s.gate.Unlock()
	if s.nc != nil {
		s.nc.SetDeadline(time.Unix(1, 0))
	}
}

// Abandon gives the exchange up: the worker finds the connection closed. What
// it is doing it may go on doing until it notices; the slot may be connected
// again at once, and is greeted when it has.
func (s *Slot) Abandon() {
	s.move(SlotAbandoned)
	s.nc.Close()
}

// Close ends the slot's connection, if it has one.
func (s *Slot) Close() {
	if s.state == SlotClosed {
		return
	}
	s.move(SlotClosed)
	s.nc.Close()
}

// AppendBody appends a BODY frame; cut says that the body ends early.
func AppendBody(dst, content []byte, last, cut bool) []byte {
	h := Header{Type: Body, Length: uint32(len(content))}
	if last {
		h.Flags |= FlagLast
	}
	if cut {
		h.Flags |= FlagCut
	}
	var b [HeaderLen]byte
	PutHeader(b[:], h)
	dst = append(dst, b[:]...)
	return append(dst, content...)
}
