package fcgi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Many requests come one after the other on one connection, and nothing of
// one shows in the next.
func TestKeptConnectionCarriesRequestAfterRequest(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			p := connect(t, start(t, &Server{Handler: echo}, network))
			for i := range 200 {
				a, body := strconv.Itoa(i), strings.Repeat("b", i*7%300)
				req := [][]byte{begin(1), params(1, "A", a)}
				if body != "" {
					req = append(req, stdin(1, body))
				}
				p.send(append(req, stdin(1, ""))...)
				if got, want := p.answer(1).stdout, a+":"+body; got != want {
					t.Fatalf("request %d: got %q, want %q", i, got, want)
				}
			}
		})
	}
}

// Requests on one connection are answered each when it is ready, whatever came first.
func TestRequestsInterleaveInAnyOrder(t *testing.T) {
	gates := map[string]chan struct{}{"1": make(chan struct{}), "2": make(chan struct{}), "7": make(chan struct{})}
	p := connect(t, start(t, &Server{Handler: func(r *Request) {
		body, _ := io.ReadAll(r)
		a := param(r, "A")
		<-gates[a]
		say(r, a+":"+string(body))
	}}, "unix"))
	p.send(
		begin(1), begin(7), params(7, "A", "7"), begin(2), params(1, "A", "1"),
		stdin(7, "se"), params(2, "A", "2"), stdin(1, "one"), stdin(2, "tw"), stdin(7, "ven"),
		stdin(2, "o"), stdin(2, ""), stdin(7, ""), stdin(1, ""),
	)
	for _, want := range []string{"7:seven", "1:one", "2:two"} {
		close(gates[want[:1]])
		id, _ := strconv.Atoi(want[:1])
		if got := p.answer(uint16(id)).stdout; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A request may come in two pieces, cut at any byte: in a header, in
// a length, in a name. Its parameters may be split over two records as well.
func TestRequestSplitAtAnyByte(t *testing.T) {
	long := strings.Repeat("v", 200) // a length of four bytes
	pairs := AppendParam(AppendParam(AppendParam(nil, "A", "x"), long, "n"), "B", long)
	padded := appendRecord(nil, typeStdin, 1, []byte("body"))
	padded[6] = 5
	padded = append(padded, "?????"...)
	want := "x:" + long + ":body"
	p := connect(t, start(t, &Server{Handler: func(r *Request) {
		body, _ := io.ReadAll(r)
		say(r, param(r, "A")+":"+param(r, "B")+":"+string(body))
	}}, "unix"))

	t.Run("records", func(t *testing.T) {
		for at := range len(pairs) + 1 {
			p.t = t
			req := begin(1)
			for _, part := range [][]byte{pairs[:at], pairs[at:]} {
				if len(part) > 0 {
					req = appendRecord(req, typeParams, 1, part)
				}
			}
			p.send(req, params(1), padded, stdin(1, ""))
			if got := p.answer(1).stdout; got != want {
				t.Fatalf("split at %d: got %q", at, got)
			}
		}
	})
	t.Run("writes", func(t *testing.T) {
		whole := bytes.Join([][]byte{begin(1), appendRecord(nil, typeParams, 1, pairs), params(1), padded, stdin(1, "")}, nil)
		for at := 1; at < len(whole); at++ {
			p.t = t
			p.send(whole[:at])
			p.send(whole[at:])
			if got := p.answer(1).stdout; got != want {
				t.Fatalf("split at %d: got %q", at, got)
			}
		}
	})
	t.Run("every byte by itself", func(t *testing.T) {
		p.t = t
		whole := bytes.Join([][]byte{begin(1), appendRecord(nil, typeParams, 1, pairs), params(1), padded, stdin(1, "")}, nil)
		for i := range whole {
			p.send(whole[i : i+1])
		}
		if got := p.answer(1).stdout; got != want {
			t.Fatalf("got %q", got)
		}
	})
}

// A Request is used again, by whatever connection comes first; the one that had it
// does not touch it any more, even when its Handler ends with the last byte.
func TestRequestsAreUsedAgain(t *testing.T) {
	addr := start(t, &Server{Handler: echo}, "unix")
	done := make(chan struct{})
	for c := range 4 {
		go func() { // ends after its requests
			defer func() { done <- struct{}{} }()
			nc, err := net.Dial("unix", addr.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer nc.Close()
			a := strconv.Itoa(c)
			want := appendEnd(appendHeader(appendRecord(appendRecord(nil, typeStdout, 1, []byte(a+":")), typeStdout, 1, []byte("ab")), typeStdout, 1, 0), 1, 0, 0)
			got := make([]byte, len(want))
			for range 500 {
				for _, b := range [][]byte{append(begin(1), params(1, "A", a)...), stdin(1, "a"), stdin(1, "b"), stdin(1, "")} {
					nc.Write(b)
				}
				if _, err := io.ReadFull(nc, got); err != nil || !bytes.Equal(got, want) {
					t.Errorf("connection %d: got %q, %v; want %q", c, got, err, want)
					return
				}
			}
		}()
	}
	for range 4 {
		within(t, "a connection's requests", done)
	}
}

// The application is called as soon as the parameters are there: it may have
// its answer before the body comes, and a limit on its time must run.
func TestHandlerStartsBeforeTheBody(t *testing.T) {
	p := connect(t, start(t, &Server{Handler: func(r *Request) {
		if b, all := r.First(); len(b) > 0 || all {
			t.Errorf("First gave %q, %v", b, all)
		}
		say(r, "no body wanted")
	}}, "unix"))
	p.send(begin(1), params(1))
	if got := p.answer(1).stdout; got != "no body wanted" {
		t.Errorf("got %q", got)
	}
	p.send(stdin(1, "late"), stdin(1, ""), begin(1), params(1)) // what comes late is discarded
	if got := p.answer(1).stdout; got != "no body wanted" {
		t.Errorf("then got %q", got)
	}
}

// Where requests share a connection, a body that nobody reads does not hold up the
// others, and is all there when it is read.
func TestUnreadBodyDoesNotStallOthers(t *testing.T) {
	const size = 8 << 20
	read := make(chan struct{})
	dir := t.TempDir()
	addr := start(t, &Server{SpoolDir: dir, Handler: func(r *Request) {
		if param(r, "A") == "slow" {
			<-read
			h := sha256.New()
			n, err := io.Copy(h, r)
			say(r, fmt.Sprintf("%d %x %v", n, h.Sum(nil), err))
			return
		}
		say(r, "quick")
	}}, "unix")
	p := connect(t, addr)
	body := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	p.send(get(3, "A", "quick"))
	if got := p.answer(3).stdout; got != "quick" {
		t.Fatalf("got %q", got)
	}
	p.send(begin(1), params(1, "A", "slow"))
	for rest := body; len(rest) > 0; rest = rest[1<<15:] {
		p.send(appendRecord(nil, typeStdin, 1, rest[:1<<15]))
	}
	p.send(get(3, "A", "quick"))
	if got := p.answer(3).stdout; got != "quick" {
		t.Fatalf("behind an unread body, got %q", got)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("the body's file has a name: %v, %v", left, err)
	}
	p.send(stdin(1, ""))
	close(read)
	if got, want := p.answer(1).stdout, fmt.Sprintf("%d %x <nil>", size, sha256.Sum256(body)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Where they don't, the body waits in the client, and the server holds no
// more than its buffer; reading goes on when the Handler does, also with the smallest buffer.
func TestUnreadBodyWaitsInTheClient(t *testing.T) {
	for _, buffer := range []int{1, 100, 128 << 10} {
		t.Run(strconv.Itoa(buffer), func(t *testing.T) {
			const size = 4 << 20
			read := make(chan struct{})
			held := make(chan *Request, 1)
			p := connect(t, start(t, &Server{BodyBuffer: buffer, Handler: func(r *Request) {
				held <- r
				<-read
				n, err := io.Copy(io.Discard, r)
				say(r, fmt.Sprint(n, err))
			}}, "unix"))
			sent := make(chan struct{})
			var progress atomic.Int64
			go func() { // ends when the body is sent, or the test's connection closed
				defer close(sent)
				p.nc.Write(bytes.Join([][]byte{begin(1), params(1)}, nil))
				for range size >> 14 {
					n, _ := p.nc.Write(appendRecord(nil, typeStdin, 1, make([]byte, 1<<14)))
					progress.Add(int64(n))
				}
				p.nc.Write(stdin(1, ""))
			}()
			r := within(t, "the request", held)
			paused := func() bool { r.conn.mu.Lock(); defer r.conn.mu.Unlock(); return r.conn.paused == r }
			until(t, "the connection is left unread", paused)
			r.conn.mu.Lock()
			if n := len(r.in); n > buffer+readBuffer {
				t.Errorf("%d bytes held, want at most the buffer and one read: %d", n, buffer+readBuffer)
			}
			r.conn.mu.Unlock()
			if n := progress.Load(); n >= size {
				t.Errorf("all of the body was taken, %d bytes", n)
			}
			close(read)
			within(t, "the body to be sent", sent)
			if got, want := p.answer(1).stdout, fmt.Sprint(size, nil); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// A client that leaves is noticed while the Handler works, however it leaves and
// whatever the Handler waits for.
func TestLeavingIsNoticed(t *testing.T) {
	leave := map[string]func(p *peer){
		"abort": func(p *peer) { p.send(abort(1)) },
		"close": func(p *peer) { p.nc.Close() },
	}
	body := map[string][]byte{
		"body ended":       stdin(1, ""),
		"body on its way":  stdin(1, "part"),
		"body not there":   nil,
		"body left unread": bytes.Repeat(stdin(1, strings.Repeat("x", 1<<15)), 5), // only close shows behind it
	}
	wait := map[string]func(r *Request, told <-chan struct{}){
		"Gone":  func(r *Request, _ <-chan struct{}) { <-r.Gone() },
		"Watch": func(r *Request, told <-chan struct{}) { <-told },
		"Read": func(r *Request, _ <-chan struct{}) {
			if _, err := io.Copy(io.Discard, r); err == nil {
				<-r.Gone() // the body had ended
			} else if !errors.Is(err, ErrGone) {
				panic(err)
			}
		},
	}
	for how, leave := range leave {
		for state, body := range body {
			for what, wait := range wait {
				if state == "body left unread" && (how == "abort" || what == "Read") {
					continue
				}
				t.Run(how+"/"+state+"/"+what, func(t *testing.T) {
					entered, left := make(chan struct{}), make(chan struct{})
					p := connect(t, start(t, &Server{Handler: func(r *Request) {
						a := aborter(make(chan struct{}))
						if !r.Watch(a) {
							t.Error("gone before it left")
						}
						close(entered)
						wait(r, a)
						if r.Watch(a) {
							t.Error("Watch after the leave reported true")
						}
						r.End(0)
						close(left)
					}}, "unix"))
					p.send(begin(1), params(1), body)
					within(t, "the Handler", entered)
					leave(p)
					within(t, "the Handler's notice", left)
				})
			}
		}
	}
}

// A client that has left, or only stopped sending, before its request is read is
// noticed too, though the poller tells of both together.
func TestLeavingBeforeItIsRead(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			address := "127.0.0.1:0"
			if network == "unix" {
				address = filepath.Join(t.TempDir(), "s")
			}
			l, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			gone, half := connect(t, l.Addr()), connect(t, l.Addr())
			for _, p := range []*peer{gone, half} {
				p.send(begin(1), params(1), stdin(1, ""))
				p.nc.(interface{ CloseWrite() error }).CloseWrite()
			}
			gone.nc.Close()

			noticed := make(chan struct{}, 2)
			s := &Server{Handler: func(r *Request) {
				<-r.Gone()
				noticed <- struct{}{}
				r.End(0)
			}}
			go s.Serve(l) // ends with Close
			within(t, "the notice of the first", noticed)
			within(t, "the notice of the second", noticed)
			if _, err := io.Copy(io.Discard, half.br); err != nil {
				t.Errorf("the connection ended with %v", err)
			}
			until(t, "all connections are gone", func() bool { return s.Stats().Conns == 0 })
			s.Close()
		})
	}
}

type aborter chan struct{}

func (a aborter) Abort() { close(a) }

// An aborted request is ended once, and the connection serves on; one that
// never started is ended without the Handler, one that is over is left alone.
func TestAbortLeavesTheConnectionUsable(t *testing.T) {
	var entered atomic.Int32
	p := connect(t, start(t, &Server{Handler: func(r *Request) {
		entered.Add(1)
		if param(r, "A") == "wait" {
			<-r.Gone()
			return
		}
		say(r, "served")
	}}, "unix"))
	p.send(begin(1), abort(1)) // before its parameters
	p.answer(1)
	p.send(begin(1), params(1), stdin(1, "b"), abort(1)) // in the same read
	p.answer(1)
	p.send(begin(1), params(1, "A", "wait"), stdin(1, ""))
	p.send(abort(1), abort(1))
	p.answer(1)
	p.send(abort(1), abort(9)) // after its end
	p.send(get(1))
	if got := p.answer(1).stdout; got != "served" {
		t.Errorf("got %q", got)
	}
	if n := entered.Load(); n < 1 || n > 2 { // the second read may have found the abort already
		t.Errorf("Handler called %d times", n)
	}
}

// GET_VALUES is answered with what was asked and this server knows, no more.
func TestGetValuesAnswersWhatWasAsked(t *testing.T) {
	p := connect(t, start(t, &Server{Handler: echo, MaxRequests: 7}, "unix"))
	for _, c := range []struct {
		name string
		ask  []string
		want string
	}{
		{"one", []string{"FCGI_MPXS_CONNS"}, "\x0f\x01FCGI_MPXS_CONNS1"},
		{"another", []string{"FCGI_MAX_REQS"}, "\x0d\x01FCGI_MAX_REQS7"},
		{"an unknown one", []string{"FCGI_COLOUR"}, ""},
		{"none", nil, ""},
		{
			"all, one unknown",
			[]string{"X", "FCGI_MAX_CONNS", "FCGI_MAX_REQS", "FCGI_MPXS_CONNS"},
			"\x0e\x05FCGI_MAX_CONNS65535\x0d\x01FCGI_MAX_REQS7\x0f\x01FCGI_MPXS_CONNS1",
		},
	} {
		var q []byte
		for _, n := range c.ask {
			q = AppendParam(q, n, "")
		}
		p.send(appendRecord(nil, typeGetValues, 0, q))
		h, content, err := p.next()
		if err != nil || h.typ != typeGetValuesResult || h.id != 0 || content != c.want {
			t.Errorf("%s: got %v id %d %q, %v; want %q", c.name, h.typ, h.id, content, err, c.want)
		}
	}
}

// A management record of a type nobody knows is answered with UNKNOWN_TYPE,
// and the connection goes on.
func TestUnknownTypeIsAnswered(t *testing.T) {
	p := connect(t, start(t, &Server{Handler: echo}, "unix"))
	p.send(appendRecord(nil, 99, 0, []byte("what is this")))
	if h, content, err := p.next(); err != nil || h.typ != typeUnknownType || h.id != 0 || content != "c\x00\x00\x00\x00\x00\x00\x00" {
		t.Errorf("got %v id %d %q, %v", h.typ, h.id, content, err)
	}
	p.send(get(1, "A", "on"))
	if got := p.answer(1).stdout; got != "on:" {
		t.Errorf("got %q", got)
	}
}

// A role that nobody plays is refused, and reaches no Handler; the connection
// goes on, or ends as the request says.
func TestUnknownRoleIsRefused(t *testing.T) {
	p := connect(t, start(t, &Server{Handler: echo}, "tcp"))
	for _, role := range []Role{RoleFilter, 0, 77} {
		p.send(appendBegin(nil, 1, role, true), params(1), stdin(1, "x"), stdin(1, ""))
		if e := p.answer(1); e.status != StatusUnknownRole || e.stdout != "" {
			t.Errorf("role %d: got %+v", role, e)
		}
	}
	p.send(get(1, "A", "on"))
	if got := p.answer(1).stdout; got != "on:" {
		t.Errorf("got %q", got)
	}
	p.send(appendBegin(nil, 1, RoleFilter, false), params(1, "A", strings.Repeat("a", 1<<15)))
	if e := p.answer(1); e.status != StatusUnknownRole {
		t.Errorf("got %+v", e)
	}
	p.ended()
}

// One more request than MaxRequests is ended with OVERLOADED; the others go on.
func TestOverloadedConnection(t *testing.T) {
	gate := make(chan struct{})
	p := connect(t, start(t, &Server{MaxRequests: 2, Handler: func(r *Request) { <-gate; say(r, "ok") }}, "unix"))
	p.send(get(1), get(2), get(3))
	if e := p.answer(3); e.status != StatusOverloaded {
		t.Errorf("got %+v", e)
	}
	close(gate)
	for range 2 {
		for {
			h, _, err := p.next()
			if err != nil {
				t.Fatal(err)
			}
			if h.typ == typeEndRequest {
				break
			}
		}
	}
	p.send(get(3))
	if e := p.answer(3); e.stdout != "ok" {
		t.Errorf("got %+v", e)
	}
}

// An Authorizer has no body and starts without one; a STDIN that comes all the same does no harm.
func TestAuthorizer(t *testing.T) {
	p := connect(t, start(t, &Server{Handler: func(r *Request) {
		body, err := io.ReadAll(r)
		say(r, fmt.Sprint(r.Role(), " ", len(body), err))
	}}, "tcp"))
	p.send(appendBegin(nil, 1, RoleAuthorizer, true), params(1))
	if got := p.answer(1).stdout; got != "2 0 <nil>" {
		t.Errorf("got %q", got)
	}
	p.send(stdin(1, ""), appendBegin(nil, 1, RoleAuthorizer, false), params(1), stdin(1, "x"), stdin(1, ""))
	if got := p.answer(1).stdout; got != "2 0 <nil>" {
		t.Errorf("then got %q", got)
	}
	p.ended()
}

// What the Handler has for the error log goes to STDERR, and its status into
// END_REQUEST.
func TestStderrAndAppStatus(t *testing.T) {
	p := connect(t, start(t, &Server{Handler: func(r *Request) {
		r.WriteError([]byte("one "))
		r.Write([]byte("out"))
		r.WriteError(nil)
		r.WriteError([]byte("two"))
		r.End(0x01020304)
	}}, "unix"))
	p.send(get(1))
	if got, want := p.answer(1), (end{"out", "one two", 0x01020304, StatusRequestComplete}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// A peer that breaks the protocol loses the connection, and the log says why.
func TestBrokenProtocolEndsTheConnection(t *testing.T) {
	record := func(typ recordType, id uint16, content string) []byte {
		return appendRecord(nil, typ, id, []byte(content))
	}
	for _, c := range []struct {
		name string
		send []byte
		want string
	}{
		{"HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), "record of version 71, want 1"},
		{"short BEGIN_REQUEST", record(typeBeginRequest, 1, "short"), "BEGIN_REQUEST of 5 bytes, want 8"},
		{"BEGIN_REQUEST for nobody", record(typeBeginRequest, 0, "\x00\x01\x00\x00\x00\x00\x00\x00"), "BEGIN_REQUEST for request 0"},
		{"BEGIN_REQUEST twice", append(begin(4), begin(4)...), "BEGIN_REQUEST for request 4, which has not ended"},
		{"PARAMS for nobody", record(typeParams, 0, "x"), "PARAMS for request 0"},
		{"STDIN for nobody", record(typeStdin, 0, "x"), "STDIN for request 0"},
		{"STDIN before PARAMS end", append(begin(1), stdin(1, "x")...), "STDIN for request 1 before the end of its PARAMS"},
		{"PARAMS after their end", bytes.Join([][]byte{begin(1), params(1), params(1, "A", "b")}, nil), "PARAMS for request 1 after their end"},
		{"half a pair", bytes.Join([][]byte{begin(1), record(typeParams, 1, "\x04\x04NAMEval"), params(1)}, nil), "PARAMS of request 1: name-value pairs end inside a pair"},
		{"a pair of 2 GiB", bytes.Join([][]byte{begin(1), record(typeParams, 1, "\xff\xff\xff\xff\xff\xff\xff\xffA"), params(1)}, nil), "PARAMS of request 1: name-value pairs end inside a pair"},
		{"GET_VALUES for somebody", record(typeGetValues, 1, ""), "GET_VALUES for request 1, want 0"},
		{"long GET_VALUES", record(typeGetValues, 0, strings.Repeat("\x00", maxGetValues+2)), "GET_VALUES of 1026 bytes, at most 1024"},
		{"half a question", record(typeGetValues, 0, "\x09"), "GET_VALUES: name-value pairs end inside a pair"},
		{"an application's record", record(typeStdout, 1, "x"), "STDOUT for request 1"},
		{"unknown record of a request", record(55, 1, "x"), "record type 55 for request 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := new(lines)
			s := &Server{Handler: func(r *Request) { <-r.Gone() }, Logger: log.logger()}
			p := connect(t, start(t, s, "unix"))
			p.send(c.send)
			if got := p.ended(); got != "" {
				t.Errorf("answered %q", got)
			}
			until(t, "the connection is gone", func() bool { return s.Stats().Conns == 0 })
			if !strings.Contains(log.String(), "fastcgi protocol broken: "+c.want) {
				t.Errorf("log %q does not say %q", log.String(), c.want)
			}
		})
	}
}

// Parameters beyond MaxParams are not kept, and the Handler is told; exactly
// as many are.
func TestTooManyParams(t *testing.T) {
	p := connect(t, start(t, &Server{MaxParams: 1000, Handler: func(r *Request) {
		say(r, fmt.Sprint(r.TooLarge(), len(r.Params()), cap(r.Params()) <= 4096))
	}}, "unix"))
	for n, want := range map[int]string{1000: "false 1000 true", 1001: "true 0 true", 60000: "true 0 true"} {
		b := appendRecord(begin(1), typeParams, 1, AppendParam(nil, "AAAAA", strings.Repeat("v", n-10)))
		p.send(b, params(1), stdin(1, ""))
		if got := p.answer(1).stdout; got != want {
			t.Errorf("%d bytes: got %s, want %s", n, got, want)
		}
	}
}

// An answer is not lost when its request's body was not read and the connection
// ends behind it, be it paused or still coming.
func TestAnswerBeforeUnreadBodyArrives(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			addr := start(t, &Server{BodyBuffer: 4 << 10, Handler: func(r *Request) {
				until(t, "the body is on its way", func() bool {
					r.conn.mu.Lock()
					defer r.conn.mu.Unlock()
					return r.conn.paused == r
				})
				say(r, "too much")
			}}, network)
			for range 50 {
				p := connect(t, addr)
				go func() { // ends with the connection
					p.nc.Write(bytes.Join([][]byte{appendBegin(nil, 1, RoleResponder, false), params(1)}, nil))
					for range 40 {
						if _, err := p.nc.Write(stdin(1, strings.Repeat("x", 1<<14))); err != nil {
							return
						}
					}
				}()
				if got := p.answer(1).stdout; got != "too much" {
					t.Fatalf("got %q", got)
				}
				p.nc.Close()
			}
		})
	}
}

// Without KEEP_CONN the connection ends behind the answer.
func TestConnectionEndsWithoutKeep(t *testing.T) {
	p := connect(t, start(t, &Server{Handler: echo}, "unix"))
	p.send(appendBegin(nil, 1, RoleResponder, false), params(1, "A", "a"), stdin(1, ""))
	if got := p.answer(1).stdout; got != "a:" {
		t.Errorf("got %q", got)
	}
	if rest := p.ended(); rest != "" {
		t.Errorf("behind the end came %q", rest)
	}
}

// Two requests that end at the same time on a connection that is to be closed
// both have their whole answer.
func TestLastRequestsOfAConnectionAreAnsweredWhole(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{})
	big := strings.Repeat("z", 40000)
	addr := start(t, &Server{Handler: func(r *Request) { entered <- struct{}{}; <-gate; say(r, big) }}, "unix")
	var ps []*peer
	for range 20 {
		p := connect(t, addr)
		for id := uint16(1); id <= 8; id++ {
			p.send(appendBegin(nil, id, RoleResponder, false), params(id), stdin(id, ""))
		}
		for range 8 {
			within(t, "a Handler", entered)
		}
		ps = append(ps, p)
	}
	close(gate)
	for _, p := range ps {
		n := 0
		for {
			h, _, err := p.next()
			if err != nil {
				break
			}
			if h.typ == typeEndRequest {
				n++
			}
		}
		if n != 8 {
			t.Errorf("%d of 8 answers were whole", n)
		}
	}
}

// A client that asks and leaves without waiting for the answer costs nothing
// that stays.
func TestLeavingWithoutListening(t *testing.T) {
	for name, ask := range map[string][]byte{
		"GET_VALUES":     bytes.Repeat(appendRecord(nil, typeGetValues, 0, AppendParam(nil, "FCGI_MAX_REQS", "")), 50),
		"unknown type":   bytes.Repeat(appendRecord(nil, 99, 0, nil), 50),
		"unknown role":   bytes.Repeat(appendBegin(nil, 1, RoleFilter, true), 50),
		"abort":          bytes.Repeat(append(begin(1), abort(1)...), 50),
		"abort, no keep": bytes.Join([][]byte{appendBegin(nil, 1, RoleResponder, false), params(1), stdin(1, ""), abort(1)}, nil),
		"requests":       bytes.Repeat(get(1), 1),
	} {
		t.Run(name, func(t *testing.T) {
			s := &Server{Handler: echo}
			addr := start(t, s, "unix")
			for range 20 {
				p := connect(t, addr)
				p.send(ask)
				p.nc.Close()
			}
			until(t, "all connections are gone", func() bool { return s.Stats().Conns == 0 })
		})
	}
}

// What has been cut never looks complete.
func TestCutAnswerLooksCut(t *testing.T) {
	p := connect(t, start(t, &Server{Handler: func(r *Request) { r.Write([]byte("half")); r.Cut() }}, "unix"))
	p.send(get(1))
	if h, content, err := p.next(); err != nil || h.typ != typeStdout || content != "half" {
		t.Fatalf("got %v %q, %v", h.typ, content, err)
	}
	if rest := p.ended(); rest != "" {
		t.Errorf("behind the cut came %q", rest)
	}
}

// CloseBody ends a Read that waits, and the connection is read on.
func TestCloseBody(t *testing.T) {
	p := connect(t, start(t, &Server{BodyBuffer: 1000, Handler: func(r *Request) {
		read := make(chan error)
		go func() { _, err := io.Copy(io.Discard, r); read <- err }()
		r.CloseBody()
		if err := <-read; !errors.Is(err, ErrBodyClosed) {
			t.Errorf("Read returned %v, want %v", err, ErrBodyClosed)
		}
		say(r, "closed")
	}}, "unix"))
	for range 20 {
		p.send(begin(1), params(1), stdin(1, strings.Repeat("x", 30000)))
		if got := p.answer(1).stdout; got != "closed" {
			t.Fatalf("got %q", got)
		}
		p.send(stdin(1, "more"), stdin(1, ""))
	}
}

// Shutdown answers what was accepted: at work, sent and not yet read, waiting in the
// backlog, or only connected; and it closes what is idle.
func TestShutdownAnswersWhatWasAccepted(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			gate, entered := make(chan struct{}), make(chan struct{}, 100)
			s := &Server{Handler: func(r *Request) {
				if param(r, "A") == "wait" {
					entered <- struct{}{}
					<-gate
				}
				say(r, "answered")
			}}
			addr := start(t, s, network)
			idle := connect(t, addr)
			idle.send(get(1))
			idle.answer(1)
			working := connect(t, addr)
			working.send(get(1, "A", "wait"), get(2, "A", "wait"))
			within(t, "the first", entered)
			within(t, "the second", entered)
			halfway := connect(t, addr)
			halfway.send(get(1)[:5])
			var waiting []*peer // for accept, most likely
			for range 50 {
				waiting = append(waiting, connect(t, addr))
			}
			done := shutdown(t, s)
			for _, p := range waiting {
				p.send(get(1))
			}
			halfway.send(get(1)[5:])
			if got := halfway.answer(1).stdout; got != "answered" {
				t.Errorf("halfway: got %q", got)
			}
			for _, p := range waiting {
				if got := p.answer(1).stdout; got != "answered" {
					t.Errorf("got %q", got)
				}
				p.ended()
			}
			idle.ended()
			select {
			case err := <-done:
				t.Errorf("Shutdown returned %v before the last answer", err)
			default:
			}
			close(gate)
			for range 2 {
				for {
					h, _, err := working.next()
					if err != nil {
						t.Fatal(err)
					}
					if h.typ == typeEndRequest {
						break
					}
				}
			}
			working.ended()
			if err := within(t, "Shutdown", done); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		})
	}
}

// Shutdown does not cut an answer that its client reads slowly.
func TestShutdownWaitsForTheLastWrite(t *testing.T) {
	ending := make(chan struct{})
	big := bytes.Repeat(appendRecord(nil, typeStdout, 1, make([]byte, 60000)), 100)
	s := &Server{Handler: func(r *Request) { close(ending); r.SendLast(bytes.Clone(big)) }}
	p := connect(t, start(t, s, "unix"))
	p.send(get(1))
	within(t, "the Handler", ending)
	until(t, "the request is ending", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			c.mu.Lock()
			n := c.ending
			c.mu.Unlock()
			return n == 1
		}
		return false
	})
	done := shutdown(t, s)
	for i := range 20 { // as often as the reader may be asked whether it is over
		s.mu.Lock()
		for c := range s.conns {
			c.poke()
		}
		s.mu.Unlock()
		time.Sleep(time.Duration(i%3) * time.Millisecond)
	}
	if n := len(p.answer(1).stdout); n != 100*60000 {
		t.Errorf("got %d bytes", n)
	}
	if err := within(t, "Shutdown", done); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// However Shutdown falls between requests, it ends, and a request that was
