// Package examples holds applications to begin with, and what is promised of them.
package examples

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for a state; it fails by it and never
// passes by it.
const patience = 60 * time.Second

// A program is one that a test has started, with the end of all that it writes.
type program struct {
	*exec.Cmd
	out    bytes.Buffer // to be read when it has ended
	exited chan struct{}
}

// start starts cmd; what still runs at the test's end is told to stop by SIGTERM, and waited for.
func start(t *testing.T, cmd *exec.Cmd) *program {
	t.Helper()
	p := &program{Cmd: cmd, exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { cmd.Wait(); close(p.exited) }() // ends with the program, which the cleanup sees to
	t.Cleanup(func() {
		p.end(t, syscall.SIGTERM)
		if t.Failed() {
			t.Logf("%s:\n%s", cmd, p.out.String())
		}
	})
	return p
}

func (p *program) end(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := p.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	select {
	case <-p.exited:
	case <-time.After(patience):
		t.Errorf("%s does not end at %v", p, sig)
		p.Process.Kill()
		<-p.exited
	}
}

// folder makes one that workers of another user can enter.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fpmd-examples-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// build makes an fpmd.
func build(t *testing.T) string {
	t.Helper()
	fpmd := filepath.Join(t.TempDir(), "fpmd")
	if out, err := exec.Command("go", "build", "-o", fpmd, "../cmd/fpmd").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return fpmd
}

// freeAddress is one that nobody listened on a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// answers asks for url until somebody listens there, and returns what comes then.
func answers(t *testing.T, p *program, url string) (status int, body string) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		resp, err := http.Get(url)
		if err == nil {
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatalf("%s: %v", url, err)
			}
			return resp.StatusCode, string(b)
		}
		select {
		case <-p.exited:
			t.Fatalf("%s has ended", p)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", url, err)
		}
	}
}

// serveExample serves an example's own configuration, from a copy of its
// folder and with sockets instead of its ports, and gives the front's address.
func serveExample(t *testing.T, name string) (*program, string) {
	t.Helper()
	dir, addr := folder(t), freeAddress(t)
	here := filepath.Join(dir, "examples", name)
	if err := os.CopyFS(here, os.DirFS(name)); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(here, "fpmd.toml")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`"127\.0\.0\.1:(\d+)"`).ReplaceAll(text, []byte(`"`+dir+`/$1.sock"`))
	text = bytes.Replace(text, []byte("[supervisor]\n"), fmt.Appendf(nil, "[supervisor]\nruntime_dir = %q\n", dir+"/run"), 1)
	if err := os.WriteFile(config, text, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(build(t), "serve", "-c", "examples/"+name+"/fpmd.toml", "--http", addr)
	cmd.Dir = dir // and with it PWD, which the configuration has
	return start(t, cmd), "http://" + addr
}

// Each form of a WSGI application that the example shows is served by the pool
// of that name.
func TestWSGI(t *testing.T) {
	t.Parallel()
	p, base := serveExample(t, "wsgi")
	for path, want := range map[string]string{
		"/function/":            "Hello, 127.0.0.1.\n",
		"/class/":               "3\n2\n1\nliftoff\n",
		"/instance/":            "Good day, world.\n",
		"/instance/J%C3%BCrgen": "Good day, Jürgen.\n",
		"/middleware/":          "Hello, 127.0.0.1.\n",
		"/factory/Ada":          "Welcome, Ada.\n",
	} {
		if status, body := answers(t, p, base+path); status != 200 || body != want {
			t.Errorf("%s: %d %q, want 200 %q", path, status, body, want)
		}
	}
	for path, timed := range map[string]bool{"/function/": false, "/middleware/": true, "/factory/": true} {
		resp, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Server-Timing"); strings.HasPrefix(got, "app;dur=") != timed {
			t.Errorf("%s: Server-Timing is %q; middleware around it: %v", path, got, timed)
		}
	}
}

// A page, JSON, a stream, a form and an upload.
func TestFlask(t *testing.T) {
	t.Parallel()
	p, base := serveExample(t, "flask")
	if status, body := answers(t, p, base+"/"); status != 200 || !strings.Contains(body, "<h1>Hello.</h1>") {
		t.Errorf("/: %d %s", status, body)
	}
	if status, body := answers(t, p, base+"/environ"); status != 200 || !strings.Contains(body, `"GATEWAY_INTERFACE":"CGI/1.1"`) {
		t.Errorf("/environ: %d %s", status, body)
	}
	if status, body := answers(t, p, base+"/count"); status != 200 || body != "1\n2\n3\n4\n5\n" {
		t.Errorf("/count: %d %q", status, body)
	}
	resp, err := http.PostForm(base+"/", url.Values{"name": {"<Ada>"}})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, resp, "Hello, &lt;Ada&gt;.")
	put, err := http.NewRequest("PUT", base+"/upload", bytes.NewReader(make([]byte, 300_000)))
	if err != nil {
		t.Fatal(err)
	}
	if resp, err = http.DefaultClient.Do(put); err != nil {
		t.Fatal(err)
	}
	expect(t, resp, "300000 bytes\n")
}

