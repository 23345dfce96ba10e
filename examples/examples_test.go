// Package examples holds applications to begin with, and what is promised of
// them. That they answer is tried in cmd/fpmd.
package examples

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"fpmd/manager"
)

// Each configuration is right as it stands when it is used from the top of the
// repository, and names an application that is there.
func TestConfigurations(t *testing.T) {
	top, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	env := func(name string) (string, bool) {
		if name != "PWD" {
			return "", false
		}
		return top, true
	}
	configs, err := filepath.Glob("*/fpmd.toml")
	if err != nil || len(configs) < 3 {
		t.Fatalf("configurations: %q, %v", configs, err)
	}
	for _, path := range configs {
		cfg, err := manager.Load(path, manager.LoadOptions{LookupEnv: env})
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		for _, p := range cfg.Pools {
			module, name, _ := strings.Cut(strings.TrimSuffix(p.WSGI, "()"), ":")
			file := filepath.Join(p.Directory, strings.ReplaceAll(module, ".", "/")+".py")
			text, err := os.ReadFile(file)
			if err != nil {
				t.Errorf("%s: pool %s: %v", path, p.Name, err)
			} else if !regexp.MustCompile(`(?m)^(def |class |)` + name + `\b`).Match(text) {
				t.Errorf("%s: pool %s: %s has no %s", path, p.Name, file, name)
			}
			if filepath.Dir(filepath.Join(top, "examples", path)) != p.Directory {
				t.Errorf("%s: pool %s is in %s", path, p.Name, p.Directory)
			}
		}
	}
}

// The demo's page shows what a client sent as text, whatever it is.
func TestDemoEscapes(t *testing.T) {
	page := exec.Command("/usr/bin/python3", "-B", "-c", `
import sys
sys.path.insert(0, "demo")
import app
environ = {"PATH_INFO": "/", "SCRIPT_NAME": "", "SERVER_NAME": "here", "HTTP_HOST": "<i>host</i>", "QUERY_STRING": "<i>query</i>",
           "HTTP_@ROWS@": "@PID@", "wsgi.url_scheme": "http"}
sys.stdout.buffer.write(b"".join(app.application(environ, lambda status, headers: None)))
`)
	out, err := page.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, not := range []string{"<i>host", "<i>query"} {
		if bytes.Contains(out, []byte(not)) {
			t.Errorf("the page has %q", not)
		}
	}
	for _, want := range []string{"&lt;i&gt;host", "&lt;i&gt;query", "@ROWS@<td>@PID@"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the page has no %q", want)
		}
	}
}

// What the READMEs tell to use, from the top of the repository, is there.
func TestReadmesNameWhatExists(t *testing.T) {
	readmes, err := filepath.Glob("*/README.md")
	if err != nil || len(readmes) < 6 {
		t.Fatalf("READMEs: %q, %v", readmes, err)
	}
	named := regexp.MustCompile(`(?:\./|-c )(examples/[\w./-]+)`)
	for _, readme := range readmes {
		text, err := os.ReadFile(readme)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
				t.Errorf("%s: %v", readme, err)
			}
		}
	}
}
