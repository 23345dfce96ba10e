package manager

import (
	"strings"
	"testing"
)

// What is no TOML is told with what would do, for the usual slips.
func TestSyntaxSlips(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"listen = \"/run/x\nuser = \"blog\"", `: want the closing quote: listen = "/run/x"`},
		{"listen = '/run/x\"\r\n", `: want the closing quote: listen = '/run/x'`},
		{`listen = "/run/x`, `: want the closing quote: listen = "/run/x"`},
		{"listen = [\"/run/x]\n", `: want the closing quotes; only """ and ''' go over several lines`},
		{`listen = """/run/x`, `: want the closing quotes; only """ and ''' go over several lines`},
		{`directory = "C:\srv\blog" # here`, `: want single quotes around backslashes: directory = 'C:\srv\blog'`},
		{`directory = "C:\Users"`, `: want single quotes around backslashes: directory = 'C:\Users'`},
		{`python_path = ["C:\srv"]`, `: want single quotes around a string with backslashes, or each of them twice`},

		{`// here`, `: want # before a comment`},
		{`; here`, `: want # before a comment`},
		{`user: "blog"`, `: want = behind the key: user = "blog"`},
		{`workers := 4 # or so`, `: want = behind the key: workers = 4`},
		{`listen ["/run/x"]`, `: want = behind the key: listen = ["/run/x"]`},
		{`user: blog`, `: want = behind the key, and quotes around a string: user = "blog"`},
		{`user blog`, `: want = behind the key, and quotes around a string: user = "blog"`},
		{`user`, `: want KEY = VALUE, or [TABLE], or # and a comment`},
		{`pool.api]`, `: want KEY = VALUE, or [TABLE], or # and a comment`},
		{"user =\nworkers = 4", `: want a value behind =, or no such line`},
		{`user =`, `: want a value behind =, or no such line`},
		{`[pool.api # here`, `: want [pool.api]`},
		{`[[pool.api]`, `: want [pool.api]`},
		{`[pool api]`, `: want [supervisor] or [pool.NAME]`},
		{`[]`, `: want [supervisor] or [pool.NAME]`},

		{`debug = Yes`, `: want debug = true`},
		{`debug = off # here`, `: want debug = false`},
		{`umask = 0022`, `: want quotes around a mode: umask = "0022"`},
		{`workers = 04`, `: want workers = 4`},
		{`user = “blog”`, `: want plain quotes, " or '`},
		{`user = blog`, `: want quotes around a string: user = "blog"`},
		{`user = inform`, `: want quotes around a string: user = "inform"`}, // inf is a number
		{`user = ${USER} # me`, `: want quotes around a string: user = "${USER}"`},
		{`listen = /run/x`, `: want quotes around a string: listen = "/run/x"`},
		{`listen = 127.0.0.1:9001`, `: want quotes around a string: listen = "127.0.0.1:9001"`},
		{`request_timeout = 30s`, `: want quotes around a string: request_timeout = "30s"`},
		{`user = ` + strings.Repeat("x", 100), `: want quotes around a string`},
		{`allowed_clients = [10.0.0.0/8]`, `: want quotes around a string`},
		{`env = { A = x }`, `: want quotes around a string`},
		{`user = "blog" workers = 4`, `: want nothing behind it but # and a comment; a quote within "..." is \"`},
		{`env = { A = "say "x"" }`, `: want a comma between two, and the closing bracket behind the last`},
		{"python_path = [\"a\"\nworkers = 4", `: want a comma between two, and the closing bracket behind the last`},

		{"user = \"a\"\nuser = \"b\"", `: pool.blog.user: defined a second time: want it once`},
		{`[[pool.blog]]`, `: pool.blog: defined a second time: want it once`},
	} {
		_, err := loadText(t, testMachine(0), "[pool.blog]\n"+c.text)
		if err == nil {
			t.Errorf("%s: it is loaded", c.text)
			continue
		}
		checkErrors(t, err)
		if !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("%s: %v: want %q at its end", c.text, err, c.want)
		}
	}
}
