package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"fpmd/manager"
	"fpmd/worker/python"
)

const checkHelp = `usage: fpmd check [-c FILE] [--boot | --print]

Reads the configuration, with all that it includes, as serve would, and says
what is wrong: file, line, key, the value found, and what would do. All that is
wrong is said at once, and warnings of what is allowed but will hurt. Starts
nothing, unless it is asked to.

  -c FILE   the configuration (default ` + defaultConfig + `)
  --boot    start one worker of each pool, beside a running fpmd and out of its
            way, and stop it again: says what it was started as, what it
            printed, and what is usually wrong
  --print   write what is in force, every key of it, as one file that fpmd
            reads; values of env are masked. Warnings go to standard error then

exit codes: 0 serve would take it, warnings or not; 78 it would not; 1 a worker
does not come up.
`

// A checkLine is the command line of fpmd check.
type checkLine struct {
	config string
	boot   bool
	print  bool
}

func (l *checkLine) flags() *flag.FlagSet {
	f := newFlags("check")
	f.StringVar(&l.config, "c", defaultConfig, "read the configuration from `FILE`")
	f.BoolVar(&l.boot, "boot", false, "start one worker of each pool, and stop it again")
	f.BoolVar(&l.print, "print", false, "write what is in force")
	return f
}

func cmdCheck(_ context.Context, args []string, stdout, stderr io.Writer) error {
	var l checkLine
	f := l.flags()
	if err := parseFlags(f, args, checkHelp, stdout); err != nil {
		return done(err)
	}
	if f.NArg() > 0 {
		return usageError("check takes no argument %q: fpmd check --help", f.Arg(0))
	}
	if l.boot && l.print {
		return usageError("check takes one of --boot and --print: fpmd check --help")
	}
	cfg, err := loadConfig(l.config, manager.LoadOptions{})
	if err != nil {
		return err
	}
	warnTo := stdout
	if l.print {
		warnTo = stderr
	}
	warnings := cfg.Warnings()
	for _, w := range warnings {
		fmt.Fprintln(warnTo, "warning: "+w)
	}
	if l.print {
		_, err := io.WriteString(stdout, cfg.Text())
		return err
	}
	var names []string
	for _, p := range cfg.Pools {
		names = append(names, p.Name)
	}
	sum := "all well"
	switch n := len(warnings); {
	case n == 1:
		sum = "no errors, 1 warning"
	case n > 1:
		sum = fmt.Sprintf("no errors, %d warnings", n)
	}
	fmt.Fprintf(stdout, "%s: %s; pools: %s\n", strings.Join(cfg.Files, ", "), sum, strings.Join(names, ", "))
	if l.boot {
		return tryWorkers(cfg, stdout)
	}
	return nil
}

// tryWorkers reports of one worker of each pool, until a signal ends it.
func tryWorkers(cfg *manager.Config, stdout io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	archive, err := python.Archive()
	if err != nil {
		return err
	}
	trials, err := manager.Try(ctx, cfg, manager.Options{
		Logger: slog.New(slog.DiscardHandler), // what a worker prints is in its trial
		WSGI:   &manager.HostRecipe{Archive: archive, Command: python.Command, Pathless: python.PathlessCommand},
	})
	if err != nil {
		return err
	}
	failed := 0
	for _, t := range trials {
		if t.Err != nil {
			failed++
		}
		if _, err := t.WriteTo(stdout); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("check --boot: no worker comes up of %d of %d pools", failed, len(trials))
	}
	return nil
}
