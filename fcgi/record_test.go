package fcgi

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

// Records are on the wire what the specification draws.
func TestRecordsOnTheWire(t *testing.T) {
	long := bytes.Repeat([]byte("x"), MaxContent+1)
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"BEGIN_REQUEST, kept", appendBegin(nil, 1, RoleResponder, true), "\x01\x01\x00\x01\x00\x08\x00\x00" + "\x00\x01\x01\x00\x00\x00\x00\x00"},
		{"BEGIN_REQUEST, id of two bytes", appendBegin(nil, 0xabcd, RoleAuthorizer, false), "\x01\x01\xab\xcd\x00\x08\x00\x00" + "\x00\x02\x00\x00\x00\x00\x00\x00"},
		{"END_REQUEST", appendEnd(nil, 1, 0x01020304, StatusOverloaded), "\x01\x03\x00\x01\x00\x08\x00\x00" + "\x01\x02\x03\x04\x02\x00\x00\x00"},
		{"STDOUT", appendRecord(nil, typeStdout, 2, []byte("abc")), "\x01\x06\x00\x02\x00\x03\x00\x00abc"},
		{"empty STDIN", appendRecord(nil, typeStdin, 2, nil), "\x01\x05\x00\x02\x00\x00\x00\x00"},
		{"longest content", appendRecord(nil, typeStdout, 1, long[1:]), "\x01\x06\x00\x01\xff\xff\x00\x00" + string(long[1:])},
		{"longer than one record", appendRecord(nil, typeStdout, 1, long), "\x01\x06\x00\x01\xff\xff\x00\x00" + string(long[1:]) + "\x01\x06\x00\x01\x00\x01\x00\x00x"},
	} {
		if string(c.got) != c.want {
			t.Errorf("%s: got % x, want % x", c.name, c.got[:min(len(c.got), 40)], c.want[:min(len(c.want), 40)])
		}
	}
	b := [HeaderLen]byte{1, 5, 0xab, 0xcd, 0x12, 0x34, 7, 99}
	if got, want := parseHeader(&b), (header{1, typeStdin, 0xabcd, 0x1234, 7}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// Every type of record has its name in a message, also one that does not exist.
func TestRecordTypeNames(t *testing.T) {
	for typ := typeBeginRequest; typ <= typeUnknownType; typ++ {
		if s := typ.String(); strings.ToUpper(s) != s {
			t.Errorf("type %d is called %q", uint8(typ), s)
		}
	}
	for _, typ := range []recordType{0, 12, 255} {
		if s := typ.String(); !strings.HasPrefix(s, "record type ") {
			t.Errorf("type %d is called %q", uint8(typ), s)
		}
	}
}

func TestNextParam(t *testing.T) {
	long := strings.Repeat("v", 0x80)
	for _, c := range []struct {
		name, in           string
		param, value, rest string
		err                error
	}{
		{"short lengths", "\x01\x02abcrest", "a", "bc", "rest", nil},
		{"empty value", "\x01\x00a", "a", "", "", nil},
		{"empty name", "\x00\x01a", "", "a", "", nil}, // for the manager to refuse
		{"both empty", "\x00\x00", "", "", "", nil},
		{"longest short form", "\x01\x7fa" + long[1:], "a", long[1:], "", nil},
		{"first that needs the long form", "\x01\x80\x00\x00\x80a" + long, "a", long, "", nil},
		{"long name", "\x80\x00\x00\x80\x01" + long + "b", long, "b", "", nil},
		{"long form of a short length", "\x80\x00\x00\x01\x80\x00\x00\x01ab", "a", "b", "", nil}, // wasteful, yet legal
		{"nothing", "", "", "", "", ErrMalformedParams},
		{"one length", "\x01", "", "", "", ErrMalformedParams},
		{"no content", "\x01\x01", "", "", "", ErrMalformedParams},
		{"value cut short", "\x01\x03abc", "", "", "", ErrMalformedParams},
		{"length cut short", "\x01\x80\x00\x00", "", "", "", ErrMalformedParams},
		{"first length cut short", "\x80\x00", "", "", "", ErrMalformedParams},
		{"lengths that are not there", "\xff\xff\xff\xff\xff\xff\xff\xffab", "", "", "", ErrMalformedParams},
	} {
		name, value, rest, err := NextParam([]byte(c.in))
		if string(name) != c.param || string(value) != c.value || string(rest) != c.rest || !errors.Is(err, c.err) {
			t.Errorf("%s: got %q, %q, %q, %v", c.name, name, value, rest, err)
		}
	}
}

// What NextParam gives can be appended to without harm to what follows it.
func TestParamsAreSeparate(t *testing.T) {
	b := AppendParam(AppendParam(nil, "A", "1"), "B", "2")
	name, value, rest, _ := NextParam(b)
	_, _ = append(name, "xx"...), append(value, "yy"...)
	if name, value, _, _ := NextParam(rest); string(name) != "B" || string(value) != "2" {
		t.Errorf("got %q, %q", name, value)
	}
}

type pair struct{ name, value string }

func pairs(b []byte) (ps []pair, err error) {
	for len(b) > 0 {
		var name, value []byte
		if name, value, b, err = NextParam(b); err != nil {
			return nil, err
		}
		ps = append(ps, pair{string(name), string(value)})
	}
	return ps, nil
}

// Any bytes are pairs or an error, the same for CheckParams, never a panic; and pairs
// that were read are the same after being written and read again.
func FuzzParams(f *testing.F) {
	f.Add([]byte("\x04\x03NAMEabc"))
	f.Add([]byte("\x00\x00\x80\x00\x00\x01\x01ab"))
	f.Add([]byte("\xff\xff\xff\xff\x7f"))
	for n := 0x7f; n <= 0x81; n++ { // about where a length needs the long form
		f.Add([]byte("\x01\x80\x00\x00" + string([]byte{byte(n)}) + "A" + strings.Repeat("v", n)))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		ps, err := pairs(in)
		if check := CheckParams(in); !errors.Is(check, err) {
			t.Fatalf("%q: read with %v, checked with %v", in, err, check)
		}
		if err != nil {
			return
		}
		var b []byte
		for _, p := range ps {
			b = AppendParam(b, p.name, p.value)
		}
		again, err := pairs(b)
		if err != nil || !slices.Equal(again, ps) {
			t.Fatalf("%q read as %q, then as %q, %v", in, ps, again, err)
		}
	})
}
