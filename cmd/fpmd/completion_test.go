package main

import (
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What each command's help says of its flags is what it takes: each flag, and
// whether a value follows.
func TestHelpFlags(t *testing.T) {
	line := regexp.MustCompile(`(?m)^  (--?[a-zA-Z]+)( \S+| '[^']*')?  +\S`)
	for _, c := range commands() {
		if c.flags == nil {
			continue
		}
		var help strings.Builder
		if err := run(t.Context(), []string{c.name, "--help"}, &help, io.Discard); err != nil {
			t.Fatalf("%s --help: %v", c.name, err)
		}
		told, takes := map[string]bool{}, map[string]bool{}
		for _, m := range line.FindAllStringSubmatch(help.String(), -1) {
			told[m[1]] = m[2] != ""
		}
		for _, o := range c.options() {
			if o.flag != "--help" {
				takes[o.flag] = o.value != ""
			}
		}
		if !maps.Equal(told, takes) {
			t.Errorf("%s: help tells of %v, it takes %v", c.name, told, takes)
		}
	}
}

// A question is what somebody has typed behind "fpmd", and what can follow.
type question struct {
	typed []string
	want  []string
}

// questions cover every command and every flag; the shell is in a folder that
// holds fpmd.toml, which has the pool app, and "my pools/blog.toml", which has blog.
func questions() (qs []question) {
	var names []string
	for _, c := range commands() {
		names = append(names, c.name)
		var flags []string
		for _, o := range c.options() {
			flags = append(flags, o.flag)
			switch {
			case o.takesFile():
				qs = append(qs, question{[]string{c.name, o.flag, "fp"}, []string{"fpmd.toml"}})
				qs = append(qs, question{[]string{c.name, o.flag, "my pools/b"}, []string{"my pools/blog.toml"}})
			case o.value != "":
				qs = append(qs, question{[]string{c.name, o.flag, "fp"}, nil}) // no file
			}
		}
		qs = append(qs, question{[]string{c.name, "-"}, flags})
		for _, w := range c.words {
			qs = append(qs, question{[]string{c.name, w[:1]}, []string{w}})
		}
	}
	return append(qs,
		question{[]string{""}, names},
		question{[]string{"se"}, []string{"serve"}},
		question{[]string{"request", "-c", "fpmd.toml", "--par"}, []string{"--param"}},
		question{[]string{"request", "serve", "--ht"}, nil}, // a pool of that name has no --http
		question{[]string{"request", "-c", "fpmd.toml", "a"}, []string{"app"}},
		question{[]string{"request", "-i", "-X", "app", "-c", "my pools/blog.toml", "bl"}, []string{"blog"}},
		question{[]string{"request", "-c", "fpmd.toml", "app", "a"}, nil}, // it takes one
		question{[]string{"request", "-c", "none.toml", "a"}, nil},
		question{[]string{"check", "-c", "fpmd.toml", "a"}, nil},
		question{[]string{"fp"}, nil}, // no file either
		question{[]string{"exec"}, nil},
		question{[]string{"nonesuch", "-"}, nil},
	)
}

// completionFor writes what "fpmd completion" writes for a shell into the folder
// that the questions are about. An fpmd is on PATH.
func completionFor(t *testing.T, shell string) (script string) {
	t.Helper()
	bin := t.TempDir()
	if err := os.Symlink(os.Args[0], filepath.Join(bin, "fpmd")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("FPMD_TEST_MAIN", "1")
	dir := t.TempDir()
	config := poolConfig(dir, `command = ["/bin/true"]`)
	write(t, filepath.Join(dir, "fpmd.toml"), config)
	write(t, filepath.Join(dir, "my pools/blog.toml"), strings.Replace(config, "pool.app", "pool.blog", 1))
	var text strings.Builder
	if err := run(t.Context(), []string{"completion", shell}, &text, io.Discard); err != nil {
		t.Fatal(err)
	}
	script = filepath.Join(dir, ".completion")
	write(t, script, text.String())
	return script
}

// Bash and fish offer what can follow, and nothing else.
func TestCompletion(t *testing.T) {
	for _, shell := range []struct {
		name, ask string // which gets the completion's file, and the words
	}{
		{"bash", `set -u; source "$1"; shift
			COMP_WORDS=(fpmd "$@") COMP_CWORD=$#
			[ "$(complete -p fpmd)" = "complete -F _fpmd fpmd" ] || exit
			_fpmd
			[ ${#COMPREPLY[@]} = 0 ] || printf '%s\n' "${COMPREPLY[@]}"`},
		{"fish", `source $argv[1]; complete -C "fpmd "(string join -- " " (string escape -n -- $argv[2..-2]) (string replace -a " " "\\ " -- $argv[-1]))`},
	} {
		t.Run(shell.name, func(t *testing.T) {
			script := completionFor(t, shell.name)
			for _, q := range questions() {
				args := []string{"-c", shell.ask}
				if shell.name == "bash" {
					args = append(args, "bash") // its $0
				}
				cmd := exec.Command(shell.name, append(append(args, script), q.typed...)...)
				cmd.Dir = filepath.Dir(script)
				cmd.Env = append(cmd.Environ(), "HOME="+cmd.Dir)
				var stderr strings.Builder
				cmd.Stderr = &stderr
				out, err := cmd.Output()
				if err != nil || stderr.String() != "" {
					t.Fatalf("%q: %v\n%s", q.typed, err, stderr.String())
				}
				var got []string
				for offered := range strings.Lines(string(out)) {
					word, _, _ := strings.Cut(strings.TrimSuffix(offered, "\n"), "\t") // fish's description
					got = append(got, strings.ReplaceAll(word, `\ `, " "))
				}
				slices.Sort(got)
				if want := slices.Sorted(slices.Values(q.want)); !slices.Equal(got, want) {
					t.Errorf("fpmd %q: it offers %q, want %q", q.typed, got, want)
				}
			}
		})
	}
}

// Zsh, which completes in a terminal only, lists what can follow, or types the
// one thing that can.
func TestCompletionZsh(t *testing.T) {
	script := completionFor(t, "zsh")
	for _, loaded := range []struct{ name, how string }{
		{"sourced", "autoload -U compinit; compinit -D -u; source .completion"},
		{"from fpath", "mkdir f; cp .completion f/_fpmd; fpath=($PWD/f $fpath); autoload -U compinit; compinit -D -u"},
	} {
		t.Run(loaded.name, func(t *testing.T) {
			z := startZsh(t, filepath.Dir(script), loaded.how)
			for _, q := range questions() {
				if len(q.want) == 0 {
					continue // that nothing comes can't be waited for
				}
				line := "fpmd"
				for _, w := range q.typed {
					line += " " + strings.ReplaceAll(w, " ", `\ `)
				}
				z.typed(line + "\t")
				for _, want := range q.want {
					z.shows(`\s` + regexp.QuoteMeta(strings.ReplaceAll(want, " ", `\ `)) + `\s`)
				}
				z.typed("\x15echo next''line\r") // in its place
				z.shows(`nextline\r\n` + ready)
			}
		})
	}
}

// ready is the prompt; what follows asks the terminal to mark what is pasted.
const ready = `ready> (\x1b\[\?2004h)?$`

// A zsh is one that somebody sits at.
type zsh struct {
	t      *testing.T
	screen *os.File
	output lockedBuffer
	seen   int // of the output
}

func startZsh(t *testing.T, dir, rc string) *zsh {
	t.Helper()
	screen, tty := openTerminal(t)
	z := &zsh{t: t, screen: screen}
	write(t, filepath.Join(dir, ".zshrc"), "PS1='ready> '\nunsetopt prompt_cr prompt_sp\n"+rc+"\n")
	cmd := exec.Command("zsh", "-d", "-i")
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "HOME="+dir, "ZDOTDIR="+dir, "TERM=dumb", "LC_ALL=C")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	read := make(chan struct{})
	go func() { io.Copy(&z.output, screen); close(read) }() // ends with the zsh
	t.Cleanup(func() {
		cmd.Process.Kill() // an interactive shell does not listen to TERM
		cmd.Wait()
		<-read
		if t.Failed() {
			t.Logf("the screen:\n%q", z.output.String())
		}
	})
	z.shows(ready)
	return z
}

func (z *zsh) typed(keys string) {
	z.t.Helper()
	z.seen = len(z.output.String())
	if _, err := z.screen.WriteString(keys); err != nil {
		z.t.Fatal(err)
	}
}

// shows waits until what came since something was typed last matches.
func (z *zsh) shows(pattern string) {
	z.t.Helper()
	re := regexp.MustCompile(`(?s)` + pattern)
	for end := time.Now().Add(patience); !re.MatchString(z.output.String()[z.seen:]); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			z.t.Fatalf("no %s in %q", pattern, z.output.String()[z.seen:])
		}
	}
}
