package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

const checkHelp = `usage: fpmd check [-c FILE]

Reads the configuration, with all that it includes, as serve would, and says
what is wrong: file, line, key, the value found, and what would do. All that is
wrong is said at once, and warnings of what is allowed but will hurt. Starts nothing. Exit code 0: serve would take it; 78: it would not.

  -c FILE   the configuration (default ` + defaultConfig + `)
`

func cmdCheck(args []string, stdout, stderr io.Writer) error {
	f := newFlags("check", checkHelp, stderr)
	path := f.String("c", defaultConfig, "")
	if err := parseFlags(f, args, checkHelp, stdout); err != nil {
		return done(err)
	}
	if f.NArg() > 0 {
		return usageError("check takes no argument %q: fpmd check --help", f.Arg(0))
	}
	cfg, err := loadConfig(*path)
	if err != nil {
		return err
	}
	var names []string
	for _, p := range cfg.Pools {
		names = append(names, p.Name)
	}
	for _, w := range cfg.Warnings() {
		fmt.Fprintln(stdout, "warning: "+w)
	}
	_, err = fmt.Fprintf(stdout, "%s: all well; pools: %s\n", strings.Join(cfg.Files, ", "), strings.Join(names, ", "))
	return err
}

func newFlags(name, help string, stderr io.Writer) *flag.FlagSet {
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
		return usageError("%v: %s --help", err, f.Name())
	}
	return nil
}

// done turns help that was given into success.
func done(err error) error {
	if errors.Is(err, errHelp) {
		return nil
	}
	return err
}
