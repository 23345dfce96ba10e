package fcgi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A lines is a log that tests look into.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// start serves s on a socket until the test's end, when it must stop by itself.
func start(t testing.TB, s *Server, network string) net.Addr {
	t.Helper()
	address := "127.0.0.1:0"
	if network != "tcp" {
		address = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }() // ends with s
	until(t, "it accepts", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.listeners) > 0
	})
	t.Cleanup(func() {
		ended := make(chan struct{})
		go func() { s.Close(); close(ended) }()
		within(t, "the server's goroutines to end", ended)
		if err := <-served; !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve returned %v, want %v", err, ErrServerClosed)
		}
	})
	return l.Addr()
}

// within waits for what a promise says will happen. The limit is no part of
// the promise: it ends a test that would hang.
func within[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(20 * time.Second):
		t.Errorf("still waiting for %s", what)
	}
	return v
}

// until waits for a state that nobody announces.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still waiting until %s", what)
		}
	}
}

// A peer is a web server that does what a test tells it.
type peer struct {
	t  testing.TB
	nc net.Conn
	br *bufio.Reader
}

func connect(t testing.TB, a net.Addr) *peer {
	t.Helper()
	nc, err := net.Dial(a.Network(), a.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(30 * time.Second))
	return &peer{t, nc, bufio.NewReader(nc)}
}

// send sends in one write.
func (p *peer) send(records ...[]byte) {
	p.t.Helper()
	if _, err := p.nc.Write(bytes.Join(records, nil)); err != nil {
		p.t.Fatalf("send: %v", err)
	}
}

func begin(id uint16) []byte { return appendBegin(nil, id, RoleResponder, true) }

// params is a whole stream of name-value pairs.
func params(id uint16, nameValue ...string) []byte {
	var b []byte
	for i := 0; i < len(nameValue); i += 2 {
		b = AppendParam(b, nameValue[i], nameValue[i+1])
	}
	if len(b) > 0 {
		b = appendRecord(nil, typeParams, id, b)
	}
	return appendRecord(b, typeParams, id, nil)
}

// stdin is a part of the body; an empty one ends it.
func stdin(id uint16, b string) []byte { return appendRecord(nil, typeStdin, id, []byte(b)) }

func abort(id uint16) []byte { return appendRecord(nil, typeAbortRequest, id, nil) }

// get is a whole request without a body.
func get(id uint16, nameValue ...string) []byte {
	return bytes.Join([][]byte{begin(id), params(id, nameValue...), stdin(id, "")}, nil)
}

func (p *peer) next() (header, string, error) {
	var b [HeaderLen]byte
	if _, err := io.ReadFull(p.br, b[:]); err != nil {
		return header{}, "", err
	}
	h := parseHeader(&b)
	content := make([]byte, int(h.length)+int(h.padding))
	if _, err := io.ReadFull(p.br, content); err != nil {
		return header{}, "", err
	}
	return h, string(content[:h.length]), nil
}

// An end is how a request ended.
type end struct {
	stdout, stderr string
	app            uint32
	status         ProtocolStatus
}

// answer reads until request id has ended. Records of another are an error.
func (p *peer) answer(id uint16) (e end) {
	p.t.Helper()
	var stdout strings.Builder
	for {
		h, content, err := p.next()
		switch {
		case err != nil:
			p.t.Fatalf("answer of request %d ended with %v after %.100q", id, err, stdout.String())
		case h.id != id:
			p.t.Fatalf("%v of request %d in the answer of %d", h.typ, h.id, id)
		case h.typ == typeStdout:
			stdout.WriteString(content)
		case h.typ == typeStderr:
			e.stderr += content
		case h.typ == typeEndRequest:
			e.stdout = stdout.String()
			e.app = binary.BigEndian.Uint32([]byte(content))
			e.status = ProtocolStatus(content[4])
			return e
		default:
			p.t.Fatalf("%v in the answer of request %d", h.typ, id)
		}
	}
}

// ended reads what is left and requires the connection's end behind it.
func (p *peer) ended() (rest string) {
	p.t.Helper()
	b, err := io.ReadAll(p.br)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		p.t.Fatalf("connection not closed: %v", err)
	}
	return string(b)
}

// param is a parameter's value, "" when there is none.
func param(r *Request, name string) string {
	for b := r.Params(); len(b) > 0; {
		n, v, rest, err := NextParam(b)
		if err != nil {
			return err.Error()
		}
		if string(n) == name {
			return string(v)
		}
		b = rest
	}
	return ""
}

// echo answers with the parameter A and the body.
func echo(r *Request) {
	body, err := io.ReadAll(r)
	if err != nil {
		r.WriteError([]byte(err.Error()))
	}
	r.Write([]byte(param(r, "A") + ":"))
	r.Write(body)
}

// say sends a small answer as the manager does, in one write.
func say(r *Request, text string) error {
	b := make([]byte, HeaderLen, HeaderLen+len(text)+TrailerLen)
	r.Frame(b, len(text))
	return r.SendLast(append(b, text...))
}

// shutdown begins a Shutdown that has all the time it wants.
func shutdown(t testing.TB, s *Server) <-chan error {
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }()
	until(t, "it stops", s.stopping.Load)
	return done
}
