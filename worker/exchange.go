package worker

import (
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"

	"fpmd/protocol"
)

// An exchange is one run of an application. It is not used again, for the
// application may keep what it was handed.
type exchange struct {
	host    *host
	x       *protocol.Exchange
	ctx     exchangeContext
	body    body
	environ Environ

	status   int     // 0 until start was called
	block    *[]byte // the header block without its end; from blocks
	length   int64   // Content-Length; -1: none
	bodiless bool    // HEAD, 204, 304
	sent     bool    // the header block was
	written  int64
}

var blocks = sync.Pool{New: func() any {
	b := make([]byte, 0, 512)
	return &b
}}

// Errors that an application can bring about.
var (
	errStarted    = errors.New("start: the header block was sent already")
	errNotStarted = errors.New("the application yielded a block, or ended, before it called start")
	errTooLong    = errors.New("the application yielded more than its Content-Length")
	errTooShort   = errors.New("the application yielded less than its Content-Length")
)

// handle is protocol.Worker's: it answers x by the application.
func (h *host) handle(x *protocol.Exchange) error {
	variables, err := protocol.ParseEnviron(x.Environ())
	if err != nil {
		return err
	}
	e := &exchange{host: h, x: x, length: -1, environ: Environ{Variables: variables, Body: http.NoBody}}
	e.ctx.x = x
	if !x.Ended() {
		e.body.e = e
		e.environ.Body = &e.body
	}
	// In this order: the context ends first, and a Read of the body that still
	// waits is over when the web server, which has its answer, says so.
	defer e.body.end()
	defer e.ctx.end()
	defer e.release()
	e.run()
	return nil
}

// run has the application answer.
func (e *exchange) run() {
	defer func() {
		if v := recover(); v != nil {
			e.panicked(v, debug.Stack())
		}
	}()
	if body := e.host.app(&e.ctx, e.environ, e.start); body != nil {
		for block, err := range body {
			if err == nil {
				err = e.write(block)
			}
			if err != nil {
				e.fail(err, nil)
				return
			}
		}
	}
	if err := e.finish(); err != nil {
		e.fail(err, nil)
	}
}

// start is the application's StartResponse.
func (e *exchange) start(status int, header http.Header) error {
	if e.sent {
		return errStarted
	}
	var room [16]string
	names := room[:0]
	for name := range header {
		names = append(names, name)
	}
	slices.Sort(names)
	buf := blocks.Get().(*[]byte)
	block, err := protocol.AppendStatus((*buf)[:0], status, http.StatusText(status))
	length := int64(-1)
	for _, name := range names {
		for _, value := range header[name] {
			switch {
			case err != nil:
			case hopByHop(name):
				err = fmt.Errorf("header %s is the web server's concern", name)
			case len(name) == len("Content-Length") && strings.EqualFold(name, "Content-Length"):
				n, bad := strconv.ParseUint(value, 10, 63)
				if bad != nil || length >= 0 {
					err = fmt.Errorf("header Content-Length %q: want one number", header[name])
				}
				length = int64(n)
			}
			if err == nil {
				block, err = protocol.AppendField(block, name, value)
			}
		}
	}
	if err == nil && len(block) > protocol.MaxHeaderBlock-len("Content-Length: 0\r\n\r\n") {
		err = fmt.Errorf("header block of %d bytes, at most %d", len(block), protocol.MaxHeaderBlock)
	}
	if *buf = block; err != nil {
		blocks.Put(buf)
		return fmt.Errorf("start: %w", err)
	}
	e.release()
	e.block, e.status, e.length = buf, status, length
	e.bodiless = bodiless(status) || e.environ.Variables["REQUEST_METHOD"] == http.MethodHead
	return nil
}

// release gives the memory of the header block back.
func (e *exchange) release() {
	if e.block != nil {
		if cap(*e.block) <= 8<<10 {
			blocks.Put(e.block)
		}
		e.block = nil
	}
}

// head hands the header block on.
func (e *exchange) head() error {
	if e.sent {
		return nil
	}
	if e.status == 0 {
		return errNotStarted
	}
	e.sent = true
	block := protocol.AppendEnd(*e.block)
	*e.block = block
	return e.x.Respond(e.status, block, false)
}

