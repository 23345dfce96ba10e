package manager

import (
	"cmp"
	"encoding/binary"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What a worker's user does not get to is warned of, at the line to blame: what is
// closed, to whom it belongs, and what would do.
func TestWarningsOfFiles(t *testing.T) {
	const (
		wsgi    = "wsgi = \"shop.web:app\"\ndirectory = \"/srv/blog\""
		command = "command = [\"/srv/api/api\"]"
		venv    = wsgi + "\npython = \"/srv/blog/.venv/bin/python\""
		find    = "command = [\"python3\"]"
		app     = "user app can't "
	)
	type files map[string]fileFacts
	for name, tt := range map[string]struct {
		config string // lines of [pool.a], which begin at line 3 of the file
		files  files  // instead of those that are open to all
		links  map[string]string
		change func(*facts)
		self   bool   // fpmd is not root, but app
		want   string // "": no warning
	}{
		"nothing":   {config: venv},
		"a command": {config: command},

		"a closed folder": {
			config: wsgi, files: files{"/srv/blog": {0o700, 1000, 1000}},
			want: `:4: pool.a.directory: "/srv/blog": user app can't list and enter /srv/blog: it has mode 0700, owner blog: chmod o+rx /srv/blog, or want user = "blog"`,
		},
		"one on the way to it": {
			config: wsgi, files: files{"/srv": {0o700, 0, 0}},
			want: `:4: pool.a.directory: "/srv/blog": user app can't enter /srv on the way to /srv/blog: it has mode 0700, owner root: chmod o+x /srv, or want one elsewhere`,
		},
		"one that can't be listed, for Python": {
			config: wsgi, files: files{"/srv/blog": {0o711, 1000, 1000}},
			want: `:4: pool.a.directory: "/srv/blog": ` + app + "list and enter /srv/blog: it has mode 0711",
		},
		"for a command":                    {config: command + "\ndirectory = \"/srv/blog\"", files: files{"/srv/blog": {0o711, 1000, 1000}}},
		"one that a command can't enter":   {config: command + "\ndirectory = \"/srv/blog\"", files: files{"/srv/blog": {0o766, 1000, 1000}}, want: `:4: pool.a.directory: "/srv/blog": ` + app + "enter /srv/blog: it has mode 0766, owner blog: chmod o+x /srv/blog"},
		"of its own":                       {config: wsgi, files: files{"/srv/blog": {0o700, 1001, 0}}},
		"of its own, which it may not":     {config: wsgi, files: files{"/srv/blog": {0o077, 1001, 1001}}, want: `:4: pool.a.directory: "/srv/blog": ` + app + "list and enter /srv/blog: it has mode 0077, owner app: chmod u+rx /srv/blog, or want one elsewhere"},
		"of its group":                     {config: wsgi, files: files{"/srv/blog": {0o750, 0, 1001}}},
		"of its group, which may not":      {config: wsgi, files: files{"/srv/blog": {0o705, 0, 1001}}, want: `:4: pool.a.directory: "/srv/blog": ` + app + "list and enter /srv/blog: it has mode 0705, owner root: chmod g+rx /srv/blog"},
		"of a supplementary group":         {config: wsgi + "\nuser = \"blog\"", files: files{"/srv/blog": {0o750, 0, 44}}},
		"of the group that the pool gives": {config: wsgi + "\ngroup = \"video\"", files: files{"/srv/blog": {0o750, 0, 44}}},
		"of root's, for root":              {config: wsgi + "\nuser = \"root\"\nallow_root = true", files: files{"/srv": {0o700, 1000, 1000}, "/srv/blog": {0o600, 1000, 1000}}},
		"behind a link": {
			config: wsgi, files: files{"/home/blog": {0o700, 1000, 1000}}, links: map[string]string{"/srv/blog": "/home/blog/site"},
			want: `:4: pool.a.directory: "/srv/blog": ` + app + `enter /home/blog on the way to /home/blog/site: it has mode 0700, owner blog: chmod o+x /home/blog, or want user = "blog"`,
		},

		"a module that can't be read": {
			config: wsgi, files: files{"/srv/blog/shop": {0o755, 0, 0}, "/srv/blog/shop/__init__.py": {0o644, 0, 0}, "/srv/blog/shop/web.py": {0o640, 1000, 1000}},
			want: `:3: pool.a.wsgi: "shop.web:app": ` + app + `read /srv/blog/shop/web.py: it has mode 0640, owner blog: chmod o+r /srv/blog/shop/web.py, or want user = "blog"`,
		},
		"a package that can't be listed": {
			config: wsgi, files: files{"/srv/blog/shop": {0o711, 0, 0}, "/srv/blog/shop/__init__.py": {0o644, 0, 0}},
			want: `:3: pool.a.wsgi: "shop.web:app": ` + app + "list and enter /srv/blog/shop: it has mode 0711",
		},
		"a package that can't be read": {
			config: wsgi, files: files{"/srv/blog/shop": {0o755, 0, 0}, "/srv/blog/shop/__init__.py": {0o600, 0, 0}},
			want: `:3: pool.a.wsgi: "shop.web:app": ` + app + "read /srv/blog/shop/__init__.py: ",
		},
		"a package without a file of its own": {
			config: wsgi, files: files{"/srv/blog/shop": {0o755, 0, 0}, "/srv/blog/shop/web.py": {0o600, 0, 0}},
			want: `:3: pool.a.wsgi: "shop.web:app": ` + app + "read /srv/blog/shop/web.py: ",
		},
		"a module that hides behind a package": {config: wsgi, files: files{"/srv/blog/shop": {0o755, 0, 0}, "/srv/blog/shop/__init__.py": {0o644, 0, 0}, "/srv/blog/shop.py": {0o600, 0, 0}}},
		"a module beside a folder of its name": {config: "wsgi = \"shop:app\"\ndirectory = \"/srv/blog\"", files: files{"/srv/blog/shop": {0o700, 0, 0}, "/srv/blog/shop.py": {0o644, 0, 0}}},
		"a folder of python_path": {
			config: wsgi + "\npython_path = [\"lib\", \"/srv/more\"]", files: files{"/srv/blog/lib": {0o755, 0, 0}, "/srv/more": {0o711, 0, 0}},
			want: `:5: pool.a.python_path: "/srv/more": ` + app + "read /srv/more: it has mode 0711",
		},
		"one that is not there": {config: wsgi + "\npython_path = [\"/srv/none\"]"},

		"an interpreter behind a link": {
			config: venv, files: files{"/root": {0o700, 0, 0}}, links: map[string]string{"/srv/blog/.venv/bin/python": "/root/uv/bin/python3.12"},
			want: `:5: pool.a.python: "/srv/blog/.venv/bin/python": ` + app + "enter /root on the way to /root/uv/bin/python3.12: it has mode 0700, owner root: want one elsewhere, such as below /srv: root's home stays closed",
		},
		"all in one closed folder": {
			config: venv, files: files{"/srv/blog": {0o700, 1000, 1000}},
			want: `:4: pool.a.directory: `,
		},
		"a program that can't be executed": {
			config: command, files: files{"/srv/api/api": {0o744, 1000, 1000}},
			want: `:3: pool.a.command: "/srv/api/api": ` + app + "execute /srv/api/api: it has mode 0744, owner blog: chmod o+x /srv/api/api",
		},
		"one on PATH": {
			config: find, files: files{"/usr/bin/python3": {0o750, 0, 0}},
			want: `:3: pool.a.command: "python3": ` + app + "execute /usr/bin/python3: ",
		},
		"the default on PATH": {
			config: wsgi, files: files{"/usr/bin/python3": {0o750, 0, 0}},
			want: `:1: pool.a.python: "python3": ` + app + "execute /usr/bin/python3: ",
		},
		"another on PATH":              {config: find, files: files{"/usr/local/bin/python3": {0o750, 0, 0}, "/usr/bin/python3": {0o755, 0, 0}}},
		"another that env has on PATH": {config: find + "\nenv = { PATH = \"/usr/bin\" }", files: files{"/usr/bin/python3": {0o755, 0, 0}}, change: func(f *facts) { f.path = "/none" }},
		"none on the PATH of env": {
			config: find + "\nenv = { PATH = \"bin:/usr/bin\" }", files: files{"/usr/bin/python3": {0o700, 0, 0}, "/usr/local/bin/python3": {0o755, 0, 0}, "bin/python3": {0o755, 0, 0}},
			want: `:3: pool.a.command: "python3": ` + app + "execute /usr/bin/python3: ",
		},

		"a log where the application may put a link": {
			config: command + "\naccess_log = \"/srv/blog/log\"", files: files{"/srv/blog": {0o755, 1001, 1001}},
			want: `:4: pool.a.access_log: "/srv/blog/log": user app may write in /srv/blog, put a link there, and have fpmd write where it leads, as root: want a folder that root alone may write to, such as /var/log/fpmd`,
		},
		"a log where it may not":   {config: command + "\naccess_log = \"/srv/blog/log\"", files: files{"/srv/blog": {0o755, 0, 1001}}},
		"a log of the same user's": {config: command + "\naccess_log = \"/srv/blog/log\"", self: true, files: files{"/srv/blog": {0o755, 1001, 1001}}},

		"an fpmd of the same user's": {
			config: wsgi, self: true, files: files{"/srv/blog": {0o600, 1001, 1001}},
			want: `:4: pool.a.directory: "/srv/blog": ` + app + "list and enter /srv/blog: it has mode 0600, owner app: chmod u+rx /srv/blog, or want one elsewhere",
		},
		"of one that can't change users": {
			config: wsgi, self: true, files: files{"/srv/blog": {0o700, 1000, 1000}},
			want: `:4: pool.a.directory: "/srv/blog": ` + app + "list and enter /srv/blog: it has mode 0700, owner blog: chmod o+rx /srv/blog, or want one elsewhere",
		},
		"of a group of fpmd's": {config: wsgi, self: true, files: files{"/srv/blog": {0o750, 0, 44}}, change: func(f *facts) { f.groups = []int{44} }},
	} {
		t.Run(name, func(t *testing.T) {
			user := 0
			config := "[pool.a]\nlisten = \"127.0.0.1:9000\"\n" + tt.config
			if tt.self {
				user = 1001
			} else if !strings.Contains(config, "\nuser ") {
				config += "\nuser = \"app\""
			}
			cfg := mustLoad(t, testMachine(user), config)
			there := files{"/": {0o755, 0, 0}, "/home": {0o755, 0, 0}, "/run": {0o755, 0, 0}, "/run/user/1001": {0o700, 1001, 1001}, "/srv": {0o755, 0, 0}, "/srv/blog": {0o755, 0, 0}, "/srv/api": {0o755, 0, 0}, "/srv/api/api": {0o755, 0, 0}}
			maps.Copy(there, tt.files)
			f := testFacts()
			f.euid, f.egid = user, user
			f.stat = func(path string) (fileFacts, error) {
				if st, ok := there[path]; ok {
					return st, nil
				}
				return fileFacts{}, fs.ErrNotExist
			}
			f.resolve = func(path string) (string, error) { return cmp.Or(tt.links[path], path), nil }
			if tt.change != nil {
				tt.change(&f)
			}
			wantWarning(t, cfg, f, tt.want)
		})
	}
}

// A file with an access control list may be open to whom its mode does not name, and is
// not taken for closed.
func TestAccessControlList(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "app")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if st, err := statFacts(dir); err != nil || st.mode != 0o700 {
		t.Fatalf("without a list: %04o, %v", st.mode, err)
	}
	// setfacl -m u:33:rx, in the words of linux/posix_acl_xattr.h.
	list := binary.LittleEndian.AppendUint32(nil, 2)
	const nobody = 1<<32 - 1
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 7, nobody}, {0x02, 5, 33}, {0x04, 0, nobody}, {0x10, 5, nobody}, {0x20, 0, nobody}} {
		list = binary.LittleEndian.AppendUint16(list, e.tag)
		list = binary.LittleEndian.AppendUint16(list, e.perm)
		list = binary.LittleEndian.AppendUint32(list, e.id)
	}
	if err := unix.Setxattr(dir, "system.posix_acl_access", list, 0); err != nil {
		t.Fatalf("give %s an access control list (want a TMPDIR that has them): %v", dir, err)
	}
	if st, err := statFacts(dir); err != nil || st.mode&0o005 != 0o005 {
		t.Errorf("with a list: %04o, %v", st.mode, err)
	}
}
