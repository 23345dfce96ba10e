package fcgi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func clientOf(t testing.TB, a net.Addr) *Client {
	c := &Client{Network: a.Network(), Address: a.String()}
	t.Cleanup(c.CloseIdle)
	return c
}

// counting has c count the connections that it makes.
func counting(c *Client) *atomic.Int32 {
	n := new(atomic.Int32)
	c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		n.Add(1)
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	return n
}

func ask(t testing.TB, c *Client, req *ClientRequest) (string, *ClientResponse) {
	t.Helper()
	res, err := c.Do(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Stdout)
	if err != nil {
		t.Fatalf("after %.100q: %v", b, err)
	}
	return string(b), res
}

// A request goes out as it was given, and its answer comes back whole.
func TestClientAsks(t *testing.T) {
	c := clientOf(t, start(t, &Server{Handler: func(r *Request) {
		ps, _ := pairs(r.Params())
		r.WriteError([]byte("log"))
		body, err := io.ReadAll(r)
		fmt.Fprintf(r, "%v %d %v", ps, len(body), err)
		r.End(7)
	}}, "unix"))
	dials := counting(c)
	for _, size := range []int{-1, 0, 1, MaxContent, 1 << 20} {
		var stderr bytes.Buffer
		req := &ClientRequest{Params: []Param{{"B", "1"}, {"A", strings.Repeat("x", 300)}, {"B", "2"}}, Stderr: &stderr}
		if size >= 0 {
			req.Body = bytes.NewReader(make([]byte, size))
		}
		got, res := ask(t, c, req)
		want := fmt.Sprintf("[{B 1} {A %s} {B 2}] %d <nil>", strings.Repeat("x", 300), max(size, 0))
		if got != want || stderr.String() != "log" || res.AppStatus != 7 || res.ProtocolStatus != StatusRequestComplete {
			t.Errorf("size %d: got %.50q (%d), stderr %q, %+v", size, got, len(got), stderr.String(), res)
		}
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections, want the one kept", n)
	}
}

// Parameters of more than one record arrive.
func TestClientSendsLongParams(t *testing.T) {
	c := clientOf(t, start(t, &Server{Handler: echo}, "unix"))
	long := strings.Repeat("x", 150<<10)
	if got, _ := ask(t, c, &ClientRequest{Params: []Param{{"A", long}}}); got != long+":" {
		t.Errorf("got %d bytes", len(got))
	}
}

// Body and answer stream at the same time.
func TestClientStreamsBothWays(t *testing.T) {
	c := clientOf(t, start(t, &Server{Handler: func(r *Request) {
		io.Copy(struct{ io.Writer }{r}, struct{ io.Reader }{r})
	}}, "unix"))
	body, w := io.Pipe()
	go io.WriteString(w, "first")
	res, err := c.Do(t.Context(), &ClientRequest{Body: body})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Stdout.Close()
	got := make([]byte, 5)
	for _, next := range []string{"secnd", "third", ""} {
		if _, err := io.ReadFull(res.Stdout, got); err != nil {
			t.Fatal(err)
		}
		if next != "" {
			io.WriteString(w, next)
		}
	}
	if string(got) != "third" {
		t.Errorf("got %q", got)
	}
	w.Close()
	if rest, err := io.ReadAll(res.Stdout); len(rest) > 0 || err != nil {
		t.Errorf("then %q, %v", rest, err)
	}
}

