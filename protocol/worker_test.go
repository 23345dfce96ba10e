package protocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// requestFrame is a whole REQUEST.
func requestFrame(slot uint16, number uint64, environ, body []byte, flags uint8) []byte {
	p := binary.LittleEndian.AppendUint64(nil, number)
	p = binary.LittleEndian.AppendUint32(p, uint32(len(environ)))
	return frame(Header{Type: Request, Flags: flags, Aux: slot}, append(append(p, environ...), body...))
}

var getEnviron = []byte("REQUEST_METHOD\x00GET\x00PATH_INFO\x00/\x00")

// readAnswer reads frames until the answer has ended.
func readAnswer(r io.Reader) (h Header, block, body string, err error) {
	h, p, err := readFrame(r)
	if err != nil || h.Type != Response {
		return h, "", "", err
	}
	n := binary.LittleEndian.Uint16(p)
	block, body = string(p[4:4+n]), string(p[4+n:])
	for next := h; !next.Last(); {
		if next, p, err = readFrame(r); err != nil {
			return h, block, body, err
		}
		if next.Type == Cut {
			return next, block, body, nil
		}
		body += string(p)
	}
	return h, block, body, nil
}

// A request arrives whole wherever it is split between two reads, and so does
// what stands behind it.
func TestRequestSplitAnywhere(t *testing.T) {
	nc := startWorker(t, &Worker{Slots: 1, Handle: vectorApplications["echo"]})
	stream := bytes.Join([][]byte{
		requestFrame(0, 1, getEnviron, []byte("one, "), 0),
		frame(Header{Type: Body}, []byte("two")),
		frame(Header{Type: Body, Flags: FlagLast}, nil),
		requestFrame(0, 2, getEnviron, []byte("three"), FlagLast),
	}, nil)
	for at := 1; at < len(stream); at++ {
		go func() {
			nc.Write(stream[:at])
			nc.Write(stream[at:])
		}()
		for _, want := range []string{"one, two", "three"} {
			if _, _, body, err := readAnswer(nc); err != nil || body != want {
				t.Fatalf("split at %d: %q, %v; want %q", at, body, err, want)
			}
		}
	}
}

// Bodies and answers of any size go through, both at once, whatever the sizes
// of frames, reads and writes.
func TestWorkerStreams(t *testing.T) {
	const size = 3 << 20
	for _, piece := range []int{1000, directRead, readRoom + 1, 1 << 20} {
		t.Run(fmt.Sprint(piece), func(t *testing.T) {
			nc := startWorker(t, &Worker{Slots: 1, Handle: func(x *Exchange) error {
				x.Respond(200, []byte(okBlock), false)
				buf := make([]byte, piece)
				for {
					n, err := x.Read(buf)
					if _, err := x.Write(buf[:n]); err != nil {
						return err
					}
					if errors.Is(err, io.EOF) {
						return x.End([]byte("end"))
					}
					if err != nil {
						return err
					}
				}
			}})
			content := bytes.Repeat([]byte("0123456789abcde\n"), size/16)
			go func() {
				nc.Write(requestFrame(0, 1, getEnviron, nil, 0))
				for at := 0; at < size; at += 100_003 {
					end := min(size, at+100_003)
					h := Header{Type: Body}
					if end == size {
						h.Flags = FlagLast
					}
					nc.Write(frame(h, content[at:end]))
				}
			}()
			if _, _, body, err := readAnswer(nc); err != nil || body != string(content)+"end" {
				t.Errorf("%d bytes of %d, %v", len(body), size+3, err)
			}
		})
	}
}

// An answer larger than one frame may be is several.
func TestAnswerOfManyFrames(t *testing.T) {
	content := bytes.Repeat([]byte("x"), MaxPayload+100)
	nc := startWorker(t, &Worker{Slots: 1, Handle: func(x *Exchange) error { return respondText(x, content) }})
	nc.Write(requestFrame(0, 1, getEnviron, nil, FlagLast))
	if _, _, body, err := readAnswer(nc); err != nil || len(body) != len(content) {
		t.Errorf("%d bytes of %d, %v", len(body), len(content), err)
	}
}

