package worker_test

import (
	"fmt"
	"net/http"
	"os"

	"fpmd/worker"
)

// A program that fpmd runs: main makes the application, then calls Serve.
func Example() {
	http.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Hello, %s!\n", r.FormValue("name"))
	})
	if err := worker.Serve(worker.HTTP(http.DefaultServeMux), nil); err != nil {
		fmt.Fprintln(os.Stderr, err) // in a process that fpmd has not started: how to run it
		os.Exit(2)
	}
}
