package manager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Logs are the files that fpmd writes lines to, each opened once.
type Logs struct {
	mu    sync.Mutex
	files map[string]*lineFile
	main  *lineFile
	// journal is where main's lines go first, and main where there is no journald; nil: main alone.
	journal *journal
}

// flushAfter is how long an access log's line may wait for others to be
// written with it.
const flushAfter = 100 * time.Millisecond

// OpenLogs opens the log of s and gives its logger; stderr is where it goes
// when s names no file. On a terminal, the text format is one to be read there, and
// where standard error is the journal's, lines become its entries.
func OpenLogs(s Supervisor, stderr io.Writer) (*slog.Logger, *Logs, error) {
	ls := &Logs{files: make(map[string]*lineFile)}
	if s.Log == "" {
		ls.main = &lineFile{name: "standard error", w: stderr, terminal: isTerminal(stderr)}
		ls.files[""] = ls.main
		if s.LogFormat != "json" && isJournal(stderr) {
			var err error
			if ls.journal, err = openJournal(journalSocket); err != nil {
				ls.journal = nil // which journald reads what is written to standard error
			}
		}
	} else {
		f, err := ls.open(s.Log)
		if err != nil {
			return nil, nil, fmt.Errorf("supervisor.log: %q: %w", s.Log, err)
		}
		ls.main = f
	}
	return slog.New(ls.handler(s.LogFormat, ls.main, ls.main, s.LogLevel)), ls, nil
}

// handler makes lines for f, which get there through w, or to the journal in its place.
func (ls *Logs) handler(format string, f *lineFile, w io.Writer, level slog.Leveler) slog.Handler {
	h := f.handler(format, w, level)
	if f == ls.main && ls.journal != nil {
		return newJournalHandler(ls.journal, level, h)
	}
	return h
}

// handler makes lines for f, which get there through w.
func (f *lineFile) handler(format string, w io.Writer, level slog.Leveler) slog.Handler {
	o := &slog.HandlerOptions{Level: level}
	switch {
	case format == "json":
		o.ReplaceAttr = func(_ []string, a slog.Attr) slog.Attr {
			if a.Value.Kind() == slog.KindDuration { // as in the text format: "1.5ms", not a number of some unit
				a.Value = slog.StringValue(a.Value.Duration().String())
			}
			return a
		}
		return slog.NewJSONHandler(w, o)
	case f.terminal:
		return newTerminalHandler(w, level, wantsColour())
	}
	return slog.NewTextHandler(w, o)
}

func (ls *Logs) open(path string) (*lineFile, error) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	before := ls.files[path]
	if before != nil && before.users > 0 {
		before.users++
		return before, nil
	}
	made := missing(path)
	f, err := openLog(path, unix.O_NONBLOCK) // a pipe that nobody reads is not waited for: a reload and the stop would be, too
	if err != nil {
		return nil, fmt.Errorf("%w: %s", bare(err), pathRemedy(err, path, "a log"))
	}
	lf := &lineFile{name: path, w: f, c: f, users: 1, made: made}
	ls.files[path] = lf
	if before != nil { // which nobody uses: its name may be another file's by now
		if before.mu.TryLock() { // else it is being written to
			lf.made = made || before.emptyLocked()
			before.mu.Unlock()
		}
		go func() { _ = before.close() }() // as in sweep
	}
	return lf, nil
}

// release says that a is not written any more, but for who has just begun to; nil is allowed. sweep closes what nobody uses.
func (ls *Logs) release(a *accessLog) {
	if a == nil || a.file == ls.main {
		return
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if a.file.users--; a.file.users == 0 {
		a.file.unused = time.Now()
	}
}

// unusedFor is how long a file stays open that nobody uses: who has just begun to write ends within far less.
const unusedFor = time.Second

// sweep closes the files that nobody uses any more, and removes those that it was us who made, and nobody has written to: a reload
// that was refused, or a pool that has not come up, leaves nothing. It is called once in a while, and does not wait.
func (ls *Logs) sweep(now time.Time) {
	if ls == nil {
		return
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for path, f := range ls.files {
		if f.users > 0 || f.unused.IsZero() || now.Sub(f.unused) < unusedFor {
			continue
		}
		delete(ls.files, path)
		go func() { // ends when what waits is written, be it to a pipe; that it could not be has been complained of
			f.unmake()
			_ = f.close()
		}()
	}
}

// unmake removes f's file if nobody needs it.
func (f *lineFile) unmake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.emptyLocked() {
		_ = os.Remove(f.name) // else it is left, and empty
	}
}

// emptyLocked reports whether f's name is still that of the file that we have made, and nobody has written to.
func (f *lineFile) emptyLocked() bool {
	file, _ := f.c.(*os.File)
	if !f.made || len(f.kept) > 0 || file == nil {
		return false
	}
	ours, err := file.Stat()
	there, lerr := os.Lstat(f.name)
	return err == nil && lerr == nil && os.SameFile(ours, there) && ours.Size() == 0
}

func openLog(path string, flags int) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|flags, 0o640)
}

// Reopen opens every file anew by its name, which log rotation has given to
// another one. No line is lost; where a file can't be opened, such as a pipe that nobody
// reads, the old one is written on. It does not wait.
func (ls *Logs) Reopen() error {
	ls.mu.Lock()
	var used []*lineFile
	for _, f := range ls.files {
		if f == ls.main || f.users > 0 {
			used = append(used, f)
		}
	}
	ls.mu.Unlock() // a pipe whose reader does not read may hold up one of them
	var errs []error
	for _, f := range used {
		errs = append(errs, f.reopen())
	}
	return errors.Join(errs...)
}