// An environ as large as may be arrives, and the memory for it is not kept.
func TestLargestEnviron(t *testing.T) {
	got := make(chan int, 1)
	w := &Worker{Slots: 1, Handle: func(x *Exchange) error {
		got <- len(x.Environ())
		return respondText(x, nil)
	}}
	nc := startWorker(t, w)
	environ := []byte("A\x00" + strings.Repeat("x", MaxEnviron-3) + "\x00")
	go nc.Write(requestFrame(0, 1, environ, []byte("body"), FlagLast))
	if _, _, _, err := readAnswer(nc); err != nil || <-got != MaxEnviron {
		t.Fatal(err)
	}
	nc.Write(requestFrame(0, 2, getEnviron, nil, FlagLast))
	if _, _, _, err := readAnswer(nc); err != nil || <-got != len(getEnviron) {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		if len(c.buf) > keepRoom {
			t.Errorf("%d bytes are kept", len(c.buf))
		}
	}
}

// An answer that the application left open is cut, and the connection goes on.
func TestUnendedAnswerIsCut(t *testing.T) {
	handlers := map[string]func(*Exchange) error{
		"nothing":           func(x *Exchange) error { return nil },
		"header block kept": func(x *Exchange) error { return x.Respond(200, []byte(okBlock), false) },
		"part sent": func(x *Exchange) error {
			x.Respond(200, []byte(okBlock), false)
			x.Write([]byte("x"))
			return x.Flush()
		},
		"part kept": func(x *Exchange) error {
			x.Respond(200, []byte(okBlock), false)
			x.Flush()
			_, err := x.Write([]byte("x"))
			return err
		},
		"flushed twice": func(x *Exchange) error {
			x.Respond(200, []byte(okBlock), false)
			x.Flush()
			x.Write(nil)
			return x.Flush()
		},
	}
	for name, handle := range handlers {
		t.Run(name, func(t *testing.T) {
			nc := startWorker(t, &Worker{Slots: 1, Handle: handle})
			for number := range uint64(3) {
				nc.Write(requestFrame(0, number+1, getEnviron, nil, FlagLast))
				if h, _, _, err := readAnswer(nc); err != nil || h.Type != Cut || h.Flags != FlagFailed {
					t.Fatalf("%+v, %v; want CUT FAILED", h, err)
				}
			}
		})
	}
}

// Never more connections are greeted than there are slots; the next is when
// one of them ends.
func TestGreetedAreAtMostSlots(t *testing.T) {
	w := &Worker{Slots: 2, Handle: vectorApplications["hello"]}
	first := startWorker(t, w)
	dialWorker(t, w)
	third := dialUngreeted(t, w)
	first.Write(requestFrame(1, 1, getEnviron, nil, FlagLast))
	if _, _, _, err := readAnswer(first); err != nil {
		t.Fatal(err)
	}
	raw, err := third.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if _, errno := read(fd, make([]byte, 1)); errno != unix.EAGAIN {
			t.Errorf("a third connection was greeted, or closed: %v", errno)
		}
	})
	first.Close()
	if h, _, err := readFrame(third); err != nil || h.Type != Greeting {
		t.Fatalf("%+v, %v", h, err)
	}
}

// An application that asks is told that its client has left, with nothing read
// or written; so is one that writes, and one that reads.
func TestClientLeaves(t *testing.T) {
	tests := []struct {
		name  string
		flags uint8
		wait  func(*Exchange) error
	}{
		{"told", FlagLast, func(x *Exchange) error {
			left := make(chan struct{})
			x.Watch(func() { close(left) })
			<-left
			return ErrGone
		}},
		{"told, in the middle of a body", 0, func(x *Exchange) error {
			left := make(chan struct{})
			x.Watch(func() { close(left) })
			<-left
			return ErrGone
		}},
		{"writes", FlagLast, func(x *Exchange) error {
			x.Respond(200, []byte(okBlock), false)
			for {
				if _, err := x.Write(make([]byte, 1<<20)); err != nil {
					return err
				}
			}
		}},
		{"flushes", FlagLast, func(x *Exchange) error {
			x.Respond(200, []byte(okBlock), false)
			for {
				x.Write([]byte("x"))
				if err := x.Flush(); err != nil {
					return err
				}
			}
		}},
		{"reads", 0, func(x *Exchange) error {
			_, err := x.Read(make([]byte, 1))
			return err
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			begun, ended := make(chan struct{}), make(chan error, 1)
			w := &Worker{Slots: 1, Handle: func(x *Exchange) error {
				close(begun)
				err := tt.wait(x)
				ended <- err
				return err
			}}
			nc := startWorker(t, w)
			nc.Write(requestFrame(0, 1, getEnviron, nil, tt.flags))
			<-begun
			nc.Close()
			if err := <-ended; !errors.Is(err, ErrGone) {
				t.Errorf("ended with %v, want %v", err, ErrGone)
			}
			dialWorker(t, w) // the slot is free
		})
	}
}

