package fcgi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The clock of a peer runs out when it was waited for long enough and has
// moved too little, and begins anew whenever it has moved enough.
func TestClock(t *testing.T) {
	type step struct {
		waited time.Duration
		moved  int
	}
	for name, tt := range map[string]struct {
		steps []step
		left  time.Duration
	}{
		"nothing":            {nil, 60},
		"waited":             {[]step{{20, 0}}, 40},
		"one byte a second":  {[]step{{1, 1}, {1, 1}, {1, 1}}, 57},
		"enough at once":     {[]step{{50, leastProgress}}, 60},
		"enough in the end":  {[]step{{50, leastProgress - 1}, {9, 1}}, 60},
		"enough, then slow":  {[]step{{50, leastProgress}, {20, 1}}, 40},
		"moved unwaited for": {[]step{{30, 0}, {0, leastProgress}}, 60},
		"out":                {[]step{{59, 5}, {2, 5}}, -1},
	} {
		var k clock
		for _, s := range tt.steps {
			k.wait(s.waited, s.moved)
		}
		if got := k.left(60); got != tt.left {
			t.Errorf("%s: %d left, want %d", name, got, tt.left)
		}
	}
}

// dribble sends b, one byte at a time, until it is through or the connection ends.
func dribble(p *peer, b []byte) {
	for i := range b {
		if _, err := p.nc.Write(b[i : i+1]); err != nil {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// A request that does not arrive in time is handed over as slow, whatever of it
// is late, and its connection ends behind the answer.
func TestSlowRequest(t *testing.T) {
	long := begin(1)
	long = append(long, params(1, "CONTENT_LENGTH", "10485760")...)
	for name, tt := range map[string]struct {
		now, late  []byte
		bodyMemory int
	}{
		"parameters":             {begin(1), appendRecord(nil, typeParams, 1, AppendParam(nil, "A", strings.Repeat("x", 3000))), 0},
		"nothing but its begin":  {begin(1), nil, 0},
		"end of the parameters":  {append(begin(1), appendRecord(nil, typeParams, 1, AppendParam(nil, "A", "x"))...), nil, 0},
		"a body that is short":   {append(begin(1), params(1, "CONTENT_LENGTH", "2000")...), appendRecord(nil, typeStdin, 1, make([]byte, 2000)), 0},
		"a body that is long":    {long, appendRecord(nil, typeStdin, 1, make([]byte, 3000)), 0},
		"a long body, in pieces": {long, bytes.Repeat(appendRecord(nil, typeStdin, 1, []byte("x")), 300), 0},
		"a body that is awaited": {bytes.Join([][]byte{begin(1), params(1), bytes.Repeat(appendRecord(nil, typeStdin, 1, make([]byte, 60000)), 4)}, nil), bytes.Repeat(appendRecord(nil, typeStdin, 1, []byte("x")), 300), 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := connect(t, start(t, &Server{PeerTimeout: 200 * time.Millisecond, BodyMemory: tt.bodyMemory, Handler: func(r *Request) {
				if !r.Slow() {
					t.Error("handed over as if it had arrived")
				}
				r.Write([]byte("slow"))
			}}, "unix"))
			p.send(tt.now)
			go dribble(p, tt.late) // ends with the connection
			if got := p.answer(1); got != (end{stdout: "slow"}) {
				t.Errorf("got %+v", got)
			}
			p.nc.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.Copy(io.Discard, p.br); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection does not end") // in a reset, for a client that sends on
			}
		})
	}
}

// A body that a Handler reads, and an answer that it writes, wait for a slow
// client no longer than for a request.
func TestSlowStreams(t *testing.T) {
	for name, handle := range map[string]func(r *Request) error{
		"body": func(r *Request) error {
			_, err := io.Copy(io.Discard, r)
			return err
		},
		"answer": func(r *Request) error {
			for {
				if _, err := r.Write(make([]byte, 1<<15)); err != nil {
					return err
				}
			}
		},
	} {
		for _, network := range []string{"unix", "tcp"} {
			t.Run(name+"/"+network, func(t *testing.T) {
				t.Parallel()
				ended := make(chan error, 1)
				p := connect(t, start(t, &Server{PeerTimeout: 200 * time.Millisecond, Handler: func(r *Request) { ended <- handle(r) }}, network))
				p.send(begin(1), params(1))
				go dribble(p, bytes.Repeat(appendRecord(nil, typeStdin, 1, []byte("x")), 300)) // ends with the connection
				if err := within(t, "the Handler's end", ended); !errors.Is(err, ErrSlow) {
					t.Errorf("ended with %v, want %v", err, ErrSlow)
				}
			})
		}
	}
}

// Who is not slow is not taken for it: a kept connection may be idle, a body and an
// answer may take longer than the clock as long as they move, and an application that does not
// read makes nobody slow.
func TestNotSlow(t *testing.T) {
	const limit = time.Second
	s := &Server{PeerTimeout: limit, Handler: func(r *Request) {
		if strings.Contains(string(r.Params()), "SLEEP") {
			time.Sleep(2 * limit)
		}
		echo(r)
	}}
	addr := start(t, s, "unix")
	for name, ask := range map[string]func(p *peer) string{
		"idle between two requests": func(p *peer) string {
			p.send(get(1))
			p.answer(1)
			time.Sleep(2 * limit)
			p.send(get(1))
			return ""
		},
		"a body that takes its time": func(p *peer) string {
			p.send(begin(1), params(1))
			part := strings.Repeat("x", leastProgress)
			for range 8 {
				p.send(stdin(1, part))
				time.Sleep(limit / 4)
			}
			p.send(stdin(1, ""))
			return strings.Repeat(part, 8)
		},
		"an application that does not read": func(p *peer) string {
			body := strings.Repeat("x", 60000)
			p.send(begin(1), params(1, "SLEEP", ""))
			p.send(stdin(1, body), stdin(1, body), stdin(1, body), stdin(1, ""))
			return body + body + body
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := connect(t, addr)
			want := ask(p)
			if got := p.answer(1); !strings.HasSuffix(got.stdout, ":"+want) && got.stdout != want {
				t.Errorf("an answer of %d bytes, want the body's %d", len(got.stdout), len(want))
			}
		})
	}
}

