package fcgi

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// A small answer leaves in one write, with its end: over a socket that keeps writes
// apart, it is one packet. So is whatever else is a record to itself.
func TestSmallAnswerIsOneWrite(t *testing.T) {
	head := "Content-Type: text/plain\r\nX: " + strings.Repeat("x", 9000) + "\r\n\r\n"
	p := connect(t, start(t, &Server{Handler: func(r *Request) {
		switch param(r, "A") {
		case "last":
			say(r, "answer")
		case "head":
			io.WriteString(r, head)
		}
	}}, "unixpacket"))
	packet := make([]byte, 1<<16)
	next := func() string {
		n, err := p.nc.Read(packet)
		if err != nil {
			t.Fatal(err)
		}
		return string(packet[:n])
	}
	over := string(appendEnd(appendHeader(nil, typeStdout, 1, 0), 1, 0, StatusRequestComplete))
	for range 3 {
		p.send(get(1, "A", "last"))
		if got, want := next(), string(appendRecord(nil, typeStdout, 1, []byte("answer")))+over; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		p.send(get(1, "A", "head"))
		if got, want := next(), string(appendRecord(nil, typeStdout, 1, []byte(head))); got != want {
			t.Errorf("head: got %d bytes, want %d in one record", len(got), len(want))
		}
		if got := next(); got != over {
			t.Errorf("end: got %q, want %q", got, over)
		}
	}
}

// Goroutines that write to one connection never mix their records.
func TestWritersDoNotMix(t *testing.T) {
	p := connect(t, start(t, &Server{Handler: func(r *Request) {
		var wg sync.WaitGroup
		for _, c := range "abc" {
			wg.Go(func() { // ends after its writes
				for range 50 {
					r.Write(bytes.Repeat([]byte{byte(c)}, 5000))
				}
			})
		}
		wg.Wait()
	}}, "unix"))
	for id := uint16(1); id <= 4; id++ {
		p.send(get(id))
	}
	for ends, n := 0, 0; ends < 4; {
		h, content, err := p.next()
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case h.typ == typeEndRequest:
			ends++
		case strings.Trim(content, content[:min(1, len(content))]) != "":
			t.Fatalf("record %d is mixed: %.100q", n, content)
		}
		n++
	}
}

// An idle connection is left alone, whatever went before; here for as long as
// others need to come and go.
func TestIdleConnectionStaysOpen(t *testing.T) {
	addr := start(t, &Server{Handler: echo}, "unix")
	p := connect(t, addr)
	p.send(get(1, "A", "x"))
	p.answer(1)
	for range 300 {
		q := connect(t, addr)
		q.send(get(1))
		q.answer(1)
		q.nc.Close()
	}
	p.nc.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	var ne net.Error
	if _, err := p.br.ReadByte(); !errors.As(err, &ne) || !ne.Timeout() {
		t.Fatalf("idle connection: %v", err)
	}
	p.nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	p.send(get(1, "A", "y"))
	if got := p.answer(1).stdout; got != "y:" {
		t.Errorf("got %q", got)
	}
}

