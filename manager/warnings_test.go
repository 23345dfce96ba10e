package manager

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// testFacts are a machine's on which nothing hurts: Debian's, seen by root.
func testFacts() facts {
	dirs := map[string]fileFacts{"/": {0o755, 0, 0}, "/run": {0o755, 0, 0}, "/run/fpmd": {0o755, 0, 0}, "/srv": {0o755, 0, 0}, "/srv/blog": {0o750, 1000, 1000}}
	m := testMachine(0)
	return facts{
		path: "/usr/local/bin:/usr/bin", userOf: m.userOf,
		resolve:   func(path string) (string, error) { return path, nil },
		ours:      func(string) error { return nil },
		bind:      func(string) error { return nil },
		noSocket:  func(string) error { return fs.ErrNotExist },
		inMemory:  func(dir string) bool { return strings.HasPrefix(dir, "/run/") },
		somaxconn: 4096, nofile: 65536, nproc: 10000, bytes: 1 << 30, bytesOf: "MemTotal of /proc/meminfo",
		unit:     unit{name: "fpmd.service", stop: 90 * time.Second},
		webUsers: []webUser{{Credential{UID: 33, GID: 33, Groups: []uint32{33}, Name: "www-data"}, "www-data"}},
		stat: func(path string) (fileFacts, error) {
			if f, ok := dirs[path]; ok {
				return f, nil
			}
			return fileFacts{}, fs.ErrNotExist
		},
	}
}

