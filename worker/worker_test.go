package worker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"log"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"fpmd/protocol"
)

// A supervisor is the other end of one connection to an application.
type supervisor struct {
	*net.UnixConn
	number uint64
	log    *lines
}

// lines is a log that may be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// host has app served until the test ends.
func serveApp(t testing.TB, app Application) *supervisor {
	t.Helper()
	s := &supervisor{log: new(lines)}
	h := &host{app: app, log: log.New(s.log, "", 0)}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "w"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	page, f, err := protocol.NewPage()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	w := &protocol.Worker{Listener: l, Page: page, Slots: 1, Handle: h.handle, Report: func(err error) { h.logf("%v", err) }}
	served := make(chan error, 1)
	go func() { served <- w.Serve() }()
	t.Cleanup(func() {
		w.Drain()
		if err := <-served; err != nil {
			t.Error(err)
		}
		page.Close()
	})
	s.dial(t, l.Addr().String())
	return s
}

// dial connects, or connects again, and waits for the greeting.
func (s *supervisor) dial(t testing.TB, addr string) {
	t.Helper()
	nc, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: addr, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	s.UnixConn = nc
	if h, _, err := s.read(); err != nil || h.Type != protocol.Greeting {
		t.Fatalf("greeted with %+v, %v", h, err)
	}
}

func (s *supervisor) read() (protocol.Header, []byte, error) {
	var b [protocol.HeaderLen]byte
	if _, err := io.ReadFull(s, b[:]); err != nil {
		return protocol.Header{}, nil, err
	}
	h, err := protocol.ParseHeader(b[:])
	if err != nil {
		return h, nil, err
	}
	p := make([]byte, h.Length)
	_, err = io.ReadFull(s, p)
	return h, p, err
}

// send sends a request; more says that its body does not end with it.
func (s *supervisor) send(body string, more bool, environ ...string) {
	s.Write(s.request(body, more, environ...))
}

func (s *supervisor) request(body string, more bool, environ ...string) []byte {
	var block []byte
	given := map[string]bool{}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		given[name] = true
		block = protocol.AppendPair(block, name, value)
	}
	for _, kv := range []string{"REQUEST_METHOD=GET", "REQUEST_URI=/", "SERVER_PROTOCOL=HTTP/1.1", "SCRIPT_NAME=", "PATH_INFO=/", "QUERY_STRING=", "SERVER_NAME=localhost", "SERVER_PORT=80"} {
		if name, value, _ := strings.Cut(kv, "="); !given[name] {
			block = protocol.AppendPair(block, name, value)
		}
	}
	s.number++
	p := binary.LittleEndian.AppendUint64(nil, s.number)
	p = binary.LittleEndian.AppendUint32(p, uint32(len(block)))
	p = append(append(p, block...), body...)
	h := protocol.Header{Type: protocol.Request, Flags: protocol.FlagLast, Length: uint32(len(p))}
	if more {
		h.Flags = 0
	}
	b := make([]byte, protocol.HeaderLen)
	protocol.PutHeader(b, h)
	return append(b, p...)
}

// An answer is what a supervisor has got.
type answer struct {
	status int
	header http.Header
	body   string
	frames int
	failed bool
	cut    bool
}

// answer reads frames until the answer has ended.
func (s *supervisor) answer(t testing.TB) answer {
	t.Helper()
	var a answer
	for {
		h, p, err := s.read()
		if err != nil {
			t.Fatalf("answer so far %+v: %v; log: %s", a, err, s.log)
		}
		a.frames++
		switch h.Type {
		case protocol.Response:
			a.status, a.failed = int(h.Aux), h.Flags&protocol.FlagFailed != 0
			n := binary.LittleEndian.Uint16(p)
			block := p[4 : 4+n]
			if err := protocol.CheckHeaderBlock(block, h.Aux); err != nil {
				t.Fatal(err)
			}
			header, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(block))).ReadMIMEHeader()
			if err != nil {
				t.Fatal(err)
			}
			header.Del("Status")
			a.header, a.body = http.Header(header), string(p[4+n:])
		case protocol.Data:
			a.body += string(p)
		case protocol.Cut:
			a.cut, a.failed = true, h.Flags&protocol.FlagFailed != 0
			return a
		default:
			t.Fatalf("%v in an answer", h.Type)
		}
		if h.Last() {
			return a
		}
	}
}

func (s *supervisor) do(t testing.TB, environ ...string) answer {
	t.Helper()
	s.send("", false, environ...)
	return s.answer(t)
}

// plain starts a plain answer, of length bytes unless that is negative.
func plain(start StartResponse, length int) error {
	header := http.Header{"Content-Type": {"text/plain"}}
	if length >= 0 {
		header.Set("Content-Length", fmt.Sprint(length))
	}
	return start(200, header)
}

