package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const streamApp = `
import hashlib
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    if environ["PATH_INFO"] == "/upload":
        n = 0
        while True:
            block = environ["wsgi.input"].read(65536)
            if not block:
                break
            n += len(block)
        return [str(n).encode()]
    def body():
        block = b"x" * 65536
        for _ in range(int(environ["QUERY_STRING"])):
            yield block
    return body()
`

// peak is the most memory that the processes have had resident, in bytes.
func peak(t *testing.T, pids ...int) (sum int64) {
	t.Helper()
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				sum += kb << 10
			}
		}
	}
	return sum
}

// zeros is an upload of a known length.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// An upload of 100 MiB and a download of 1 GiB stream: fpmd and the worker
// together grow by less than 16 MiB.
func TestStreams(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), streamApp)
	// Not the test binary: the race detector's shadow memory is none of fpmd's.
	d := serveWith(t, buildFpmd(t, dir), dir, wsgiPool(dir, "workers = 1"))
	url := d.nginx("fastcgi_request_buffering off; fastcgi_buffering off;")
	get(t, url+"/?1") // what the first of all requests takes is not counted
	pids := append(children(d.cmd.Process.Pid), d.cmd.Process.Pid)
	before := peak(t, pids...)

	const up = 100 << 20
	req, err := http.NewRequestWithContext(t.Context(), "POST", url+"/upload", io.LimitReader(zeros{}, up))
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = up
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || string(body) != strconv.Itoa(up) {
		t.Errorf("upload: the application read %q, %v", body, err)
	}

	const down = 1 << 30
	resp, err = client.Get(url + "/?" + strconv.Itoa(down/65536))
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if err != nil || n != down {
		t.Errorf("download: %d bytes of %d, %v", n, down, err)
	}
	if grown := peak(t, pids...) - before; grown >= 16<<20 {
		t.Errorf("fpmd and its worker have grown by %d KiB", grown>>10)
	}
}

// wsgiref.validate finds nothing to complain of, with nginx's buffering on and off.
func TestValidated(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), `
from wsgiref.validate import validator
def app(environ, start_response):
    n = 0
    while True:
        block = environ["wsgi.input"].read(1000)
        if not block:
            break
        n += len(block)
    body = b"%d" % n
    path = environ["PATH_INFO"]
    if path == "/empty":
        start_response("204 No Content", [])
        return []
    headers = [("Content-Type", "text/plain")]
    if path == "/length":
        headers.append(("Content-Length", str(len(body))))
    start_response("200 OK", headers)
    if environ["REQUEST_METHOD"] == "HEAD":
        return []
    if path == "/parts":
        return iter([body[:1], body[1:]])
    return [body]
application = validator(app)
`)
	d := serve(t, dir, wsgiPool(dir, "workers = 2\ndebug = true"))
	for _, extra := range []string{"", "fastcgi_request_buffering off; fastcgi_buffering off;"} {
		url := d.nginx(extra)
		for _, path := range []string{"/", "/length", "/parts", "/empty"} {
			for _, tt := range []struct {
				method string
				body   string
				length bool
				want   string
			}{
				{"GET", "", true, "0"},
				{"HEAD", "", true, ""},
				{"POST", strings.Repeat("x", 70000), true, "70000"},
				{"POST", strings.Repeat("x", 70000), false, "70000"}, // chunked
				{"POST", "", true, "0"},
			} {
				var body io.Reader
				if tt.body != "" {
					body = strings.NewReader(tt.body)
					if !tt.length {
						body = io.MultiReader(body) // which hides the length
					}
				}
				resp, got, err := fetch(context.Background(), tt.method, url+path, body)
				if err != nil {
					t.Errorf("%s %s: %v", tt.method, path, err)
					continue
				}
				status, want := 200, tt.want
				if path == "/empty" {
					status, want = 204, ""
				}
				if resp.StatusCode != status || got != want {
					t.Errorf("%s %s with %q: %d %.200q, want %d %q", tt.method, path, extra, resp.StatusCode, got, status, want)
				}
			}
		}
	}
	if log := d.log.String(); strings.Contains(log, "AssertionError") || strings.Contains(log, "WSGIWarning") {
		t.Errorf("wsgiref.validate complains")
	}
}

// A client that pauses in its upload for longer than request_timeout is not
// taken for a slow application.
func TestSlowUploadIsNoTimeout(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), streamApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1\nrequest_timeout = \"300ms\""))
	url := d.nginx("fastcgi_request_buffering off;")
	r, w := io.Pipe()
	go func() {
		w.Write(make([]byte, 200<<10))
		<-time.After(900 * time.Millisecond)
		w.Write(make([]byte, 200<<10))
		w.Close()
	}()
	resp, body, err := fetch(t.Context(), "POST", url+"/upload", r)
	if err != nil || resp.StatusCode != 200 || body != strconv.Itoa(400<<10) {
		t.Errorf("%v, %q", err, body)
	}
}
