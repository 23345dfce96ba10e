package python

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"fpmd/protocol"
)

// A conversation is what a worker makes of all that a supervisor sends.
type conversation struct {
	Served []served
	Broken string // how the supervisor broke the protocol; empty: it did not
}

// A served is an exchange as its application has it. Strings of bytes are hexadecimal.
type served struct {
	Number  uint64
	Environ map[string]string
	Body    string
	End     string // of the body: "whole", "cut", "gone", "broken", or "unread"
}

// A goWorker is a worker of package protocol that notes what it serves.
type goWorker struct {
	address *net.UnixAddr
	broken  chan error // has room for one

	mu     sync.Mutex
	served []served
}

func startGoWorker(f *testing.F) *goWorker {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(f.TempDir(), "w"), Net: "unix"})
	if err != nil {
		f.Fatal(err)
	}
	page, file, err := protocol.NewPage()
	if err != nil {
		f.Fatal(err)
	}
	file.Close()
	g := &goWorker{address: l.Addr().(*net.UnixAddr), broken: make(chan error, 1)}
	w := &protocol.Worker{Listener: l, Page: page, Slots: 1, Handle: g.handle, Report: func(err error) { g.broken <- err }}
	ended := make(chan error, 1)
	go func() { ended <- w.Serve() }() // ends with Drain
	f.Cleanup(func() {
		w.Drain()
		if err := <-ended; err != nil {
			f.Error(err)
		}
		page.Close()
	})
	return g
}

func (g *goWorker) handle(x *protocol.Exchange) error {
	vars, err := protocol.ParseEnviron(x.Environ())
	if err != nil {
		return err
	}
	s := served{Number: x.Number(), Environ: map[string]string{}, End: "whole"}
	for name, value := range vars {
		if !strings.HasPrefix(name, "wsgi.") { // Python's own are there instead
			s.Environ[hex.EncodeToString([]byte(name))] = hex.EncodeToString([]byte(value))
		}
	}
	body, err := io.ReadAll(x)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		s.End = "cut"
	case errors.Is(err, protocol.ErrGone):
		s.End = "gone"
	case err != nil:
		s.End = "broken"
	}
	s.Body = hex.EncodeToString(body)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.served = append(g.served, s)
	return nil
}

func (g *goWorker) converse(t *testing.T, stream []byte) (c conversation) {
	nc, err := net.DialUnix("unix", nil, g.address)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	go func() { // ends with the stream, or with the connection
		nc.Write(stream)
		nc.CloseWrite()
	}()
	if _, err := io.Copy(io.Discard, nc); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	select {
	case err := <-g.broken: // it comes before the connection is closed
		c.Broken = err.Error()
	default:
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	c.Served, g.served = g.served, nil
	return c
}

// A pythonReader is tests/reader.py at work.
type pythonReader struct {
	in  io.Writer
	out *bufio.Reader
}

func startPythonReader(f *testing.F) *pythonReader {
	cmd := exec.Command(interpreters(f)[0], "-B", "tests/reader.py")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		f.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		f.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			f.Error(err)
		}
	})
	return &pythonReader{in, bufio.NewReader(out)}
}

