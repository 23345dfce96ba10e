// Command fpmd is a FastCGI process manager: it serves Python WSGI and Go
// applications in pools of prefork worker processes, behind a web server.
//
//	fpmd serve [-c FILE] [--http ADDR]    run the supervisor in the foreground
//	fpmd check [-c FILE] [--boot|--print] say what is wrong with the configuration
//	fpmd request POOL PATH [...]          send one request to a pool's socket
//	fpmd completion SHELL                 write completion for bash, zsh or fish
//	fpmd version                          say which fpmd this is
//	fpmd help                             say this
//
// Exit codes: 0 all well; 1 something failed; 22 an answer of 400 or more (request); 64 the command line is
// wrong; 69 a pool can't be reached (request); 78 the configuration is wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"

	"fpmd/manager"
)

// Exit codes, where sysexits.h has one for the case.
const (
	exitFailure     = 1
	exitUsage       = 64
	exitUnavailable = 69
	exitConfig      = 78
)

const defaultConfig = manager.DefaultPath

func main() {
	if len(os.Args) > 1 && os.Args[1] == "exec-worker" {
		os.Exit(execWorker(os.Args[2:]))
	}
	err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)
	if err != nil && err.Error() != "" {
		fmt.Fprintln(os.Stderr, complaint(err))
	}
	os.Exit(exitCode(err))
}

// complaint is what is said of err. To the journal, where a unit's ExecStart= or ExecReload= says it, each
// line is an error: sd-daemon(3).
func complaint(err error) string {
	text := fmt.Sprintf("fpmd: %v", err)
	if is, _ := journal.StderrIsJournalStream(); is {
		text = "<3>" + strings.ReplaceAll(text, "\n", "\n<3>")
	}
	return text
}

// An exitError is an error with an exit code of its own. Its text may be
// empty, where all has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

func exitCode(err error) int {
	var e *exitError
	var wrong manager.ConfigErrors
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.code
	case errors.As(err, &wrong):
		return exitConfig
	default:
		return exitFailure
	}
}

// run is the whole command but for its process.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage())
		return &exitError{code: exitUsage}
	}
	name := args[0]
	switch name {
	case "--version", "-V":
		name = "version"
	case "--help", "-h":
		name = "help"
	}
	for _, c := range commands() {
		if c.name == name {
			return c.run(ctx, args[1:], stdout, stderr)
		}
	}
	var names []string
	for _, c := range commands() {
		names = append(names, c.name)
	}
	if near := manager.Nearest(name, names); near != "" {
		return usageError("unknown command %q: did you mean %s?", args[0], near)
	}
	return usageError("unknown command %q: fpmd --help lists them", args[0])
}

// release is the version of a release, set by the linker.
var release = ""

func version() string {
	v := release
	if v == "" {
		v = "(development)"
		if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
			v = bi.Main.Version
		}
	}
	return fmt.Sprintf("fpmd %s %s %s/%s", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// loadConfig reads the configuration; what is wrong with it ends the command with exitConfig.
func loadConfig(path string, opts manager.LoadOptions) (*manager.Config, error) {
	cfg, err := manager.Load(path, opts)
	if e, ok := errors.AsType[manager.ConfigError](err); ok && e.Line == 0 { // it could not be read
		err = fmt.Errorf("%w; -c FILE names another", err)
	}
	if err != nil {
		return nil, &exitError{exitConfig, err}
	}
	return cfg, nil
}