// write sends one block.
func (e *exchange) write(block []byte) error {
	if err := e.head(); err != nil {
		return err
	}
	if e.bodiless {
		if e.x.Answered() {
			return nil
		}
		return e.x.End(nil)
	}
	if e.length < 0 || e.written+int64(len(block)) < e.length {
		e.written += int64(len(block))
		if _, err := e.x.Write(block); err != nil {
			return err
		}
		return e.x.Flush()
	}
	rest := e.length - e.written
	tooLong := rest < int64(len(block))
	if rest > 0 || e.length == 0 && !e.x.Answered() {
		e.written = e.length
		if err := e.x.End(block[:rest]); err != nil {
			return err
		}
	}
	if tooLong {
		return errTooLong
	}
	return nil
}

// finish ends the answer when the sequence is over.
func (e *exchange) finish() error {
	if !e.sent && e.status != 0 && !e.bodiless && e.length < 0 {
		*e.block = append(*e.block, "Content-Length: 0\r\n"...)
	}
	if err := e.head(); err != nil {
		return err
	}
	switch {
	case e.x.Answered():
		return nil
	case !e.bodiless && e.written < e.length:
		return errTooShort
	}
	return e.x.End(nil)
}

// fail ends the answer of an application that did not: by 500 where nothing
// was sent, else so that it is seen to be incomplete. stack is a panic's.
func (e *exchange) fail(cause error, stack []byte) {
	if errors.Is(cause, protocol.ErrGone) {
		e.ctx.end()
		return // nobody is there to be told, and the application has done nothing wrong
	}
	// Anew: those that the application has are its own to alter, by now perhaps in a
	// goroutine that it left behind.
	v, _ := protocol.ParseEnviron(e.x.Environ()) // handle did it before
	id := v["REQUEST_ID"]
	e.host.logf("%s %q (%s): %v\n%s", v["REQUEST_METHOD"], v["REQUEST_URI"], id, cause, stack)
	if e.x.Answered() {
		return // complete, whatever happened afterwards
	}
	if e.sent {
		_ = e.x.Cut(true)
		return
	}
	// As the supervisor's own pages, in manager/outcome.go.
	page := "500 Internal Server Error: app_error\n"
	if e.host.debug {
		page = fmt.Sprintf("%s\n%v\n%s", page, cause, stack)
	}
	block := fmt.Appendf(nil, "Status: 500 Internal Server Error\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nContent-Length: %d\r\nFpmd-Outcome: app_error\r\nFpmd-Request-Id: %s\r\n\r\n", len(page), id)
	if v["REQUEST_METHOD"] == http.MethodHead {
		page = ""
	}
	e.sent = true
	if e.x.Respond(http.StatusInternalServerError, block, true) == nil {
		_ = e.x.End([]byte(page)) // whether anybody is there to read it changes nothing
	}
}

func (e *exchange) panicked(v any, stack []byte) {
	err, ok := v.(error)
	if ok && errors.Is(err, http.ErrAbortHandler) {
		if !e.x.Answered() {
			_ = e.x.Cut(true) // on purpose: nothing to log
		}
		return
	}
	e.fail(fmt.Errorf("panic: %v", v), stack)
}

// hopByHop reports whether a header speaks of the connection, which is the web
// server's.
func hopByHop(name string) bool {
	for _, h := range [...]string{"Connection", "Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Transfer-Encoding", "Upgrade"} {
		if len(name) == len(h) && strings.EqualFold(name, h) {
			return true
		}
	}
	return false
}

func bodiless(status int) bool {
	return status == http.StatusNoContent || status == http.StatusNotModified
}

// A body is a request's, for as long as its exchange.
type body struct {
	mu sync.Mutex // held over a Read, so that none reads another exchange's body
	e  *exchange  // nil when it has ended, or there is no body
}

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.e == nil {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.e.x.Read(p)
	if err != nil && errors.Is(err, protocol.ErrGone) {
		b.e.ctx.end()
	}
	return n, err
}

func (b *body) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.e = nil
}

// Close is for http.Request. What was not read is discarded in the end.
func (b *body) Close() error {
	b.end()
	return nil
}
