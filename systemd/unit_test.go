// Package systemd holds the unit of the service, and what is promised of it.
package systemd

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"fpmd/manager"
)

const program = "/usr/bin/fpmd" // where the unit has fpmd

// directives are the unit's, by section and name; a name given twice has two
// values.
func directives(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("fpmd.service")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	section := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch name, value, ok := strings.Cut(line, "="); {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
		case ok:
			found[section+"."+name] = append(found[section+"."+name], value)
		default:
			t.Fatalf("fpmd.service: neither section nor directive: %q", line)
		}
	}
	return found
}

func directive(t *testing.T, all map[string][]string, name string) string {
	t.Helper()
	if len(all[name]) != 1 {
		t.Fatalf("fpmd.service has %d of %s, want 1", len(all[name]), name)
	}
	return all[name][0]
}

// systemd has nothing against the unit, not even a warning.
func TestUnitVerifies(t *testing.T) {
	text, err := os.ReadFile("fpmd.service")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte("ExecStart="+program+" ")) {
		t.Fatalf("fpmd.service does not start %s", program)
	}
	unit := filepath.Join(t.TempDir(), "fpmd.service")
	installed := bytes.ReplaceAll(text, []byte(program), []byte("/bin/true")) // verify wants it to exist
	if err := os.WriteFile(unit, installed, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", "--recursive-errors=no", unit).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// systemd waits longer than fpmd itself does, with every default.
func TestUnitWaitsLongerThanFpmd(t *testing.T) {
	_, pool := manager.Defaults()
	all := directives(t)
	for _, c := range []struct {
		name string
		fpmd time.Duration
	}{
		{"Service.TimeoutStartSec", pool.StartTimeout},
		{"Service.TimeoutStopSec", pool.DrainTimeout + pool.StopTimeout},
	} {
		systemd, err := time.ParseDuration(directive(t, all, c.name))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if systemd <= c.fpmd {
			t.Errorf("%s is %v, fpmd takes up to %v", c.name, systemd, c.fpmd)
		}
	}
}

// The folder that the unit makes is the one that fpmd uses when it is not told.
func TestUnitMakesTheDefaultRuntimeDirectory(t *testing.T) {
	supervisor, _ := manager.Defaults()
	if dir := "/run/" + directive(t, directives(t), "Service.RuntimeDirectory"); dir != supervisor.RuntimeDir {
		t.Errorf("RuntimeDirectory= makes %s, runtime_dir is %s", dir, supervisor.RuntimeDir)
	}
}

// The unit's comments have the README's table of signals: the same signals, and
// the first words of what each means.
func TestUnitSignalsAreTheReadmes(t *testing.T) {
	unit, err := os.ReadFile("fpmd.service")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(readme), "\n## Signals\n")
	if !ok {
		t.Fatal("README.md has no section Signals")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	rows := regexp.MustCompile("(?m)^\\| (`[A-Z0-9`, ]+`) \\| ([^:,|]+)").FindAllStringSubmatch(section, -1)
	if len(rows) < 4 {
		t.Fatalf("README.md: %d rows in the table of signals, want 4 at least", len(rows))
	}
	comment := strings.Join(strings.Fields(strings.ReplaceAll(string(unit), "\n#", " ")), " ")
	for _, row := range rows {
		want := strings.ReplaceAll(row[1], "`", "") + " " + strings.TrimSpace(row[2])
		if !strings.Contains(comment, want) {
			t.Errorf("fpmd.service: no %q, which README.md has", want)
		}
	}
}
