package fcgi

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// digest is what sum says of a body.
func digest(body []byte) string { return fmt.Sprintf("%d %x", len(body), sha256.Sum256(body)) }

// sum is a Handler that says what it has got, and whether all of it was there when it began.
func sum(r *Request) {
	r.conn.mu.Lock()
	whole := r.stdinDone
	r.conn.mu.Unlock()
	h := sha256.New()
	first, all := r.First()
	h.Write(first)
	n := int64(len(first))
	if !all {
		rest, err := io.Copy(h, r)
		if n += rest; err != nil {
			say(r, err.Error())
			return
		}
	}
	say(r, fmt.Sprintf("%d %x whole %v", n, h.Sum(nil), whole))
}

// openFiles counts our descriptors of files without a name in dir.
func openFiles(t *testing.T, dir string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, dir) && strings.HasSuffix(target, "(deleted)") {
			n++
		}
	}
	return n
}

// Bodies arrive byte for byte, whatever they wait in; and as far as memory and file take them, all of one is
// there before the Handler begins.
func TestBodyIsAwaited(t *testing.T) {
	const memory, file = 256 << 10, 1 << 20
	for _, files := range []int64{0, file} {
		dir := t.TempDir()
		s := &Server{Handler: sum, BodyMemory: memory, BodyFile: files, SpoolDir: dir}
		addr := start(t, s, "unix")
		for _, size := range []int{0, 1, readBuffer, defaultBodyBuffer, defaultBodyBuffer + 1, memory - 1, memory, memory + 1, file - 1, file, file + 1, 6 << 20} {
			for _, mux := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d in files/%d/mux %v", files, size, mux), func(t *testing.T) {
					p := connect(t, addr)
					body := letters(size)
					rnd := rand.New(rand.NewPCG(uint64(size), 1))
					id := uint16(1)
					if mux {
						id = 2
					}
					p.send(begin(id), params(id, "CONTENT_LENGTH", strconv.Itoa(size)))
					for rest := body; len(rest) > 0; {
						n := min(len(rest), 1+rnd.IntN(60000))
						p.send(stdin(id, string(rest[:n])))
						rest = rest[n:]
					}
					p.send(stdin(id, ""))
					got := p.answer(id).stdout
					if want := digest(body); !strings.HasPrefix(got, want+" ") {
						t.Errorf("got %q, want %q", got, want)
					}
					if int64(size) <= max(memory, files) && !strings.HasSuffix(got, "whole true") {
						t.Errorf("the Handler began before all of %d bytes was there", size)
					}
					if int64(size) > memory+files+defaultBodyBuffer+2*readBuffer && !mux && strings.HasSuffix(got, "whole true") {
						t.Errorf("all of %d bytes was awaited", size)
					}
					p.send(get(id, "A", "again")) // the connection is of use
					if got := p.answer(id).stdout; got != digest(nil)+" whole true" {
						t.Errorf("then got %q", got)
					}
				})
			}
		}
		until(t, "nothing is held", func() bool { return s.bodies.Load() == 0 && openFiles(t, dir) == 0 })
	}
}

// Of a body that is awaited, and whose client leaves, nothing is left, and the Handler is told once
// that somebody was there.
func TestLeavingWhileTheBodyIsAwaited(t *testing.T) {
	for name, leave := range map[string]func(*peer){
		"abort": func(p *peer) { p.send(abort(1)) },
		"close": func(p *peer) { p.nc.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			told := make(chan bool, 10)
			s := &Server{BodyMemory: 256 << 10, BodyFile: 1 << 20, SpoolDir: dir, Handler: func(r *Request) {
				select {
				case <-r.Gone():
					_, all := r.First()
					told <- !all
				default:
					say(r, "served")
				}
			}}
			p := connect(t, start(t, s, "unix"))
			p.send(begin(1), params(1), stdin(1, strings.Repeat("x", 60000)))
			for range 9 {
				p.send(stdin(1, strings.Repeat("x", 60000)))
			}
			until(t, "some of it is in a file", func() bool { return openFiles(t, dir) == 1 })
			leave(p)
			if !within(t, "the Handler", told) {
				t.Error("it was told that it has all of the body")
			}
			until(t, "nothing is held", func() bool { return s.bodies.Load() == 0 && openFiles(t, dir) == 0 })
			if name == "abort" {
				p.answer(1)
				p.send(get(1))
				if got := p.answer(1).stdout; got != "served" {
					t.Errorf("the next one got %q", got)
				}
			}
			if n := len(told); n > 0 {
				t.Errorf("the Handler was called %d times more", n)
			}
		})
	}
}

