package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fpmd/manager"
)

// lifeApp lives, and ends, as it is asked to.
const lifeApp = `
import os, signal, subprocess, sys, time
def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/exit":
        print("no more of this", flush=True)
        os._exit(3)
    if path == "/segv": os.kill(os.getpid(), signal.SIGSEGV)
    if path == "/hang": time.sleep(3600)
    pid = os.getpid()
    if path == "/child": pid = subprocess.Popen(["sleep", "3600"]).pid
    if path == "/orphan": pid = int(subprocess.check_output("sleep 3600 >/dev/null & echo $!", shell=True))
    if path == "/apart": pid = subprocess.Popen(["sleep", "3600"], start_new_session=True).pid
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % pid]
`

// story is what fpmd why says of what has that pid, or is called so; of one that is gone, once it is.
func (d *process) story(of any) (text string, s manager.Story) {
	d.t.Helper()
	text, code := d.told("why", fmt.Sprint(of))
	if code != 0 {
		d.t.Fatalf("why %v: exit code %d: %s", of, code, text)
	}
	said, code := d.told("why", "--json", fmt.Sprint(of))
	if err := json.Unmarshal([]byte(said), &s); err != nil || code != 0 {
		d.t.Fatalf("why --json %v: exit code %d, %v: %s", of, code, err, said)
	}
	return text, s
}

// gone is story of a worker that is gone, or about to be.
func (d *process) gone(pid int) (text string, s manager.Story) {
	d.t.Helper()
	d.wait("the end of a worker, and who takes its place", func() bool {
		text, s = d.story(pid)
		return strings.Contains(text, ": gone\n") && strings.Contains(text, "took its place")
	})
	return text, s
}

// askPid is the pid with which path is answered.
func askPid(d *process, path string) int {
	d.t.Helper()
	answer, err := askPath(d.sock(), path)
	_, body, _ := strings.Cut(answer, "\r\n\r\n")
	pid, perr := strconv.Atoi(body)
	if err != nil || perr != nil {
		d.t.Fatalf("%s: %q, %v", path, answer, err)
	}
	return pid
}

// whoWeAre is what fpmd calls who asks it here.
func whoWeAre() string { return peer{uid: os.Getuid(), pid: os.Getpid()}.String() }

// flat is text without its line ends and the room before lines, which depend on how long a pid is.
func flat(text string) string { return strings.Join(strings.Fields(text), " ") }

// Of a worker that is gone, fpmd tells why: who ended it, what it was at, what it said, and who took its place.
func TestWhyAWorkerIsGone(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), lifeApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1\nrequest_timeout = \"1s\"\nstop_timeout = \"500ms\"\nmax_requests = 4"))
	for _, tt := range []struct {
		name string
		end  func(pid int) // ends it
		want []string      // in this order
	}{
		{
			"killed by hand", func(pid int) { syscall.Kill(pid, syscall.SIGKILL) },
			[]string{"ready after ", "gone: killed by SIGKILL, which fpmd had not sent; served 1; lived for "},
		},
		{
			"told to by hand", func(pid int) { syscall.Kill(pid, syscall.SIGTERM) },
			[]string{"gone: exited with status 0; served 1; lived for "},
		},
		{"killed by itself", func(int) { askPath(d.sock(), "/segv") }, []string{"gone: killed by SIGSEGV"}},
		{"exited", func(int) { askPath(d.sock(), "/exit") }, []string{"gone: exited with status 3; served 1;", "| no more of this"}},
		{"request_timeout", func(int) { askPath(d.sock(), "/hang") }, []string{
			"request timed out: GET /hang (id ", "no answer in request_timeout=1s; next: answer 504, replace the worker",
			"takes no more requests: request_timeout", "gone: killed by SIGKILL, which fpmd had sent;",
		}},
		{"recycled", func(int) {
			for range 3 {
				askPath(d.sock(), "/")
			}
		}, []string{"took its place", "takes no more requests: max_requests", "gone: exited with status 0, after SIGTERM of fpmd's; served 4;"}},
		{"reloaded", func(int) {
			if said, code := d.told("reload"); code != 0 {
				t.Errorf("reload: %d %s", code, said)
			}
		}, []string{"reload begins, of all pools, by " + whoWeAre(), "generation 2 serves, with 1", "takes no more requests: replaced by a reload", "gone: exited"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pid := askPid(d, "/")
			worker := d.status().Pools[0].Workers[0].ID
			tt.end(pid)
			var text string
			var s manager.Story
			if tt.name == "reloaded" { // all have left, and the new ones take nobody's place
				d.wait("its end", func() bool { text, s = d.story(pid); return strings.Contains(text, ": gone\n") })
			} else {
				text, s = d.gone(pid)
			}
			rest := flat(text)
			for _, want := range append([]string{fmt.Sprintf("worker %d of pool app, pid %d, generation 1: gone", worker, pid), fmt.Sprintf("started, pid %d: ", pid)}, tt.want...) {
				_, after, found := strings.Cut(rest, want)
				if !found {
					t.Fatalf("no %q, or not in its place, in\n%s", want, text)
				}
				rest = after
			}
			if s.Worker != worker || s.PID != pid || s.Pool != "app" {
				t.Errorf("%+v", s)
			}
			if byNumber, _ := d.told("why", fmt.Sprintf("app/%d", worker)); byNumber != text {
				t.Errorf("by its number, it is\n%s\nand not\n%s", byNumber, text)
			}
		})
	}
}

