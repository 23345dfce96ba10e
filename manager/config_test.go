package manager

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"fpmd/protocol"
)

var update = flag.Bool("update", false, "write what broken configurations are told to their .err files")

// testMachine is a machine with a few users, folders and programs, seen by
// the user of that number. Configuration files are those that there are.
func testMachine(uid int) machine {
	users := map[string]*user.User{
		"root":     {Uid: "0", Gid: "0", Username: "root", HomeDir: "/root"},
		"www-data": {Uid: "33", Gid: "33", Username: "www-data", HomeDir: "/var/www"},
		"blog":     {Uid: "1000", Gid: "1000", Username: "blog", HomeDir: "/srv/blog"},
		"app":      {Uid: "1001", Gid: "1001", Username: "app", HomeDir: "/home/app"},
	}
	files := map[string]fs.FileMode{
		"/":                          fs.ModeDir | 0o755,
		"/srv/blog":                  fs.ModeDir | 0o755,
		"/srv/blog/notes":            0o644,
		"/srv/blog/hello.py":         0o644,
		"/srv/blog/shop/web.py":      0o644,
		"/srv/blog/shop/cart.py":     0o644,
		"/srv/blog/shop/cart/py.py":  0o644,
		"/srv/blog/.venv/bin/python": 0o755,
		"/srv/api":                   fs.ModeDir | 0o755,
		"/srv/api/api":               0o755,
		"/usr/bin/python3":           0o755,
	}
	envFiles := map[string]string{
		"/srv/blog/.env":          "TOKEN=hunter2\n",
		"/srv/jail/srv/blog/.env": "TOKEN=hunter2\n",
		"/etc/fpmd/path":          "PATH=/srv/api\n",
		"/etc/fpmd/broken":        "# a comment\n\nTOKEN hunter2\nexport TOKEN=hunter2\n1A=hunter2\nFPMD_POOL=hunter2\nA=\"hunter2\n\nB='x' hunter2\nOK=1\nC=\x00\n",
		"/etc/fpmd/unclosed":      "A='a\nb'\nB='hunter2\nC=1\n",
	}
	env := map[string]string{
		"PATH": "/usr/local/bin:/usr/bin", "XDG_RUNTIME_DIR": "/run/user/1001",
		"EMPTY": "", "ONE": "1", "YES": "true", "SECRET": "hunter2", "AUTO": "auto",
	}
	m := thisMachine()
	m.euid, m.egid, m.processors, m.tempDir = uid, uid, 6, "/tmp"
	m.lookupEnv = func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	m.stat = func(path string) (fs.FileInfo, error) {
		if mode, ok := files[path]; ok {
			return testFile{mode: mode}, nil
		}
		return nil, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
	}
	m.statIn = func(root, path string) (fs.FileInfo, error) { return m.stat(path) } // all is in there, too
	m.jail = func(path string) error {
		if path == "/srv/jail" {
			return nil
		}
		return errors.New("want /srv/jail")
	}
	m.readEnvFile = func(path string, as *Credential) ([]byte, error) {
		if text, ok := envFiles[path]; ok {
			return []byte(text), nil
		}
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	m.held = heldTo{leastNice: 20, nofile: 4096, nproc: 1000, core: 1 << 20, nrOpen: 1 << 20, capNice: uid == 0, capResource: uid == 0, capChroot: uid == 0}
	m.controllers = []string{"memory", "pids"}
	m.ownGroups = func() ([]int, error) { return []int{uid, 44}, nil }
	m.user = func(name string) (*user.User, error) {
		if u := users[name]; u != nil {
			return u, nil
		}
		return nil, user.UnknownUserError(name)
	}
	m.userID = func(uid string) (*user.User, error) {
		for _, u := range users {
			if u.Uid == uid {
				return u, nil
			}
		}
		n, err := strconv.Atoi(uid)
		if err != nil {
			return nil, err
		}
		return nil, user.UnknownUserIdError(n)
	}
	groups := map[string]string{"root": "0", "www-data": "33", "video": "44", "blog": "1000", "app": "1001"}
	m.group = func(name string) (*user.Group, error) {
		if gid, ok := groups[name]; ok {
			return &user.Group{Gid: gid, Name: name}, nil
		}
		return nil, user.UnknownGroupError(name)
	}
	m.groupID = func(gid string) (*user.Group, error) {
		for name, g := range groups {
			if g == gid {
				return &user.Group{Gid: gid, Name: name}, nil
			}
		}
		return nil, user.UnknownGroupIdError(gid)
	}
	m.groupsOf = func(u *user.User) ([]string, error) {
		if u.Username == "blog" {
			return []string{"1000", "44", "33"}, nil
		}
		return []string{u.Gid}, nil
	}
	return m
}

type testFile struct {
	fs.FileInfo
	mode fs.FileMode
}

func (f testFile) Mode() fs.FileMode { return f.mode }
func (f testFile) IsDir() bool       { return f.mode.IsDir() }

// loadText loads text as a file of its own.
func loadText(t *testing.T, m machine, text string) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fpmd.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return load(path, m)
}

