package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const digestApp = `
import hashlib
def application(environ, start_response):
    if environ["PATH_INFO"] == "/answer":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (b"%06d\n" % n * 30000 for n in range(300)) # 60 MiB
    body, h, n = environ["wsgi.input"], hashlib.sha256(), 0
    while part := body.read(1 << 16):
        h.update(part)
        n += len(part)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d %s" % (n, h.hexdigest().encode())]
`

// An upload is a request whose body is sent part by part.
type upload struct {
	net.Conn
	t    *testing.T
	rest []byte
	want string // what digestApp says of it
}

// startUpload begins a request with a body of size bytes.
func startUpload(t *testing.T, d *process, size int) *upload {
	t.Helper()
	c, err := net.Dial("unix", d.sock())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(fcgiUpload(strconv.Itoa(size))); err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 100_003) // longer than what is moved at once, and of no such length
	for i := range block {
		block[i] = byte(i / 7 * (i/1009 + 1))
	}
	body := bytes.Repeat(block, size/len(block)+1)[:size]
	return &upload{c, t, body, fmt.Sprintf("%d %x", size, sha256.Sum256(body))}
}

// send sends n bytes of the body, and its end behind the last.
func (u *upload) send(n int) {
	u.t.Helper()
	for n > 0 {
		p := u.rest[:min(n, 0x8000, len(u.rest))]
		if _, err := u.Write(append([]byte{1, 5, 0, 1, byte(len(p) >> 8), byte(len(p)), 0, 0}, p...)); err != nil {
			u.t.Fatal(err)
		}
		u.rest, n = u.rest[len(p):], n-len(p)
	}
	if len(u.rest) == 0 {
		if _, err := u.Write([]byte{1, 5, 0, 1, 0, 0, 0, 0}); err != nil {
			u.t.Fatal(err)
		}
	}
}

// heldFiles counts the files without a name that fpmd has open below runtime_dir.
func (d *process) heldFiles() (n int) {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", d.cmd.Process.Pid))
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, filepath.Join(d.dir, "run/workers/#")) {
			n++
		}
	}
	return n
}

// A body that is slow to come holds no worker, is in a file beyond buffer_request, and arrives whole; of one
// whose client leaves meanwhile, no worker is told, and nothing is left.
func TestBufferedUploads(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), digestApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1\nbuffer_request = \"1MiB\"\nbuffer_files = \"200MiB\"\naccess_log = \"-\""))
	other := func(when string) {
		t.Helper()
		if answer, err := askOnce(d.sock()); err != nil || !strings.Contains(answer, "\r\n\r\n0 ") {
			t.Errorf("%s, another request got %q, %v", when, answer, err)
		}
	}
	small, large, left := startUpload(t, d, 1<<20), startUpload(t, d, 100<<20), startUpload(t, d, 100<<20)
	small.send(1<<20 - 1)
	for range 6 {
		large.send(10 << 20)
		left.send(1 << 20)
		other("while bodies come")
	}
	if n := d.heldFiles(); n != 2 {
		t.Errorf("%d files are open, want one each for two bodies that are longer than buffer_request", n)
	}
	left.Close()
	d.waitLog("outcome=client_gone")
	for line := range strings.Lines(d.log.String()) {
		if strings.Contains(line, "outcome=client_gone") && !strings.Contains(line, "worker=0") {
			t.Errorf("a worker was told: %s", line)
		}
	}
	large.send(40 << 20)
	small.send(1)
	for _, u := range []*upload{small, large} {
		if answer, err := readAnswer(u); err != nil || !strings.HasSuffix(answer, u.want) {
			t.Errorf("got %q, %v; want %s", answer, err, u.want)
		}
	}
	d.wait("no file", func() bool { return d.heldFiles() == 0 })
	other("afterwards")
	if log := d.log.String(); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
		t.Error("the log complains")
	}
}

