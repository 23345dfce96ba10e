package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"fpmd/manager"
)

// A report is what GET /status of the control socket answers.
type report struct {
	Version string `json:"version"`
	manager.Status
}

// A refusal is what any other than a 200 of the control socket answers.
type refusal struct {
	Error string `json:"error"`
}

// serveControl answers on the control socket until l is closed. It is HTTP, with
// JSON for answers: GET /status, /plan, /events and /why?pid=N or ?worker=N, POST /reload, /restart, /rollback?pool=NAME,
// /scale?pool=NAME&workers=N, /reopen and /stop. /plan, /reload, /restart and /events take pool=NAME, any number of
// times, and the first two changed=1. /reload and /restart answer when they have worked or failed, but for wait=0, and
// /rollback when a reload of that pool that is under way has ended; /events
// is a line of JSON for each event, since=DURATION or a time of RFC 3339, and with follow=1 those that come, until fpmd
// stops; the others answer at once.
func (s *supervisor) serveControl(l net.Listener) {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v) // who has asked may have left
	}
	act := func(pattern string, do func(r *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			defer unhurried(w)()
			if err := do(r); err != nil {
				answer(w, http.StatusConflict, refusal{err.Error()})
				return
			}
			answer(w, http.StatusOK, struct{}{})
		})
	}
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, report{version(), s.m.Status()})
	})
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		defer unhurried(w)()
		if err := s.writeEvents(w, r); err != nil {
			answer(w, http.StatusConflict, refusal{err.Error()})
		}
	})
	mux.HandleFunc("GET /why", func(w http.ResponseWriter, r *http.Request) {
		story, err := s.why(r.URL.Query())
		if err != nil {
			answer(w, http.StatusConflict, refusal{err.Error()})
			return
		}
		answer(w, http.StatusOK, story)
	})
	mux.HandleFunc("GET /plan", func(w http.ResponseWriter, r *http.Request) {
		plan, err := s.plan(reloading(r))
		if err != nil {
			answer(w, http.StatusConflict, refusal{err.Error()})
			return
		}
		answer(w, http.StatusOK, plan)
	})
	act("POST /reload", func(r *http.Request) error { return s.ask(r, false) })
	act("POST /restart", func(r *http.Request) error { return s.ask(r, true) })
	act("POST /rollback", func(r *http.Request) error {
		if s.stopping.Load() {
			return manager.ErrStopping
		}
		return s.rollback(r.Context(), r.URL.Query()["pool"], whoAsks(r))
	})
	act("POST /scale", func(r *http.Request) error {
		if s.stopping.Load() {
			return manager.ErrStopping
		}
		q := r.URL.Query()
		n, err := strconv.Atoi(q.Get("workers"))
		if err != nil {
			return fmt.Errorf("workers: %q: want a number", q.Get("workers"))
		}
		return s.m.ScaleTo(q.Get("pool"), n, whoAsks(r))
	})
	act("POST /reopen", func(r *http.Request) error { return s.reopen(whoAsks(r)) })
	act("POST /stop", func(r *http.Request) error {
		if s.stopping.Load() {
			return nil // a second signal would cut what the first one waits for
		}
		by := whoAsks(r)
		mine := s.stopper.CompareAndSwap(nil, &by)
		select {
		case s.signals <- unix.SIGTERM:
			return nil
		default:
			if mine {
				s.stopper.Store(nil)
			}
			return errors.New("too many signals wait already")
		}
	})
	srv := &http.Server{
		Handler:     http.MaxBytesHandler(mux, 4<<10), // nothing is said in a body
		ReadTimeout: hurry,
		IdleTimeout: hurry,
		ConnContext: withPeer,
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	_ = srv.Serve(knownPeers{l, s.operators}) // ends with l
	// Who follows is told the end, and who waits for a reload whose socket somebody has removed.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with ctx
		select {
		case <-s.m.Over():
			defer time.AfterFunc(lastWords, cancel).Stop()
		case <-ctx.Done():
		}
		<-ctx.Done()
	}()
	_ = srv.Shutdown(ctx) // its error is that somebody does not read what he is told
	srv.Close()
}

