package worker

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"fpmd/protocol"
)

// DefaultConcurrency is how many exchanges run at once where neither the pool
// nor Options say it.
const DefaultConcurrency = 64

// Options are what Serve may be told. Nil is the same as an empty one.
type Options struct {
	// Concurrency is how many exchanges may run at once, at most 256, where
	// the pool's key threads does not say it. 0 is DefaultConcurrency.
	Concurrency int

	// ErrorLog is told of panics and errors of the application. Nil is the
	// standard logger's destination, standard error, which is the supervisor's log.
	ErrorLog *log.Logger
}

// ErrNotStarted is wrapped by Serve's error in a process that fpmd has not
// started.
var ErrNotStarted = protocol.ErrNotStarted

// A host runs one application.
type host struct {
	app   Application
	log   *log.Logger
	debug bool
}

func (h *host) logf(format string, args ...any) {
	h.log.Printf(format, args...)
}

// Serve runs app for the fpmd that has started this process. It returns nil
// after SIGTERM, when the exchanges that had begun have ended. In a process
// that was started otherwise it returns at once with an error that wraps
// ErrNotStarted and says how to run it: print it, and exit with 2.
//
// Serve is called once, when the application is ready to answer: until then
// the supervisor sends nothing, and a reload keeps the old workers.
func Serve(app Application, opts *Options) error {
	if opts == nil {
		opts = new(Options)
	}
	start, err := protocol.Started()
	if errors.Is(err, protocol.ErrNotStarted) {
		return fmt.Errorf("%w: %s", err, howToRun())
	}
	if err != nil {
		return fmt.Errorf("started by fpmd, yet not as a worker: %w", err)
	}
	slots := start.Threads
	if slots == 0 {
		slots = opts.Concurrency
	}
	if slots == 0 {
		slots = DefaultConcurrency
	}
	h := &host{app: app, log: opts.ErrorLog, debug: start.Debug}
	if h.log == nil {
		h.log = log.New(os.Stderr, "", 0) // the supervisor's log has the time
	}
	w := &protocol.Worker{
		Listener: start.Listener,
		Page:     start.Page,
		Slots:    slots,
		Handle:   h.handle,
		Report:   func(err error) { h.logf("connection to the supervisor: %v", err) },
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	defer signal.Stop(term)
	ended := make(chan struct{})
	defer close(ended)
	go func() { // ends with Serve
		select {
		case <-term:
			w.Drain()
		case <-ended:
		}
	}()
	if err := start.Ready(slots); err != nil {
		return err
	}
	return w.Serve()
}

func howToRun() string {
	program, err := os.Executable()
	if err != nil {
		program = os.Args[0]
	}
	name := filepath.Base(program)
	return fmt.Sprintf(`it does not listen by itself. To run it, put into fpmd.toml

    [supervisor]
    user    = "nobody"              # who the workers are, when root starts fpmd

    [pool.%s]
    listen  = "127.0.0.1:9000"
    command = [%q]

and start

    fpmd serve -c fpmd.toml --http 127.0.0.1:8080
`, poolName(name), strings.ReplaceAll(program, "$", "$$"))
}

// poolName makes a name that a pool may have of a program's.
func poolName(program string) string {
	name := []byte(strings.ToLower(program))
	for i, c := range name {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || i > 0 && (c == '-' || c == '_')) {
			name[i] = '-'
		}
	}
	name = bytes.TrimLeft(name[:min(len(name), 32)], "-")
	if len(name) == 0 {
		return "app"
	}
	return string(name)
}