// A request whose body is awaited was accepted: a stop waits for it, and if that is out of time, the client is told.
func TestStopWhileBodiesAreAwaited(t *testing.T) {
	for _, key := range []string{`buffer_request = "1MiB"`, "buffer_request = 0"} {
		dir := appDir(t)
		write(t, filepath.Join(dir, "app.py"), digestApp)
		d := serve(t, dir, wsgiPool(dir, "workers = 1\n"+key))
		inTime, late := startUpload(t, d, 70_000), startUpload(t, d, 70_000)
		inTime.send(60_000)
		late.send(60_000)
		if answer, err := askOnce(d.sock()); err != nil || !strings.Contains(answer, "\r\n\r\n0 ") { // both are read by then
			t.Fatalf("%s: another request got %q, %v", key, answer, err)
		}
		d.signal(syscall.SIGTERM)
		d.waitLog("msg=stopping")
		inTime.send(10_000)
		if answer, err := readAnswer(inTime); err != nil || !strings.HasSuffix(answer, inTime.want) {
			t.Errorf("%s: got %q, %v; want %s", key, answer, err, inTime.want)
		}
		d.signal(syscall.SIGTERM)
		if answer, err := readAnswer(late); err != nil || !strings.Contains(answer, "Fpmd-Outcome: stopping") {
			t.Errorf("%s: who is not in time got %q, %v; want the outcome stopping", key, answer, err)
		}
		d.waitExit()
	}
}

// Where runtime_dir has no room for a body, the log says so and it streams; nothing is lost.
func TestBufferedUploadWithoutRoom(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), digestApp)
	run := filepath.Join(dir, "run")
	for size, want := range map[string]string{
		"700k": "no space left on device",
		"8m":   "less than a tenth of the file system is free",
	} {
		d := serveIn(t, "mkdir -p "+run+"; mount -t tmpfs -o size="+size+",mode=755 tmpfs "+run, dir, wsgiPool(dir, "workers = 1\nbuffer_request = \"256KiB\"\nbuffer_files = \"1GiB\""))
		for range 2 {
			u := startUpload(t, d, 16<<20)
			u.send(16 << 20)
			if answer, err := readAnswer(u); err != nil || !strings.HasSuffix(answer, u.want) {
				t.Errorf("%s: got %q, %v; want %s", size, answer, err, u.want)
			}
		}
		d.waitLogTimes("msg=\"body not kept in a file\"", 2)
		if !strings.Contains(d.log.String(), want) {
			t.Errorf("%s: no %q in the log", size, want)
		}
		d.signal(syscall.SIGINT)
		d.waitExit()
	}
}

// wholeAnswer reports whether an answer is the one that digestApp makes for /answer.
func wholeAnswer(answer string) bool {
	_, body, _ := strings.Cut(answer, "\r\n\r\n")
	want := new(strings.Builder)
	for n := range 300 {
		want.WriteString(strings.Repeat(fmt.Sprintf("%06d\n", n), 30000))
	}
	return body == want.String()
}

// An answer whose client takes nothing holds no worker as far as buffer_files goes; it is whole when it is taken, and
// nothing is left of it when its client leaves.
func TestBufferedAnswers(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), digestApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1\nbuffer_files = \"100MiB\"\naccess_log = \"-\""))
	slow, left := dialFCGI(t, d.sock(), "/answer"), dialFCGI(t, d.sock(), "/answer")
	defer slow.Close()
	defer left.Close()
	for range 5 {
		if answer, err := askOnce(d.sock()); err != nil || !strings.Contains(answer, "\r\n\r\n0 ") {
			t.Errorf("while answers wait, another request got %q, %v", answer, err)
		}
	}
	if n := d.heldFiles(); n != 2 {
		t.Errorf("%d files are open, want one each for two answers that are longer than buffer_response", n)
	}
	left.Close()
	d.waitLog("outcome=client_gone")
	d.wait("one file", func() bool { return d.heldFiles() == 1 })
	slow.SetDeadline(time.Now().Add(patience))
	if answer, err := readAnswer(slow); err != nil || !wholeAnswer(answer) {
		t.Errorf("%d bytes came, and %v, or not the same", len(answer), err)
	}
	d.wait("no file", func() bool { return d.heldFiles() == 0 })
}

// Where runtime_dir has no room for an answer, the log says so, and its worker waits for the client.
func TestBufferedAnswerWithoutRoom(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), digestApp)
	run := filepath.Join(dir, "run")
	d := serveIn(t, "mkdir -p "+run+"; mount -t tmpfs -o size=8m,mode=755 tmpfs "+run, dir, wsgiPool(dir, "workers = 1\nbuffer_files = \"1GiB\""))
	c := dialFCGI(t, d.sock(), "/answer")
	defer c.Close()
	d.waitLog("answer not kept in a file")
	c.SetDeadline(time.Now().Add(patience))
	if answer, err := readAnswer(c); err != nil || !wholeAnswer(answer) {
		t.Errorf("%d bytes came, and %v, or not the same", len(answer), err)
	}
	d.wait("no file", func() bool { return d.heldFiles() == 0 })
	if n := strings.Count(d.log.String(), "answer not kept in a file"); n != 1 {
		t.Errorf("told %d times, want 1", n)
	}
}