// sent before it is answered.
func TestShutdownAtAnyMoment(t *testing.T) {
	for i := range 200 {
		s := &Server{Handler: func(r *Request) { say(r, "ok") }}
		addr := start(t, s, "unix")
		p := connect(t, addr)
		for range i % 4 {
			p.send(get(1))
			p.answer(1)
		}
		p.send(get(1))
		done := shutdown(t, s)
		if got := p.answer(1).stdout; got != "ok" {
			t.Fatalf("got %q", got)
		}
		if err := within(t, "Shutdown", done); err != nil {
			t.Fatal(err)
		}
	}
}

// A Shutdown out of time cuts what is left; Handlers see their clients gone.
func TestShutdownOutOfTime(t *testing.T) {
	entered := make(chan struct{})
	s := &Server{Handler: func(r *Request) { close(entered); <-r.Gone() }}
	p := connect(t, start(t, s, "unix"))
	p.send(get(1))
	within(t, "the Handler", entered)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown: %v", err)
	}
	p.ended()
}

// A client that never stops sending can't keep the server from closing, nor
// one that never reads.
func TestCloseEndsBusyClients(t *testing.T) {
	s := &Server{Handler: func(r *Request) {
		for r.Send(appendRecord(nil, typeStdout, 1, make([]byte, 60000))) == nil {
		}
	}}
	addr := start(t, s, "unix")
	noise := connect(t, addr)
	stopped := make(chan struct{})
	go func() { // ends when the server has closed
		defer close(stopped)
		b := bytes.Repeat(appendRecord(nil, typeData, 9, make([]byte, 50000)), 10)
		for {
			if _, err := noise.nc.Write(b); err != nil {
				return
			}
		}
	}()
	deaf := connect(t, addr)
	deaf.send(get(1))
	asking := connect(t, addr)
	go asking.nc.Write(bytes.Repeat(appendRecord(nil, 99, 0, nil), 1<<17)) // never reads what it asks for
	until(t, "all are there", func() bool { return s.Stats().Conns == 3 })
	closed := make(chan struct{})
	go func() { s.Close(); close(closed) }()
	within(t, "Close", closed)
	within(t, "the noise to end", stopped)
}