const (
	// hurry is how long a request may take to arrive.
	hurry = 10 * time.Second
	// lastWords is how long who is still connected has to read the end, once fpmd has stopped.
	lastWords = time.Second
)

// unhurried takes from a request that has arrived the time that it had for that: it would end what takes longer. What it
// returns gives it back.
func unhurried(w http.ResponseWriter) (again func()) {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // every connection of a net.Listener has deadlines
	return func() { _ = rc.SetReadDeadline(time.Now().Add(hurry)) }
}

// ask has pools rolled as r asks, and waits for the end unless r does not want that.
func (s *supervisor) ask(r *http.Request, restart bool) error {
	what := rolling{restart, whoAsks(r), reloading(r)}
	if err := s.m.Known(what.Pools); err != nil {
		if restart {
			return err
		}
		if _, err := s.plan(what.Reloading); err != nil { // else it is one that the reload brings
			return err
		}
	}
	if r.URL.Query().Get("wait") == "0" {
		return s.rollings.ask(what, nil)
	}
	return s.rollings.wait(r.Context(), what)
}

// reloading is what r asks for.
func reloading(r *http.Request) manager.Reloading {
	q := r.URL.Query()
	return manager.Reloading{Pools: slices.Compact(slices.Sorted(slices.Values(q["pool"]))), Changed: q.Get("changed") == "1"}
}

// A rolling is what somebody asks to be rolled: by a reload, or, without the configuration being
// read again, by a restart.
type rolling struct {
	restart bool
	by      string // who asks
	manager.Reloading
}

// same reports whether b would do what a does.
func (a rolling) same(b rolling) bool {
	return a.restart == b.restart && a.Changed == b.Changed && slices.Equal(a.Pools, b.Pools)
}

// A batch is a rolling that has not begun, with all who wait for its end.
type batch struct {
	rolling
	waiting []chan<- error // each has room for one
}

// rollings are asked for, by signals and by who waits for their end. They come one after the
// other; one that has not begun serves all who have asked for the same.
type rollings struct {
	wake chan struct{} // has room for one

	mu    sync.Mutex
	queue []*batch
	over  error // why there is none any more
}

// manyNames is how long the names of who has asked for the same may be: who comes later goes without.
const manyNames = 200

func newRollings() *rollings { return &rollings{wake: make(chan struct{}, 1)} }

// ask asks for r, whose end goes to done unless that is nil. An error says that there will be none.
func (rs *rollings) ask(r rolling, done chan<- error) error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.over != nil {
		return rs.over
	}
	i := slices.IndexFunc(rs.queue, func(b *batch) bool { return b.same(r) })
	if i < 0 {
		i = len(rs.queue)
		rs.queue = append(rs.queue, &batch{rolling: r})
	} else if b := rs.queue[i]; !strings.Contains(b.by, r.by) && len(b.by) < manyNames {
		b.by += ", " + r.by
	}
	if done != nil {
		rs.queue[i].waiting = append(rs.queue[i].waiting, done)
	}
	select {
	case rs.wake <- struct{}{}:
	default:
	}
	return nil
}

// wait asks for r and waits for its end; when ctx ends before, it goes on.
func (rs *rollings) wait(ctx context.Context, r rolling) error {
	done := make(chan error, 1)
	if err := rs.ask(r, done); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// take gives the one that begins now, or nil.
func (rs *rollings) take() *batch {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if len(rs.queue) == 0 {
		return nil
	}
	b := rs.queue[0]
	rs.queue = rs.queue[1:]
	return b
}

func (b *batch) tell(err error) {
	for _, done := range b.waiting {
		done <- err
	}
}

// end has all who wait, or still come, told that there will be none.
func (rs *rollings) end(why error) {
	rs.mu.Lock()
	rs.over = why
	rs.mu.Unlock()
	for b := rs.take(); b != nil; b = rs.take() {
		b.tell(why)
	}
}
