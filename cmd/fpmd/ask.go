package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"fpmd/manager"
)

const whereHelp = `  -c FILE         the configuration of that fpmd, which says where its
                  runtime_dir is (default ` + defaultConfig + `)
  --socket PATH   its control socket, in place of what FILE says
`

const statusHelp = `usage: fpmd status [-c FILE] [--json]

Says how the fpmd that runs with that configuration is: its pools, and their
workers.

` + whereHelp + `  --json          for programs: later versions add names, and change none

exit codes: 0 every pool serves, or would; 1 one does not; 69 no fpmd is there
to ask.
`

const planHelp = `usage: fpmd plan [-c FILE] [--changed] [--json] [POOL...]

Says what a reload of the pools, or of all, would do now.

` + whereHelp + `  --changed       only of those pools of which a key has changed
  --json          for programs: later versions add names, and change none

exit codes: 0 it would begin; 1 it would be refused; 69 no fpmd is there to ask.
`

const reloadHelp = `usage: fpmd reload [-c FILE] [--changed] [--wait=false] [POOL...]

Has fpmd read its configuration again and roll the pools, or all, as HUP does,
and waits for the end: 0, they serve with new workers; 1, with what went wrong,
and the old ones serve on. A pool is rolled without a change of its keys, too:
its code may have changed. One that is new comes, and one that is gone leaves
once it has answered what it has.

` + whereHelp + `  --changed       only those pools of which a key has changed, and without new
                  workers where that was their size or what they listen at
  --wait          wait for the end, and tell it; --wait=false does not
`

const restartHelp = `usage: fpmd restart [-c FILE] POOL...

Has fpmd roll the pools without reading its configuration again, and waits for
the end, as reload does.

` + whereHelp

const rollbackHelp = `usage: fpmd rollback [-c FILE] POOL

Has the workers that POOL had before its last reload or restart serve again, at
once, and with the configuration that they have. They are there for as long as
keep_generation says, which status tells; without any it is refused.

` + whereHelp + `
exit codes: 0 they serve; 1 it was refused, and all stays as it is; 69 no fpmd
is there to ask.
`

const scaleHelp = `usage: fpmd scale [-c FILE] POOL N

Has POOL have N workers; of a pool that is not static, it is the most that
changes. It holds until a reload that changes workers.

` + whereHelp

const reopenHelp = `usage: fpmd reopen [-c FILE]

Has fpmd open its log files again by their names, as USR1 does: for log
rotation.

` + whereHelp

const stopHelp = `usage: fpmd stop [-c FILE]

Stops fpmd gently, as TERM does, and waits until it has stopped.

` + whereHelp

// An askLine is the command line of what asks a running fpmd.
type askLine struct {
	config string
	socket string
	json   bool // of status, plan, events and why

	changed bool // of plan and reload
	wait    bool // of reload

	since  sinceFlag // of events
	follow bool      // of events
}

func (l *askLine) flags(name string) *flag.FlagSet {
	f := newFlags(name)
	f.StringVar(&l.config, "c", defaultConfig, "the configuration is `FILE`")
	f.StringVar(&l.socket, "socket", "", "ask at this control socket: `FILE`")
	if slices.Contains([]string{"status", "plan", "events", "why"}, name) {
		f.BoolVar(&l.json, "json", false, "for programs")
	}
	if name == "events" {
		f.Var(&l.since, "since", "not before `TIME`, or so long ago")
		f.BoolVar(&l.follow, "follow", false, "go on with what comes")
	}
	if name == "plan" || name == "reload" {
		f.BoolVar(&l.changed, "changed", false, "only pools of which a key has changed")
	}
	if name == "reload" {
		f.BoolVar(&l.wait, "wait", true, "wait for the end")
	}
	return f
}