// Beyond MaxConns, connections wait in the backlog until one ends, and it is
// said once; a stop does not wait for them.
func TestMaxConns(t *testing.T) {
	log := new(lines)
	s := &Server{MaxConns: 2, Handler: echo, Logger: log.logger()}
	addr := start(t, s, "unix")
	first, second, third := connect(t, addr), connect(t, addr), connect(t, addr)
	for _, p := range []*peer{first, second} {
		p.send(get(1))
		p.answer(1)
	}
	third.send(get(1))
	until(t, "it is said", func() bool { return strings.Contains(log.String(), "all connections are in use") })
	if n := s.Stats().Conns; n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	first.nc.Close()
	third.answer(1)
	fourth := connect(t, addr)
	second.nc.Close()
	fourth.send(get(1))
	fourth.answer(1)
	if n := strings.Count(log.String(), "all connections are in use"); n > 3 {
		t.Errorf("said %d times", n)
	}
}

// Where all connections are in use and another one waits, those make room that have been
// idle for long, the longest first: not one that has just asked, nor one at work.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	const limit = time.Second
	release := make(chan struct{})
	s := &Server{MaxConns: 3, PeerTimeout: limit, Handler: func(r *Request) {
		if param(r, "A") == "wait" {
			<-release
		}
		echo(r)
	}}
	addr := start(t, s, "unix")
	busy, idle, quick := connect(t, addr), connect(t, addr), connect(t, addr)
	busy.send(get(1, "A", "wait"))
	idle.send(get(1))
	idle.answer(1)
	quick.send(get(1))
	quick.answer(1)
	next := connect(t, addr)
	next.send(get(1))
	for waiting := true; waiting; {
		quick.send(get(1))
		quick.answer(1)
		next.nc.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, err := next.br.Peek(1)
		waiting = errors.Is(err, os.ErrDeadlineExceeded)
	}
	next.nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	next.answer(1)
	if rest := idle.ended(); rest != "" {
		t.Errorf("the idle one got %q", rest)
	}
	quick.send(get(1))
	quick.answer(1)
	close(release)
	busy.answer(1)
}

