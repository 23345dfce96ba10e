package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fpmd/fcgi"
	"fpmd/protocol"
)

// exchangeWorker is a worker whose application does what the query says:
// "wait=NAME" leaves a file NAME.begun in its folder and waits until somebody
// opens the pipe NAME; "size=N" answers so many bytes; "cut" has the answer end before it
// is complete; "drop" closes the connection behind it; "ahead" says that the next exchange
// has begun, which is not true. It answers its own query first.
func exchangeWorker() int {
	start, err := protocol.Started()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	w := &protocol.Worker{Listener: start.Listener, Page: start.Page, Slots: start.Threads, Handle: func(x *protocol.Exchange) error {
		env, err := protocol.ParseEnviron(x.Environ())
		if err != nil {
			return err
		}
		size, cut, drop := 0, false, error(nil)
		for _, do := range strings.Split(env["QUERY_STRING"], "&") {
			switch key, value, _ := strings.Cut(do, "="); key {
			case "wait":
				if err := os.WriteFile(value+".begun", nil, 0o644); err != nil {
					return err
				}
				f, err := os.Open(value)
				if err != nil {
					return err
				}
				f.Close()
			case "size":
				fmt.Sscan(value, &size)
			case "cut":
				cut = true
			case "drop":
				drop = errors.New("as it was asked to")
			case "ahead":
				start.Page.Begin(0, x.Number()+1)
			}
		}
		if err := x.Respond(200, []byte("Status: 200 OK\r\nContent-Type: text/plain\r\n\r\n"), false); err != nil {
			return err
		}
		body := env["QUERY_STRING"]
		body += strings.Repeat(".", max(0, size-len(body)))
		if cut {
			_, err := x.Write([]byte(body))
			return errors.Join(err, x.Cut(false))
		}
		return errors.Join(x.End([]byte(body)), drop)
	}}
	if err := start.Ready(start.Threads); err != nil {
		return 1
	}
	_ = w.Serve()
	return 0
}

func exists(name string) error {
	_, err := os.Stat(name)
	return err
}

// A site is a pool of exchangeWorkers, and a client that asks it.
type site struct {
	*pool
	t      *testing.T
	dir    string
	client fcgi.Client
}

// newSite starts a pool whose seconds wait as long as patience says.
func newSite(t *testing.T, workers int, patience time.Duration) *site {
	t.Helper()
	s := startSite(t, t.Output(), "exchange worker", fmt.Sprintf("threads = 1\nworkers = %d", workers), func(p *pool) {
		p.patience = patience
		p.recent, p.plain = 0, manyPlain
	})
	await(t, "all workers", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.idle) == workers })
	return s
}

// startSite starts a pool of workers that the test binary is, and waits until it
// is ready. prepare, unless nil, comes before the start.
func startSite(t *testing.T, log io.Writer, as, settings string, prepare func(*pool)) *site {
	t.Helper()
	s := beginSite(t, log, as, settings, prepare)
	<-s.readyOnce
	return s
}

