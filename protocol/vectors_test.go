package protocol

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hexBytes are bytes that JSON has in hexadecimal.
type hexBytes []byte

func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// latin1 is a string of bytes that JSON has as a string of characters.
type latin1 string

func (s *latin1) UnmarshalText(text []byte) error {
	var b []byte
	for _, r := range string(text) {
		if r > 0xff {
			return fmt.Errorf("%q is not latin-1", text)
		}
		b = append(b, byte(r))
	}
	*s = latin1(b)
	return nil
}

type vectorFrame struct {
	Type   string
	Flags  []string
	Aux    uint16
	Length uint32

	Number  uint64
	Environ [][2]latin1
	Block   latin1
	Body    latin1
}

type vectors struct {
	Version int
	Frames  []struct {
		Name  string
		To    string
		Hex   hexBytes
		Error bool
		Frame vectorFrame
	}
	Environs []struct {
		Name      string
		Hex       hexBytes
		Error     bool
		Variables [][2]latin1
	}
	HeaderBlocks []struct {
		Name   string
		Status uint16
		Hex    hexBytes
		Error  bool
		Reason latin1
		Fields [][2]latin1
	} `json:"header_blocks"`
	Handshakes []struct {
		Name           string
		Line           string
		Error          bool
		Version, Slots int
	}
	Conversations []struct {
		Name        string
		Application string
		Error       bool
		Steps       []vectorStep
	}
}

type vectorStep struct {
	From   string
	Hex    hexBytes
	Frames []vectorFrame
	Page   *struct {
		Slot      int
		Withdrawn uint64
	}
	Close bool
}

func readVectors(t *testing.T) *vectors {
	t.Helper()
	text, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	if v.Version != Version || len(v.Frames) == 0 || len(v.Environs) == 0 || len(v.HeaderBlocks) == 0 || len(v.Handshakes) == 0 || len(v.Conversations) == 0 {
		t.Fatal("testdata/vectors.json is not what testdata/README.md says")
	}
	return &v
}

func flagNames(flags uint8) []string {
	names := []string{}
	for i, name := range []string{"LAST", "CUT", "FAILED"} {
		if flags>>i&1 != 0 {
			names = append(names, name)
		}
	}
	return names
}

func environOf(variables [][2]latin1) []byte {
	var block []byte
	for _, v := range variables {
		block = AppendPair(block, v[0], v[1])
	}
	return block
}

// Every frame of the vectors is read as what it is, and written from that as
// the same bytes; every malformed one is refused by the side that it goes to.
func TestVectorFrames(t *testing.T) {
	for _, v := range readVectors(t).Frames {
		t.Run(v.Name, func(t *testing.T) {
			if v.Error {
				if err := refusal(t, v.To, v.Hex); !errors.Is(err, ErrProtocol) {
					t.Errorf("%v, want %v", err, ErrProtocol)
				}
				return
			}
			h, err := ParseHeader(v.Hex)
			if err != nil {
				t.Fatal(err)
			}
			want := v.Frame
			if h.Type.String() != want.Type || !slices.Equal(flagNames(h.Flags), want.Flags) || h.Aux != want.Aux || h.Length != want.Length {
				t.Errorf("read as %+v, want %+v", h, want)
			}
			b := make([]byte, HeaderLen)
			PutHeader(b, h)
			switch h.Type {
			case Request:
				environ := environOf(want.Environ)
				b = binary.LittleEndian.AppendUint64(b, want.Number)
				b = binary.LittleEndian.AppendUint32(b, uint32(len(environ)))
				b = append(b, environ...)
			case Response:
				b = binary.LittleEndian.AppendUint16(b, uint16(len(want.Block)))
				b = binary.LittleEndian.AppendUint16(b, Echo(want.Number))
				b = append(b, want.Block...)
				if err := CheckHeaderBlock([]byte(want.Block), want.Aux); err != nil {
					t.Error(err)
				}
			case Withdrawn:
				b = binary.LittleEndian.AppendUint64(b, want.Number)
			}
			if b = append(b, want.Body...); string(b) != string(v.Hex) {
				t.Errorf("written as\n%x, want\n%x", b, []byte(v.Hex))
			}
		})
	}
}

