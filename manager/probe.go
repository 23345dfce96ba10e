package manager

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"fpmd/fcgi"
	"fpmd/protocol"
)

// probe makes the environ of the request by which a worker shows that it answers: what a web server
// would send of a client on this machine.
func (cfg *PoolConfig) probe(e *environ) error {
	u, err := url.ParseRequestURI(cfg.Probe)
	switch {
	case err != nil:
		return bareURL(err)
	case u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("the scheme %s is none of http and https", u.Scheme)
	case u.Scheme != "" && u.Hostname() == "":
		return errors.New("there is no host")
	case u.User != nil:
		return errors.New("there is a user, which no request has")
	case strings.ContainsFunc(cfg.Probe, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '#' }):
		return errors.New("there is a space, a # or a control character")
	}
	host, port, https := cmp.Or(u.Host, "localhost"), "80", ""
	if u.Scheme == "https" {
		port, https = "443", "on"
	}
	path := cmp.Or(u.Path, "/")
	var params []byte
	for _, p := range [...]fcgi.Param{
		{Name: "GATEWAY_INTERFACE", Value: "CGI/1.1"},
		{Name: "SERVER_SOFTWARE", Value: "fpmd"},
		{Name: "SERVER_PROTOCOL", Value: "HTTP/1.1"},
		{Name: "SERVER_NAME", Value: u.Hostname()}, // where it is "", the Host field says it
		{Name: "SERVER_ADDR", Value: "127.0.0.1"},
		{Name: "SERVER_PORT", Value: cmp.Or(u.Port(), port)},
		{Name: "HTTPS", Value: https},
		{Name: "REMOTE_ADDR", Value: "127.0.0.1"},
		{Name: "REMOTE_PORT", Value: "0"},
		{Name: "REQUEST_METHOD", Value: "GET"},
		{Name: "REQUEST_URI", Value: u.RequestURI()},
		{Name: "DOCUMENT_URI", Value: path},
		{Name: "SCRIPT_NAME", Value: path},
		{Name: "QUERY_STRING", Value: u.RawQuery},
		{Name: "HTTP_HOST", Value: host},
		{Name: "HTTP_USER_AGENT", Value: "fpmd-probe"},
		{Name: "HTTP_ACCEPT", Value: "*/*"},
	} {
		if p.Value != "" || p.Name == "QUERY_STRING" {
			params = fcgi.AppendParam(params, p.Name, p.Value)
		}
	}
	e.seen = new(nameSet)
	e.block = append(e.block[:0], make([]byte, protocol.RequestHead)...)
	if o := e.normalise(params, cfg.ScriptName); o != ok {
		return errors.New(e.reason)
	}
	return nil
}

// bareURL is err without the URL, which who reads it has before him.
func bareURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// A probeError is why a worker that has loaded its application is not fit to serve.
type probeError struct {
	uri    string
	cause  string
	answer string // what its body begins with
}

func (e *probeError) Error() string {
	s := fmt.Sprintf("probe %s: %s", e.uri, e.cause)
	if e.answer != "" {
		s += fmt.Sprintf("; the answer begins %q", e.answer)
	}
	return s
}

// wantsProbe reports whether the next worker of g has to answer the probe before it is ready:
// the first one that does speaks for the code of all.
func (g *generation) wantsProbe() bool {
	g.pool.mu.Lock()
	defer g.pool.mu.Unlock()
	return g.cfg.Probe != "" && g.probed == 0
}

func (g *generation) noteProbe(status int) {
	g.pool.mu.Lock()
	defer g.pool.mu.Unlock()
	g.probed = status
}

// probe asks the worker for the pool's probe over s, which is greeted, and is again when the
// answer was as it has to be. It returns the status. What ends the process ends it.
func (w *worker) probe(s *slot) (status int, err error) {
	p, cfg := w.gen.pool, w.gen.cfg
	var env environ
	if err := cfg.probe(&env); err != nil {
		return 0, err // which Load has refused
	}
	timeout, key := cfg.RequestTimeout, "request_timeout"
	if timeout == 0 {
		timeout, key = cfg.StartTimeout, "start_timeout"
	}
	s.Send(env.block, nil, true, p.numbers.Add(1))
	s.SetDeadline(time.Now().Add(timeout))
	buf := protocol.Buffers.Get().(*protocol.Buffer)
	defer protocol.Buffers.Put(buf)
	defer buf.Free()

	refusal := &probeError{uri: cfg.Probe}
	var body []byte
	failed := false
	for {
		a, err := s.Receive(buf, plainFrames{})
		switch {
		case errors.Is(err, protocol.ErrDeadline):
			refusal.cause = fmt.Sprintf("no complete answer in %s = %v", key, timeout)
		case errors.Is(err, protocol.ErrLost):
			refusal.cause = "the worker closed the connection without a complete answer"
			select {
			case <-w.proc.done():
				refusal.cause = "the worker is gone: " + w.proc.exit().String()
			case <-time.After(reapWait):
			}
		case err != nil:
			refusal.cause = err.Error()
		}
		if err != nil {
			return status, refusal
		}
		content := unframe(a.Bytes)
		if a.Status != 0 {
			status, content = a.Status, content[len(a.Block):]
		}
		failed = failed || a.Failed
		body = append(body, content[:min(len(content), beginning-len(body))]...)
		switch {
		case a.Cut:
			refusal.cause = "the answer was cut"
		case !a.Last:
			continue
		case failed: // what it has printed tells more than the page
			refusal.cause = fmt.Sprintf("the application failed, with status %d", status)
			return status, refusal
		case cfg.ProbeStatus != 0 && status != cfg.ProbeStatus:
			refusal.cause = fmt.Sprintf("status %d, want probe_status = %d", status, cfg.ProbeStatus)
		case cfg.ProbeStatus == 0 && status >= 400:
			refusal.cause = fmt.Sprintf("status %d, want one below 400", status)
		default:
			return status, nil
		}
		refusal.answer = string(body)
		return status, refusal
	}
}

// beginning is how much of a probe's answer an error repeats, in bytes.
const beginning = 200

// plainFrames is a Framer whose heads say how much stands behind them.
type plainFrames struct{}

func (plainFrames) Frame(head []byte, n int) { binary.LittleEndian.PutUint32(head, uint32(n)) }

// unframe is what was framed by plainFrames, without the heads.
func unframe(b []byte) (content []byte) {
	for len(b) >= protocol.HeaderLen {
		end := protocol.HeaderLen + int(binary.LittleEndian.Uint32(b))
		content = append(content, b[protocol.HeaderLen:end]...)
		b = b[end:]
	}
	return content
}
