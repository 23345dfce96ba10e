package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const slowApp = `
import select, socket, time
peer = socket.socket()
peer.bind(("127.0.0.1", 0))
peer.listen()
print("peer is", peer.getsockname()[1], flush=True)
def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/socket":
        socket.create_connection(peer.getsockname()).recv(1)
    if path == "/poll": # as most drivers of databases do
        s = socket.create_connection(peer.getsockname())
        p = select.poll()
        p.register(s, select.POLLIN)
        p.poll()
    while path == "/spin":
        pass
    if environ["REQUEST_METHOD"] == "POST":
        environ["wsgi.input"].read()
        time.sleep(1000)
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"begun"
    if path == "/stream":
        time.sleep(1000)
`

// A request that its worker has had for slow_timeout is logged, once, while it runs, with what
// the kernel says that its worker is at.
func TestSlowTimeout(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), slowApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1\nrequest_timeout = \"1h\"\nslow_timeout = \"500ms\""))
	asked := 0
	told := func(path string) string {
		t.Helper()
		asked++
		d.waitLogTimes("msg=\"request is slow\"", asked)
		for line := range strings.Lines(d.log.String()) {
			if strings.Contains(line, "request is slow") && strings.Contains(line, "uri="+path+" ") {
				return line
			}
		}
		t.Fatalf("%s is not among the slow ones", path)
		return ""
	}
	for _, tt := range []struct {
		path string
		want []string // expressions
	}{
		{"/socket", []string{`answer="not begun"`, `state=sleeping`, `cpu="\d+[a-z]* in the last `}},
		{"/poll", []string{`answer="not begun"`, `state=sleeping`}},
		{"/spin", []string{`state=running`, `cpu="[1-9]\d*ms in the last `}},
		{"/stream", []string{`answer="status 200, 5 bytes so far"`, `state=sleeping`}},
	} {
		t.Run(tt.path[1:], func(t *testing.T) {
			c := dialFCGI(t, d.sock(), tt.path)
			line := told(tt.path)
			c.Close()
			worker := regexp.MustCompile(`worker=(\d+) pid=(\d+) `).FindStringSubmatch(line)
			if worker == nil {
				t.Fatalf("no worker in %s", line)
			}
			// What fpmd may not see, nor may we.
			if _, err := os.ReadFile("/proc/" + worker[2] + "/syscall"); err == nil && tt.path != "/spin" && tt.path != "/stream" {
				port := regexp.MustCompile(`msg="peer is (\d+)".* worker=` + worker[1] + ` `).FindStringSubmatch(d.log.String())
				if port == nil {
					t.Fatalf("worker %s has not told its port", worker[1])
				}
				tt.want = append(tt.want, `syscall=(recvfrom|p?poll) `, `on="tcp 127\.0\.0\.1:`+port[1]+`"`)
			}
			for _, want := range append(tt.want, `id=[0-9a-f]{16} method=GET `, `run=\d`, `slow_timeout=500ms`, `body="0 bytes"`, `memory=\d+MiB`, `threads=\d+`, `next="it may run on, 1h0m0s at a time`) {
				if !regexp.MustCompile(want).MatchString(line) {
					t.Errorf("no %s in %s", want, line)
				}
			}
			syscall.Kill(workersOf(d)[0], syscall.SIGKILL) // the next one is free
			d.waitLogTimes("msg=\"worker ready\"", asked+1)
		})
	}
	if n := strings.Count(d.log.String(), "request is slow"); n != asked {
		t.Errorf("%d lines for %d requests", n, asked)
	}
}

// The time that a client takes to send its body is not the application's: its request is told of as
// slow when the application takes so long.
func TestSlowUploadIsNotSlowlyServed(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), slowApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1\nslow_timeout = \"1s\""))
	c, err := net.Dial("unix", d.sock())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const parts = 20
	upload := fcgiUpload(strconv.Itoa(parts << 14))
	for range parts {
		if _, err := c.Write(append(append(upload, 1, 5, 0, 1, 0x40, 0, 0, 0), make([]byte, 1<<14)...)); err != nil {
			t.Fatal(err)
		}
		upload = nil
		time.Sleep(100 * time.Millisecond) // two seconds, in all
	}
	if _, err := c.Write([]byte{1, 5, 0, 1, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	d.waitLog("request is slow")
	if !strings.Contains(d.log.String(), fmt.Sprintf("body=\"%d bytes\"", parts<<14)) {
		t.Error("it was told of before its body was there")
	}
}