func mustLoad(t *testing.T, m machine, text string) *Config {
	t.Helper()
	cfg, err := loadText(t, m, text)
	if err != nil {
		t.Fatalf("%v\nin\n%s", err, text)
	}
	return cfg
}

// What is wrong with a configuration is said all at once: file, line, key, the
// value found, what would do. Files that begin with "# as app" are read by
// that user, the others by root.
func TestBrokenConfigurations(t *testing.T) {
	t.Chdir("testdata/config/broken")
	files, err := filepath.Glob("*.toml")
	if err != nil || len(files) < 40 {
		t.Fatalf("%d broken files (%v), want 40 or more", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(file, ".toml"), func(t *testing.T) {
			uid := 0
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(string(text), "# as app\n") {
				uid = 1001
			}
			cfg, err := load(file, testMachine(uid))
			if err == nil {
				t.Fatalf("loaded: %+v", cfg)
			}
			checkErrors(t, err)
			golden := strings.TrimSuffix(file, ".toml") + ".err"
			got := err.Error() + "\n"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("it is told\n%swant\n%s", got, want)
			}
			if strings.Contains(got, "hunter2") {
				t.Error("what a variable holds is in the message")
			}
		})
	}
}

// checkErrors holds err against what Load promises of its errors.
func checkErrors(t *testing.T, err error) {
	t.Helper()
	var all ConfigErrors
	if !errors.As(err, &all) || len(all) == 0 {
		t.Fatalf("%T %v: want ConfigErrors", err, err)
	}
	for _, e := range all {
		if e.File == "" || e.Line < 1 || e.Want == "" {
			t.Errorf("%+v: want a file, a line, and what would do", e)
		}
		if strings.ContainsAny(e.Error(), "\n\r\x00") {
			t.Errorf("%q: want one line", e.Error())
		}
	}
}

func TestMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fpmd.toml")
	_, err := Load(path, LoadOptions{})
	if e, ok := errors.AsType[ConfigError](err); !ok || e.Error() != path+": no such file or directory: want a configuration file" {
		t.Errorf("%v: want the name of the file, once, and that it is not there", err)
	}
}

const (
	wsgiPool    = "[pool.blog]\nlisten = \"/run/fpmd/blog.sock\"\nwsgi = \"blog:app\"\ndirectory = \"/srv/blog\"\nuser = \"blog\"\n"
	commandPool = "[pool.api]\nlisten = \"127.0.0.1:9001\"\ncommand = [\"/srv/api/api\", \"-v\"]\nuser = \"www-data\"\n"
)

// everySetting has every key but command, none at its default.
const everySetting = `
[supervisor]
runtime_dir = "/var/run/fpmd/"
include = []
log_level = "debug"
log_format = "json"
log = "/var/log/fpmd.log"
user = "www-data"
control_group = "video"
procs = 2
max_workers = 500

[pool.blog]
listen = ["/run//fpmd/blog.sock", "[::1]:09000", "LocalHost:9001", ":9002"]
listen_mode = "600"
listen_owner = "www-data"
listen_group = "44"
listen_backlog = 4096
allowed_clients = ["127.0.0.1", "10.0.0.0/8", "::1", "::ffff:192.0.2.0/120"]
wsgi = "blog.wsgi:make.app()"
chroot = "/srv/jail"
directory = "/srv/blog/"
python = ".venv/bin/python"
python_path = ["lib", "/srv/lib"]
user = "blog"
group = "video"
umask = "0027"
env = { A = "1", "b.c" = "" }
env_file = ".env"
clear_env = false
scheduling = "idle"
nice = -5
oom_score_adj = 500
rlimit_nofile = 1024
rlimit_nproc = "unlimited"
rlimit_core = "64MiB"
cgroup_memory_max = "768MiB"
cgroup_pids_max = 64
no_new_privs = false
pm = "dynamic"
start_workers = 4
min_spare_workers = 2
max_spare_workers = 5
idle_timeout = "1m"
max_requests = 1000
max_requests_jitter = 100
max_age = "1h"
max_age_jitter = "5m"
max_memory = "512MiB"
max_memory_hard = "1GiB"
workers = "auto"
threads = 1
script_name = "/blog"
debug = true
allow_root = true
probe = "https://www.example.com/blog/healthz?deep=1"
probe_status = 204
max_boot_failures = 2
keep_generation = "5m"
start_timeout = "1m30s"
stop_timeout = "500ms"
drain_timeout = "2m"
request_timeout = "0s"
slow_timeout = "5s"
client_timeout = "45s"
buffer_request = "512KiB"
buffer_response = "64KiB"
buffer_files = "1GiB"
max_connections = 100
queue_size = 0
queue_timeout = "1s"
access_log = "-"
max_environ = "64KiB"
`

