package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"fpmd/manager"
)

const eventsHelp = `usage: fpmd events [-c FILE] [--since TIME] [--follow] [--json] [POOL...]

Says what has happened since fpmd was started, or to these pools, as far as it
is kept: workers' lives and ends, reloads, pools that had no room.

` + whereHelp + `  --since TIME    not before TIME: 10m ago, or 15:04, "2006-01-02 15:04"
  --follow        go on with what comes, until ^C or fpmd stops; --since 0s
                  leaves out what was before
  --json          for programs, a line each: later versions add names and
                  kinds, and change none

exit codes: 0 said; 1 there is no such pool; 69 no fpmd is there to ask, or,
with --follow, there is none any more, and it had not stopped as it should.
`

const whyHelp = `usage: fpmd why [-c FILE] [--json] PID
       fpmd why [-c FILE] [--json] POOL/WORKER

Tells the life of a worker, one that serves or one that is gone, by its process
or, as the log writes it on a terminal, by its number: why it was started, why
it left, how it ended. Of a process that a worker has started, it is the
worker's.

` + whereHelp + `  --json          for programs: later versions add names, and change none

exit codes: 0 said; 1 nothing is known of it; 69 no fpmd is there to ask.
`

// A sinceFlag is a time, or how long ago that was.
type sinceFlag struct{ text string }

func (f *sinceFlag) String() string { return f.text }

func (f *sinceFlag) Set(s string) error {
	t, err := sinceTime(s, time.Now())
	if err != nil {
		return err
	}
	if f.text = s; !isDuration(s) { // which is fpmd's to count, whatever the clock says
		f.text = t.Format(time.RFC3339Nano)
	}
	return nil
}

func isDuration(s string) bool {
	_, err := time.ParseDuration(s)
	return err == nil
}

// sinceTime reads a time, the last one that there was where it has no date, or how long before now it was.
func sinceTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{time.TimeOnly, "15:04"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			y, m, d := now.Date()
			if t = time.Date(y, m, d, t.Hour(), t.Minute(), t.Second(), 0, now.Location()); t.After(now) {
				t = t.AddDate(0, 0, -1)
			}
			return t, nil
		}
	}
	return time.Time{}, errors.New(`want how long ago, such as 10m, or a time, such as 15:04 or "2006-01-02 15:04"`)
}

// maxFollowers bounds who follows at once: each has a connection.
const maxFollowers = 64

// writeEvents answers GET /events. With an error, nothing was written.
func (s *supervisor) writeEvents(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	var since time.Time
	if text := q.Get("since"); text != "" {
		var err error
		if since, err = sinceTime(text, time.Now()); err != nil {
			return fmt.Errorf("since: %q: %w", text, err)
		}
	}
	events, err := s.m.Events(since, q["pool"])
	if err != nil {
		return err
	}
	follow := q.Get("follow") == "1"
	if follow {
		if s.followers.Add(1) > maxFollowers {
			s.followers.Add(-1)
			return fmt.Errorf("%d follow already", maxFollowers)
		}
		defer s.followers.Add(-1)
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	rc := http.NewResponseController(w)
	out := json.NewEncoder(w)
	over := s.m.Over()
	for {
		some, more := events.Next()
		for _, e := range some {
			if out.Encode(e) != nil {
				return nil // who has asked has left
			}
		}
		if len(some) > 0 {
			continue
		}
		if rc.Flush() != nil || !follow {
			return nil
		}
		select {
		case <-more:
		case <-over:
			follow = false // but for what came before that
		case <-r.Context().Done():
			return nil
		}
	}
}

// why answers GET /why.
func (s *supervisor) why(q url.Values) (manager.Story, error) {
	key, tell := "pid", s.m.Why
	if q.Has("worker") {
		key, tell = "worker", s.m.WhyWorker
	}
	n, err := strconv.Atoi(q.Get(key))
	if err != nil || n < 1 {
		return manager.Story{}, fmt.Errorf("%s: %q: want a number", key, q.Get(key))
	}
	return tell(n)
}

func cmdEvents(ctx context.Context, args []string, stdout, _ io.Writer) error {
	var l askLine
	pools, err := l.parse("events", args, eventsHelp, 0, anyNumber, stdout)
	if err != nil {
		return done(err)
	}
	q := url.Values{"pool": pools}
	if l.since.text != "" {
		q.Set("since", l.since.text)
	}
	if l.follow {
		q.Set("follow", "1")
	}
	body, err := l.open(ctx, "GET", "/events?"+q.Encode())
	if err != nil {
		return err
	}
	defer body.Close()
	last := manager.Event{}
	page := newPage(stdout, time.Now())
	lines := bufio.NewReader(body)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			if l.follow && last.Kind != manager.EventStopped {
				return &exitError{exitUnavailable, errors.New("fpmd is gone, and had not said that it stops")}
			}
			return nil
		}
		last = manager.Event{}
		if err := json.Unmarshal(line, &last); err != nil {
			return fmt.Errorf("an event that is none: %w", err)
		}
		if l.json {
			_, err = stdout.Write(line)
		} else {
			err = page.write(last)
		}
		if err != nil {
			return err
		}
	}
}

