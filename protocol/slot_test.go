package protocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Every step that the table lists is taken, every other one is a bug that
// shows, and every state has a name.
func TestSlotMoves(t *testing.T) {
	for from := range slotMoves {
		for to := range slotMoves {
			s := &Slot{state: SlotState(from)}
			listed := slices.Contains(slotMoves[from], SlotState(to))
			func() {
				defer func() {
					if bug := recover() != nil; bug == listed {
						t.Errorf("from %v to %v: listed %v, refused %v", SlotState(from), SlotState(to), listed, bug)
					}
				}()
				s.move(SlotState(to))
			}()
		}
		if SlotState(from).String() == "" {
			t.Errorf("state %d has no name", from)
		}
	}
}

// records is a Framer that writes how much it frames, and the opposite of it.
type records struct{}

func (records) Frame(head []byte, n int) {
	binary.LittleEndian.PutUint32(head, uint32(n))
	copy(head[4:], "FRAM")
}

// unframe takes apart what records framed.
func unframe(t *testing.T, b []byte) (content []byte) {
	t.Helper()
	for len(b) > 0 {
		if len(b) < 8 || string(b[4:8]) != "FRAM" {
			t.Fatalf("no frame at %.20q", b)
		}
		n := int(binary.LittleEndian.Uint32(b))
		if n == 0 || n > MaxHeaderBlock || len(b) < 8+n {
			t.Fatalf("frame of %d bytes in %d", n, len(b))
		}
		content = append(content, b[8:8+n]...)
		b = b[8+n:]
	}
	return content
}

