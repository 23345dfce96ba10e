package main

import (
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const bigApp = `
def application(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/big":
        return (b"x" * 65536 for _ in range(1600))
    if environ["PATH_INFO"] == "/page":
        return (b"x" * 65536 for _ in range(9))
    return [b"%d" % len(body)]
`

// fcgiUpload begins a request with a body: all but the body. length is its CONTENT_LENGTH; "": none.
func fcgiUpload(length string) []byte {
	b := fcgiRequest("/")
	params := []byte(nil)
	for _, kv := range [][2]string{{"REQUEST_METHOD", "POST"}, {"SCRIPT_NAME", "/"}, {"REQUEST_URI", "/"}, {"CONTENT_LENGTH", length}} {
		params = append(params, byte(len(kv[0])), byte(len(kv[1])))
		params = append(append(params, kv[0]...), kv[1]...)
	}
	b = append(b[:16:16], 1, 4, 0, 1, 0, byte(len(params)), 0, 0)
	return append(append(b, params...), 1, 4, 0, 1, 0, 0, 0, 0)
}

// A client that is too slow to send its request, or to take its answer, is
// given up; before a request is there, or flows, it takes no worker.
func TestSlowClients(t *testing.T) {
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), bigApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 1\nclient_timeout = \"1s\"\nrequest_timeout = \"1s\""))
	dial := func() net.Conn {
		c, err := net.Dial("unix", d.sock())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		return c
	}
	served := func(when string) {
		t.Helper()
		if body, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(body, "\r\n\r\n0") {
			t.Errorf("%s, another request got %q, %v", when, body, err)
		}
	}
	for name, length := range map[string]string{"a long body": "10485760", "a short body": "1000", "a body of unknown length": ""} {
		t.Run(name, func(t *testing.T) {
			c := dial()
			if _, err := c.Write(fcgiUpload(length)); err != nil {
				t.Fatal(err)
			}
			go func() { // ends with the connection
				for _, err := c.Write([]byte{1, 5, 0, 1, 4, 0, 0, 0}); err == nil; _, err = c.Write([]byte("x")) { // a record of 1 KiB
					time.Sleep(20 * time.Millisecond)
				}
			}()
			if length != "" {
				served("while it sends")
			}
			answer, _ := io.ReadAll(c) // may end in a reset: it sends on
			if !strings.Contains(string(answer), "Status: 408 Request Timeout") || !strings.Contains(string(answer), "Fpmd-Outcome: slow_client") {
				t.Errorf("answered with %.200q", answer)
			}
			served("afterwards")
		})
	}
	t.Run("a long answer", func(t *testing.T) {
		c := dial()
		if _, err := c.Write(fcgiRequest("/big")); err != nil {
			t.Fatal(err)
		}
		d.waitLog("outcome=slow_client")
		d.waitLog("it took")
		served("afterwards")
	})
	if log := d.log.String(); strings.Contains(log, "worker gone") {
		t.Errorf("slow clients have cost a worker:\n%s", log)
	}
}
