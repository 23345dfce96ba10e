package fcgi

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"testing"
)

// Whatever is put into a hold, into memory or its file, and whenever the file fails, it comes out in the same order.
func TestHoldKeepsTheOrder(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		h, dir := new(hold), t.TempDir()
		text := letters(1 << 20)
		var in, out []byte
		for len(in) < len(text) || h.waiting() > 0 {
			if n := min(rnd.IntN(70000)>>rnd.IntN(10), len(text)-len(in)); rnd.IntN(2) == 0 && n > 0 {
				p := text[len(in) : len(in)+n]
				in = text[:len(in)+n]
				if rnd.IntN(200) == 0 {
					h.full = true
				}
				if rnd.IntN(3) > 0 && h.spills(n, 300<<10) {
					if err := h.spill(dir, p); err != nil {
						t.Fatal(err)
					}
				} else {
					h.keep(p)
				}
			}
			if h.waiting() != int64(len(in)-len(out)) {
				t.Fatalf("seed %d: %d bytes wait, want %d", seed, h.waiting(), len(in)-len(out))
			}
			switch p, f, at := new(piece), (*os.File)(nil), int64(0); {
			case rnd.IntN(2) == 0:
			case seed%2 == 0:
				if p, f, at = h.pop(); p == nil {
					continue
				}
				if f != nil {
					if _, err := f.ReadAt(p.b[:p.n], at); err != nil {
						t.Fatal(err)
					}
				}
				out = append(out, p.b[:p.n]...)
				pieces.Put(p)
			default:
				b := make([]byte, 1+rnd.IntN(50000))
				n, f, at := h.next(b)
				if f != nil && n > 0 {
					if _, err := f.ReadAt(b[:n], at); err != nil {
						t.Fatal(err)
					}
				}
				out = append(out, b[:n]...)
			}
			if h.size > 300<<10 {
				t.Fatalf("seed %d: the file has grown to %d bytes", seed, h.size)
			}
		}
		if !bytes.Equal(in, out) {
			t.Errorf("seed %d: what came out is not what was put in", seed)
		}
		h.drop()
	}
}

// A file of a hold has no name, nobody else may read it, and it is not begun where there is no room.
func TestUnnamedFile(t *testing.T) {
	dir := t.TempDir()
	f, err := unnamedFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it has a name: %v, %v", left, err)
	}
	h := new(hold)
	if err := h.spill(dir+"/none", []byte("x")); !errors.Is(err, os.ErrNotExist) || h.waiting() != 0 || h.spills(1, 10) {
		t.Errorf("in a folder that is not there: %v", err)
	}
}
