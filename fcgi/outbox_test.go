package fcgi

import (
	"bytes"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// letters is a long text that tells where it is cut or out of order.
func letters(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 'a' + byte(i/7+i/1009)%26
	}
	return b
}

// A Handler runs ahead of a client that takes nothing, as far as AnswerBuffer and AnswerFile say
// and no farther; the client gets all of it, in order, and nothing is held afterwards.
func TestAnswerRunsAhead(t *testing.T) {
	const buffer, block = 1 << 20, 32 << 10
	for _, network := range []string{"unix", "tcp"} {
		for name, tt := range map[string]struct {
			length int
			file   int64
			waits  bool // for the client
		}{
			"fits":                         {900 << 10, 0, false},
			"does not fit":                 {16 << 20, 0, true}, // nor into the buffers of a socket
			"fits into the file":           {16 << 20, 17 << 20, false},
			"does not fit into the file":   {32 << 20, 8 << 20, true},
			"there is no place for a file": {16 << 20, 1 << 30, true},
		} {
			t.Run(network+"/"+name, func(t *testing.T) {
				t.Parallel()
				text := letters(tt.length)
				var written atomic.Int64
				sent := make(chan error, 1)
				dir, log := t.TempDir(), new(lines)
				nowhere := tt.waits && tt.file > int64(tt.length)
				s := &Server{AnswerBuffer: buffer, AnswerFile: tt.file, SpoolDir: dir, Logger: log.logger(), Handler: func(r *Request) {
					var err error
					for rest := text; len(rest) > 0 && err == nil; {
						n := min(block, len(rest))
						_, err = r.Write(rest[:n])
						written.Add(int64(n))
						rest = rest[n:]
					}
					sent <- err
				}}
				if nowhere {
					s.SpoolDir += "/none"
				}
				p := connect(t, start(t, s, network))
				p.send(get(1))
				if tt.waits {
					until(t, "the buffer is full, and the Handler waits", func() bool { return s.held.Load() > buffer-2*block && waits(s) })
				} else if err := within(t, "the Handler, which need not wait", sent); err != nil {
					t.Fatal(err)
				}
				if held := s.held.Load(); held > buffer {
					t.Errorf("%d bytes are held, at most %d may be", held, buffer)
				}
				if tt.waits && written.Load() == int64(tt.length) {
					t.Error("all was written, though nobody took it")
				}
				if got := p.answer(1); got != (end{stdout: string(text)}) {
					t.Errorf("%d bytes came, not the %d that were written, or not the same", len(got.stdout), len(text))
				}
				until(t, "nothing is held", func() bool { return s.held.Load() == 0 && openFiles(t, dir) == 0 })
				if n := strings.Count(log.String(), "answer not kept in a file"); n > 1 || (n == 1) != nowhere {
					t.Errorf("the log complains %d times:\n%s", n, log.String())
				}
			})
		}
	}
}

// waits reports whether a Handler waits for its client to take what it has sent.
func waits(s *Server) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.outbox.mu.Lock()
		b := c.outbox.behind
		c.outbox.mu.Unlock()
		if b != nil && b.holding.Load() > 0 {
			return true
		}
	}
	return false
}

// An answer for which there is no room in a file is told of once, however often its client falls behind; so is the next one.
func TestFileIsTriedOnceAnAnswer(t *testing.T) {
	log := new(lines)
	goOn := make(chan struct{})
	s := &Server{AnswerBuffer: 1 << 10, AnswerFile: 1 << 30, SpoolDir: t.TempDir() + "/none", Logger: log.logger(), Handler: func(r *Request) {
		for range 3 {
			for range 40 { // more than the socket takes
				r.Write(make([]byte, 50000))
			}
			<-goOn
		}
	}}
	p := connect(t, start(t, s, "unix"))
	for answers := 1; answers <= 2; answers++ {
		p.send(get(1))
		for range 3 {
			until(t, "the Handler waits", func() bool { return waits(s) })
			for taken := 0; taken < 40*50000; {
				_, content, err := p.next()
				if err != nil {
					t.Fatal(err)
				}
				taken += len(content)
			}
			goOn <- struct{}{}
		}
		p.answer(1)
		if n := strings.Count(log.String(), "answer not kept in a file"); n != answers {
			t.Errorf("after %d answers, told %d times", answers, n)
		}
	}
}

