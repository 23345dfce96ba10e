package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// On a terminal, each line has its columns: time, level, pool and worker, what
// happened. Colours are there only where they are wanted, and nothing that an
// application prints or a client asks for works on the terminal.
func TestLogOnATerminal(t *testing.T) {
	const app = `
import os, signal, sys
def application(environ, start_response):
    print("\x1b[31mred\x1b[m", flush=True)
    print("    plain: äöü", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
`
	for _, terminal := range []struct {
		name    string
		env     []string
		colours bool
	}{
		{"colours", []string{"TERM=xterm-256color", "NO_COLOR="}, true},
		{"NO_COLOR", []string{"TERM=xterm-256color", "NO_COLOR=1"}, false},
		{"dumb", []string{"TERM=dumb", "NO_COLOR="}, false},
	} {
		t.Run(terminal.name, func(t *testing.T) {
			dir := appDir(t)
			write(t, filepath.Join(dir, "app.py"), app)
			d := serveOnTerminal(t, wsgiPool(dir, "workers = 1\naccess_log = \"-\""), dir, terminal.env)
			if _, err := askPath(d.sock(), "/\x1b[2J"); err != nil {
				t.Fatal(err)
			}
			d.waitLogTimes("worker ready", 2)
			if code := stopGently(d); code != 0 {
				t.Errorf("exit code %d", code)
			}
			shown := d.log.String()
			if got := strings.Contains(shown, "\x1b[1;31mERROR\x1b[m"); got != terminal.colours {
				t.Errorf("an error in red: %v", got)
			}
			ours := regexp.MustCompile("\x1b\\[(?:[12];?)?(?:3[123])?m") // what levels and fields are painted with
			if !terminal.colours {
				ours = regexp.MustCompile("^$")
			}
			bare := ours.ReplaceAllString(shown, "")
			if strings.Contains(bare, "\x1b") {
				t.Errorf("there is an escape sequence in %q", bare)
			}
			line := regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{3} (DEBUG|INFO |WARN |ERROR) (app/\d   |app     |        )  \S`)
			for l := range strings.SplitSeq(strings.TrimSuffix(bare, "\r\n"), "\r\n") {
				if !line.MatchString(l) {
					t.Errorf("not in columns: %q", l)
				}
			}
			for _, want := range []string{
				`INFO  app/1     worker ready  pid=`,
				`INFO  app/1     |     plain: äöü` + "\r\n",
				`INFO  app/1     | "\x1b[31mred\x1b[m"` + "\r\n",
				`ERROR app/1     worker gone  pid=`,
				`WARN  app/1     request failed  outcome=worker_died id=`,
				`INFO  app/1     request  id=`, ` uri="/\x1b[2J" `,
				`INFO            every pool is ready` + "\r\n",
			} {
				if !strings.Contains(bare, want) {
					t.Errorf("no %q in\n%s", want, bare)
				}
			}
		})
	}
}

// An application that does not come up is told of once for each attempt, of which there
// is one at a time, in lines of its own: what it printed, and then what that says in short.
func TestBrokenApplicationOnATerminal(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), "import flaskk\n")
	d := launchOnTerminal(t, wsgiPool(dir, "workers = 4"), dir, []string{"TERM=dumb"})
	const short = "fpmd: no application: app: needs the module 'flaskk', which this interpreter does not find"
	for n := 1; n <= 4; n++ {
		d.waitLog(fmt.Sprintf("ERROR app/%d     worker did not start  cause=\"exited with status 1 before it was ready\" last=%q command=", n, short))
	}
	if code := stopGently(d); code != 0 {
		t.Errorf("exit code %d", code)
	}
	text := d.log.String()
	for n := 1; n <= 3; n++ {
		who := fmt.Sprintf("app/%d ", n)
		if got := strings.Count(text, who); got < 6 || strings.Contains(text[strings.LastIndex(text, who):], fmt.Sprintf("app/%d ", n-1)) {
			t.Errorf("%s has %d lines, or not all of them in succession", who, got)
		}
		if got := len(regexp.MustCompile(who+` +\| ModuleNotFoundError`).FindAllString(text, -1)); got != 1 {
			t.Errorf("%s: its exception is there %d times", who, got)
		}
	}
	if strings.Contains(text, `\n`) {
		t.Error("there are lines within lines")
	}
	if t.Failed() {
		t.Log(text)
	}
}

// serveOnTerminal is serve with a terminal for standard error.
func serveOnTerminal(t *testing.T, config, dir string, env []string) *process {
	t.Helper()
	d := launchOnTerminal(t, config, dir, env)
	d.waitLog("every pool is ready")
	return d
}

// launchOnTerminal does not wait.
func launchOnTerminal(t *testing.T, config, dir string, env []string) *process {
	t.Helper()
	write(t, filepath.Join(dir, "fpmd.toml"), config)
	screen, tty := openTerminal(t)
	d := &process{t: t, dir: dir, exited: make(chan struct{})}
	d.cmd = exec.Command(os.Args[0], "serve", "-c", filepath.Join(dir, "fpmd.toml"))
	d.cmd.Env = append(append(d.cmd.Environ(), "FPMD_TEST_MAIN=1"), env...)
	d.cmd.Stderr = tty
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close() // so that screen ends with fpmd
	go func() { // ends with fpmd, which the cleanup sees to
		io.Copy(&d.log, screen)
		d.err = d.cmd.Wait()
		close(d.exited)
	}()
	t.Cleanup(func() {
		d.cmd.Process.Signal(syscall.SIGINT)
		d.waitExit()
		if t.Failed() {
			t.Logf("the terminal:\n%s", d.log.String())
		}
	})
	return d
}
