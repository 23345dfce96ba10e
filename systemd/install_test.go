package systemd

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// install runs make install of a fresh fpmd, with assignments such as PREFIX=/usr/local,
// below the folder dest.
func install(t *testing.T, dest string, assignments ...string) {
	t.Helper()
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin, "../cmd/fpmd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	mk := exec.Command("make", append([]string{"-C", "..", "install", "BIN=" + bin, "DESTDIR=" + dest}, assignments...)...)
	mk.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { // of the make that runs the tests
		return strings.HasPrefix(kv, "MAKE") || strings.HasPrefix(kv, "MFLAGS=")
	})
	if out, err := mk.CombinedOutput(); err != nil {
		t.Fatalf("make install: %v\n%s", err, out)
	}
}

// files are those below dest, by their names on the machine that they are for, with their modes.
func files(t *testing.T, dest string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dest, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			found[strings.TrimPrefix(path, dest)] = fmt.Sprintf("%o", info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// make install puts everything where it is looked for: below PREFIX, where systemd and the
// shells look there; and units and log rotation start the fpmd that was installed.
func TestInstall(t *testing.T) {
	vendor := "site-functions"
	if _, err := os.Stat("/usr/share/zsh/vendor-completions"); err == nil {
		vendor = "vendor-completions"
	}
	for _, tc := range []struct {
		prefix, system, zsh string
		assignments         []string
	}{
		{prefix: "/usr", system: "/usr/lib", zsh: vendor},
		{prefix: "/usr/local", system: "/usr/local/lib", zsh: "site-functions", assignments: []string{"PREFIX=/usr/local"}},
		{prefix: "/opt/fpmd", system: "/etc", zsh: "site-functions", assignments: []string{"PREFIX=/opt/fpmd"}},
	} {
		t.Run(tc.prefix, func(t *testing.T) {
			dest := t.TempDir()
			install(t, dest, tc.assignments...)
			want := map[string]string{
				tc.prefix + "/bin/fpmd":                                  "755",
				tc.prefix + "/share/fpmd/hardened.conf":                  "644",
				tc.prefix + "/share/bash-completion/completions/fpmd":    "644",
				tc.prefix + "/share/zsh/" + tc.zsh + "/_fpmd":            "644",
				tc.prefix + "/share/fish/vendor_completions.d/fpmd.fish": "644",
				tc.system + "/systemd/system/fpmd.service":               "644",
				tc.system + "/systemd/system/fpmd@.service":              "644",
				tc.system + "/systemd/system/fpmd.socket":                "644",
				tc.system + "/systemd/system/fpmd@.socket":               "644",
				tc.system + "/tmpfiles.d/fpmd.conf":                      "644",
				tc.system + "/sysusers.d/fpmd.conf":                      "644",
				"/etc/fpmd/fpmd.toml":                                    "644",
				"/etc/fpmd/conf.d/blog.toml.sample":                      "644",
				"/etc/logrotate.d/fpmd":                                  "644",
			}
			if got := files(t, dest); !maps.Equal(got, want) {
				t.Errorf("installed are\n%v, want\n%v", got, want)
			}
			for file, runs := range map[string][]string{
				tc.system + "/systemd/system/fpmd.service":  {"ExecStart=%s serve\n", "ExecReload=%s reload\n"},
				tc.system + "/systemd/system/fpmd@.service": {"ExecStart=%s serve ", "ExecReload=%s reload "},
				"/etc/logrotate.d/fpmd":                     {" %s reopen "},
			} {
				text := read(t, dest+file)
				for _, run := range runs {
					if run := fmt.Sprintf(run, tc.prefix+"/bin/fpmd"); !strings.Contains(text, run) {
						t.Errorf("%s does not have %q:\n%s", file, run, text)
					}
				}
			}
			for _, file := range []string{
				tc.prefix + "/share/bash-completion/completions/fpmd",
				tc.prefix + "/share/zsh/" + tc.zsh + "/_fpmd",
				tc.prefix + "/share/fish/vendor_completions.d/fpmd.fish",
			} {
				if !strings.Contains(read(t, dest+file), "reopen") {
					t.Errorf("%s does not complete fpmd's commands", file)
				}
			}
		})
	}
}

// Shells find the completion of make install without being told.
func TestShellsLookWhereCompletionIsInstalled(t *testing.T) {
	dest := t.TempDir()
	install(t, dest)
	placed := files(t, dest)
	for _, shell := range [][]string{
		{"zsh", "-fc", "print -l $fpath"},
		{"fish", "-c", "printf '%s\n' $fish_complete_path"},
	} {
		ask := exec.Command(shell[0], shell[1:]...)
		ask.Env = append(os.Environ(), "HOME="+t.TempDir())
		out, err := ask.Output()
		if err != nil {
			t.Fatalf("%s: %v", shell[0], err)
		}
		found := slices.ContainsFunc(strings.Fields(string(out)), func(dir string) bool {
			return placed[dir+"/_fpmd"] != "" || placed[dir+"/fpmd.fish"] != ""
		})
		if !found {
			t.Errorf("%s looks into none of the folders of %v:\n%s", shell[0], slices.Sorted(maps.Keys(placed)), out)
		}
	}
}

// What an operator has changed in /etc outlives an upgrade.
func TestInstallKeepsWhatIsConfigured(t *testing.T) {
	dest := t.TempDir()
	install(t, dest)
	for _, file := range []string{"/etc/fpmd/fpmd.toml", "/etc/logrotate.d/fpmd"} {
		if err := os.WriteFile(dest+file, []byte("# mine\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dest+"/usr/lib/systemd/system/fpmd.service", []byte("# of the last release\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	install(t, dest)
	for _, file := range []string{"/etc/fpmd/fpmd.toml", "/etc/logrotate.d/fpmd"} {
		if text := read(t, dest+file); text != "# mine\n" {
			t.Errorf("%s was overwritten:\n%s", file, text)
		}
	}
	if text := read(t, dest+"/usr/lib/systemd/system/fpmd.service"); !strings.Contains(text, "ExecStart=") {
		t.Errorf("fpmd.service is not the new one:\n%s", text)
	}
}