func (p *pythonReader) converse(t *testing.T, stream []byte, split int, way uint8) (c conversation) {
	head := binary.LittleEndian.AppendUint32(nil, uint32(len(stream)))
	head = binary.LittleEndian.AppendUint32(head, uint32(max(0, min(split, len(stream)))))
	if _, err := p.in.Write(append(append(head, way), stream...)); err != nil {
		t.Fatalf("the reader has ended: %v", err)
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		t.Fatalf("the reader has ended: %v", err)
	}
	if err := json.Unmarshal(line, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// agree has both workers read a stream. Of a body that is not whole they need not have read
// equally much, and Python says "cut" before it has the content of the frame that says so; a
// request for another slot is refused by Go before its head is there.
func agree(t *testing.T, g *goWorker, p *pythonReader, stream []byte, split int, way uint8) {
	want, got := g.converse(t, stream), p.converse(t, stream, split, way)
	if (got.Broken == "") != (want.Broken == "") && !strings.Contains(want.Broken, "REQUEST for slot") {
		t.Fatalf("Python: broken %q, Go: broken %q", got.Broken, want.Broken)
	}
	if len(got.Served) != len(want.Served) {
		t.Fatalf("Python served %+v, Go %+v", got.Served, want.Served)
	}
	for i, w := range want.Served {
		g := got.Served[i]
		same := g.Number == w.Number && len(g.Environ) == len(w.Environ) && strings.HasPrefix(w.Body, g.Body)
		for name, value := range w.Environ {
			same = same && g.Environ[name] == value
		}
		sameEnd := g.End == w.End || g.End == "unread" || g.End == "cut" && w.End == "gone"
		if !same || !sameEnd || g.End == "whole" && g.Body != w.Body {
			t.Fatalf("exchange %d: Python served %+v, Go %+v", i, g, w)
		}
	}
}

// request is a whole REQUEST.
func request(number uint64, environ, body string, flags byte) []byte {
	b := make([]byte, protocol.HeaderLen)
	protocol.PutHeader(b, protocol.Header{Type: protocol.Request, Flags: flags, Length: uint32(protocol.RequestFixed + len(environ) + len(body))})
	b = binary.LittleEndian.AppendUint64(b, number)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(environ)))
	return append(append(b, environ...), body...)
}

// Whatever a supervisor sends, wherever it is split between two reads, and however the
// application reads its body, the Python host serves what a Go worker serves, and refuses
// what it refuses.
func FuzzHost(f *testing.F) {
	const environ = "REQUEST_METHOD\x00POST\x00PATH_INFO\x00/\x00"
	post := append(protocol.AppendBody(request(1, environ, "one\ntwo", 0), []byte("\nthree"), false, false), protocol.AppendBody(nil, nil, true, false)...)
	cut := protocol.AppendBody(request(1, environ, "one", 0), nil, true, true)
	for way, stream := range [][]byte{
		request(1, environ, "", protocol.FlagLast), post, cut, append(cut, post...), append(post, post...), post[:len(post)-1],
		request(0, environ, "", protocol.FlagLast), append(request(1, environ, "x", 0), post...),
		{18, 1, 0, 0, 0, 0, 0, 0},
	} {
		f.Add(stream, len(stream)/2, uint8(way))
	}
	// More than a connection's buffer holds, of environ and of body, with a request behind it.
	long := request(1, "X\x00"+strings.Repeat("x", 70_000)+"\x00", "", protocol.FlagLast)
	upload := protocol.AppendBody(request(2, environ, "", 0), []byte(strings.Repeat("0123456\n", 10_000)), true, false)
	for way := range uint8(6) {
		f.Add(append(append(append([]byte(nil), long...), upload...), post...), len(long)-int(way), way)
	}
	g, p := startGoWorker(f), startPythonReader(f)
	f.Fuzz(func(t *testing.T, stream []byte, split int, way uint8) { agree(t, g, p, stream, split, way) })
}

// Whatever an environ block holds, the Python host has the variables that a Go worker has,
// or refuses it as well.
func FuzzHostEnviron(f *testing.F) {
	for _, block := range []string{
		"", "A\x00b\x00", "A\x00b\x00A\x00c\x00", "\x00b\x00", "A\x00b", "A\x00", "A\x00\x00", "A\x00b\x00C\x00", "\xc3\xa9\x00\xff\x00", "A\x00b\x00\x00\x00",
	} {
		f.Add(block)
	}
	g, p := startGoWorker(f), startPythonReader(f)
	f.Fuzz(func(t *testing.T, block string) { agree(t, g, p, request(1, block, "", protocol.FlagLast), 0, 0) })
}