// Every key arrives where it belongs.
func TestEverySetting(t *testing.T) {
	cfg := mustLoad(t, testMachine(0), everySetting)
	sup := Supervisor{
		RuntimeDir: "/var/run/fpmd", Include: nil, LogLevel: slog.LevelDebug, LogFormat: "json",
		Log: "/var/log/fpmd.log", User: "www-data", Procs: 2, MaxWorkers: 500, ControlGroup: "video", ControlGID: 44,
	}
	if !reflect.DeepEqual(cfg.Supervisor, sup) {
		t.Errorf("[supervisor] is\n%+v, want\n%+v", cfg.Supervisor, sup)
	}
	pool := PoolConfig{
		Name: "blog",
		Listen: []Address{
			{"unix", "/run/fpmd/blog.sock"},
			{"tcp", "[::1]:9000"},
			{"tcp", "localhost:9001"},
			{"tcp", ":9002"},
		},
		ListenMode: 0o600, ListenOwner: 33, ListenGroup: 44, ListenBacklog: 4096,
		AllowedClients: []netip.Prefix{
			netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("10.0.0.0/8"),
			netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("192.0.2.0/24"),
		},
		WSGI: "blog.wsgi:make.app()", Directory: "/srv/blog",
		Python: "/srv/blog/.venv/bin/python", PythonPath: []string{"/srv/blog/lib", "/srv/lib"},
		Chroot: "/srv/jail",
		Cred:   &Credential{UID: 1000, GID: 44, Groups: []uint32{33, 44, 1000}, Name: "blog", Home: "/srv/blog"},
		Umask:  0o027, Env: map[string]string{"A": "1", "b.c": ""},
		EnvFile: "/srv/jail/srv/blog/.env", FileEnv: map[string]string{"TOKEN": "hunter2"},
		Limits: Limits{
			Scheduling: "idle", Nice: Optional{true, -5}, OOMScoreAdj: Optional{true, 500},
			Nofile: Optional{true, 1024}, Nproc: Optional{true, unlimited}, Core: Optional{true, 64 << 20},
		},
		Group: GroupLimits{Memory: 768 << 20, Pids: 64},
		PM:    Dynamic, Workers: 6, StartWorkers: 4, MinSpareWorkers: 2, MaxSpareWorkers: 5, IdleTimeout: time.Minute,
		MaxRequests: 1000, MaxRequestsJitter: 100, MaxAge: time.Hour, MaxAgeJitter: 5 * time.Minute, MaxMemory: 512 << 20, MaxMemoryHard: 1 << 30,
		Threads: 1, ScriptName: "/blog", Debug: true, AllowRoot: true,
		Probe: "https://www.example.com/blog/healthz?deep=1", ProbeStatus: 204, MaxBootFailures: 2, KeepGeneration: 5 * time.Minute,
		StartTimeout: 90 * time.Second, StopTimeout: 500 * time.Millisecond, DrainTimeout: 2 * time.Minute,
		SlowTimeout: 5 * time.Second, ClientTimeout: 45 * time.Second, BufferRequest: 512 << 10, BufferResponse: 64 << 10, BufferFiles: 1 << 30, MaxConnections: 100,
		QueueTimeout: time.Second, AccessLog: "-", MaxEnviron: 64 << 10,
	}
	if !reflect.DeepEqual(*cfg.Pools[0], pool) {
		t.Errorf("[pool.blog] is\n%+v, want\n%+v", *cfg.Pools[0], pool)
	}
}

