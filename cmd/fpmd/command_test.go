package main

import (
	"io"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// What help says fits on a terminal of 80 columns.
func TestHelpFits(t *testing.T) {
	texts := map[string]string{"help": usage()}
	for _, c := range commands() {
		if c.flags == nil {
			continue
		}
		var help strings.Builder
		if err := run(t.Context(), []string{c.name, "--help"}, &help, io.Discard); err != nil {
			t.Fatalf("%s --help: %v", c.name, err)
		}
		texts[c.name] = help.String()
	}
	for name, text := range texts {
		for line := range strings.Lines(text) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
				t.Errorf("%s: %d columns: %s", name, n, line)
			}
		}
	}
}

// A slip in the command line is told with what would do.
func TestCommandLineSlips(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "fpmd.toml")
	for _, c := range []struct {
		line string
		code int
		want string
	}{
		{"chek", exitUsage, `unknown command "chek": did you mean check?`},
		{"frobnicate", exitUsage, `unknown command "frobnicate": fpmd --help lists them`},
		{"check --pirnt", exitUsage, "unknown flag --pirnt: did you mean --print?"},
		{"check -boto=true", exitUsage, "unknown flag --boto: did you mean --boot?"},
		{"check -x", exitUsage, "unknown flag -x: fpmd check --help lists them"},
		{"serve --frobnicate", exitUsage, "unknown flag --frobnicate: fpmd serve --help lists them"},
		{"serve --http 8080", exitUsage, `--http "8080": want ADDR such as 127.0.0.1:8080`},
		{"request blog / --parm A=B", exitUsage, "unknown flag --parm: did you mean --param?"},
		{"check -c", exitUsage, "flag needs an argument: -c: fpmd check --help"},
		{"check -c " + missing, exitConfig, missing + ": no such file or directory: want a configuration file; -c FILE names another"},
		{"serve -c " + missing, exitConfig, "; -c FILE names another"},
		{"request -c " + missing + " blog /", exitConfig, "; -c FILE names another"},
	} {
		err := run(t.Context(), strings.Fields(c.line), io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), c.want) || exitCode(err) != c.code {
			t.Errorf("fpmd %s: %v, exit code %d; want %q, %d", c.line, err, exitCode(err), c.want, c.code)
		}
	}
}
