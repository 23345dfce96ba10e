package manager

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"fpmd/fcgi"
	"fpmd/protocol"
)

// params makes a stream of pairs from "NAME=value" strings.
func params(pairs ...string) (b []byte) {
	for _, p := range pairs {
		name, value, _ := strings.Cut(p, "=")
		b = fcgi.AppendParam(b, name, value)
	}
	return b
}

// normalised runs params through normalise and takes the block apart.
func normalised(t *testing.T, params []byte, mount string) (map[string]string, outcome, *environ) {
	t.Helper()
	e := &environ{seen: new(nameSet)}
	o := e.normalise(params, mount)
	if o != ok {
		return nil, o, e
	}
	strs := strings.Split(string(e.block), "\x00")
	if len(strs)%2 != 1 || strs[len(strs)-1] != "" {
		t.Fatalf("block %q is not pairs of strings", e.block)
	}
	m := make(map[string]string)
	for i := 0; i+1 < len(strs); i += 2 {
		if _, twice := m[strs[i]]; twice || strs[i] == "" {
			t.Fatalf("block %q has %q twice or empty", e.block, strs[i])
		}
		m[strs[i]] = strs[i+1]
	}
	return m, o, e
}

// What fronts say in different ways, an application reads in one.
func TestEnviron(t *testing.T) {
	const absent = "(absent)"
	tests := []struct {
		name   string
		mount  string
		params []string
		want   map[string]string
	}{
		{"nginx, stock parameters", "", []string{"SCRIPT_NAME=/a/b", "DOCUMENT_URI=/a/b", "REQUEST_URI=/a/b?x"}, map[string]string{"SCRIPT_NAME": "", "PATH_INFO": "/a/b"}},
		{"nginx, mounted", "/blog", []string{"SCRIPT_NAME=/blog/post", "DOCUMENT_URI=/blog/post"}, map[string]string{"SCRIPT_NAME": "/blog", "PATH_INFO": "/post"}},
		{"nginx, the mount point itself", "/blog", []string{"SCRIPT_NAME=/blog"}, map[string]string{"SCRIPT_NAME": "/blog", "PATH_INFO": ""}},
		{"nginx, the mount point and a slash", "/blog", []string{"SCRIPT_NAME=/blog/"}, map[string]string{"SCRIPT_NAME": "/blog", "PATH_INFO": "/"}},
		{"nginx, PATH_INFO set to the whole path as well", "", []string{"SCRIPT_NAME=/a", "PATH_INFO=/a", "DOCUMENT_URI=/a"}, map[string]string{"SCRIPT_NAME": "", "PATH_INFO": "/a"}},
		{"a path that repeats itself, split", "", []string{"SCRIPT_NAME=/a", "PATH_INFO=/a", "DOCUMENT_URI=/a/a"}, map[string]string{"PATH_INFO": "/a/a"}},
		{"Apache, SetHandler", "", []string{"SCRIPT_NAME=/app", "PATH_INFO=/x"}, map[string]string{"PATH_INFO": "/app/x"}},
		{"split at the mount point by the front", "/app", []string{"SCRIPT_NAME=/app", "PATH_INFO=/x"}, map[string]string{"SCRIPT_NAME": "/app", "PATH_INFO": "/x"}},
		{"no path at all", "", nil, map[string]string{"SCRIPT_NAME": "", "PATH_INFO": "/"}},
		{"length empty", "", []string{"CONTENT_LENGTH=", "CONTENT_TYPE="}, map[string]string{"CONTENT_LENGTH": absent, "CONTENT_TYPE": absent}},
		{"length of Caddy's chunked upload", "", []string{"CONTENT_LENGTH=-1"}, map[string]string{"CONTENT_LENGTH": absent}},
		{"length 0", "", []string{"CONTENT_LENGTH=0"}, map[string]string{"CONTENT_LENGTH": "0"}},
		{"httpoxy", "", []string{"HTTP_PROXY=http://evil"}, map[string]string{"HTTP_PROXY": absent}},
		{"copies of content headers", "", []string{"HTTP_CONTENT_LENGTH=5", "HTTP_CONTENT_TYPE=x"}, map[string]string{"HTTP_CONTENT_LENGTH": absent, "HTTP_CONTENT_TYPE": absent}},
		{"repeated header", "", []string{"HTTP_X=a", "HTTP_Y=1", "HTTP_X=b"}, map[string]string{"HTTP_X": "a, b", "HTTP_Y": "1"}},
		{"repeated Cookie", "", []string{"HTTP_COOKIE=a=1", "HTTP_COOKIE=b=2"}, map[string]string{"HTTP_COOKIE": "a=1; b=2"}},
		{"repeated server variable: the last", "", []string{"HTTPS=", "HTTPS=on"}, map[string]string{"HTTPS": "on"}},
		{"server name of nginx's catch-all", "", []string{"SERVER_NAME=_", "HTTP_HOST=example.org:8080"}, map[string]string{"SERVER_NAME": "example.org"}},
		{"server name from an IPv6 host", "", []string{"SERVER_NAME=", "HTTP_HOST=[::1]:80"}, map[string]string{"SERVER_NAME": "[::1]"}},
		{"IPv6 host without a port", "", []string{"SERVER_NAME=", "HTTP_HOST=[::1]"}, map[string]string{"SERVER_NAME": "[::1]"}},
		{"nothing that PEP 3333 requires", "", nil, map[string]string{"SERVER_NAME": "localhost", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "QUERY_STRING": "", "REQUEST_SCHEME": "http"}},
		{"port of the Host field", "", []string{"SERVER_PORT=", "HTTP_HOST=example.org:8080"}, map[string]string{"SERVER_PORT": "8080"}},
		{"port of an IPv6 host", "", []string{"HTTP_HOST=[::1]:81"}, map[string]string{"SERVER_NAME": "[::1]", "SERVER_PORT": "81"}},
		{"a port that can't be one", "", []string{"HTTP_HOST=example.org:65536"}, map[string]string{"SERVER_NAME": "example.org", "SERVER_PORT": "80"}},
		{"a host without a name", "", []string{"HTTP_HOST=:8080"}, map[string]string{"SERVER_NAME": "localhost", "SERVER_PORT": "8080"}},
		{"two Host fields", "", []string{"HTTP_HOST=a.org:1", "HTTP_HOST=b.org:2"}, map[string]string{"SERVER_NAME": "localhost", "SERVER_PORT": "80"}},
		{"an address that is no host", "", []string{"HTTP_HOST=::1"}, map[string]string{"SERVER_NAME": "localhost", "SERVER_PORT": "80"}},
		{"no port, as it can't be one", "", []string{"HTTP_HOST=example.org:x", "HTTPS=on"}, map[string]string{"SERVER_NAME": "example.org", "SERVER_PORT": "443"}},
		{"scheme", "", []string{"REQUEST_SCHEME=https"}, map[string]string{"REQUEST_SCHEME": "https", "HTTPS": absent, "SERVER_PORT": "443"}},
		{"scheme by HTTPS", "", []string{"HTTPS=on"}, map[string]string{"REQUEST_SCHEME": "https", "HTTPS": "on"}},
		{"scheme by HTTPS, in other words", "", []string{"HTTPS=YES", "SERVER_PORT=8443"}, map[string]string{"REQUEST_SCHEME": "https", "SERVER_PORT": "8443"}},
		{"HTTPS off", "", []string{"HTTPS=off", "REQUEST_SCHEME=https"}, map[string]string{"REQUEST_SCHEME": "http"}},
		{"HTTPS empty", "", []string{"HTTPS=", "REQUEST_SCHEME=https"}, map[string]string{"REQUEST_SCHEME": "https"}},
		{"a scheme of another kind", "", []string{"REQUEST_SCHEME=gopher"}, map[string]string{"REQUEST_SCHEME": "http"}},
		{"request id of the front", "", []string{"REQUEST_ID=abc-1.2_3"}, map[string]string{"REQUEST_ID": "abc-1.2_3"}},
		{"dots that lead nowhere", "", []string{"SCRIPT_NAME=/a..b/...c"}, map[string]string{"PATH_INFO": "/a..b/...c"}},
		{"a value with every byte but NUL", "", []string{"HTTP_X=\x01\x7f\x80\xff\r\n"}, map[string]string{"HTTP_X": "\x01\x7f\x80\xff\r\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, o, e := normalised(t, params(append(tt.params, "REQUEST_METHOD=GET")...), tt.mount)
			if o != ok {
				t.Fatalf("refused: %v, %s", o, e.reason)
			}
			for k, want := range tt.want {
				got, there := m[k]
				if !there {
					got = absent
				}
				if got != want {
					t.Errorf("%s is %q, want %q", k, got, want)
				}
			}
		})
	}
}

