//go:build !race

// The race detector has memory of its own, and empties pools at random.

package fcgi

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// stock is as many parameters as nginx sends for a small request.
func stock() []byte {
	var nv []string
	for _, n := range []string{
		"QUERY_STRING", "REQUEST_METHOD", "CONTENT_TYPE", "CONTENT_LENGTH", "SCRIPT_NAME", "REQUEST_URI", "DOCUMENT_URI", "DOCUMENT_ROOT",
		"SERVER_PROTOCOL", "REQUEST_SCHEME", "GATEWAY_INTERFACE", "SERVER_SOFTWARE", "REMOTE_ADDR", "REMOTE_PORT", "SERVER_ADDR", "SERVER_PORT",
		"SERVER_NAME", "REDIRECT_STATUS", "HTTP_HOST", "HTTP_USER_AGENT", "HTTP_ACCEPT", "HTTP_ACCEPT_LANGUAGE", "HTTP_ACCEPT_ENCODING", "HTTP_COOKIE",
	} {
		nv = append(nv, n, "a value of some length")
	}
	return get(1, nv...)
}

var sayBuffers = sync.Pool{New: func() any { return new([256]byte) }}

// sayHello is a Handler that costs nothing of its own.
func sayHello(r *Request) {
	b := sayBuffers.Get().(*[256]byte)
	records := append(b[:HeaderLen], "Content-Type: text/plain\r\n\r\nhello"...)
	r.Frame(records, len(records)-HeaderLen)
	r.SendLast(records)
	sayBuffers.Put(b)
}

// exchange makes a function that has one request answered on a kept connection.
func exchange(tb testing.TB) func() {
	nc := connect(tb, start(tb, &Server{Handler: sayHello}, "unix")).nc
	req := stock()
	answer := make([]byte, HeaderLen+len("Content-Type: text/plain\r\n\r\nhello")+TrailerLen)
	return func() {
		if _, err := nc.Write(req); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.ReadFull(nc, answer); err != nil {
			tb.Fatal(err)
		}
	}
}

func TestSmallExchangeAllocatesNothing(t *testing.T) {
	one := exchange(t)
	for range 100 {
		one()
	}
	// A collection may empty the pools in between: less than one in an exchange is none.
	if n := testing.AllocsPerRun(2000, one); n != 0 {
		t.Errorf("%v allocations an exchange", n)
	}
}

func BenchmarkExchangeKept(b *testing.B) {
	one := exchange(b)
	b.ReportAllocs()
	for b.Loop() {
		one()
	}
}

// A body that streams through does not allocate for its length.
func BenchmarkBody1MiB(b *testing.B) {
	nc := connect(b, start(b, &Server{Handler: func(r *Request) {
		p := readBuffers.Get().(*[readBuffer]byte)
		for {
			if _, err := r.Read(p[:]); err != nil {
				break
			}
		}
		readBuffers.Put(p)
		sayHello(r)
	}}, "unix")).nc
	req := bytes.Join([][]byte{begin(1), params(1), appendRecord(nil, typeStdin, 1, make([]byte, 1<<20)), stdin(1, "")}, nil)
	answer := make([]byte, HeaderLen+len("Content-Type: text/plain\r\n\r\nhello")+TrailerLen)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := nc.Write(req); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(nc, answer); err != nil {
			b.Fatal(err)
		}
	}
}

// A connection that has had its request costs a few KiB while it is idle. Its
// other end is held without Go's help, so as not to be counted.
func TestMemoryOfIdleConnections(t *testing.T) {
	const conns, bound = 2000, 8 << 10
	s := &Server{Handler: sayHello}
	addr := start(t, s, "unix").(*net.UnixAddr)
	req, answer := stock(), make([]byte, 1000)
	fds := make([]int, 0, conns)
	t.Cleanup(func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	})
	open := func() {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: addr.Name}); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, req); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Read(fd, answer); err != nil || n == 0 {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	open()
	before := inUse()
	for range conns - 1 {
		open()
	}
	if n := s.Stats().Conns; n != conns {
		t.Fatalf("%d connections", n)
	}
	each := (inUse() - before) / (conns - 1)
	t.Logf("%d bytes for an idle connection", each)
	if each > bound {
		t.Errorf("%d bytes for an idle connection, want at most %d", each, bound)
	}
}

// inUse is what heap and stacks take when all that can be collected is.
func inUse() int64 {
	var m runtime.MemStats
	for range 3 { // pools are empty after two
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
