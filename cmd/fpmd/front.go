package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"fpmd/fcgi"
)

// A frontPool is what the built-in front knows of a pool: where it listens.
type frontPool struct {
	Name       string
	Network    string // "unix" or "tcp"
	Address    string
	ScriptName string // where its application is mounted: "" or "/prefix"
}

// A front is the web server of `fpmd serve --http`: HTTP on one side, the
// pools' own FastCGI sockets on the other. What it sends is what nginx sends
// with its stock fastcgi_params.
type front struct {
	pools []*frontRoute // as configured; the first is at /
	byLen []*frontRoute // the same, the longest script name first
}

type frontRoute struct {
	frontPool
	client fcgi.Client
}

// newFront serves each pool at http://NAME.localhost/, at /NAME/ and, where it
// has a script name, there; the first pool has all other paths.
func newFront(pools []frontPool) *front {
	f := new(front)
	for _, p := range pools {
		f.pools = append(f.pools, &frontRoute{p, fcgi.Client{Network: p.Network, Address: p.Address, MaxIdle: 64}})
	}
	f.byLen = slices.Clone(f.pools)
	slices.SortStableFunc(f.byLen, func(a, b *frontRoute) int { return cmp.Compare(len(b.ScriptName), len(a.ScriptName)) })
	return f
}

// A liveFront is the front of what pools there are now. The zero value has no pool, and is not to be asked.
type liveFront struct{ now atomic.Pointer[front] }

func (l *liveFront) ServeHTTP(w http.ResponseWriter, r *http.Request) { l.now.Load().ServeHTTP(w, r) }

// set, which is called by one goroutine at a time, has requests go to pools from now on; those that are under way end as they began.
func (l *liveFront) set(pools []frontPool) {
	before := l.now.Load()
	if before != nil && slices.EqualFunc(before.pools, pools, func(r *frontRoute, p frontPool) bool { return r.frontPool == p }) {
		return
	}
	if l.now.Store(newFront(pools)); before != nil {
		for _, r := range before.pools {
			r.client.Leave()
		}
	}
}

const (
	frontHeaderTimeout = 10 * time.Second
	frontIdleTimeout   = 2 * time.Minute
	frontDrain         = 30 * time.Second
)

// serveFront serves h on l until ctx ends, and then until the answers under
// way have ended, or half a minute later. It closes l.
func serveFront(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: frontHeaderTimeout,
		IdleTimeout:       frontIdleTimeout,
		MaxHeaderBytes:    64 << 10,
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }() // ends with Shutdown, or with an error
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), frontDrain)
	defer cancel()
	err := s.Shutdown(drain)
	if err != nil {
		err = errors.Join(err, s.Close())
	}
	<-served //nolint:errcheck // it says only that Shutdown was called
	return err
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p, uri := f.route(r)
	if p == nil {
		http.Redirect(w, r, uri, http.StatusTemporaryRedirect)
		return
	}
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex() // an error says that the protocol has it anyway
	req := &fcgi.ClientRequest{Params: cgiParams(r, uri)}
	if r.ContentLength != 0 {
		req.Body = r.Body
	}
	res, err := p.client.Do(r.Context(), req)
	if err != nil {
		badGateway(w, p, err)
		return
	}
	defer res.Stdout.Close()
	br := bufio.NewReaderSize(res.Stdout, 32<<10)
	status, _, header, err := fcgi.ReadResponseHeader(br)
	if lengths := header["Content-Length"]; len(lengths) > 0 {
		if _, e := strconv.ParseUint(lengths[0], 10, 63); e != nil || len(lengths) > 1 {
			err = fmt.Errorf("header block of the answer: Content-Length %q, want one number", lengths)
		}
	}
	if err != nil {
		badGateway(w, p, err)
		return
	}
	for _, name := range [...]string{"Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Trailer"} {
		header.Del(name) // they are about a connection that the application does not see
	}
	maps.Copy(w.Header(), header)
	if _, typed := header["Content-Type"]; !typed {
		w.Header()["Content-Type"] = nil // not to be guessed: no other front does
	}
	w.WriteHeader(status)
	if err := relay(w, rc, br); err != nil {
		// The client must see that the answer is not whole.
		panic(http.ErrAbortHandler)
	}
}

// relay copies an answer's body as it comes, behind the head.
func relay(w http.ResponseWriter, rc *http.ResponseController, br *bufio.Reader) error {
	if br.Buffered() == 0 {
		if err := rc.Flush(); err != nil { // the client may wait for the head to go on
			return err
		}
	}
	for {
		if _, err := br.Peek(1); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		b, _ := br.Peek(br.Buffered())
		_, err := w.Write(b)
		if errors.Is(err, http.ErrBodyNotAllowed) {
			err = nil // an answer to HEAD, 204 or 304: what comes is read off
		}
		if err != nil {
			return err
		}
		_, _ = br.Discard(len(b))
		if err := rc.Flush(); err != nil {
			return err
		}
	}
}

