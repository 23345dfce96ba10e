package manager

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"strconv"
	"strings"

	"fpmd/fcgi"
	"fpmd/protocol"
)

// An environ is what a request's parameters become: the block of the exchange
// protocol, the same for every front web server, and what fpmd itself wants to
// know of it. Its slices are parts of the block or of the request.
type environ struct {
	block  []byte // the block, behind as much room as the caller put there
	id     string // of the request
	method []byte
	uri    []byte // as the client sent it, where the front says
	client []byte // its address
	reason string // why the request was refused

	seen *nameSet
}

// normalise turns parameters, as they came, into the block, which it appends
// to e.block. What no application should have to see it leaves out (HTTP_PROXY,
// which httpoxy is made of; the copies HTTP_CONTENT_LENGTH and _TYPE), and
// what fronts say in different ways it says in one. It reports badRequest,
// with e.reason, for what can't be given to an application.
func (e *environ) normalise(params []byte, scriptName string) outcome {
	base := len(e.block)
	e.id, e.method, e.uri, e.client, e.reason = "", nil, nil, nil, ""
	e.seen.reset()
	var script, path, document, query, length, contentType, server, port, proto, host, scheme, https []byte
	for rest := params; len(rest) > 0; {
		var name, value []byte
		var err error
		if name, value, rest, err = fcgi.NextParam(rest); err != nil {
			return e.refuse("parameters: %v", err)
		}
		if bytes.IndexByte(value, 0) >= 0 {
			return e.refuse("parameter %.64q holds a NUL", name)
		}
		if !validName(name) {
			return e.refuse("parameter with the name %.64q", name)
		}
		if e.seen.add(name) {
			// It is rare, and stands in no other's way.
			if params, err = joinRepeated(params); err != nil {
				return e.refuse("%v", err)
			}
			e.block = e.block[:base]
			return e.normalise(params, scriptName)
		}
		switch string(name) {
		case "HTTP_PROXY", "HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE":
			continue
		case "SCRIPT_NAME":
			script = value
			continue
		case "PATH_INFO":
			path = value
			continue
		case "QUERY_STRING":
			query = value
			continue
		case "CONTENT_LENGTH":
			length = value
			continue
		case "CONTENT_TYPE":
			contentType = value
			continue
		case "SERVER_NAME":
			server = value
			continue
		case "SERVER_PORT":
			port = value
			continue
		case "SERVER_PROTOCOL":
			proto = value
			continue
		case "REQUEST_SCHEME":
			scheme = value
			continue
		case "REQUEST_ID":
			if validID(value) {
				e.id = string(value)
			}
			continue
		case "DOCUMENT_URI":
			document = value
		case "REQUEST_METHOD":
			e.method = value
		case "REQUEST_URI":
			e.uri = value
		case "REMOTE_ADDR":
			e.client = value
		case "HTTP_HOST":
			host = value
		case "HTTPS":
			https = value
		}
		e.add(name, value)
	}
	if len(e.method) == 0 {
		return e.refuse("no REQUEST_METHOD")
	}
	if len(length) > 0 && length[0] != '-' { // empty (nginx) and -1 (Caddy) say that it is not known
		if _, err := strconv.ParseUint(string(length), 10, 63); err != nil {
			return e.refuse("CONTENT_LENGTH %.64q", length)
		}
		e.addString("CONTENT_LENGTH", length)
	}
	if len(contentType) > 0 {
		e.addString("CONTENT_TYPE", contentType)
	}
	e.addString("QUERY_STRING", query)
	scheme, standardPort := schemeAndPort(scheme, https)
	name, hostPort := splitHost(host)
	if len(server) == 1 && server[0] == '_' { // nginx's catch-all
		server = nil
	}
	e.addString("REQUEST_SCHEME", scheme)
	e.addString("SERVER_NAME", firstOf(server, name, defaultHost))
	e.addString("SERVER_PORT", firstOf(port, hostPort, standardPort))
	e.addString("SERVER_PROTOCOL", firstOf(proto, defaultProtocol))
	if o := e.addPath(script, path, document, scriptName); o != ok {
		return o
	}
	if e.id == "" {
		e.id = newID()
	}
	e.block = append(append(append(append(e.block, "REQUEST_ID"...), 0), e.id...), 0)
	if n := len(e.block) - base; n > protocol.MaxEnviron {
		return e.refuse("environ of %d bytes, at most %d", n, protocol.MaxEnviron)
	}
	if e.uri == nil {
		e.uri = document
	}
	return ok
}

