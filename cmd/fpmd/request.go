package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"fpmd/fcgi"
	"fpmd/manager"
)

const requestHelp = `usage: fpmd request POOL PATH [options]

Sends one request to the socket where POOL listens, as a web server would, and
writes the answer's body to standard output. What the application has for the
web server's error log goes to standard error. PATH may have a query, and
includes the pool's script_name. Options may stand anywhere.

  -X METHOD            the method (default GET, or POST with -d)
  -H 'Name: value'     a header field; may be repeated
  -d BODY              a body: as it stands, @FILE, or @- for standard input,
                       whose length is not told beforehand
  -i                   write status and header fields before the body
  -v                   write them, and the parameters sent, to standard error
  --param NAME=VALUE   a FastCGI parameter, in place of the one that would be
                       sent; with an empty VALUE, an empty one; may be repeated
  -c FILE              the configuration (default ` + defaultConfig + `)

exit codes: 0 the answer's status is below 400; 22 it is 400 or more, as with
curl -f, but the body is written; 69 the socket can't be reached; 64 wrong
command line, or no such pool; 78 wrong configuration; 1 anything else, such as
an answer that is cut short.
`

// exitHTTPError is what curl -f exits with.
const exitHTTPError = 22

// A requestLine is the command line of fpmd request.
type requestLine struct {
	pool, path string
	config     string
	method     string
	headers    repeated
	body       string
	hasBody    bool
	include    bool
	verbose    bool
	params     repeated
}

// repeated is a flag that may be given several times.
type repeated []string

func (r *repeated) String() string     { return strings.Join(*r, ", ") }
func (r *repeated) Set(s string) error { *r = append(*r, s); return nil }

func (l *requestLine) flags() *flag.FlagSet {
	f := newFlags("request")
	f.StringVar(&l.config, "c", defaultConfig, "read the configuration from `FILE`")
	f.StringVar(&l.method, "X", "", "use `METHOD`")
	f.Var(&l.headers, "H", "send the header `FIELD`, 'Name: value'")
	f.Func("d", "send `BODY`, or @FILE, or @- for standard input", func(s string) error { l.body, l.hasBody = s, true; return nil })
	f.BoolVar(&l.include, "i", false, "write status and header fields before the body")
	f.BoolVar(&l.verbose, "v", false, "write them, and the parameters sent, to standard error")
	f.Var(&l.params, "param", "send the FastCGI parameter `NAME=VALUE`")
	return f
}

func cmdRequest(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	line, err := parseRequestLine(args, stdout)
	if err != nil {
		return done(err)
	}
	cfg, err := loadConfig(line.config, manager.LoadOptions{Asking: true})
	if err != nil {
		return err
	}
	i := slices.IndexFunc(cfg.Pools, func(p *manager.PoolConfig) bool { return p.Name == line.pool })
	if i < 0 {
		var names []string
		for _, p := range cfg.Pools {
			names = append(names, p.Name)
		}
		return usageError("no pool %q in %s, which has: %s", line.pool, line.config, strings.Join(names, ", "))
	}
	at := cfg.Pools[i].Listen[0]
	return line.send(ctx, at.Network, at.Address, stdout, stderr)
}

func parseRequestLine(args []string, stdout io.Writer) (*requestLine, error) {
	var l requestLine
	f := l.flags()
	var words []string
	for { // package flag stops at the first word
		if err := parseFlags(f, args, requestHelp, stdout); err != nil {
			return nil, err
		}
		if f.NArg() == 0 {
			break
		}
		words, args = append(words, f.Arg(0)), f.Args()[1:]
	}
	if len(words) != 2 {
		return nil, usageError("request wants POOL and PATH, got %q: fpmd request --help", words)
	}
	l.pool, l.path = words[0], words[1]
	if !strings.HasPrefix(l.path, "/") {
		return nil, usageError("path %q does not begin with /", l.path)
	}
	if l.method == "" {
		l.method = http.MethodGet
		if l.hasBody {
			l.method = http.MethodPost
		}
	}
	return &l, nil
}