// A clock that ran is over when what was waited for is there: what comes later on the
// connection has all the time that there is.
func TestClocksEnd(t *testing.T) {
	const limit = time.Second
	handler := func(r *Request) {
		switch {
		case r.Slow():
			say(r, "slow")
		case param(r, "A") == "big":
			for range 64 {
				r.Write(make([]byte, 1<<18))
			}
		case param(r, "A") == "sleep":
			time.Sleep(limit * 3 / 2)
			say(r, "fine")
		default:
			echo(r)
		}
	}
	servers := map[string]*Server{"unix": {PeerTimeout: limit, Handler: handler}, "tcp": {PeerTimeout: limit, Handler: handler}}
	for network, s := range servers {
		addr := start(t, s, network)
		dial := func() *peer { return connect(t, addr) }
		t.Run("an answer that was not taken at once, and then a request that takes its time/"+network, func(t *testing.T) {
			t.Parallel()
			p := dial()
			p.send(get(1, "A", "big"))
			until(t, "it has to be kept", func() bool { return servers[network].held.Load() > 0 })
			p.answer(1)
			p.send(get(1, "A", "sleep"))
			if got := p.answer(1); got.stdout != "fine" {
				t.Errorf("got %+v", got)
			}
		})
		t.Run("requests that each wait for their body/"+network, func(t *testing.T) {
			t.Parallel()
			p := dial()
			for i := range 6 {
				p.send(begin(1), params(1, "CONTENT_LENGTH", "3"))
				time.Sleep(limit * 3 / 10)
				p.send(stdin(1, "abc"), stdin(1, ""))
				if got := p.answer(1); got.stdout == "slow" {
					t.Fatalf("request %d, which took %v, is slow", i+1, limit*3/10)
				}
			}
		})
	}
}

// Where one request of a connection is too slow, the others lose nothing: a body is
// whole, although the clock ran out in the middle of one of its records.
func TestSlowNeighbour(t *testing.T) {
	const limit = 300 * time.Millisecond
	read, bodies := make(chan struct{}), make(chan string, 1)
	p := connect(t, start(t, &Server{PeerTimeout: limit, Handler: func(r *Request) {
		if r.Slow() {
			say(r, "slow")
			return
		}
		<-read // until then it waits for nobody, and nobody is slow
		b, err := io.ReadAll(r)
		if err != nil {
			b = []byte(err.Error())
		}
		bodies <- string(b)
	}}, "unix"))
	rec := stdin(1, "0123456789")
	p.send(begin(1), params(1), stdin(1, "a"))
	p.send(begin(2), rec[:HeaderLen+3])
	if got := p.answer(2); got.stdout != "slow" {
		t.Fatalf("request 2 got %+v", got)
	}
	p.send(rec[HeaderLen+3:], stdin(1, "end"), stdin(1, ""))
	close(read)
	if got := within(t, "the body", bodies); got != "a0123456789end" {
		t.Errorf("the body is %q", got)
	}
}

// A body that went through a file is as quick as one that did not.
func TestSpooledBodyIsNotSlow(t *testing.T) {
	const limit = time.Second
	ended := make(chan error, 1)
	p := connect(t, start(t, &Server{PeerTimeout: limit, Handler: func(r *Request) {
		until(t, "the body has filled the memory", func() bool {
			r.conn.mu.Lock()
			defer r.conn.mu.Unlock()
			return r.behind.file != nil
		})
		_, err := io.Copy(io.Discard, r)
		ended <- err
	}}, "unix"))
	p.send(appendRecord(nil, typeGetValues, 0, AppendParam(nil, "FCGI_MPXS_CONNS", "")))
	p.next()
	p.send(begin(1), params(1))
	part := stdin(1, strings.Repeat("x", 60000))
	for range 5 {
		p.send(part)
	}
	for range 8 {
		time.Sleep(limit / 4)
		p.send(part)
	}
	p.send(stdin(1, ""))
	if err := within(t, "the body's end", ended); err != nil {
		t.Error(err)
	}
}

