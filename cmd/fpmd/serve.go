package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"fpmd/manager"
	"fpmd/worker/python"
)

const serveHelp = `usage: fpmd serve [-c FILE] [--http ADDR]

Runs the supervisor in the foreground until a signal ends it.

  -c FILE       the configuration (default ` + defaultConfig + `)
  --http ADDR   serve HTTP on ADDR as well, through the pools' own FastCGI
                sockets: for trying out, not for the internet. The first pool
                is at /, each pool is at /NAME/ and at http://NAME.localhost/

signals:
  TERM, QUIT   stop gently: answer what was accepted, within drain_timeout
  INT          stop now: what is not answered gets 503; so does a second TERM or
               QUIT
  HUP          read the configuration again and roll every pool: new workers
               are ready before old ones leave; when they do not come up, the
               old ones go on serving
  USR2         the same
  USR1         open the log files again, which were renamed
  TTIN, TTOU   one worker more, or less, in each pool, until a reload that
               changes workers; of a pool that is not static, it is the most
               that changes
`

// A serveLine is the command line of fpmd serve.
type serveLine struct {
	config string
	http   string
}

func (l *serveLine) flags() *flag.FlagSet {
	f := newFlags("serve")
	f.StringVar(&l.config, "c", defaultConfig, "read the configuration from `FILE`")
	f.StringVar(&l.http, "http", "", "serve HTTP on `ADDR` as well, for trying out")
	return f
}

// selfCheckEvery is how often fpmd looks whether all adds up that it keeps; 0: as often as the manager will.
var selfCheckEvery time.Duration

func cmdServe(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var line serveLine
	f := line.flags()
	if err := parseFlags(f, args, serveHelp, stdout); err != nil {
		return done(err)
	}
	if f.NArg() > 0 {
		return usageError("serve takes no argument %q: fpmd serve --help", f.Arg(0))
	}
	if line.http != "" {
		if _, _, err := net.SplitHostPort(line.http); err != nil {
			return usageError("--http %q: want ADDR such as 127.0.0.1:8080", line.http)
		}
	}
	inherited := activation.Files(true) // before others could get the descriptors, or the variables
	cfg, err := loadConfig(line.config, manager.LoadOptions{})
	if err != nil {
		return err
	}
	setProcs(cfg.Supervisor.Procs)
	reserveThreads(spareThreads)

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGTERM, unix.SIGQUIT, unix.SIGINT, unix.SIGHUP,
		unix.SIGUSR1, unix.SIGUSR2, unix.SIGTTIN, unix.SIGTTOU)
	defer signal.Stop(signals)
	signal.Ignore(unix.SIGPIPE) // a reader of our log that ends must not end us

	log, logs, err := manager.OpenLogs(cfg.Supervisor, stderr)
	if err != nil {
		return err
	}
	defer logs.Close()
	sched := newScheduler(log)
	sched.loading(cfg.RealTime())
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := manager.AdoptOrphans(ctx); err != nil {
		return err
	}
	archive, err := python.Archive()
	if err != nil {
		return err
	}
	s := &supervisor{path: line.config, operators: operators(cfg.Supervisor), log: log, logs: logs, signals: signals, rollings: newRollings(), sched: sched}
	m, err := manager.New(cfg, manager.Options{
		Logger: log, Logs: logs,
		WSGI:   &manager.HostRecipe{Archive: archive, Command: python.Command, Pathless: python.PathlessCommand},
		Policy: sched.started, TimerSlack: sched.slack,
		Control: s.serveControl, CheckEvery: selfCheckEvery,

		Inherited: inherited,
	})
	if err != nil {
		return err
	}
	s.m = m
	sched.asks(m.RealTime)
	var front sync.WaitGroup
	frontCtx, endFront := context.WithCancel(ctx)
	defer endFront()
	if line.http != "" {
		s.front.set(frontPools(m))
		l, err := net.Listen("tcp", line.http)
		if err != nil {
			m.Stop(ctx)
			if errors.Is(err, unix.EADDRINUSE) {
				err = fmt.Errorf("%w: another process listens there: stop it, or want another ADDR", err)
			}
			return fmt.Errorf("--http: %w", err)
		}
		front.Go(func() { // ends with frontCtx
			if err := serveFront(frontCtx, l, &s.front); err != nil {
				log.Error("built-in HTTP front", "cause", err)
			}
		})
		log.Info("built-in HTTP front", "url", "http://"+l.Addr().String()+"/")
	}
	s.tellStart(cfg)
	for _, w := range cfg.Warnings() {
		log.Warn("configuration", "warning", w)
	}
	m.Start()
	s.run(ctx, endFront)
	front.Wait() // its last requests have been answered, or cut
	log.Info("fpmd has stopped")
	return nil
}

