package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// mutate changes what a web server sent in a few places, the way that bugs and
// attackers do.
func mutate(r *rand.Rand, b []byte, others [][]byte) []byte {
	b = append([]byte(nil), b...)
	for range 1 + r.IntN(4) {
		if len(b) == 0 {
			break
		}
		at := r.IntN(len(b))
		n := min(1+r.IntN(32), len(b)-at)
		switch r.IntN(9) {
		case 0:
			b[at] ^= 1 << r.IntN(8)
		case 1:
			b[at] = byte(r.Uint32())
		case 2:
			b[at] = [...]byte{0, 1, 0x7f, 0x80, 0xff}[r.IntN(5)]
		case 3: // out
			b = append(b[:at], b[at+n:]...)
		case 4: // twice
			b = append(b[:at+n], append(append([]byte(nil), b[at:at+n]...), b[at+n:]...)...)
		case 5: // the end is missing
			b = b[:at]
		case 6: // something of another connection
			o := others[r.IntN(len(others))]
			from := r.IntN(len(o))
			b = append(b[:at], append(append([]byte(nil), o[from:min(from+1+r.IntN(600), len(o))]...), b[at:]...)...)
		case 7: // the head of a record
			if i := record(r, b); i >= 0 {
				b[i+[...]int{0, 1, 2, 3, 4, 5, 6}[r.IntN(7)]] = byte(r.Uint32())
			}
		case 8: // a whole record, moved
			if i, j := record(r, b), record(r, b); i >= 0 && j > i {
				end := min(i+8+int(b[i+4])<<8+int(b[i+5])+int(b[i+6]), j)
				b = append(append(append(append([]byte(nil), b[:i]...), b[end:j]...), b[i:end]...), b[j:]...)
			}
		}
	}
	return b
}

// record is where one of the records begins that b consists of, as far as it does; -1: none.
func record(r *rand.Rand, b []byte) int {
	var starts []int
	for i := 0; i+8 <= len(b) && b[i] == 1; i += 8 + int(b[i+4])<<8 + int(b[i+5]) + int(b[i+6]) {
		starts = append(starts, i)
	}
	if len(starts) == 0 {
		return -1
	}
	return starts[r.IntN(len(starts))]
}

// What web servers send, changed at random, is answered or the connection is
// closed; nothing hangs or grows, no worker suffers, and the next good request is served.
func TestMutations(t *testing.T) {
	t.Parallel()
	total := 20000
	if s := os.Getenv("FPMD_MUTATIONS"); s != "" {
		var err error
		if total, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob("../../fcgi/testdata/fronts/*.bin")
	if err != nil || len(files) < 3 {
		t.Fatalf("recorded conversations: %q, %v", files, err)
	}
	var recorded [][]byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		recorded = append(recorded, b)
	}
	dir := appDir(t)
	write(t, filepath.Join(dir, "app.py"), bigApp)
	// Not the test binary: the race detector's shadow memory is none of fpmd's.
	d := serveWith(t, buildFpmd(t, dir), dir, wsgiPool(dir, "workers = 2\nclient_timeout = \"1s\""))
	good := func() error {
		body, err := askOnce(d.sock())
		if err == nil && !strings.HasSuffix(body, "\r\n\r\n0") {
			err = fmt.Errorf("answered with %q", body)
		}
		return err
	}
	if err := good(); err != nil {
		t.Fatal(err)
	}
	before, workers := private(t, d.cmd.Process.Pid), fmt.Sprint(workersOf(d))

	seed := rand.Uint64()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(total) && !t.Failed(); i = next.Add(1) {
				r := rand.New(rand.NewPCG(seed, uint64(i)))
				in := mutate(r, recorded[r.IntN(len(recorded))], recorded)
				if err := converse(r, d.sock(), in); err != nil {
					t.Errorf("mutation %d of seed %d, %.300q: %v", i, seed, in, err)
				}
				if i%200 == 0 {
					if err := good(); err != nil {
						t.Errorf("after mutation %d of seed %d: a good request: %v", i, seed, err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := good(); err != nil {
		t.Error(err)
	}
	after := private(t, d.cmd.Process.Pid)
	t.Logf("%d mutations; private memory from %d to %d KiB", total, before, after)
	if after-before > 32<<10 {
		t.Errorf("private memory has grown from %d to %d KiB", before, after)
	}
	if now := fmt.Sprint(workersOf(d)); now != workers {
		t.Errorf("workers were %s, and are %s", workers, now)
	}
}

// converse sends in, cut where r says, and reads to the end. One in twenty
// only waits, as if more were to come; the others say that nothing does.
func converse(r *rand.Rand, sock string, in []byte) error {
	c, err := net.Dial("unix", sock)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	waits := r.IntN(20) == 0
	cut := 0
	if len(in) > 0 {
		cut = r.IntN(len(in))
	}
	var wg sync.WaitGroup
	wg.Go(func() { // ends when all is sent, or with the connection
		for _, part := range [][]byte{in[:cut], in[cut:]} {
			if _, err := c.Write(part); err != nil {
				return
			}
		}
		if !waits {
			c.(*net.UnixConn).CloseWrite()
		}
	})
	if waits { // an idle connection is never closed, so there may be no end
		c.SetReadDeadline(time.Now().Add(1500 * time.Millisecond))
	}
	_, err = io.Copy(io.Discard, c)
	c.Close()
	wg.Wait()
	if err != nil && !strings.Contains(err.Error(), "reset") && !(waits && errors.Is(err, os.ErrDeadlineExceeded)) {
		return err
	}
	return nil
}