// What is not written is as Defaults has it.
func TestDefaults(t *testing.T) {
	cfg := mustLoad(t, testMachine(0), commandPool)
	sup, pool := Defaults()
	if !reflect.DeepEqual(cfg.Supervisor, sup) {
		t.Errorf("[supervisor] is\n%+v, want\n%+v", cfg.Supervisor, sup)
	}
	pool.Name = "api"
	pool.Listen = []Address{{"tcp", "127.0.0.1:9001"}}
	pool.Command = []string{"/srv/api/api", "-v"}
	pool.Cred = &Credential{UID: 33, GID: 33, Groups: []uint32{33}, Name: "www-data", Home: "/var/www"}
	if !reflect.DeepEqual(*cfg.Pools[0], pool) {
		t.Errorf("[pool.api] is\n%+v, want\n%+v", *cfg.Pools[0], pool)
	}
}

func TestRuntimeDir(t *testing.T) {
	for _, tt := range []struct {
		name string
		uid  int
		xdg  string
		want string
	}{
		{"root", 0, "/run/user/0", "/run/fpmd"},
		{"user with a session", 1001, "/run/user/1001", "/run/user/1001/fpmd"},
		{"user without one", 1001, "", "/tmp/fpmd-1001"},
		{"a session's folder that is none", 1001, "run", "/tmp/fpmd-1001"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := testMachine(tt.uid)
			m.lookupEnv = func(name string) (string, bool) { return tt.xdg, name == "XDG_RUNTIME_DIR" && tt.xdg != "" }
			if got := m.runtimeDir(); got != tt.want {
				t.Errorf("runtime_dir is %s, want %s", got, tt.want)
			}
		})
	}
}

