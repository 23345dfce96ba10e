package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"fpmd/manager"
)

// A command is one of fpmd's, as run, the usage and completion know it.
type command struct {
	name  string
	args  string // what follows the name, for the usage
	about string
	flags *flag.FlagSet // nil: it takes none, and no --help
	words []string      // what its argument may be, where that can be said
	run   func(ctx context.Context, args []string, stdout, stderr io.Writer) error
}

// commands are all but the hidden exec-worker, which no person calls.
func commands() []command {
	return []command{
		{"serve", "[-c FILE] [--http ADDR]", "run the supervisor in the foreground", new(serveLine).flags(), nil, cmdServe},
		{"check", "[-c FILE] [--boot|--print]", "say what is wrong with the configuration", new(checkLine).flags(), nil, cmdCheck},
		{"request", "POOL PATH [...]", "send one request to a pool's socket", new(requestLine).flags(), nil, cmdRequest},
		{"status", "[-c FILE] [--json]", "say how a running fpmd is", new(askLine).flags("status"), nil, cmdStatus},
		{"events", "[--since TIME] [--follow] [POOL...]", "say what has happened", new(askLine).flags("events"), nil, cmdEvents},
		{"why", "[-c FILE] PID", "tell the life of a worker", new(askLine).flags("why"), nil, cmdWhy},
		{"plan", "[--changed] [--json] [POOL...]", "say what a reload would do", new(askLine).flags("plan"), nil, cmdPlan},
		{"reload", "[--changed] [POOL...]", "have it roll pools, and wait", new(askLine).flags("reload"), nil, cmdReload},
		{"restart", "POOL...", "the same, with the configuration it has", new(askLine).flags("restart"), nil, cmdRestart},
		{"rollback", "[-c FILE] POOL", "have the generation before serve again", new(askLine).flags("rollback"), nil, cmdRollback},
		{"scale", "[-c FILE] POOL N", "have a pool have N workers", new(askLine).flags("scale"), nil, cmdScale},
		{"reopen", "[-c FILE]", "have it open its logs again", new(askLine).flags("reopen"), nil, cmdReopen},
		{"stop", "[-c FILE]", "stop it gently, and wait", new(askLine).flags("stop"), nil, cmdStop},
		{"completion", "SHELL", "write completion for bash, zsh or fish", new(completionLine).flags(), shells, cmdCompletion},
		{"version", "", "say which fpmd this is", nil, nil, cmdVersion},
		{"help", "", "say this", nil, nil, cmdHelp},
	}
}

func cmdVersion(_ context.Context, _ []string, stdout, _ io.Writer) error {
	_, err := fmt.Fprintln(stdout, version())
	return err
}

func cmdHelp(_ context.Context, _ []string, stdout, _ io.Writer) error {
	_, err := io.WriteString(stdout, usage())
	return err
}

func usage() string {
	var s strings.Builder
	s.WriteString("fpmd is a FastCGI process manager for Python WSGI and Go applications.\n\nusage:\n")
	for _, c := range commands() {
		fmt.Fprintf(&s, "  %-37s %s\n", strings.TrimSpace("fpmd "+c.name+" "+c.args), c.about)
	}
	s.WriteString(`
fpmd COMMAND --help tells more. FILE is ` + defaultConfig + ` unless given.

exit codes: 0 all well, 1 something failed, 64 wrong command line, 69 pool or
fpmd not reachable, 78 wrong configuration; request: 22 for an answer of 400 or
more.
`)
	return s.String()
}

// newFlags makes the flags of a command. Their usages are what completion says
// of them, with the value's name in backquotes: FILE is completed as one. What
// help says is a text of its own.
func newFlags(name string) *flag.FlagSet {
	f := flag.NewFlagSet("fpmd "+name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	return f
}

// errHelp says that help was asked for, and given.
var errHelp = errors.New("help given")

func parseFlags(f *flag.FlagSet, args []string, help string, stdout io.Writer) error {
	err := f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, help)
		return errHelp
	case err != nil:
		if name, unknown := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); unknown {
			return unknownFlag(f, name)
		}
		return usageError("%v: %s --help", err, f.Name())
	}
	return nil
}

func unknownFlag(f *flag.FlagSet, name string) error {
	var names []string
	f.VisitAll(func(f *flag.Flag) { names = append(names, f.Name) })
	if near := manager.Nearest(name, names); near != "" {
		return usageError("unknown flag %s: did you mean %s?", dashed(name), dashed(near))
	}
	return usageError("unknown flag %s: %s --help lists them", dashed(name), f.Name())
}

// dashed is how a flag is written.
func dashed(name string) string {
	if len(name) > 1 {
		return "--" + name
	}
	return "-" + name
}

// done turns help that was given into success.
func done(err error) error {
	if errors.Is(err, errHelp) {
		return nil
	}
	return err
}
