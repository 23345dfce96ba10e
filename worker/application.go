package worker

import (
	"context"
	"io"
	"iter"
	"net/http"
)

// An Application answers one request: it calls start once, before it yields
// its first block, and returns the answer's body, of which nil is an empty one.
// It is called by many goroutines at once.
//
// The sequence is run once, and each block is sent before it is asked for the next; it is
// not kept. An empty block sends the header block, if that was not sent. Where
// the header Content-Length says how long the answer is, it is complete with
// its last byte: that saves a frame, and what is yielded beyond it is an error.
// A block is not sent to who asked by HEAD, or with status 204 or 304.
//
// An error that is yielded, or a panic, ends the answer: with 500 when nothing
// was sent, else visibly cut. It is logged.
//
// What is to be done when the answer has ended, however it does, stands behind
// the last yield or is deferred in the sequence: when the client has left, the
// sequence is told so by a yield that returns false, and while it does not
// yield, by ctx. The context ends with the exchange. It is cheap to be asked
// whether it has ended: nobody looks for the client before.
type Application func(ctx context.Context, environ Environ, start StartResponse) iter.Seq2[[]byte, error]

// Environ is a request: CGI's meta-variables, bytes as the client sent them,
// and the body.
type Environ struct {
	Variables map[string]string // the exchange's own: middleware may change it
	Body      io.Reader         // streams; http.NoBody when there is none. One goroutine at a time reads it
}

// StartResponse sets what the answer begins with. Nothing is sent by it, so
// that it may be called again, to take back what it was told, until the first
// block has been yielded. Its error says what cannot be sent: a status
// outside of 200 to 599, a name or value that is none, a header that is the web
// server's concern (Connection and its like). It has no effect then.
type StartResponse func(status int, header http.Header) error

// Middleware makes an Application of another, around it.
type Middleware func(Application) Application

// Wrap puts middleware around app. The first sees a request first.
func Wrap(app Application, middleware ...Middleware) Application {
	for i := len(middleware) - 1; i >= 0; i-- {
		app = middleware[i](app)
	}
	return app
}

// Blocks is a body that is there already.
func Blocks(blocks ...[]byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, b := range blocks {
			if !yield(b, nil) {
				return
			}
		}
	}
}
