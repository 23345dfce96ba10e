package fcgi

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Client asks the application at one address, as a web server would. It
// keeps connections and has one request at a time on each. Any number of
// goroutines may use it. Its exported fields are set before the first Do.
type Client struct {
	Network string // "unix" or "tcp"
	Address string
	// Dial makes connections; nil means net.Dialer's DialContext.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// MaxIdle bounds the connections kept without a request; 0 means 16.
	// Below 0 none is kept, and the application is told so (no KEEP_CONN).
	MaxIdle int

	mu      sync.Mutex
	idle    []net.Conn // most recently used last
	leaving bool       // none is kept any more
}

const (
	defaultMaxIdle = 16
	clientID       = 1 // of every request: there is one at a time on a connection
	clientBuffer   = 32 << 10
)

// ErrRefused is what reading an answer returns when the application ended the
// request with another status than StatusRequestComplete.
var ErrRefused = errors.New("the application refused the request")

// A Param is one parameter of a request.
type Param struct {
	Name, Value string
}

// A ClientRequest is what is asked.
type ClientRequest struct {
	Role   Role    // 0 means RoleResponder
	Params []Param // sent in this order, repeated ones too
	// Body is sent as it can be read, while the answer is read; nil means none. It may be
	// in a Read until that returns, also after the answer has ended; what it gives then is discarded.
	Body io.Reader
	// Stderr takes what the application has for the error log; nil discards it.
	Stderr io.Writer
}

// A ClientResponse is the answer.
type ClientResponse struct {
	// Stdout is the answer's header block and body as they come. It ends with
	// io.EOF when the application has ended the request; with io.ErrUnexpectedEOF
	// when the connection ended before that; with ErrRefused; or with the
	// context's cause. Close before the end closes the connection, which aborts the request.
	Stdout io.ReadCloser
	// The request's end, known when Stdout has returned io.EOF or ErrRefused.
	AppStatus      uint32
	ProtocolStatus ProtocolStatus
}

// Do sends a request and returns when the answer begins. Until the answer has
// been read to its end or closed, the end of ctx closes the connection: that is
// how nginx aborts a request.
//
// A kept connection may be closed by the application just as it is used again. A
// request without a body of which nothing was answered is then sent again, on a
// new connection; one with a body is not, and Do returns the error.
func (c *Client) Do(ctx context.Context, req *ClientRequest) (*ClientResponse, error) {
	for {
		nc, kept, err := c.connect(ctx)
		if err != nil {
			return nil, err
		}
		a := c.newAnswer(ctx, nc, req)
		if err = a.ask(req); err == nil {
			return a.res, nil
		}
		if !kept || req.Body != nil || a.heard || ctx.Err() != nil {
			return nil, fmt.Errorf("ask %s: %w", c.Address, err)
		}
	}
}

// connect returns a kept connection that the application has not closed, or a new one.
func (c *Client) connect(ctx context.Context) (nc net.Conn, kept bool, err error) {
	c.mu.Lock()
	for len(c.idle) > 0 {
		nc := c.idle[len(c.idle)-1]
		c.idle = c.idle[:len(c.idle)-1]
		if silent(nc) {
			c.mu.Unlock()
			return nc, true, nil
		}
		nc.Close()
	}
	c.mu.Unlock()
	dial := c.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	nc, err = dial(ctx, c.Network, c.Address)
	return nc, false, err
}