// What two requests of a connection say arrives whole and in order, however
// large their parts are and however the client dawdles.
func TestAnswersAreKeptInOrder(t *testing.T) {
	for _, file := range []int64{0, 1, 150 << 10, 10 << 20} {
		t.Run(strconv.FormatInt(file, 10), func(t *testing.T) { keptInOrder(t, file) })
	}
}

func keptInOrder(t *testing.T, file int64) {
	text := letters(1 << 20)
	p := connect(t, start(t, &Server{AnswerBuffer: 100 << 10, AnswerFile: file, SpoolDir: t.TempDir(), Handler: func(r *Request) {
		rnd := rand.New(rand.NewPCG(uint64(r.id), 1))
		for rest := text; len(rest) > 0; {
			n := min(len(rest), 1+rnd.IntN(60000)>>rnd.IntN(12))
			if _, err := r.Write(rest[:n]); err != nil {
				t.Error(err)
				return
			}
			rest = rest[n:]
		}
	}}, "unix"))
	p.send(get(1), get(2))
	var got [3]strings.Builder
	for ended, records := 0, 0; ended < 2; records++ {
		if records%20 == 0 {
			time.Sleep(2 * aheadAfter) // long enough for the server to keep what comes
		}
		h, content, err := p.next()
		if err != nil {
			t.Fatal(err)
		}
		if h.typ == typeEndRequest {
			ended++
		} else {
			got[h.id].WriteString(content)
		}
	}
	for id := 1; id <= 2; id++ {
		if got[id].String() != string(text) {
			t.Errorf("request %d: %d bytes, not the %d that were written, or not the same", id, got[id].Len(), len(text))
		}
	}
}

// All answers together hold no more than their share, and a block each.
func TestAnswersShareTheirBuffer(t *testing.T) {
	const buffer, block, clients = 64 << 10, 16 << 10, 200
	var waiting atomic.Int64
	s := &Server{AnswerBuffer: buffer, Handler: func(r *Request) {
		for err := error(nil); err == nil; {
			waiting.Add(1)
			_, err = r.Write(make([]byte, block))
			waiting.Add(-1)
		}
	}}
	addr := start(t, s, "unix")
	for range clients {
		connect(t, addr).send(get(1))
	}
	const most = shares*buffer + clients*(block+HeaderLen)
	until(t, "the buffers are full", func() bool {
		held := s.held.Load()
		if held > most {
			t.Fatalf("%d bytes are held, at most %d may be", held, most)
		}
		return held > shares*buffer-block && waiting.Load() == clients
	})
}