// What could be taken for something else is refused, with a reason.
func TestEnvironRefuses(t *testing.T) {
	tests := []struct {
		name   string
		params []string
	}{
		{"NUL in a value", []string{"HTTP_X=a\x00b"}},
		{"NUL in a name", []string{"HTTP\x00X=a"}},
		{"no name", []string{"=a"}},
		{"the gateway's own variable", []string{"wsgi.input=x"}},
		{"a name with a space", []string{"HTTP X=a"}},
		{"a name beyond ASCII", []string{"HTTP_\xff=a"}},
		{"path that leads upwards", []string{"SCRIPT_NAME=/a/../b"}},
		{"path that ends upwards", []string{"PATH_INFO=/a/.."}},
		{"path that begins upwards", []string{"SCRIPT_NAME=../a"}},
		{"length that is no number", []string{"CONTENT_LENGTH=5x"}},
		{"length with a sign", []string{"CONTENT_LENGTH=+5"}},
		{"length beyond everything", []string{"CONTENT_LENGTH=99999999999999999999"}},
		{"two lengths", []string{"CONTENT_LENGTH=5", "CONTENT_LENGTH=6"}},
		{"no method", []string{"REQUEST_METHOD="}},
		{"more than the exchange carries", []string{"HTTP_X=" + strings.Repeat("x", protocol.MaxEnviron)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			all := tt.params
			if !strings.HasPrefix(all[0], "REQUEST_METHOD") {
				all = append(all, "REQUEST_METHOD=GET")
			}
			_, o, e := normalised(t, params(all...), "")
			if o != badRequest || e.reason == "" || e.id == "" {
				t.Errorf("%v, reason %q, id %q; want bad_request with both", o, e.reason, e.id)
			}
		})
	}
	if _, o, _ := normalised(t, params("REQUEST_METHOD=GET", "SCRIPT_NAME=/blogger"), "/blog"); o != badRequest {
		t.Error("a path beside the mount point was taken")
	}
}