// Of a worker that lives, fpmd tells how it is; of what a worker has started, whose it is; of what it does not know,
// how far back it does.
func TestWhyAWorkerLives(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), lifeApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1"))
	pid := askPid(d, "/")
	if text, s := d.story(pid); !strings.Contains(flat(text), "generation 1: idle, 0 of 1 slots busy, served 1, ") || s.Now == nil || s.Now.Served != 1 {
		t.Errorf("%+v\n%s", s, text)
	}
	for _, path := range []string{"/child", "/orphan", "/apart"} {
		child := askPid(d, path)
		defer syscall.Kill(child, syscall.SIGKILL)
		if text, s := d.story(child); s.Child != child || s.PID != pid || !strings.HasPrefix(text, fmt.Sprintf("%d is of the processes", child)) {
			t.Errorf("%s: %+v\n%s", path, s, text)
		}
	}
	for _, n := range []int{2, 1} {
		if said, code := d.told("scale", "app", fmt.Sprint(n)); code != 0 {
			t.Errorf("scale: exit code %d, %s", code, said)
		}
		d.wait("so many workers", func() bool { p := d.status().Pools[0]; return p.Slots == n && len(p.Workers) == n })
	}
	events, _ := d.told("events")
	if left := regexp.MustCompile(`(app/\d+) +takes no more requests: scaled down`).FindStringSubmatch(events); left == nil {
		t.Errorf("nobody has left in\n%s", events)
	} else if text, _ := d.story(left[1]); !strings.Contains(flat(text), fmt.Sprintf("scaled to 1, by %s", whoWeAre())) {
		t.Errorf("who has scaled the pool down is not said in\n%s", text)
	}
	for _, tt := range []struct {
		of   string
		code int
		want string
	}{
		{"1", exitFailure, `^no worker has the pid 1, and none is known to have had it: all is known since fpmd was started, \d{4}-`},
		{"app/4711", exitFailure, `^there is no worker 4711, and none is known to have been: all is known since `},
		{"aap/1", exitFailure, `^worker 1 is one of pool app\n`},
		{"app", exitUsage, "want a PID, or POOL/WORKER"},
		{"-1", exitUsage, "unknown flag"},
	} {
		if said, code := d.told("why", tt.of); code != tt.code || !regexp.MustCompile(tt.want).MatchString(said) {
			t.Errorf("why %s: exit code %d, %s", tt.of, code, said)
		}
	}
}