// silent reports whether nothing has come on a connection without a request:
// neither its end, nor what nobody asked for.
func silent(nc net.Conn) bool {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return true // it will show
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	var b [1]byte
	var peek error
	err = raw.Control(func(fd uintptr) {
		_, _, peek = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	return err == nil && errors.Is(peek, unix.EAGAIN)
}

// keep takes a connection back whose request has ended.
func (c *Client) keep(nc net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leaving || len(c.idle) >= c.maxIdle() {
		nc.Close()
		return
	}
	c.idle = append(c.idle, nc)
}

func (c *Client) maxIdle() int {
	if c.MaxIdle == 0 {
		return defaultMaxIdle
	}
	return max(c.MaxIdle, 0)
}

// Leave closes the connections that have no request, and each of the others when its request has ended. Requests that come
// nevertheless have connections of their own.
func (c *Client) Leave() {
	c.mu.Lock()
	c.leaving = true
	c.mu.Unlock()
	c.CloseIdle()
}

// CloseIdle closes the connections that have no request.
func (c *Client) CloseIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, nc := range c.idle {
		nc.Close()
	}
	c.idle = nil
}

func (c *Client) newAnswer(ctx context.Context, nc net.Conn, req *ClientRequest) *answer {
	a := &answer{client: c, nc: nc, br: bufio.NewReaderSize(nc, clientBuffer), stderr: req.Stderr, ctx: ctx}
	if a.stderr == nil {
		a.stderr = io.Discard
	}
	a.res = &ClientResponse{Stdout: a}
	a.unwatch = context.AfterFunc(ctx, func() { nc.Close() }) // undone at the answer's end
	return a
}

// ask sends req and waits for the answer's first record. After an error the
// connection is closed.
func (a *answer) ask(req *ClientRequest) error {
	if _, err := a.nc.Write(appendRequest(nil, req, a.client.maxIdle() > 0)); err != nil {
		return a.fail(err)
	}
	if req.Body == nil {
		a.bodySent = true
	} else {
		go a.sendBody(req.Body) // ends with the body, or with the connection
	}
	if err := a.next(); err != nil {
		return a.fail(err)
	}
	return nil
}

// appendRequest appends all of a request but the body.
func appendRequest(dst []byte, req *ClientRequest, keep bool) []byte {
	role := req.Role
	if role == 0 {
		role = RoleResponder
	}
	dst = appendBegin(dst, clientID, role, keep)
	var params []byte
	for _, p := range req.Params {
		params = AppendParam(params, p.Name, p.Value)
	}
	if len(params) > 0 {
		dst = appendRecord(dst, typeParams, clientID, params)
	}
	dst = appendRecord(dst, typeParams, clientID, nil)
	if req.Body == nil && role != RoleAuthorizer {
		dst = appendRecord(dst, typeStdin, clientID, nil)
	}
	return dst
}

// An answer is one request's way on a connection: Stdout of its response.
type answer struct {
	client  *Client
	nc      net.Conn
	br      *bufio.Reader
	stderr  io.Writer
	ctx     context.Context // of the request, whose life is this answer's
	unwatch func() bool
	res     *ClientResponse

	heard     bool  // something has come
	left, pad int   // of the current STDOUT record
	err       error // what Read returns from now on

	mu       sync.Mutex // guards what the body's sender says, and is held while it writes its last
	bodySent bool
	bodyErr  error
}

// sendBody streams the body. An error at reading it aborts the request, as a
// client's disappearance does.
func (a *answer) sendBody(body io.Reader) {
	buf := make([]byte, HeaderLen+clientBuffer)
	for {
		n, err := body.Read(buf[HeaderLen:])
		records := buf[:0]
		if n > 0 {
			putHeader(buf, typeStdin, clientID, n)
			records = buf[:HeaderLen+n]
		}
		switch {
		case err == io.EOF:
			records = appendHeader(records, typeStdin, clientID, 0)
		case err != nil:
			a.mu.Lock()
			a.bodyErr = err
			a.mu.Unlock()
			a.nc.Close()
			return
		}
		if err == io.EOF {
			// The answer may end as soon as this is written; who finds out whether
			// the connection can be kept waits until that is known here.
			a.mu.Lock()
			defer a.mu.Unlock()
			_, werr := a.nc.Write(records)
			a.bodySent = werr == nil
			return
		}
		if _, werr := a.nc.Write(records); werr != nil {
			return // the answer, or its end, says why
		}
	}
}

// Read reads the answer.
func (a *answer) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for a.err == nil && a.left == 0 {
		if err := a.next(); err != nil {
			_ = a.fail(err)
		}
	}
	if a.left == 0 {
		return 0, a.err
	}
	n, err := a.br.Read(p[:min(len(p), a.left)])
	a.left -= n
	if err != nil {
		return n, a.fail(err)
	}
	if a.left == 0 {
		if _, err := a.br.Discard(a.pad); err != nil {
			_ = a.fail(err)
		}
	}
	return n, nil
}

