package manager

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A file of variables is read as systemd reads it.
func TestEnvFile(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       map[string]string
	}{
		{"nothing", "", map[string]string{}},
		{"plain", "A=1\nB=x y\n", map[string]string{"A": "1", "B": "x y"}},
		{"no newline at the end", "A=1", map[string]string{"A": "1"}},
		{"lines of Windows", "A=1\r\n\r\nB='2'\r\n", map[string]string{"A": "1", "B": "2"}},
		{"comments and blank lines", "# A=1\n;B=2\n\n  # C=3\n \t\nD=4\n", map[string]string{"D": "4"}},
		{"blanks around name and value", " A = 1 \t\n", map[string]string{"A": "1"}},
		{"empty", "A=\nB=''\nC=\"\"\n", map[string]string{"A": "", "B": "", "C": ""}},
		{"a hash in a value", "A=a # b\n", map[string]string{"A": "a # b"}},
		{"equals in a value", "A=b=c\n", map[string]string{"A": "b=c"}},
		{"quotes", "A=\"a 'b' # c\"\nB='a \"b\" \\n'\n", map[string]string{"A": "a 'b' # c", "B": "a \"b\" \\n"}},
		{"quotes later in a value", "A=it's\n", map[string]string{"A": "it's"}},
		{"backslashes in double quotes", `A="\"\\\$\` + "`" + `\n"`, map[string]string{"A": "\"\\$`\\n"}},
		{"backslashes without quotes", `A=\a\ ` + "\n", map[string]string{"A": "a "}},
		{"lines that go on", "A=1\\\n2\nB=\"1\\\n2\"\nC=3\n", map[string]string{"A": "12", "B": "12", "C": "3"}},
		{"lines in quotes", "A='1\n2'\nB=\"1\n\n# 2\"\n", map[string]string{"A": "1\n2", "B": "1\n\n# 2"}},
		{"twice", "A=1\nA=2\n", map[string]string{"A": "2"}},
		{"a dollar is one", "A=$B ${C}\n", map[string]string{"A": "$B ${C}"}},
		{"a byte order mark", "\ufeffA=1\n", map[string]string{"A": "1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, errs := parseEnvFile(tt.text)
			if len(errs) > 0 || !maps.Equal(got, tt.want) {
				t.Errorf("%q is read as %q, %v, want %q", tt.text, got, errs, tt.want)
			}
		})
	}
}

// Any text ends in variables that an environment can hold, or in errors that cite one of its
// lines, and never in both for one line: nothing is left out without a word.
func FuzzEnvFile(f *testing.F) {
	f.Add("A=1\n# c\nB='x\ny'\nC=\"\\\"\\\\\" \nexport D=1\nE=\\\n2")
	f.Add("A='\\\nB=\"")
	f.Fuzz(func(t *testing.T, text string) {
		env, errs := parseEnvFile(text)
		lines := strings.Count(text, "\n") + 1
		for _, e := range errs {
			if e.line < 1 || e.line > lines || e.want == "" {
				t.Errorf("%+v in a text of %d lines", e, lines)
			}
		}
		for name, value := range env {
			if !isVariable(name) || supervisorsOwn(name) || strings.ContainsRune(value, 0) {
				t.Errorf("%q=%q", name, value)
			}
			// What was read can be written, and read again.
			again, errs := parseEnvFile(name + "=\"" + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(value) + "\"\n")
			if len(errs) > 0 || again[name] != value {
				t.Errorf("%q=%q is read again as %q, %v", name, value, again, errs)
			}
		}
	})
}

// fpmd reads for its workers what they can't read, but not what they have it read: neither by a link
// of theirs nor in a folder of theirs.
func TestEnvFileOfAnother(t *testing.T) {
	needRoot(t, "gives files away")
	const app = 4711
	dir := t.TempDir()
	for at := dir; at != filepath.Dir(os.TempDir()); at = filepath.Dir(at) {
		if at != os.TempDir() {
			os.Chmod(at, 0o755)
		}
	}
	put := func(name string, mode os.FileMode, owner int) string {
		t.Helper()
		path := filepath.Join(dir, name)
		err := os.WriteFile(path, []byte("A=1\n"), mode)
		if err == nil {
			err = os.Chown(path, owner, owner)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	folder := func(name string, mode os.FileMode, owner int) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	link := func(name, to string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	folder("root", 0o755, 0)
	folder("closed", 0o700, 0)
	folder("app", 0o755, app)
	secret := put("root/secret", 0o600, 0)
	open := put("root/open", 0o644, 0)
	shut := put("closed/open", 0o644, 0)
	for _, tt := range []struct {
		name, path string
		want       string // of the error; "": it is read
	}{
		{"root's alone", secret, ""},
		{"in a folder of root's alone", shut, ""},
		{"open to all", open, ""},
		{"the application's own", put("app/own", 0o600, app), ""},
		{"linked by the application, and open to it", link("app/link-open", open), ""},
		{"linked by the application", link("app/link", secret), "there are links on the way to "},
		{"linked by the application, in a closed folder", link("app/link-closed", shut), "there are links on the way to "},
		{"a link to a folder of the application's", link("app/dir", filepath.Join(dir, "closed")) + "/open", "there are links on the way to "},
		{"another's, in a folder of the application's", put("app/secret", 0o600, 0), "others than root may change "},
		{"linked by root", link("root/link", secret), "there are links on the way to "},
		{"a folder", dir, "is no regular file"},
		{"not there", dir + "/none", "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text, err := readEnvFile(tt.path, &Credential{UID: app, GID: app, Groups: []uint32{app}, Name: "app"})
			switch {
			case tt.want == "" && (err != nil || string(text) != "A=1\n"):
				t.Errorf("%q, %v", text, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("%q, %v: want an error with %q", text, err, tt.want)
			}
		})
	}
}