// beginSite does not wait.
func beginSite(t *testing.T, log io.Writer, as, settings string, prepare func(*pool)) *site {
	t.Helper()
	dir := t.TempDir()
	for _, pipe := range []string{"a", "b"} {
		if err := unix.Mkfifo(filepath.Join(dir, pipe), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "fpmd.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `
[supervisor]
runtime_dir = %q
[pool.app]
listen = %q
command = ["env", %q, %q]
directory = %q
user = %q
allow_root = true
%s
`, filepath.Join(dir, "run"), filepath.Join(dir, "sock"), testAs+"="+as, os.Args[0], dir, me(t), settings), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := Load(file, LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(cfg, Options{Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	p := m.pools.all()[0]
	if prepare != nil {
		prepare(p)
	}
	m.Start()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		m.Stop(ctx)
	})
	return &site{pool: p, t: t, dir: dir, client: fcgi.Client{Network: "unix", Address: filepath.Join(dir, "sock")}}
}

func me(t *testing.T) string {
	if os.Geteuid() == 0 {
		return "root"
	}
	t.Helper()
	name := os.Getenv("USER")
	if name == "" {
		t.Fatal("USER is not set")
	}
	return name
}

// An asking is a request under way.
type asking struct {
	leave  context.CancelFunc
	answer chan string // "STATUS BODY", or an error
}

// ask sends a request. Its client reads the answer once read is closed; nil: at once.
func (s *site) ask(query string, read <-chan struct{}) asking {
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	a := asking{cancel, make(chan string, 1)}
	go func() { // ends with the answer, or with ctx
		defer cancel()
		resp, err := s.client.Do(ctx, &fcgi.ClientRequest{Params: []fcgi.Param{
			{Name: "REQUEST_METHOD", Value: "GET"},
			{Name: "REQUEST_URI", Value: "/?" + query},
			{Name: "DOCUMENT_URI", Value: "/"},
			{Name: "QUERY_STRING", Value: query},
			{Name: "SERVER_PROTOCOL", Value: "HTTP/1.1"},
			{Name: "SERVER_NAME", Value: "x"},
			{Name: "SERVER_PORT", Value: "80"},
		}})
		if err != nil {
			a.answer <- err.Error()
			return
		}
		if read != nil {
			select {
			case <-read:
			case <-ctx.Done():
			}
		}
		b, err := io.ReadAll(resp.Stdout)
		if err := errors.Join(err, resp.Stdout.Close()); err != nil {
			a.answer <- err.Error()
			return
		}
		head, body, _ := strings.Cut(string(b), "\r\n\r\n")
		a.answer <- strings.Fields(head)[1] + " " + body
	}()
	return a
}

// want waits for an answer that begins so.
func (a asking) want(t *testing.T, start string) string {
	t.Helper()
	got := <-a.answer
	if !strings.HasPrefix(got, start) {
		t.Errorf("answer %.80q, want %q", got, start)
	}
	return got
}

func (s *site) awaitBegun(name string) {
	s.t.Helper()
	await(s.t, name+" begun", func() bool { return exists(filepath.Join(s.dir, name+".begun")) == nil })
	// The worker is at times quicker than the supervisor is to note that the request is
	// written, and nothing is sent behind it before that.
	await(s.t, name+" open", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		open := 0
		for w := range s.workers {
			for _, sl := range w.slots {
				if sl.Open() || sl.behind != nil {
					open++
				}
			}
		}
		return open >= s.open.n
	})
}

func (s *site) release(name string) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_WRONLY, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	f.Close()
}

// awaitSecond waits until a second was sent, and returns the slot.
func (s *site) awaitSecond() (there *slot) {
	s.t.Helper()
	await(s.t, "a second sent", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for w := range s.workers {
			for _, sl := range w.slots {
				if sl.behind != nil && !sl.Open() {
					there = sl
				}
			}
		}
		return there != nil
	})
	there.settling.Lock() // its sender is done when he gives this back
	defer there.settling.Unlock()
	return there
}

// holdBegun has B begun behind A, A's answer of several pieces still unread, and
// A's goroutine held up until letGo.
func (s *site) holdBegun(more string, read <-chan struct{}) (a, b asking, letGo func()) {
	s.t.Helper()
	a = s.ask("wait=a&size=153600"+more, read)
	s.awaitBegun("a")
	b = s.ask("wait=b", nil)
	sl := s.awaitSecond()
	sl.settling.Lock()
	s.release("a")
	s.awaitBegun("b")
	return a, b, sl.settling.Unlock
}

// The one who waits longest is sent behind the one that is served; each gets
// its own answer, in turn.
func TestSecondInTurn(t *testing.T) {
	s := newSite(t, 1, time.Hour)
	a := s.ask("wait=a", nil)
	s.awaitBegun("a")
	b := s.ask("wait=b", nil)
	s.awaitSecond()
	c := s.ask("c", nil)
	s.release("a")
	a.want(t, "200 wait=a")
	s.awaitBegun("b")
	s.release("b")
	b.want(t, "200 wait=b")
	c.want(t, "200 c")
}

// Nobody is sent behind another where the pool is slow.
func TestNoSecondInSlowPool(t *testing.T) {
	s := newSite(t, 1, time.Hour)
	s.mu.Lock()
	s.recent = quick
	s.mu.Unlock()
	a := s.ask("wait=a", nil)
	s.awaitBegun("a")
	b := s.ask("b", nil)
	await(t, "b queued", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.queue.n == 1 })
	s.release("a")
	a.want(t, "200 wait=a")
	b.want(t, "200 b")
}

// A second whose first takes long is taken back, another worker answers it, and
// the slot where it was goes on serving.
func TestSecondTakenBack(t *testing.T) {
	s := newSite(t, 2, secondWait)
	a, b := s.ask("wait=a", nil), s.ask("wait=b", nil)
	s.awaitBegun("a")
	s.awaitBegun("b")
	c := s.ask("c", nil)
	await(t, "c queued", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.queue.n == 1 })
	s.release("b")
	b.want(t, "200 wait=b")
	c.want(t, "200 c") // while a is not done
	s.release("a")
	a.want(t, "200 wait=a")
	for i := range 10 {
		a, b := s.ask(fmt.Sprint("a", i), nil), s.ask(fmt.Sprint("b", i), nil)
		a.want(t, fmt.Sprint("200 a", i))
		b.want(t, fmt.Sprint("200 b", i))
	}
}

// A second that is taken back has another worker started, where there may be one more.
func TestSecondTakenBackOnDemand(t *testing.T) {
	s := startSite(t, t.Output(), "exchange worker", "threads = 1\nworkers = 2\npm = \"ondemand\"\nidle_timeout = \"1h\"", func(p *pool) {
		p.recent, p.plain = 0, manyPlain
	})
	a := s.ask("wait=a", nil)
	s.awaitBegun("a")
	b := s.ask("b", nil)
	b.want(t, "200 b") // while a is not done
	s.release("a")
	a.want(t, "200 wait=a")
}

// A second whose client leaves is not begun.
func TestSecondLeaves(t *testing.T) {
	s := newSite(t, 1, time.Hour)
	a := s.ask("wait=a", nil)
	s.awaitBegun("a")
	b := s.ask("wait=b", nil)
	sl := s.awaitSecond()
	b.leave()
	await(t, "b gone", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return sl.behind == nil })
	s.release("a")
	a.want(t, "200 wait=a")
	s.ask("c", nil).want(t, "200 c")
	if exists(filepath.Join(s.dir, "b.begun")) == nil {
		t.Error("b was begun, though its client had left")
	}
}

// A first whose client leaves does not take the second with it.
func TestFirstLeaves(t *testing.T) {
	s := newSite(t, 1, time.Hour)
	a := s.ask("wait=a", nil)
	s.awaitBegun("a")
	b := s.ask("b", nil)
	s.awaitSecond()
	a.leave()
	await(t, "b queued", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.queue.n == 1 })
	s.release("a")
	b.want(t, "200 b")
}

// Nor when the second was begun by then.
func TestFirstLeavesLate(t *testing.T) {
	s := newSite(t, 1, time.Hour)
	a, b, letGo := s.holdBegun("", nil)
	a.leave()
	<-a.answer
	letGo()
	s.release("b")
	b.want(t, "200 wait=b")
}

// A client that does not read its answer does not hold up the one behind.
func TestFirstUnread(t *testing.T) {
	s := newSite(t, 1, time.Hour)
	read := make(chan struct{})
	a, b, letGo := s.holdBegun("", read)
	letGo()
	s.release("b")
	b.want(t, "200 wait=b")
	close(read)
	if got := a.want(t, "200 wait=a"); len(got) != len("200 ")+150<<10 {
		t.Errorf("answer of %d bytes", len(got))
	}
}

// An answer that is cut ends cut, though another was begun behind it.
func TestFirstCut(t *testing.T) {
	s := newSite(t, 1, time.Hour)
	a, b, letGo := s.holdBegun("&cut", nil)
	letGo()
	s.release("b")
	b.want(t, "200 wait=b")
	a.want(t, io.ErrUnexpectedEOF.Error())
}

// A second that is on a connection which its worker closes, but does not read, is answered.
func TestSecondOnClosedConnection(t *testing.T) {
	s := newSite(t, 1, time.Hour)
	a := s.ask("wait=a&drop", nil)
	s.awaitBegun("a")
	b := s.ask("b", nil)
	s.awaitSecond()
	s.release("a")
	a.want(t, "200 wait=a")
	b.want(t, "200 b")
}

// killWorkers ends every worker of the pool.
func (s *site) killWorkers() {
	for _, w := range s.workersOf(nil) {
		_ = unix.Kill(w.proc.pid, unix.SIGKILL)
	}
}

// A second that was not begun when its worker died is answered by another
// one; the first fails.
func TestWorkerDiesBeforeSecond(t *testing.T) {
	s := newSite(t, 1, time.Hour)
	a := s.ask("wait=a", nil)
	s.awaitBegun("a")
	b := s.ask("b", nil)
	s.awaitSecond()
	s.killWorkers()
	a.want(t, "502 ")
	b.want(t, "200 b")
}

// A second that was begun when its worker died fails: it may have done its work.
func TestWorkerDiesInSecond(t *testing.T) {
	s := newSite(t, 1, time.Hour)
	a, b, letGo := s.holdBegun("", nil)
	s.killWorkers()
	letGo()
	a.want(t, "200 wait=a")
	b.want(t, "502 ")
	s.ask("c", nil).want(t, "200 c")
}

// A worker that says to have begun the next exchange while there is still more of an answer
// than its socket can hold is one that broke the protocol: what is kept of it for a
// client that does not read is bounded. Up to the bound it is the client's all the same.
func TestAnswerAheadOfItself(t *testing.T) {
	for _, c := range []struct {
		size        int
		want, wantB string
	}{
		{maxAhead - 1<<20, "200 wait=a", "200 b"},
		{maxAhead + 1<<20, "502 502 Bad Gateway: bad_answer", "502 "},
	} {
		t.Run(fmt.Sprint(c.size), func(t *testing.T) {
			s := newSite(t, 1, time.Hour)
			read := make(chan struct{})
			a := s.ask(fmt.Sprint("wait=a&ahead&size=", c.size), read)
			s.awaitBegun("a")
			b := s.ask("b", nil)
			s.awaitSecond()
			s.release("a")
			b.want(t, c.wantB)
			close(read)
			if got := a.want(t, c.want); strings.HasPrefix(c.want, "200") && len(got) != len("200 ")+c.size {
				t.Errorf("answer of %d bytes", len(got))
			}
			s.ask("c", nil).want(t, "200 c")
		})
	}
}