// pair connects a slot to the returned connection, which plays the worker.
func pair(t testing.TB) (*Slot, *net.UnixConn) {
	t.Helper()
	nc, w := connected(t)
	page := newTestPage(t)
	w.Write(frame(Header{Type: Greeting, Aux: Version}, nil))
	s := NewSlot(3, page)
	if err := s.Connect(nc, time.Now().Add(10*time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, w
}

func frame(h Header, payload []byte) []byte {
	b := make([]byte, HeaderLen, HeaderLen+len(payload))
	h.Length = uint32(len(payload))
	PutHeader(b, h)
	return append(b, payload...)
}

// response is that of exchange 1.
func response(status int, block, body string, flags uint8) []byte {
	return responseTo(1, status, block, body, flags)
}

func responseTo(number uint64, status int, block, body string, flags uint8) []byte {
	p := binary.LittleEndian.AppendUint16(nil, uint16(len(block)))
	p = binary.LittleEndian.AppendUint16(p, Echo(number))
	return frame(Header{Type: Response, Flags: flags, Aux: uint16(status)}, append(append(p, block...), body...))
}

const okBlock = "Status: 200 OK\r\nContent-Type: text/plain\r\n\r\n"

// request is the head of one; it is as long as its frame.
func request() []byte {
	return append(make([]byte, RequestHead), "REQUEST_METHOD\x00GET\x00"...)
}

// answer receives until the answer has ended.
func answer(t *testing.T, s *Slot) (block, content string, last Answer, err error) {
	t.Helper()
	b := new(Buffer)
	var all []byte
	body := 0
	for {
		a, err := s.Receive(b, records{})
		if err != nil {
			return block, string(all), a, err
		}
		if a.Block != nil {
			block = string(a.Block)
		}
		all = append(all, unframe(t, a.Bytes)...)
		body += a.Body
		if a.Last || a.Cut || a.Withdrawn {
			if body != len(all)-len(block) {
				t.Errorf("%d bytes of body counted, %d came", body, len(all)-len(block))
			}
			return block, string(all), a, nil
		}
	}
}

// The same answer arrives, in frames that the front can send as they are,
// wherever the stream is split between two reads.
func TestAnswerSplitAnywhere(t *testing.T) {
	stream := slices.Concat(
		response(200, okBlock, "first ", 0),
		frame(Header{Type: Data}, []byte("second ")),
		frame(Header{Type: Data}, []byte("third")),
		frame(Header{Type: Data, Flags: FlagLast}, nil),
	)
	s, w := pair(t)
	for at := 1; at < len(stream); at++ {
		binary.LittleEndian.PutUint16(stream[HeaderLen+2:], Echo(uint64(at)))
		f := request()
		s.Send(f, nil, true, uint64(at))
		sent := make(chan error, 1)
		go func() {
			in := make([]byte, len(f))
			_, err := io.ReadFull(w, in)
			w.Write(stream[:at])
			for i := at; i < len(stream); i++ { // every later byte by itself
				w.Write(stream[i : i+1])
			}
			sent <- err
		}()
		block, content, _, err := answer(t, s)
		if err != nil || block != okBlock || content != okBlock+"first second third" {
			t.Fatalf("split at %d: %q, %v", at, content, err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		if s.State() != SlotGreeted {
			t.Fatalf("slot is %v after an answer", s.State())
		}
	}
}

// An answer larger than any buffer arrives whole, in pieces that one FastCGI
// record can carry.
func TestLargeAnswer(t *testing.T) {
	s, w := pair(t)
	body := strings.Repeat("0123456789abcdef", 3<<16)
	f := request()
	s.Send(f, nil, true, 1)
	go func() {
		io.ReadFull(w, make([]byte, len(f)))
		w.Write(response(200, okBlock, body[:100000], 0))
		w.Write(frame(Header{Type: Data, Flags: FlagLast}, []byte(body[100000:])))
	}()
	_, content, _, err := answer(t, s)
	if err != nil || content != okBlock+body {
		t.Fatalf("%d bytes of %d, %v", len(content), len(okBlock)+len(body), err)
	}
}

// Answers around the size of one record and of one read arrive whole.
func TestAnswerSizes(t *testing.T) {
	s, w := pair(t)
	number := uint64(0)
	for _, around := range []int{maxPiece - len(okBlock), maxPiece, firstRead - HeaderLen - ResponseFixed - len(okBlock), firstRead, 2 * maxPiece, pieces * maxPiece} {
		for size := around - 20; size <= around+20; size++ {
			body := strings.Repeat("0123456789abcdef", size/16+1)[:size]
			number++
			f, first := request(), responseTo(number, 200, okBlock, body, 0)
			s.Send(f, nil, true, number)
			go func() {
				io.ReadFull(w, make([]byte, len(f)))
				w.Write(slices.Concat(first, frame(Header{Type: Data}, []byte("and")), frame(Header{Type: Data, Flags: FlagLast}, []byte(" more"))))
			}()
			if _, content, _, err := answer(t, s); err != nil || content != okBlock+body+"and more" {
				t.Fatalf("body of %d bytes: %d bytes of content, %v", size, len(content), err)
			}
		}
	}
}

// A request whose body is larger than the socket takes arrives whole.
func TestLargeRequest(t *testing.T) {
	s, w := pair(t)
	f, body := request(), bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	s.Send(f, body, true, 1)
	got := make(chan []byte, 1)
	go func() {
		in := make([]byte, len(f)+len(body))
		io.ReadFull(w, in)
		got <- in
		w.Write(response(200, okBlock, "", FlagLast))
	}()
	if _, _, _, err := answer(t, s); err != nil {
		t.Fatal(err)
	}
	if in := <-got; !bytes.Equal(in, slices.Concat(f, body)) {
		t.Error("the request has arrived otherwise than it was sent")
	}
}

// A header block as long as it may be goes out in one piece.
func TestLongestHeaderBlock(t *testing.T) {
	s, w := pair(t)
	block := "Status: 200 OK\r\nX: " + strings.Repeat("x", MaxHeaderBlock-len("Status: 200 OK\r\nX: ")-4) + "\r\n\r\n"
	f := request()
	s.Send(f, nil, true, 1)
	go func() {
		io.ReadFull(w, make([]byte, len(f)))
		w.Write(response(200, block, "body", FlagLast))
	}()
	got, content, _, err := answer(t, s)
	if err != nil || got != block || content != block+"body" {
		t.Fatalf("block of %d bytes, content of %d, %v", len(got), len(content), err)
	}
}

// What breaks the protocol is an error that says so, whatever it is.
func TestHostileAnswers(t *testing.T) {
	tests := []struct {
		name   string
		stream []byte
	}{
		{"garbage", []byte("HTTP/1.1 200 OK\r\n\r\n")},
		{"a greeting instead of an answer", frame(Header{Type: Greeting, Aux: Version}, nil)},
		{"a request", frame(Header{Type: Request}, make([]byte, RequestFixed))},
		{"data before the response", frame(Header{Type: Data}, []byte("x"))},
		{"a second response", slices.Concat(response(200, okBlock, "", 0), response(200, okBlock, "", FlagLast))},
		{"bytes behind the end", slices.Concat(response(200, okBlock, "", FlagLast), []byte("x"))},
		{"a second answer behind the end", slices.Concat(response(200, okBlock, "", FlagLast), response(200, okBlock, "", FlagLast))},
		{"a frame larger than allowed", func() []byte {
			b := response(200, okBlock, "", 0)
			binary.LittleEndian.PutUint32(b[4:], MaxPayload+1)
			return b
		}()},
		{"a header block longer than its frame", func() []byte {
			b := response(200, okBlock, "", FlagLast)
			binary.LittleEndian.PutUint16(b[8:], uint16(len(okBlock)+1))
			return b
		}()},
		{"an answer to another exchange", responseTo(2, 200, okBlock, "", FlagLast)},
		{"the cut of another exchange", frame(Header{Type: Cut, Aux: Echo(2)}, nil)},
		{"a header block that splits the answer", response(200, "Status: 200 OK\r\nA: b\r\n\r\nStatus: 200 OK\r\n\r\n", "", FlagLast)},
		{"another status than announced", response(404, okBlock, "", FlagLast)},
		{"a status out of range", response(99, okBlock, "", FlagLast)},
		{"empty data that is not the last", slices.Concat(response(200, okBlock, "", 0), frame(Header{Type: Data}, nil))},
		{"withdrawn, unasked", frame(Header{Type: Withdrawn}, make([]byte, 8))},
		{"unknown flags", frame(Header{Type: Cut, Flags: 0x80}, nil)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, w := pair(t)
			f := request()
			s.Send(f, nil, true, 1)
			s.SetDeadline(time.Now().Add(10 * time.Second))
			go func() {
				io.ReadFull(w, make([]byte, len(f)))
				w.Write(tt.stream)
			}()
			_, _, _, err := answer(t, s)
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("ended with %v, want %v", err, ErrProtocol)
			}
			s.Abandon()
		})
	}
}

// However the waiting ends, the slot says how.
func TestWaitingEnds(t *testing.T) {
	tests := []struct {
		name string
		end  func(*Slot, *net.UnixConn)
		want error
	}{
		{"aborted", func(s *Slot, _ *net.UnixConn) { s.Abort() }, ErrAborted},
		{"worker dead, its connection held open", func(s *Slot, _ *net.UnixConn) { s.Lose() }, ErrLost},
		{"connection closed", func(_ *Slot, w *net.UnixConn) { w.Close() }, ErrLost},
		{"deadline over", func(s *Slot, _ *net.UnixConn) { s.SetDeadline(time.Unix(1, 0)) }, ErrDeadline},
	}
	for _, tt := range tests {
		for _, when := range []string{"before it waits", "while it waits"} {
			t.Run(tt.name+" "+when, func(t *testing.T) {
				s, w := pair(t)
				f := request()
				s.Send(f, nil, true, 1)
				if when == "before it waits" {
					tt.end(s, w)
				} else {
					go func() {
						io.ReadFull(w, make([]byte, len(f))) // Receive has written, and waits or is about to
						tt.end(s, w)
					}()
				}
				if _, err := s.Receive(new(Buffer), records{}); !errors.Is(err, tt.want) {
					t.Errorf("ended with %v, want %v", err, tt.want)
				}
				s.Abandon()
				if s.State() != SlotAbandoned {
					t.Errorf("slot is %v", s.State())
				}
			})
		}
	}
}

// An Abort that came too late for its exchange does not touch the next.
func TestLateAbort(t *testing.T) {
	s, w := pair(t)
	go func() {
		for number := uint64(1); number <= 2; number++ {
			io.ReadFull(w, make([]byte, len(request())))
			w.Write(responseTo(number, 200, okBlock, "x", FlagLast))
		}
	}()
	for number := uint64(1); number <= 2; number++ {
		f := request()
		s.Send(f, nil, true, number)
		s.SetDeadline(time.Now().Add(10 * time.Second))
		if _, _, _, err := answer(t, s); err != nil {
			t.Fatalf("exchange %d: %v", number, err)
		}
		s.Abort()
	}
}

// A slot is not greeted by anything but a greeting of our version.
func TestGreetings(t *testing.T) {
	for name, hello := range map[string][]byte{
		"another version": frame(Header{Type: Greeting, Aux: 9}, nil),
		"an answer":       response(200, okBlock, "", FlagLast),
		"garbage":         []byte("SSH-2.0-OpenSSH\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "w"), Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			nc, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
			if err != nil {
				t.Fatal(err)
			}
			w, err := l.AcceptUnix()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			w.Write(hello)
			s := NewSlot(0, nil)
			if err := s.Connect(nc, time.Now().Add(10*time.Second)); !errors.Is(err, ErrProtocol) {
				t.Errorf("%v, want %v", err, ErrProtocol)
			}
			if s.State() != SlotClosed {
				t.Errorf("slot is %v", s.State())
			}
		})
	}
}

// Begun is what the worker has stored, and Withdraw settles who was first.
func TestWithdraw(t *testing.T) {
	page, f, err := NewPage()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer page.Close()
	worker, err := MapPage(f)
	if err != nil {
		t.Fatal(err)
	}
	defer worker.Close()
	if !worker.Begin(7, 41) || !page.Begun(7, 41) || page.Begun(7, 42) || page.Begun(6, 41) {
		t.Error("begun is not what the worker stored")
	}
	if !page.Begun(7, 40) {
		t.Error("an exchange before one that was begun counts as never started")
	}
	if !page.Withdraw(7, 42) {
		t.Error("an exchange that has not begun was not withdrawn")
	}
	if worker.Begin(7, 42) {
		t.Error("a withdrawn exchange began")
	}
	if page.Withdraw(7, 42) {
		t.Error("an exchange whose number is stored was said not to begin")
	}
	if _, err := fmt.Fprint(f, "x"); err != nil {
		t.Errorf("the page is not writable: %v", err)
	}
	if err := f.Truncate(0); err == nil {
		t.Error("the page can be truncated: SIGBUS for the supervisor")
	}
}

// A plainReader reads answers as Receive does, but with nothing to be quick
// about: frame after frame, from all that a worker has sent.
type plainReader struct {
	stream []byte
	number uint64 // whose turn it is
	stale  uint64 // was taken back, so its WITHDRAWN comes first
	asked  uint64 // may answer WITHDRAWN itself
}

// answer returns the next answer's block and body in one, and how it ended.
func (r *plainReader) answer() (content string, a Answer, err error) {
	for begun := false; ; {
		if len(r.stream) < HeaderLen {
			return content, a, ErrLost
		}
		h, err := ParseHeader(r.stream)
		if err != nil {
			return content, a, err
		}
		payload := r.stream[HeaderLen:]
		short := len(payload) < int(h.Length)
		take := int(h.Length)
		switch {
		case h.Type == Withdrawn && !begun:
			if short {
				return content, a, ErrLost
			}
			r.stream = payload[take:]
			switch n := binary.LittleEndian.Uint64(payload); {
			case n == r.stale && n != 0:
				r.stale = 0
				continue
			case n == r.number && n == r.asked:
				a.Withdrawn = true
				return content, a, nil
			}
			return content, a, ErrProtocol
		case r.stale != 0:
			return content, a, ErrProtocol
		case h.Type == Response && !begun:
			if len(payload) < ResponseFixed {
				return content, a, ErrLost
			}
			n := int(binary.LittleEndian.Uint16(payload))
			if binary.LittleEndian.Uint16(payload[2:]) != Echo(r.number) || n > take-ResponseFixed {
				return content, a, ErrProtocol
			}
			payload, take = payload[ResponseFixed:], take-ResponseFixed
			if len(payload) < n {
				return content, a, ErrLost
			}
			if CheckHeaderBlock(payload[:n], h.Aux) != nil {
				return content, a, ErrProtocol
			}
			begun = true
		case h.Type == Data && begun:
			if take == 0 && !h.Last() {
				return content, a, ErrProtocol
			}
		case h.Type == Cut && h.Aux == Echo(r.number):
			a.Cut = true
		default:
			return content, a, ErrProtocol
		}
		if short {
			return content + string(payload), a, ErrLost
		}
		content += string(payload[:take])
		r.stream = payload[take:]
		if a.Last = h.Last(); a.Last || a.Cut {
			return content, a, nil
		}
	}
}

// What a second exchange does behind the first in FuzzAnswer.
const (
	noSecond        = iota
	secondAnswered  // and its answer stands behind the first's
	secondTaken     // taken back before it began: its WITHDRAWN stands there, and a third's answer
	secondTakenLate // taken back when the worker may have begun it: one of the two stands there
	secondWays
)

// Whatever a worker sends, wherever it is split between two reads, a slot makes of
// it what plainReader does: the same answers, or an error of the same kind with
// nothing handed out that did not stand there, and no frame with a gap.
func FuzzAnswer(f *testing.F) {
	first, second := response(200, okBlock, "body", FlagLast), responseTo(2, 404, "Status: 404 Not Found\r\n\r\n", "", FlagLast)
	withdrawn := frame(Header{Type: Withdrawn}, binary.LittleEndian.AppendUint64(nil, 2))
	for _, seed := range []struct {
		way    uint8
		stream []byte
	}{
		{noSecond, first},
		{noSecond, slices.Concat(response(200, okBlock, "", 0), frame(Header{Type: Data, Flags: FlagLast}, []byte("x")))},
		{noSecond, slices.Concat(response(200, okBlock, "", 0), frame(Header{Type: Cut, Flags: FlagFailed, Aux: 1}, nil))},
		{noSecond, frame(Header{Type: Cut, Flags: FlagFailed}, nil)},
		{noSecond, bytes.Repeat([]byte{17}, 100)},
		{noSecond, slices.Concat(first, first)},
		{secondAnswered, slices.Concat(first, second)},
		{secondTaken, slices.Concat(first, withdrawn, responseTo(3, 200, okBlock, "third", FlagLast))},
		{secondTakenLate, slices.Concat(first, withdrawn)},
		{secondTakenLate, slices.Concat(first, second)},
	} {
		f.Add(seed.stream, len(seed.stream)/2, seed.way)
	}
	f.Fuzz(func(t *testing.T, stream []byte, split int, way uint8) {
		s, w := pair(t)
		plain := plainReader{stream: stream, number: 1}
		s.Send(request(), nil, true, 1)
		s.Flush() // Receive would wait for what comes behind the request, but here it may have come before
		way %= secondWays
		if way != noSecond && !s.sendBehind(request(), 2) {
			t.Fatal("the second was not sent")
		}
		if way == secondTaken || way == secondTakenLate {
			s.asked.Store(2) // as Withdraw does, whose barrier takes milliseconds
		}
		split = max(0, min(split, len(stream)))
		go func() { // ends with the stream, or with the slot
			w.Write(stream[:split])
			w.Write(stream[split:])
			w.CloseWrite()
		}()
		for n := 1; ; n++ {
			s.SetDeadline(time.Now().Add(20 * time.Second))
			wantContent, want, wantErr := plain.answer()
			block, content, got, err := answer(t, s)
			if err != nil && wantErr == nil && (n == 2 || way == noSecond) && len(plain.stream) > 0 && errors.Is(err, ErrProtocol) {
				return // it has seen what stands behind the last answer
			}
			switch {
			case wantErr != nil && err == nil, wantErr == nil && err != nil, errors.Is(wantErr, ErrProtocol) != errors.Is(err, ErrProtocol):
				t.Fatalf("answer %d: %v, want %v", n, err, wantErr)
			case !strings.HasPrefix(wantContent, content), !strings.HasPrefix(content, block), err == nil && content != wantContent:
				t.Fatalf("answer %d: %.60q, block %.60q, want %.60q", n, content, block, wantContent)
			case err == nil && (got.Last != want.Last || got.Cut != want.Cut || got.Withdrawn != want.Withdrawn || s.State() != SlotGreeted):
				t.Fatalf("answer %d: ended as %+v, slot %v, want %+v", n, got, s.State(), want)
			case err != nil || n == 2 || way == noSecond:
				return
			case way == secondTaken:
				plain.number, plain.stale = 3, 2
				s.Send(request(), nil, true, 3)
				s.Flush()
			default:
				plain.number = 2
				if way == secondTakenLate {
					plain.asked = 2
				}
				s.Advance()
			}
		}
	})
}

// One exchange, both ends raw: what the slot itself costs.
func BenchmarkSlot(b *testing.B) {
	s, w := pair(b)
	f := request()
	reply := response(200, okBlock, "Hello, World!\n", FlagLast)
	go func() {
		in := make([]byte, 4096)
		for {
			if _, err := w.Read(in); err != nil {
				return
			}
			copy(reply[HeaderLen+2:], in[HeaderLen:HeaderLen+2]) // the echo
			w.Write(reply)
		}
	}()
	buf := new(Buffer)
	b.ReportAllocs()
	for b.Loop() {
		s.Send(f, nil, true, s.Number()+1)
		s.SetDeadline(time.Now().Add(time.Minute))
		if a, err := s.Receive(buf, records{}); err != nil || !a.Last {
			b.Fatal(err)
		}
	}
}

// A second exchange is answered behind the first, however the two answers are
// cut into reads.
func TestSecondAnswered(t *testing.T) {
	both := slices.Concat(response(200, okBlock, "first", FlagLast), responseTo(2, 200, okBlock, "second", FlagLast))
	for cut := 1; cut < len(both); cut++ {
		s, w := pair(t)
		s.Send(request(), nil, true, 1)
		if s.SendBehind(request(), nil, 2) {
			t.Fatal("sent before the first")
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		if !s.sendBehind(request(), 2) || s.SendBehind(request(), nil, 3) {
			t.Fatal("want one to be sent behind, and one only")
		}
		w.Write(both[:cut])
		time.AfterFunc(time.Millisecond, func() { w.Write(both[cut:]) })
		if _, content, _, err := answer(t, s); err != nil || content != okBlock+"first" {
			t.Fatalf("cut at %d: first %q, %v", cut, content, err)
		}
		s.Advance()
		if _, content, _, err := answer(t, s); err != nil || content != okBlock+"second" || s.State() != SlotGreeted {
			t.Fatalf("cut at %d: second %q, %v", cut, content, err)
		}
		s.Close()
		w.Close()
	}
}

// sendBehind sends an exchange behind one that Flush has written all of.
func (s *Slot) sendBehind(head []byte, number uint64) bool {
	s.open.Store(true) // which Receive does when it has written the request
	return s.SendBehind(head, nil, number)
}

// The WITHDRAWN of a second exchange comes before the next answer and is
// dropped; no other is taken.
func TestSecondWithdrawn(t *testing.T) {
	withdrawn := func(n uint64) []byte {
		return frame(Header{Type: Withdrawn}, binary.LittleEndian.AppendUint64(nil, n))
	}
	last := responseTo(3, 200, okBlock, "third", FlagLast)
	for name, c := range map[string]struct {
		sent []byte
		ok   bool
	}{
		"as it should be":   {slices.Concat(withdrawn(2), last), true},
		"of another":        {slices.Concat(withdrawn(3), last), false},
		"not at all":        {last, false},
		"twice":             {slices.Concat(withdrawn(2), withdrawn(2), last), false},
		"behind the answer": {slices.Concat(last, withdrawn(2)), false},
	} {
		s, w := pair(t)
		s.Send(request(), nil, true, 1)
		s.Flush()
		if !s.sendBehind(request(), 2) || !s.Withdraw(2) {
			t.Fatal("not sent, or not withdrawn")
		}
		w.Write(response(200, okBlock, "first", FlagLast))
		if _, _, _, err := answer(t, s); err != nil {
			t.Fatal(err)
		}
		s.Send(request(), nil, true, 3)
		s.Flush()
		w.Write(c.sent)
		_, content, _, err := answer(t, s)
		if c.ok != (err == nil && content == okBlock+"third") || !c.ok && !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %q, %v", name, content, err)
		}
	}
}

// The exchange that a slot holds is not withdrawn where that would undo what was done
// to one behind it: the page has one word for both.
func TestWithdrawHeld(t *testing.T) {
	alone, _ := pair(t)
	alone.Send(request(), nil, true, 1)
	if !alone.WithdrawHeld() {
		t.Error("an exchange that is alone was not withdrawn")
	}
	s, w := pair(t)
	s.Send(request(), nil, true, 1)
	s.Flush()
	s.open.Store(true)
	if !s.SendBehind(request(), nil, 2) || !s.Withdraw(2) {
		t.Fatal("not sent, or not withdrawn")
	}
	if s.WithdrawHeld() {
		t.Error("withdrawn, with another behind it")
	}
	w.Write(response(200, okBlock, "first", FlagLast))
	if _, _, _, err := answer(t, s); err != nil {
		t.Fatal(err)
	}
	s.Send(request(), nil, true, 3)
	if s.WithdrawHeld() {
		t.Error("withdrawn, before the WITHDRAWN of the other has come")
	}
}

// What the kernel might take in two parts is not sent behind another exchange.
func TestSecondTooLong(t *testing.T) {
	s, w := pair(t)
	s.Send(request(), nil, true, 1)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	s.open.Store(true)
	if s.SendBehind(request(), make([]byte, MaxBehind), 2) {
		t.Error("sent more than MaxBehind bytes")
	}
	if !s.SendBehind(request(), make([]byte, MaxBehind-len(request())), 2) {
		t.Error("did not send MaxBehind bytes")
	}
	w.Close()
}
