package manager

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// What serve would end with at its start is warned of before, at the line to blame.
func TestWarningsOfTheStart(t *testing.T) {
	type files map[string]fileFacts
	for name, tt := range map[string]struct {
		supervisor string // a line of [supervisor], the second of the file
		pool       string // lines of [pool.a], which begin at line 5
		files      files  // that are there besides /, /run and /srv, which are root's
		plain      bool   // fpmd is not root, but app
		want       string // "": no warning
	}{
		"nothing":                        {pool: `listen = "/run/fpmd/a.sock"`},
		"a socket's folder":              {pool: `listen = ["/run/fpmd/a.sock", "/none/a.sock"]`, want: `:5: pool.a.listen: "/none/a.sock": the folder /none is not there, and fpmd does not make it: mkdir -p /none, or want a socket in another`},
		"one that is gone at each boot":  {pool: `listen = "/run/a/a.sock"`, want: `:5: pool.a.listen: "/run/a/a.sock": the folder /run/a is not there, and fpmd does not make it: have tmpfiles.d, or the unit's RuntimeDirectory=, make it at each start, or want a socket in another`},
		"one that is made, as its other": {supervisor: `runtime_dir = "/srv/a/b"`, pool: "listen = [\"/srv/a/a.sock\", \"/srv/a/b/a.sock\"]\naccess_log = \"/srv/a/log\""},
		"one in what is made":            {pool: `listen = "/run/fpmd/a/sock"`, want: `:5: pool.a.listen: "/run/fpmd/a/sock": the folder /run/fpmd/a is not there, `},
		"a neighbour of what is made":    {pool: `listen = "/run/fp/a.sock"`, want: `:5: pool.a.listen: "/run/fp/a.sock": the folder /run/fp is not there, `},
		"a file in its place":            {pool: `listen = "/srv/file"`, want: `:5: pool.a.listen: "/srv/file": there is a file that is no socket (----------): remove it, or choose another path`},

		"an access log's folder":               {pool: "listen = \"/run/fpmd/a.sock\"\naccess_log = \"/none/a.log\"", want: `:6: pool.a.access_log: "/none/a.log": the folder /none is not there, and fpmd does not make it: mkdir -p /none, or want a log in another`},
		"the log's folder":                     {supervisor: `log = "/none/fpmd.log"`, pool: `listen = "/run/fpmd/a.sock"`, want: `:2: supervisor.log: "/none/fpmd.log": the folder /none is not there, `},
		"a log in what is made only afterward": {supervisor: `log = "/run/fpmd/log"`, pool: `listen = "/run/fpmd/a.sock"`, want: `:2: supervisor.log: "/run/fpmd/log": the folder /run/fpmd is not there, `},
		"an access log that is the log's":      {pool: "listen = \"/run/fpmd/a.sock\"\naccess_log = \"-\""},

		"a folder where others may write":  {supervisor: `runtime_dir = "/srv/open"`, pool: `listen = "/srv/a.sock"`, want: `:2: supervisor.runtime_dir: "/srv/open": others may write there`},
		"the default, where others may":    {pool: `listen = "/srv/a.sock"`, files: files{"/run/fpmd": {0o777, 0, 0}}, want: `:1: supervisor.runtime_dir: "/run/fpmd": others may write there`},
		"another machine's address":        {pool: "listen = [\"10.9.9.9:9001\", \":9002\"]\nallowed_clients = [\"10.0.0.1\"]", want: `:5: pool.a.listen: "10.9.9.9:9001": cannot assign requested address: 10.9.9.9 is none of this machine's addresses: want one that "ip address" shows, or "127.0.0.1:9001"`},
		"a name that nobody knows":         {pool: "listen = \"nohost:9001\"\nallowed_clients = [\"10.0.0.1\"]", want: `:5: pool.a.listen: "nohost:9001": lookup nohost: no such host: want an address of this machine, such as "127.0.0.1:9001"`},
		"this machine's":                   {pool: "listen = [\"127.0.0.1:9001\", \"[::1]:9001\", \"localhost:9002\"]"},
		"a folder that is not the user's":  {plain: true, pool: `listen = "/srv/a.sock"`, want: `:5: pool.a.listen: "/srv/a.sock": user app, who fpmd is, can't write to /srv: it has mode 0755, owner root: want a socket elsewhere`},
		"one that he can't enter":          {plain: true, files: files{"/srv/x": {0o700, 1000, 1000}, "/srv/x/y": {0o777, 0, 0}}, pool: `listen = "/srv/x/y/a.sock"`, want: `:5: pool.a.listen: "/srv/x/y/a.sock": user app, who fpmd is, can't enter /srv/x: `},
		"one that is his":                  {plain: true, files: files{"/srv/x": {0o700, 1001, 1001}}, pool: "listen = \"/srv/x/a.sock\"\naccess_log = \"/srv/x/log\""},
		"a socket of his in another's":     {plain: true, files: files{"/srv/a.sock": {0o777, 1001, 1001}}, pool: `listen = "/srv/a.sock"`, want: `:5: pool.a.listen: "/srv/a.sock": user app, who fpmd is, can't write to /srv: `},
		"a log that is his, in another's":  {plain: true, files: files{"/srv/log": {0o600, 1001, 1001}}, pool: "listen = \"127.0.0.1:9001\"\naccess_log = \"/srv/log\""},
		"a log that is not":                {plain: true, files: files{"/srv/log": {0o644, 0, 0}}, supervisor: `log = "/srv/log"`, pool: `listen = "127.0.0.1:9001"`, want: `:2: supervisor.log: "/srv/log": user app, who fpmd is, can't write to /srv/log: it has mode 0644, owner root: want a log elsewhere`},
		"a runtime_dir that he can't make": {plain: true, supervisor: `runtime_dir = "/srv/a/b"`, pool: `listen = "127.0.0.1:9001"`, want: `:2: supervisor.runtime_dir: "/srv/a/b": user app, who fpmd is, can't write to /srv: `},
		"one that is root's":               {plain: true, supervisor: `runtime_dir = "/srv"`, pool: `listen = "127.0.0.1:9001"`, want: `:2: supervisor.runtime_dir: "/srv": user app, who fpmd is, can't write to /srv: `},
	} {
		t.Run(name, func(t *testing.T) {
			user, who := 0, "user = \"root\"\nallow_root = true"
			if tt.plain {
				user, who = 1001, ""
			}
			config := "[supervisor]\n" + tt.supervisor + "\n[pool.a]\ncommand = [\"/srv/api/api\"]\n" + tt.pool + "\nlisten_mode = \"0666\"\n" + who
			cfg := mustLoad(t, testMachine(user), config)
			f := testFacts()
			f.euid, f.egid = user, user
			there := files{"/": {0o755, 0, 0}, "/run": {0o755, 0, 0}, "/run/user/1001": {0o700, 1001, 1001}, "/srv": {0o755, 0, 0}, "/srv/open": {0o777, 0, 0}, "/srv/api": {0o755, 0, 0}, "/srv/api/api": {0o755, 0, 0}}
			for path, st := range tt.files {
				there[path] = st
			}
			f.stat = func(path string) (fileFacts, error) {
				if st, ok := there[path]; ok {
					return st, nil
				}
				return fileFacts{}, fs.ErrNotExist
			}
			f.ours = func(dir string) error {
				if st, ok := there[dir]; ok && st.mode&0o022 != 0 {
					return fmt.Errorf("others may write there")
				}
				return nil
			}
			f.noSocket = func(path string) error {
				if path == "/srv/file" {
					return noSocket("warnings_start_test.go")
				}
				return fs.ErrNotExist
			}
			f.bind = func(host string) error {
				switch host {
				case "10.9.9.9":
					return unix.EADDRNOTAVAIL
				case "nohost":
					return &net.DNSError{Name: host, Err: "no such host"}
				}
				return nil
			}
			wantWarning(t, cfg, f, tt.want)
		})
	}
}

// Which addresses are this machine's, its kernel says.
func TestBindable(t *testing.T) {
	for host, want := range map[string]error{"": nil, "127.0.0.1": nil, "127.3.2.1": nil, "0.0.0.0": nil, "192.0.2.7": unix.EADDRNOTAVAIL} { // the last is for documents
		if err := bindable(host); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", host, err, want)
		}
	}
}