// parse reads a command line with least to most arguments besides flags.
func (l *askLine) parse(name string, args []string, help string, least, most int, stdout io.Writer) (rest []string, err error) {
	f := l.flags(name)
	if err := parseFlags(f, args, help, stdout); err != nil {
		return nil, err
	}
	switch n := f.NArg(); {
	case n > most:
		return nil, usageError("%s takes no argument %q: fpmd %s --help", name, f.Arg(most), name)
	case n < least:
		usage, _, _ := strings.Cut(strings.TrimPrefix(help, "usage: "), "\n")
		return nil, usageError("%s wants more arguments: %s", name, usage)
	}
	return f.Args(), nil
}

const anyNumber = 1 << 20 // of arguments

// query is what plan, reload and restart send of their command line.
func (l *askLine) query(pools []string) string {
	q := url.Values{"pool": pools}
	if l.changed {
		q.Set("changed", "1")
	}
	return "?" + q.Encode()
}

// ask sends a request to the control socket, and reads the answer into v unless that is nil.
func (l *askLine) ask(ctx context.Context, method, path string, v any) error {
	body, err := l.open(ctx, method, path)
	if err != nil {
		return err
	}
	defer body.Close()
	if v == nil {
		return nil
	}
	if err := json.NewDecoder(body).Decode(v); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// open sends a request to the control socket, and gives the answer, for the caller to close.
func (l *askLine) open(ctx context.Context, method, path string) (io.ReadCloser, error) {
	socket := l.socket
	if socket == "" {
		dir, err := manager.RuntimeDir(l.config)
		if err != nil {
			return nil, &exitError{exitConfig, fmt.Errorf("where the control socket is, the configuration says, and it can't be read; --socket PATH says it too: %w", err)}
		}
		socket = manager.ControlSocket(dir)
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://fpmd"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, &exitError{exitUnavailable, fmt.Errorf("no fpmd runs there: %s: %w (one whose runtime_dir was another when it started is asked by --socket PATH)", socket, unwrapped(err))}
	case errors.Is(err, fs.ErrPermission):
		return nil, &exitError{exitUnavailable, fmt.Errorf("%s is for root, the user that fpmd runs as and, where there is one, its control_group: %w", socket, unwrapped(err))}
	case err != nil:
		return nil, &exitError{exitUnavailable, fmt.Errorf("ask %s: %w", socket, unwrapped(err))}
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var no refusal
	if err := json.NewDecoder(resp.Body).Decode(&no); err != nil || no.Error == "" {
		return nil, fmt.Errorf("%s %s: fpmd answered %s", method, path, resp.Status)
	}
	return nil, errors.New(printable(no.Error))
}

// printable is s, which may have what an application has printed, with escapes in the place of
// all that a terminal would act upon, but for line ends.
func printable(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = manager.Printable(strings.ReplaceAll(line, "\t", "    "))
	}
	return strings.Join(lines, "\n")
}

// unwrapped is err without the URL, which is none that anybody knows.
func unwrapped(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func cmdReload(ctx context.Context, args []string, stdout, _ io.Writer) error {
	var l askLine
	pools, err := l.parse("reload", args, reloadHelp, 0, anyNumber, stdout)
	if err != nil {
		return done(err)
	}
	query := l.query(pools)
	if !l.wait {
		query += "&wait=0"
	}
	return l.ask(ctx, "POST", "/reload"+query, nil)
}

func cmdRestart(ctx context.Context, args []string, stdout, _ io.Writer) error {
	var l askLine
	pools, err := l.parse("restart", args, restartHelp, 1, anyNumber, stdout)
	if err != nil {
		return done(err)
	}
	return l.ask(ctx, "POST", "/restart"+l.query(pools), nil)
}

func cmdRollback(ctx context.Context, args []string, stdout, _ io.Writer) error {
	var l askLine
	pool, err := l.parse("rollback", args, rollbackHelp, 1, 1, stdout)
	if err != nil {
		return done(err)
	}
	return l.ask(ctx, "POST", "/rollback"+l.query(pool), nil)
}

func cmdPlan(ctx context.Context, args []string, stdout, _ io.Writer) error {
	var l askLine
	pools, err := l.parse("plan", args, planHelp, 0, anyNumber, stdout)
	if err != nil {
		return done(err)
	}
	var plan manager.Plan
	if err := l.ask(ctx, "GET", "/plan"+l.query(pools), &plan); err != nil {
		return err
	}
	if l.json {
		err = writeJSON(stdout, plan)
	} else {
		_, err = io.WriteString(stdout, planText(plan))
	}
	if err == nil && len(plan.Refused) > 0 {
		return &exitError{code: exitFailure} // it has been said
	}
	return err
}

// planText lays a plan out for a person.
func planText(plan manager.Plan) string {
	var b strings.Builder
	for _, c := range plan.Refused {
		fmt.Fprintf(&b, "refused: %s: restart fpmd for that\n", c)
	}
	if len(plan.Refused) > 0 {
		b.WriteString("all stays as it is\n")
		return b.String()
	}
	for _, c := range plan.Changes {
		fmt.Fprintf(&b, "at once: %s\n", c)
	}
	for _, c := range plan.Later {
		fmt.Fprintf(&b, "from the next start on: %s\n", c)
	}
	for _, p := range plan.Pools {
		plain := ""
		switch {
		case p.Added:
			plain = "new"
		case p.Removed:
			plain = "removed, once it has answered what it has"
		case len(p.Changes) == 0:
			plain = "new workers, with the same configuration"
		}
		if plain != "" {
			fmt.Fprintf(&b, "pool %s: %s\n", p.Name, plain)
			continue
		}
		var does []string
		for _, d := range []struct {
			it   bool
			text string
		}{
			{p.Rolled, "new workers"},
			{p.Resized && !p.Rolled, "resized, with the workers that it has"},
			{p.Rebound, "listeners rebound"},
			{p.Connections, "other terms for new connections"},
			{p.Log, "another access log"},
		} {
			if d.it {
				does = append(does, d.text)
			}
		}
		fmt.Fprintf(&b, "pool %s: %s\n", p.Name, strings.Join(does, ", "))
		for _, c := range p.Changes {
			fmt.Fprintf(&b, "  %s\n", c)
		}
	}
	if len(plan.Pools) == 0 {
		b.WriteString("nothing is rolled: no key has changed\n")
	}
	return b.String()
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func cmdReopen(ctx context.Context, args []string, stdout, _ io.Writer) error {
	var l askLine
	if _, err := l.parse("reopen", args, reopenHelp, 0, 0, stdout); err != nil {
		return done(err)
	}
	return l.ask(ctx, "POST", "/reopen", nil)
}

func cmdScale(ctx context.Context, args []string, stdout, _ io.Writer) error {
	var l askLine
	rest, err := l.parse("scale", args, scaleHelp, 2, 2, stdout)
	if err != nil {
		return done(err)
	}
	if n, err := strconv.Atoi(rest[1]); err != nil || n < 1 {
		return usageError("scale: %q: want a number of workers, 1 or more", rest[1])
	}
	return l.ask(ctx, "POST", "/scale?"+url.Values{"pool": {rest[0]}, "workers": {rest[1]}}.Encode(), nil)
}

func cmdStop(ctx context.Context, args []string, stdout, _ io.Writer) error {
	var l askLine
	if _, err := l.parse("stop", args, stopHelp, 0, 0, stdout); err != nil {
		return done(err)
	}
	var before report
	if err := l.ask(ctx, "GET", "/status", &before); err != nil {
		return err
	}
	if err := l.ask(ctx, "POST", "/stop", nil); err != nil {
		return err
	}
	for {
		var now report
		err := l.ask(ctx, "GET", "/status", &now)
		var no *exitError
		silent := errors.As(err, &no) && no.code == exitUnavailable
		if (silent || err == nil && now.PID != before.PID) && !lives(before.PID) {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// lives reports whether there is a process of this pid that has not ended, as far as can be
// seen from here. Its number may be that of another namespace.
func lives(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ") // behind the name, which may have any character
	return !strings.HasPrefix(state, "Z")
}

func cmdStatus(ctx context.Context, args []string, stdout, _ io.Writer) error {
	var l askLine
	if _, err := l.parse("status", args, statusHelp, 0, 0, stdout); err != nil {
		return done(err)
	}
	var r report
	if err := l.ask(ctx, "GET", "/status", &r); err != nil {
		return err
	}
	if l.json {
		if err := writeJSON(stdout, r); err != nil {
			return err
		}
	} else if err := r.write(stdout, time.Now()); err != nil {
		return err
	}
	for _, p := range r.Pools {
		if p.State != "serving" && p.State != "idle" && p.State != "removed" {
			return &exitError{code: exitFailure} // it has been said
		}
	}
	return nil
}

// write lays the report out for a terminal.
func (r *report) write(w io.Writer, now time.Time) error {
	fmt.Fprintf(w, "%s  pid %d  up %s  %s\n", r.Version, r.PID, age(now.Sub(r.Since)), r.Config)
	for _, p := range r.Pools {
		failed, all := 0, 0
		for outcome, n := range p.Requests {
			if all += n; outcome != "ok" && outcome != "client_gone" {
				failed += n
			}
		}
		fmt.Fprintf(w, "\npool %s: %s, %s, generation %d, on %s\n", p.Name, p.State, p.PM, p.Generation, strings.Join(p.Listen, " "))
		fmt.Fprintf(w, "  %d of %d slots busy, %d of %d places in the queue taken, %d connections; %d requests, %d failed\n",
			p.Busy, p.Slots, p.Queued, p.QueueSize, p.Connections, all, failed)
		if p.Ration > 0 && p.Ration < p.Size {
			fmt.Fprintf(w, "  at most %d workers instead of %d: max_workers leaves it no more\n", p.Ration, p.Size)
		}
		if p.Overloaded != nil {
			fmt.Fprintf(w, "  overloaded for %s: who came last is served first; %d requests refused\n", age(now.Sub(*p.Overloaded)), p.Refused)
		}
		if p.QueueFull != nil {
			fmt.Fprintf(w, "  queue full, on and off, for %s: %d requests refused\n", age(now.Sub(*p.QueueFull)), p.Refused)
		}
		if p.AtLimit != nil {
			most := p.Size
			if p.Ration > 0 {
				most = min(most, p.Ration)
			}
			fmt.Fprintf(w, "  at its limit of %d workers for %s\n", most, age(now.Sub(*p.AtLimit)))
		}
		if p.Error != "" && p.State != "serving" {
			fmt.Fprintf(w, "  no worker: %s\n", strings.ReplaceAll(printable(p.Error), "\n", "\n    "))
		}
		if k := p.Kept; k != nil {
			fmt.Fprintf(w, "  generation %d, of %d workers, is kept for %s: fpmd rollback %s\n", k.Generation, k.Workers, age(k.Until.Sub(now)), p.Name)
		}
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		if len(p.Workers) > 0 {
			fmt.Fprintln(t, "  WORKER\tPID\tSTATE\tBUSY\tSERVED\tREADY FOR\tMEMORY")
		}
		for _, v := range p.Workers {
			pid, ready := "-", "-"
			if v.PID > 0 {
				pid = strconv.Itoa(v.PID)
			}
			if v.Ready != nil {
				ready = age(now.Sub(*v.Ready))
			}
			fmt.Fprintf(t, "  %d\t%s\t%s\t%d/%d\t%d\t%s\t%d MiB", v.ID, pid, v.State, v.Busy, v.Slots, v.Served, ready, v.Memory>>20)
			if v.Cause != "" {
				fmt.Fprintf(t, "\t%s", v.Cause)
			}
			fmt.Fprintln(t)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// age is a time that has gone by, as a person would say it.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}
