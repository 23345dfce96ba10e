package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// hostileWorker answers "/" as it should, and every other path in a way of
// its own that no worker should.
const hostileWorker = `
import mmap, os, socket, struct, sys, time
listener = socket.socket(fileno=int(os.environ["FPMD_LISTEN_FD"]))
page = memoryview(mmap.mmap(int(os.environ["FPMD_PAGE_FD"]), 4096)).cast("Q")
os.write(int(os.environ["FPMD_HANDSHAKE_FD"]), b"1|1|unix|1|exchange\n")
BLOCK = b"Status: 200 OK\r\nContent-Type: text/plain\r\n\r\n"
def answer(number, block=BLOCK, status=200, flags=1, body=b"fine"):
    return struct.pack("<BBHIHH", 17, flags, status, 4 + len(block) + len(body), len(block), number & 0xffff) + block + body
def data(flags, body):
    return struct.pack("<BBHI", 18, flags, 0, len(body)) + body
def hostile(c, number, path):
    good = answer(number)
    if path == "/garbage": return b"HTTP/1.1 200 OK\r\n\r\nhello"
    if path == "/greeting": return struct.pack("<BBHI", 16, 0, 1, 0)
    if path == "/request": return struct.pack("<BBHI", 1, 1, 0, 12) + bytes(12)
    if path == "/large": return struct.pack("<BBHI", 17, 1, 200, (16 << 20) + 1)
    if path == "/no-status": return answer(number, b"Content-Type: text/plain\r\n\r\n")
    if path == "/other-status": return answer(number, status=404)
    if path == "/newline": return answer(number, b"Status: 200 OK\r\nA: b\nC: d\r\n\r\n")
    if path == "/split": return answer(number, b"Status: 200 OK\r\n\r\nStatus: 500 No\r\n\r\n")
    if path == "/longer-block": return good[:8] + struct.pack("<H", 60000) + good[10:]
    if path == "/other": return answer(number + 1)
    if path == "/data-first": return data(1, b"hello")
    if path == "/half": return good[:20], "close"
    if path == "/half-body": return answer(number, flags=0) + data(1, b"hello")[:10], "close"
    if path == "/close": return b"", "close"
    if path == "/withdrawn": return struct.pack("<BBHIQ", 20, 0, 0, 8, number)
    if path == "/exit": os._exit(7)
    if path == "/twice": return good + good
    if path == "/late": return good, "late"
while True:
    c, _ = listener.accept()
    c.sendall(struct.pack("<BBHI", 16, 0, 1, 0))
    late = False
    while True:
        head = c.recv(8, socket.MSG_WAITALL)
        if len(head) < 8:
            break
        payload = c.recv(struct.unpack("<BBHI", head)[3], socket.MSG_WAITALL)
        if late:
            time.sleep(3)
        number, size = struct.unpack_from("<QI", payload)
        strings = payload[12:12 + size].split(b"\0")
        path = dict(zip(strings[0::2], strings[1::2]))[b"PATH_INFO"].decode()
        page[0] = number
        if path == "/":
            time.sleep(0.002) # not so quick that another request is sent behind it, and shares its lot
            c.sendall(answer(number))
            continue
        sent = hostile(c, number, path)
        then = ""
        if type(sent) is tuple:
            sent, then = sent
        try:
            c.sendall(sent)
        except OSError:
            break
        if then == "late":
            time.sleep(0.05)
            c.sendall(answer(number))
            late = True
        if then == "close":
            break
    c.close()
`

// Whatever a worker sends or does not send costs the request that it had, is
// named in the log, and disturbs no other; the worker is replaced.
func TestHostileWorkers(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	script := filepath.Join(dir, "hostile.py")
	write(t, script, hostileWorker)
	d := serve(t, dir, poolConfig(dir, fmt.Sprintf("command = [%q, %q]\nworkers = 3\nstop_timeout = \"1s\"\n", interpreter, script)))
	url := d.nginx("")
	l := startLoad(t, 2, func(ctx context.Context) (int, string, error) {
		resp, body, err := fetch(ctx, "GET", url+"/", nil)
		if err != nil {
			return 0, "", err
		}
		return resp.StatusCode, resp.Header.Get("Fpmd-Outcome") + body, nil
	})
	d.wait("load", func() bool { return l.total("fine") > 20 })
	for path, want := range map[string]string{
		"/garbage": "bad_answer", "/greeting": "bad_answer", "/request": "bad_answer", "/large": "bad_answer",
		"/no-status": "bad_answer", "/other-status": "bad_answer", "/newline": "bad_answer", "/split": "bad_answer",
		"/longer-block": "bad_answer", "/other": "bad_answer", "/data-first": "bad_answer", "/half": "bad_answer",
		"/close": "bad_answer", "/withdrawn": "bad_answer", "/exit": "worker_died",
		"/half-body": "", // cut
		"/twice":     "bad_answer",
		"/late":      "fine", // what comes behind is nobody's
	} {
		t.Run(path[1:], func(t *testing.T) {
			resp, body, err := fetch(t.Context(), "GET", url+path, nil)
			switch {
			case want == "fine":
				if err != nil || resp.StatusCode != 200 || body != "fine" {
					t.Errorf("got %v, %q", err, body)
				}
			case want == "":
				if err == nil && resp.StatusCode == 200 {
					t.Errorf("a cut answer looks whole: %q", body)
				}
			case err != nil:
				t.Error(err)
			case resp.StatusCode != 502 || resp.Header.Get("Fpmd-Outcome") != want:
				t.Errorf("got %d %s, want 502 %s", resp.StatusCode, resp.Header.Get("Fpmd-Outcome"), want)
			}
			before := l.total("fine")
			d.wait("load after it", func() bool { return l.total("fine") > before+20 })
		})
	}
	if _, failed := l.stop(); len(failed) > 0 {
		t.Errorf("others: %s", summary(failed))
	}
	if n := strings.Count(d.log.String(), "worker broke the exchange protocol"); n < 12 {
		t.Errorf("the log names %d breaches", n)
	}
}

// A request that workers die of before they have begun it is sent again twice,
// and no more: it might be what they die of.
func TestResendsAreBounded(t *testing.T) {
	dir := appDir(t)
	script := filepath.Join(dir, "dying.py")
	write(t, script, `
import os, socket, struct
listener = socket.socket(fileno=int(os.environ["FPMD_LISTEN_FD"]))
os.write(int(os.environ["FPMD_HANDSHAKE_FD"]), b"1|1|unix|1|exchange\n")
c, _ = listener.accept()
c.sendall(struct.pack("<BBHI", 16, 0, 1, 0))
if c.recv(1):
    os._exit(9)
`)
	d := serve(t, dir, poolConfig(dir, fmt.Sprintf("command = [%q, %q]\nworkers = 5\n", interpreter, script)))
	d.waitLogTimes("msg=\"worker ready\"", 5)
	answer, err := askOnce(d.sock())
	if err != nil || !strings.Contains(answer, "Fpmd-Outcome: worker_died") {
		t.Errorf("got %q, %v", answer, err)
	}
	d.waitLogTimes("msg=\"worker gone\"", 3)
	if n := strings.Count(d.log.String(), "msg=\"worker gone\""); n != 3 {
		t.Errorf("%d workers have died of it", n)
	}
}