// Clients that may not connect are told so by the connection's end.
func TestAllow(t *testing.T) {
	log := new(lines)
	p := connect(t, start(t, &Server{Handler: echo, Logger: log.logger(), Allow: func(net.Addr) bool { return false }}, "tcp"))
	p.ended()
	until(t, "it is logged", func() bool { return strings.Contains(log.String(), "not among allowed_clients") })
}

// A second, independent client agrees.
func TestCgiFcgi(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		addr := start(t, &Server{Handler: func(r *Request) {
			body, _ := io.ReadAll(r)
			r.WriteError([]byte("for the log\n"))
			say(r, "Content-Type: text/plain\r\n\r\n"+param(r, "QUERY_STRING")+"|"+string(body))
		}}, network)
		cmd := exec.CommandContext(t.Context(), "cgi-fcgi", "-bind", "-connect", addr.String())
		cmd.Env = []string{"REQUEST_METHOD=POST", "QUERY_STRING=a=b", "CONTENT_LENGTH=5"}
		cmd.Stdin = strings.NewReader("hello")
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if want := "Content-Type: text/plain\r\n\r\na=b|hello"; err != nil || string(out) != want || errs.String() != "for the log\n" {
			t.Errorf("%s: got %q and %q, %v; want %q", network, out, errs.String(), err, want)
		}
	}
}