// Behind the answer to a slow request, what its client still sends is read off, so
// that the answer is not overtaken by a reset.
func TestSlowClientIsNotReset(t *testing.T) {
	const limit = 100 * time.Millisecond
	p := connect(t, start(t, &Server{PeerTimeout: limit, Handler: func(r *Request) { say(r, "slow") }}, "unix"))
	p.send(begin(1), appendHeader(nil, typeParams, 1, 1000))
	p.answer(1)
	time.Sleep(2 * limit)
	if _, err := p.nc.Write([]byte("x")); err != nil {
		t.Errorf("behind the answer: %v", err)
	}
}

// Once a connection has been given up, it costs nothing until its last request ends.
func TestGivenUpIsQuiet(t *testing.T) {
	for name, begun := range map[string][][]byte{
		"with another request":           {get(1), begin(2), appendHeader(nil, typeParams, 2, 1000)},
		"in the middle of a body's head": {begin(1), params(1), stdin(1, "abc"), {1, 5, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			const limit = 100 * time.Millisecond
			quiet := make(chan struct{})
			s := &Server{PeerTimeout: limit, Handler: func(r *Request) {
				if !r.Slow() {
					<-quiet
				}
				say(r, "x")
			}}
			p := connect(t, start(t, s, "unix"))
			p.send(begun...)
			until(t, "it is given up", s.givenUp)
			before := cpuTime()
			time.Sleep(10 * limit)
			if used := cpuTime() - before; used > 5*limit {
				t.Errorf("%v of processor time in %v", used, 10*limit)
			}
			close(quiet)
			for {
				if h, _, err := p.next(); err != nil {
					t.Fatal(err)
				} else if h.typ == typeEndRequest && h.id == 1 {
					break
				}
			}
		})
	}
}

// givenUp reports whether a connection of s is to be closed.
func (s *Server) givenUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.mu.Lock()
		closing := c.closing
		c.mu.Unlock()
		if closing {
			return true
		}
	}
	return false
}

