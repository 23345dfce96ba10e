package manager

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"golang.org/x/sys/unix"
)

// isTerminal says whether somebody reads w as it is written.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	c, err := f.SyscallConn() // Fd would make it block
	if err != nil {
		return false
	}
	is := false
	err = c.Control(func(fd uintptr) {
		_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		is = err == nil
	})
	return is && err == nil
}

// wantsColour says whether a terminal may be sent colours: https://no-color.org.
func wantsColour() bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// A terminalHandler lays lines out for a person at a terminal: time, level,
// pool/worker and message in columns, then whatever else there is, as the text
// format has it. No control character reaches the terminal, for messages have
// what workers print, and fields what clients send.
type terminalHandler struct {
	*screen
	rest   slog.Handler // writes all that has no column into screen.fields
	pool   string
	worker string
	prints bool // the message is a line that the worker printed
}

// A screen is what all handlers of a terminal share.
type screen struct {
	w      io.Writer
	level  slog.Leveler
	colour bool

	mu     sync.Mutex
	fields bytes.Buffer // of the line that is made
	whoLen int          // of the widest pool/worker so far
}

func newTerminalHandler(w io.Writer, level slog.Leveler, colour bool) *terminalHandler {
	s := &screen{w: w, level: level, colour: colour, whoLen: 8}
	return &terminalHandler{screen: s, rest: slog.NewTextHandler(&s.fields, &slog.HandlerOptions{
		Level: slog.Level(-1 << 31), // what is written is decided by Enabled
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && columns[a.Key] {
				return slog.Attr{}
			}
			return a
		},
	})}
}

// columns are the fields that have a place of their own.
var columns = map[string]bool{
	slog.TimeKey: true, slog.LevelKey: true, slog.MessageKey: true,
	"pool": true, "worker": true, "stream": true,
}

func (h *terminalHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level.Level()
}

func (h *terminalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	for _, a := range attrs {
		with.take(a)
	}
	with.rest = h.rest.WithAttrs(attrs)
	return &with
}

func (h *terminalHandler) WithGroup(name string) slog.Handler {
	with := *h
	with.rest = h.rest.WithGroup(name)
	return &with
}

// take keeps a field that has a column.
func (h *terminalHandler) take(a slog.Attr) {
	switch a.Key {
	case "pool":
		h.pool = a.Value.String()
	case "worker":
		h.worker = a.Value.String()
	case "stream":
		h.prints = true
	}
}

func (h *terminalHandler) Handle(ctx context.Context, r slog.Record) error {
	line := *h
	r.Attrs(func(a slog.Attr) bool { line.take(a); return true })
	return line.write(ctx, r)
}

// write writes a line whose columns are known.
func (h *terminalHandler) write(ctx context.Context, r slog.Record) error {
	who := h.pool
	if h.worker != "" {
		who += "/" + h.worker
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.whoLen = max(h.whoLen, len(who))
	message, fields := plain(r.Message), ""
	if h.prints {
		message = "| " + message // its pid is said where it is told to be ready
	} else {
		h.fields.Reset()
		if err := h.rest.Handle(ctx, r); err != nil {
			return err
		}
		fields = strings.TrimSpace(h.fields.String())
	}
	if fields != "" {
		if r.Level < slog.LevelWarn {
			fields = h.paint(faint, fields)
		}
		fields = "  " + fields
	}
	_, err := fmt.Fprintf(h.w, "%s %s %-*s  %s%s\n",
		h.paint(faint, r.Time.Format("15:04:05.000")), h.paint(colourOf(r.Level), fmt.Sprintf("%-5s", r.Level)),
		h.whoLen, who, message, fields)
	return err
}

const faint = "2"

// colourOf is how a level is shown: trouble should be seen at once.
func colourOf(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "1;31" // red
	case l >= slog.LevelWarn:
		return "1;33" // yellow
	case l >= slog.LevelInfo:
		return "32" // green
	}
	return faint
}

func (s *screen) paint(colour, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[m"
}

// plain is s where a terminal takes all of it for text, and s quoted elsewhere.
func plain(s string) string {
	for _, r := range s {
		if !unicode.IsPrint(r) && r != '\t' || r == unicode.ReplacementChar {
			return strconv.Quote(s)
		}
	}
	return s
}