// An answer that is cut short never looks complete.
func TestClientSeesACut(t *testing.T) {
	c := clientOf(t, start(t, &Server{Handler: func(r *Request) {
		if param(r, "A") != "" {
			r.Write([]byte("half"))
		}
		r.Cut()
	}}, "unix"))
	res, err := c.Do(t.Context(), &ClientRequest{Params: []Param{{"A", "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(res.Stdout); string(b) != "half" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %q, %v", b, err)
	}
	if _, err := c.Do(t.Context(), &ClientRequest{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("without a byte of an answer: %v", err)
	}
}

// A refusal by the protocol is an error, and its status is there.
func TestClientSeesARefusal(t *testing.T) {
	c := clientOf(t, start(t, &Server{Handler: echo}, "unix"))
	res, err := c.Do(t.Context(), &ClientRequest{Role: RoleFilter})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(res.Stdout); len(b) > 0 || !errors.Is(err, ErrRefused) || res.ProtocolStatus != StatusUnknownRole {
		t.Errorf("got %q, %v, %v", b, err, res.ProtocolStatus)
	}
}

// The context's end closes the connection, and the application learns of it,
// before the answer and in it; so does Close, and a body that can't be read.
func TestClientAborts(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	c := clientOf(t, start(t, &Server{Handler: func(r *Request) {
		if param(r, "A") != "" {
			r.Write([]byte("begun"))
		} else {
			close(entered)
		}
		<-r.Gone()
		left <- struct{}{}
	}}, "unix"))
	why := errors.New("no more time")
	begun := &ClientRequest{Params: []Param{{"A", "x"}}}
	for name, abort := range map[string]func(ctx context.Context, cancel func()) error{
		"before the answer": func(ctx context.Context, cancel func()) error {
			go func() { <-entered; cancel() }() // ends when the application is asked
			_, err := c.Do(ctx, &ClientRequest{})
			return err
		},
		"in the answer": func(ctx context.Context, cancel func()) error {
			res, err := c.Do(ctx, begun)
			if err != nil {
				return err
			}
			cancel()
			_, err = io.ReadAll(res.Stdout)
			return err
		},
		"Close": func(ctx context.Context, cancel func()) error {
			res, err := c.Do(ctx, begun)
			if err != nil {
				return err
			}
			res.Stdout.Close()
			if _, err := res.Stdout.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Read after Close: %v", err)
			}
			return why
		},
		"body": func(ctx context.Context, cancel func()) error {
			body, w := io.Pipe()
			res, err := c.Do(ctx, &ClientRequest{Params: begun.Params, Body: body})
			if err != nil {
				return err
			}
			w.CloseWithError(why)
			_, err = io.ReadAll(res.Stdout)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if err := abort(ctx, func() { cancel(why) }); !errors.Is(err, why) {
				t.Errorf("got %v, want %v", err, why)
			}
			within(t, "the application's notice", left)
		})
	}
}

// A kept connection that is closed just as it is used is nobody's problem
// without a body, and an error with one: what has become of it is not known.
func TestClientRetriesOnAStaleConnection(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan struct{})
	go func() { // ends with the listener
		defer close(served)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			answer := appendEnd(appendRecord(nil, typeStdout, 1, []byte("ok")), 1, 0, StatusRequestComplete)
			nc.Read(make([]byte, 1000))
			nc.Write(answer)
			nc.Read(make([]byte, 1000)) // the next request, which gets no answer
			nc.Close()
		}
	}()
	c := clientOf(t, l.Addr())
	dials := counting(c)
	for range 5 {
		if got, _ := ask(t, c, &ClientRequest{}); got != "ok" {
			t.Errorf("got %q", got)
		}
	}
	if n := dials.Load(); n != 5 {
		t.Errorf("%d connections for 5 requests, want 5", n)
	}
	if _, err := c.Do(t.Context(), &ClientRequest{Body: strings.NewReader("x")}); err == nil {
		t.Error("a request with a body was sent twice")
	}
	l.Close()
	c.CloseIdle()
	within(t, "the end of the application", served)
}

