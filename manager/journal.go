package manager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	sdjournal "github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"
)

const (
	journalSocket = "/run/systemd/journal/socket"
	// journalWaiting is how much is kept, in bytes, while journald does not take it.
	journalWaiting = 1 << 20
	// journalEnd is how long the end of fpmd waits for that.
	journalEnd = time.Second
)

// isJournal says whether w is standard error, and that journald's.
func isJournal(w io.Writer) bool {
	if w != io.Writer(os.Stderr) {
		return false
	}
	is, err := sdjournal.StderrIsJournalStream()
	return is && err == nil
}

// A journal takes entries for journald. Nobody waits for journald but who prints: what it does not take at
// once is sent by a goroutine, in order, and is lost where there is too much of it.
//
// go-systemd's journal.Send is not used: its socket is not connected, so that it may wait for ever
// for room in a queue that others have filled.
type journal struct {
	path string

	mu      sync.Mutex
	room    sync.Cond     // on mu: there is less in waiting, or it is closed
	conn    *net.UnixConn // nil: not connected
	waiting [][]byte
	size    int // of waiting, in bytes
	sending bool
	lost    int // entries, since it was last said
	closed  bool
	line    bytes.Buffer // of the entry that is made
	wg      sync.WaitGroup
}

func openJournal(path string) (*journal, error) {
	j := &journal{path: path}
	j.room.L = &j.mu
	return j, j.connectLocked()
}

func (j *journal) connectLocked() error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: j.path, Net: "unixgram"})
	if err != nil {
		return err
	}
	_ = conn.SetWriteBuffer(8 << 20) // as much as there may be
	if j.conn != nil {
		j.conn.Close()
	}
	j.conn = conn
	return nil
}

// sendLocked has journald take entry, now or later. With patient, it waits while there is too much to be
// sent. An error says that there is no journald.
func (j *journal) sendLocked(entry []byte, patient bool) error {
	for patient && j.sending && j.size >= journalWaiting && !j.closed {
		j.room.Wait()
	}
	if j.closed {
		return net.ErrClosed
	}
	if !j.sending {
		err := transmit(j.conn, entry, false)
		if err != nil && !errors.Is(err, unix.EAGAIN) { // its socket may be another by now
			if err = j.connectLocked(); err == nil {
				err = transmit(j.conn, entry, false)
			}
		}
		if err == nil && j.lost > 0 {
			j.waiting = append(j.waiting, j.lossLocked())
			j.startLocked()
		}
		if !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
	if j.size >= journalWaiting {
		j.lost++
		return nil
	}
	j.waiting = append(j.waiting, bytes.Clone(entry))
	j.size += len(entry)
	j.startLocked()
	return nil
}

// startLocked has sent what waits.
func (j *journal) startLocked() {
	if !j.sending {
		j.sending = true
		j.wg.Go(j.catchUp) // ends with what waits, or at close
	}
}

// lossLocked is an entry that says how many were lost, once.
func (j *journal) lossLocked() []byte {
	said := appendField(nil, "PRIORITY", strconv.Itoa(int(sdjournal.PriWarning)))
	said = appendField(said, "SYSLOG_IDENTIFIER", "fpmd")
	said = appendField(said, "MESSAGE", fmt.Sprintf("fpmd: write the log: the journal is written again, %d lines were lost", j.lost))
	j.size += len(said)
	j.lost = 0
	return said
}

// catchUp sends what waits.
func (j *journal) catchUp() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.waiting) > 0 {
		entry, conn := j.waiting[0], j.conn
		j.mu.Unlock()
		err := transmit(conn, entry, true)
		j.mu.Lock()
		j.waiting[0] = nil
		j.waiting = j.waiting[1:]
		j.size -= len(entry)
		j.room.Broadcast()
		if err != nil {
			j.lost++
		}
		if len(j.waiting) == 0 && j.lost > 0 && err == nil {
			j.waiting = append(j.waiting, j.lossLocked())
		}
	}
	j.sending = false
	j.waiting = nil
	j.size = 0
}

// close sends what waits, unless that takes too long.
func (j *journal) close() error {
	j.mu.Lock()
	j.closed = true
	j.room.Broadcast()
	_ = j.conn.SetWriteDeadline(time.Now().Add(journalEnd))
	j.mu.Unlock()
	j.wg.Wait()
	return j.conn.Close()
}

