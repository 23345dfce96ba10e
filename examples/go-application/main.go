// Go-application is an Application, written to the gateway interface: a clock
// that streams, a page, and middleware around both.
package main

import (
	"context"
	"fmt"
	"html"
	"io"
	"iter"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"fpmd/worker"
)

func main() {
	app := worker.Wrap(page, logged, below("/clock", clock))
	if err := worker.Serve(app, nil); err != nil {
		fmt.Fprintln(os.Stderr, "go-application:", err)
		os.Exit(2)
	}
}

// page answers with what it was asked.
func page(_ context.Context, environ worker.Environ, start worker.StartResponse) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		body, err := io.ReadAll(environ.Body)
		if err != nil {
			yield(nil, err) // answers 500
			return
		}
		v := environ.Variables
		out := fmt.Sprintf("<!doctype html>\n<title>fpmd</title>\n<p>%s %s, %d bytes of body. See also the <a href=\"%s/clock\">clock</a>.\n",
			html.EscapeString(v["REQUEST_METHOD"]), html.EscapeString(v["PATH_INFO"]), len(body), html.EscapeString(v["SCRIPT_NAME"]))
		header := http.Header{
			"Content-Type":   {"text/html; charset=utf-8"},
			"Content-Length": {fmt.Sprint(len(out))},
		}
		if err := start(http.StatusOK, header); err != nil {
			yield(nil, err)
			return
		}
		yield([]byte(out), nil)
	}
}

// clock sends the time, each second, for as long as somebody looks.
func clock(ctx context.Context, _ worker.Environ, start worker.StartResponse) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		header := http.Header{"Content-Type": {"text/plain"}, "X-Accel-Buffering": {"no"}}
		if err := start(http.StatusOK, header); err != nil {
			yield(nil, err)
			return
		}
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for now := time.Now(); ; {
			if !yield([]byte(now.Format(time.TimeOnly)+"\n"), nil) {
				return // the client has left
			}
			select {
			case now = <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}
}

// below makes middleware that hands requests below a path to another
// Application, moving the path from PATH_INFO to SCRIPT_NAME as CGI has it.
func below(prefix string, app worker.Application) worker.Middleware {
	return func(next worker.Application) worker.Application {
		return func(ctx context.Context, environ worker.Environ, start worker.StartResponse) iter.Seq2[[]byte, error] {
			v := environ.Variables
			rest, found := strings.CutPrefix(v["PATH_INFO"], prefix)
			if !found || rest != "" && rest[0] != '/' {
				return next(ctx, environ, start)
			}
			v["SCRIPT_NAME"] += prefix
			v["PATH_INFO"] = rest
			return app(ctx, environ, start)
		}
	}
}

// logged is middleware that logs each answer's status and length.
func logged(next worker.Application) worker.Application {
	return func(ctx context.Context, environ worker.Environ, start worker.StartResponse) iter.Seq2[[]byte, error] {
		method, path := environ.Variables["REQUEST_METHOD"], environ.Variables["PATH_INFO"]
		status, length := 0, 0
		body := next(ctx, environ, func(s int, header http.Header) error {
			status = s
			return start(s, header)
		})
		return func(yield func([]byte, error) bool) {
			defer func() { log.Printf("%s %q: %d, %d bytes", method, path, status, length) }()
			if body == nil {
				return
			}
			for block, err := range body {
				length += len(block)
				if !yield(block, err) {
					return
				}
			}
		}
	}
}
