package manager

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// Text is the configuration as one file: every key, with what is in force where
// the files say nothing. Load reads it back to the same Config, but for the
// values of env, which are masked, and for Include: the pools of included files are in it.
func (c *Config) Text() string { return c.text(thisMachine()) }

// masked stands for what nobody is to read.
const masked = "***"

// text is Text on a machine that knows the users and groups of c.
func (c *Config) text(m machine) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# What is in force after reading %s.\n", Printable(strings.Join(c.Files, ", ")))
	fmt.Fprintf(&b, "# The values of env are masked (%q), but for PATH, where programs are looked up, and what env_file holds is left there; everything else is as it is.\n\n", masked)
	b.WriteString("[supervisor]\n")
	for _, s := range supervisorSettings {
		writeSetting(&b, s.name, mustShow(supervisorShown, s.name)(&c.Supervisor))
	}
	for _, p := range c.Pools {
		fmt.Fprintf(&b, "\n[%s]\n", toml.Key{"pool", p.Name})
		for _, s := range poolSettings {
			writeSetting(&b, s.name, mustShow(poolShown, s.name)(&m, p))
		}
	}
	return b.String()
}

// mustShow finds what shows the key name. TestEverySettingIsPrinted sees to it that each has one.
func mustShow[F any](shown map[string]F, name string) F {
	f, ok := shown[name]
	if !ok {
		panic("bug: nothing shows the key " + name)
	}
	return f
}

// unset is the value of a key that can't be written, and says why.
type unset string

// writeSetting writes one key: a value that TOML has, a table of strings, or an unset.
func writeSetting(b *strings.Builder, name string, value any) {
	switch v := value.(type) {
	case unset:
		fmt.Fprintf(b, "# %s: none, %s\n", name, string(v))
		return
	case map[string]string:
		if len(v) == 0 {
			value = map[string]any{}
			break
		}
		for _, k := range slices.Sorted(maps.Keys(v)) {
			writeSetting(b, toml.Key{name, k}.String(), v[k])
		}
		return
	}
	fmt.Fprintf(b, "%-19s = %s\n", name, tomlValue(value))
}

// tomlValue is v as TOML writes it, with the dollars that Load undoes.
func tomlValue(v any) string {
	switch v := v.(type) {
	case string:
		// The library's quoting: strconv's has escapes that TOML has not.
		line, err := toml.Marshal(map[string]string{"v": strings.ReplaceAll(v, "$", "$$")})
		if err != nil {
			panic("bug: a string that TOML can't hold: " + err.Error()) // Load has read it from TOML
		}
		return strings.TrimSuffix(strings.TrimPrefix(string(line), "v = "), "\n")
	case []string:
		list := make([]string, len(v))
		for i, s := range v {
			list[i] = tomlValue(s)
		}
		return "[" + strings.Join(list, ", ") + "]"
	case map[string]any:
		return "{}"
	}
	return fmt.Sprint(v) // a number or a boolean
}

// supervisorShown has every key of supervisorSettings, the other way round.
var supervisorShown = map[string]func(*Supervisor) any{
	"runtime_dir": func(s *Supervisor) any { return s.RuntimeDir },
	"include":     func(*Supervisor) any { return []string{} },
	"log_level":   func(s *Supervisor) any { return strings.ToLower(s.LogLevel.String()) },
	"log_format":  func(s *Supervisor) any { return s.LogFormat },
	"log":         func(s *Supervisor) any { return s.Log },
	"user":        func(s *Supervisor) any { return s.User },
	"procs":       func(s *Supervisor) any { return s.Procs },
	"max_workers": func(s *Supervisor) any { return s.MaxWorkers },

	"control_group": func(s *Supervisor) any { return s.ControlGroup },
}

const (
	besideWSGI    = unset("the pool hosts wsgi")
	besideCommand = unset("the pool runs a command")
	notDynamic    = unset("the pool is not dynamic")
)

