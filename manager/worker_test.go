package manager

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"fpmd/protocol"
)

// Of the steps between two states a worker takes those of its table, and a
// bug that takes another one is told at once.
func TestWorkerMoves(t *testing.T) {
	allowed := map[string]bool{
		"starting idle": true, "starting draining": true, "starting gone": true,
		"idle busy": true, "idle draining": true, "idle gone": true,
		"busy idle": true, "busy draining": true, "busy gone": true,
		"draining gone": true,
	}
	for from := range workerMoves {
		for to := range workerMoves {
			step := fmt.Sprintf("%v %v", workerState(from), workerState(to))
			w := &worker{state: workerState(from)}
			panicked := func() (p bool) {
				defer func() { p = recover() != nil }()
				w.moveLocked(workerState(to))
				return false
			}()
			if want := !allowed[step] && from != to; panicked != want {
				t.Errorf("%s: panicked %v, want %v", step, panicked, want)
			}
			if !panicked && w.state != workerState(to) {
				t.Errorf("%s: it is %v", step, w.state)
			}
		}
	}
}

// Starts are spaced out more and more while they fail, whatever the number of workers
// that fail together, up to a limit; one success forgets it all.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b backoff
		delay := func() time.Duration { return max(0, time.Until(b.next)) }
		if delay() != 0 || b.failing() {
			t.Error("delays before anything has failed")
		}
		for i, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000} {
			want *= time.Millisecond
			for range 8 { // of one pool, all at once
				b.fail()
			}
			got := delay()
			if got < want*3/4 || got > want*5/4 {
				t.Errorf("after failure %d: %v, want %v and a quarter more or less", i+1, got, want)
			}
			if b.failing() != (i >= 2) {
				t.Errorf("after failure %d: failing is %v", i+1, b.failing())
			}
			time.Sleep(got)
			if d := delay(); d != 0 {
				t.Errorf("after the wait: %v", d)
			}
		}
		b.fail()
		b.reset()
		if delay() != 0 || b.failing() {
			t.Error("a success has not reset it")
		}
		b.fail()
		if d := delay(); d > firstWait*5/4 {
			t.Errorf("first failure after a success: %v", d)
		}
	})
}

// halfHeartedWorker says that it has two slots, and greets one; or it dies then.
func halfHeartedWorker(dies bool) int {
	start, err := protocol.Started()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := start.Ready(2); err != nil {
		return 1
	}
	greeting := make([]byte, protocol.HeaderLen)
	protocol.PutHeader(greeting, protocol.Header{Type: protocol.Greeting, Aux: protocol.Version})
	var kept []io.Closer
	for {
		c, err := start.Listener.Accept()
		if err != nil {
			return 0
		}
		if kept = append(kept, c); len(kept) == 1 {
			if _, err := c.Write(greeting); err != nil {
				return 1
			}
		} else if dies {
			fmt.Fprintln(os.Stderr, "no room for a second")
			return 3
		}
	}
}

// lines is a log that a test looks into.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A worker that greets fewer slots than it has said is told of and replaced.
func TestSlotNotGreeted(t *testing.T) {
	log := new(lines)
	startSite(t, log, "half-hearted worker", "threads = 2\nworkers = 1\nstart_timeout = \"1s\"\nstop_timeout = \"1s\"", nil)
	await(t, "it is told", func() bool { return strings.Contains(log.String(), "worker greets fewer slots than it has") })
	await(t, "another is ready", func() bool { return strings.Count(log.String(), "worker ready") == 2 })
}

// One that dies before it has greeted all is told of as that, with its last words.
func TestDeathBeforeAllSlotsAreGreeted(t *testing.T) {
	log := new(lines)
	startSite(t, log, "short-lived worker", "threads = 2\nworkers = 1\nstop_timeout = \"1s\"", nil)
	await(t, "its death is told", func() bool { return strings.Contains(log.String(), "level=ERROR msg=\"worker gone\"") })
	await(t, "another is ready", func() bool { return strings.Count(log.String(), "worker ready") >= 2 })
	said := log.String()
	if !strings.Contains(said, "no room for a second") || strings.Contains(said, "greets fewer") {
		t.Errorf("log:\n%s", said)
	}
}

// hesitantWorker begins to load, and has loaded when somebody opens the pipe of its number.
func hesitantWorker() int {
	number := os.Getenv(protocol.EnvWorkerID)
	start, err := protocol.Started()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := os.WriteFile(number+".begun", nil, 0o644); err != nil {
		return 1
	}
	f, err := os.Open(number)
	if err != nil {
		return 1
	}
	f.Close()
	w := &protocol.Worker{Listener: start.Listener, Page: start.Page, Slots: 1, Handle: func(*protocol.Exchange) error { return nil }}
	if err := start.Ready(1); err != nil {
		return 1
	}
	_ = w.Serve()
	return 0
}

// The first worker shows whether it comes up at all. Then no more start at once than there are
// processors, or two: the next one starts when one is ready, until all are.
func TestStartsAtOnce(t *testing.T) {
	bound := max(2, runtime.NumCPU())
	workers := bound + 3
	log := new(lines)
	s := beginSite(t, log, "hesitant worker", fmt.Sprintf("threads = 1\nworkers = %d", workers), func(p *pool) {
		for i := range workers {
			if err := unix.Mkfifo(filepath.Join(p.config().Directory, fmt.Sprint(i+1)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	})
	startingNow := func() (n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for w := range s.workers {
			if w.state == starting && w.id > 0 { // it is its turn
				n++
			}
		}
		return n
	}
	s.awaitBegun("1")
	if n := startingNow(); n != 1 {
		t.Errorf("%d workers start before one has come up, want 1", n)
	}
	s.release("1")
	for i := 1; i < workers; i++ {
		for n := range min(bound, workers-i) { // the first of them, and those that started in the meantime
			s.awaitBegun(fmt.Sprint(i + n + 1))
		}
		if n := startingNow(); n > bound {
			t.Errorf("%d workers start at once, want %d", n, bound)
		}
		s.release(fmt.Sprint(i + 1))
	}
	await(t, "all are ready", func() bool { return strings.Count(log.String(), "worker ready") == workers })
}
