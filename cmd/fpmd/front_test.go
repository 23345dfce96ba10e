package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fpmd/fcgi"
	"fpmd/protocol"
)

// application answers at a Unix socket until the test's end.
func application(t testing.TB, path string, handler func(*fcgi.Request)) frontPool {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &fcgi.Server{Handler: handler}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }() // ends with s
	t.Cleanup(func() {
		s.Close()
		if err := <-served; !errors.Is(err, fcgi.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return frontPool{Name: "app", Network: "unix", Address: path}
}

func frontFor(t *testing.T, pools ...frontPool) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(newFront(pools))
	t.Cleanup(s.Close)
	return s
}

// paramLines answers with what was asked, a line for each parameter.
func paramLines(r *fcgi.Request) {
	var b bytes.Buffer
	b.WriteString("Content-Type: text/plain\r\n\r\n")
	for rest := r.Params(); len(rest) > 0; {
		var name, value []byte
		var err error
		if name, value, rest, err = fcgi.NextParam(rest); err != nil {
			fmt.Fprintf(&b, "%v", err)
			break
		}
		fmt.Fprintf(&b, "%s=%s\n", name, value)
	}
	r.Write(b.Bytes())
}

// A pool gets from the front what nginx sends with its stock parameters, warts included.
func TestFrontSendsWhatNginxSends(t *testing.T) {
	s := frontFor(t, application(t, filepath.Join(t.TempDir(), "s"), paramLines))
	for _, c := range []struct {
		name    string
		request string
		want    []string
		not     []string
	}{
		{
			"plain GET", "GET /a HTTP/1.1\r\nHost: h:81\r\n\r\n",
			[]string{
				"REQUEST_METHOD=GET", "QUERY_STRING=", "CONTENT_TYPE=", "CONTENT_LENGTH=", "SCRIPT_NAME=/a", "REQUEST_URI=/a", "DOCUMENT_URI=/a",
				"SERVER_PROTOCOL=HTTP/1.1", "REQUEST_SCHEME=http", "GATEWAY_INTERFACE=CGI/1.1", "REMOTE_ADDR=127.0.0.1", "SERVER_ADDR=127.0.0.1", "SERVER_NAME=h",
				"REDIRECT_STATUS=200", "HTTP_HOST=h:81",
			},
			[]string{"PATH_INFO", "HTTPS"},
		},
		{
			"path to clean and decode", "GET /x//y/../%2Fz%20%C3%A4/?a=%20b HTTP/1.1\r\nHost: h\r\n\r\n",
			[]string{"SCRIPT_NAME=/x/z ä/", "DOCUMENT_URI=/x/z ä/", "REQUEST_URI=/x//y/../%2Fz%20%C3%A4/?a=%20b", "QUERY_STRING=a=%20b"},
			nil,
		},
		{
			"field sent twice", "GET / HTTP/1.1\r\nHost: h\r\nX-Two: 1\r\nX-Two: 2\r\nProxy: evil\r\n\r\n",
			[]string{"HTTP_X_TWO=1\nHTTP_X_TWO=2", "HTTP_PROXY=evil"},
			nil,
		},
		{
			"field with an underscore", "GET / HTTP/1.1\r\nHost: h\r\nX_Forged: 1\r\n\r\n",
			nil,
			[]string{"FORGED"},
		},
		{
			"body", "POST / HTTP/1.1\r\nHost: h\r\nContent-Type: text/x\r\nContent-Length: 3\r\n\r\nabc",
			[]string{"CONTENT_LENGTH=3", "CONTENT_TYPE=text/x", "HTTP_CONTENT_LENGTH=3", "HTTP_CONTENT_TYPE=text/x"},
			nil,
		},
		{
			"body of unknown length", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
			[]string{"CONTENT_LENGTH="},
			[]string{"TRANSFER_ENCODING"},
		},
		{
			"no body, said so", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
			[]string{"CONTENT_LENGTH=0"},
			nil,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			nc, err := net.Dial("tcp", s.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			io.WriteString(nc, strings.Replace(c.request, "\r\n", "\r\nConnection: close\r\n", 1))
			answer, err := io.ReadAll(nc)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range c.want {
				if !strings.Contains(string(answer), "\n"+w+"\n") {
					t.Errorf("no %q in\n%s", w, answer)
				}
			}
			for _, n := range c.not {
				if strings.Contains(string(answer), n) {
					t.Errorf("%q in\n%s", n, answer)
				}
			}
		})
	}
}

// Each pool is under its host, its name and its script name; the first has the
// rest. Its application is always asked below its script name.
func TestFrontRoutes(t *testing.T) {
	f := newFront([]frontPool{
		{Name: "main"},
		{Name: "blog", ScriptName: "/blog"},
		{Name: "shop", ScriptName: "/a/shop"},
		{Name: "api"},
	})
	for _, c := range []struct{ host, path, pool, uri string }{
		{"h", "/", "main", "/"},
		{"h:8080", "/x/y/", "main", "/x/y/"},
		{"h", "/main/x", "main", "/x"},
		{"h", "/api/x", "api", "/x"},
		{"h", "/api/", "api", "/"},
		{"h", "/api", "", "/api/"},
		{"h", "/api?q=1", "", "/api/?q=1"},
		{"h", "/apis", "main", "/apis"},
		{"h", "/blog", "blog", "/blog"},
		{"h", "/blog/x", "blog", "/blog/x"},
		{"h", "/shop/x", "shop", "/a/shop/x"},
		{"h", "/a/shop/x", "shop", "/a/shop/x"},
		{"h", "/a/shops", "main", "/a/shops"},
		{"api.localhost", "/x", "api", "/x"},
		{"API.localhost:8080", "/main/x", "api", "/main/x"},
		{"blog.localhost", "/x", "blog", "/blog/x"},
		{"blog.localhost", "/blog/x", "blog", "/blog/x"},
		{"nobody.localhost", "/x", "main", "/x"},
		{"h", "/api/../main/x", "main", "/x"},
		{"h", "/..", "main", "/"},
	} {
		p, uri := f.route(httptest.NewRequest("GET", "http://"+c.host+c.path, nil))
		name := ""
		if p != nil {
			name = p.Name
		}
		if name != c.pool || uri != c.uri {
			t.Errorf("%s%s: got %q, %q; want %q, %q", c.host, c.path, name, uri, c.pool, c.uri)
		}
	}
}

// A client that sends a piece only when the one before has been answered gets
// all its answers: nothing is held back in either direction.
func TestFrontStreamsBothWays(t *testing.T) {
	s := frontFor(t, application(t, filepath.Join(t.TempDir(), "s"), func(r *fcgi.Request) {
		r.Write([]byte("Content-Type: text/plain\r\n\r\n"))
		b := make([]byte, 100)
		for {
			n, err := r.Read(b)
			r.Write(bytes.ToUpper(b[:n]))
			if err != nil {
				return
			}
		}
	}))
	body, send := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL, body)
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got := make([]byte, 5)
	for range 10 {
		io.WriteString(send, "piece")
		if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != "PIECE" {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	send.Close()
	if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
		t.Errorf("then %q, %v", rest, err)
	}
}

// An application sees that its HTTP client has left.
func TestFrontClientLeaves(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	s := frontFor(t, application(t, filepath.Join(t.TempDir(), "s"), func(r *fcgi.Request) {
		close(entered)
		<-r.Gone()
		close(left)
	}))
	ctx, leave := context.WithCancel(t.Context())
	go func() { <-entered; leave() }() // ends when the application was asked
	if _, _, err := fetch(ctx, "GET", s.URL, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-left
}

// Status, fields and what belongs to no body go through; what is cut short, the client sees.
func TestFrontAnswers(t *testing.T) {
	for _, c := range []struct {
		name, method, answer string
		cut                  bool
		status               int
		field                string // a field that the client must see
		body                 string
		err                  bool
	}{
		{"no Status", "GET", "Content-Type: text/plain\r\n\r\nbody", false, 200, "Content-Type: text/plain", "body", false},
		{"Status", "GET", "Status: 404 Gone Fishing\r\nX-A: 1\r\n\r\n", false, 404, "X-A: 1", "", false},
		{"Location alone", "GET", "Location: /x\r\n\r\n", false, 302, "Location: /x", "", false},
		{"field twice", "GET", "Set-Cookie: a\r\nSet-Cookie: b\r\n\r\n", false, 200, "Set-Cookie: b", "", false},
		{"HEAD with a length", "HEAD", "Content-Length: 4\r\n\r\n", false, 200, "Content-Length: 4", "", false},
		{"HEAD with a body all the same", "HEAD", "Content-Length: 4\r\n\r\nbody", false, 200, "Content-Length: 4", "", false},
		{"not modified", "GET", "Status: 304 Not Modified\r\nEtag: e\r\n\r\n", false, 304, "Etag: e", "", false},
		{"cut after the head", "GET", "X-A: 1\r\n\r\nhalf", true, 200, "X-A: 1", "half", true},
		{"cut in the head", "GET", "X-A: 1\r\n", true, 502, "", "502 Bad Gateway\n\npool app: header block of the answer: unexpected EOF\n", false},
		{"no answer", "GET", "", true, 502, "", "unexpected EOF\n", false},
		{"no header block", "GET", "<html>", false, 502, "", "", false},
		{"two lengths", "GET", "Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody", false, 502, "", `Content-Length ["4" "4"], want one number` + "\n", false},
		{"length with a sign", "GET", "Content-Length: +4\r\n\r\nbody", false, 502, "", "", false},
		{"no answer yet", "GET", "Status: 103 Early Hints\r\n\r\nbody", false, 502, "", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := frontFor(t, application(t, filepath.Join(t.TempDir(), "s"), func(r *fcgi.Request) {
				r.Write([]byte(c.answer))
				if c.cut {
					r.Cut()
				}
			}))
			req, err := http.NewRequestWithContext(t.Context(), c.method, s.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if res.StatusCode != c.status || !strings.HasSuffix(string(body), c.body) || (err != nil) != c.err {
				t.Errorf("got %d %q, %v; want %d %q", res.StatusCode, body, err, c.status, c.body)
			}
			if name, value, _ := strings.Cut(c.field, ": "); name != "" && !slices.Contains(res.Header[name], value) {
				t.Errorf("got %v, want %s", res.Header, c.field)
			}
		})
	}
}

// A pool that nobody serves is a page that says so.
func TestFrontPoolUnreachable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := frontFor(t, frontPool{Name: "app", Network: "unix", Address: path})
	if status, body := get(t, s.URL); status != 502 || !strings.Contains(body, "pool app: dial unix "+path+": connect: no such file") {
		t.Errorf("got %d %q", status, body)
	}
}

// When it is to end, the front answers what it has begun, and takes nothing new.
func TestFrontEndsGently(t *testing.T) {
	entered, answer := make(chan struct{}), make(chan struct{})
	p := application(t, filepath.Join(t.TempDir(), "s"), func(r *fcgi.Request) {
		close(entered)
		<-answer
		r.Write([]byte("\r\nanswered"))
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- serveFront(ctx, l, newFront([]frontPool{p})) }() // ends with ctx
	got := make(chan string, 1)
	go func() { // ends with the answer
		_, body, err := fetch(context.Background(), "GET", "http://"+l.Addr().String(), nil)
		got <- fmt.Sprint(body, err)
	}()
	<-entered
	stop()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			break
		}
		nc.Close()
		if time.Now().After(end) {
			t.Fatal("still accepting")
		}
	}
	close(answer)
	if g := <-got; g != "answered<nil>" {
		t.Errorf("got %q", g)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// Who only asks need not be who could start that fpmd: the commands that ask read a
// configuration that check refuses to the same user.
func TestAskingAsAnotherUser(t *testing.T) {
	dir := appDir(t)
	config := filepath.Join(dir, "fpmd.toml")
	write(t, config, fmt.Sprintf("[pool.app]\nlisten = %q\nlisten_group = \"root\"\ncommand = [%q]\nuser = \"root\"\nallow_root = true\nenv = { A = \"${FPMD_TEST_NONE}\" }\n",
		filepath.Join(dir, "app.sock"), filepath.Join(dir, "none/app")))
	program := plainBinary(t, dir)
	for _, tt := range []struct {
		args string
		code int
		says string
	}{
		{"check", exitConfig, "fpmd is not root"},
		{"request app /", exitUnavailable, "fpmd: pool app: dial unix "},
		{"completion --pools", 0, "app\n"},
	} {
		cmd := exec.Command(program, append(strings.Fields(tt.args), "-c", config)...)
		cmd.Env = append(os.Environ(), "FPMD_TEST_MAIN=1")
		cmd.SysProcAttr = asPlain()
		out, _ := cmd.CombinedOutput() // its exit code says what there is to say
		if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.Contains(string(out), tt.says) {
			t.Errorf("%s: exit code %d, %q: want %d and %q", tt.args, code, out, tt.code, tt.says)
		}
	}
}

// fpmd request asks a pool where it listens, and its exit code says how it went.
func TestRequestCommand(t *testing.T) {
	dir := appDir(t)
	config := filepath.Join(dir, "fpmd.toml")
	write(t, config, poolConfig(dir, "command = [\"/bin/true\"]"))
	write(t, filepath.Join(dir, "body"), "from a file")
	application(t, filepath.Join(dir, "app.sock"), func(r *fcgi.Request) {
		body, _ := io.ReadAll(r)
		var ps []string
		for rest := r.Params(); len(rest) > 0; {
			var name, value []byte
			name, value, rest, _ = fcgi.NextParam(rest)
			ps = append(ps, string(name)+"="+string(value))
		}
		has := func(s string) bool { return slices.Contains(ps, s) }
		status := "200 OK"
		switch {
		case has("SCRIPT_NAME=/missing"):
			status = "404 Not Found"
		case has("SCRIPT_NAME=/cut"):
			r.Write([]byte("Content-Type: text/plain\r\n\r\nhalf"))
			r.Cut()
			return
		case has("SCRIPT_NAME=/noisy"):
			r.WriteError([]byte("noise\n"))
		}
		fmt.Fprintf(r, "Status: %s\r\nX-B: 2\r\nX-A: 1\r\n\r\n%s\n%s", status, strings.Join(ps, "\n"), body)
	})
	for _, c := range []struct {
		name   string
		args   []string
		code   int
		out    []string
		errOut string
	}{
		{"GET", []string{"app", "/a?q=1"}, 0, []string{"REQUEST_METHOD=GET\n", "SCRIPT_NAME=/a\n", "QUERY_STRING=q=1\n", "REQUEST_URI=/a?q=1\n", "CONTENT_LENGTH=\n"}, ""},
		{"options anywhere", []string{"-X", "PUT", "app", "-H", "X-One: 1", "/", "-H", "X-One: 2", "-H", "Host: h"}, 0, []string{"REQUEST_METHOD=PUT\n", "HTTP_X_ONE=1\nHTTP_X_ONE=2\n", "HTTP_HOST=h\n", "SERVER_NAME=h\n"}, ""},
		{"body", []string{"app", "/", "-d", "a=b"}, 0, []string{"REQUEST_METHOD=POST\n", "CONTENT_LENGTH=3\n", "CONTENT_TYPE=application/x-www-form-urlencoded\n", "\na=b"}, ""},
		{"body from a file", []string{"app", "/", "-d", "@" + filepath.Join(dir, "body"), "-H", "content-type: text/plain"}, 0, []string{"CONTENT_LENGTH=11\n", "CONTENT_TYPE=text/plain\n", "\nfrom a file"}, ""},
		{"parameter replaced", []string{"app", "/", "--param", "REMOTE_ADDR=1.2.3.4", "--param", "NEW=x=y"}, 0, []string{"REMOTE_ADDR=1.2.3.4\n", "NEW=x=y\n"}, ""},
		{"head", []string{"app", "/", "-i"}, 0, []string{"Status: 200 OK\r\nX-A: 1\r\nX-B: 2\r\n\r\n"}, ""},
		{"verbose", []string{"app", "/", "-v"}, 0, nil, "< Status: 200 OK\n< X-A: 1\n"},
		{"standard error", []string{"app", "/noisy"}, 0, nil, "noise\n"},
		{"404", []string{"app", "/missing"}, 22, []string{"SCRIPT_NAME=/missing\n"}, "pool app: GET /missing: 404 Not Found"},
		{"cut short", []string{"app", "/cut"}, 1, []string{"half"}, "pool app: body of the answer: unexpected EOF"},
		{"no such pool", []string{"other", "/"}, 64, nil, `no pool "other" in ` + config + `, which has: app`},
		{"no path", []string{"app"}, 64, nil, "request wants POOL and PATH"},
		{"path without slash", []string{"app", "x"}, 64, nil, `path "x" does not begin with /`},
		{"bad field", []string{"app", "/", "-H", "nonsense"}, 64, nil, "want 'Name: value'"},
		{"unknown option", []string{"app", "/", "-z"}, 64, nil, "-z"},
		{"no body file", []string{"app", "/", "-d", "@/nonexistent"}, 1, nil, "-d: open /nonexistent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			err := cmdRequest(t.Context(), append(c.args, "-c", config), &out, &errOut)
			if got := exitCode(err); got != c.code {
				t.Errorf("exit code %d (%v), want %d", got, err, c.code)
			}
			for _, w := range c.out {
				if !strings.Contains(out.String(), w) {
					t.Errorf("no %q in\n%s", w, out.String())
				}
			}
			if all := errOut.String() + fmt.Sprint(err); !strings.Contains(all, c.errOut) {
				t.Errorf("no %q in\n%s", c.errOut, all)
			}
		})
	}
	sock := filepath.Join(dir, "app.sock")
	for _, c := range []struct {
		name  string
		leave func(*net.UnixListener)
		cause string
	}{
		{"a socket that nobody listens on", func(l *net.UnixListener) { l.SetUnlinkOnClose(false) }, "connection refused"},
		{"without a socket", func(*net.UnixListener) {}, "no such file or directory"},
	} {
		if err := os.Remove(sock); err != nil {
			t.Fatal(err)
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		c.leave(l)
		l.Close()
		err = cmdRequest(t.Context(), []string{"app", "/", "-c", config}, io.Discard, io.Discard)
		want := c.cause + ": fpmd does not run, or listens elsewhere than " + config + " says (listen of [pool.app])"
		if exitCode(err) != exitUnavailable || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v, exit code %d", c.name, err, exitCode(err))
		}
	}
	if err := cmdRequest(t.Context(), []string{"app", "/", "-c", "/nonexistent"}, io.Discard, io.Discard); exitCode(err) != exitConfig {
		t.Errorf("without a configuration: %v, exit code %d", err, exitCode(err))
	}
	var help bytes.Buffer
	if err := cmdRequest(t.Context(), []string{"--help"}, &help, io.Discard); err != nil || help.String() != requestHelp {
		t.Errorf("--help: %v, %q", err, help.String())
	}
}

// Whatever head and body an application answers with, the front's client has one
// well-formed answer: what fcgi.ReadResponseHeader made of it, with the same status,
// fields and body, or 502 where that makes nothing of it; and an answer that is not as long
// as it says never looks whole.
func FuzzFront(f *testing.F) {
	for _, answer := range []string{
		"Status: 200 OK\r\nContent-Type: text/plain\r\n\r\nbody",
		"Status: 404 Not Found\nX: a\nX: b\n\nbody",
		"Location: /x\r\n\r\n",
		"Status: 204 No Content\r\n\r\nnot there",
		"Status: 304 Not Modified\r\nETag: \"x\"\r\n\r\n",
		"Status: 103 Early Hints\r\nLink: x\r\n\r\nbody",
		"Status: 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nbody",
		"Status: 999 x\r\n\r\nbody",
		"Content-Length: 4\r\n\r\nbody",
		"Content-Length: 3\r\n\r\nbody",
		"Content-Length: 5\r\n\r\nbody",
		"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
		"Content-Length: x\r\n\r\nbody",
		"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
		"X: a\r\n b\r\nTrailer: Y\r\nConnection: close, X\r\n\r\nbody",
		"X: a\rY: b\r\n\r\nbody",
		"<html>no head</html>",
		"",
	} {
		f.Add([]byte(answer))
	}
	var answer atomic.Value
	app := application(f, filepath.Join(f.TempDir(), "s"), func(r *fcgi.Request) { r.Write(answer.Load().([]byte)) })
	l, err := net.Listen("unix", filepath.Join(f.TempDir(), "http")) // TCP would run out of ports
	if err != nil {
		f.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: newFront([]frontPool{app}), ErrorLog: log.New(io.Discard, "", 0)}}
	s.Start()
	f.Cleanup(s.Close)
	f.Fuzz(func(t *testing.T, in []byte) {
		answer.Store(in)
		nc, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(patience))
		io.WriteString(nc, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		all, err := io.ReadAll(nc)
		if err != nil {
			t.Fatal(err)
		}
		from := bufio.NewReader(bytes.NewReader(in))
		status, _, header, headErr := fcgi.ReadResponseHeader(from)
		want, _ := io.ReadAll(from)
		untrue := false
		if lengths := header["Content-Length"]; lengths != nil {
			n, err := strconv.ParseUint(lengths[0], 10, 63)
			if err != nil || len(lengths) > 1 {
				headErr = errors.Join(err, errors.New("not one length"))
			}
			untrue = int(n) != len(want)
		}
		if headErr != nil {
			status, header, untrue = http.StatusBadGateway, nil, false
		}
		if status == http.StatusNoContent || status == http.StatusNotModified {
			want, untrue = nil, false
		}
		br := bufio.NewReader(bytes.NewReader(all))
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			if !untrue || len(all) > 0 {
				t.Fatalf("%q became %q: %v", in, all, err)
			}
			return
		}
		body, err := io.ReadAll(res.Body)
		rest, _ := io.ReadAll(br)
		switch {
		case res.StatusCode != status, len(rest) > 0:
			t.Fatalf("%q became %q, want %d and nothing behind it", in, all, status)
		case untrue:
			if err == nil || !bytes.HasPrefix(want, body) {
				t.Fatalf("%q became %q, which looks whole", in, all)
			}
		case err != nil, header != nil && !bytes.Equal(body, want):
			t.Fatalf("%q became %q, %v; want the body %q", in, all, err, want)
		}
		for _, name := range []string{"Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Trailer", "Content-Length"} {
			header.Del(name) // of this connection, not of the application's
		}
		for name, values := range header {
			if got := res.Header[name]; !slices.EqualFunc(got, values, sameValue) {
				t.Fatalf("%q became %q: %s is %q, want %q", in, all, name, got, values)
			}
		}
	})
}