// addPath splits the request's path where the application is mounted. Fronts
// disagree on the split (nginx's stock parameters have all of it in
// SCRIPT_NAME), but not on the whole.
func (e *environ) addPath(script, path, document []byte, mount string) outcome {
	if len(path) > 0 && bytes.Equal(script, path) && bytes.Equal(script, document) {
		script = nil // both were set to the whole path, as many a guide has it
	}
	for _, p := range [...][]byte{script, path} {
		if hasDotDot(p) {
			return e.refuse("path %.128q leads upwards", p)
		}
	}
	e.block = append(append(append(append(e.block, "SCRIPT_NAME"...), 0), mount...), 0)
	e.block = append(append(e.block, "PATH_INFO"...), 0)
	at := len(e.block)
	e.block = append(append(e.block, script...), path...)
	whole := e.block[at:]
	switch {
	case mount == "":
	case len(whole) >= len(mount) && string(whole[:len(mount)]) == mount && (len(whole) == len(mount) || whole[len(mount)] == '/'):
		e.block = append(e.block[:at], whole[len(mount):]...)
		e.block = append(e.block, 0)
		return ok // an empty PATH_INFO is the mount point itself
	default:
		return e.refuse("path %.128q is not below script_name %q", whole, mount)
	}
	if len(whole) == 0 {
		e.block = append(e.block, '/')
	}
	e.block = append(e.block, 0)
	return ok
}

func (e *environ) refuse(format string, args ...any) outcome {
	e.reason = fmt.Sprintf(format, args...)
	if e.id == "" {
		e.id = newID()
	}
	return badRequest
}

func (e *environ) add(name, value []byte) {
	e.block = append(e.block, name...)
	e.block = append(e.block, 0)
	e.block = append(e.block, value...)
	e.block = append(e.block, 0)
}

func (e *environ) addString(name string, value []byte) {
	e.block = append(e.block, name...)
	e.block = append(e.block, 0)
	e.block = append(e.block, value...)
	e.block = append(e.block, 0)
}

// What stands where the front says nothing, because PEP 3333 and RFC 3875 want
// something there.
var (
	schemeHTTP, portHTTP   = []byte("http"), []byte("80")
	schemeHTTPS, portHTTPS = []byte("https"), []byte("443")
	defaultHost            = []byte("localhost")
	defaultProtocol        = []byte("HTTP/1.1")
)

func firstOf(values ...[]byte) []byte {
	for _, v := range values {
		if len(v) > 0 {
			return v
		}
	}
	return nil
}

// schemeAndPort are the scheme of the client's URL and its standard port. Of the
// two variables that fronts say it by, HTTPS counts where it is there: nginx's
// stock parameters have it only for https, others have "off".
func schemeAndPort(scheme, https []byte) (s, port []byte) {
	secure := false
	switch strings.ToLower(string(https)) {
	case "on", "1", "yes", "true", "https":
		secure = true
	case "":
		secure = bytes.EqualFold(scheme, schemeHTTPS)
	}
	if secure {
		return schemeHTTPS, portHTTPS
	}
	return schemeHTTP, portHTTP
}

// splitHost takes the value of a Host field apart, as far as it is one.
func splitHost(host []byte) (name, port []byte) {
	name = host
	if i := bytes.LastIndexByte(host, ':'); i >= 0 && bytes.IndexByte(host[i:], ']') < 0 {
		name, port = host[:i], host[i+1:]
	}
	if bytes.IndexByte(name, ':') >= 0 && !bytes.HasPrefix(name, []byte("[")) {
		return nil, nil // it is none
	}
	if n, err := strconv.ParseUint(string(port), 10, 16); err != nil || n == 0 {
		return name, nil
	}
	return name, port
}