// Whom workers become.
func TestCredentials(t *testing.T) {
	blog := &Credential{UID: 1000, GID: 1000, Groups: []uint32{33, 44, 1000}, Name: "blog", Home: "/srv/blog"}
	root := &Credential{UID: 0, GID: 0, Groups: []uint32{0}, Name: "root", Home: "/root"}
	for _, tt := range []struct {
		name       string
		uid        int
		supervisor string
		pool       string
		want       *Credential
	}{
		{"the pool's user", 0, "", `user = "blog"`, blog},
		{"by number", 0, "", `user = "1000"`, blog},
		{"the supervisor's user", 0, `user = "blog"`, ``, blog},
		{"the pool's user before the supervisor's", 0, `user = "www-data"`, `user = "blog"`, blog},
		{"root, allowed", 0, "", `allow_root = true`, root},
		{"root by name, allowed", 0, `user = "blog"`, "allow_root = true\nuser = \"root\"", root},
		{"not root", 1001, "", ``, nil},
		{"not root, own name", 1001, "", "user = \"app\"\ngroup = \"app\"\nlisten_owner = \"app\"\nlisten_group = \"video\"", nil},
		{"not root, a supervisor's user that only root has a use for", 1001, `user = "fpmd-web"`, ``, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := mustLoad(t, testMachine(tt.uid), "[supervisor]\n"+tt.supervisor+"\n[pool.api]\nlisten = \"/run/api\"\ncommand = [\"/srv/api/api\"]\n"+tt.pool+"\n")
			if got := cfg.Pools[0].Cred; !reflect.DeepEqual(got, tt.want) {
				t.Errorf("workers become %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestIncludes(t *testing.T) {
	path := "testdata/config/good/includes.toml"
	cfg, err := load(path, testMachine(0))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{path, "testdata/config/good/conf.d/api.toml", "testdata/config/good/conf.d/blog.toml", "testdata/config/good/more.toml"}
	if !slices.Equal(cfg.Files, want) {
		t.Errorf("read %q, want %q: sorted, each once, no hidden ones", cfg.Files, want)
	}
	var names []string
	for _, p := range cfg.Pools {
		names = append(names, p.Name)
	}
	if want := []string{"admin", "api", "blog", "more"}; !slices.Equal(names, want) {
		t.Errorf("pools are %q, want %q", names, want)
	}
	if want := []string{"conf.d/*.toml", "${EMPTY}more.toml", "*.toml"}; !slices.Equal(cfg.Supervisor.Include, want) {
		t.Errorf("include is %q, want %q", cfg.Supervisor.Include, want)
	}
}

// A folder of pools may be empty, but not absent: TestBrokenConfigurations has that.
func TestIncludeOfNothing(t *testing.T) {
	cfg := mustLoad(t, testMachine(0), "[supervisor]\ninclude = [\"*.conf\"]\n"+wsgiPool)
	if len(cfg.Files) != 1 {
		t.Errorf("read %q, want one file", cfg.Files)
	}
}

func TestExpand(t *testing.T) {
	env := map[string]string{"A": "1", "B_2": "x y", "NONE": "", "DOLLAR": "${A}"}
	lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	for _, tt := range []struct{ name, in, want string }{
		{"no variable", "a b", "a b"},
		{"alone", "${A}", "1"},
		{"within", "a${A}b${B_2}c", "a1bx yc"},
		{"empty is set", "<${NONE}>", "<>"},
		{"default of an unset one", "${UNSET:-d}", "d"},
		{"default of an empty one", "${NONE:-d}", "d"},
		{"default not needed", "${A:-d}", "1"},
		{"empty default", "<${UNSET:-}>", "<>"},
		{"default with what else means something", "${UNSET:-a:-b$c{}", "a:-b$c{"},
		{"dollar", "$$${A}$$", "$1$"},
		{"dollar before a brace", "$${A}", "${A}"},
		{"what a variable holds is taken as it is", "${DOLLAR}", "${A}"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := expand(tt.in, lookup); err != nil || got != tt.want {
				t.Errorf("%q is %q, %v, want %q", tt.in, got, err, tt.want)
			}
		})
	}
}

// Numbers and booleans can come from variables, although those are strings.
func TestVariables(t *testing.T) {
	cfg := mustLoad(t, testMachine(0), wsgiPool+`
workers = "${ONE}${ONE}"
queue_size = "${NONE:-7}"
debug = "${YES}"
max_environ = "${NONE:-8192}"
queue_timeout = "${ONE}s"
env = { A = "$${ONE}", B = "${ONE}" }
[pool.api]
listen = "/run/fpmd/${ONE}.sock"
command = ["/srv/${NONE:-api}/api", "${ONE}"]
user = "blog"
workers = "${AUTO}"
`)
	api, blog := cfg.Pools[0], cfg.Pools[1]
	got := fmt.Sprint(blog.Workers, blog.QueueSize, blog.Debug, blog.MaxEnviron, blog.QueueTimeout, blog.Env, api.Listen, api.Command, api.Workers)
	want := "11 7 true 8192 1s map[A:${ONE} B:1] [/run/fpmd/1.sock] [/srv/api/api 1] 6"
	if got != want {
		t.Errorf("read as\n%s, want\n%s", got, want)
	}
}

// LookupEnv takes the place of the process's environment.
func TestLookupEnv(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "fpmd.toml")
	text := "[pool.a]\nlisten = \"${SOCKET}\"\ncommand = [\"/bin/sh\"]\nallow_root = true\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"SOCKET": "/run/a.sock", "PATH": os.Getenv("PATH")}
	cfg, err := Load(path, LoadOptions{LookupEnv: func(name string) (string, bool) { v, ok := env[name]; return v, ok }})
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.Pools[0].Listen[0].Address; got != "/run/a.sock" {
		t.Errorf("listens on %s, want /run/a.sock", got)
	}
}

// Who only asks reads the configuration of another user's fpmd: what he may not do himself, and
// what he can't see, is not judged. What is wrong for anybody is.
func TestAsking(t *testing.T) {
	m := testMachine(1001)
	m.asking = true
	const text = `
[supervisor]
user = "nobdy"
[pool.a]
listen = "/run/fpmd/a.sock"
listen_owner = "www-data"
listen_group = "www-data"
wsgi = "a:app"
directory = "/closed"
python = ".venv/bin/python"
user = "blog"
group = "blog"
env = { TOKEN = "${NONE}" }
env_file = "/srv/closed/secrets"
nice = -5
rlimit_nofile = 65536
[pool.b]
listen = "127.0.0.1:9001"
script_name = "/b"
command = ["/closed/b"]
`
	cfg := mustLoad(t, m, text)
	if a, b := cfg.Pools[0], cfg.Pools[1]; a.Listen[0].Address != "/run/fpmd/a.sock" || b.Listen[0].Address != "127.0.0.1:9001" || b.ScriptName != "/b" {
		t.Errorf("%+v, %+v", a, b)
	}
	if _, err := loadText(t, testMachine(1001), text); err == nil || strings.Count(err.Error(), "\n") < 9 {
		t.Errorf("who would start it is told: %v", err)
	}
	if _, err := loadText(t, m, text+"lissen = 1\n"); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("a key that there is not: %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	base := []string{"PATH=/opt/bin", "HOME=/root", "USER=root", "LOGNAME=root", "LANG=de_DE", "TOKEN=s3cret", "NOTIFY_SOCKET=/run/systemd/notify", "FPMD_POOL=other", "LISTEN_FDS=1"}
	blog := &Credential{UID: 1000, GID: 1000, Name: "blog", Home: "/srv/blog"}
	for _, tt := range []struct {
		name string
		pool PoolConfig
		base []string
		want []string
	}{
		{
			"cleared",
			PoolConfig{ClearEnv: true, Cred: blog},
			base,
			[]string{"HOME=/srv/blog", "LANG=C.UTF-8", "LOGNAME=blog", "PATH=/opt/bin", "USER=blog"},
		},
		{
			"kept, less what is the supervisor's own",
			PoolConfig{Cred: blog},
			base,
			[]string{"HOME=/srv/blog", "LANG=de_DE", "LOGNAME=blog", "PATH=/opt/bin", "TOKEN=s3cret", "USER=blog"},
		},
		{
			"as whoever we are",
			PoolConfig{ClearEnv: true},
			base,
			[]string{"HOME=/root", "LANG=C.UTF-8", "LOGNAME=root", "PATH=/opt/bin", "USER=root"},
		},
		{
			"a file's",
			PoolConfig{ClearEnv: true, Cred: blog, FileEnv: map[string]string{"LANG": "C", "A": "of the file", "B": "of the file"}, Env: map[string]string{"A": "of the pool"}},
			base,
			[]string{"A=of the pool", "B=of the file", "HOME=/srv/blog", "LANG=C", "LOGNAME=blog", "PATH=/opt/bin", "USER=blog"},
		},
		{
			"the pool's own have the last word",
			PoolConfig{ClearEnv: true, Cred: blog, Env: map[string]string{"LANG": "C", "HOME": "/tmp", "A": "="}},
			base,
			[]string{"A==", "HOME=/tmp", "LANG=C", "LOGNAME=blog", "PATH=/opt/bin", "USER=blog"},
		},
		{
			"nothing to begin with",
			PoolConfig{ClearEnv: true, Cred: blog},
			nil,
			[]string{"HOME=/srv/blog", "LANG=C.UTF-8", "LOGNAME=blog", "PATH=" + defaultPath, "USER=blog"},
		},
		{
			"an empty PATH is none",
			PoolConfig{Cred: blog},
			[]string{"PATH="},
			[]string{"HOME=/srv/blog", "LANG=C.UTF-8", "LOGNAME=blog", "PATH=" + defaultPath, "USER=blog"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.pool.Environ(tt.base); !slices.Equal(got, tt.want) {
				t.Errorf("environment is\n%q, want\n%q", got, tt.want)
			}
		})
	}
}

// Two addresses meet when the second can't be listened on besides the first.
func TestAddressesThatMeet(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"/run/a", "/run/a", true},
		{"/run/a", "/run/b", false},
		{"/run/a", ":9000", false},
		{"127.0.0.1:9000", "127.0.0.1:9000", true},
		{"127.0.0.1:9000", "127.0.0.1:9001", false},
		{"127.0.0.1:9000", "127.0.0.2:9000", false},
		{"127.0.0.1:9000", "[::1]:9000", false},
		{"localhost:9000", "127.0.0.1:9000", true},
		{"localhost:9000", "[::1]:9000", true},
		{":9000", "127.0.0.1:9000", true},
		{":9000", "0.0.0.0:9000", true},
		{"0.0.0.0:9000", "10.0.0.1:9000", true},
		{"0.0.0.0:9000", "[2001:db8::1]:9000", false},
		{"[::]:9000", "10.0.0.1:9000", true},
	} {
		a, errA := parseAddress(tt.a)
		b, errB := parseAddress(tt.b)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if a.meets(b) != tt.want || b.meets(a) != tt.want {
			t.Errorf("%v and %v meet: %t and %t, want %t", a, b, a.meets(b), b.meets(a), tt.want)
		}
	}
}

// A word that was refused as one of a later version is not one of this.
func TestLaterWords(t *testing.T) {
	for _, w := range later {
		if named(poolSettings, w) || named(supervisorSettings, w) {
			t.Errorf("%s is a setting: take it out of later", w)
		}
	}
}

// The sample has every key that there is, in the table where it belongs, at its
// default: "#key" lines are the defaults, "##key" lines examples of what has none.
func TestSample(t *testing.T) {
	defaults, examples, described := sample(t, "../etc/fpmd.toml")

	cfg := mustLoad(t, testMachine(0), strings.Join(defaults["supervisor"], "\n")+
		"\n"+wsgiPool+
		strings.Join(defaults["pool.blog"], "\n"))
	sup, pool := Defaults()
	if !reflect.DeepEqual(cfg.Supervisor, sup) {
		t.Errorf("the sample's [supervisor] is\n%+v, the code's\n%+v", cfg.Supervisor, sup)
	}
	got := *cfg.Pools[0]
	got.Name, got.Listen, got.WSGI, got.Cred, got.Directory = "", nil, "", nil, pool.Directory
	got.PythonPath = nil // [] and nothing are the same
	if !reflect.DeepEqual(got, pool) {
		t.Errorf("the sample's pool is\n%+v, the code's defaults\n%+v", got, pool)
	}

	for table, settings := range map[string][]string{"supervisor": names(supervisorSettings), "pool.blog": names(poolSettings)} {
		var have []string
		for _, line := range append(slices.Clone(defaults[table]), examples[table]...) {
			if name, _, ok := strings.Cut(line, "="); ok {
				have = append(have, strings.TrimSpace(name))
			}
		}
		slices.Sort(have)
		slices.Sort(settings)
		if have := slices.Compact(have); !slices.Equal(have, settings) {
			t.Errorf("the sample's [%s] has\n%q, the code\n%q", table, have, settings)
		}
	}
	for name, ok := range described {
		if !ok {
			t.Errorf("the sample does not say what %s means", name)
		}
	}

	for _, line := range examples["pool.blog"] {
		name, _, _ := strings.Cut(line, " ")
		base := map[string]string{
			"listen": "listen = \"/run/x\"", "wsgi": "wsgi = \"a:b\"", "directory": "directory = \"/srv/blog\"", "user": "user = \"blog\"",
		}
		if name == "command" {
			delete(base, "wsgi")
		}
		if name == "allowed_clients" {
			base["listen"] = "listen = \":9001\""
		}
		for _, companion := range [][2]string{
			{"start_workers", "pm = \"dynamic\""},
			{"min_spare_workers", "pm = \"dynamic\""},
			{"max_spare_workers", "pm = \"dynamic\""},
			{"idle_timeout", "pm = \"ondemand\""},
			{"max_requests_jitter", "max_requests = 1"},
			{"max_age_jitter", "max_age = \"1s\""},
		} {
			if name == companion[0] {
				base["companion"] = companion[1]
			}
		}
		base[name] = line
		text := "[pool.x]\n" + strings.Join(slices.Sorted(maps.Values(base)), "\n") + "\n"
		mustLoad(t, testMachine(0), text)
	}
}

// sample reads a sample by its convention. described says of each key whether
// a word of meaning stands beside it or above it.
func sample(t *testing.T, path string) (defaults, examples map[string][]string, described map[string]bool) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	setting := regexp.MustCompile(`^(#{0,2})([a-z_]+ += .*)$`)
	header := regexp.MustCompile(`^#?\[([a-z.]+)\]`)
	defaults, examples, described = map[string][]string{}, map[string][]string{}, map[string]bool{}
	table, comment := "", false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if m := header.FindStringSubmatch(line); m != nil {
			table, comment = m[1], false
			defaults[table] = append(defaults[table], "["+table+"]")
			if table != "supervisor" {
				defaults[table] = nil // the test has a table of its own for it
			}
			continue
		}
		m := setting.FindStringSubmatch(line)
		switch {
		case m == nil && (strings.HasPrefix(line, "# ") || line == "#" || line == ""):
			comment = line != ""
			continue
		case m == nil:
			t.Fatalf("%s: %q is neither a comment, nor a table, nor a setting", path, line)
		case m[1] == "##", m[1] == "": // without a sign it is in force, and not the default
			examples[table] = append(examples[table], m[2])
		default:
			defaults[table] = append(defaults[table], m[2])
		}
		name, _, _ := strings.Cut(m[2], " ")
		described[table+"."+name] = described[table+"."+name] || comment || strings.Contains(m[2], " # ")
	}
	return defaults, examples, described
}