// next reads records until one brings a part of the answer, or its end, which
// it notes in err.
func (a *answer) next() error {
	for {
		var b [HeaderLen]byte
		n, err := io.ReadFull(a.br, b[:])
		a.heard = a.heard || n > 0
		if err != nil {
			return err
		}
		h := parseHeader(&b)
		switch {
		case h.version != version1:
			return fmt.Errorf("%w: record of version %d, want 1", errProtocol, h.version)
		case h.id == 0: // a management record, which nobody asked for
		case h.id != clientID:
			return fmt.Errorf("%w: %v for request %d, want %d", errProtocol, h.typ, h.id, clientID)
		case h.typ == typeStdout && h.length > 0:
			a.left, a.pad = int(h.length), int(h.padding)
			return nil
		case h.typ == typeStdout:
		case h.typ == typeStderr:
			if _, err := io.CopyN(a.stderr, a.br, int64(h.length)); err != nil {
				return err
			}
			h.length = 0
		case h.typ == typeEndRequest:
			if h.length != 8 {
				return fmt.Errorf("%w: END_REQUEST of %d bytes, want 8", errProtocol, h.length)
			}
			var end [8]byte
			if _, err := io.ReadFull(a.br, end[:]); err != nil {
				return err
			}
			if _, err := a.br.Discard(int(h.padding)); err != nil {
				return err
			}
			a.end(binary.BigEndian.Uint32(end[:]), ProtocolStatus(end[4]))
			return nil
		default:
			return fmt.Errorf("%w: %v from an application", errProtocol, h.typ)
		}
		if _, err := a.br.Discard(int(h.length) + int(h.padding)); err != nil {
			return err
		}
	}
}

// end notes the request's end, and keeps the connection if it can be used again.
func (a *answer) end(app uint32, status ProtocolStatus) {
	a.res.AppStatus, a.res.ProtocolStatus = app, status
	a.err = io.EOF
	if status != StatusRequestComplete {
		a.err = fmt.Errorf("%w: %v", ErrRefused, status)
	}
	a.mu.Lock()
	sent := a.bodySent
	a.mu.Unlock()
	if a.unwatch() && sent && a.br.Buffered() == 0 && a.client.maxIdle() > 0 {
		a.client.keep(a.nc)
	} else {
		a.nc.Close()
	}
}

// fail closes the connection and notes why the answer has no end.
func (a *answer) fail(err error) error {
	a.nc.Close() // first: it ends what the body's sender may be in
	a.mu.Lock()
	bodyErr := a.bodyErr
	a.mu.Unlock()
	switch {
	case a.ctx.Err() != nil:
		err = context.Cause(a.ctx)
	case bodyErr != nil:
		err = fmt.Errorf("read the request's body: %w", bodyErr)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		err = io.ErrUnexpectedEOF
	}
	a.err, a.left = err, 0
	a.unwatch()
	return err
}

// Close ends the answer; before its end, that aborts the request.
func (a *answer) Close() error {
	if a.err == nil {
		_ = a.fail(net.ErrClosed)
	}
	return nil
}

// ReadResponseHeader reads the header block of a CGI answer (RFC 3875, section
// 6): what Status says, or 302 where there is a Location and no Status, else
// 200. The header comes without Status. One below 200 is an error: it would be no
// answer yet, and CGI has none of these.
func ReadResponseHeader(r *bufio.Reader) (status int, reason string, header textproto.MIMEHeader, err error) {
	header, err = textproto.NewReader(r).ReadMIMEHeader()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, "", nil, fmt.Errorf("header block of the answer: %w", err)
	}
	for name := range header {
		if strings.Contains(name, " ") { // which textproto lets pass
			return 0, "", nil, fmt.Errorf("header block of the answer: field name %.64q, want no space", name)
		}
	}
	line := header.Get("Status")
	header.Del("Status")
	switch {
	case line != "":
		code, rest, _ := strings.Cut(line, " ")
		status, err = strconv.Atoi(code)
		if err != nil || len(code) != 3 || status < 200 {
			return 0, "", nil, fmt.Errorf("header block of the answer: Status %.64q, want 200 to 999", line)
		}
		return status, rest, header, nil
	case header.Get("Location") != "":
		return 302, "Found", header, nil
	default:
		return 200, "OK", header, nil
	}
}

func (s ProtocolStatus) String() string {
	switch s {
	case StatusRequestComplete:
		return "REQUEST_COMPLETE"
	case StatusCantMultiplex:
		return "CANT_MPX_CONN"
	case StatusOverloaded:
		return "OVERLOADED"
	case StatusUnknownRole:
		return "UNKNOWN_ROLE"
	default:
		return fmt.Sprintf("protocol status %d", uint8(s))
	}
}
