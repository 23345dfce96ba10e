package manager

import (
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"
)

// A Config is a whole configuration, checked, with every default filled in and every
// name resolved. It is not changed after Load; a reload replaces it whole.
type Config struct {
	Path       string   // the file that was asked for
	Files      []string // what was read, in that order: Path, then what it includes
	Supervisor Supervisor
	Pools      []*PoolConfig // sorted by name, at least one

	places map[string]position // of pools' tables and keys, such as pool.blog.workers
}

// A position is where something stands.
type position struct {
	file string
	line int
}

// Supervisor is the [supervisor] table.
type Supervisor struct {
	RuntimeDir string     // absolute
	Include    []string   // as written, relative to the file
	LogLevel   slog.Level // LevelDebug, LevelInfo, LevelWarn or LevelError
	LogFormat  string     // "text" or "json"
	Log        string     // absolute; "": standard error
	User       string     // of pools that name none, when fpmd is root; "": none
	Procs      int        // processors that Go code runs on at once; 0: what measurement advises
	MaxWorkers int        // of all pools together; 0: each pool's own limit will do

	ControlGroup string // whose members may use the control socket as well; "": nobody's
	ControlGID   int    // its number
}

// PoolConfig is a [pool.NAME] table.
type PoolConfig struct {
	Name           string
	Listen         []Address      // at least one
	ListenMode     os.FileMode    // of Unix sockets
	ListenOwner    int            // uid of Unix sockets; -1: the supervisor's
	ListenGroup    int            // gid of Unix sockets; -1: the supervisor's
	ListenBacklog  int            // the kernel caps it at net.core.somaxconn
	AllowedClients []netip.Prefix // of TCP; empty: whoever reaches the address, which then is a loopback one

	WSGI       string   // "module:attribute" or "module:factory()"; "" when Command is not empty
	Command    []string // a name without a slash is looked up on PATH, any other is absolute
	Directory  string   // absolute; it exists
	Python     string   // as Command[0]
	PythonPath []string // absolute, none with a colon

	Chroot   string            // absolute; what is / for workers, so that all of the above is below it; "": fpmd's own
	Cred     *Credential       // whom workers become; nil: fpmd is not root, and they stay who it is
	Umask    int               // of the workers
	Env      map[string]string // what the application gets on top; not nil
	EnvFile  string            // absolute; "": none
	FileEnv  map[string]string // what was in EnvFile; Env wins over it
	ClearEnv bool              // keep the supervisor's own variables from the application

	Limits     Limits
	Group      GroupLimits
	NoNewPrivs bool // setuid programs and file capabilities give workers nothing

	PM                PM            // how the number of workers is found
	Workers           int           // 1 or more: of a static pool, those that there are; else the most
	StartWorkers      int           // of a dynamic pool, at first
	MinSpareWorkers   int           // of a dynamic pool: slots that are kept free
	MaxSpareWorkers   int           // of a dynamic pool: beyond so many free slots, workers leave
	IdleTimeout       time.Duration // how long a worker that is not needed stays; not 0
	MaxRequests       int           // after which a worker is replaced; 0: never
	MaxRequestsJitter int           // up to so many more, at random
	MaxAge            time.Duration // after which a worker is replaced; 0: never
	MaxAgeJitter      time.Duration // up to so much more, at random
	MaxMemory         int64         // bytes of a worker, beyond which it is replaced; 0: no matter
	MaxMemoryHard     int64         // bytes of a worker, beyond which it is killed, whatever it is at; 0: no matter
	Threads           int           // exchanges at once in one worker, up to protocol.MaxSlots; 0: the worker decides, 1 for WSGI
	ScriptName        string        // "" or "/prefix"
	Debug             bool          // tracebacks in pages
	AllowRoot         bool

	Probe           string        // path, or URL with host and scheme, that the first worker of a generation is asked for; "": none is
	ProbeStatus     int           // that it has to answer; 0: any from 200 to 399
	MaxBootFailures int           // workers of a new generation that may fail before it is given up
	KeepGeneration  time.Duration // how long workers that were replaced stay, for a rollback; 0: they leave

	StartTimeout   time.Duration // from launch to ready; not 0
	StopTimeout    time.Duration // from TERM to KILL; not 0
	DrainTimeout   time.Duration // for requests to end before their worker is stopped; not 0
	RequestTimeout time.Duration // for the application; 0: none
	SlowTimeout    time.Duration // after which a request that its worker still has is logged; 0: never
	ClientTimeout  time.Duration // for the web server to send or take some KiB; 0: none
	BufferRequest  int64         // bytes of a body that are awaited before a worker is asked for; 64 times as much for all of the pool; 0: what comes soon
	BufferResponse int64         // bytes of an answer that may wait for the web server; 64 times as much for all of the pool
	BufferFiles    int64         // bytes of one body, or answer, that may wait in a file beyond that; 0: none
	MaxConnections int           // of one listener
	QueueSize      int           // requests that wait for a worker; 0: none may
	QueueTimeout   time.Duration // how long one may wait; not 0
	AccessLog      string        // absolute; "": none, "-": with the log
	MaxEnviron     int64         // bytes of a request's parameters, up to protocol.MaxEnviron
}