func (s *supervisor) tellStart(cfg *manager.Config) {
	s.m.Record(manager.Event{Kind: manager.EventStart, PID: os.Getpid(), What: version()})
	s.log.Info("fpmd starts", "version", version(), "pid", os.Getpid(), "config", cfg.Path, "procs", runtime.GOMAXPROCS(0))
}

// setProcs says on how many processors Go runs at once. Each exchange
// wakes four processes; what counts is that this one is not woken on another
// processor than the one it sleeps on. Measured on two processors; see docs/performance.md.
func setProcs(configured int) {
	switch {
	case configured > 0:
		runtime.GOMAXPROCS(configured)
	case os.Getenv("GOMAXPROCS") == "":
		runtime.GOMAXPROCS(max(1, runtime.NumCPU()/4))
	}
}

// A supervisor turns signals into what the manager does.
type supervisor struct {
	m         *manager.Manager
	path      string
	operators int // group that may use the control socket as well; -1: none
	log       *slog.Logger
	logs      *manager.Logs
	signals   chan os.Signal
	rollings  *rollings
	sched     *scheduler
	ready     atomic.Bool // every pool has been, and systemd was told
	stopping  atomic.Bool
	followers atomic.Int64           // who is at GET /events?follow=1
	stopper   atomic.Pointer[string] // who has asked for the stop at the control socket
	state     atomic.Pointer[string] // what systemd was told last, in words
	figures   manager.Figures        // at the last pulse
	front     liveFront              // has none without --http
}

// run serves until a signal has stopped all. endFront has the built-in front
// take no more, the first to stop, as a web server would be.
func (s *supervisor) run(ctx context.Context, endFront func()) {
	now, stopNow := context.WithCancelCause(ctx)
	defer stopNow(nil)
	reloadCtx, endReloads := context.WithCancelCause(now)
	defer endReloads(nil)
	var wg sync.WaitGroup
	wg.Go(func() { s.reloadLoop(reloadCtx) }) // ends with reloadCtx
	wg.Go(func() { s.awaitPools(now) })       // ends when every pool is ready, or with now
	var pulse <-chan time.Time
	if every := pulseEvery(); every > 0 {
		t := time.NewTicker(every)
		defer t.Stop()
		pulse = t.C
	}
	pulsed := time.Now()
	var stopped chan struct{}
	for {
		select {
		case <-pulse:
			s.pulse(time.Since(pulsed))
			pulsed = time.Now()
			continue
		case sig := <-s.signals:
			switch sig {
			case unix.SIGHUP, unix.SIGUSR2, unix.SIGTTIN, unix.SIGTTOU:
				if stopped != nil {
					s.log.Info("signal ignored", "signal", signalName(sig), "cause", manager.ErrStopping)
					continue
				}
			}
			switch sig {
			case unix.SIGHUP, unix.SIGUSR2:
				_ = s.rollings.ask(rolling{by: signalName(sig)}, nil) // refused only by a stop, and that was looked at
				continue
			case unix.SIGUSR1:
				_ = s.reopen(signalName(sig)) // it has been logged
				continue
			case unix.SIGTTIN:
				s.m.Scale(1, signalName(sig))
				continue
			case unix.SIGTTOU:
				s.m.Scale(-1, signalName(sig))
				continue
			}
			if now.Err() != nil {
				continue // a terminal's ^C reaches who started us as well, who passes it on
			}
			s.tellStopping(signalName(sig))
			if sig == unix.SIGINT || stopped != nil {
				stopNow(errors.New("stopped by a signal that does not wait"))
			}
		case <-ctx.Done():
			stopNow(context.Cause(ctx))
		case <-stopped:
			endReloads(nil)
			stopNow(nil)
			wg.Wait()
			return
		}
		if stopped == nil {
			stopped = make(chan struct{})
			s.stopping.Store(true)
			s.notify(daemon.SdNotifyStopping, "stopping")
			endReloads(manager.ErrStopping)
			go func() { // ends with the last worker
				endFront()
				s.m.Stop(now)
				close(stopped)
			}()
		}
		if ctx.Err() != nil {
			ctx = context.WithoutCancel(ctx) // said once
		}
	}
}