// A connection that the application closed in the meantime is not used, also for a body.
func TestClientLeavesClosedConnectionsAlone(t *testing.T) {
	s := &Server{Handler: echo}
	c := clientOf(t, start(t, s, "unix"))
	dials := counting(c)
	ask(t, c, &ClientRequest{})
	s.mu.Lock()
	for conn := range s.conns {
		conn.kill()
	}
	s.mu.Unlock()
	until(t, "the connection is closed", func() bool { return s.Stats().Conns == 0 })
	if got, _ := ask(t, c, &ClientRequest{Body: strings.NewReader("x")}); got != ":x" {
		t.Errorf("got %q", got)
	}
	if n := dials.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// With MaxIdle below 0 the application is told to close, and does.
func TestClientWithoutKeep(t *testing.T) {
	s := &Server{Handler: echo}
	c := clientOf(t, start(t, s, "unix"))
	c.MaxIdle = -1
	dials := counting(c)
	for range 3 {
		ask(t, c, &ClientRequest{})
	}
	if n := dials.Load(); n != 3 {
		t.Errorf("%d connections, want 3", n)
	}
	until(t, "all are closed", func() bool { return s.Stats().Conns == 0 })
}

// answerPlainly says what an application's records are to a client, who asked nothing but request
// 1: frame after frame, from all that it has sent. whole: the request has ended.
func answerPlainly(stream []byte) (stdout, stderr string, res ClientResponse, whole bool) {
	for len(stream) >= HeaderLen {
		h := parseHeader((*[HeaderLen]byte)(stream))
		content := stream[HeaderLen:]
		n := min(int(h.length), len(content))
		content, stream = content[:n], content[n:]
		cut := n < int(h.length) || len(stream) < int(h.padding)
		stream = stream[min(int(h.padding), len(stream)):]
		switch {
		case h.version != version1, h.id > 1:
			return stdout, stderr, res, false
		case h.id == 0:
		case h.typ == typeStdout:
			stdout += string(content)
		case h.typ == typeStderr:
			stderr += string(content)
		case h.typ == typeEndRequest && h.length == 8 && !cut:
			res.AppStatus, res.ProtocolStatus = binary.BigEndian.Uint32(content), ProtocolStatus(content[4])
			return stdout, stderr, res, true
		default:
			return stdout, stderr, res, false
		}
		if cut {
			break
		}
	}
	return stdout, stderr, res, false
}

// Whatever an application sends, wherever it is split, a client has of it what
// answerPlainly says, and never takes for whole what is not.
func FuzzClient(f *testing.F) {
	out, over := appendRecord(nil, typeStdout, 1, []byte("Status: 200 OK\r\n\r\nbody")), appendEnd(nil, 1, 7, StatusRequestComplete)
	padded := append(append(appendHeader(nil, typeStdout, 1, 3), "abc"...), make([]byte, 5)...)
	padded[6] = 5
	for _, records := range [][]byte{
		append(bytes.Clone(out), over...),
		over, out, padded, out[:len(out)-1], over[:len(over)-1],
		bytes.Join([][]byte{padded, appendRecord(nil, typeStderr, 1, []byte("log")), appendRecord(nil, typeStdout, 1, nil), over}, nil),
		appendEnd(bytes.Clone(out), 1, 0, StatusOverloaded),
		appendEnd(bytes.Clone(out), 2, 0, StatusRequestComplete),
		append(appendRecord(nil, typeUnknownType, 0, make([]byte, 8)), over...),
		append(appendRecord(nil, typeStdin, 1, []byte("x")), over...),
		[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
	} {
		f.Add(records, len(records)/2)
	}
	l, err := net.Listen("unix", filepath.Join(f.TempDir(), "s"))
	if err != nil {
		f.Fatal(err)
	}
	defer l.Close()
	c := &Client{Network: "unix", Address: l.Addr().String(), MaxIdle: -1}
	f.Fuzz(func(t *testing.T, stream []byte, split int) {
		split = max(0, min(split, len(stream)))
		left := make(chan struct{})
		go func() { // ends with the client
			defer close(left)
			nc, err := l.Accept()
			if err != nil {
				return
			}
			defer nc.Close()
			nc.Write(stream[:split])
			nc.Write(stream[split:])
			nc.(*net.UnixConn).CloseWrite()
			io.Copy(io.Discard, nc)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var stdout []byte
		var stderr bytes.Buffer
		res, err := c.Do(ctx, &ClientRequest{Stderr: &stderr})
		if err == nil {
			stdout, err = io.ReadAll(res.Stdout)
			res.Stdout.Close()
		}
		within(t, "the connection's end", left)
		wantOut, wantErr, want, whole := answerPlainly(stream)
		if string(stdout) != wantOut || stderr.String() != wantErr {
			t.Fatalf("stdout %.100q, stderr %.100q, %v; want %.100q and %.100q", stdout, &stderr, err, wantOut, wantErr)
		}
		switch ended := err == nil || errors.Is(err, ErrRefused); {
		case errors.Is(err, context.DeadlineExceeded), ended != whole:
			t.Fatalf("ended with %v, whole: %v", err, whole)
		case whole && (res.AppStatus != want.AppStatus || res.ProtocolStatus != want.ProtocolStatus || (err == nil) != (want.ProtocolStatus == StatusRequestComplete)):
			t.Fatalf("ended with %v and %+v, want %+v", err, res, want)
		}
	})
}

func TestReadResponseHeader(t *testing.T) {
	for _, c := range []struct {
		name, in string
		status   int
		reason   string
		header   map[string][]string
		rest     string
		err      string
	}{
		{"nothing but the end", "\r\nbody", 200, "OK", map[string][]string{}, "body", ""},
		{"Status", "Status: 404 Not Found\r\nA: b\r\n\r\n", 404, "Not Found", map[string][]string{"A": {"b"}}, "", ""},
		{"no reason", "Status: 204\r\n\r\n", 204, "", map[string][]string{}, "", ""},
		{"Location", "location: /x\r\n\r\n", 302, "Found", map[string][]string{"Location": {"/x"}}, "", ""},
		{"Location and Status", "Location: /x\r\nStatus: 201 Created\r\n\r\n", 201, "Created", map[string][]string{"Location": {"/x"}}, "", ""},
		{"bare newlines", "A: b\nA: c\n\nbody\n", 200, "OK", map[string][]string{"A": {"b", "c"}}, "body\n", ""},
		{"Status that is none", "Status: OK\r\n\r\n", 0, "", nil, "", `Status "OK"`},
		{"Status too long", "Status: 2000\r\n\r\n", 0, "", nil, "", `Status "2000"`},
		{"Status too small", "Status: 099\r\n\r\n", 0, "", nil, "", `Status "099"`},
		{"Status of what is no answer yet", "Status: 103 Early Hints\r\n\r\n", 0, "", nil, "", `Status "103 Early Hints"`},
		{"space behind a name", "A : b\r\n\r\n", 0, "", nil, "", `field name "A "`},
		{"empty", "", 0, "", nil, "", "unexpected EOF"},
		{"cut short", "A: b\r\n", 0, "", nil, "", "unexpected EOF"},
		{"no field", "<html>\r\n\r\n", 0, "", nil, "", "missing colon"},
	} {
		r := bufio.NewReader(strings.NewReader(c.in))
		status, reason, header, err := ReadResponseHeader(r)
		if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", c.name, err, c.err)
			continue
		}
		if status != c.status || reason != c.reason || len(header) != len(c.header) || len(header) > 0 && !reflect.DeepEqual(map[string][]string(header), c.header) {
			t.Errorf("%s: got %d %q %v", c.name, status, reason, header)
		}
		if rest, _ := io.ReadAll(r); err == nil && string(rest) != c.rest {
			t.Errorf("%s: left %q", c.name, rest)
		}
	}
}
