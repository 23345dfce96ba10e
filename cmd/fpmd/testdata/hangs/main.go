// Hangs is a worker of which a request to /hang is never answered, and any other one for ever.
package main

import (
	"fmt"
	"net/http"
	"os"
	"time"

	"fpmd/worker"
)

func main() {
	if err := worker.Serve(worker.HTTP(http.HandlerFunc(serve)), nil); err != nil {
		fmt.Fprintln(os.Stderr, "hangs:", err)
		os.Exit(2)
	}
}

func serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/hang" {
		select {}
	}
	for {
		if _, err := fmt.Fprintln(w, "tick"); err != nil {
			return
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}