func signalName(sig os.Signal) string { return unix.SignalName(sig.(unix.Signal)) }

// tellStopping says that fpmd begins to stop, by the order of a signal, which the control socket sends, too.
func (s *supervisor) tellStopping(signal string) {
	fields := []any{"signal", signal}
	e := manager.Event{Kind: manager.EventStop, By: signal}
	if by := s.stopper.Load(); by != nil {
		fields = append(fields, "by", *by)
		e.By = *by
	}
	s.m.Record(e)
	s.log.Info("stopping", fields...)
}

// awaitPools tells systemd of the end of the start, and the log of pools that are not ready by then, and of the
// time when all have been, until ctx ends.
func (s *supervisor) awaitPools(ctx context.Context) {
	select {
	case <-s.m.Ready():
	case <-ctx.Done():
		return
	}
	words := "serving"
	if unready := s.m.Unready(); unready != "" {
		words = "serving, but not yet " + unready
		s.log.Warn("some pools are not ready", "pools", unready, "next", "serve the others, and try on")
	}
	s.notify(daemon.SdNotifyReady, words)
	s.ready.Store(true)
	select {
	case <-s.m.AllReady():
	case <-ctx.Done():
		return
	}
	s.log.Info("every pool is ready")
	all := "serving"
	if p := s.state.Load(); p != nil && *p == words && words != all {
		s.state.Store(&all) // else a reload has said more since
		s.sdNotify("STATUS=" + all)
	}
}

// reopen opens the logs again, as by has asked.
func (s *supervisor) reopen(by string) error {
	const next = "the files that were open are written on"
	e := manager.Event{Kind: manager.EventReopen, By: by}
	err := s.logs.Reopen()
	if err != nil {
		e.Cause, e.Next = err.Error(), next
	}
	s.m.Record(e)
	if err != nil {
		s.log.Error("open the logs again", "cause", err, "next", next)
	} else {
		s.log.Info("logs opened again", "by", by)
	}
	return err
}

func (s *supervisor) reloadLoop(ctx context.Context) {
	defer s.rollings.end(manager.ErrStopping)
	for {
		b := s.rollings.take()
		if b == nil {
			select {
			case <-ctx.Done():
				return
			case <-s.rollings.wake:
			}
			continue
		}
		if ctx.Err() != nil {
			b.tell(context.Cause(ctx))
			return
		}
		ready := s.ready.Load()
		if ready { // else systemd still waits for the start, which a reload does not end
			s.notify(daemon.SdNotifyReloading, "reloading")
		}
		status := "serving"
		err := s.roll(ctx, b.rolling)
		if err != nil {
			status = "serving; the last reload did not work, see the log"
		}
		if ready && ctx.Err() == nil {
			s.notify(daemon.SdNotifyReady, status)
		}
		b.tell(err)
	}
}