func TestSamplePool(t *testing.T) {
	text, err := os.ReadFile("../etc/conf.d/blog.toml.sample")
	if err != nil {
		t.Fatal(err)
	}
	m := testMachine(0)
	m.lookupEnv = func(name string) (string, bool) { return "x", true }
	mustLoad(t, m, string(text))
}

// Any bytes give a configuration or errors that each cite file and line, never
// a panic; and a configuration has nothing in it that its users would have to check
// again.
func FuzzLoad(f *testing.F) {
	// The broken ones are many, and run in TestBrokenConfigurations; testdata/fuzz has some.
	files, err := filepath.Glob("testdata/config/good/*.toml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range append(files, "../etc/fpmd.toml", "../etc/conf.d/blog.toml.sample") {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, true)
		f.Add(text, false)
	}
	f.Add([]byte("\x12"), true) // the parser finds its error at offset -1
	f.Fuzz(func(t *testing.T, text []byte, root bool) {
		uid := 1001
		if root {
			uid = 0
		}
		m := testMachine(uid)
		m.readFile = func(path string) ([]byte, error) {
			if path == "etc/fpmd.toml" || path == "etc/self.toml" {
				return text, nil
			}
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		}
		m.readDir = func(string) ([]fs.DirEntry, error) { return nil, nil }
		m.glob = func(string) ([]string, error) { return []string{"etc/self.toml"}, nil }
		cfg, err := load("etc/fpmd.toml", m)
		if err != nil {
			checkErrors(t, err)
			if cfg != nil {
				t.Fatal("an error and a configuration")
			}
			return
		}
		checkConfig(t, cfg, root)
		printed := cfg.text(m)
		m.readFile = func(string) ([]byte, error) { return []byte(printed), nil }
		again, err := load("printed", m)
		if err != nil {
			t.Fatalf("%v\nin what was printed:\n%s", err, printed)
		}
		checkSame(t, again, cfg)
	})
}