// app makes an Application of its sequence.
func app(f func(environ Environ, start StartResponse, yield func([]byte, error) bool)) Application {
	return func(_ context.Context, environ Environ, start StartResponse) iter.Seq2[[]byte, error] {
		return func(yield func([]byte, error) bool) { f(environ, start, yield) }
	}
}

// However an application answers, and fails, the client gets what it should,
// and the next request is answered.
func TestApplicationAnswers(t *testing.T) {
	type yield = func([]byte, error) bool
	tests := []struct {
		name string
		app  Application
		want answer
		log  string
	}{
		{"one block of known length is one frame", app(func(_ Environ, start StartResponse, yield yield) {
			plain(start, 5)
			yield([]byte("hello"), nil)
		}), answer{status: 200, body: "hello", frames: 1}, ""},
		{"each block is a frame", app(func(_ Environ, start StartResponse, yield yield) {
			plain(start, 4)
			_ = yield([]byte("ab"), nil) && yield([]byte("cd"), nil)
		}), answer{status: 200, body: "abcd", frames: 2}, ""},
		{"unknown length", app(func(_ Environ, start StartResponse, yield yield) {
			plain(start, -1)
			yield([]byte("ab"), nil)
		}), answer{status: 200, body: "ab", frames: 2}, ""},
		{"an empty block sends the headers", app(func(_ Environ, start StartResponse, yield yield) {
			plain(start, 2)
			_ = yield(nil, nil) && yield([]byte("ab"), nil)
		}), answer{status: 200, body: "ab", frames: 2}, ""},
		{
			"no block", app(func(_ Environ, start StartResponse, yield yield) { plain(start, -1) }),
			answer{status: 200, frames: 1},
			"",
		},
		{"no sequence", func(_ context.Context, _ Environ, start StartResponse) iter.Seq2[[]byte, error] {
			plain(start, -1)
			return nil
		}, answer{status: 200, frames: 1}, ""},
		{"no content", app(func(_ Environ, start StartResponse, yield yield) {
			start(204, nil)
			yield([]byte("not to be sent"), nil)
		}), answer{status: 204, frames: 1}, ""},
		{"not modified", app(func(_ Environ, start StartResponse, yield yield) {
			start(304, http.Header{"Content-Length": {"100"}})
		}), answer{status: 304, frames: 1}, ""},
		{"started again, before a block", app(func(_ Environ, start StartResponse, yield yield) {
			plain(start, 7)
			plain(start, 2)
			yield([]byte("ab"), nil)
		}), answer{status: 200, body: "ab", frames: 1}, ""},
		{"started again, too late", app(func(_ Environ, start StartResponse, yield yield) {
			plain(start, 2)
			if yield(nil, nil) {
				yield(nil, plain(start, 2))
			}
		}), answer{status: 200, frames: 2, cut: true, failed: true}, "sent already"},
		{
			"error before the answer", app(func(_ Environ, _ StartResponse, yield yield) { yield(nil, errors.New("no database")) }),
			answer{status: 500, body: "500 Internal Server Error: app_error\n", frames: 1, failed: true},
			`GET "/" (): no database`,
		},
		{"error after start", app(func(_ Environ, start StartResponse, yield yield) {
			plain(start, 2)
			yield(nil, errors.New("no database"))
		}), answer{status: 500, body: "500 Internal Server Error: app_error\n", frames: 1, failed: true}, "no database"},
		{"error in the answer", app(func(_ Environ, start StartResponse, yield yield) {
			plain(start, -1)
			_ = yield([]byte("ab"), nil) && yield(nil, errors.New("no database"))
		}), answer{status: 200, body: "ab", frames: 2, cut: true, failed: true}, "no database"},
		{
			"panic before the answer", app(func(Environ, StartResponse, yield) { panic("oh no") }),
			answer{status: 500, body: "500 Internal Server Error: app_error\n", frames: 1, failed: true},
			"worker_test.go",
		},
		{
			"panic in the call itself", func(context.Context, Environ, StartResponse) iter.Seq2[[]byte, error] { panic("oh no") },
			answer{status: 500, body: "500 Internal Server Error: app_error\n", frames: 1, failed: true},
			"panic: oh no",
		},
		{"panic in the answer", app(func(_ Environ, start StartResponse, yield yield) {
			plain(start, 5)
			yield([]byte("ab"), nil)
			panic("oh no")
		}), answer{status: 200, body: "ab", frames: 2, cut: true, failed: true}, "panic: oh no"},
		{"panic behind the answer", app(func(_ Environ, start StartResponse, yield yield) {
			plain(start, 2)
			yield([]byte("ab"), nil)
			panic("oh no")
		}), answer{status: 200, body: "ab", frames: 1}, "panic: oh no"},
		{"yields on after it was told to stop", app(func(_ Environ, start StartResponse, yield yield) {
			plain(start, 1)
			for range 3 {
				yield([]byte("ab"), nil)
			}
		}), answer{status: 200, body: "a", frames: 1}, "more than its Content-Length"},
		{
			"never started", app(func(_ Environ, _ StartResponse, yield yield) { yield([]byte("ab"), nil) }),
			answer{status: 500, body: "500 Internal Server Error: app_error\n", frames: 1, failed: true},
			"before it called start",
		},
		{
			"nothing at all", app(func(Environ, StartResponse, yield) {}),
			answer{status: 500, body: "500 Internal Server Error: app_error\n", frames: 1, failed: true},
			"before it called start",
		},
		{"longer than it said", app(func(_ Environ, start StartResponse, yield yield) {
			plain(start, 3)
			_ = yield([]byte("ab"), nil) && yield([]byte("cd"), nil)
		}), answer{status: 200, body: "abc", frames: 2}, "more than its Content-Length"},
		{"shorter than it said", app(func(_ Environ, start StartResponse, yield yield) {
			plain(start, 3)
			yield([]byte("ab"), nil)
		}), answer{status: 200, body: "ab", frames: 2, cut: true, failed: true}, "less than its Content-Length"},
		{
			"aborts before the answer", app(func(Environ, StartResponse, yield) { panic(http.ErrAbortHandler) }),
			answer{frames: 1, cut: true, failed: true},
			"",
		},
		{"forges a header", app(func(_ Environ, start StartResponse, yield yield) {
			yield(nil, start(200, http.Header{"X": {"a\r\nSet-Cookie: b"}}))
		}), answer{status: 500, body: "500 Internal Server Error: app_error\n", frames: 1, failed: true}, "not fit for a header block"},
		{"forges a status", app(func(_ Environ, start StartResponse, yield yield) {
			yield(nil, start(200, http.Header{"Status": {"404 Not Found"}}))
		}), answer{status: 500, body: "500 Internal Server Error: app_error\n", frames: 1, failed: true}, "the status is given apart"},
		{"speaks for the connection", app(func(_ Environ, start StartResponse, yield yield) {
			yield(nil, start(200, http.Header{"Transfer-Encoding": {"chunked"}}))
		}), answer{status: 500, body: "500 Internal Server Error: app_error\n", frames: 1, failed: true}, "the web server's concern"},
		{"two lengths", app(func(_ Environ, start StartResponse, yield yield) {
			yield(nil, start(200, http.Header{"Content-Length": {"1"}, "content-length": {"2"}}))
		}), answer{status: 500, body: "500 Internal Server Error: app_error\n", frames: 1, failed: true}, "want one number"},
		{
			"status out of range", app(func(_ Environ, start StartResponse, yield yield) { yield(nil, start(99, nil)) }),
			answer{status: 500, body: "500 Internal Server Error: app_error\n", frames: 1, failed: true},
			"want 200 to 599",
		},
		{"headers that are too long", app(func(_ Environ, start StartResponse, yield yield) {
			yield(nil, start(200, http.Header{"X": {strings.Repeat("x", protocol.MaxHeaderBlock)}}))
		}), answer{status: 500, body: "500 Internal Server Error: app_error\n", frames: 1, failed: true}, "at most 65535"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serveApp(t, tt.app)
			for range 2 {
				got := s.do(t)
				got.header = nil
				if fmt.Sprint(got) != fmt.Sprint(tt.want) {
					t.Errorf("got %+v, want %+v", got, tt.want)
				}
			}
			s.Close()
			if tt.log == "" && s.log.String() != "" || !strings.Contains(s.log.String(), tt.log) {
				t.Errorf("logged %q, want %q", s.log, tt.log)
			}
		})
	}
}