// send asks the application at address and writes its answer.
func (l *requestLine) send(ctx context.Context, network, address string, stdout, stderr io.Writer) error {
	req, err := l.request(ctx, stderr)
	if err != nil {
		return err
	}
	if c, ok := req.Body.(io.Closer); ok {
		defer c.Close()
	}
	if l.verbose {
		for _, p := range req.Params {
			fmt.Fprintf(stderr, "> %s=%s\n", p.Name, p.Value)
		}
	}
	client := fcgi.Client{Network: network, Address: address, MaxIdle: -1}
	res, err := client.Do(ctx, req)
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return &exitError{exitUnavailable, fmt.Errorf("pool %s: %w%s", l.pool, err, l.unreachable(err))}
	}
	if err != nil {
		return fmt.Errorf("pool %s: %w", l.pool, err)
	}
	defer res.Stdout.Close()
	br := bufio.NewReader(res.Stdout)
	status, reason, header, err := fcgi.ReadResponseHeader(br)
	if err != nil {
		return fmt.Errorf("pool %s: %w", l.pool, err)
	}
	if l.include {
		writeHead(stdout, status, reason, header, "", "\r\n")
		_, _ = io.WriteString(stdout, "\r\n")
	}
	if l.verbose {
		writeHead(stderr, status, reason, header, "< ", "\n")
	}
	if _, err := io.Copy(stdout, br); err != nil {
		return fmt.Errorf("pool %s: body of the answer: %w", l.pool, err)
	}
	if status >= 400 {
		return &exitError{exitHTTPError, fmt.Errorf("pool %s: %s %s: %d %s", l.pool, l.method, l.path, status, reason)}
	}
	return nil
}

// unreachable is what it usually means that nobody took the connection, behind the error
// that says so.
func (l *requestLine) unreachable(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Sprintf(": fpmd does not run, or listens elsewhere than %s says (listen of [pool.%s])", l.config, l.pool)
	case errors.Is(err, unix.EACCES):
		return ": whoever may write to a socket may connect: root, listen_owner, and listen_group as a rule"
	}
	return ""
}

// request is what the command line asks for.
func (l *requestLine) request(ctx context.Context, stderr io.Writer) (*fcgi.ClientRequest, error) {
	u, err := url.ParseRequestURI(l.path)
	if err != nil {
		return nil, usageError("path %q: %v", l.path, err)
	}
	r := (&http.Request{
		Method: l.method, URL: u, RequestURI: l.path, Proto: "HTTP/1.1",
		Header: make(http.Header), Host: "localhost", RemoteAddr: "127.0.0.1:0",
	}).WithContext(context.WithValue(ctx, http.LocalAddrContextKey, net.Addr(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80})))
	body, length, err := l.openBody()
	if err != nil {
		return nil, err
	}
	r.ContentLength = length
	if l.hasBody {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if length >= 0 {
			r.Header.Set("Content-Length", fmt.Sprint(length))
		}
	}
	r.Header.Set("User-Agent", "fpmd-request")
	given := make(http.Header)
	for _, h := range l.headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok || name == "" {
			return nil, usageError("-H %q: want 'Name: value'", h)
		}
		given.Add(name, strings.TrimSpace(value))
	}
	for name, values := range given {
		if name == "Host" {
			r.Host = values[0]
			continue
		}
		r.Header[name] = values
	}
	params := cgiParams(r, cleanPath(u.Path))
	for _, p := range l.params {
		name, value, ok := strings.Cut(p, "=")
		if !ok || name == "" {
			return nil, usageError("--param %q: want NAME=VALUE", p)
		}
		params = slices.DeleteFunc(params, func(p fcgi.Param) bool { return p.Name == name })
		params = append(params, fcgi.Param{Name: name, Value: value})
	}
	return &fcgi.ClientRequest{Params: params, Body: body, Stderr: stderr}, nil
}

// openBody is the body and its length, -1 where that is not known.
func (l *requestLine) openBody() (io.Reader, int64, error) {
	name, file := strings.CutPrefix(l.body, "@")
	switch {
	case !l.hasBody:
		return nil, 0, nil
	case !file:
		return strings.NewReader(l.body), int64(len(l.body)), nil
	case name == "-":
		return os.Stdin, -1, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, fmt.Errorf("-d: %w", err)
	}
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return f, -1, err
	}
	return f, fi.Size(), nil
}

// writeHead writes the head of an answer, each line between before and after.
func writeHead(w io.Writer, status int, reason string, header textproto.MIMEHeader, before, after string) {
	fmt.Fprintf(w, "%sStatus: %d %s%s", before, status, reason, after)
	for _, name := range slices.Sorted(maps.Keys(header)) {
		for _, v := range header[name] {
			fmt.Fprintf(w, "%s%s: %s%s", before, name, v, after)
		}
	}
}
