package manager

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A journald that reads entries when it is asked to.
type fakeJournald struct {
	t    *testing.T
	conn *net.UnixConn

	passed bool // the last entry came as a descriptor
}

func newFakeJournald(t *testing.T) *fakeJournald {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "socket"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &fakeJournald{t: t, conn: conn}
}

func (f *fakeJournald) path() string { return f.conn.LocalAddr().String() }

// logger writes to f, and to without when f is not there.
func (f *fakeJournald) logger(without io.Writer) (*slog.Logger, *journal) {
	f.t.Helper()
	j, err := openJournal(f.path())
	if err != nil {
		f.t.Fatal(err)
	}
	return slog.New(newJournalHandler(j, slog.LevelInfo, slog.NewTextHandler(without, nil))), j
}

// entry is the next one's fields, as journald reads them.
func (f *fakeJournald) entry() map[string]string {
	f.t.Helper()
	b, oob := make([]byte, 1<<20), make([]byte, 1<<10)
	f.conn.SetReadDeadline(time.Now().Add(time.Minute))
	n, oobn, _, _, err := f.conn.ReadMsgUnix(b, oob)
	if err != nil {
		f.t.Fatalf("no entry: %v", err)
	}
	b = b[:n]
	if f.passed = oobn > 0; f.passed {
		messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
		fds, _ := unix.ParseUnixRights(&messages[0])
		file := os.NewFile(uintptr(fds[0]), "entry")
		defer file.Close()
		if n != 0 {
			f.t.Errorf("%d bytes beside a descriptor", n)
		}
		if b, err = io.ReadAll(io.NewSectionReader(file, 0, 1<<30)); err != nil {
			f.t.Fatal(err)
		}
	}
	fields := map[string]string{}
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte{'\n'})
		name, value, text := bytes.Cut(line, []byte{'='})
		if !text {
			size := binary.LittleEndian.Uint64(rest)
			value, rest = rest[8:8+size], rest[8+size+1:]
		}
		if _, twice := fields[string(name)]; twice {
			f.t.Errorf("the field %s is there twice", name)
		}
		fields[string(name)], b = string(value), rest
	}
	return fields
}

// A line is an entry with a priority and fields, and the line of the text format as its message, whatever is in it.
func TestJournalEntries(t *testing.T) {
	f := newFakeJournald(t)
	log, j := f.logger(t.Output())
	defer j.close()
	pool := log.With("pool", "blog")
	worker := pool.With("worker", 3, "pid", 4121)
	long := strings.Repeat("x", 256<<10) // for a datagram too long
	j.conn.SetWriteBuffer(16 << 10)
	for _, tc := range []struct {
		log  func()
		want map[string]string
	}{
		{func() { log.Info("every pool is ready") }, map[string]string{"PRIORITY": "6", "MESSAGE": `level=INFO msg="every pool is ready"`}},
		{func() {
			pool.Warn("request failed", "outcome", "timeout", "id", "0b79512e0ec51f8e", "worker", 2)
		}, map[string]string{
			"PRIORITY": "4", "POOL": "blog", "OUTCOME": "timeout", "REQUEST_ID": "0b79512e0ec51f8e", "WORKER": "2",
			"MESSAGE": `level=WARN msg="request failed" pool=blog outcome=timeout id=0b79512e0ec51f8e worker=2`,
		}},
		{func() { worker.Error("worker gone", "cause", "killed") }, map[string]string{
			"PRIORITY": "3", "POOL": "blog", "WORKER": "3", "MESSAGE": `level=ERROR msg="worker gone" pool=blog worker=3 pid=4121 cause=killed`,
		}},
		{func() { worker.With("stream", "stderr").Info("PRIORITY=0\r") }, map[string]string{
			"PRIORITY": "6", "POOL": "blog", "WORKER": "3", "STREAM": "stderr", "MESSAGE": `level=INFO msg="PRIORITY=0\r" pool=blog worker=3 pid=4121 stream=stderr`,
		}},
		{func() { log.Info("request", "id", "a\nPRIORITY=0") }, map[string]string{
			"PRIORITY": "6", "REQUEST_ID": "a\nPRIORITY=0", "MESSAGE": `level=INFO msg=request id="a\nPRIORITY=0"`,
		}},
		{func() { log.Info(long) }, map[string]string{"PRIORITY": "6", "MESSAGE": "level=INFO msg=" + long}},
		{func() { log.Debug("not asked for"); log.Info("after it") }, map[string]string{"PRIORITY": "6", "MESSAGE": `level=INFO msg="after it"`}},
	} {
		tc.log()
		tc.want["SYSLOG_IDENTIFIER"] = "fpmd"
		if got := f.entry(); fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("got %.1000v,\nwant %.1000v", got, tc.want)
		}
		if f.passed != (len(tc.want["MESSAGE"]) > len(long)) {
			t.Errorf("%.100s came as a descriptor: %v", tc.want["MESSAGE"], f.passed)
		}
	}
}