// What will hurt is warned of, at the line to blame, and nothing else.
func TestWarnings(t *testing.T) {
	const group = "\nlisten_group = \"www-data\""
	for name, tt := range map[string]struct {
		config string // lines of [pool.blog], which begin at line 6 of the file
		change func(*facts)
		want   string // "": no warning
	}{
		"nothing": {group, nil, ""},

		"a backlog beyond the kernel's": {group + "\nlisten_backlog = 5000", nil, ":7: pool.blog.listen_backlog: 5000: the kernel takes no more than net.core.somaxconn = 4096: sysctl -w net.core.somaxconn=5000"},
		"a default beyond it":           {group, func(f *facts) { f.somaxconn = 128 }, ":1: pool.blog.listen_backlog: 511: the kernel takes no more than net.core.somaxconn = 128"},
		"a kernel that says nothing":    {group + "\nlisten_backlog = 5000", func(f *facts) { f.somaxconn = 0 }, ""},

		"a socket of root's alone":    {"", nil, ":1: pool.blog.listen_group: \"\": www-data, who the web server usually is, can't connect to /run/fpmd/blog.sock: want listen_group = \"www-data\""},
		"of another group's":          {"\nlisten_group = \"blog\"", nil, ":6: pool.blog.listen_group: 1000: www-data, "},
		"of the group, which may not": {group + "\nlisten_mode = \"0600\"", nil, ":7: pool.blog.listen_mode: \"0600\": www-data, "},
		"of its owner, who may not":   {"\nlisten_owner = \"www-data\"\nlisten_mode = \"0460\"", nil, ":7: pool.blog.listen_mode: \"0460\": www-data, "},
		"of its owner":                {"\nlisten_owner = \"www-data\"", nil, ""},
		"open to all":                 {"\nlisten_mode = \"0666\"", nil, ""},
		"in a folder that is closed":  {group + "\nlisten = \"/srv/blog/sock\"", nil, ":7: pool.blog.listen: \"/srv/blog/sock\": www-data, who the web server usually is, can't connect to /srv/blog/sock: it can't enter /srv/blog: chmod o+x /srv/blog"},
		"in root's home": {group + "\nlisten = \"/root/sock\"", func(f *facts) {
			stat := f.stat
			f.stat = func(path string) (fileFacts, error) {
				if path == "/root" {
					return fileFacts{0o700, 0, 0}, nil
				}
				return stat(path)
			}
		}, ":7: pool.blog.listen: \"/root/sock\": www-data, who the web server usually is, can't connect to /root/sock: it can't enter /root: want a socket in another folder, such as /run/fpmd: root's home"},
		"in a folder of its group":      {group + "\nlisten = \"/srv/blog/sock\"", func(f *facts) { f.webUsers[0].Groups = []uint32{33, 1000} }, ""},
		"in a folder that is not there": {group + "\nlisten = \"/run/fpmd/more/sock\"", nil, ":7: pool.blog.listen: \"/run/fpmd/more/sock\": the folder /run/fpmd/more is not there, "},
		"another web server gets there": {"\nlisten_group = \"video\"", func(f *facts) {
			f.webUsers = append(f.webUsers, webUser{Credential{UID: 44, Groups: []uint32{44}}, "nginx"})
		}, ""},
		"nobody knows the web server": {"", func(f *facts) { f.webUsers = nil }, ":1: pool.blog.listen_group: \"\": only root can connect to /run/fpmd/blog.sock: want the web server's group"},
		"nor who is in the group":     {"\nlisten_group = \"video\"", func(f *facts) { f.webUsers = nil }, ""},
		"an fpmd of a person's": {"", func(f *facts) {
			f.euid = 1001
			f.stat = func(string) (fileFacts, error) { return fileFacts{0o755, 1001, 1001}, nil }
		}, ""},
		"operators that the application is of":  {group + "\n[supervisor]\ncontrol_group = \"video\"", nil, ":8: supervisor.control_group: \"video\": user blog of pool blog is in it, and its application could stop fpmd"},
		"operators that the application is not": {group + "\n[supervisor]\ncontrol_group = \"app\"", nil, ""},
		"TCP":                                   {"\nlisten = \"127.0.0.1:9000\"", nil, ""},
		"a short drain":                         {group + "\ndrain_timeout = \"1s\"", nil, ":7: pool.blog.drain_timeout: 1s: less than request_timeout = 1m0s: a stop, a reload or a replacement cuts requests that had time left"},
		"a drain as long as the unit's":         {group + "\ndrain_timeout = \"85s\"", nil, ""},
		"a drain beyond the unit's":             {group + "\ndrain_timeout = \"86s\"", nil, ":7: pool.blog.drain_timeout: 1m26s: with stop_timeout = 5s it is 1m31s, but fpmd.service has TimeoutStopSec=1m30s, when systemd kills what still answers: want TimeoutStopSec=101"},
		"a unit that waits for ever":            {group + "\ndrain_timeout = \"24h\"", func(f *facts) { f.unit.stop = 0 }, ""},
		"few descriptors":                       {group, func(f *facts) { f.nofile = 4096 }, ":1: pool.blog.max_connections: 16384: RLIMIT_NOFILE allows 4096 descriptors, and 16476 may be needed: 16384 for so many connections here and the requests of the other pools, 28 for the workers"},
		"just enough":                           {group, func(f *facts) { f.nofile = 16476 }, ""},
		"few for the workers":                   {group + "\nmax_connections = 100\nworkers = 300", func(f *facts) { f.nofile, f.bytes = 4096, 0 }, ":7: pool.blog.max_connections: 100: RLIMIT_NOFILE allows 4096 "},
		"more workers than memory":              {group + "\nworkers = 169", nil, ":7: pool.blog.workers: 169: 169 workers in all pools take 1024 MiB or more, a hello each, and MemTotal of /proc/meminfo is 1024 MiB: want fewer"},
		"as many as fit":                        {group + "\nworkers = 168", nil, ""},
		"memory that nobody knows":              {group + "\nworkers = 1000", func(f *facts) { f.bytes, f.nofile = 0, 0 }, ""},
		"more processes than the user may":      {group + "\nworkers = 100", func(f *facts) { f.nproc = 199 }, ":7: pool.blog.workers: 100: RLIMIT_NPROC allows user blog 199 processes, and a reload of the 100 workers takes 200: want LimitNPROC=400"},
		"as many as it may":                     {group + "\nworkers = 100", func(f *facts) { f.nproc = 200 }, ""},
		"more with those that are kept":         {group + "\nworkers = 100\nkeep_generation = \"5m\"", func(f *facts) { f.nproc, f.bytes = 299, 0 }, ":7: pool.blog.workers: 100: RLIMIT_NPROC allows user blog 299 processes, and a reload of the 100 workers takes 300: want LimitNPROC=600"},
		"memory of those that are kept":         {group + "\nworkers = 85\nkeep_generation = \"5m\"", nil, ":7: pool.blog.workers: 85: 170 workers in all pools take 1030 MiB or more"},
		"more than max_workers lets be":         {group + "\nworkers = 1000\npm = \"ondemand\"\n[supervisor]\nmax_workers = 100", func(f *facts) { f.nofile, f.nproc = 16384+64+14*100, 200 }, ""},
		"more even with max_workers":            {group + "\nworkers = 1000\npm = \"ondemand\"\n[supervisor]\nmax_workers = 169", func(f *facts) { f.nofile = 0 }, ":7: pool.blog.workers: 1000: 169 workers in all pools take 1024 MiB or more, a hello each, and MemTotal of /proc/meminfo is 1024 MiB: want fewer, or less max_workers"},
		"processes even with max_workers":       {group + "\nworkers = 1000\npm = \"ondemand\"\n[supervisor]\nmax_workers = 100", func(f *facts) { f.nofile, f.nproc = 0, 199 }, ":7: pool.blog.workers: 1000: RLIMIT_NPROC allows user blog 199 processes, and a reload of the 100 workers takes 200: want LimitNPROC=400 or more in the unit (ulimit -u in a shell), or fewer, or less max_workers"},
		"more than the pool's own":              {group + "\nworkers = 100\nrlimit_nproc = 215", nil, ":8: pool.blog.rlimit_nproc: 215: a reload of the 100 workers of user blog takes 200 processes, and as many threads more as they make: want 416 or more"},
		"as many as that":                       {group + "\nworkers = 100\nrlimit_nproc = 216", func(f *facts) { f.nproc = 10 }, ""},
		"no limit of its own":                   {group + "\nworkers = 100\nrlimit_nproc = \"unlimited\"", func(f *facts) { f.nproc = 10 }, ""},
		"descriptors of one worker":             {group + "\nrlimit_nofile = 32", nil, ":7: pool.blog.rlimit_nofile: 32: a worker may take 1 exchanges at once, with a descriptor for each, and needs some for itself and the application: want 33 or more"},
		"enough of them":                        {group + "\nrlimit_nofile = 33", nil, ""},
		"root, who may":                         {group + "\nworkers = 100\nuser = \"root\"\nallow_root = true", func(f *facts) { f.nproc = 10 }, ""},
		"files that are memory":                 {group + "\nbuffer_files = \"1GiB\"", nil, ":7: pool.blog.buffer_files: \"1GiB\": the files are below runtime_dir = \"/run/fpmd\", which is itself in memory: want a runtime_dir on a disk"},
		"files on a disk":                       {group + "\nbuffer_files = \"1GiB\"", func(f *facts) { f.inMemory = func(string) bool { return false } }, ""},
		"slow only when it is over":             {group + "\nslow_timeout = \"1m\"", nil, ":7: pool.blog.slow_timeout: 1m0s: not less than request_timeout = 1m0s: a request that has no answer by then is ended before it is told of as slow"},
		"slow before it is over":                {group + "\nslow_timeout = \"59s\"", nil, ""},
		"slow, and never over":                  {group + "\nslow_timeout = \"1h\"\nrequest_timeout = \"0s\"", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			base := "[pool.blog]\nwsgi = \"blog:app\"\ndirectory = \"/srv/blog\"\n"
			for key, line := range map[string]string{"listen": "listen = \"/run/fpmd/blog.sock\"", "user": "user = \"blog\""} {
				if strings.Contains(tt.config, "\n"+key+" ") {
					line = "#"
				}
				base += line + "\n"
			}
			cfg := mustLoad(t, testMachine(0), base+strings.TrimPrefix(tt.config, "\n"))
			f := testFacts()
			if tt.change != nil {
				tt.change(&f)
			}
			wantWarning(t, cfg, f, tt.want)
		})
	}
}