// A worker that did not come up in a reload is told of with what it printed.
func TestWhyAWorkerDidNotStart(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), lifeApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1"))
	write(t, filepath.Join(dir, "app.py"), "print('\\x1b[2J loading')\nraise RuntimeError('not today')\n")
	if _, code := d.told("reload"); code != exitFailure {
		t.Fatalf("reload: exit code %d", code)
	}
	text, s := d.story("app/2")
	if s.PID == 0 || s.Generation != 2 || strings.Contains(text, "\x1b") {
		t.Errorf("%+v, %q", s, text)
	}
	for _, want := range []string{
		": generation 2 begins", "did not start: exited with status 1 before it was ready",
		"| RuntimeError: not today", `| \x1b[2J loading`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	events, _ := d.told("events")
	for _, want := range []string{"app generation 2 did not come up: worker 2: exited", "next: the old ones go on serving", "reload failed, of app"} {
		if !strings.Contains(flat(events), want) {
			t.Errorf("no %q in\n%s", want, events)
		}
	}
}

// A follower is fpmd events --follow --json.
type follower struct {
	out   lockedBuffer
	ended chan struct{} // closed when it has ended, and what follows is known
	code  int
	said  string // that went wrong

	events []manager.Event
}

// follow follows until fpmd has ended, or ctx.
func (d *process) follow(ctx context.Context, args ...string) *follower {
	f := &follower{ended: make(chan struct{})}
	args = append([]string{"events", "-c", filepath.Join(d.dir, "fpmd.toml"), "--follow", "--json"}, args...)
	go func() { // ends with fpmd, or ctx
		defer close(f.ended)
		err := run(ctx, args, &f.out, &f.out)
		if f.code = exitCode(err); err != nil {
			f.said = err.Error()
		}
		for line := range strings.Lines(f.out.String()) {
			var e manager.Event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				f.said += line
			}
			f.events = append(f.events, e)
		}
	}()
	return f
}

// follows waits until f has been told something.
func (d *process) follows(f *follower) {
	d.t.Helper()
	d.wait("an event for a follower", func() bool { return strings.HasSuffix(f.out.String(), "\n") })
}

// kinds counts events.
func (f *follower) kinds() map[manager.EventKind]int {
	n := map[manager.EventKind]int{}
	for _, e := range f.events {
		n[e.Kind]++
	}
	return n
}

// Who follows is told all that happens, in its order, across a reload and while workers are killed, until fpmd has
// stopped; however many follow, all are told the same.
func TestFollowAcrossAReload(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), lifeApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 2"))
	var followers []*follower
	for range 10 {
		followers = append(followers, d.follow(t.Context()))
	}
	for range 4 {
		pid := askPid(d, "/")
		syscall.Kill(pid, syscall.SIGKILL)
		d.wait("its end", func() bool { return !alive(pid) })
	}
	if said, code := d.told("reload"); code != 0 {
		t.Errorf("reload: exit code %d, %s", code, said)
	}
	if said, code := d.told("stop"); code != 0 {
		t.Errorf("stop: exit code %d, %s", code, said)
	}
	first := followers[0]
	for _, f := range followers {
		<-f.ended
		if f.code != 0 || f.said != "" {
			t.Errorf("a follower ends with exit code %d, %s", f.code, f.said)
		}
		for j, e := range f.events {
			if e.Seq != uint64(j+1) {
				t.Fatalf("event %d has number %d: %+v", j+1, e.Seq, e)
			}
		}
		if a, b := first.out.String(), f.out.String(); a != b {
			t.Errorf("one is told\n%s\nand another\n%s", a, b)
		}
	}
	n := first.kinds()
	if len(first.events) == 0 || first.events[0].Kind != manager.EventStart || first.events[len(first.events)-1].Kind != manager.EventStopped {
		t.Fatalf("from the start to the stop: %+v", first.events)
	}
	if n[manager.EventReloadEnd] != 1 || n[manager.EventGeneration] != 1 || n[manager.EventStop] != 1 || n[manager.EventSpawn] < 7 {
		t.Errorf("%v", n)
	}
	ended := map[int]bool{}
	for _, e := range first.events {
		switch e.Kind {
		case manager.EventExit, manager.EventNotStarted:
			ended[e.Worker] = true
		}
	}
	for _, e := range first.events {
		if e.Kind == manager.EventSpawn && !ended[e.Worker] {
			t.Errorf("worker %d was started, and its end is not told", e.Worker)
		}
	}
}