// What an answer holds is given back when its client leaves, or its Handler cuts it.
func TestWhatIsHeldIsGivenBack(t *testing.T) {
	for name, tt := range map[string]struct {
		handle func(r *Request)
		client func(p *peer)
	}{
		"the client leaves": {
			func(r *Request) { <-r.Gone() },
			func(p *peer) { p.nc.Close() },
		},
		"the client leaves, and it is cut": {
			func(r *Request) { <-r.Gone(); r.Cut() },
			func(p *peer) { p.nc.Close() },
		},
		"it is cut, and the client reads on": {
			func(r *Request) { r.Cut() },
			func(p *peer) {
				if b, _ := io.ReadAll(p.br); bytes.Count(b, []byte("x")) != 500000 {
					p.t.Errorf("%d bytes came of what was sent before the cut, want 500000", bytes.Count(b, []byte("x")))
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := &Server{AnswerBuffer: 100 << 10, AnswerFile: 1 << 20, SpoolDir: dir, Handler: func(r *Request) {
				for range 10 {
					r.Write(bytes.Repeat([]byte("x"), 50000))
				}
				tt.handle(r)
			}}
			p := connect(t, start(t, s, "unix"))
			p.send(get(1))
			until(t, "something is held", func() bool { return s.held.Load() > 0 && openFiles(t, dir) == 1 })
			tt.client(p)
			until(t, "nothing is held", func() bool { return s.held.Load() == 0 && openFiles(t, dir) == 0 })
		})
	}
}

// Whoever keeps something from others is given up sooner; nobody else is.
func TestHurriedClients(t *testing.T) {
	for name, tt := range map[string]struct {
		limit       time.Duration
		crowd       bool
		waited      time.Duration
		moved       int
		holds, slow bool
	}{
		"slow, and others wait":         {time.Minute, true, hurried, leastProgress - 1, true, true},
		"slow, but holds nothing":       {time.Minute, true, hurried, 0, false, false},
		"slow, but nobody waits":        {time.Minute, false, hurried, 0, true, false},
		"not slow for long":             {time.Minute, true, hurried - 1, 0, true, false},
		"not slow":                      {time.Minute, true, hurried, leastProgress, true, false},
		"no bound, and others wait":     {0, true, hurried, 0, true, true},
		"no bound":                      {0, false, time.Hour, 0, true, false},
		"a shorter bound":               {time.Second, true, time.Second, 0, true, true},
		"slow for a minute":             {time.Minute, false, time.Minute, 0, false, true},
		"slow for a minute, and crowds": {time.Minute, true, time.Minute, 0, false, true},
	} {
		s := &Server{PeerTimeout: tt.limit, Hurry: func() bool { return tt.crowd }}
		var k clock
		k.wait(tt.waited, tt.moved)
		if err := s.judge(&k, "took", tt.holds); (err != nil) != tt.slow {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Who takes an answer steadily is not slow, even if what he takes leaves a socket's
// buffer in lumps.
func TestSteadyReaderIsNotSlow(t *testing.T) {
	const limit = 2 * time.Second
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			ended := make(chan error, 1)
			s := &Server{AnswerBuffer: 12 << 20, PeerTimeout: limit, Handler: func(r *Request) {
				var err error
				for n := 0; n < 300 && err == nil; n++ {
					_, err = r.Write(make([]byte, 32<<10))
				}
				if err == nil {
					err = r.End(0)
				}
				ended <- err
			}}
			p := connect(t, start(t, s, network))
			p.send(get(1))
			for range 80 { // 200 KiB a second
				if _, err := io.CopyN(io.Discard, p.br, 10<<10); err != nil {
					t.Fatal(err)
				}
				select {
				case err := <-ended:
					t.Fatalf("the Handler has ended: %v", err)
				case <-time.After(limit / 40):
				}
			}
		})
	}
}

// A request ends although another of its connection has ever more to say; so does the
// connection's reader get its word in.
func TestEndBesideAStream(t *testing.T) {
	streaming, end := make(chan struct{}), make(chan struct{})
	s := &Server{AnswerBuffer: 1 << 20, Handler: func(r *Request) {
		if r.id == 2 {
			<-end
			return
		}
		close(streaming)
		for err := error(nil); err == nil; {
			_, err = r.Write(make([]byte, 32<<10))
		}
	}}
	p := connect(t, start(t, s, "unix"))
	p.send(get(1), get(2))
	<-streaming
	until(t, "it is kept", func() bool { return s.held.Load() > 0 })
	close(end)
	p.send(appendRecord(nil, typeGetValues, 0, AppendParam(nil, "FCGI_MAX_REQS", "")))
	for ended, answered := false, false; !ended || !answered; {
		h, _, err := p.next()
		if err != nil {
			t.Fatalf("request 2 has ended: %v, the question was answered: %v; %v", ended, answered, err)
		}
		ended = ended || h.typ == typeEndRequest && h.id == 2
		answered = answered || h.typ == typeGetValuesResult
	}
}

// What comes of an answer is told at once, also when it comes after what has waited in a file.
func TestStreamBehindAFile(t *testing.T) {
	more := make(chan struct{})
	dir := t.TempDir()
	s := &Server{AnswerBuffer: 1 << 10, AnswerFile: 10 << 20, SpoolDir: dir, Handler: func(r *Request) {
		for range 100 {
			r.Write(make([]byte, 50000))
		}
		for range more {
			r.Write([]byte("event"))
		}
	}}
	p := connect(t, start(t, s, "unix"))
	p.send(get(1))
	until(t, "some of it is in a file", func() bool { return openFiles(t, dir) == 1 })
	for taken := 0; taken < 100*50000; {
		_, content, err := p.next()
		if err != nil {
			t.Fatal(err)
		}
		taken += len(content)
	}
	for range 3 {
		more <- struct{}{}
		if _, content, err := p.next(); err != nil || content != "event" {
			t.Fatalf("%q, %v", content, err)
		}
	}
	close(more)
	if got := p.answer(1); got != (end{}) {
		t.Errorf("at the end: %+v", got)
	}
	until(t, "no file is open", func() bool { return openFiles(t, dir) == 0 })
}