// HEAD is answered by what GET would be, without its body.
func TestHead(t *testing.T) {
	s := serveApp(t, app(func(_ Environ, start StartResponse, yield func([]byte, error) bool) {
		plain(start, 5)
		yield([]byte("hello"), nil)
	}))
	if a := s.do(t, "REQUEST_METHOD=HEAD"); a.body != "" || a.header.Get("Content-Length") != "5" || a.frames != 1 {
		t.Errorf("got %+v", a)
	}
	failing := serveApp(t, app(func(Environ, StartResponse, func([]byte, error) bool) { panic("oh no") }))
	if a := failing.do(t, "REQUEST_METHOD=HEAD"); a.body != "" || a.status != 500 || !a.failed {
		t.Errorf("got %+v of a panic", a)
	}
}

// Middleware is around the application: the first sees the request first and
// the answer last.
func TestMiddleware(t *testing.T) {
	mark := func(name string) Middleware {
		return func(next Application) Application {
			return func(ctx context.Context, environ Environ, start StartResponse) iter.Seq2[[]byte, error] {
				environ.Variables["SEEN"] += name
				return next(ctx, environ, func(status int, header http.Header) error {
					header.Add("Seen", name)
					return start(status, header)
				})
			}
		}
	}
	inner := HTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, Variables(r)["SEEN"]) }))
	s := serveApp(t, Wrap(inner, mark("a"), mark("b")))
	if a := s.do(t); a.body != "ab" || fmt.Sprint(a.header["Seen"]) != "[b a]" || a.frames != 1 {
		t.Errorf("got %+v", a)
	}
}

