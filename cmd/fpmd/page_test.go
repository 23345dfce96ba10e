package main

import (
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fpmd/worker/python"
)

// A worker that was started by hand says how to run it; check takes the configuration that
// it prints, whoever asks.
func TestByHand(t *testing.T) {
	dir := filepath.Join(appDir(t), "a $dir")
	program, host := filepath.Join(dir, "failing"), filepath.Join(dir, "host.zip")
	archive, err := python.Archive()
	if err != nil {
		t.Fatal(err)
	}
	write(t, host, string(archive))
	if out, err := exec.Command("go", "build", "-o", program, "./testdata/failing").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for name, argv := range map[string][]string{"Python": {interpreter, host, "app:application"}, "Go": {program}} {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir = dir
		out, _ := cmd.CombinedOutput() // its exit code says what there is to say
		config := ""
		for line := range strings.Lines(string(out)) {
			if text, ok := strings.CutPrefix(line, "    "); ok && !strings.HasPrefix(text, "fpmd ") {
				config += text
			}
		}
		file := filepath.Join(dir, "fpmd.toml")
		write(t, file, config)
		if err := run(t.Context(), []string{"check", "-c", file}, io.Discard, io.Discard); err != nil || cmd.ProcessState.ExitCode() != 2 {
			t.Errorf("%s: exit code %d, %v, of\n%s", name, cmd.ProcessState.ExitCode(), err, out)
		}
	}
}

// The pages that a worker makes, for an application that failed, read as
// those that fpmd makes: status and outcome, and the id that the log has.
func TestErrorPages(t *testing.T) {
	t.Parallel()
	python := func(t *testing.T, dir string) string {
		write(t, filepath.Join(dir, "app.py"), `
def application(environ, start_response):
    environ["REQUEST_ID"] = "its-own"
    raise LookupError("no database")
`)
		return wsgiPool(dir, "script_name = \"/app\"\nworkers = 1")
	}
	program := func(t *testing.T, dir string) string {
		file := filepath.Join(dir, "failing")
		if out, err := exec.Command("go", "build", "-o", file, "./testdata/failing").CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
		return poolConfig(dir, fmt.Sprintf("command = [%q]\nscript_name = \"/app\"\nworkers = 1", file))
	}
	for name, config := range map[string]func(*testing.T, string) string{"Python": python, "Go": program} {
		t.Run(name, func(t *testing.T) {
			dir := appDir(t)
			d := serve(t, dir, config(t, dir))
			site := d.nginx("fastcgi_param REQUEST_ID $request_id; add_header Id $request_id always;")
			var fields [2]int
			for i, tt := range []struct{ path, status, outcome string }{
				{"/elsewhere", "400 Bad Request", "bad_request"}, // fpmd's own
				{"/app/", "500 Internal Server Error", "app_error"},
			} {
				resp, page, err := fetch(t.Context(), "GET", site+tt.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				fields[i] = len(resp.Header)
				id := resp.Header.Get("Id")
				want := http.Header{
					"Content-Type":    {"text/plain; charset=utf-8"},
					"Content-Length":  {fmt.Sprint(len(page))},
					"Cache-Control":   {"no-store"},
					"Fpmd-Outcome":    {tt.outcome},
					"Fpmd-Request-Id": {id},
				}
				for field, value := range want {
					if got := resp.Header[field]; fmt.Sprint(got) != fmt.Sprint(value) {
						t.Errorf("GET %s: %s: %q, want %q", tt.path, field, got, value)
					}
				}
				if resp.Status != tt.status || page != tt.status+": "+tt.outcome+"\n" {
					t.Errorf("GET %s: %s, page %q, want %s", tt.path, resp.Status, page, tt.status)
				}
				d.waitLog(fmt.Sprintf("outcome=%s id=%s ", tt.outcome, id))
			}
			if fields[0] != fields[1] {
				t.Errorf("fpmd's answer has %d header fields, the worker's %d", fields[0], fields[1])
			}
			resp, page, err := fetch(t.Context(), http.MethodHead, site+"/app/", nil)
			if err != nil || resp.Header.Get("Fpmd-Outcome") != "app_error" || page != "" {
				t.Errorf("HEAD: %v, %q, %v", resp, page, err)
			}
		})
	}
}