// A watch ends with its exchange: the next one's leaving is not taken for it.
func TestWatchEndsWithExchange(t *testing.T) {
	var told atomic.Int32
	slow := make(chan struct{})
	w := &Worker{Slots: 1, Handle: func(x *Exchange) error {
		x.Watch(func() { told.Add(1) })
		if x.Number() == 1 {
			<-slow
		}
		return respondText(x, nil)
	}}
	nc := startWorker(t, w)
	nc.Write(requestFrame(0, 1, getEnviron, nil, FlagLast))
	for watched := false; !watched; runtime.Gosched() { // until the first is watched indeed
		w.watcher.mu.Lock()
		watched = len(w.watcher.watches) == 1
		w.watcher.mu.Unlock()
	}
	close(slow)
	for number := uint64(2); number < 100; number++ {
		if _, _, _, err := readAnswer(nc); err != nil {
			t.Fatal(err)
		}
		nc.Write(requestFrame(0, number, getEnviron, nil, FlagLast))
	}
	if _, _, _, err := readAnswer(nc); err != nil {
		t.Fatal(err)
	}
	nc.Close()
	dialWorker(t, w)
	w.watcher.mu.Lock()
	defer w.watcher.mu.Unlock()
	if n := told.Load(); n != 0 || len(w.watcher.watches) != 0 {
		t.Errorf("told %d times, %d watches left", n, len(w.watcher.watches))
	}
}

// Drain finishes what has begun, ends what waits, and begins nothing more,
// though it be there.
func TestDrain(t *testing.T) {
	begun, finish := make(chan struct{}), make(chan struct{})
	var exchanges atomic.Int32
	w := &Worker{Slots: 3, Handle: func(x *Exchange) error {
		exchanges.Add(1)
		close(begun)
		<-finish
		body, err := io.ReadAll(reader{x})
		if err != nil {
			return err
		}
		return respondText(x, body)
	}}
	busy := startWorker(t, w)
	idle := dialWorker(t, w)
	busy.Write(requestFrame(0, 1, getEnviron, []byte("a"), 0))
	<-begun
	w.Drain()
	if n, err := idle.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("idle connection: %d, %v; want %v", n, err, io.EOF)
	}
	close(finish)
	busy.Write(frame(Header{Type: Body, Flags: FlagLast}, []byte("b")))
	busy.Write(requestFrame(0, 2, getEnviron, nil, FlagLast)) // it may be refused already
	if _, _, body, err := readAnswer(busy); err != nil || body != "ab" {
		t.Errorf("%q, %v", body, err)
	}
	if rest, err := io.ReadAll(busy); len(rest) > 0 || err != nil && !closed(err) {
		t.Errorf("%q, %v behind the last answer", rest, err)
	}
	if n := exchanges.Load(); n != 1 || w.Page.Begun(0, 2) {
		t.Errorf("%d exchanges begun", n)
	}
	if _, err := net.DialUnix("unix", nil, w.Listener.Addr().(*net.UnixAddr)); err == nil {
		t.Error("connections are still accepted")
	}
}

// An application that ends its goroutine costs the exchange and no slot.
func TestGoexitCostsNoSlot(t *testing.T) {
	w := &Worker{Slots: 1, Handle: func(x *Exchange) error {
		if x.Number() == 1 {
			runtime.Goexit()
		}
		return respondText(x, nil)
	}}
	nc := startWorker(t, w)
	nc.Write(requestFrame(0, 1, getEnviron, nil, FlagLast))
	if _, err := nc.Read(make([]byte, 1)); err == nil || !errors.Is(err, io.EOF) && !closed(err) {
		t.Errorf("%v, want the end", err)
	}
	again := dialWorker(t, w)
	again.Write(requestFrame(0, 2, getEnviron, nil, FlagLast))
	if _, _, _, err := readAnswer(again); err != nil {
		t.Error(err)
	}
}

// A worker and a Slot understand each other.
func TestBothEnds(t *testing.T) {
	w := &Worker{Slots: 4, Handle: vectorApplications["echo"]}
	startWorker(t, w)
	s := NewSlot(3, w.Page)
	if err := s.Connect(dialUngreeted(t, w), time.Now().Add(10*time.Second)); err != nil {
		t.Fatal(err)
	}
	for number := uint64(1); number < 10; number++ {
		s.Send(request(), bytes.Repeat([]byte("x"), int(number)<<14), true, number)
		_, content, last, err := answer(t, s)
		if err != nil || !last.Last || strings.Count(content, "x") != int(number)<<14+1 { // one in text/plain
			t.Fatalf("exchange %d: %d bytes, %v", number, len(content), err)
		}
		if !s.Begun() {
			t.Errorf("exchange %d has not begun", number)
		}
	}
	s.Close()
}

