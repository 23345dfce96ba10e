package worker

import (
	"context"
	"crypto/tls"
	"io"
	"iter"
	"net/http"
	"net/http/cgi"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"fpmd/protocol"
)

// maxKept is how much of an answer is kept until there is more, so that a
// small one gets its Content-Length and leaves in one piece.
const maxKept = 4 << 10

// HTTP hosts a net/http handler. It finds what it would in http.Server's
// request: URL and RequestURI as the client sent them, RemoteAddr, Host, TLS
// not nil where the client used https; Variables gives the rest. The body streams
// and so does the answer, after Flush or when it is more than a few KiB;
// http.ResponseController has Flush and EnableFullDuplex, which is the case anyway.
// The request's context ends when the client leaves.
//
// Answers are as http.Server makes them, too: the Content-Type is found
// out where none is set, a small answer gets its Content-Length, a panic is
// logged and costs its own request, http.ErrAbortHandler cuts the answer. The web server in front adds
// Date and speaks for the connection, so headers such as Connection are
// dropped. Trailers and 1xx answers can't pass a FastCGI server, and are
// ignored.
func HTTP(h http.Handler) Application {
	return func(ctx context.Context, environ Environ, start StartResponse) iter.Seq2[[]byte, error] {
		return func(yield func([]byte, error) bool) {
			w := &response{start: start, yield: yield}
			w.ctx = handlerContext{Context: ctx, variables: environ.Variables}
			r, err := request(&w.ctx, environ)
			if err != nil {
				http.Error(w, "Bad Request", http.StatusBadRequest)
			} else {
				h.ServeHTTP(w, r)
			}
			w.finish()
		}
	}
}

// Variables are CGI's meta-variables of a request that HTTP handed to a
// handler: those that an http.Request has no place for are there too. Nil for
// any other request.
func Variables(r *http.Request) map[string]string {
	variables, _ := r.Context().Value(variablesKey{}).(map[string]string)
	return variables
}

type variablesKey struct{}

type handlerContext struct {
	context.Context
	variables map[string]string
}

func (c *handlerContext) Value(key any) any {
	if key == (variablesKey{}) {
		return c.variables
	}
	return c.Context.Value(key)
}

// request makes of an environ what http.Server would make of the request.
func request(ctx context.Context, environ Environ) (*http.Request, error) {
	v := environ.Variables
	uri := v["REQUEST_URI"]
	if uri == "" {
		u := url.URL{Path: v["SCRIPT_NAME"] + v["PATH_INFO"], RawQuery: v["QUERY_STRING"]}
		uri = u.RequestURI()
	}
	// Package cgi puts Host and URI together and takes them apart again as a
	// URL. A client could then move its path into Host; http.Server looks at
	// the two apart, and so must we.
	host, hasHost := v["HTTP_HOST"]
	given, hasURI := v["REQUEST_URI"]
	delete(v, "HTTP_HOST")
	v["REQUEST_URI"] = "/"
	r, err := cgi.RequestFromMap(v)
	if hasHost {
		v["HTTP_HOST"] = host
	}
	if delete(v, "REQUEST_URI"); hasURI {
		v["REQUEST_URI"] = given
	}
	if err != nil {
		return nil, err
	}
	if r.URL, err = url.ParseRequestURI(uri); err != nil {
		return nil, err
	}
	r.Host, r.RequestURI, r.Close, r.Trailer = host, uri, false, nil
	if r.TLS == nil && v["REQUEST_SCHEME"] == "https" {
		r.TLS = &tls.ConnectionState{HandshakeComplete: true}
	}
	if addr := v["REMOTE_ADDR"]; addr == "" || strings.HasPrefix(addr, "unix:") {
		r.RemoteAddr = "@" // what http.Server says of a Unix socket's client
	}
	switch body := environ.Body.(type) {
	case io.ReadCloser:
		r.Body = body
	case nil:
		r.Body = http.NoBody
	default:
		r.Body = io.NopCloser(body)
	}
	if v["CONTENT_LENGTH"] == "" && r.Body != http.NoBody {
		r.ContentLength, r.TransferEncoding = -1, []string{"chunked"}
	}
	return r.WithContext(ctx), nil
}

// A response is a handler's http.ResponseWriter.
type response struct {
	start StartResponse
	ctx   handlerContext

	mu     sync.Mutex // a handler may leave goroutines behind that write when it is over
	yield  func([]byte, error) bool
	over   bool        // yield must not be called again
	err    error       // why nothing can be written any more
	header http.Header // the handler's
	frozen http.Header // what it was when the header block was decided on
	status int         // 0: not decided on
	length int64       // Content-Length, when frozen; -1: none
	sent   bool        // start was called
	body   []byte      // kept
	size   int64       // of what was written
}

