package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// deafWorker answers before it has the body, once the socket takes no more of
// it, and then reads nothing more.
const deafWorker = `
import array, fcntl, os, signal, socket, struct, termios, time
def unread(c):
    n = array.array("i", [0])
    fcntl.ioctl(c, termios.FIONREAD, n)
    return n[0]
listener = socket.socket(fileno=int(os.environ["FPMD_LISTEN_FD"]))
os.write(int(os.environ["FPMD_HANDSHAKE_FD"]), b"1|1|unix|1|exchange\n")
kept = []
while True:
    c, _ = listener.accept()
    kept.append(c)
    c.sendall(struct.pack("<BBHI", 16, 0, 1, 0))
    if c.recv(1):
        before = -1
        while unread(c) != before or before < 100000:
            before = unread(c)
            time.sleep(0.3)
        block = b"Status: 200 OK\r\nContent-Length: 2\r\n\r\n"
        c.sendall(struct.pack("<BBHIHH", 17, 1, 200, 4 + len(block) + 2, len(block), 1) + block + b"hi")
        signal.pause()
`

// A worker that answers and leaves the rest of the body unread costs itself
// its life, not the supervisor.
func TestWorkerLeavesBodyUnread(t *testing.T) {
	t.Parallel()
	dir := appDir(t)
	script := filepath.Join(dir, "deaf.py")
	write(t, script, deafWorker)
	d := serve(t, dir, poolConfig(dir, fmt.Sprintf("command = [%q, %q]\nworkers = 1\nstop_timeout = \"1s\"\n", interpreter, script)))

	whole := fcgiRequest("/")
	c, err := net.Dial("unix", d.sock())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	go func() { // ends with c
		c.Write(whole[:len(whole)-8]) // all but the end of the body
		part := make([]byte, 32<<10)
		record := append([]byte{1, 5, 0, 1, byte(len(part) >> 8), byte(len(part)), 0, 0}, part...)
		for range 64 {
			if _, err := c.Write(record); err != nil {
				return
			}
		}
	}()
	answer, err := io.ReadAll(c)
	if err != nil && len(answer) == 0 {
		t.Fatal(err)
	}
	if !bytes.Contains(answer, []byte("hi")) {
		t.Errorf("answer %q, want the worker's", answer)
	}
	d.waitLog("worker gone")
	d.waitLogTimes("worker ready", 2)
	d.signal(syscall.SIGTERM)
	if code := d.waitExit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
}