// Any number of parameters is told apart, also more than the table holds.
func TestManyNames(t *testing.T) {
	var pairs []string
	for i := range 1000 {
		pairs = append(pairs, fmt.Sprintf("HTTP_H%d=%d", i, i))
	}
	pairs = append(pairs, "REQUEST_METHOD=GET", "HTTP_H999=again")
	m, o, e := normalised(t, params(pairs...), "")
	if o != ok || m["HTTP_H500"] != "500" || m["HTTP_H999"] != "999, again" {
		t.Errorf("%v %s: %q, %q", o, e.reason, m["HTTP_H500"], m["HTTP_H999"])
	}
}

// Any parameters become pairs of strings with different names, those among them that
// PROTOCOL.md promises to a worker, or are refused with a reason; and what was normalised
// once is not changed by a second time.
func FuzzNormalise(f *testing.F) {
	f.Add(params("REQUEST_METHOD=GET", "SCRIPT_NAME=/a", "HTTP_HOST=x"), "")
	f.Add(params("REQUEST_METHOD=GET", "SCRIPT_NAME=/m/a", "HTTP_X=1", "HTTP_X=2", "CONTENT_LENGTH=-1"), "/m")
	f.Add([]byte("\x80\x00\x00\x05"), "")
	f.Fuzz(func(t *testing.T, in []byte, mount string) {
		if fcgi.CheckParams(in) != nil || mount != "" && (mount[0] != '/' || strings.ContainsAny(mount, "\x00")) {
			return
		}
		first, o, e := normalised(t, in, mount)
		if o != ok {
			if e.reason == "" {
				t.Fatalf("%q refused without a reason", in)
			}
			return
		}
		var again []string
		for k, v := range first {
			again = append(again, k+"="+v)
		}
		slices.Sort(again)
		for k := range first {
			if strings.Contains(k, "=") {
				t.Fatalf("name %q has an =", k)
			}
		}
		for _, k := range []string{"REQUEST_METHOD", "REQUEST_SCHEME", "SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL", "REQUEST_ID"} {
			if first[k] == "" {
				t.Fatalf("%q became %q, without %s", in, first, k)
			}
		}
		for _, k := range []string{"SCRIPT_NAME", "PATH_INFO", "QUERY_STRING"} {
			if _, there := first[k]; !there {
				t.Fatalf("%q became %q, without %s", in, first, k)
			}
		}
		second, o, e := normalised(t, params(again...), mount)
		if o != ok {
			t.Fatalf("%q refused the second time: %s", again, e.reason)
		}
		for k, v := range first {
			if second[k] != v {
				t.Fatalf("%s: %q, then %q", k, v, second[k])
			}
		}
	})
}

func BenchmarkNormalise(b *testing.B) {
	in := params("QUERY_STRING=", "REQUEST_METHOD=GET", "CONTENT_TYPE=", "CONTENT_LENGTH=", "SCRIPT_NAME=/hello", "REQUEST_URI=/hello",
		"DOCUMENT_URI=/hello", "DOCUMENT_ROOT=/srv/www", "SERVER_PROTOCOL=HTTP/1.1", "REQUEST_SCHEME=http", "GATEWAY_INTERFACE=CGI/1.1",
		"SERVER_SOFTWARE=nginx/1.22.1", "REMOTE_ADDR=127.0.0.1", "REMOTE_PORT=40000", "SERVER_ADDR=127.0.0.1", "SERVER_PORT=80",
		"SERVER_NAME=example.org", "REDIRECT_STATUS=200", "HTTP_HOST=example.org", "HTTP_USER_AGENT=Mozilla/5.0 (X11; Linux x86_64)",
		"HTTP_ACCEPT=text/html,*/*", "HTTP_ACCEPT_ENCODING=gzip", "HTTP_COOKIE=session=0123456789abcdef")
	e := &environ{seen: new(nameSet)}
	b.ReportAllocs()
	for b.Loop() {
		e.block = e.block[:0]
		if o := e.normalise(in, ""); o != ok {
			b.Fatal(e.reason)
		}
	}
}