// Any bytes on a connection are answered with whole records or end it; with the
// client's end everything of the connection ends; and others are served as ever.
func FuzzConn(f *testing.F) {
	s := &Server{Handler: echo, MaxParams: 1 << 12, BodyBuffer: 1 << 10, MaxRequests: 4, SpoolDir: f.TempDir()}
	addr := start(f, s, "unix")
	for _, seed := range [][]byte{
		get(1, "A", "x"),
		bytes.Join([][]byte{begin(1), params(1, "A", "x"), stdin(1, "body"), stdin(1, ""), get(1)}, nil),
		bytes.Join([][]byte{begin(1), begin(2), params(2), stdin(2, ""), params(1), stdin(1, strings.Repeat("b", 3000)), abort(1)}, nil),
		bytes.Join([][]byte{begin(1), params(1), stdin(1, strings.Repeat("b", 3000)), begin(2), params(2), abort(2), stdin(1, "")}, nil),
		bytes.Join([][]byte{get(1), get(2), get(3), get(4), get(5), get(6)}, nil),
		append(appendBegin(nil, 1, RoleResponder, false), params(1)...),
		append(appendBegin(nil, 1, RoleAuthorizer, true), params(1)...),
		append(appendBegin(nil, 1, RoleFilter, false), get(1)...),
		append(begin(1), params(1, "A", strings.Repeat("x", 1<<13))...),
		append(appendRecord(nil, typeGetValues, 0, AppendParam(nil, "FCGI_MPXS_CONNS", "")), appendRecord(nil, 99, 0, []byte("x"))...),
		append(begin(1), abort(1)...),
		append(get(1)[:20], "\xff\xff"...),
		[]byte("GET / HTTP/1.0\r\n\r\n"),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		good, bad := connect(t, addr), connect(t, addr)
		sent := make(chan struct{})
		go func() { // ends with the input, or with the connection
			defer close(sent)
			bad.nc.Write(in)
			bad.nc.(*net.UnixConn).CloseWrite()
		}()
		for {
			h, content, err := bad.next()
			if err != nil {
				if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
					t.Fatalf("%q: neither answered nor closed", in)
				}
				break
			}
			switch h.typ {
			case typeStdout, typeStderr, typeEndRequest, typeGetValuesResult, typeUnknownType:
			default:
				t.Fatalf("%q: answered with %v", in, h.typ)
			}
			if h.version != version1 || h.typ == typeEndRequest && len(content) != 8 {
				t.Fatalf("%q: answered with %+v %q", in, h, content)
			}
		}
		<-sent
		bad.nc.Close()
		good.send(get(1, "A", "good"))
		if got := good.answer(1); got != (end{stdout: "good:"}) {
			t.Fatalf("beside %q, a good request got %+v", in, got)
		}
		good.nc.Close()
		until(t, "both connections are gone", func() bool { return s.Stats().Conns == 0 })
	})
}

// However the parameters and bodies of two requests are cut into records, these padded
// and mixed with each other's, and the whole split into writes: each
// request is the one that it was.
func FuzzRecords(f *testing.F) {
	f.Add("value", "body", []byte{})
	f.Add("", "", []byte{0, 1, 2, 3})
	f.Add(strings.Repeat("v", 200), strings.Repeat("b", 3000), []byte{0xfe, 0xff, 7, 9, 3, 0x80, 0x41, 1})
	f.Add("x", strings.Repeat("b", 100), []byte{0, 1, 0, 0xff, 1, 0, 2, 1})
	addr := start(f, &Server{Handler: echo, BodyBuffer: 1 << 10, SpoolDir: f.TempDir()}, "unix")
	f.Fuzz(func(t *testing.T, one, other string, cuts []byte) {
		if len(one)+len(other) > 1<<16 { // so that many are tried
			return
		}
		cut := func() (c int) { // the next one; behind the last, large ones
			if len(cuts) == 0 {
				return 0xff
			}
			c, cuts = int(cuts[0]), cuts[1:]
			return c
		}
		type stream struct {
			typ     recordType
			id      uint16
			content string
		}
		value := map[uint16]string{1: one, 2: other}
		body := map[uint16]string{1: other, 2: one}
		var todo []stream
		for id := uint16(1); id <= 2; id++ {
			todo = append(todo, stream{typeParams, id, string(AppendParam(nil, "A", value[id]))})
		}
		in := append(begin(1), begin(2)...)
		for len(todo) > 0 {
			// A part of one of the two streams: of its content, or its end.
			c := cut()
			i := c % len(todo)
			s := &todo[i]
			n := min(1+c*c/8, len(s.content))
			padding := cut() % 16
			in = appendHeader(in, s.typ, s.id, n)
			in[len(in)-2] = byte(padding)
			in = append(in, s.content[:n]...)
			in = append(in, make([]byte, padding)...)
			switch s.content = s.content[n:]; {
			case n > 0:
			case s.typ == typeParams:
				*s = stream{typeStdin, s.id, body[s.id]}
			default:
				todo = append(todo[:i], todo[i+1:]...)
			}
		}
		p := connect(t, addr)
		defer p.nc.Close()
		go func() { // ends with the input, or with the connection
			for len(in) > 0 {
				n := min(1+cut()*cut()/8, len(in))
				p.nc.Write(in[:n])
				in = in[n:]
			}
		}()
		got := map[uint16]string{}
		for ends := 0; ends < 2; {
			h, content, err := p.next()
			if err != nil {
				t.Fatalf("after %v: %v", got, err)
			}
			switch h.typ {
			case typeStdout:
				got[h.id] += content
			case typeEndRequest:
				ends++
			default:
				t.Fatalf("%v for request %d: %q", h.typ, h.id, content)
			}
		}
		for id := range value {
			if want := value[id] + ":" + body[id]; got[id] != want {
				t.Fatalf("request %d was answered with %.100q, want %.100q", id, got[id], want)
			}
		}
	})
}
