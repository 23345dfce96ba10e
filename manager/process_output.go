package manager

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxLine   = 16 << 10 // longer lines are split
	tailLines = 40
	tailBytes = 8 << 10
	// restBytes is what is read at most once the process has ended: as much as
	// a pipe holds, so that a descendant that goes on writing can't hold us.
	restBytes = 64 << 10
)

// An output turns what a process prints into log lines, and remembers the last.
type output struct {
	streams []*os.File
	readers sync.WaitGroup // one for each stream

	mu   sync.Mutex // guards what follows
	top  string     // the first line
	last []string
	size int
	at   time.Time // of the last line
}

// readOutput reads both streams until drain.
func readOutput(logger *slog.Logger, stdout, stderr *os.File) *output {
	o := &output{streams: []*os.File{stdout, stderr}}
	logger = slog.New(unfiltered{logger.Handler()})
	o.readers.Go(func() { o.read(logger.With("stream", "stdout"), stdout) })
	o.readers.Go(func() { o.read(logger.With("stream", "stderr"), stderr) })
	return o
}

// An unfiltered handler takes lines of every level: log_level is for fpmd's own, and a
// traceback has none.
type unfiltered struct{ slog.Handler }

func (unfiltered) Enabled(context.Context, slog.Level) bool { return true }

func (h unfiltered) WithAttrs(attrs []slog.Attr) slog.Handler {
	return unfiltered{h.Handler.WithAttrs(attrs)}
}

func (h unfiltered) WithGroup(name string) slog.Handler {
	return unfiltered{h.Handler.WithGroup(name)}
}

// drain reads what is left in the pipes and closes them. It does not wait for
// descendants that hold the other ends, nor for long for a log that blocks.
func (o *output) drain() {
	for _, f := range o.streams {
		_ = f.SetReadDeadline(time.Unix(1, 0)) // long past: the reader goes over to the rest
	}
	read := make(chan struct{})
	go func() { // ends with the readers
		o.readers.Wait()
		close(read)
	}()
	select {
	case <-read:
	case <-time.After(time.Second):
	}
}

// read logs the lines of f until its end.
func (o *output) read(logger *slog.Logger, f *os.File) {
	defer f.Close()
	r := bufio.NewReaderSize(&stream{file: f}, maxLine)
	for {
		line, err := r.ReadSlice('\n')
		if line = bytes.TrimRight(line, "\r\n"); len(line) > 0 {
			o.add(string(line))
			logger.LogAttrs(context.Background(), slog.LevelInfo, string(line))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (o *output) add(line string) {
	line = line[:min(len(line), tailBytes)]
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.top == "" {
		o.top = line
	}
	o.at = time.Now()
	o.last = append(o.last, line)
	o.size += len(line)
	for len(o.last) > tailLines || o.size > tailBytes {
		o.size -= len(o.last[0])
		o.last = o.last[1:]
	}
}

func (o *output) first() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.top
}

// tail returns the last lines, and when the very last came.
func (o *output) tail() ([]string, time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.last), o.at
}

// A stream reads a pipe until its deadline, and then what is left in it, to
// end there as if the other end were closed.
type stream struct {
	file *os.File
	rest int // bytes that may still be read; 0 before the deadline
	over bool
}

func (s *stream) Read(b []byte) (int, error) {
	if !s.over {
		n, err := s.file.Read(b)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		s.over, s.rest = true, restBytes
		if err := s.file.SetReadDeadline(time.Time{}); err != nil {
			return 0, err
		}
	}
	raw, err := s.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	n := 0
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		n, rerr = unix.Read(int(fd), b[:min(len(b), s.rest)])
		return true // what is not there now is not waited for
	})
	if err != nil || rerr != nil || n <= 0 {
		return 0, io.EOF
	}
	s.rest -= n
	return n, nil
}

// A refusal is what exec-worker says when it can't become the worker's program.
type refusal struct {
	read chan struct{} // closed when said is complete
	said string
}

// readRefusal reads from pipe, whose other end is closed when the worker's
// program begins or exec-worker ends.
func readRefusal(pipe *os.File) *refusal {
	r := &refusal{read: make(chan struct{})}
	go func() { // until then
		defer close(r.read)
		defer pipe.Close()
		b, _ := io.ReadAll(io.LimitReader(pipe, 4096))
		r.said = string(b)
	}()
	return r
}

func (r *refusal) wait() { <-r.read }

func (r *refusal) String() string {
	r.wait()
	return r.said
}