// badGateway is the page for a pool that can't be reached or makes no sense.
func badGateway(w http.ResponseWriter, p *frontRoute, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusBadGateway)
	fmt.Fprintf(w, "502 Bad Gateway\n\npool %s: %v\n", p.Name, err)
}

// route finds r's pool, and the path to ask it for. Without a pool, uri is
// where the client should go instead.
func (f *front) route(r *http.Request) (p *frontRoute, uri string) {
	uri = cleanPath(r.URL.Path)
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if name, ok := strings.CutSuffix(strings.ToLower(host), ".localhost"); ok {
		for _, p := range f.pools {
			if strings.ToLower(p.Name) == name {
				return p, mounted(p, uri)
			}
		}
	}
	for _, p := range f.byLen {
		if p.ScriptName != "" && below(uri, p.ScriptName) {
			return p, uri
		}
	}
	for _, p := range f.pools {
		if uri == "/"+p.Name && p.ScriptName != uri {
			to := uri + "/"
			if r.URL.RawQuery != "" {
				to += "?" + r.URL.RawQuery
			}
			return nil, to
		}
		if rest, ok := strings.CutPrefix(uri, "/"+p.Name+"/"); ok {
			return p, mounted(p, "/"+rest)
		}
	}
	return f.pools[0], mounted(f.pools[0], uri)
}

// mounted puts uri below the pool's script name, if it is not there.
func mounted(p *frontRoute, uri string) string {
	if below(uri, p.ScriptName) {
		return uri
	}
	return p.ScriptName + uri
}

func below(uri, prefix string) bool {
	rest, ok := strings.CutPrefix(uri, prefix)
	return ok && (rest == "" || rest[0] == '/')
}

// cleanPath merges slashes and resolves dots, as nginx does.
func cleanPath(p string) string {
	clean := path.Clean("/" + p)
	if clean != "/" && (strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") || strings.HasSuffix(p, "/..")) {
		clean += "/"
	}
	return clean
}

// cgiParams is nginx's stock fastcgi_params for r, with uri in the place of
// nginx's $uri: decoded and clean. A header field that comes twice is sent twice.
func cgiParams(r *http.Request, uri string) []fcgi.Param {
	remote, remotePort := hostPort(r.RemoteAddr)
	local, localPort := "", ""
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		local, localPort = hostPort(a.String())
	}
	name, _ := hostPort(r.Host)
	length := ""
	if r.ContentLength > 0 || r.ContentLength == 0 && r.Header.Get("Content-Length") != "" {
		length = strconv.FormatInt(r.ContentLength, 10)
	}
	ps := []fcgi.Param{
		{Name: "QUERY_STRING", Value: r.URL.RawQuery},
		{Name: "REQUEST_METHOD", Value: r.Method},
		{Name: "CONTENT_TYPE", Value: r.Header.Get("Content-Type")},
		{Name: "CONTENT_LENGTH", Value: length},
		{Name: "SCRIPT_NAME", Value: uri},
		{Name: "REQUEST_URI", Value: r.RequestURI},
		{Name: "DOCUMENT_URI", Value: uri},
		{Name: "DOCUMENT_ROOT", Value: "/nonexistent"},
		{Name: "SERVER_PROTOCOL", Value: r.Proto},
		{Name: "REQUEST_SCHEME", Value: "http"},
		{Name: "GATEWAY_INTERFACE", Value: "CGI/1.1"},
		{Name: "SERVER_SOFTWARE", Value: "fpmd"},
		{Name: "REMOTE_ADDR", Value: remote},
		{Name: "REMOTE_PORT", Value: remotePort},
		{Name: "SERVER_ADDR", Value: local},
		{Name: "SERVER_PORT", Value: localPort},
		{Name: "SERVER_NAME", Value: name},
		{Name: "REDIRECT_STATUS", Value: "200"},
	}
	if r.Host != "" {
		ps = append(ps, fcgi.Param{Name: "HTTP_HOST", Value: r.Host})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		if strings.ContainsRune(name, '_') {
			continue // it would pass for the field with a hyphen
		}
		for _, v := range r.Header[name] {
			ps = append(ps, fcgi.Param{Name: "HTTP_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_")), Value: v})
		}
	}
	return ps
}

// hostPort splits what may have no port.
func hostPort(s string) (host, port string) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return s, ""
	}
	return host, port
}