// Who follows an fpmd that is killed is told so, as is who comes too late; who asks for some pools, or from some time on,
// is told no more than that.
func TestFollowUntilTheEnd(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), lifeApp)
	config := wsgiPool(dir, "workers = 1")
	second := strings.SplitAfter(config, "\n\n")[1]
	config += strings.NewReplacer("pool.app", "pool.two", "app.sock", "two.sock").Replace(second)
	d := serve(t, dir, config)
	all, one := d.follow(t.Context()), d.follow(t.Context(), "--since", "1h", "two")
	d.follows(all)
	d.follows(one)
	if _, code := d.told("scale", "two", "2"); code != 0 {
		t.Errorf("scale: %d", code)
	}
	d.wait("another worker", func() bool { s, _ := d.told("events", "two"); return strings.Count(s, "ready after") == 2 })
	if said, code := d.told("events", "--since", "1h", "aap"); code != exitFailure || said != "there is no pool \"aap\": want one of app, two\n" {
		t.Errorf("of a pool that there is not: %d, %s", code, said)
	}
	d.signal(syscall.SIGKILL)
	d.waitExit()
	for name, f := range map[string]*follower{"all": all, "one": one} {
		<-f.ended
		if f.code != exitUnavailable || !strings.Contains(f.said, "had not said that it stops") {
			t.Errorf("%s: exit code %d, %s", name, f.code, f.said)
		}
		n := f.kinds()
		if name == "all" && (n[manager.EventSpawn] != 3 || n[manager.EventStart] != 1) {
			t.Errorf("all: %v", n)
		}
		if name == "one" && (n[manager.EventSpawn] != 2 || n[manager.EventScale] != 1 || n[manager.EventReady] != 2 || len(f.events) != 5) {
			t.Errorf("one: %+v", f.events)
		}
	}
	if _, code := d.told("events", "--follow"); code != exitUnavailable {
		t.Errorf("too late: exit code %d", code)
	}
}

// Who follows goes on when somebody removes the socket that he came by.
func TestFollowWithoutTheSocket(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), lifeApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1"))
	f := d.follow(t.Context())
	d.follows(f)
	if err := os.Remove(d.control()); err != nil {
		t.Fatal(err)
	}
	d.wait("the socket", func() bool { _, code := d.told("scale", "app", "2"); return code == 0 })
	d.wait("an event by the old one", func() bool { return strings.Contains(f.out.String(), `"kind":"scale"`) })
	if _, code := d.told("stop"); code != 0 {
		t.Errorf("stop: exit code %d", code)
	}
	if <-f.ended; f.code != 0 {
		t.Errorf("it ends with exit code %d, %s", f.code, f.said)
	}
}

// Only so many follow at once, each of whom has a connection; who leaves makes room.
func TestFollowersAreBounded(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), lifeApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1"))
	ctx, leave := context.WithCancel(t.Context())
	var followers []*follower
	for range maxFollowers {
		followers = append(followers, d.follow(ctx))
	}
	for _, f := range followers {
		d.follows(f)
	}
	more := d.follow(t.Context())
	d.wait("an answer", func() bool {
		select {
		case <-more.ended:
			return true
		default:
			return more.out.String() != ""
		}
	})
	if more.code != exitFailure || more.said != fmt.Sprintf("%d follow already", maxFollowers) {
		t.Errorf("one more: exit code %d, %s", more.code, more.said)
	}
	if said, code := d.told("events"); code != 0 || !strings.Contains(said, "ready after") {
		t.Errorf("who does not follow: exit code %d, %s", code, said)
	}
	leave()
	for _, f := range followers {
		<-f.ended
	}
	d.wait("room", func() bool { // until fpmd has seen that they have left
		more = d.follow(t.Context())
		for {
			select {
			case <-more.ended:
				return false
			case <-time.After(time.Millisecond):
			}
			if more.out.String() != "" {
				return true
			}
		}
	})
	if _, code := d.told("stop"); code != 0 {
		t.Errorf("stop: exit code %d", code)
	}
	if <-more.ended; more.code != 0 {
		t.Errorf("it ends with exit code %d, %s", more.code, more.said)
	}
}