func cmdWhy(ctx context.Context, args []string, stdout, _ io.Writer) error {
	var l askLine
	rest, err := l.parse("why", args, whyHelp, 1, 1, stdout)
	if err != nil {
		return done(err)
	}
	key, number := "pid", rest[0]
	if _, id, is := strings.Cut(rest[0], "/"); is {
		key, number = "worker", id
	}
	if n, err := strconv.Atoi(number); err != nil || n < 1 {
		return usageError("why: %q: want a PID, or POOL/WORKER", rest[0])
	}
	var story manager.Story
	if err := l.ask(ctx, "GET", "/why?"+key+"="+number, &story); err != nil {
		return err
	}
	if pool, _, is := strings.Cut(rest[0], "/"); is && pool != "" && pool != story.Pool {
		return fmt.Errorf("worker %s is one of pool %s", number, story.Pool)
	}
	if l.json {
		return writeJSON(stdout, story)
	}
	return writeStory(stdout, story, time.Now())
}

// columns is how wide lines are, where that is possible.
const columns = 80

// A page lays events out for a terminal, a line each, and more where one is too long.
type page struct {
	w   io.Writer
	now time.Time
	who int // length of the longest pool/worker so far
}

func newPage(w io.Writer, now time.Time) *page { return &page{w: w, now: now, who: 8} }

func (p *page) write(e manager.Event) error {
	who := e.Pool
	if e.Worker > 0 {
		who += "/" + strconv.Itoa(e.Worker)
	}
	p.who = max(p.who, len(who))
	head := fmt.Sprintf("%s  %-*s  ", clock(e.Time, p.now), p.who, printable(who))
	return writeItem(p.w, head, describe(e), e.Last)
}

// clock is t as a person wants it, who reads it at now.
func clock(t, now time.Time) string {
	t = t.In(now.Location())
	if y, m, d := t.Date(); y == now.Year() && m == now.Month() && d == now.Day() {
		return t.Format(time.TimeOnly)
	}
	return t.Format("Jan _2 15:04:05")
}