// Header is the handler's to change until it writes.
func (w *response) Header() http.Header {
	if w.header == nil {
		w.header = make(http.Header)
	}
	return w.header
}

// WriteHeader decides on status and headers. A second call changes nothing,
// and neither does an informational status.
func (w *response) WriteHeader(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.decide(status)
}

func (w *response) decide(status int) {
	if w.status != 0 || status >= 100 && status < 200 {
		return
	}
	w.status, w.length, w.frozen = status, -1, make(http.Header, len(w.header)+2)
	for name, values := range w.header {
		if hopByHop(name) || strings.EqualFold(name, "Status") || !protocol.IsToken(name) {
			continue
		}
		if slices.ContainsFunc(values, func(v string) bool { return strings.ContainsFunc(v, control) }) {
			values = slices.Clone(values)
			for i, v := range values {
				values[i] = strings.Map(spaced, v)
			}
		}
		// A name in other letters would escape what is looked for below.
		name = http.CanonicalHeaderKey(name)
		if others, ok := w.frozen[name]; ok {
			values = append(others, values...)
		}
		w.frozen[name] = slices.Clip(values)
	}
	if given := w.frozen["Content-Length"]; len(given) > 0 {
		n, err := strconv.ParseUint(given[0], 10, 63)
		if err != nil || len(given) > 1 {
			delete(w.frozen, "Content-Length")
		} else {
			w.length = int64(n)
		}
	}
}

func control(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }

// spaced makes a space of what a header can't carry, as http.Server does with
// line ends.
func spaced(c rune) rune {
	if control(c) {
		return ' '
	}
	return c
}

func (w *response) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.decide(http.StatusOK); w.err != nil {
		return 0, w.err
	}
	switch {
	case w.over:
		return 0, protocol.ErrOver
	case bodiless(w.status):
		return 0, http.ErrBodyNotAllowed
	case w.length >= 0 && w.size+int64(len(p)) > w.length:
		return 0, http.ErrContentLength
	}
	w.size += int64(len(p))
	if w.size != w.length && len(w.body)+len(p) <= maxKept {
		w.body = append(w.body, p...)
		return len(p), nil
	}
	if err := w.send(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w *response) WriteString(s string) (int, error) { return w.Write([]byte(s)) }

// send yields what is kept, and p.
func (w *response) send(p []byte) error {
	w.begin(p)
	kept := w.body
	w.body = w.body[:0]
	if len(kept) > 0 && len(kept)+len(p) <= maxKept {
		kept, p = append(kept, p...), nil
	}
	if len(kept) > 0 || len(p) == 0 {
		w.put(kept)
	}
	if len(p) > 0 {
		w.put(p)
	}
	return w.err
}

// put yields one block, of which an empty one sends the headers.
func (w *response) put(block []byte) {
	if w.err == nil && !w.yield(block, nil) {
		w.err, w.over = protocol.ErrGone, true
	}
}

// begin calls start, before the first block that is yielded: p is part of it.
func (w *response) begin(p []byte) {
	if w.sent {
		return
	}
	w.sent = true
	_, typed := w.frozen["Content-Type"]
	first := w.body
	if len(first) == 0 {
		first = p
	}
	if !typed && len(first) > 0 && !bodiless(w.status) && len(w.frozen["Content-Encoding"]) == 0 {
		w.frozen["Content-Type"] = []string{http.DetectContentType(first)}
	}
	if err := w.start(w.status, w.frozen); err != nil {
		w.err = err
		w.over = true
		w.yield(nil, err)
	}
}

// Flush sends what was written so far, and the headers.
func (w *response) Flush() { _ = w.FlushError() }

// FlushError is Flush for http.ResponseController.
func (w *response) FlushError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.decide(http.StatusOK); w.err != nil {
		return w.err
	}
	if w.over {
		return protocol.ErrOver
	}
	if w.sent && len(w.body) == 0 {
		return nil
	}
	return w.send(nil)
}

// EnableFullDuplex is for http.ResponseController: body and answer always
// stream at once.
func (w *response) EnableFullDuplex() error { return nil }

// finish ends the answer when the handler has returned.
func (w *response) finish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() { w.over = true }()
	if w.decide(http.StatusOK); w.err != nil {
		return
	}
	if !w.sent && w.length < 0 && !bodiless(w.status) && (w.size > 0 || w.ctx.variables["REQUEST_METHOD"] != http.MethodHead) {
		w.frozen["Content-Length"] = []string{strconv.FormatInt(w.size, 10)}
	}
	if !w.sent || len(w.body) > 0 {
		_ = w.send(nil)
	}
}