// A journald that does not read keeps nobody from going on, and gets what it missed, in order, when it does; how much
// was too much is said. Who prints waits, and loses nothing.
func TestJournalThatDoesNotRead(t *testing.T) {
	f := newFakeJournald(t)
	log, j := f.logger(t.Output())
	defer j.close()
	filler := strings.Repeat("x", 10_000)
	sent := 0
	for ; sent < 1000; sent++ { // more than the kernel and we keep
		log.Info("line", "n", sent, "filler", filler)
	}
	printed := make(chan struct{})
	go func() { // ends when there is room again
		log.With("stream", "stdout").Info("printed")
		close(printed)
	}()
	got, kept, lost := 0, 0, 0
	for printedToo := false; lost == 0 || !printedToo; {
		message := f.entry()["MESSAGE"]
		if strings.Contains(message, "msg=printed") {
			printedToo = true
		} else if _, err := fmt.Sscanf(message, "level=INFO msg=line n=%d", &got); err == nil {
			if got != kept {
				t.Fatalf("line %d comes where %d should", got, kept)
			}
			kept++
		} else if _, err := fmt.Sscanf(message, "fpmd: write the log: the journal is written again, %d lines were lost", &lost); err != nil {
			t.Fatalf("an entry %q", message)
		}
	}
	<-printed
	if kept+lost != sent || kept < journalWaiting/len(filler) {
		t.Errorf("%d lines have come, %d were lost, of %d", kept, lost, sent)
	}
}

// Without a journald lines go to standard error, and to journald when there is one again.
func TestJournalGone(t *testing.T) {
	f := newFakeJournald(t)
	var stderr bytes.Buffer
	log, j := f.logger(&stderr)
	defer j.close()
	path := f.path()
	f.conn.Close()
	log.Info("nobody reads")
	if !strings.Contains(stderr.String(), `msg="nobody reads"`) {
		t.Errorf("standard error has %q", &stderr)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	f.conn = conn
	log.Info("read again")
	if got := f.entry()["MESSAGE"]; got != `level=INFO msg="read again"` {
		t.Errorf("the entry is %q", got)
	}
}

// How much was lost with a journald that ended while it was behind is said to the next one.
func TestJournalGoneWhileItIsBehind(t *testing.T) {
	f := newFakeJournald(t)
	log, j := f.logger(t.Output())
	defer j.close()
	sending := func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		return j.sending
	}
	for !sending() {
		log.Info("line")
	}
	path := f.path()
	f.conn.Close()
	for sending() {
		time.Sleep(time.Millisecond)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	f.conn = conn
	log.Info("read again")
	for _, want := range []string{`level=INFO msg="read again"`, "fpmd: write the log: the journal is written again, 1 lines were lost"} {
		if got := f.entry()["MESSAGE"]; got != want {
			t.Errorf("the entry is %q, want %q", got, want)
		}
	}
}
