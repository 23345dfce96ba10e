package worker

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"fpmd/protocol"
)

// A handler finds in its request what it would find in http.Server's.
func TestRequest(t *testing.T) {
	tests := []struct {
		name    string
		environ []string
		body    string
		want    string
	}{
		{
			"as it was sent",
			[]string{"REQUEST_URI=/a%2Fb/c?x=1&y=%20", "SCRIPT_NAME=", "PATH_INFO=/a/b/c", "HTTP_HOST=example.com", "REMOTE_ADDR=192.0.2.1", "REMOTE_PORT=1234", "HTTP_ACCEPT_LANGUAGE=de"},
			"",
			`GET /a/b/c "/a%2Fb/c?x=1&y=%20" x="1" host="example.com" url.host="" from="192.0.2.1:1234" tls=false length=0 lang="de" HTTP/1.1`,
		},
		{
			"two slashes",
			[]string{"REQUEST_URI=//evil.example/x"},
			"",
			`GET //evil.example/x "//evil.example/x" x="" host="" url.host="" from="@" tls=false length=0 lang="" HTTP/1.1`,
		},
		{
			"a path in Host",
			[]string{"REQUEST_URI=/public", "HTTP_HOST=a/admin?x=1#"},
			"",
			`GET /public "/public" x="" host="a/admin?x=1#" url.host="" from="@" tls=false length=0 lang="" HTTP/1.1`,
		},
		{
			"https",
			[]string{"HTTPS=on", "REMOTE_ADDR=unix:"},
			"",
			`GET / "/" x="" host="" url.host="" from="@" tls=true length=0 lang="" HTTP/1.1`,
		},
		{
			"https, as nginx names it",
			[]string{"REQUEST_SCHEME=https", "REMOTE_ADDR=2001:db8::1", "REMOTE_PORT=2"},
			"",
			`GET / "/" x="" host="" url.host="" from="[2001:db8::1]:2" tls=true length=0 lang="" HTTP/1.1`,
		},
		{
			"no REQUEST_URI",
			[]string{"REQUEST_URI=", "SCRIPT_NAME=/a b", "PATH_INFO=/c?", "QUERY_STRING=x=2"},
			"",
			`GET /a b/c? "/a%20b/c%3F?x=2" x="2" host="" url.host="" from="@" tls=false length=0 lang="" HTTP/1.1`,
		},
		{
			"a body",
			[]string{"REQUEST_METHOD=POST", "CONTENT_LENGTH=3"},
			"abc",
			`POST / "/" x="" host="" url.host="" from="@" tls=false length=3 lang="" HTTP/1.1`,
		},
		{
			"a body of unknown length",
			[]string{"REQUEST_METHOD=POST"},
			"abc",
			`POST / "/" x="" host="" url.host="" from="@" tls=false length=-1 lang="" HTTP/1.1`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serveApp(t, HTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, "%s %s %q x=%q host=%q url.host=%q from=%q tls=%v length=%d lang=%q %s", r.Method, r.URL.Path, r.RequestURI, r.URL.Query().Get("x"), r.Host, r.URL.Host, r.RemoteAddr, r.TLS != nil, r.ContentLength, r.Header.Get("Accept-Language"), r.Proto)
				if body, err := io.ReadAll(r.Body); string(body) != tt.body || err != nil {
					t.Errorf("body %q, %v; want %q", body, err, tt.body)
				}
				for _, kv := range tt.environ {
					if name, value, _ := strings.Cut(kv, "="); Variables(r)[name] != value {
						t.Errorf("variable %s is %q, want %q", name, Variables(r)[name], value)
					}
				}
			})))
			s.send(tt.body, false, tt.environ...)
			if a := s.answer(t); a.body != tt.want {
				t.Errorf("got  %s\nwant %s", a.body, tt.want)
			}
		})
	}
}