// A Server that is told to hasten awaits no body any more, neither one that is coming nor a later one.
func TestHasten(t *testing.T) {
	for _, memory := range []int{0, 1 << 20} {
		s := &Server{BodyMemory: memory, BodyFile: 1 << 20, Handler: func(r *Request) { say(r, "told") }}
		addr := start(t, s, "unix")
		before, mux, after := connect(t, addr), connect(t, addr), connect(t, addr)
		before.send(begin(1), params(1, "CONTENT_LENGTH", "1000"), stdin(1, "abc"))
		mux.send(begin(2), params(2, "CONTENT_LENGTH", "1000"), stdin(2, "abc"))
		until(t, "their bodies are awaited", func() bool {
			s.mu.Lock()
			conns := s.connsLocked()
			s.mu.Unlock()
			n := 0
			for _, c := range conns {
				c.mu.Lock()
				for _, r := range c.active {
					if r.paramsDone && !r.started {
						n++
					}
				}
				c.mu.Unlock()
			}
			return n == 2
		})
		s.Hasten()
		after.send(begin(1), params(1, "CONTENT_LENGTH", "1000"), stdin(1, "abc"))
		for _, got := range []string{before.answer(1).stdout, mux.answer(2).stdout, after.answer(1).stdout} {
			if got != "told" {
				t.Errorf("BodyMemory %d: got %q, want what the Handler says", memory, got)
			}
		}
	}
}

// When the file of a body can't be written, the log says so, and the body streams, as it does without one.
func TestBodyWithoutRoom(t *testing.T) {
	for _, mux := range []bool{false, true} {
		t.Run(fmt.Sprintf("mux %v", mux), func(t *testing.T) {
			log := new(lines)
			id := uint16(1)
			if mux {
				id = 2
			}
			s := &Server{Handler: sum, BodyMemory: 200 << 10, BodyFile: 1 << 30, SpoolDir: t.TempDir() + "/none", Logger: log.logger()}
			p := connect(t, start(t, s, "unix"))
			body := letters(2 << 20)
			sent := make(chan struct{})
			go func() { // ends with the body
				defer close(sent)
				p.send(begin(id), params(id))
				for rest := body; len(rest) > 0; rest = rest[1<<15:] {
					p.send(stdin(id, string(rest[:1<<15])))
				}
				p.send(stdin(id, ""))
			}()
			if got, want := p.answer(id).stdout, digest(body)+" whole false"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			within(t, "the body to be sent", sent)
			if n := strings.Count(log.String(), "body not kept in a file"); n != 1 || !strings.Contains(log.String(), "no such file") {
				t.Errorf("told %d times, want 1:\n%s", n, log.String())
			}
		})
	}
}

// All bodies that are awaited have 64 times BodyMemory; beyond that, they stream.
func TestBodiesTogether(t *testing.T) {
	const memory, clients, part = 1 << 20, 90, 1<<20 - 1<<15
	var started atomic.Int32
	s := &Server{BodyMemory: memory, Handler: func(r *Request) {
		started.Add(1)
		sum(r)
	}}
	addr := start(t, s, "unix")
	body := letters(part)
	var clientsDone sync.WaitGroup
	peers := make([]*peer, clients)
	most := int64(0)
	for i := range peers {
		peers[i] = connect(t, addr)
		clientsDone.Go(func() { // ends when it has sent
			p := peers[i]
			p.send(begin(1), params(1))
			for rest := body; len(rest) > 0; rest = rest[1<<15:] {
				p.send(stdin(1, string(rest[:1<<15])))
			}
		})
	}
	done := make(chan struct{})
	go func() { clientsDone.Wait(); close(done) }() // ends with the clients
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(time.Millisecond):
		}
		most = max(most, s.bodies.Load())
	}
	if bound := int64(shares*memory) + clients*(readBuffer+defaultBodyBuffer); most > bound || most < shares*memory/2 {
		t.Errorf("%d bytes were held, %d may be", most, bound)
	}
	if n := started.Load(); n == 0 || n == clients {
		t.Errorf("%d of %d have begun, want those for which there was no room", n, clients)
	}
	for i, p := range peers {
		p.send(stdin(1, ""))
		if got := p.answer(1).stdout; !strings.HasPrefix(got, digest(body)) {
			t.Errorf("client %d got %q", i, got)
		}
	}
	until(t, "nothing is held", func() bool { return s.bodies.Load() == 0 })
}