// A served is an exchange as a worker's application has it.
type served struct {
	number        uint64
	environ, body string
	err           error // why the body has ended: io.EOF, io.ErrUnexpectedEOF, ErrGone or ErrProtocol
}

// servedPlainly says what a worker of one slot serves of all that a supervisor has sent,
// and whether it ends with a breach of the protocol.
func servedPlainly(stream []byte) (all []served, broken bool) {
	for len(stream) >= HeaderLen {
		h, err := ParseHeader(stream)
		if err != nil || h.Type != Request || h.Aux > 0 {
			return all, true
		}
		if len(stream) < RequestHead {
			break
		}
		x := served{number: binary.LittleEndian.Uint64(stream[HeaderLen:]), err: io.EOF}
		environ := int(binary.LittleEndian.Uint32(stream[HeaderLen+8:]))
		if x.number == 0 || environ > MaxEnviron || environ > int(h.Length)-RequestFixed {
			return all, true
		}
		stream = stream[RequestHead:]
		if len(stream) < environ {
			break
		}
		x.environ, stream = string(stream[:environ]), stream[environ:]
		for left := int(h.Length) - RequestFixed - environ; ; left = int(h.Length) {
			n := min(left, len(stream))
			x.body += string(stream[:n])
			stream = stream[n:]
			if n == left && h.Last() {
				if h.Flags&FlagCut != 0 {
					x.err = io.ErrUnexpectedEOF
				}
				break
			}
			if len(stream) < HeaderLen {
				x.err = ErrGone
				return append(all, x), false
			}
			if h, err = ParseHeader(stream); err != nil || h.Type != Body {
				x.err = ErrProtocol
				return append(all, x), true
			}
			stream = stream[HeaderLen:]
		}
		all = append(all, x)
	}
	return all, false
}

// Whatever a supervisor sends, wherever it is split, and however the application
// reads, a worker serves what servedPlainly says, reports a breach when there is
// one, and is ready for the next connection.
func FuzzRequests(f *testing.F) {
	get := requestFrame(0, 1, getEnviron, nil, FlagLast)
	post := slices.Concat(requestFrame(0, 1, getEnviron, []byte("one"), 0), frame(Header{Type: Body}, nil), frame(Header{Type: Body, Flags: FlagLast}, []byte("two")))
	cut := slices.Concat(requestFrame(0, 1, getEnviron, nil, 0), frame(Header{Type: Body, Flags: FlagLast | FlagCut}, nil))
	for _, stream := range [][]byte{
		get, post, cut, slices.Concat(get, post), slices.Concat(cut, get), post[:len(post)-1],
		slices.Concat(post[:len(post)-4], get), requestFrame(0, 0, getEnviron, nil, FlagLast), requestFrame(1, 1, getEnviron, nil, FlagLast),
	} {
		f.Add(stream, len(stream)/2, uint16(2))
	}
	var mu sync.Mutex
	var room int // the application reads so much at once
	var got []served
	breaches := make(chan error, 1)
	w := &Worker{Slots: 1, Report: func(err error) { breaches <- err }, Handle: func(x *Exchange) error {
		mu.Lock()
		defer mu.Unlock()
		s := served{number: x.Number(), environ: string(x.Environ())}
		for buf := make([]byte, room); s.err == nil; {
			var n int
			n, s.err = x.Read(buf)
			s.body += string(buf[:n])
		}
		got = append(got, s)
		x.Respond(200, []byte(okBlock), false) // nobody may be there for it
		return nil
	}}
	startWorker(f, w).Close()
	f.Fuzz(func(t *testing.T, stream []byte, split int, size uint16) {
		nc := dialWorker(t, w)
		mu.Lock()
		room, got = max(1, int(size)), nil
		mu.Unlock()
		split = max(0, min(split, len(stream)))
		go func() { // ends with the stream, or with the connection
			nc.Write(stream[:split])
			nc.Write(stream[split:])
			nc.CloseWrite()
		}()
		nc.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.Copy(io.Discard, nc); err != nil && !closed(err) {
			t.Fatalf("neither served nor closed: %v", err)
		}
		mu.Lock()
		defer mu.Unlock()
		want, broken := servedPlainly(stream)
		var breach error
		select {
		case breach = <-breaches: // it comes before the connection is closed
		default:
		}
		if broken != (breach != nil) || broken && !errors.Is(breach, ErrProtocol) {
			t.Fatalf("reported %v, want a breach: %v", breach, broken)
		}
		if !slices.EqualFunc(got, want, func(got, want served) bool {
			return got.number == want.number && got.environ == want.environ && got.body == want.body && errors.Is(got.err, want.err)
		}) {
			t.Fatalf("served %+v, want %+v", got, want)
		}
	})
}