// Values of env are in nothing that fpmd tells, whatever happens to the workers that have them.
func TestEventsKeepSecrets(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), lifeApp)
	write(t, filepath.Join(dir, "app.env"), "TOKEN=hunter2-file\n")
	const env = "env_file = \"app.env\"\nworkers = 1\nenv = { SECRET = \"hunter2-a\" }"
	d := serve(t, dir, wsgiPool(dir, env))
	pid := askPid(d, "/")
	askPath(d.sock(), "/exit")
	d.gone(pid)
	for _, change := range [][2]string{
		{"hunter2-a", "hunter2-b"},
		{"hunter2-a\"", "hunter2-b\", X = [\"hunter2-c\"]"},
		{"env_file = \"app.env\"", "listen_backlog = 7"},
	} {
		write(t, filepath.Join(dir, "fpmd.toml"), strings.Replace(wsgiPool(dir, env), change[0], change[1], 1))
		d.told("plan")
		d.told("reload")
	}
	write(t, filepath.Join(dir, "fpmd.toml"), wsgiPool(dir, env))
	write(t, filepath.Join(dir, "app.env"), "TOKEN=hunter2-new\n")
	write(t, filepath.Join(dir, "app.py"), "raise RuntimeError('no')\n")
	d.told("reload")
	var all strings.Builder
	for _, args := range []string{"status", "status --json", "plan", "plan --json", "events", "events --json", "why --json app/1", "why app/1", "why --json app/2"} {
		said, _ := d.told(strings.Fields(args)...)
		if len(said) < 40 {
			t.Errorf("%s: %s", args, said)
		}
		all.WriteString(said)
	}
	for _, what := range []string{"pool.app.env is now SECRET (another value), not SECRET (another value)", "reload refused"} {
		if !strings.Contains(flat(all.String()), what) {
			t.Errorf("no word of %q: has the test come to its point?", what)
		}
	}
	for _, where := range map[string]string{"what is told": all.String(), "the log": d.log.String()} {
		if i := strings.Index(where, "hunter2"); i >= 0 {
			t.Errorf("a secret: %.200s", where[max(0, i-100):])
		}
	}
}

// A pool at its limit, and one whose queue is full, say so in the log and in the status: once, and when it is over.
func TestEpisodes(t *testing.T) {
	dir := appDir(t)
	goes := filepath.Join(dir, "go")
	write(t, filepath.Join(dir, "app.py"), fmt.Sprintf(`
import os, time
def application(environ, start_response):
    while not os.path.exists(%q): time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
`, goes))
	d := serve(t, dir, wsgiPool(dir, "workers = 1\nqueue_size = 2"))
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { asks(t, d, "/", 1) })
	}
	d.wait("a full queue", func() bool { return d.status().Pools[0].Queued == 2 })
	for range 5 {
		if status, _, err := statusOf(d, "/"); err != nil || status != 503 {
			t.Errorf("beyond the queue: %d, %v", status, err)
		}
	}
	d.wait("the status of a pool at its limit", func() bool { return d.status().Pools[0].AtLimit != nil })
	said, code := d.told("status")
	for _, want := range []string{"queue full, on and off, for ", ": 5 requests refused\n", "  at its limit of 1 workers for "} {
		if code != 0 || !strings.Contains(said, want) {
			t.Errorf("no %q: exit code %d, %s", want, code, said)
		}
	}
	write(t, goes, "")
	wg.Wait()
	d.waitLog("pool below its limit again")
	d.waitLog("queue has room again")
	for _, once := range []string{"msg=\"pool at its limit\"", "msg=\"queue full\"", "refused=5"} {
		if n := strings.Count(d.log.String(), once); n != 1 {
			t.Errorf("%s is in the log %d times", once, n)
		}
	}
	p := d.status().Pools[0]
	if p.AtLimit != nil || p.QueueFull != nil || p.Refused != 0 {
		t.Errorf("in the end: %+v", p)
	}
	events, _ := d.told("events")
	for _, want := range []string{"app queue full: 2 requests wait", "app at its limit: 1 workers, all busy, and 2 requests wait", "app below its limit again", "app queue has room again: 5 requests refused"} {
		if !strings.Contains(flat(events), want) {
			t.Errorf("no %q in\n%s", want, events)
		}
	}
}

