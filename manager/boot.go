package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// A Trial is what became of one worker of a pool that was started to see
// whether it comes up.
type Trial struct {
	Pool      string
	Command   []string
	User      string // "" when it is the supervisor's
	Directory string
	Env       []string // names of what the worker finds in its environment
	Took      time.Duration
	Slots     int   // exchanges at once that it offered
	Probe     int   // the status with which it has answered the probe; 0: there is none
	Err       error // why it did not come up, with what it printed; nil: it did
}

// Try starts one worker of each pool of cfg, one after the other, where nobody
// can ask it anything, and stops it again: listeners, runtime folder and logs
// of a running fpmd are not touched. The error is about what it needs itself; what is
// wrong with a worker is in its Trial. Ending ctx ends the trial under way. Nothing is left behind.
func Try(ctx context.Context, cfg *Config, o Options) (trials []Trial, err error) {
	dir, err := os.MkdirTemp("", "fpmd-try-")
	if err != nil {
		return nil, fmt.Errorf("folder for worker sockets: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	m := &Manager{log: o.Logger, opts: o, cfg: cfg, socks: dir, starts: newTurns(1)}
	if o.WSGI != nil {
		if m.host, err = sealedMemfd("fpmd-host", o.WSGI.Archive); err != nil {
			return nil, err
		}
		defer m.host.Close()
	}
	for _, pc := range cfg.Pools {
		if ctx.Err() != nil {
			return trials, context.Cause(ctx)
		}
		trials = append(trials, newPool(m, pc).try(ctx))
	}
	return trials, nil
}

func (p *pool) try(ctx context.Context) Trial {
	cfg := p.config()
	t := Trial{Pool: p.name, Directory: cfg.Directory}
	if cfg.Cred != nil {
		t.User = cfg.Cred.Name
	}
	l, err := p.launch(0, cfg)
	if err != nil {
		t.Err = err
		return t
	}
	t.Command = l.argv
	for _, kv := range l.env {
		if name, _, _ := strings.Cut(kv, "="); !strings.HasPrefix(name, "FPMD_") {
			t.Env = append(t.Env, name)
		}
	}
	slices.Sort(t.Env)
	g := p.newGeneration(cfg)
	defer g.cancel()
	began := time.Now()
	w, err := g.startWorker(ctx)
	t.Took = time.Since(began)
	if err != nil {
		t.Err = err
		return t
	}
	t.Slots, t.Probe = len(w.slots), g.probed
	g.retire("it was tried")
	<-w.gone
	return t
}

const slipOfThePen = "a slip of the pen at the line that the output names; where that is right, the application wants another version of Python than python runs"

const redirected = "the application wants https (SECURE_SSL_REDIRECT of Django), which a probe such as \"https://www.example.com/healthz\" has, a slash at the end, or somebody who has logged in"

// hints are what is usually wrong where a worker's last words contain a text.
var hints = []struct{ text, hint string }{
	{"No module named", "the module is not below directory or python_path, or python is not the interpreter of its virtual environment"},
	{"ImportError", "a package is missing or of another version than the application wants: look at python, and at what is installed for it"},
	{"IndentationError", slipOfThePen},
	{"TabError", slipOfThePen},
	{"SyntaxError", slipOfThePen},
	{"ermission denied", "the worker's user may not read the application, or not enter a folder on the way to it: look at user, and at the folders' modes"},
	{"not found on PATH", "the program is not installed, or env gives another PATH"},
	{"the interpreter that it names is not", "in a chroot, the loader and the libraries of the program are not in it (ldd names them); else the first line of a script is wrong"},
	{"no such file or directory", "a path in the configuration is wrong, or what it names is not installed"},
	{"Address already in use", "the application listens on an address of its own: under fpmd it must not"},
	{"exited with status 0", "the program is no worker: it must end with fpmd's worker package, or speak the exchange (PROTOCOL.md)"},
	{"status 400, want", "the application answers for hosts that it knows (ALLOWED_HOSTS of Django): a probe that is a path asks for localhost, one such as \"https://www.example.com/healthz\" for its own"},
	{"status 301, want", redirected},
	{"status 302, want", redirected},
	{"status 404, want", "the application has no such path; a probe includes script_name"},
	{"start_timeout", "loading takes longer than start_timeout, or waits for something: a database, a lock, a terminal"},
}

// WriteTo writes what the Trial has found, for somebody who has to mend it.
func (t Trial) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	if t.Err == nil {
		probe := ""
		if t.Probe != 0 {
			probe = fmt.Sprintf(", and answered the probe with %d", t.Probe)
		}
		fmt.Fprintf(&b, "pool %s: a worker was ready after %v, for %d at once%s\n", t.Pool, t.Took.Round(time.Millisecond), t.Slots, probe)
	} else {
		fmt.Fprintf(&b, "pool %s: no worker comes up\n  command      %q\n", t.Pool, t.Command)
		if t.User != "" {
			fmt.Fprintf(&b, "  user         %s\n", t.User)
		}
		fmt.Fprintf(&b, "  directory    %s\n  environment  %s\n  after        %v\n", t.Directory, strings.Join(t.Env, " "), t.Took.Round(time.Millisecond))
		cause, output := t.Err, []string(nil)
		var e *startError
		if errors.As(t.Err, &e) {
			cause, output = e.cause, e.lines
		}
		fmt.Fprintf(&b, "  error        %v\n", cause)
		if len(output) > 0 {
			fmt.Fprintf(&b, "  output       %s\n", strings.Join(output, "\n               "))
		}
		text := t.Err.Error()
		for _, h := range hints {
			if strings.Contains(text, h.text) {
				fmt.Fprintf(&b, "  usually      %s\n", h.hint)
				break
			}
		}
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}