// wantWarning wants one warning about cfg, which begins with want behind the file's name, or none when
// that is "".
func wantWarning(t *testing.T, cfg *Config, f facts, want string) {
	t.Helper()
	ws := cfg.warnings(f)
	switch {
	case want == "" && len(ws) > 0:
		t.Errorf("%q", ws)
	case want != "" && (len(ws) != 1 || !strings.HasPrefix(ws[0].Error(), cfg.Path+want)):
		t.Errorf("%q, want %q", ws, want)
	}
}

// Processes, memory and descriptors are those of all pools; each is said once,
// of the pool that takes most.
func TestWarningsOfAllPools(t *testing.T) {
	cfg := mustLoad(t, testMachine(0), `
[pool.a]
listen = ["/run/fpmd/a.sock", "/run/fpmd/a2.sock"]
listen_group = "www-data"
command = ["/srv/api/api"]
threads = 200
workers = 60
user = "app"
[pool.b]
listen = "/run/fpmd/b.sock"
listen_group = "www-data"
command = ["/srv/api/api"]
threads = 200
workers = 70
user = "app"
[pool.c]
listen = "/run/fpmd/c.sock"
listen_group = "www-data"
command = ["/srv/api/api"]
user = "blog"
max_connections = 100
`)
	f := testFacts()
	f.nofile, f.nproc, f.bytes = 80000, 250, 1<<30
	var got []string
	for _, w := range cfg.warnings(f) {
		got = append(got, strings.TrimPrefix(w.Error(), cfg.Path))
	}
	want := []string{
		// 64 + 2 * 16384 + min(16384, 512 + 70 * 200) + min(100, 512 + 2 * 64) + 2 * (130 * 206 + 2 * 70)
		":2: pool.a.max_connections: 16384: RLIMIT_NOFILE allows 80000 descriptors, and 101284 may be needed: 47380 for ",
		// 130 * (1 MiB + 200 * 64 KiB) + 2 * (1 MiB + 64 * 64 KiB)
		":14: pool.b.workers: 70: 132 workers in all pools take 1765 MiB or more, ",
		":14: pool.b.workers: 70: RLIMIT_NPROC allows user app 250 processes, and a reload of the 130 workers takes 260: ",
	}
	if len(got) != len(want) {
		t.Fatalf("%q", got)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("%q, want %q", got[i], want[i])
		}
	}
}