// A request that http.Server would refuse is refused.
func TestBadRequest(t *testing.T) {
	s := serveApp(t, HTTP(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the handler was called") })))
	for _, environ := range []string{"REQUEST_METHOD=", "SERVER_PROTOCOL=x", "CONTENT_LENGTH=x", "REQUEST_URI=/%zz", "REQUEST_URI=x y"} {
		if a := s.do(t, environ); a.status != 400 || a.failed {
			t.Errorf("%s: %+v", environ, a)
		}
	}
}

// Answers of a handler are as http.Server makes them.
func TestHandlerAnswers(t *testing.T) {
	big := strings.Repeat("x", 10*maxKept)
	tests := []struct {
		name    string
		handler http.HandlerFunc
		want    answer
		header  string
	}{
		{
			"small", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<p>hello") },
			answer{status: 200, body: "<p>hello", frames: 1},
			"Content-Length: 8\r\nContent-Type: text/html; charset=utf-8\r\n",
		},
		{"small, in pieces", func(w http.ResponseWriter, _ *http.Request) {
			for _, s := range []string{"a", "b", "c"} {
				io.WriteString(w, s)
			}
		}, answer{status: 200, body: "abc", frames: 1}, "Content-Length: 3\r\nContent-Type: text/plain; charset=utf-8\r\n"},
		{
			"nothing", func(http.ResponseWriter, *http.Request) {},
			answer{status: 200, frames: 1},
			"Content-Length: 0\r\n",
		},
		{"own length and type", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "2")
			w.Header().Set("Content-Type", "x/y")
			io.WriteString(w, "ab")
		}, answer{status: 200, body: "ab", frames: 1}, "Content-Length: 2\r\nContent-Type: x/y\r\n"},
		{"no type wanted", func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil
			io.WriteString(w, "ab")
		}, answer{status: 200, body: "ab", frames: 1}, "Content-Length: 2\r\n"},
		{
			"large", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, big) },
			answer{status: 200, body: big, frames: 2},
			"Content-Type: text/plain; charset=utf-8\r\n",
		},
		{"flushed", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "a")
			w.(http.Flusher).Flush()
			io.WriteString(w, "b")
			http.NewResponseController(w).Flush()
		}, answer{status: 200, body: "ab", frames: 3}, "Content-Type: text/plain; charset=utf-8\r\n"},
		{"headers flushed", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
		}, answer{status: 200, frames: 2}, "Content-Type: text/event-stream\r\n"},
		{
			"status", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 404) },
			answer{status: 404, body: "no\n", frames: 1},
			"Content-Length: 3\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n",
		},
		{"status set twice", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(201)
			w.WriteHeader(500)
		}, answer{status: 201, frames: 1}, "Content-Length: 0\r\n"},
		{"early hints", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(103)
			w.WriteHeader(204)
		}, answer{status: 204, frames: 1}, ""},
		{"headers set too late", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("A", "b")
			w.WriteHeader(200)
			w.Header().Set("A", "c")
			w.Header().Set("D", "e")
		}, answer{status: 200, frames: 1}, "A: b\r\nContent-Length: 0\r\n"},
		{"headers that cannot pass", func(w http.ResponseWriter, _ *http.Request) {
			h := w.Header()
			h.Set("A", "b\r\nSet-Cookie: c")
			h.Set("Bad Name", "x")
			h.Set("Connection", "close")
			h.Set("Status", "404 Not Found")
			h.Set("Trailer", "T")
			h.Set(http.TrailerPrefix+"T", "x")
			h["content-length"] = []string{"0"}
		}, answer{status: 200, frames: 1}, "A: b  Set-Cookie: c\r\nContent-Length: 0\r\n"},
		{"longer than it said", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1")
			if _, err := io.WriteString(w, "ab"); !errors.Is(err, http.ErrContentLength) {
				panic(err)
			}
			io.WriteString(w, "a")
		}, answer{status: 200, body: "a", frames: 1}, "Content-Length: 1\r\nContent-Type: text/plain; charset=utf-8\r\n"},
		{"body where none may be", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(304)
			if _, err := io.WriteString(w, "ab"); !errors.Is(err, http.ErrBodyNotAllowed) {
				panic(err)
			}
		}, answer{status: 304, frames: 1}, ""},
		{"aborted", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, big)
			panic(http.ErrAbortHandler)
		}, answer{status: 200, body: big, frames: 2, cut: true, failed: true}, "Content-Type: text/plain; charset=utf-8\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serveApp(t, HTTP(tt.handler))
			for range 2 {
				got := s.do(t)
				var header strings.Builder
				got.header.Write(&header)
				if header.String() != tt.header {
					t.Errorf("header %q, want %q", &header, tt.header)
				}
				got.header = nil
				if fmt.Sprint(got) != fmt.Sprint(tt.want) {
					t.Errorf("got %+v, want %+v", got, tt.want)
				}
			}
			if s.log.String() != "" {
				t.Errorf("logged %q", s.log)
			}
		})
	}
}

