// Go-handler is an ordinary net/http handler under fpmd: a mux, a form, an
// upload that streams, events.
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"fpmd/worker"
)

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", home)
	mux.HandleFunc("PUT /upload", upload)
	mux.HandleFunc("GET /events", events)
	if err := worker.Serve(worker.HTTP(mux), &worker.Options{Concurrency: 32}); err != nil {
		fmt.Fprintln(os.Stderr, "go-handler:", err)
		os.Exit(2)
	}
}

func home(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "Hello, %s!\n", r.FormValue("name"))
}

// upload never holds more than a piece of what is sent.
func upload(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	n, err := io.Copy(sum, r.Body)
	if err != nil {
		return // the client has left
	}
	fmt.Fprintf(w, "%d bytes, sha256 %x\n", n, sum.Sum(nil))
}

// events sends one each second, until the client has left.
func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx passes each on at once
	out := http.NewResponseController(w)
	for n := 1; ; n++ {
		fmt.Fprintf(w, "data: %d\n\n", n)
		if out.Flush() != nil {
			return
		}
		select {
		case <-time.After(time.Second):
		case <-r.Context().Done():
			return
		}
	}
}