// transmit sends one entry; with wait, when journald has room for it.
func transmit(conn *net.UnixConn, entry []byte, wait bool) error {
	err := sendDatagram(conn, entry, nil, wait)
	if !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.ENOBUFS) {
		return err
	}
	f, err := sealedMemfd("fpmd-journal", entry) // what does not fit a datagram
	if err != nil {
		return err
	}
	defer f.Close()
	return sendDatagram(conn, nil, unix.UnixRights(int(f.Fd())), wait)
}

func sendDatagram(conn *net.UnixConn, b, rights []byte, wait bool) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Write(func(fd uintptr) bool {
		serr = unix.Sendmsg(int(fd), b, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return !wait || !errors.Is(serr, unix.EAGAIN)
	})
	if err != nil {
		return err
	}
	return serr
}

// appendField appends a field of an entry: https://systemd.io/JOURNAL_NATIVE_PROTOCOL.
func appendField[T string | []byte](entry []byte, name string, value T) []byte {
	entry = append(entry, name...)
	if !bytes.ContainsRune([]byte(value), '\n') {
		entry = append(entry, '=')
	} else {
		entry = append(entry, '\n')
		entry = binary.LittleEndian.AppendUint64(entry, uint64(len(value)))
	}
	entry = append(entry, value...)
	return append(entry, '\n')
}

// journalFields are the fields of lines that are fields of the journal, too.
var journalFields = map[string]string{
	"pool":    "POOL",
	"worker":  "WORKER",
	"id":      "REQUEST_ID",
	"outcome": "OUTCOME",
	"stream":  "STREAM",
}

// A journalHandler makes a line an entry of the journal: with a priority, with fields to look for, and as its
// message the line as the text format has it, but for the time.
type journalHandler struct {
	*journal
	level   slog.Leveler
	text    slog.Handler // writes into journal.line
	without slog.Handler // takes lines when there is no journald
	fields  []byte
	prints  bool // the message is a line that the worker printed
}

func newJournalHandler(j *journal, level slog.Leveler, without slog.Handler) *journalHandler {
	return &journalHandler{journal: j, level: level, without: without, text: slog.NewTextHandler(&j.line, &slog.HandlerOptions{
		Level: slog.Level(-1 << 31), // what is written is decided by Enabled
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})}
}

func (h *journalHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level.Level()
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	with.fields = bytes.Clone(h.fields)
	for _, a := range attrs {
		with.take(a)
	}
	with.text, with.without = h.text.WithAttrs(attrs), h.without.WithAttrs(attrs)
	return &with
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	with := *h
	with.text, with.without = h.text.WithGroup(name), h.without.WithGroup(name)
	return &with
}

// take keeps a field that the journal has.
func (h *journalHandler) take(a slog.Attr) {
	if name := journalFields[a.Key]; name != "" {
		h.fields = appendField(h.fields, name, a.Value.String())
		h.prints = h.prints || a.Key == "stream"
	}
}

func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	with := *h
	with.fields = appendField(make([]byte, 0, 512), "PRIORITY", strconv.Itoa(int(priorityOf(r.Level))))
	with.fields = appendField(with.fields, "SYSLOG_IDENTIFIER", "fpmd")
	with.fields = append(with.fields, h.fields...)
	r.Attrs(func(a slog.Attr) bool { with.take(a); return true })
	if err := with.send(ctx, r); err != nil {
		return h.without.Handle(ctx, r)
	}
	return nil
}

// send sends r, whose fields are known.
func (h *journalHandler) send(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.line.Reset()
	if err := h.text.Handle(ctx, r); err != nil {
		return err
	}
	return h.sendLocked(appendField(h.fields, "MESSAGE", bytes.TrimSuffix(h.line.Bytes(), []byte{'\n'})), h.prints)
}

// priorityOf is syslog's.
func priorityOf(l slog.Level) sdjournal.Priority {
	switch {
	case l >= slog.LevelError:
		return sdjournal.PriErr
	case l >= slog.LevelWarn:
		return sdjournal.PriWarning
	case l >= slog.LevelInfo:
		return sdjournal.PriInfo
	}
	return sdjournal.PriDebug
}
