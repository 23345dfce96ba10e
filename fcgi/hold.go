package fcgi

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A hold is bytes that wait, the oldest first: in memory, behind that in a file, and behind that, where
// the file takes no more but they must be kept, in memory again. Methods are called under the lock
// of whose it is, and one goroutine takes.
type hold struct {
	head, tail pieceList
	file       *os.File // has no name; nil: there is none yet
	read, size int64    // of file
	full       bool     // file has failed, and is not written to any more
}

// waiting is how many bytes there are.
func (h *hold) waiting() int64 { return int64(h.memory()) + h.size - h.read }

// memory is how many of them are not in the file.
func (h *hold) memory() int { return h.head.n + h.tail.n }

// keep puts a copy of p into memory.
func (h *hold) keep(p []byte) {
	if h.size > h.read || h.tail.n > 0 {
		h.tail.add(p)
	} else {
		h.head.add(p)
	}
}

// spills reports whether the file may take n bytes more, of up to most in all.
func (h *hold) spills(n int, most int64) bool {
	return !h.full && h.tail.n == 0 && h.size+int64(n) <= most
}

// spill puts p into the file, which it makes in dir if there is none. After an error, none of p is held, and
// nothing else is spilled.
func (h *hold) spill(dir string, p []byte) (err error) {
	defer func() { h.full = err != nil }()
	if h.file == nil || h.size>>20 != (h.size+int64(len(p)))>>20 {
		if err := hasRoom(dir); err != nil {
			return err
		}
	}
	if h.file == nil {
		if h.file, err = unnamedFile(dir); err != nil {
			return err
		}
	}
	if _, err := h.file.WriteAt(p, h.size); err != nil {
		return err
	}
	h.size += int64(len(p))
	return nil
}

// next moves the oldest bytes to p. Where they are in the file it says where, for the caller to
// read n there, which needs no lock, before it calls next or pop again.
func (h *hold) next(p []byte) (n int, f *os.File, at int64) {
	if h.advance(); h.head.n > 0 {
		return h.head.take(p), nil, 0
	}
	n = int(min(int64(len(p)), h.size-h.read))
	at = h.read
	h.read += int64(n)
	return n, h.file, at
}

// pop is next for a whole piece, which the caller gives back to pieces; nil: nothing waits.
func (h *hold) pop() (p *piece, f *os.File, at int64) {
	if h.advance(); h.head.n > 0 {
		return h.head.pop(), nil, 0
	}
	if h.read == h.size {
		return nil, nil, 0
	}
	p = pieces.Get().(*piece)
	p.n = int(min(int64(len(p.b)), h.size-h.read))
	at = h.read
	h.read += int64(p.n)
	return p, h.file, at
}

// advance goes on with what is behind the file when that has been read.
func (h *hold) advance() {
	if h.head.n > 0 || h.read < h.size {
		return
	}
	h.read, h.size = 0, 0 // nobody reads there now: the file need not grow on
	h.head, h.tail = h.tail, pieceList{}
}

// drop lets go of all. No read of the file may be under way.
func (h *hold) drop() {
	h.head.drop()
	h.tail.drop()
	if h.file != nil {
		h.file.Close() // of a file without a name, nothing can be lost by that
	}
	*h = hold{}
}

// errNoRoom is what keeps bytes from being held in a file before the disk is full: workers
// and others need room there.
var errNoRoom = errors.New("less than a tenth of the file system is free")

func hasRoom(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if st.Blocks > 0 && st.Bavail*10 < st.Blocks {
		return fmt.Errorf("%s: %w", dir, errNoRoom)
	}
	return nil
}

// unnamedFile makes a file in dir that no name leads to, and that is gone when it is closed.
func unnamedFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir+" (unnamed)"), nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, &os.PathError{Op: "make a file in", Path: dir, Err: err}
	}
	f, err := os.CreateTemp(dir, "held-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// A piece is as much as is written at once of what was kept. It is small: of a Unix
// socket's buffer, nothing is free again before all of a write has been read.
type piece struct {
	b [16 << 10]byte
	n int
}

var pieces = sync.Pool{New: func() any { return new(piece) }}

// A pieceList is bytes in pieces.
type pieceList struct {
	list  []*piece
	taken int // of the first
	n     int // bytes in all
}

func (l *pieceList) add(p []byte) {
	l.n += len(p)
	for len(p) > 0 {
		var last *piece
		if n := len(l.list); n > 0 && l.list[n-1].n < len(last.b) {
			last = l.list[n-1]
		} else {
			last = pieces.Get().(*piece)
			last.n = 0
			l.list = append(l.list, last)
		}
		n := copy(last.b[last.n:], p)
		last.n += n
		p = p[n:]
	}
}

// take moves bytes of the first piece to p.
func (l *pieceList) take(p []byte) int {
	first := l.list[0]
	n := copy(p, first.b[l.taken:first.n])
	l.n -= n
	if l.taken += n; l.taken == first.n {
		l.taken = 0
		pieces.Put(l.shift())
	}
	return n
}

// pop takes the first piece, of which nothing has been taken.
func (l *pieceList) pop() *piece {
	p := l.shift()
	l.n -= p.n
	return p
}

func (l *pieceList) shift() *piece {
	p := l.list[0]
	l.list[0] = nil
	if l.list = l.list[1:]; len(l.list) == 0 {
		l.list = nil // what it has grown to is not kept
	}
	return p
}

func (l *pieceList) drop() {
	for _, p := range l.list {
		pieces.Put(p)
	}
	*l = pieceList{}
}