// sameValue compares two values of a field. A line that continues one with nothing leaves
// a space at its end, which does not count.
func sameValue(a, b string) bool { return strings.TrimRight(a, " ") == strings.TrimRight(b, " ") }

// A header block that the supervisor lets pass is read by who speaks FastCGI to it with
// the same status, and to its end; and what fpmd request -i writes of any block is
// that block: read again, it says the same.
func FuzzResponseHead(f *testing.F) {
	for _, block := range []string{
		"Status: 200 OK\r\nContent-Type: text/plain\r\nX: a\r\nX: b\r\n\r\n", "Status: 200 \r\n\r\n", "Status: 200\r\nLocation: /\r\n\r\n",
		"Location: /\r\n\r\n", "x-y: \ta\t\r\n\r\n", "A: b\n c\n\n", "\r\n",
	} {
		f.Add([]byte(block), uint16(200))
	}
	f.Fuzz(func(t *testing.T, block []byte, code uint16) {
		passes := code >= 200 && code <= 599 && protocol.CheckHeaderBlock(block, code) == nil
		from := bufio.NewReader(bytes.NewReader(block))
		status, reason, header, err := fcgi.ReadResponseHeader(from)
		if passes && (err != nil || status != int(code) || from.Buffered() > 0) {
			t.Fatalf("%q passes with %d, read as %d, %v, %d bytes left", block, code, status, err, from.Buffered())
		}
		if err != nil {
			return
		}
		var b bytes.Buffer
		writeHead(&b, status, reason, header, "", "\r\n")
		b.WriteString("\r\n")
		written := b.String()
		againStatus, againReason, again, err := fcgi.ReadResponseHeader(bufio.NewReader(&b))
		if err != nil || againStatus != status || !sameValue(againReason, reason) ||
			!maps.EqualFunc(again, header, func(a, b []string) bool { return slices.EqualFunc(a, b, sameValue) }) {
			t.Fatalf("%q written as %q: %d %q %v, %v; want %d %q %v", block, written, againStatus, againReason, again, err, status, reason, header)
		}
	})
}