func expect(t *testing.T, resp *http.Response, part string) {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || !strings.Contains(string(body), part) {
		t.Errorf("%s %s: %d %s, want 200 and %q", resp.Request.Method, resp.Request.URL, resp.StatusCode, body, part)
	}
}

// The form is taken with the token that came with it, and not without.
func TestDjango(t *testing.T) {
	t.Parallel()
	p, base := serveExample(t, "django")
	if status, body := answers(t, p, base+"/environ"); status != 200 || !strings.Contains(body, `"GATEWAY_INTERFACE": "CGI/1.1"`) {
		t.Errorf("/environ: %d %s", status, body)
	}
	if status, body := answers(t, p, base+"/count"); status != 200 || body != "1\n2\n3\n4\n5\n" {
		t.Errorf("/count: %d %q", status, body)
	}
	resp, err := http.Get(base + "/")
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	token := regexp.MustCompile(`name="csrfmiddlewaretoken" value="(\w+)"`).FindSubmatch(page)
	if err != nil || token == nil {
		t.Fatalf("/: %d %v, no token in\n%s", resp.StatusCode, err, page)
	}
	form := url.Values{"name": {"Ada"}}
	if resp, err := http.PostForm(base+"/", form); err != nil || resp.StatusCode != 403 {
		t.Errorf("a form without its token: %v %v, want 403", resp, err)
	}
	form.Set("csrfmiddlewaretoken", string(token[1]))
	post, err := http.NewRequest("POST", base+"/", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	post.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for _, c := range resp.Cookies() {
		post.AddCookie(c)
	}
	if resp, err = http.DefaultClient.Do(post); err != nil {
		t.Fatal(err)
	}
	expect(t, resp, "Hello, Ada.")
}

// The demo shows its page, says what to try, ends at ^C, and leaves nothing
// behind: no file, no process.
func TestDemo(t *testing.T) {
	t.Parallel()
	temp, addr := folder(t), freeAddress(t)
	cmd := exec.Command("bash", "demo/run.sh", build(t))
	cmd.Env = append(os.Environ(), "DEMO_ADDR="+addr, "TMPDIR="+temp)
	p := start(t, cmd)
	base := "http://" + addr
	status, page := answers(t, p, base+"/")
	pids := regexp.MustCompile(`Worker <b>(\d+)</b> answers(?s:.*)<b>(\d+)</b>fpmd, its parent`).FindStringSubmatch(page)
	if status != 200 || pids == nil {
		t.Fatalf("/: %d %s", status, page)
	}
	for path, want := range map[string]struct {
		status int
		part   string
	}{
		"/hello":      {200, "Hello from worker "},
		"/env":        {200, "wsgi.version=(1, 0)"},
		"/stream":     {200, "\n10: worker "},
		"/slow?s=0":   {200, " answers after 0 s."},
		"/slow?s=nan": {400, "a number of seconds"},
		"/slow?s=-1":  {400, "a number of seconds"},
		"/boom":       {500, ""},
		"/elsewhere":  {404, "/hello"},
	} {
		if status, body := answers(t, p, base+path); status != want.status || !strings.Contains(body, want.part) {
			t.Errorf("%s: %d %q, want %d %q", path, status, body, want.status, want.part)
		}
	}
	p.end(t, os.Interrupt)
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left in TMPDIR: %v, %v", left, err)
	}
	for _, pid := range pids[1:] {
		if _, err := os.Stat("/proc/" + pid); err == nil {
			t.Errorf("process %s is left", pid)
		}
	}
	for _, told := range []string{base, "kill -HUP " + pids[2]} {
		if !strings.Contains(p.out.String(), told) {
			t.Errorf("it does not print %q", told)
		}
	}
}

// A page shows what a client sent as text.
func TestDemoEscapes(t *testing.T) {
	page := exec.Command("/usr/bin/python3", "-c", `
import io, sys
sys.dont_write_bytecode = True
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

// What the READMEs tell to run from the top of the repository is there.
func TestReadmesNameFilesThatExist(t *testing.T) {
	readmes, err := filepath.Glob("*/README.md")
	if err != nil || len(readmes) < 6 {
		t.Fatalf("%d READMEs, %v", len(readmes), err)
	}
	named := regexp.MustCompile(`(?:\./|-c )(examples/[\w./-]+)`)
	for _, readme := range readmes {
		text, err := os.ReadFile(readme)
		if err != nil {
			t.Fatal(err)
		}
		found := named.FindAllStringSubmatch(string(text), -1)
		for _, m := range found {
			if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
				t.Errorf("%s: %v", readme, err)
			}
		}
	}
}