// cpuTime is what this process has used of the processors.
func cpuTime() time.Duration {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		panic(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// A request that begins on a connection that was given up does not keep it open.
func TestNothingBeginsWhereGivenUp(t *testing.T) {
	const limit = 100 * time.Millisecond
	begun := make(chan struct{})
	s := &Server{PeerTimeout: limit, Handler: func(r *Request) { <-begun; say(r, "slow") }}
	p := connect(t, start(t, s, "unix"))
	p.send(begin(1))
	until(t, "it is given up", s.givenUp)
	p.send(begin(2), appendRecord(nil, typeGetValues, 0, nil))
	if h, _, err := p.next(); err != nil || h.typ != typeGetValuesResult { // both have been read
		t.Fatalf("%v, %v", h.typ, err)
	}
	close(begun)
	p.answer(1)
	p.ended()
}

// What has come in the last moment counts, although the clock had run out.
func TestLateIsNotTooLate(t *testing.T) {
	for name, last := range map[string]func(p *peer, r *Request){
		"a part of the body": func(p *peer, _ *Request) { p.send(stdin(1, "x")) },
		"its end":            func(p *peer, _ *Request) { p.send(stdin(1, "")) },
		"that nobody wants":  func(_ *peer, r *Request) { r.CloseBody() },
	} {
		t.Run(name, func(t *testing.T) {
			requests, read := make(chan *Request, 1), make(chan error, 1)
			var crowd atomic.Bool
			p := connect(t, start(t, &Server{Hurry: crowd.Load, Handler: func(r *Request) {
				r.arriving.wait(time.Hour, 0)
				requests <- r
				_, err := r.Read(make([]byte, 10))
				read <- err
			}}, "unix"))
			p.send(begin(1), params(1))
			r := <-requests
			crowd.Store(true)
			last(p, r)
			if err := within(t, "Read", read); errors.Is(err, ErrSlow) {
				t.Error(err)
			}
		})
	}
}

// Where a listener is retired, who waits in its backlog is served, and then it has no
// place among the connections any more.
func TestRetire(t *testing.T) {
	dir := t.TempDir()
	s := &Server{MaxConns: 1, Handler: echo}
	listen := func(name string) net.Listener {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		return sameName{l}
	}
	former, next := listen("former"), listen("next")
	served := make(chan error, 2)
	dial := func(name string) *peer {
		return connect(t, &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"})
	}
	go func() { served <- s.Serve(former) }() // ends when it is retired
	first := dial("former")
	first.send(get(1))
	first.answer(1)
	second := dial("former")
	second.send(get(1))
	s.Retire(former)
	go func() { served <- s.Serve(next) }() // ends at Close
	defer s.Close()
	third := dial("next")
	third.send(get(1))
	first.nc.Close()
	go func() { // in whichever order they get the one place
		second.answer(1)
		second.nc.Close()
	}()
	third.answer(1)
	third.nc.Close()
	if err := within(t, "the former's end", served); !errors.Is(err, ErrServerClosed) {
		t.Error(err)
	}
	for range 2 {
		p := dial("next")
		p.send(get(1))
		p.answer(1)
		p.nc.Close()
	}
}

// A listener that one server releases is another's: whoever comes from then on is the other's, nobody is lost meanwhile, and who
// came before stays with the first, which takes nobody more even where it waits for a place.
func TestRelease(t *testing.T) {
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprintf("full=%v", full), func(t *testing.T) {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			answers := func(text string) func(*Request) { return func(r *Request) { say(r, text) } }
			first, second := &Server{Handler: answers("first")}, &Server{Handler: answers("second")}
			if full {
				first.MaxConns = 1
			}
			defer first.Close()
			defer second.Close()
			served := make(chan error, 2)
			go func() { served <- first.Serve(l) }() // ends when it is released
			kept := connect(t, l.Addr())
			kept.send(get(1))
			if got := kept.answer(1); !strings.Contains(got.stdout, "first") {
				t.Errorf("before the release: %+v", got)
			}
			var wg sync.WaitGroup
			stop := make(chan struct{})
			for range 4 {
				wg.Go(func() { // ends at stop
					for {
						select {
						case <-stop:
							return
						default:
						}
						p := connect(t, l.Addr())
						p.send(get(1))
						p.answer(1) // fails the test when there is none
						p.nc.Close()
					}
				})
			}
			first.Release(l)
			if err := within(t, "the first one's end", served); !errors.Is(err, ErrServerClosed) {
				t.Error(err)
			}
			before := first.Stats().Conns
			go func() { served <- second.Serve(l) }() // ends at Close
			for range 20 {
				p := connect(t, l.Addr())
				p.send(get(1))
				if got := p.answer(1); !strings.Contains(got.stdout, "second") {
					t.Fatalf("after the release: %+v", got)
				}
				p.nc.Close()
			}
			if now := first.Stats().Conns; now > before {
				t.Errorf("the first has %d connections, and had %d", now, before)
			}
			close(stop)
			wg.Wait()
			kept.send(get(1))
			if got := kept.answer(1); !strings.Contains(got.stdout, "first") {
				t.Errorf("over the connection that was kept: %+v", got)
			}
		})
	}
}

// A sameName is a listener that shares its connections' bound with others.
type sameName struct{ *net.UnixListener }

func (sameName) Addr() net.Addr { return &net.UnixAddr{Name: "the same", Net: "unix"} }