// nameBytes are the bytes of a parameter's name that can't be taken for
// something else.
var nameBytes = func() (t [256]bool) {
	for c := byte('!'); c <= '~'; c++ {
		t[c] = c != '='
	}
	return
}()

// validName refuses what could pass for a variable of the gateway's own.
func validName(name []byte) bool {
	if len(name) == 0 {
		return false
	}
	for _, c := range name {
		if !nameBytes[c] {
			return false
		}
	}
	if name[0] >= 'a' { // all real ones but a few of Apache's are upper case
		for _, own := range [...]string{"wsgi.", "asgi.", "fpmd.", "werkzeug."} {
			if bytes.HasPrefix(name, []byte(own)) {
				return false
			}
		}
	}
	return true
}

func hasDotDot(p []byte) bool {
	for i := bytes.Index(p, []byte("..")); i >= 0; {
		if (i == 0 || p[i-1] == '/') && (i+2 == len(p) || p[i+2] == '/') {
			return true
		}
		next := bytes.Index(p[i+1:], []byte(".."))
		if next < 0 {
			return false
		}
		i += 1 + next
	}
	return false
}

func validID(id []byte) bool {
	if len(id) == 0 || len(id) > 64 {
		return false
	}
	for _, c := range id {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

func newID() string {
	var b [16]byte
	const digits = "0123456789abcdef"
	n := rand.Uint64()
	for i := range b {
		b[i] = digits[n&15]
		n >>= 4
	}
	return string(b[:])
}

// joinRepeated makes one of the parameters that come several times: header
// fields are joined as RFC 9110 section 5.3 and, for Cookie, RFC 6265 section
// 5.4 say; of the others the last counts, as a later fastcgi_param is meant to.
func joinRepeated(params []byte) ([]byte, error) {
	values := make(map[string]string)
	var order []string
	for len(params) > 0 {
		name, value, rest, err := fcgi.NextParam(params)
		if err != nil {
			return nil, err
		}
		params = rest
		n, v := string(name), string(value)
		old, again := values[n]
		switch {
		case !again:
			order = append(order, n)
		case n == "CONTENT_LENGTH" && old != v:
			return nil, fmt.Errorf("CONTENT_LENGTH is both %.64q and %.64q", old, v)
		case n == "HTTP_COOKIE":
			v = old + "; " + v
		case len(n) > 5 && n[:5] == "HTTP_":
			v = old + ", " + v
		}
		values[n] = v
	}
	var joined []byte
	for _, n := range order {
		joined = fcgi.AppendParam(joined, n, values[n])
	}
	return joined, nil
}

// A nameSet finds a name that comes twice without an allocation, as long as
// there are no more than fit. Its seed differs from process to process, so
// that nobody can make names that fall together.
type nameSet struct {
	table [256]nameEntry
	epoch uint32
	count int
	more  map[string]struct{}
}

type nameEntry struct {
	epoch uint32
	name  []byte
}

var nameSeed = maphash.MakeSeed()

func (s *nameSet) reset() {
	s.epoch++
	s.count = 0
	s.more = nil
}

// add adds name and reports whether it was there.
func (s *nameSet) add(name []byte) bool {
	if s.more == nil && s.count == len(s.table)/2 {
		s.more = make(map[string]struct{})
		for i := range s.table {
			if s.table[i].epoch == s.epoch {
				s.more[string(s.table[i].name)] = struct{}{}
			}
		}
	}
	if s.more != nil {
		_, there := s.more[string(name)]
		s.more[string(name)] = struct{}{}
		return there
	}
	for i := maphash.Bytes(nameSeed, name) % uint64(len(s.table)); ; i = (i + 1) % uint64(len(s.table)) {
		e := &s.table[i]
		if e.epoch != s.epoch {
			e.epoch, e.name = s.epoch, name
			s.count++
			return false
		}
		if bytes.Equal(e.name, name) {
			return true
		}
	}
}
