package protocol

import (
	"bufio"
	"bytes"
	"errors"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What cannot stand in a header block is refused by who writes it.
func TestUnfitFields(t *testing.T) {
	for _, f := range [][2]string{
		{"", "x"},
		{"a b", "x"},
		{"a:", "x"},
		{"a\r\nb", "x"},
		{"é", "x"},
		{"Status", "200 OK"},
		{"sTATUS", "200 OK"},
		{"a", "x\r\ny: z"},
		{"a", "x\ny"},
		{"a", "x\ry"},
		{"a", "\x00"},
		{"a", "\x7f"},
	} {
		if block, err := AppendField(nil, f[0], f[1]); !errors.Is(err, ErrField) || block != nil {
			t.Errorf("%q: %q appended %q, %v", f[0], f[1], block, err)
		}
	}
	for status, reason := range map[int]string{100: "", 199: "x", 600: "x", 1200: "x", -200: "x", 200: "OK\r\nX: y"} {
		if block, err := AppendStatus(nil, status, reason); !errors.Is(err, ErrField) || block != nil {
			t.Errorf("%d %q appended %q, %v", status, reason, block, err)
		}
	}
}

// A block that is accepted costs its check no memory, and one that is as long
// as may be is accepted.
func TestHeaderBlockLimits(t *testing.T) {
	block := []byte("Status: 200 OK\r\nX: " + strings.Repeat("x", MaxHeaderBlock-len("Status: 200 OK\r\nX: \r\n\r\n")) + "\r\n\r\n")
	if n := testing.AllocsPerRun(10, func() {
		if err := CheckHeaderBlock(block, 200); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if err := CheckHeaderBlock(append(block, 'x'), 200); !errors.Is(err, ErrProtocol) {
		t.Errorf("one byte more: %v", err)
	}
}

// Any header is refused, or is written back as the same bytes.
func FuzzParseHeader(f *testing.F) {
	for typ := range 24 {
		f.Add([]byte{byte(typ), 1, 0, 0, 12, 0, 0, 0})
		f.Add([]byte{byte(typ), 0, 200, 0, 8, 0, 0, 0})
		f.Add([]byte{byte(typ), 4, 0, 0, 0, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < HeaderLen {
			return
		}
		h, err := ParseHeader(in)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("%v does not wrap ErrProtocol", err)
			}
			return
		}
		var out [HeaderLen]byte
		PutHeader(out[:], h)
		if !bytes.Equal(out[:], in[:HeaderLen]) || h.Length > MaxPayload {
			t.Fatalf("%x read as %+v, written as %x", in[:HeaderLen], h, out)
		}
	})
}

// A block that is accepted says to net/textproto what it says here: the same
// status, as many fields as it has lines, none of them another Status.
func FuzzCheckHeaderBlock(f *testing.F) {
	for _, block := range []string{
		"Status: 200 OK\r\nA: b\r\nA: c\r\n\r\n", "Status: 200 OK\nA: b\n\n", "Status: 200 OK\r\nA: b\rC: d\r\n\r\n",
		"Status: 200 OK\r\n A: b\r\n\r\n", "Status: 200 OK\r\nA : b\r\n\r\n", "Status: 200 \r\n\r\nStatus: 200 \r\n\r\n", "Status: 200 \r\nstatus: 1\r\n\r\n",
	} {
		f.Add([]byte(block), uint16(200))
	}
	f.Fuzz(func(t *testing.T, block []byte, status uint16) {
		if status < 200 || status > 599 { // ParseHeader has refused it
			return
		}
		if err := CheckHeaderBlock(block, status); err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("%v does not wrap ErrProtocol", err)
			}
			return
		}
		from := bufio.NewReader(bytes.NewReader(block))
		fields, err := textproto.NewReader(from).ReadMIMEHeader()
		if err != nil {
			t.Fatalf("%q accepted, then %v", block, err)
		}
		if from.Buffered() > 0 {
			t.Fatalf("%q accepted, but it ends before its end", block)
		}
		code, _, _ := strings.Cut(fields.Get("Status"), " ")
		if len(fields["Status"]) != 1 || code != strconv.Itoa(int(status)) {
			t.Fatalf("%q accepted for %d, read as %q", block, status, fields["Status"])
		}
		n := 0
		for _, values := range fields {
			n += len(values)
		}
		if lines := bytes.Count(block, []byte("\n")) - 1; n != lines || bytes.Count(block, []byte("\r")) != lines+1 {
			t.Fatalf("%q accepted: %d lines, %d fields", block, lines, n)
		}
	})
}

// A block is refused, or is what its variables make again in their order; what
// CheckEnviron refuses, ParseEnviron refuses.
func FuzzEnviron(f *testing.F) {
	f.Add([]byte("A\x00b\x00C\x00\x00"))
	f.Add([]byte("A\x00b\x00A\x00c\x00"))
	f.Add([]byte("A\x00\x00b\x00"))
	f.Fuzz(func(t *testing.T, block []byte) {
		vars, err := ParseEnviron(block)
		if bad := CheckEnviron(block); bad != nil && err == nil {
			t.Fatalf("%q: read as %q, but %v", block, vars, bad)
		}
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("%v does not wrap ErrProtocol", err)
			}
			return
		}
		var again []byte
		for rest := block; len(rest) > 0; {
			name, behind, _ := bytes.Cut(rest, []byte{0})
			_, behind, _ = bytes.Cut(behind, []byte{0})
			again = AppendPair(again, string(name), vars[string(name)])
			rest = behind
		}
		if !slices.Equal(again, block) {
			t.Fatalf("%q read as %q", block, vars)
		}
	})
}

func BenchmarkCheckHeaderBlock(b *testing.B) {
	block := []byte("Status: 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 14\r\nSet-Cookie: session=0123456789abcdef; Path=/\r\n\r\n")
	b.SetBytes(int64(len(block)))
	b.ReportAllocs()
	for b.Loop() {
		if err := CheckHeaderBlock(block, 200); err != nil {
			b.Fatal(err)
		}
	}
}
