package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// Whoever does what docs/quickstart.md says, to the letter, gets the answers
// that it shows. Two things are not as in the text: the address is one that is
// free, and python3 is python3ForTexts.
func TestQuickstart(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/quickstart.md")
	if err != nil {
		t.Fatal(err)
	}
	top := appDir(t)
	python3ForTexts(t, filepath.Join(top, "bin"))
	copyCheckout(t, filepath.Join(top, "fpmd"))
	// What a module that has ours replaced wants to know of, and ours by itself does not: nothing else fetches it, and the
	// terminal has no network.
	if out, err := exec.Command("go", "mod", "graph").CombinedOutput(); err != nil {
		t.Fatalf("go mod graph: %v\n%s", err, out)
	}

	sections := strings.Split(string(text), "\n## ")
	title, prelude := parseSection(t, sections[1])
	if title != "fpmd" || len(prelude) != 1 {
		t.Fatalf("section %q has %d blocks, want one that builds fpmd", title, len(prelude))
	}
	tried := 0
	for _, section := range sections[2:] {
		title, blocks := parseSection(t, section)
		if len(blocks) == 0 {
			continue
		}
		tried++
		t.Run(title, func(t *testing.T) {
			addr := freeAddr(t)
			serving, asked := false, 0
			script := new(strings.Builder)
			fmt.Fprintf(script, "set -e\n%s", prelude[0].text)
			var d *process
			for _, b := range blocks {
				code := strings.ReplaceAll(b.text, "127.0.0.1:8080", addr)
				switch {
				case b.file != "":
					fmt.Fprintf(script, "cat >%s <<'END OF FILE'\n%sEND OF FILE\n", b.file, code)
				case b.lang == "sh":
					script.WriteString(code)
					serving = strings.Contains(code, "\nfpmd serve ")
				case b.lang == "console" && serving:
					if d == nil {
						d = terminal(t, top, script.String())
						d.waitWithin(10*patience, "pool that is ready", func() bool { // Go may have nothing cached
							return strings.Contains(d.log.String(), "every pool is ready")
						})
					}
					asked += askAsShown(t, code)
				default:
					t.Fatalf("a block of %q that is neither a file nor a command in its place:\n%s", b.lang, b.text)
				}
			}
			if asked == 0 {
				t.Fatal("nothing is asked")
			}
			if err := syscall.Kill(-d.cmd.Process.Pid, syscall.SIGINT); err != nil { // ^C
				t.Fatal(err)
			}
			if code := d.waitExit(); code != 0 {
				t.Errorf("after ^C: exit code %d", code)
			}
		})
	}
	if tried != 4 {
		t.Errorf("%d applications, want Flask, Django, WSGI and Go", tried)
	}
}

// A block is one of a document's code blocks.
type block struct {
	file string // whose content it is; "" is none
	lang string
	text string
}

var codeBlock = regexp.MustCompile("(?ms)(?:^`([^`\n]+)`:\n\n)?^```(\\w*)\n(.*?)^```$")

// parseSection gives a section's title and its blocks.
func parseSection(t *testing.T, section string) (title string, blocks []block) {
	t.Helper()
	title, body, _ := strings.Cut(section, "\n")
	for _, m := range codeBlock.FindAllStringSubmatch(body, -1) {
		blocks = append(blocks, block{m[1], m[2], m[3]})
	}
	if n := strings.Count(body, "```"); n != 2*len(blocks) {
		t.Fatalf("section %q: %d fences, but %d blocks", title, n, len(blocks))
	}
	return title, blocks
}

// askAsShown runs the commands of a block and compares what they print with
// what the block shows. It says how many there were.
func askAsShown(t *testing.T, shown string) (n int) {
	t.Helper()
	for _, ask := range strings.Split("\n"+shown, "\n$ ")[1:] {
		command, want, _ := strings.Cut(ask, "\n")
		out, err := exec.Command("bash", "-c", command).Output()
		if err != nil || strings.TrimSuffix(string(out), "\n") != strings.TrimSuffix(want, "\n") {
			t.Errorf("%s: %v\n%q, and the text has\n%q", command, err, out, want)
		}
		n++
	}
	return n
}

// terminal runs a script as somebody would who pastes it into a terminal in the
// checkout, in a process group of its own.
func terminal(t *testing.T, top, script string) *process {
	t.Helper()
	goCaches, err := exec.Command("go", "env", "GOCACHE", "GOMODCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	caches := strings.Fields(string(goCaches))
	d := &process{t: t, dir: top, exited: make(chan struct{})}
	d.cmd = exec.Command("bash", "-c", script)
	d.cmd.Dir = filepath.Join(top, "fpmd")
	d.cmd.Env = append(d.cmd.Environ(),
		"PATH="+filepath.Join(top, "bin")+":"+os.Getenv("PATH"),
		"HOME="+top, "GOCACHE="+caches[0], "GOMODCACHE="+caches[1],
		"GOPROXY=off", "GOWORK=", "GOFLAGS=", "PIP_NO_INDEX=1") // nothing comes from the network
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { d.err = d.cmd.Wait(); close(d.exited) }() // ends with the script, which the cleanup sees to
	t.Cleanup(func() {
		select {
		case <-d.exited:
		default:
			syscall.Kill(-d.cmd.Process.Pid, syscall.SIGINT)
			d.waitExit()
		}
		if t.Failed() {
			t.Logf("the terminal:\n%s", d.log.String())
		}
	})
	return d
}

// python3ForTexts puts a python3 into dir that makes virtual environments which
// see Debian's packages: "pip install flask" then finds that Flask is there, and
// does not ask the network.
func python3ForTexts(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "python3")
	write(t, path, `#!/bin/sh
[ "$1 $2" != "-m venv" ] || { shift 2; set -- -m venv --system-site-packages "$@"; }
exec `+interpreter+` "$@"
`)
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

// copyCheckout copies what make build needs, and a Go application's workspace.
func copyCheckout(t *testing.T, to string) {
	t.Helper()
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	cp := exec.Command("cp", "-r", "Makefile", "go.mod", "go.sum", "bench", "cmd", "fcgi", "manager", "protocol", "worker", to)
	cp.Dir = "../.."
	if out, err := cp.CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
}