// refusal gives a frame to one of the two ends, which should not take it.
func refusal(t *testing.T, to string, raw []byte) error {
	t.Helper()
	if h, err := ParseHeader(raw); err != nil {
		return err
	} else if h.Type == Greeting {
		worker, supervisor := connected(t)
		worker.Write(raw)
		return NewSlot(0, nil).Connect(supervisor, time.Now().Add(10*time.Second))
	}
	if to == "supervisor" {
		s, w := pair(t)
		r := request()
		s.Send(r, nil, true, 1)
		go func() {
			io.ReadFull(w, make([]byte, len(r)))
			w.Write(raw)
		}()
		_, _, _, err := answer(t, s)
		return err
	}
	reported := make(chan error, 1)
	nc := startWorker(t, &Worker{Slots: 1, Handle: vectorApplications["hello"], Report: func(err error) { reported <- err }})
	nc.Write(raw)
	if _, err := io.Copy(io.Discard, nc); err != nil && !closed(err) {
		t.Fatal(err)
	}
	return <-reported
}

// Every environ block of the vectors is read as what it is, or refused.
func TestVectorEnvirons(t *testing.T) {
	for _, v := range readVectors(t).Environs {
		t.Run(v.Name, func(t *testing.T) {
			vars, err := ParseEnviron(v.Hex)
			if v.Error {
				if !errors.Is(err, ErrProtocol) {
					t.Errorf("read as %q, %v; want %v", vars, err, ErrProtocol)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := CheckEnviron(v.Hex); err != nil {
				t.Error(err)
			}
			if len(vars) != len(v.Variables) {
				t.Errorf("%d variables, want %d", len(vars), len(v.Variables))
			}
			for _, p := range v.Variables {
				if got, ok := vars[string(p[0])]; !ok || got != string(p[1]) {
					t.Errorf("%q is %q, want %q", p[0], got, p[1])
				}
			}
			if b := environOf(v.Variables); string(b) != string(v.Hex) {
				t.Errorf("written as %q, want %q", b, v.Hex)
			}
		})
	}
}

// Every header block of the vectors can be written from what it says, and is
// accepted; every malformed one is refused.
func TestVectorHeaderBlocks(t *testing.T) {
	for _, v := range readVectors(t).HeaderBlocks {
		t.Run(v.Name, func(t *testing.T) {
			err := CheckHeaderBlock(v.Hex, v.Status)
			if v.Error {
				if !errors.Is(err, ErrProtocol) {
					t.Errorf("%q: %v, want %v", v.Hex, err, ErrProtocol)
				}
				return
			}
			if err != nil {
				t.Error(err)
			}
			block, err := AppendStatus(nil, int(v.Status), string(v.Reason))
			for _, f := range v.Fields {
				if err == nil {
					block, err = AppendField(block, string(f[0]), string(f[1]))
				}
			}
			if block = AppendEnd(block); err != nil || string(block) != string(v.Hex) {
				t.Errorf("written as %q, %v; want %q", block, err, v.Hex)
			}
		})
	}
}

// Every handshake line of the vectors is read as what it is, or refused.
func TestVectorHandshakes(t *testing.T) {
	for _, v := range readVectors(t).Handshakes {
		t.Run(v.Name, func(t *testing.T) {
			version, slots, err := ParseHandshake([]byte(v.Line))
			if v.Error {
				if !errors.Is(err, ErrProtocol) {
					t.Errorf("%d, %d, %v; want %v", version, slots, err, ErrProtocol)
				}
				return
			}
			if err != nil || version != v.Version || slots != v.Slots {
				t.Errorf("%d, %d, %v; want %d, %d", version, slots, err, v.Version, v.Slots)
			}
			if line, err := AppendHandshake(nil, v.Version, v.Slots); err != nil || string(line) != v.Line {
				t.Errorf("written as %q, %v; want %q", line, err, v.Line)
			}
		})
	}
}

// The worker's end takes its part in every conversation of the vectors.
func TestVectorConversations(t *testing.T) {
	for _, v := range readVectors(t).Conversations {
		t.Run(v.Name, func(t *testing.T) {
			app := vectorApplications[v.Application]
			if app == nil {
				t.Fatalf("no application %q", v.Application)
			}
			w := &Worker{Slots: 1, Handle: app, Page: newTestPage(t)}
			nc := startWorker(t, w)
			in := frame(Header{Type: Greeting, Aux: Version}, nil) // startWorker has read it
			for i, step := range v.Steps {
				switch {
				case step.From == "supervisor" && step.Page != nil:
					w.Page.withdrawn(step.Page.Slot).Store(step.Page.Withdrawn)
				case step.From == "supervisor" && step.Close:
					nc.CloseWrite()
				case step.From == "supervisor":
					if _, err := nc.Write(step.Hex); err != nil {
						t.Fatalf("step %d: %v", i, err)
					}
				case step.Close:
					rest, err := io.ReadAll(nc)
					if len(rest) > 0 || err != nil && !closed(err) {
						t.Fatalf("step %d: %q, %v; want the end", i, rest, err)
					}
				case step.Hex != nil:
					got := append(in, make([]byte, len(step.Hex)-len(in))...)
					if _, err := io.ReadFull(nc, got[len(in):]); err != nil {
						t.Fatalf("step %d: %q, %v; want %q", i, got, err, step.Hex)
					}
					if in = nil; string(got) != string(step.Hex) {
						t.Fatalf("step %d: %q, want %q", i, got, step.Hex)
					}
				default:
					h, _, err := readFrame(nc)
					want := step.Frames[0]
					if err != nil || h.Type.String() != want.Type || !slices.Equal(flagNames(h.Flags), want.Flags) || h.Aux != want.Aux {
						t.Fatalf("step %d: %+v, %v; want %+v", i, h, err, want)
					}
				}
			}
		})
	}
}

// vectorApplications are the applications of testdata/README.md.
var vectorApplications = map[string]func(*Exchange) error{
	"hello": func(x *Exchange) error { return respondText(x, []byte("Hello, World!\n")) },
	"echo": func(x *Exchange) error {
		if err := CheckEnviron(x.Environ()); err != nil {
			return err
		}
		body, err := io.ReadAll(reader{x})
		if err != nil {
			return err
		}
		return respondText(x, body)
	},
	"fail": func(x *Exchange) error {
		if err := x.Respond(500, []byte("Status: 500 Internal Server Error\r\n\r\n"), true); err != nil {
			return err
		}
		x.End(nil)
		return nil
	},
}

func respondText(x *Exchange, body []byte) error {
	if err := CheckEnviron(x.Environ()); err != nil {
		return err
	}
	block := fmt.Appendf(nil, "Status: 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", len(body))
	if err := x.Respond(200, block, false); err != nil {
		return err
	}
	x.End(body) // nobody may want it any more
	return nil
}

// reader hides what else an Exchange can do.
type reader struct{ io.Reader }

func newTestPage(t testing.TB) *Page {
	t.Helper()
	page, f, err := NewPage()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	t.Cleanup(func() { page.Close() })
	return page
}

// startWorker has w serve until the test ends, and returns a connection to it
// that was greeted.
func startWorker(t testing.TB, w *Worker) *net.UnixConn {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "w"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	w.Listener = l
	if w.Page == nil {
		w.Page = newTestPage(t)
	}
	served := make(chan error, 1)
	go func() { served <- w.Serve() }()
	t.Cleanup(func() {
		w.Drain()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return dialWorker(t, w)
}

// dialWorker returns another connection that was greeted.
func dialWorker(t testing.TB, w *Worker) *net.UnixConn {
	t.Helper()
	nc := dialUngreeted(t, w)
	if h, _, err := readFrame(nc); err != nil || h.Type != Greeting || h.Aux != Version {
		t.Fatalf("greeted with %+v, %v", h, err)
	}
	return nc
}

func dialUngreeted(t testing.TB, w *Worker) *net.UnixConn {
	t.Helper()
	nc, err := net.DialUnix("unix", nil, w.Listener.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc
}

// connected returns two ends of a connection.
func connected(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		nc, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		ends[i] = nc.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

func readFrame(r io.Reader) (Header, []byte, error) {
	var head [HeaderLen]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Header{}, nil, err
	}
	h, err := ParseHeader(head[:])
	if err != nil {
		return h, nil, err
	}
	payload := make([]byte, h.Length)
	_, err = io.ReadFull(r, payload)
	return h, payload, err
}

// closed reports whether err says that the other side closed the connection
// without having read everything.
func closed(err error) bool { return strings.Contains(err.Error(), "connection reset") }