// A request to the control socket has some time to arrive, and after that as much as it takes.
func TestUnhurried(t *testing.T) {
	c := &deadlines{last: time.Now()}
	w := &hasConn{c: c}
	again := unhurried(w)
	if !c.last.IsZero() {
		t.Errorf("while it is answered, it has until %v", c.last)
	}
	again()
	if c.last.IsZero() {
		t.Error("the next one has any time")
	}
}

// hasConn is a ResponseWriter of a connection.
type hasConn struct {
	http.ResponseWriter
	c net.Conn
}

func (w *hasConn) SetReadDeadline(t time.Time) error { return w.c.SetReadDeadline(t) }

// deadlines remembers the last one.
type deadlines struct {
	net.Conn
	last time.Time
}

func (c *deadlines) SetReadDeadline(t time.Time) error { c.last = t; return nil }

func TestSince(t *testing.T) {
	now := time.Date(2026, 11, 25, 15, 4, 5, 0, time.FixedZone("", 3600))
	for text, want := range map[string]string{
		"10m":                       "2026-11-25T14:54:05+01:00",
		"0s":                        "2026-11-25T15:04:05+01:00",
		"14:00":                     "2026-11-25T14:00:00+01:00",
		"15:04:06":                  "2026-11-24T15:04:06+01:00",
		"23:30":                     "2026-11-24T23:30:00+01:00",
		"14:00:30":                  "2026-11-25T14:00:30+01:00",
		"2026-11-24":                "2026-11-24T00:00:00+01:00",
		"2026-11-24 13:00":          "2026-11-24T13:00:00+01:00",
		"2026-11-24 13:00:59":       "2026-11-24T13:00:59+01:00",
		"2026-11-24T13:00:59Z":      "2026-11-24T13:00:59Z",
		"2026-11-24T13:00:59-07:00": "2026-11-24T13:00:59-07:00",
		"yesterday":                 "",
		"-5m":                       "",
		"5":                         "",
		"":                          "",
	} {
		got, err := sinceTime(text, now)
		if want == "" {
			if err == nil {
				t.Errorf("%q is %v, want an error", text, got)
			}
		} else if err != nil || got.Format(time.RFC3339) != want {
			t.Errorf("%q is %v, %v, want %s", text, got.Format(time.RFC3339), err, want)
		}
	}
	if err := run(t.Context(), []string{"events", "--since", "yesterday"}, os.Stdout, os.Stderr); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "want how long ago, such as 10m") {
		t.Errorf("%v", err)
	}
}

// Every kind of event has its words, and a line of it fits on a terminal, whatever it holds.
func TestEventsFit(t *testing.T) {
	long := strings.Repeat("much to be said ", 40)
	kinds := map[manager.EventKind]bool{}
	source, err := os.ReadFile("../../manager/events.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^\tEvent\w+ +EventKind = "(\w+)"`).FindAllStringSubmatch(string(source), -1) {
		kinds[manager.EventKind(m[1])] = true
	}
	if len(kinds) < 25 {
		t.Fatalf("%d kinds", len(kinds))
	}
	for kind := range kinds {
		e := manager.Event{Kind: kind, Time: time.Now(), Pool: "blog", Worker: 3, PID: 4121, Cause: long + "\x1b[2J", Request: long, Exit: "killed by SIGKILL", Last: []string{"\x1b[2J"}}
		if words := describe(e); strings.HasPrefix(words, string(kind)+":") && strings.Contains(string(kind), "_") {
			t.Errorf("%s has no words: %s", kind, words)
		}
		var b strings.Builder
		if err := newPage(&b, time.Now()).write(e); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if len(strings.TrimSuffix(line, "\n")) > columns || strings.Contains(line, "\x1b") {
				t.Errorf("%s: %q", kind, line)
			}
		}
	}
}