// A PM is a way to find the number of a pool's workers.
type PM string

// What a PM may be.
const (
	Static   PM = "static"   // always Workers
	Dynamic  PM = "dynamic"  // up to Workers, some of them spare
	OnDemand PM = "ondemand" // up to Workers, and none while nobody asks
)

// An Address is where a pool listens, as package net wants it.
type Address struct {
	Network string // "unix" or "tcp"
	Address string // absolute and clean path, or host:port
}

func (a Address) String() string { return a.Address }

// A Credential is a user as the kernel knows it.
type Credential struct {
	UID, GID uint32
	Groups   []uint32 // supplementary, sorted, with GID
	Name     string
	Home     string
}

// Defaults gives the tables as they are when nothing is written into them but
// what has no default. RuntimeDir is that of root; Load finds another user's.
func Defaults() (Supervisor, PoolConfig) {
	s := Supervisor{
		RuntimeDir: "/run/fpmd",
		LogLevel:   slog.LevelInfo,
		LogFormat:  "text",
	}
	p := PoolConfig{
		ListenMode:      0o660,
		ListenOwner:     -1,
		ListenGroup:     -1,
		ListenBacklog:   511, // nginx's and php-fpm's own
		Directory:       "/",
		Python:          "python3",
		Umask:           0o022,
		Env:             map[string]string{},
		ClearEnv:        true,
		NoNewPrivs:      true,
		PM:              Static,
		Workers:         2,
		IdleTimeout:     10 * time.Second,
		StartWorkers:    1,
		MinSpareWorkers: 1,
		MaxSpareWorkers: 3,
		StartTimeout:    60 * time.Second,
		StopTimeout:     5 * time.Second,
		DrainTimeout:    60 * time.Second,
		RequestTimeout:  60 * time.Second,
		ClientTimeout:   60 * time.Second,
		BufferResponse:  1 << 20,
		MaxConnections:  16384,
		QueueSize:       512,
		QueueTimeout:    10 * time.Second,
		MaxEnviron:      256 << 10,
	}
	return s, p
}

// defaultPath is where programs are looked for when the supervisor was started
// without a PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Environ is the environment of the pool's workers, base being the
// supervisor's. It has PATH, HOME, USER, LOGNAME and a UTF-8 locale in any
// case, and never what systemd or another fpmd told the supervisor alone. It is sorted, and no name
// comes twice.
func (p *PoolConfig) Environ(base []string) []string {
	given := make(map[string]string, len(base))
	for _, kv := range base {
		if name, value, ok := strings.Cut(kv, "="); ok && name != "" && !supervisorsOwn(name) {
			given[name] = value
		}
	}
	env := map[string]string{"PATH": defaultPath, "LANG": "C.UTF-8"}
	if p.Cred != nil {
		// Also without clear_env: root's HOME is of no use to another user.
		for name, value := range map[string]string{"HOME": p.Cred.Home, "USER": p.Cred.Name, "LOGNAME": p.Cred.Name} {
			env[name], given[name] = value, value
		}
	} else if u, err := user.Current(); err == nil { // without an entry there is nothing to say but what base does
		env["HOME"], env["USER"], env["LOGNAME"] = u.HomeDir, u.Username, u.Username
	}
	for name, value := range given {
		switch name {
		case "PATH", "HOME", "USER", "LOGNAME":
			if value != "" {
				env[name] = value
			}
		default:
			if !p.ClearEnv {
				env[name] = value
			}
		}
	}
	maps.Copy(env, p.FileEnv)
	maps.Copy(env, p.Env)
	list := make([]string, 0, len(env))
	for name, value := range env {
		list = append(list, name+"="+value)
	}
	slices.Sort(list)
	return list
}

// setPath is the PATH that the pool sets for its workers, if it does.
func (p *PoolConfig) setPath() (path string, set bool) {
	if path, set = p.Env["PATH"]; !set {
		path, set = p.FileEnv["PATH"]
	}
	return path, set
}

// supervisorsOwn reports whether the variable name speaks to the supervisor
// alone: a worker that notified systemd would do so in its name.
func supervisorsOwn(name string) bool {
	switch name {
	case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES",
		"MAINPID", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID":
		return true
	}
	return strings.HasPrefix(name, "FPMD_")
}
