package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// serveExample serves a copy of a Python example as wsgi names it, behind a
// real nginx, and returns the site's URL.
func serveExample(t *testing.T, name, wsgi string) (site string) {
	t.Helper()
	dir := appDir(t)
	app := filepath.Join(dir, name)
	if err := os.CopyFS(app, os.DirFS("../../examples/"+name)); err != nil {
		t.Fatal(err)
	}
	d := serve(t, dir, poolConfig(dir, fmt.Sprintf("wsgi = %q\ndirectory = %q\npython = %q\nworkers = 1", wsgi, app, interpreter)))
	return d.nginx("")
}

// serveGoExample does the same with a Go example, which it builds.
func serveGoExample(t *testing.T, name string) (d *process, site string) {
	t.Helper()
	dir := appDir(t)
	program := filepath.Join(dir, name)
	if out, err := exec.Command("go", "build", "-o", program, "../../examples/"+name).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	d = serve(t, dir, poolConfig(dir, fmt.Sprintf("command = [%q]\nworkers = 1", program)))
	return d, d.nginx("")
}

// expect fails the test unless the answer is a 200 that contains part.
func expect(t *testing.T, method, url string, body io.Reader, part string) *http.Response {
	t.Helper()
	resp, got, err := fetch(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || !strings.Contains(got, part) {
		t.Errorf("%s %s: %d %q, want 200 and %q", method, url, resp.StatusCode, got, part)
	}
	return resp
}

// Every form that a WSGI application takes answers behind nginx.
func TestExampleWSGI(t *testing.T) {
	t.Parallel()
	for _, form := range []struct {
		name, wsgi, path, want string
		timed                  bool // by middleware
	}{
		{"function", "app:application", "/", "Hello, 127.0.0.1.\n", false},
		{"class", "app:Countdown", "/", "3\n2\n1\nliftoff\n", false},
		{"instance", "app:greeter", "/J%C3%BCrgen", "Good day, Jürgen.\n", false},
		{"middleware", "app:timed", "/", "Hello, 127.0.0.1.\n", true},
		{"factory", "app:create()", "/Ada", "Welcome, Ada.\n", true},
	} {
		t.Run(form.name, func(t *testing.T) {
			site := serveExample(t, "wsgi", form.wsgi)
			resp := expect(t, "GET", site+form.path, nil, form.want)
			if got := resp.Header.Get("Server-Timing"); strings.HasPrefix(got, "app;dur=") != form.timed {
				t.Errorf("Server-Timing is %q; middleware around it: %v", got, form.timed)
			}
		})
	}
}

// Flask behind nginx: a page, a form, the environ, a stream and an upload.
func TestExampleFlask(t *testing.T) {
	t.Parallel()
	site := serveExample(t, "flask", "app:app")
	expect(t, "GET", site+"/", nil, "<h1>Hello.</h1>")
	expect(t, "GET", site+"/environ?q=1", nil, `"QUERY_STRING":"q=1"`)
	expect(t, "GET", site+"/count", nil, "1\n2\n3\n4\n5\n")
	expect(t, "PUT", site+"/upload", bytes.NewReader(make([]byte, 300_000)), "300000 bytes\n")
	resp, err := client.PostForm(site+"/", url.Values{"name": {"<Ada>"}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if page, err := io.ReadAll(resp.Body); err != nil || !bytes.Contains(page, []byte("Hello, &lt;Ada&gt;.")) {
		t.Errorf("POST: %d %q, %v", resp.StatusCode, page, err)
	}
}

// Django behind nginx: the environ, a stream, and a form that is taken with
// the token it came with, and refused without.
func TestExampleDjango(t *testing.T) {
	t.Parallel()
	site := serveExample(t, "django", "mysite.wsgi:application")
	expect(t, "GET", site+"/environ?q=1", nil, `"QUERY_STRING": "q=1"`)
	expect(t, "GET", site+"/count", nil, "1\n2\n3\n4\n5\n")

	resp, page, err := fetch(t.Context(), "GET", site+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	token := regexp.MustCompile(`name="csrfmiddlewaretoken" value="(\w+)"`).FindStringSubmatch(page)
	if token == nil {
		t.Fatalf("%d, no token in\n%s", resp.StatusCode, page)
	}
	for _, send := range []struct {
		token string
		want  int
	}{{"", 403}, {token[1], 200}} {
		form := url.Values{"name": {"Ada"}, "csrfmiddlewaretoken": {send.token}}
		post, err := http.NewRequestWithContext(t.Context(), "POST", site+"/", strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		post.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		for _, c := range resp.Cookies() {
			post.AddCookie(c)
		}
		answer, err := client.Do(post)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != send.want || strings.Contains(string(body), "Hello, Ada.") != (send.want == 200) {
			t.Errorf("with token %q: %d %q, %v, want %d", send.token, answer.StatusCode, body, err, send.want)
		}
	}
}

// A Go Application behind nginx: its page, and a clock that comes while it
// runs and ends when its client leaves.
func TestExampleGoApplication(t *testing.T) {
	t.Parallel()
	d, site := serveGoExample(t, "go-application")
	expect(t, "POST", site+"/page", strings.NewReader("12345"), "POST /page, 5 bytes of body.")
	leaveAfter(t, site+"/clock", regexp.MustCompile(`^\d\d:\d\d:\d\d\n$`))
	ended := regexp.MustCompile(`GET .*/clock.*: 200, \d+ bytes`) // its middleware's line
	d.wait("end of the clock", func() bool { return ended.MatchString(d.log.String()) })
}

// A Go http.Handler behind nginx: a query, an upload, a method that is refused
// by its mux, and events that come while it runs.
func TestExampleGoHandler(t *testing.T) {
	t.Parallel()
	_, site := serveGoExample(t, "go-handler")
	expect(t, "GET", site+"/?name=you", nil, "Hello, you!\n")
	sent := bytes.Repeat([]byte("fpmd"), 75_000)
	expect(t, "PUT", site+"/upload", bytes.NewReader(sent), fmt.Sprintf("300000 bytes, sha256 %x\n", sha256.Sum256(sent)))
	if resp, body, err := fetch(t.Context(), "DELETE", site+"/upload", nil); err != nil || resp.StatusCode != 405 {
		t.Errorf("DELETE: %v %q, %v, want 405", resp, body, err)
	}
	leaveAfter(t, site+"/events", regexp.MustCompile(`^data: 1\n$`))
}

// leaveAfter reads the first line of an answer that does not end, and leaves.
func leaveAfter(t *testing.T, url string, want *regexp.Regexp) {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || !want.MatchString(line) {
		t.Errorf("%s: %q, %v, want %s", url, line, err, want)
	}
}

// The configuration in a Go example's README is right as it stands, in the
// folder where the README has the program built.
func TestExampleReadmes(t *testing.T) {
	for _, name := range []string{"go-application", "go-handler"} {
		readme, err := os.ReadFile(filepath.Join("../../examples", name, "README.md"))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, found := strings.Cut(string(readme), "    # fpmd.toml\n")
		config, _, ended := strings.Cut(rest, "    bin/fpmd serve -c fpmd.toml")
		if !found || !ended {
			t.Fatalf("%s: no configuration in\n%s", name, readme)
		}
		dir := appDir(t)
		write(t, filepath.Join(dir, "fpmd.toml"), config)
		write(t, filepath.Join(dir, name), "")
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		check := exec.Command(os.Args[0], "check", "-c", "fpmd.toml")
		check.Dir = dir // and with it PWD
		check.Env = append(check.Environ(), "FPMD_TEST_MAIN=1")
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("%s: fpmd check: %v\n%s", name, err, out)
		}
	}
}