// poolShown has every key of poolSettings, the other way round.
var poolShown = map[string]func(*machine, *PoolConfig) any{
	"listen": func(_ *machine, p *PoolConfig) any {
		return texts(p.Listen, Address.String)
	},
	"listen_mode":    func(_ *machine, p *PoolConfig) any { return octal(p.ListenMode) },
	"listen_owner":   func(m *machine, p *PoolConfig) any { return m.userOf(p.ListenOwner) },
	"listen_group":   func(m *machine, p *PoolConfig) any { return m.groupOf(p.ListenGroup, strconv.Itoa(p.ListenGroup)) },
	"listen_backlog": func(_ *machine, p *PoolConfig) any { return p.ListenBacklog },
	"allowed_clients": func(_ *machine, p *PoolConfig) any {
		if len(p.AllowedClients) == 0 {
			return unset("whoever reaches the address may connect")
		}
		return texts(p.AllowedClients, netip.Prefix.String)
	},
	"wsgi": func(_ *machine, p *PoolConfig) any {
		if p.WSGI == "" {
			return besideCommand
		}
		return p.WSGI
	},
	"command": func(_ *machine, p *PoolConfig) any {
		if p.WSGI != "" {
			return besideWSGI
		}
		return p.Command
	},
	"chroot":    func(_ *machine, p *PoolConfig) any { return p.Chroot },
	"directory": func(_ *machine, p *PoolConfig) any { return p.Directory },
	"python": func(_ *machine, p *PoolConfig) any {
		if p.WSGI == "" {
			return besideCommand
		}
		return p.Python
	},
	"python_path": func(_ *machine, p *PoolConfig) any {
		if p.WSGI == "" {
			return besideCommand
		}
		return p.PythonPath
	},
	"user": func(_ *machine, p *PoolConfig) any {
		if p.Cred == nil {
			return ""
		}
		return p.Cred.Name
	},
	"group": func(m *machine, p *PoolConfig) any {
		if p.Cred == nil {
			return ""
		}
		// A group without an entry can't have been asked for: it is the user's own.
		return m.groupOf(int(p.Cred.GID), "")
	},
	"umask": func(_ *machine, p *PoolConfig) any { return octal(os.FileMode(p.Umask)) },
	"env": func(_ *machine, p *PoolConfig) any {
		env := map[string]string{}
		for name, value := range p.Env {
			if name != "PATH" {
				value = masked
			}
			env[name] = value
		}
		return env
	},
	"env_file":  func(_ *machine, p *PoolConfig) any { return p.EnvFile },
	"clear_env": func(_ *machine, p *PoolConfig) any { return p.ClearEnv },
	"scheduling": func(_ *machine, p *PoolConfig) any {
		if p.Limits.Scheduling == "" {
			return unset("workers have what fpmd was started under")
		}
		return p.Limits.Scheduling
	},
	"nice":          func(_ *machine, p *PoolConfig) any { return inherited(p.Limits.Nice) },
	"oom_score_adj": func(_ *machine, p *PoolConfig) any { return inherited(p.Limits.OOMScoreAdj) },
	"rlimit_nofile": func(_ *machine, p *PoolConfig) any { return inherited(p.Limits.Nofile) },
	"rlimit_nproc":  func(_ *machine, p *PoolConfig) any { return inherited(p.Limits.Nproc) },
	"rlimit_core": func(_ *machine, p *PoolConfig) any {
		if l := p.Limits.Core; l.Set && l.Value != unlimited {
			return sizeOf(l.Value)
		}
		return inherited(p.Limits.Core)
	},
	"cgroup_memory_max": func(_ *machine, p *PoolConfig) any { return sizeOf(p.Group.Memory) },
	"cgroup_pids_max":   func(_ *machine, p *PoolConfig) any { return p.Group.Pids },
	"no_new_privs":      func(_ *machine, p *PoolConfig) any { return p.NoNewPrivs },
	"pm":                func(_ *machine, p *PoolConfig) any { return string(p.PM) },
	"start_workers": func(_ *machine, p *PoolConfig) any {
		if p.PM != Dynamic {
			return notDynamic
		}
		return p.StartWorkers
	},
	"min_spare_workers": func(_ *machine, p *PoolConfig) any {
		if p.PM != Dynamic {
			return notDynamic
		}
		return p.MinSpareWorkers
	},
	"max_spare_workers": func(_ *machine, p *PoolConfig) any {
		if p.PM != Dynamic {
			return notDynamic
		}
		return p.MaxSpareWorkers
	},
	"idle_timeout": func(_ *machine, p *PoolConfig) any {
		if p.PM == Static {
			return unset("the pool is static")
		}
		return p.IdleTimeout.String()
	},
	"max_requests": func(_ *machine, p *PoolConfig) any { return p.MaxRequests },
	"max_requests_jitter": func(_ *machine, p *PoolConfig) any {
		if p.MaxRequests == 0 {
			return unset("there is no max_requests")
		}
		return p.MaxRequestsJitter
	},
	"max_age": func(_ *machine, p *PoolConfig) any { return p.MaxAge.String() },
	"max_age_jitter": func(_ *machine, p *PoolConfig) any {
		if p.MaxAge == 0 {
			return unset("there is no max_age")
		}
		return p.MaxAgeJitter.String()
	},
	"probe":             func(_ *machine, p *PoolConfig) any { return p.Probe },
	"max_boot_failures": func(_ *machine, p *PoolConfig) any { return p.MaxBootFailures },
	"keep_generation":   func(_ *machine, p *PoolConfig) any { return p.KeepGeneration.String() },
	"probe_status": func(_ *machine, p *PoolConfig) any {
		if p.Probe == "" {
			return unset("there is no probe")
		}
		return p.ProbeStatus
	},
	"max_memory":      func(_ *machine, p *PoolConfig) any { return sizeOf(p.MaxMemory) },
	"max_memory_hard": func(_ *machine, p *PoolConfig) any { return sizeOf(p.MaxMemoryHard) },
	"workers":         func(_ *machine, p *PoolConfig) any { return p.Workers },
	"threads":         func(_ *machine, p *PoolConfig) any { return p.Threads },
	"script_name":     func(_ *machine, p *PoolConfig) any { return p.ScriptName },
	"debug":           func(_ *machine, p *PoolConfig) any { return p.Debug },
	"allow_root":      func(_ *machine, p *PoolConfig) any { return p.AllowRoot },
	"start_timeout":   func(_ *machine, p *PoolConfig) any { return p.StartTimeout.String() },
	"stop_timeout":    func(_ *machine, p *PoolConfig) any { return p.StopTimeout.String() },
	"drain_timeout":   func(_ *machine, p *PoolConfig) any { return p.DrainTimeout.String() },
	"request_timeout": func(_ *machine, p *PoolConfig) any { return p.RequestTimeout.String() },
	"slow_timeout":    func(_ *machine, p *PoolConfig) any { return p.SlowTimeout.String() },
	"client_timeout":  func(_ *machine, p *PoolConfig) any { return p.ClientTimeout.String() },
	"max_connections": func(_ *machine, p *PoolConfig) any { return p.MaxConnections },
	"queue_size":      func(_ *machine, p *PoolConfig) any { return p.QueueSize },
	"queue_timeout":   func(_ *machine, p *PoolConfig) any { return p.QueueTimeout.String() },
	"access_log":      func(_ *machine, p *PoolConfig) any { return p.AccessLog },
	"buffer_request":  func(_ *machine, p *PoolConfig) any { return sizeOf(p.BufferRequest) },
	"buffer_files":    func(_ *machine, p *PoolConfig) any { return sizeOf(p.BufferFiles) },
	"buffer_response": func(_ *machine, p *PoolConfig) any { return sizeOf(p.BufferResponse) },
	"max_environ":     func(_ *machine, p *PoolConfig) any { return sizeOf(p.MaxEnviron) },
}

// inherited is a limit, where it is not fpmd's own.
func inherited(o Optional) any {
	if !o.Set {
		return unset("workers have fpmd's own")
	}
	return shownLimit(o.Value)
}

// sizeOf is n as parseSize reads it, or a number where it has no unit.
func sizeOf(n int64) any {
	if n == 0 || n%units[0].bytes != 0 {
		return n
	}
	return formatSize(n)
}

func octal(mode os.FileMode) string { return fmt.Sprintf("%04o", mode) }

func texts[T any](list []T, text func(T) string) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = text(v)
	}
	return out
}

// userOf names a user; -1: "". One without an entry is his number.
func (m *machine) userOf(uid int) string {
	if uid < 0 {
		return ""
	}
	if u, err := m.userID(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

// groupOf is userOf for a group, and gives unknown for one without an entry.
func (m *machine) groupOf(gid int, unknown string) string {
	if gid < 0 {
		return ""
	}
	if g, err := m.groupID(strconv.Itoa(gid)); err == nil {
		return g.Name
	}
	return unknown
}