// What systemd says of a unit.
func TestParseUnit(t *testing.T) {
	shown := "TimeoutStopUSec=1min 30s\nLimitNOFILE=65536\nLimitNPROCSoft=96365\nMemoryMax=536870912\nLoadState=loaded\n"
	if got, want := parseUnit("a.service", shown), (unit{"a.service", 90 * time.Second, 65536, 96365, 512 << 20}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for name, shown := range map[string]string{
		"unlimited":         "TimeoutStopUSec=infinity\nLimitNOFILE=infinity\nLimitNPROCSoft=18446744073709551615\nMemoryMax=infinity\nLoadState=loaded\n",
		"of an old systemd": "LoadState=loaded\n",
		"another language":  "TimeoutStopUSec=1 Minute\nMemoryMax=viel\nLoadState=loaded\n",
	} {
		if got := parseUnit("a.service", shown); got != (unit{name: "a.service"}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := parseUnit("a.service", "TimeoutStopUSec=1min 30s\nLoadState=not-found\n"); got != (unit{}) {
		t.Errorf("not there: %+v", got)
	}
	for s, want := range map[string]time.Duration{"5s": 5 * time.Second, "1h 1min 1s 500ms": time.Hour + time.Minute + 1500*time.Millisecond, "1.5s": 1500 * time.Millisecond, "2d": 48 * time.Hour, "": 0} {
		if got := parseTimespan(s); got != want {
			t.Errorf("%q is %v, want %v", s, got, want)
		}
	}
}

// Which service a process belongs to, by its control group.
func TestUnitOf(t *testing.T) {
	for name, tt := range map[string]struct {
		cgroups, unit string
		user          bool
	}{
		"a system's":              {"0::/system.slice/fpmd.service\n", "fpmd.service", false},
		"a system's, delegated":   {"0::/system.slice/fpmd@one.service/supervisor\n", "fpmd@one.service", false},
		"an older hierarchy's":    {"4:memory:/x.service\n1:name=systemd:/system.slice/fpmd.service\n0::/\n", "fpmd.service", false},
		"a user's":                {"0::/user.slice/user-1000.slice/user@1000.service/app.slice/mine.service\n", "mine.service", true},
		"a shell's":               {"0::/user.slice/user-1000.slice/session-1.scope\n", "", false},
		"a container's":           {"0::/\n", "", false},
		"a kernel without groups": {"", "", false},
	} {
		if got, user := unitOf(tt.cgroups); got != tt.unit || user != tt.user {
			t.Errorf("%s: %q, %t", name, got, user)
		}
	}
}

// The least limit of a group, and of those it is in, counts.
func TestCgroupMemory(t *testing.T) {
	root := t.TempDir()
	for group, max := range map[string]string{"": "9000", "a": "max", "a/b": "7000", "a/b/c": "8000", "d": "max"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(root, group), 0o755), os.WriteFile(filepath.Join(root, group, "memory.max"), []byte(max+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for group, want := range map[string]int64{"/a/b/c": 7000, "/a": 9000, "/d/gone": 9000, "/": 9000, "": 0} {
		if n, of := cgroupMemory(root, group); n != want || (of == "") != (want == 0) {
			t.Errorf("%q: %d of %s, want %d", group, n, of, want)
		}
	}
}

// This machine's facts are what its kernel says.
func TestThisFacts(t *testing.T) {
	f := thisFacts(filepath.Join(t.TempDir(), "fpmd.toml"))
	if f.somaxconn < 1 || f.bytes < 1<<20 || f.bytesOf == "" || f.euid != os.Geteuid() || f.unit != (unit{}) {
		t.Errorf("%+v", f)
	}
	if d, err := f.stat("/"); err != nil || d.uid != 0 || d.mode&0o111 == 0 {
		t.Errorf("/ is %+v, %v", d, err)
	}
}
