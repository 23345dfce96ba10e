// Goapp serves the applications of the benchmarks (hello, env, body64k,
// body1m, echo) under fpmd, as an ordinary net/http handler.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"

	"fpmd/worker"
)

var (
	hello   = []byte("Hello, World!\n")
	body64k = bytes.Repeat([]byte("x"), 64<<10)
	body1m  = bytes.Repeat([]byte("x"), 1<<20)
)

func main() {
	if err := worker.Serve(worker.HTTP(http.HandlerFunc(serve)), nil); err != nil {
		fmt.Fprintln(os.Stderr, "goapp:", err)
		os.Exit(2)
	}
}

func serve(w http.ResponseWriter, r *http.Request) {
	var body []byte
	switch r.URL.Path {
	case "/hello":
		body = hello
	case "/env":
		body = env(r)
	case "/body64k":
		body = body64k
	case "/body1m":
		body = body1m
	case "/echo":
		in, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		body = []byte(strconv.Itoa(len(in)) + "\n")
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}

// env has what net/http/fcgi leaves of the variables, and the headers, so that
// the answers of both can be compared.
func env(r *http.Request) []byte {
	var b bytes.Buffer
	for k, v := range worker.Variables(r) {
		b.WriteString(k + "=" + v + "\n")
	}
	for k, v := range r.Header {
		b.WriteString(k + "=" + strings.Join(v, ",") + "\n")
	}
	b.WriteString("REQUEST_METHOD=" + r.Method + "\nREQUEST_URI=" + r.RequestURI + "\nREMOTE_ADDR=" + r.RemoteAddr + "\n")
	return b.Bytes()
}