// valid reports whether a kernel would take l.
func (l Limits) valid() bool {
	within := func(o Optional, low, high int64) bool {
		return !o.Set && o.Value == 0 || o.Set && low <= o.Value && o.Value <= high
	}
	return within(l.Nice, -20, 19) && within(l.OOMScoreAdj, -1000, 1000) && within(l.Nofile, minNofile, 1<<20) &&
		(l.Nproc.Value == unlimited || within(l.Nproc, minNproc, maxNproc)) && within(l.Core, unlimited, maxCore)
}

func checkConfig(t *testing.T, cfg *Config, root bool) {
	t.Helper()
	if len(cfg.Pools) == 0 || !filepath.IsAbs(cfg.Supervisor.RuntimeDir) || cfg.Supervisor.Procs < 0 {
		t.Fatalf("loaded: %+v", cfg)
	}
	for i, p := range cfg.Pools {
		for what, ok := range map[string]bool{
			"sorted names":      i == 0 || cfg.Pools[i-1].Name < p.Name,
			"an address":        len(p.Listen) > 0,
			"one program":       (p.WSGI == "") != (len(p.Command) == 0),
			"a folder":          filepath.IsAbs(p.Directory),
			"a user":            (p.Cred != nil) == root,
			"not root":          !root || p.Cred.UID != 0 || p.AllowRoot,
			"times":             min(p.StartTimeout, p.StopTimeout, p.DrainTimeout, p.QueueTimeout) >= time.Millisecond && p.RequestTimeout >= 0 && p.ClientTimeout >= 0,
			"workers":           p.Workers >= 1,
			"threads":           p.Threads >= 0 && p.Threads <= protocol.MaxSlots && (p.WSGI == "" || p.Threads <= 1),
			"a queue":           p.QueueSize >= 0,
			"connections":       p.MaxConnections >= 1,
			"a bound":           p.MaxEnviron > 0 && p.MaxEnviron <= protocol.MaxEnviron,
			"permissions":       p.ListenMode&^0o777 == 0 && p.Umask&^0o777 == 0,
			"clients":           len(p.AllowedClients) > 0 || !slices.ContainsFunc(p.Listen, func(a Address) bool { return !a.loopback() }),
			"an environment":    p.Env != nil,
			"a file for it":     p.EnvFile == "" && p.FileEnv == nil || filepath.IsAbs(p.EnvFile) && p.FileEnv != nil,
			"limits":            p.Limits.valid(),
			"a place for a log": p.AccessLog == "" || p.AccessLog == "-" || filepath.IsAbs(p.AccessLog),
		} {
			if !ok {
				t.Errorf("loaded without %s: %+v", what, p)
			}
		}
		for _, kv := range p.Environ([]string{"A=1"}) {
			if strings.ContainsRune(kv, 0) || strings.HasPrefix(kv, "=") {
				t.Errorf("%q in the environment", kv)
			}
		}
	}
}