// writeItem writes text behind head, wrapped, and lines of output below it.
func writeItem(w io.Writer, head, text string, output []string) error {
	var b strings.Builder
	line, indent := head, strings.Repeat(" ", min(len(head), columns/4))
	empty := true
	for _, word := range strings.Fields(printable(text)) {
		switch {
		case empty:
			line += word
		case len(line)+1+len(word) <= columns:
			line += " " + word
		default:
			b.WriteString(line + "\n")
			line = indent + word
		}
		empty = false
	}
	b.WriteString(strings.TrimRight(line, " ") + "\n")
	for _, o := range output {
		b.WriteString(indent + "| " + printable(o) + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// describe is an event in words, which follow the name of the pool and the number of the worker.
func describe(e manager.Event) string {
	var more []string
	add := func(format string, args ...any) { more = append(more, fmt.Sprintf(format, args...)) }
	words := ""
	switch e.Kind {
	case manager.EventStart:
		words = fmt.Sprintf("fpmd starts, pid %d: %s", e.PID, e.What)
	case manager.EventStop:
		words = "fpmd stops"
	case manager.EventStopped:
		words = "fpmd has stopped"
	case manager.EventReopen:
		words = "logs opened again"
		if e.Cause != "" {
			words = "logs can't be opened again"
		}
	case manager.EventReloadBegin:
		words = e.What + " begins, of " + allOr(e.Pools)
	case manager.EventReloadRefused:
		words = e.What + " refused"
	case manager.EventReloadChange:
		words = "changed: " + strings.Join(keysOf(e.Changes), "; ")
	case manager.EventReloadEnd:
		words = e.What + "ed: " + strings.Join(e.Pools, ", ")
	case manager.EventReloadFailed:
		words = e.What + " failed, of " + strings.Join(e.Pools, ", ")
	case manager.EventReloadGivenUp:
		words = e.What + " given up, of " + strings.Join(e.Pools, ", ")
	case manager.EventGeneration:
		words = fmt.Sprintf("generation %d serves, with %d", e.Generation, e.Workers)
	case manager.EventGenerationLost:
		words = fmt.Sprintf("generation %d did not come up", e.Generation)
	case manager.EventRollback:
		words = fmt.Sprintf("rolled back: generation %d serves again, with %d", e.Generation, e.Workers)
		if len(e.Changes) > 0 {
			add("changed: %s", strings.Join(keysOf(e.Changes), "; "))
		}
	case manager.EventRollbackRefused:
		words = "rollback refused"
	case manager.EventUnkept:
		words = fmt.Sprintf("generation %d is kept no longer", e.Generation)
	case manager.EventScale:
		words = fmt.Sprintf("scaled to %d", e.Workers)
	case manager.EventAtLimit:
		words = fmt.Sprintf("at its limit: %d workers, all busy, and %s", e.Workers, waiting(e.Queued))
	case manager.EventLimitOver:
		words = fmt.Sprintf("below its limit again, after %v", e.Age.Duration())
	case manager.EventQueueFull:
		words = fmt.Sprintf("queue full: %s, the next get 503", waiting(e.Queued))
	case manager.EventQueueFullOver:
		words = fmt.Sprintf("queue has room again: %d requests refused in %v", e.Count, e.Age.Duration())
	case manager.EventOverloaded:
		words = fmt.Sprintf("overloaded: %s, many of them in vain", waiting(e.Queued))
	case manager.EventOverloadOver:
		words = fmt.Sprintf("overload is over: %d requests refused, and %d clients left, in %v", e.Count, e.Left, e.Age.Duration())
	case manager.EventFailing:
		words = "no worker comes up: requests get 503"
	case manager.EventRecovered:
		words = "a worker has come up"
	case manager.EventSpawn:
		words = fmt.Sprintf("started, pid %d", e.PID)
		if whom := fmt.Sprintf("worker %d", e.Replaces); e.Replaces > 0 && !strings.HasPrefix(e.Cause, whom+" ") {
			add("in the place of %s", whom)
		}
	case manager.EventReady:
		words = fmt.Sprintf("ready after %v", e.Took.Duration())
	case manager.EventNotStarted:
		words = "did not start"
	case manager.EventTimeout:
		words = "request timed out"
	case manager.EventBadAnswer:
		words = "broke the exchange protocol"
	case manager.EventStuck:
		words = "stuck in an abandoned request"
	case manager.EventFewSlots:
		words = "greets fewer slots than it has"
	case manager.EventMemory:
		words = "takes too much memory"
	case manager.EventRetire:
		words = "takes no more requests"
	case manager.EventDrainTimeout:
		words = "still not idle"
	case manager.EventExit:
		words = "gone: " + e.Exit
		switch {
		case strings.Contains(e.Exit, e.Sent) && e.Sent != "":
			words += ", which fpmd had sent"
		case e.Sent != "":
			words += ", after " + e.Sent + " of fpmd's"
		case strings.HasPrefix(e.Exit, "killed"):
			words += ", which fpmd had not sent"
		}
		add("served %d", e.Served)
		if e.Age > 0 {
			add("lived for %v", e.Age.Duration())
		}
	case manager.EventMissed:
		words = fmt.Sprintf("%d events that came here are not kept any more", e.Count)
	default: // of a later version
		words = string(e.Kind)
	}
	if e.By != "" {
		words += ", by " + e.By
	}
	if e.Request != "" {
		words += ": " + e.Request
	}
	if e.Cause != "" && e.Kind != manager.EventExit { // of which it was said when it began to leave
		words += ": " + e.Cause
	}
	for _, m := range more {
		words += "; " + m
	}
	if e.Next != "" {
		words += "; next: " + e.Next
	}
	return words
}

func waiting(n int) string {
	if n == 1 {
		return "1 request waits"
	}
	return fmt.Sprintf("%d requests wait", n)
}

func allOr(pools []string) string {
	if len(pools) == 0 {
		return "all pools"
	}
	return strings.Join(pools, ", ")
}

// keysOf says which keys have changed, and how.
func keysOf(changes []manager.Change) (texts []string) {
	for _, c := range changes {
		texts = append(texts, c.String())
	}
	return texts
}

// writeStory lays the life of a worker out for a terminal.
func writeStory(w io.Writer, s manager.Story, now time.Time) error {
	state := "gone"
	if s.Now != nil {
		state = s.Now.State
		if s.Now.Cause != "" {
			state += " (" + s.Now.Cause + ")"
		}
		state += fmt.Sprintf(", %d of %d slots busy, served %d, %d MiB", s.Now.Busy, s.Now.Slots, s.Now.Served, s.Now.Memory>>20)
	}
	if s.Child > 0 {
		if _, err := fmt.Fprintf(w, "%d is of the processes that this worker has started:\n", s.Child); err != nil {
			return err
		}
	}
	head := fmt.Sprintf("worker %d of pool %s, pid %d, generation %d: %s", s.Worker, s.Pool, s.PID, s.Generation, state)
	if err := writeItem(w, "", head, nil); err != nil {
		return err
	}
	if s.Since != nil {
		if _, err := fmt.Fprintf(w, "  what was before %s is not kept any more\n", clock(*s.Since, now)); err != nil {
			return err
		}
	}
	for _, e := range s.Events {
		text := describe(e)
		if e.Kind == manager.EventSpawn && e.Worker != s.Worker {
			text = fmt.Sprintf("worker %d took its place, pid %d", e.Worker, e.PID)
			e.Last = nil
		}
		if err := writeItem(w, "  "+clock(e.Time, now)+"  ", text, e.Last); err != nil {
			return err
		}
	}
	return nil
}