// roll is said in the log from its beginning to its end.
func (s *supervisor) roll(ctx context.Context, r rolling) error {
	what := "reload"
	if r.restart {
		what = "restart"
	}
	s.tellBegin(what, r)
	if r.restart {
		return s.m.Restart(ctx, r.Pools)
	}
	cfg, err := s.load()
	if err != nil {
		var wrong manager.ConfigErrors
		errors.As(err, &wrong)
		for _, e := range wrong {
			s.log.Error("configuration", "error", e)
		}
		s.tellRefused(wrong)
		return err
	}
	s.sched.loading(slices.DeleteFunc(cfg.RealTime(), func(pool string) bool {
		return len(r.Pools) > 0 && !slices.Contains(r.Pools, pool)
	}))
	err = s.m.Reload(ctx, cfg, r.Reloading)
	s.sched.loading(nil)
	if s.front.now.Load() != nil { // where a pool listens may be elsewhere, also when others have failed
		s.front.set(frontPools(s.m))
	}
	return err
}

// load reads the configuration anew, which takes milliseconds, beside the exchanges.
func (s *supervisor) load() (*manager.Config, error) {
	defer manager.Aside()()
	return manager.Load(s.path, manager.LoadOptions{})
}

// rollback has the one pool of pools go back to the generation before, beside any reload of others.
func (s *supervisor) rollback(ctx context.Context, pools []string, by string) error {
	if len(pools) != 1 {
		return fmt.Errorf("pools %q: want one", pools)
	}
	defer s.sched.follow()
	if err := s.m.Rollback(ctx, pools[0], by); err != nil {
		return err
	}
	words := "serving; pool " + pools[0] + " was rolled back"
	s.state.Store(&words) // and no other state: systemd may be waiting for the end of a reload
	s.sdNotify("STATUS=" + words)
	return nil
}

// tellBegin says that a reload or restart begins, as what says.
func (s *supervisor) tellBegin(what string, r rolling) {
	fields := []any{"config", s.path, "by", r.by}
	if len(r.Pools) > 0 {
		fields = append(fields, "pools", strings.Join(r.Pools, ", "))
	}
	s.m.Record(manager.Event{Kind: manager.EventReloadBegin, What: what, Pools: r.Pools, By: r.by})
	s.log.Info(what+" begins", fields...)
}

// tellRefused says that the configuration is wrong, and nothing changes.
func (s *supervisor) tellRefused(wrong manager.ConfigErrors) {
	const next = "all stays as it is"
	s.m.Record(manager.Event{Kind: manager.EventReloadRefused, What: "reload", Cause: wrong.Error(), Next: next})
	s.log.Error("reload refused", "cause", fmt.Sprintf("errors in the configuration: %d", len(wrong)), "next", next)
}

// plan says what a reload would do.
func (s *supervisor) plan(r manager.Reloading) (manager.Plan, error) {
	cfg, err := s.load()
	if err != nil {
		return manager.Plan{}, err
	}
	return s.m.Plan(cfg, r)
}

// notify tells systemd, where there is one, of another state, and in words of it.
func (s *supervisor) notify(state, words string) {
	s.state.Store(&words)
	s.sdNotify(state + "\nSTATUS=" + words)
}

func (s *supervisor) sdNotify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn("notify systemd", "cause", err)
	}
}

// pulseEvery is how often systemd is told that fpmd lives, and what it does; 0: there is no
// systemd.
func pulseEvery() time.Duration {
	const usual = 5 * time.Second
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return 0
	}
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil || limit == 0 {
		return usual
	}
	return min(usual, limit/3)
}

// pulse is called by the loop that takes signals, and takes every pool's lock: systemd hears of
// it as long as both are to be had, whatever becomes of workers.
func (s *supervisor) pulse(since time.Duration) {
	now := s.m.Figures()
	rate := float64(now.Requests-s.figures.Requests) / since.Seconds()
	s.figures = now
	words := "starting"
	if p := s.state.Load(); p != nil {
		words = *p
	}
	s.sdNotify(fmt.Sprintf("WATCHDOG=1\nSTATUS=%s: %d of %d slots busy, %d requests wait, %.1f a second", words, now.Busy, now.Slots, now.Queued, rate))
}

// frontPools is what the built-in front serves.
func frontPools(m *manager.Manager) (ps []frontPool) {
	for _, p := range m.Fronts() {
		ps = append(ps, frontPool{Name: p.Name, Network: p.Listen[0].Network, Address: p.Listen[0].Address, ScriptName: p.ScriptName})
	}
	return ps
}