// A pattern is content of which no two pieces look alike.
func pattern(size int) []byte {
	b := make([]byte, 0, size+8)
	for i := 0; len(b) < size; i++ {
		b = strconv.AppendInt(b, int64(i), 36)
	}
	return b[:size]
}

// sizes makes up to eight sizes of what was drawn, many of them around and beyond
// what a buffer, a record or a large buffer holds.
func sizes(drawn []byte) (all []int, total int) {
	for ; len(drawn) >= 2 && len(all) < 8; drawn = drawn[2:] {
		n := int(binary.LittleEndian.Uint16(drawn))
		if n%2 == 1 {
			n *= 5
		}
		all, total = append(all, n), total+n
	}
	return all, total
}

// Whatever the pieces in which a body is sent and an answer written, both at
// once, each arrives as it was, twice on one connection.
func FuzzBothEnds(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Add([]byte{4, 0}, []byte{4, 0})
	f.Add([]byte{0, 0, 1, 0, 0, 0x40}, []byte{0, 0x40, 0xff, 0xff, 0xff, 0x1f})
	f.Add([]byte{0xff, 0xff, 2, 0}, []byte{0xfe, 0xff, 0xff, 0x7f, 0xff, 0xff})
	type plan struct { // of one exchange
		body, content []byte
		write         []int // the sizes of what content is written in
	}
	plans, wrong := make(chan plan, 1), make(chan error, 1)
	w := &Worker{Slots: 1, Report: func(err error) { wrong <- err }, Handle: func(x *Exchange) error {
		p := <-plans
		x.Respond(200, []byte(okBlock), false)
		rest := p.content
		for i, n := range p.write {
			x.Write(rest[:n])
			rest = rest[n:]
			if i%2 == 1 {
				x.Flush()
			}
		}
		if got, err := io.ReadAll(reader{x}); err != nil || !bytes.Equal(got, p.body) {
			return fmt.Errorf("body of %d bytes, %w; want %d", len(got), err, len(p.body))
		}
		return x.End(nil)
	}}
	startWorker(f, w).Close()
	f.Fuzz(func(t *testing.T, asked, answered []byte) {
		ask, askLen := sizes(asked)
		write, writeLen := sizes(answered)
		p := plan{pattern(askLen), pattern(writeLen), write}
		s := NewSlot(0, w.Page)
		if err := s.Connect(dialUngreeted(t, w), time.Now().Add(20*time.Second)); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for number := uint64(1); number <= 2; number++ {
			plans <- p
			s.Send(request(), nil, false, number)
			s.SetDeadline(time.Now().Add(20 * time.Second))
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			sent := make(chan error, 1)
			go func() { // ends with the body, or with the slot's deadline
				rest := p.body
				for _, n := range ask {
					if err := s.SendBody(AppendBody(nil, rest[:n], false, false), time.Now().Add(20*time.Second)); err != nil {
						sent <- err
						return
					}
					rest = rest[n:]
				}
				sent <- s.SendBody(AppendBody(nil, nil, true, false), time.Now().Add(20*time.Second))
			}()
			_, got, last, err := answer(t, s)
			if err != nil || !last.Last || got != okBlock+string(p.content) {
				select {
				case err = <-wrong:
				default:
				}
				t.Fatalf("exchange %d: %d bytes, last %v, %v; want %d", number, len(got), last.Last, err, len(okBlock)+writeLen)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
		}
	})
}

// One exchange, the worker's end: the other is raw.
func BenchmarkWorker(b *testing.B) {
	block := []byte("Status: 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 14\r\n\r\n")
	hello := []byte("Hello, World!\n")
	nc := startWorker(b, &Worker{Slots: 1, Handle: func(x *Exchange) error {
		if err := CheckEnviron(x.Environ()); err != nil {
			return err
		}
		if err := x.Respond(200, block, false); err != nil {
			return err
		}
		return x.End(hello)
	}})
	r := requestFrame(0, 1, bytes.Repeat([]byte("HTTP_X_SOMETHING_OR_OTHER\x00value\x00"), 28), nil, FlagLast)
	in := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		nc.Write(r)
		if n, err := nc.Read(in); err != nil || n != HeaderLen+ResponseFixed+len(block)+len(hello) {
			b.Fatal(n, err)
		}
	}
}
