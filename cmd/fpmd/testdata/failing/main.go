// Failing is a worker whose application fails at every request, and has altered
// the request's id before.
package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"

	"fpmd/worker"
)

func main() {
	if err := worker.Serve(fail, nil); err != nil {
		fmt.Fprintln(os.Stderr, "failing:", err)
		os.Exit(2)
	}
}

func fail(_ context.Context, environ worker.Environ, _ worker.StartResponse) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		environ.Variables["REQUEST_ID"] = "its-own"
		yield(nil, errors.New("no database"))
	}
}