// A sequence is told that the client has left, and the context has ended then.
func TestSequenceStops(t *testing.T) {
	stopped := make(chan error, 1)
	s := serveApp(t, func(ctx context.Context, _ Environ, start StartResponse) iter.Seq2[[]byte, error] {
		return func(yield func([]byte, error) bool) {
			plain(start, -1)
			for yield([]byte("tick\n"), nil) {
			}
			stopped <- ctx.Err()
		}
	})
	s.send("", false)
	s.read()
	s.Close()
	if err := <-stopped; !errors.Is(err, context.Canceled) {
		t.Errorf("context says %v", err)
	}
	if s.log.String() != "" {
		t.Errorf("logged %q: a client that leaves is no error", s.log)
	}
}

// The context of a handler that waits ends when the client leaves, and so do
// its children; and it ends with the exchange.
func TestContextEnds(t *testing.T) {
	type key struct{}
	ended := make(chan context.Context, 1)
	s := serveApp(t, HTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(context.WithValue(r.Context(), key{}, "v"))
		defer cancel()
		if r.URL.Path == "/wait" {
			<-ctx.Done()
		} else if ctx.Err() != nil {
			t.Error("the context has ended in a handler whose client is there")
		}
		ended <- r.Context()
	})))
	s.do(t)
	select { // the answer may be here before the exchange is over there
	case <-(<-ended).Done():
	case <-time.After(time.Minute):
		t.Error("the context has not ended with the exchange")
	}
	s.send("", false, "REQUEST_URI=/wait")
	s.Close()
	if ctx := <-ended; ctx.Err() != context.Canceled {
		t.Errorf("the context says %v", ctx.Err())
	}
}

// A body that the application left a goroutine reading is no other exchange's.
func TestLateReader(t *testing.T) {
	bodies := make(chan io.Reader, 2)
	s := serveApp(t, app(func(environ Environ, start StartResponse, yield func([]byte, error) bool) {
		bodies <- environ.Body
		plain(start, 0)
	}))
	s.send("abc", false)
	s.answer(t)
	late := <-bodies
	s.do(t) // the first exchange is over when the second has begun
	if body := <-bodies; body != http.NoBody {
		t.Errorf("the body of a request without one is %T", body)
	}
	if n, err := late.Read(make([]byte, 1)); n != 0 || !errors.Is(err, http.ErrBodyReadAfterClose) {
		t.Errorf("%d, %v", n, err)
	}
}

// A supervisor that breaks the protocol loses its connection, with a line in the log.
func TestBrokenEnviron(t *testing.T) {
	s := serveApp(t, app(func(Environ, StartResponse, func([]byte, error) bool) { t.Error("the application was called") }))
	s.send("", false, "A=1", "A=2")
	if rest, err := io.ReadAll(s); len(rest) != 0 || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
	if !strings.Contains(s.log.String(), `"A" comes twice`) {
		t.Errorf("logged %q", s.log)
	}
}

// An application's binary carries neither gRPC nor go-plugin.
func TestDependencies(t *testing.T) {
	for _, program := range []string{".", "../bench/goapp", "../examples/go-application", "../examples/go-handler"} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", program).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for dep := range strings.Lines(string(out)) {
			dep = strings.TrimSpace(dep)
			ours := strings.HasPrefix(dep, "fpmd/") && dep != "fpmd/worker" && dep != "fpmd/protocol" &&
				!strings.HasPrefix(dep, "fpmd/bench/") && !strings.HasPrefix(dep, "fpmd/examples/")
			host, _, _ := strings.Cut(dep, "/")
			if ours || strings.Contains(host, ".") && !strings.HasPrefix(dep, "golang.org/x/sys/") {
				t.Errorf("%s imports %s", program, dep)
			}
		}
	}
}

// A program that was started by hand says so, and how to run it.
func TestStartedByHand(t *testing.T) {
	err := Serve(HTTP(http.NotFoundHandler()), nil)
	if !errors.Is(err, ErrNotStarted) || !strings.Contains(err.Error(), "command = [\""+os.Args[0]) || !strings.Contains(err.Error(), "[pool.worker-test]") {
		t.Errorf("%v", err)
	}
}
