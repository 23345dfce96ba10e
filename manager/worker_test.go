package manager

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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
		if b.delay() != 0 || b.failing() {
			t.Error("delays before anything has failed")
		}
		for i, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000} {
			want *= time.Millisecond
			for range 8 { // of one pool, all at once
				b.fail()
			}
			got := b.delay()
			if got < want*3/4 || got > want*5/4 {
				t.Errorf("after failure %d: %v, want %v and a quarter more or less", i+1, got, want)
			}
			if b.failing() != (i >= 2) {
				t.Errorf("after failure %d: failing is %v", i+1, b.failing())
			}
			time.Sleep(got)
			if d := b.delay(); d != 0 {
				t.Errorf("after the wait: %v", d)
			}
		}
		b.fail()
		b.reset()
		if b.delay() != 0 || b.failing() {
			t.Error("a success has not reset it")
		}
		b.fail()
		if d := b.delay(); d > firstWait*5/4 {
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
