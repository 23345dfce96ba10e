// Package systemd holds the unit of the service, and what is promised of it.
package systemd

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"fpmd/manager"
)

const program = "/usr/bin/fpmd" // where the unit has fpmd

// directives are those of a unit, by section and name; a name given twice has two
// values.
func directives(t *testing.T, unit string) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	section := ""
	for line := range strings.Lines(read(t, unit)) {
		line = strings.TrimSpace(line)
		switch name, value, ok := strings.Cut(line, "="); {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
		case ok:
			found[section+"."+name] = append(found[section+"."+name], value)
		default:
			t.Fatalf("%s: neither section nor directive: %q", unit, line)
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

// systemd has nothing against the units, not even a warning, nor against the one
// that hardened.conf makes of fpmd.service.
func TestUnitVerifies(t *testing.T) {
	for name, text := range map[string]string{
		"fpmd.service":      read(t, "fpmd.service"),
		"fpmd@blog.service": read(t, "fpmd@.service"),
		"hard.service":      hardened(t),
	} {
		unit := filepath.Join(t.TempDir(), name)
		if !strings.Contains(text, "ExecStart="+program+" ") {
			t.Fatalf("%s does not start %s", name, program)
		}
		installed := strings.ReplaceAll(text, program, "/bin/true") // verify wants it to exist
		if err := os.WriteFile(unit, []byte(installed), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("systemd-analyze", "verify", "--recursive-errors=no", unit).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify: %v\n%s", err, out)
		}
	}
}

// systemd has nothing against the socket units either, beside the services that they start; the one of an instance is
// that of fpmd.service, but for names.
func TestSocketUnitsVerify(t *testing.T) {
	for socket, instance := range map[string]string{"fpmd.socket": "fpmd", "fpmd@.socket": "fpmd@blog"} {
		dir := t.TempDir()
		service := strings.ReplaceAll(read(t, strings.Replace(socket, ".socket", ".service", 1)), program, "/bin/true")
		for name, text := range map[string]string{instance + ".service": service, instance + ".socket": read(t, socket)} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.Command("systemd-analyze", "verify", "--recursive-errors=no", filepath.Join(dir, instance+".socket")).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify %s: %v\n%s", socket, err, out)
		}
	}
	want, got := directives(t, "fpmd.socket"), directives(t, "fpmd@.socket")
	for name, value := range want {
		if name == "Unit.Documentation" {
			value[0] = "file:/etc/fpmd/blog.toml"
		}
		value[0] = strings.ReplaceAll(value[0], "blog", "%i")
	}
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("fpmd@.socket has\n%q, want\n%q", got, want)
	}
}

// hardened is fpmd.service with the directives of hardened.conf.
func hardened(t *testing.T) string {
	t.Helper()
	return read(t, "fpmd.service") + read(t, "hardened.conf")
}

// systemd's own rating of the hardened unit is below 2.5, and what hardened.conf says it is.
func TestHardenedUnitsRating(t *testing.T) {
	unit := filepath.Join(t.TempDir(), "fpmd.service")
	if err := os.WriteFile(unit, []byte(hardened(t)), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=24", "--no-pager", unit).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
	rated := regexp.MustCompile(`exposure level for fpmd.service: ([0-9.]+)`).FindSubmatch(out)
	if rated == nil || !strings.Contains(read(t, "hardened.conf"), `rates it `+string(rated[1])+`,`) {
		t.Errorf("hardened.conf does not have the rating %q", rated)
	}
}

// The unit of an instance is fpmd.service, but for its configuration and its folder
// in /run.
func TestInstancesUnitIsTheUnit(t *testing.T) {
	want, got := directives(t, "fpmd.service"), directives(t, "fpmd@.service")
	want["Unit.Description"][0] += ", %i"
	want["Unit.Documentation"][0] = "file:/etc/fpmd/%i.toml"
	want["Service.ExecStart"][0] += " -c /etc/fpmd/%i.toml"
	want["Service.ExecReload"][0] += " -c /etc/fpmd/%i.toml"
	want["Service.RuntimeDirectory"][0] += "-%i"
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("fpmd@.service has\n%q, want\n%q", got, want)
	}
}

// systemd waits longer than fpmd itself does, with every default.
func TestUnitWaitsLongerThanFpmd(t *testing.T) {
	_, pool := manager.Defaults()
	all := directives(t, "fpmd.service")
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
	if dir := "/run/" + directive(t, directives(t, "fpmd.service"), "Service.RuntimeDirectory"); dir != supervisor.RuntimeDir {
		t.Errorf("RuntimeDirectory= makes %s, runtime_dir is %s", dir, supervisor.RuntimeDir)
	}
}

// The unit's comments have the README's table of signals: the same signals, and
// the first words of what each means.
func TestUnitSignalsAreTheReadmes(t *testing.T) {
	_, section, ok := strings.Cut(read(t, "../README.md"), "\n## Signals\n")
	if !ok {
		t.Fatal("README.md has no section Signals")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	rows := regexp.MustCompile("(?m)^\\| (`[A-Z0-9`, ]+`) \\| ([^:,|]+)").FindAllStringSubmatch(section, -1)
	if len(rows) < 4 {
		t.Fatalf("README.md: %d rows in the table of signals, want 4 at least", len(rows))
	}
	comment := strings.Join(strings.Fields(strings.ReplaceAll(read(t, "fpmd.service"), "\n#", " ")), " ")
	for _, row := range rows {
		want := strings.ReplaceAll(row[1], "`", "") + " " + strings.TrimSpace(row[2])
		if !strings.Contains(comment, want) {
			t.Errorf("fpmd.service: no %q, which README.md has", want)
		}
	}
}