// Close writes what waits and closes the files.
func (ls *Logs) Close() error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	var errs []error
	if ls.journal != nil {
		errs = append(errs, ls.journal.close())
	}
	for _, f := range ls.files {
		errs = append(errs, f.close())
	}
	return errors.Join(errs...)
}

// A lineFile takes whole lines. Those of access logs it keeps for a moment, to
// write many at once; any other line takes those before it along.
type lineFile struct {
	name     string
	w        io.Writer
	c        io.Closer // nil: not ours to close
	terminal bool

	users  int       // access logs, and the log itself, that go there; guarded by Logs.mu, as is
	unused time.Time // since when there is none

	mu      sync.Mutex
	kept    []byte
	flusher *time.Timer
	failed  bool // the last write failed, and was complained of
	lost    int  // lines, since then
	torn    bool // what was written last is not the end of a line
	made    bool // there was none by this name, and nothing was written since
}

const keptLines = 64 << 10

// Write writes line at once.
func (f *lineFile) Write(line []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.kept) == 0 {
		return len(line), f.writeLocked(line)
	}
	f.kept = append(f.kept, line...)
	return len(line), f.flushLocked()
}

// keep writes line within flushAfter.
func (f *lineFile) keep(line []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.kept) == 0 {
		if f.flusher == nil {
			f.flusher = time.AfterFunc(flushAfter, f.flush)
		} else {
			f.flusher.Reset(flushAfter)
		}
	}
	f.kept = append(f.kept, line...)
	if len(f.kept) >= keptLines {
		_ = f.flushLocked() // flush complains
	}
}

func (f *lineFile) flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.flushLocked()
}

func (f *lineFile) flushLocked() error {
	if len(f.kept) == 0 {
		return nil
	}
	defer func() { f.kept = f.kept[:0] }()
	return f.writeLocked(f.kept)
}

// writeLocked writes whole lines. The lock is held over it, so that lines stay in
// order; a log that can't be written loses lines rather than requests. A line that was
// cut, as on a full disk, is ended first, lest the next one is lost with it.
func (f *lineFile) writeLocked(lines []byte) error {
	end := 0 // of what ends the line before
	if f.torn {
		lines, end = append([]byte{'\n'}, lines...), 1
	}
	f.made = false
	n, err := f.w.Write(lines)
	if n > 0 {
		f.torn = lines[n-1] != '\n'
	}
	switch {
	case err != nil:
		f.lost += bytes.Count(lines[max(n, end):], []byte{'\n'})
		if !f.failed {
			os.Stderr.WriteString("fpmd: write the log: " + err.Error() + ": lines are lost until it works again\n")
		}
	case f.failed:
		fmt.Fprintf(os.Stderr, "fpmd: write the log: %s is written again, %d lines were lost\n", f.name, f.lost)
		f.lost = 0
	}
	f.failed = err != nil
	return err
}

func (f *lineFile) reopen() error {
	if f.c == nil {
		return nil
	}
	next, err := openLog(f.name, unix.O_NONBLOCK) // which says that nobody reads a pipe, and means nothing for a file
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.c == nil { // closed meanwhile
		return next.Close()
	}
	if len(f.kept) > 0 {
		_ = f.flushLocked() // has been complained of
	}
	f.made = false
	if fi, err := next.Stat(); err == nil && fi.Mode().IsRegular() && fi.Size() == 0 {
		f.torn = false // what is cut is in the old one
	}
	old := f.c
	f.w, f.c = next, next
	return old.Close()
}

func (f *lineFile) close() error {
	f.flush()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.c == nil {
		return nil
	}
	c := f.c
	f.c = nil
	return c.Close()
}

// keeper is lineFile as a Writer that may wait.
type keeper struct{ f *lineFile }

func (k keeper) Write(line []byte) (int, error) {
	k.f.keep(line)
	return len(line), nil
}

// An accessLog has a line for every request of a pool.
type accessLog struct {
	file *lineFile
	log  *slog.Logger
}

// access opens the access log of a pool; nil: it has none.
func (ls *Logs) access(cfg *PoolConfig, s Supervisor) (*accessLog, error) {
	var f *lineFile
	switch cfg.AccessLog {
	case "":
		return nil, nil
	case "-":
		f = ls.main
	default:
		var err error
		if f, err = ls.open(cfg.AccessLog); err != nil {
			return nil, fmt.Errorf("pool.%s.access_log: %q: %w", cfg.Name, cfg.AccessLog, err)
		}
	}
	return &accessLog{file: f, log: slog.New(ls.handler(s.LogFormat, f, keeper{f}, slog.LevelInfo)).With("pool", cfg.Name)}, nil
}

func (a *accessLog) write(x *exchange, o outcome) {
	a.log.LogAttrs(context.Background(), slog.LevelInfo, "request",
		slog.String("id", x.env.id),
		slog.String("client", string(x.env.client)),
		slog.String("method", string(x.env.method)),
		slog.String("uri", string(x.env.uri)),
		slog.Int("status", x.status),
		slog.String("outcome", o.String()),
		slog.Int64("bytes", x.bytes),
		slog.Float64("queue_ms", milliseconds(x.queuedFor)),
		slog.Float64("run_ms", milliseconds(x.ranFor)),
		slog.Int("worker", x.worker),
	)
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Microseconds()) / 1000
}