// Body and answer stream at the same time.
func TestHandlerStreams(t *testing.T) {
	s := serveApp(t, HTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := http.NewResponseController(w)
		if err := out.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			w.Write(buf[:n])
			if err != nil {
				return
			}
			out.Flush()
		}
	})))
	s.send("0", true, "REQUEST_METHOD=POST")
	for i := range 10 {
		if h, p, err := s.read(); err != nil || p[len(p)-1] != '0'+byte(i) {
			t.Fatalf("%+v, %q, %v; want %d", h, p, err, i)
		}
		s.Write(protocol.AppendBody(nil, []byte{'0' + byte(i+1)}, i == 9, false))
	}
	if a := s.answer(t); a.body != ":" {
		t.Errorf("got %+v", a)
	}
}

// What a handler left behind writes into nothing, not into the next answer.
func TestLateWriter(t *testing.T) {
	var late http.ResponseWriter
	s := serveApp(t, HTTP(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if late != nil {
			if n, err := io.WriteString(late, "late"); err == nil {
				t.Errorf("%d bytes written", n)
			}
			late.(http.Flusher).Flush()
			late.WriteHeader(500)
		}
		late = w
		io.WriteString(w, "ok")
	})))
	for range 2 {
		if a := s.do(t); a.body != "ok" || a.status != 200 {
			t.Errorf("got %+v", a)
		}
	}
}

// One hello by a handler, with a browser's environ; the supervisor is raw.
func BenchmarkHandler(b *testing.B) {
	hello := []byte("Hello, World!\n")
	benchmark(b, HTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Content-Length", "14")
		w.Write(hello)
	})))
}

// The same by an Application.
func BenchmarkApplication(b *testing.B) {
	hello := []byte("Hello, World!\n")
	benchmark(b, app(func(_ Environ, start StartResponse, yield func([]byte, error) bool) {
		yield(hello, plain(start, len(hello)))
	}))
}

func benchmark(b *testing.B, app Application) {
	s := serveApp(b, app)
	r := s.request("", false, "HTTP_HOST=localhost", "HTTP_USER_AGENT=Mozilla/5.0 (X11; Linux x86_64)", "HTTP_ACCEPT=text/html,*/*;q=0.8",
		"HTTP_ACCEPT_LANGUAGE=en", "HTTP_ACCEPT_ENCODING=gzip", "HTTP_CONNECTION=keep-alive", "HTTP_COOKIE=session=0123456789", "HTTP_CACHE_CONTROL=max-age=0",
		"REMOTE_ADDR=127.0.0.1", "REMOTE_PORT=40000", "SERVER_ADDR=127.0.0.1", "SERVER_SOFTWARE=nginx", "GATEWAY_INTERFACE=CGI/1.1", "DOCUMENT_ROOT=/usr/share/nginx/html",
		"DOCUMENT_URI=/hello", "REQUEST_SCHEME=http", "REDIRECT_STATUS=200", "SCRIPT_FILENAME=/usr/share/nginx/html/hello", "REQUEST_URI=/hello", "PATH_INFO=/hello", "REQUEST_ID=0123456789abcdef")
	in := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		s.Write(r)
		if n, err := s.Read(in); err != nil || n < 50 {
			b.Fatal(n, err)
		}
	}
}
