package manager

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"fpmd/protocol"
)

// Limits that are nobody's but the configuration's: beyond them is a slip of
// the hand.
const (
	maxWorkers        = 1024 // of one pool
	maxAllWorkers     = 64 * maxWorkers
	maxProcs          = 1024
	maxQueueSize      = 1 << 20
	maxBacklog        = 1<<16 - 1
	minMaxEnviron     = 4 << 10
	maxMaxConnections = 1 << 20
	maxBuffer         = 64 << 20
	maxBufferFiles    = 1 << 40
	maxNofile         = 1 << 30
	maxNproc          = 1 << 22 // the kernel has no more numbers
	maxCore           = 1 << 60
	maxMaxRequests    = 1<<30 - 1 // with a jitter as large, an int32
	minMaxMemory      = 1 << 20   // less than any program has
	minGroupMemory    = 8 << 20   // less than exec-worker and a program have
	maxMaxMemory      = 1 << 50
	minMaxAge         = time.Second
	minStatus         = 200 // of an answer, as the exchange protocol has it
	maxStatus         = 599

	maxMaxBootFailures = 1000
)

var (
	poolName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)
	hostName = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?\.)*[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?$`)
	wsgiSpec = regexp.MustCompile(`^[\pL_][\pL\pN_]*(\.[\pL_][\pL\pN_]*)*:[\pL_][\pL\pN_]*(\.[\pL_][\pL\pN_]*)*(\(\))?$`)
)

// supervisorSettings are the keys of [supervisor].
var supervisorSettings = []setting[Supervisor]{
	{"runtime_dir", func(v value, s *Supervisor) {
		if v.path(&s.RuntimeDir); s.RuntimeDir == "/" { // what is in it is removed
			v.refuse("want a folder of fpmd's own")
		} else if fi, err := v.l.stat(s.RuntimeDir); err == nil && !fi.IsDir() {
			v.refuse("not a folder: want one, or a path where there is nothing yet")
		}
	}},
	{"include", func(v value, s *Supervisor) {
		if _, ok := v.raw.([]any); ok { // what is wrong has been said when it was followed
			s.Include = nil
			for _, e := range v.elements() {
				if pattern, ok := e.raw.(string); ok {
					s.Include = append(s.Include, pattern)
				}
			}
		}
	}},
	{"log_level", func(v value, s *Supervisor) {
		levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
		level := strings.ToLower(s.LogLevel.String())
		v.oneOf(&level, "debug", "info", "warn", "error")
		s.LogLevel = levels[level]
	}},
	{"log_format", func(v value, s *Supervisor) { v.oneOf(&s.LogFormat, "text", "json") }},
	{"log", func(v value, s *Supervisor) { v.log(&s.Log, "") }},
	{"user", func(v value, s *Supervisor) {
		// Only root has a use for it: another user's fpmd need not know the name.
		if !v.text(&s.User) {
			v.l.noUser = true
		} else if s.User != "" && v.l.euid == 0 && !v.l.asking {
			if _, err := v.l.userNamed(s.User); err != nil {
				v.refuse("%v", err)
			}
		}
	}},
	{"control_group", func(v value, s *Supervisor) { s.ControlGroup = v.groupOfSocket(&s.ControlGID) }},
	{"procs", func(v value, s *Supervisor) { v.integer(&s.Procs, 0, maxProcs) }},
	{"max_workers", func(v value, s *Supervisor) { v.integer(&s.MaxWorkers, 0, maxAllWorkers) }},
}

// A draft is a pool that is being read.
type draft struct {
	PoolConfig
	l     *loader
	doc   *document
	key   toml.Key         // pool.NAME
	given map[string]value // what the table holds

	user, group string

	// What was refused, so that what follows from it is not said as well.
	noDirectory, noUser bool
}

// poolSettings are the keys of [pool.NAME]. What depends on more than one of
// them is seen to in check.
var poolSettings = []setting[draft]{
	{"listen", func(v value, d *draft) { d.setListen(v) }},
	{"listen_mode", func(v value, d *draft) { v.octal(&d.ListenMode, "0660") }},
	{"listen_owner", func(v value, d *draft) {
		var name string
		if !v.text(&name) || name == "" {
			return
		}
		u, err := v.l.userNamed(name)
		if err == nil {
			d.ListenOwner, err = number(u.Uid)
		}
		if err == nil && v.l.euid != 0 && !v.l.asking && d.ListenOwner != v.l.euid {
			err = fmt.Errorf("fpmd is not root (it is %s) and can't give files away: leave it out, or start fpmd as root", v.l.self())
		}
		if err != nil {
			v.refuse("%v", err)
		}
	}},
	{"listen_group", func(v value, d *draft) { v.groupOfSocket(&d.ListenGroup) }},
	{"listen_backlog", func(v value, d *draft) { v.integer(&d.ListenBacklog, 1, maxBacklog) }},
	{"allowed_clients", func(v value, d *draft) { d.setAllowedClients(v) }},
	{"wsgi", func(v value, d *draft) {
		if v.text(&d.WSGI) && !wsgiSpec.MatchString(d.WSGI) {
			v.refuse("want \"module:callable\", such as \"blog.wsgi:application\", or \"module:factory()\"")
		}
	}},
	{"command", func(v value, d *draft) {
		if !v.texts(&d.Command) {
			return
		}
		if len(d.Command) == 0 || d.Command[0] == "" {
			v.refuse("want a program and its arguments, such as [\"/srv/api/api\", \"-v\"]")
			d.Command = nil
		}
	}},
	{"chroot", func(v value, d *draft) { d.setChroot(v) }},
	{"directory", func(v value, d *draft) {
		var dir string
		v.path(&dir)
		jailed := d.noDirectory // there is no saying what is in it
		d.noDirectory = true
		if dir == "" || jailed {
			return
		}
		if v.l.asking {
			d.Directory, d.noDirectory = dir, false
			return
		}
		switch fi, err := d.stat(dir); {
		case err != nil:
			v.refuse("%v%s: want a folder that is there", err, d.within())
		case !fi.IsDir():
			v.refuse("not a folder: want one")
		default:
			d.Directory, d.noDirectory = dir, false
		}
	}},
	{"python", func(v value, d *draft) {
		if v.text(&d.Python) && d.Python == "" {
			v.refuse("want a Python interpreter, such as \"python3\" or \"/srv/blog/.venv/bin/python\"")
		}
	}},
	{"python_path", func(v value, d *draft) { v.texts(&d.PythonPath) }},
	{"user", func(v value, d *draft) { d.noUser = !v.text(&d.user) }},
	{"group", func(v value, d *draft) { v.text(&d.group) }},
	{"umask", func(v value, d *draft) {
		mask := os.FileMode(d.Umask)
		v.octal(&mask, "0027")
		d.Umask = int(mask)
	}},
	{"env", func(v value, d *draft) {
		if !v.l.asking { // whose environment may lack what fpmd's has
			v.environment(&d.Env)
		}
	}},
	{"env_file", func(v value, d *draft) { v.text(&d.EnvFile) }},
	{"clear_env", func(v value, d *draft) { v.boolean(&d.ClearEnv) }},
	{"scheduling", func(v value, d *draft) {
		v.oneOf(&d.Limits.Scheduling, slices.Sorted(maps.Keys(policies))...)
	}},
	{"nice", func(v value, d *draft) { v.optional(&d.Limits.Nice, -20, 19) }},
	{"oom_score_adj", func(v value, d *draft) { v.optional(&d.Limits.OOMScoreAdj, -1000, 1000) }},
	{"rlimit_nofile", func(v value, d *draft) { v.optional(&d.Limits.Nofile, minNofile, maxNofile) }},
	{"rlimit_nproc", func(v value, d *draft) {
		switch _, isText := v.raw.(string); {
		case v.unlimited(&d.Limits.Nproc):
		case isText && !v.varied():
			v.refuse("want a number from %d to %d, without quotes, or \"unlimited\"", minNproc, maxNproc)
		default:
			v.optional(&d.Limits.Nproc, minNproc, maxNproc)
		}
	}},
	{"rlimit_core", func(v value, d *draft) {
		if v.unlimited(&d.Limits.Core) {
			return
		}
		n := int64(-1)
		if v.size(&n, 0, maxCore); n >= 0 {
			d.Limits.Core = Optional{Set: true, Value: n}
		}
	}},
	{"cgroup_memory_max", func(v value, d *draft) { d.setMemory(v, &d.Group.Memory, minGroupMemory) }},
	{"cgroup_pids_max", func(v value, d *draft) {
		if v.integer(&d.Group.Pids, 0, maxNproc); d.Group.Pids > 0 && d.Group.Pids < minNproc {
			v.refuse("fpmd itself needs more to start a worker: want %d to %d, or 0 for no limit", minNproc, maxNproc)
		}
	}},
	{"no_new_privs", func(v value, d *draft) { v.boolean(&d.NoNewPrivs) }},
	{"pm", func(v value, d *draft) {
		pm := string(d.PM)
		v.oneOf(&pm, string(Static), string(Dynamic), string(OnDemand))
		d.PM = PM(pm)
	}},
	{"workers", func(v value, d *draft) {
		if s := ""; v.raw == "auto" || v.varied() && v.text(&s) && s == "auto" {
			d.Workers = min(v.l.processors, maxWorkers)
			return
		}
		if _, isText := v.raw.(string); isText && !v.varied() {
			v.refuse("want a number from 1 to %d, without quotes, or \"auto\"", maxWorkers)
			return
		}
		v.integer(&d.Workers, 1, maxWorkers)
	}},
	{"start_workers", func(v value, d *draft) { v.integer(&d.StartWorkers, 1, maxWorkers) }},
	{"min_spare_workers", func(v value, d *draft) { v.integer(&d.MinSpareWorkers, 0, maxWorkers*protocol.MaxSlots) }},
	{"max_spare_workers", func(v value, d *draft) { v.integer(&d.MaxSpareWorkers, 1, maxWorkers*protocol.MaxSlots) }},
	{"idle_timeout", func(v value, d *draft) { v.duration(&d.IdleTimeout, false) }},
	{"max_requests", func(v value, d *draft) { v.integer(&d.MaxRequests, 0, maxMaxRequests) }},
	{"max_requests_jitter", func(v value, d *draft) { v.integer(&d.MaxRequestsJitter, 0, maxMaxRequests) }},
	{"max_age", func(v value, d *draft) {
		if v.duration(&d.MaxAge, true); d.MaxAge > 0 && d.MaxAge < minMaxAge {
			v.refuse("each worker would be replaced as soon as it is ready: want at least %s, or \"0s\" for no limit", minMaxAge)
		}
	}},
	{"max_age_jitter", func(v value, d *draft) { v.duration(&d.MaxAgeJitter, true) }},
	{"max_memory", func(v value, d *draft) { d.setMemory(v, &d.MaxMemory, minMaxMemory) }},
	{"max_memory_hard", func(v value, d *draft) { d.setMemory(v, &d.MaxMemoryHard, minMaxMemory) }},
	{"threads", func(v value, d *draft) { v.integer(&d.Threads, 0, protocol.MaxSlots) }},
	{"script_name", func(v value, d *draft) {
		var s string
		if !v.text(&s) {
			return
		}
		if s != "" && (s == "/" || path.Clean(s) != s || s[0] != '/' || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune("?#%\\", r) })) {
			v.refuse("want \"\", or a path such as \"/blog\": it begins with / and does not end with one, and has no empty, . or .. part, no space, ?, #, %% or \\")
			return
		}
		d.ScriptName = s
	}},
	{"debug", func(v value, d *draft) { v.boolean(&d.Debug) }},
	{"allow_root", func(v value, d *draft) { v.boolean(&d.AllowRoot) }},
	{"probe", func(v value, d *draft) { v.text(&d.Probe) }},
	{"probe_status", func(v value, d *draft) {
		if v.integer(&d.ProbeStatus, 0, maxStatus); d.ProbeStatus > 0 && d.ProbeStatus < minStatus {
			v.refuse("no application answers that: want a status from %d to %d, or 0 for any from %d to 399", minStatus, maxStatus, minStatus)
		}
	}},
	{"max_boot_failures", func(v value, d *draft) { v.integer(&d.MaxBootFailures, 0, maxMaxBootFailures) }},
	{"keep_generation", func(v value, d *draft) { v.duration(&d.KeepGeneration, true) }},
	{"start_timeout", func(v value, d *draft) { v.duration(&d.StartTimeout, false) }},
	{"stop_timeout", func(v value, d *draft) { v.duration(&d.StopTimeout, false) }},
	{"drain_timeout", func(v value, d *draft) { v.duration(&d.DrainTimeout, false) }},
	{"request_timeout", func(v value, d *draft) { v.duration(&d.RequestTimeout, true) }},
	{"slow_timeout", func(v value, d *draft) { v.duration(&d.SlowTimeout, true) }},
	{"client_timeout", func(v value, d *draft) { v.duration(&d.ClientTimeout, true) }},
	{"buffer_request", func(v value, d *draft) { v.size(&d.BufferRequest, 0, maxBuffer) }},
	{"buffer_response", func(v value, d *draft) { v.size(&d.BufferResponse, 0, maxBuffer) }},
	{"buffer_files", func(v value, d *draft) { v.size(&d.BufferFiles, 0, maxBufferFiles) }},
	{"max_connections", func(v value, d *draft) { v.integer(&d.MaxConnections, 1, maxMaxConnections) }},
	{"queue_size", func(v value, d *draft) { v.integer(&d.QueueSize, 0, maxQueueSize) }},
	{"queue_timeout", func(v value, d *draft) { v.duration(&d.QueueTimeout, false) }},
	{"access_log", func(v value, d *draft) { v.log(&d.AccessLog, "", "-") }},
	{"max_environ", func(v value, d *draft) { v.size(&d.MaxEnviron, minMaxEnviron, protocol.MaxEnviron) }},
}

// setMemory reads how much memory a worker may have. Others count it in MiB, and whoever has
// that in mind means a number that no worker is below.
func (d *draft) setMemory(v value, to *int64, least int64) {
	if v.size(to, 0, maxMaxMemory); *to == 0 || *to >= least {
		return
	}
	*to = 0
	if n, ok := v.raw.(int64); ok {
		unit := "MiB"
		if n >= 1<<16 {
			unit = "KiB"
		}
		v.refuse("bytes, and every worker has more: did you mean \"%d%s\"?", n, unit)
		return
	}
	v.refuse("every worker has more: want at least %s, or 0 for no limit", formatSize(least))
}

// place is where the pool is defined.
func (d *draft) place() string { return fmt.Sprintf("%s:%d", d.doc.path, d.doc.line(d.key)) }

// refuse refuses what the table says, or does not say, as a whole.
func (d *draft) refuse(want string, args ...any) {
	d.l.refuse(d.doc, d.doc.line(d.key), d.key.String(), "", want, args...)
}

func (d *draft) has(name string) bool { _, ok := d.given[name]; return ok }

func (d *draft) setListen(v value) {
	list := []value{v}
	if _, ok := v.raw.([]any); ok {
		list = v.elements()
	} else if _, ok := v.raw.(string); !ok {
		v.refuse("want an address in quotes, or a list of them")
		return
	}
	if len(list) == 0 {
		v.refuse("want at least one address")
	}
	for _, e := range list {
		var s string
		if !e.text(&s) {
			continue
		}
		a, err := parseAddress(s)
		if err != nil {
			e.refuse("%v", err)
			continue
		}
		if a.Network == "unix" {
			if fi, err := v.l.stat(a.Address); err == nil && fi.IsDir() {
				e.refuse("a folder: want the path of a socket, such as %q", filepath.Join(a.Address, d.Name+".sock"))
			}
		}
		d.Listen = append(d.Listen, a)
	}
}

// parseAddress reads what a pool listens on. An error is in the words of a
// ConfigError.
func parseAddress(s string) (Address, error) {
	const want = "want the path of a Unix socket, such as \"/run/fpmd/blog.sock\", or HOST:PORT, such as \"127.0.0.1:9001\""
	if p, ok := strings.CutPrefix(s, "unix:"); ok {
		return Address{}, fmt.Errorf("want the path alone: %q", p)
	}
	if strings.HasPrefix(s, "/") {
		if base := s[strings.LastIndexByte(s, '/')+1:]; base == "" || base == "." || base == ".." {
			return Address{}, errors.New("the path of a folder: want that of a socket")
		}
		p := filepath.Clean(s)
		if len(p) > maxSocketPath {
			return Address{}, fmt.Errorf("the path has %d bytes: want at most %d, which is all that the kernel takes", len(p), maxSocketPath)
		}
		return Address{"unix", p}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		if isNumber(s) {
			return Address{}, fmt.Errorf("want an address before the port: \"127.0.0.1:%s\"", s)
		}
		return Address{}, errors.New(want)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return Address{}, errors.New("want a port from 1 to 65535 after the last colon")
	}
	port = strings.TrimLeft(port, "0")
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	} else if host != "" && !hostName.MatchString(host) {
		return Address{}, errors.New(want)
	}
	return Address{"tcp", net.JoinHostPort(strings.ToLower(host), port)}, nil
}

// loopback reports whether only this machine reaches a.
func (a Address) loopback() bool {
	if a.Network == "unix" {
		return true
	}
	host, _, _ := net.SplitHostPort(a.Address)
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// meets reports whether a and b can't both be listened on.
func (a Address) meets(b Address) bool {
	if a == b {
		return true
	}
	if a.Network != "tcp" || b.Network != "tcp" {
		return false
	}
	hostA, portA, _ := net.SplitHostPort(a.Address)
	hostB, portB, _ := net.SplitHostPort(b.Address)
	if portA != portB {
		return false
	}
	if hostA == "localhost" && b.loopback() || hostB == "localhost" && a.loopback() {
		return true // it is 127.0.0.1, ::1 or both
	}
	ipA, errA := netip.ParseAddr(hostA)
	ipB, errB := netip.ParseAddr(hostB)
	allA := hostA == "" || errA == nil && ipA.IsUnspecified()
	allB := hostB == "" || errB == nil && ipB.IsUnspecified()
	// All of IPv4 leaves every address of IPv6 free, but not the other way
	// round: a socket for all of IPv6 takes IPv4 along.
	return allA && !(ipA.Is4() && ipB.Is6() && !allB) || allB && !(ipB.Is4() && ipA.Is6() && !allA)
}

func (d *draft) setAllowedClients(v value) {
	var list []string
	if !v.texts(&list) {
		return
	}
	for i, e := range v.elements() {
		p, err := netip.ParsePrefix(list[i])
		if err != nil {
			var ip netip.Addr
			if ip, err = netip.ParseAddr(list[i]); err == nil && ip.Zone() == "" {
				ip = ip.Unmap()
				p = netip.PrefixFrom(ip, ip.BitLen())
			} else {
				e.refuse("want an address such as \"10.0.0.7\", or a network such as \"10.0.0.0/8\"")
				continue
			}
		}
		if p.Addr().Is4In6() { // clients are compared unmapped
			if p.Bits() < 96 {
				e.refuse("want an IPv4 network as such: \"10.0.0.0/8\"")
				continue
			}
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		if p != p.Masked() {
			e.refuse("has bits set behind its first %d: want \"%v\", or \"%v\" for one address", p.Bits(), p.Masked(), p.Addr())
			continue
		}
		d.AllowedClients = append(d.AllowedClients, p)
	}
}

// check sees to what takes more than one key or table.
func (l *loader) check(main *document) {
	for _, d := range l.pools {
		d.checkListen()
		d.checkSize()
		d.checkProbe()
		d.checkUser()
		d.checkEnvFile() // before what is looked up on its PATH
		d.checkProgram()
		d.checkLimits()
		d.checkGroups()
	}
	for i, d := range l.pools {
		for j, a := range d.Listen {
			for k, other := range l.pools[:i+1] {
				for m, b := range other.Listen {
					if k == i && m >= j || !a.meets(b) {
						continue
					}
					d.given["listen"].refuse("pool %s listens on %s as well (%s): want an address that no other has", other.Name, b, other.given["listen"].place())
				}
			}
		}
	}
	l.checkMaxWorkers(main)
	if len(l.pools) == 0 && len(l.errs) == 0 {
		l.refuse(main, 1, "", "", "no pool: want at least one table [pool.NAME], here or in a file that supervisor.include names")
	}
}

// checkMaxWorkers refuses a limit over all pools below which one of them could not live.
func (l *loader) checkMaxWorkers(main *document) {
	most, fixed, others := l.cfg.Supervisor.MaxWorkers, 0, 0
	for _, d := range l.pools {
		if v, given := d.given["workers"]; given && v.refused() {
			return
		}
		if d.PM == Static {
			fixed += d.Workers
		} else {
			others++
		}
	}
	if most > 0 && most < fixed+others {
		key := toml.Key{"supervisor", "max_workers"}
		l.refuse(main, main.line(key), key.String(), strconv.Itoa(most), "the static pools have %d workers, and each of the %d others wants one: want %d or more, or fewer workers", fixed, others, fixed+others)
	}
}

func (d *draft) checkListen() {
	if !d.has("listen") {
		d.refuse("no listen: want listen = \"/run/fpmd/%s.sock\" or another address", d.Name)
		return
	}
	tcp, open := false, ""
	run := d.l.cfg.Supervisor.RuntimeDir
	for _, a := range d.Listen {
		switch rest, below := strings.CutPrefix(a.Address, run+"/"); {
		case a.Network != "unix" || !below:
		case rest == "lock", rest == filepath.Base(ControlSocket(run)), strings.HasPrefix(rest, "workers/"), rest == "workers":
			d.given["listen"].refuse("%s is fpmd's own, in runtime_dir: want another name, such as %q", a.Address, filepath.Join(run, d.Name+".sock"))
		}
		tcp = tcp || a.Network == "tcp"
		if !a.loopback() && open == "" {
			open = a.Address
		}
	}
	if v, ok := d.given["allowed_clients"]; ok {
		if len(d.Listen) > 0 && !tcp {
			v.refuse("listen has no TCP address: leave it out; listen_mode, listen_owner and listen_group say who may connect to a Unix socket")
		}
		if list, isList := v.raw.([]any); isList && len(list) == 0 {
			v.refuse("nobody could connect: want at least one address or network, or leave it out for a loopback address")
		}
	} else if open != "" {
		d.given["listen"].refuse("others than this machine reach %s, and who connects decides what the application is told: want allowed_clients = [\"...\"] with the web servers' addresses, or a loopback address", open)
	}
}

// checkProgram sees to what runs, and where.
func (d *draft) checkProgram() {
	if d.given["chroot"].refused() { // what follows from it is not said as well
		return
	}
	switch wsgi, command := d.has("wsgi"), d.has("command"); {
	case wsgi && command:
		d.given["command"].refuse("there is wsgi as well (line %d): want one of the two", d.doc.line(d.given["wsgi"].key))
		return
	case !wsgi && !command:
		d.refuse("nothing to run: want wsgi = \"module:callable\" or command = [\"program\"]")
		return
	case command:
		for _, name := range []string{"python", "python_path"} {
			if v, ok := d.given[name]; ok {
				v.refuse("the pool runs a command: leave it out, or want wsgi in the place of command (line %d)", d.doc.line(d.given["command"].key))
			}
		}
		if len(d.Command) > 0 {
			d.findProgram(d.given["command"].elements()[0], &d.Command[0])
		}
	case wsgi:
		if !d.has("directory") {
			d.refuse("no directory: want directory = \"...\", the folder that the module %q is in", d.module())
		}
		name, asFile := strings.CutSuffix(d.module(), ".py")
		if name = strings.ReplaceAll(name, ".", "/"); asFile && d.isFile(name+".py") && !d.isFile(name+"/py.py") {
			d.given["wsgi"].refuse("%s is named as a file is, and not as in an import statement: did you mean %q?", d.module(), strings.Replace(d.WSGI, ".py:", ":", 1))
		}
		if v, ok := d.given["threads"]; ok && d.Threads > 1 {
			v.refuse("a worker that hosts WSGI runs one request at a time: want 1, and more workers")
		}
		if v, ok := d.given["python"]; ok && d.Python != "" {
			d.findProgram(v, &d.Python)
		} else if err := d.program(d.Python); !ok && err != nil {
			d.refuse("no python, and the default %s is %v", d.Python, err)
		}
		for i, dir := range d.PythonPath {
			e := d.given["python_path"].elements()[i]
			if dir == "" || strings.Contains(dir, ":") {
				e.refuse("want a folder or an archive, without a colon in its name")
				continue
			}
			if !filepath.IsAbs(dir) {
				dir = filepath.Join(d.Directory, dir)
			}
			d.PythonPath[i] = filepath.Clean(dir)
		}
	}
}

// checkSize sees to how many workers there are, and when they are replaced.
func (d *draft) checkSize() {
	only := func(pms string, names ...string) {
		for _, name := range names {
			if v, ok := d.given[name]; ok {
				v.refuse("it is for pm = %s, and pm is %q: leave it out, or want another pm", pms, d.PM)
			}
		}
	}
	if d.PM != Dynamic {
		only(`"dynamic"`, "start_workers", "min_spare_workers", "max_spare_workers")
	}
	if d.PM == Static {
		only(`"dynamic" and "ondemand"`, "idle_timeout")
	}
	if d.PM == Dynamic {
		if v, ok := d.given["start_workers"]; ok && d.StartWorkers > d.Workers {
			v.refuse("more than workers = %d: want at most as many", d.Workers)
		}
		places := d.Workers * protocol.MaxSlots // where the program decides
		if d.WSGI != "" || d.Threads > 0 {
			places = d.Workers * max(d.Threads, 1)
		}
		if v, ok := d.given["min_spare_workers"]; ok && d.MinSpareWorkers > places {
			v.refuse("all of workers = %d take %d requests at once, so that no more places are ever free: want at most %d", d.Workers, places, places)
		}
		if d.MinSpareWorkers > d.MaxSpareWorkers {
			v, ok := d.given["max_spare_workers"]
			if !ok {
				v = d.given["min_spare_workers"]
			}
			v.refuse("min_spare_workers = %d is more than max_spare_workers = %d: want it the other way round", d.MinSpareWorkers, d.MaxSpareWorkers)
		}
	}
	// What waits is what has a worker started.
	if v, ok := d.given["queue_size"]; ok && d.QueueSize == 0 {
		switch {
		case d.PM == OnDemand:
			v.refuse("no request would wait, and so have a worker started, as pm is %q: want at least 1, or another pm", d.PM)
		case d.PM == Dynamic && d.MinSpareWorkers == 0:
			v.refuse("no request would wait, and so have a worker started, as min_spare_workers is 0: want at least 1 of one of the two")
		}
	}
	for name, none := range map[string]bool{"max_requests": d.MaxRequests == 0, "max_age": d.MaxAge == 0} {
		if v, ok := d.given[name+"_jitter"]; ok && none && !d.given[name].refused() {
			v.refuse("there is no %s that it could be added to: leave it out, or want %s", name, name)
		}
	}
	if v, ok := d.given["max_memory_hard"]; ok && d.MaxMemoryHard > 0 && d.MaxMemoryHard <= d.MaxMemory {
		v.refuse("not more than max_memory, which would never be met: want more than that, or max_memory alone")
	}
}

// checkProbe sees to it that the probe is a request which a web server could send.
func (d *draft) checkProbe() {
	if v, ok := d.given["probe_status"]; ok && d.ProbeStatus != 0 && d.Probe == "" && !d.given["probe"].refused() {
		v.refuse("there is no probe that it could be the answer of: leave it out, or want probe = \"/path\"")
	}
	v, ok := d.given["probe"]
	if !ok || d.Probe == "" || d.given["script_name"].refused() {
		return
	}
	var env environ
	if err := d.probe(&env); err != nil {
		if v.varied() {
			err = errors.New("no request") // the reason would tell what the variable holds
		}
		v.refuse("%v: want a path such as \"%s/healthz\", or a URL where the application minds the host, such as \"https://www.example.com%[2]s/healthz\"", err, d.ScriptName)
	}
}

func (d *draft) module() string {
	module, _, _ := strings.Cut(d.WSGI, ":")
	return module
}

// isFile reports whether there is a file of that name in directory.
func (d *draft) isFile(name string) bool {
	fi, err := d.stat(filepath.Join(d.Directory, name))
	return err == nil && fi.Mode().IsRegular()
}

// findProgram makes *name absolute, unless it is to be looked up, and refuses
// what can't be run.
func (d *draft) findProgram(v value, name *string) {
	if strings.Contains(*name, "/") {
		if !filepath.IsAbs(*name) {
			if d.noDirectory {
				return
			}
			*name = filepath.Join(d.Directory, *name)
		}
		*name = filepath.Clean(*name)
	}
	if err := d.program(*name); err != nil {
		v.refuse("%v", err)
	}
}

// searchPath is the PATH that workers get.
func (d *draft) searchPath() string {
	if path, ok := d.setPath(); ok {
		return path
	}
	return d.l.searchPath()
}

// checkUser finds whom the workers become.
func (d *draft) checkUser() {
	if d.l.asking {
		return
	}
	if d.l.euid != 0 {
		d.checkNoChange()
		return
	}
	gid := -1
	if d.group != "" {
		var err error
		if gid, err = d.l.groupNamed(d.group); err != nil {
			d.given["group"].refuse("%v", err)
			gid = -1
		}
	}
	name := d.user
	var u *user.User
	var err error
	switch {
	case d.noUser, d.user == "" && d.l.noUser:
		return
	case name != "":
		u, err = d.l.userNamed(name)
	case d.l.cfg.Supervisor.User != "":
		name = d.l.cfg.Supervisor.User
		if u, err = d.l.userNamed(name); err != nil {
			return // said of supervisor.user
		}
	default:
		u, err = d.l.userID("0")
	}
	complain := d.refuse
	if d.user != "" {
		complain = d.given["user"].refuse
	}
	if err == nil {
		d.Cred, err = d.l.credential(u, gid)
	}
	switch {
	case err != nil:
		complain("%v", err)
	case d.Cred.UID == 0 && !d.AllowRoot && d.user != "":
		complain("the application would run as root: want another user, or allow_root = true")
	case d.Cred.UID == 0 && !d.AllowRoot:
		complain("the application would run as root: want user = \"...\" here or in [supervisor], or allow_root = true")
	}
}

// checkNoChange refuses another user or group than ours, which only root could
// change to.
func (d *draft) checkNoChange() {
	if d.user != "" {
		u, err := d.l.userNamed(d.user)
		if err == nil && u.Uid != strconv.Itoa(d.l.euid) {
			err = fmt.Errorf("fpmd is not root (it is %s) and can't change users: leave it out, or start fpmd as root", d.l.self())
		}
		if err != nil {
			d.given["user"].refuse("%v", err)
		}
	}
	if d.group != "" {
		gid, err := d.l.groupNamed(d.group)
		if err == nil && gid != d.l.egid {
			err = fmt.Errorf("fpmd is not root (its group is %d) and can't change groups: leave it out, or start fpmd as root", d.l.egid)
		}
		if err != nil {
			d.given["group"].refuse("%v", err)
		}
	}
}

// groupOfSocket reads the name of a group that fpmd can give a socket to, and its number into gid; "": none.
func (v value) groupOfSocket(gid *int) (name string) {
	if !v.text(&name) || name == "" {
		return ""
	}
	n, err := v.l.groupNamed(name)
	if err == nil && v.l.euid != 0 && !v.l.asking {
		if err = v.l.inGroup(n); err != nil {
			err = fmt.Errorf("%w: leave it out, or start fpmd as root", err)
		}
	}
	if err != nil {
		v.refuse("%v", err)
		return ""
	}
	*gid = n
	return name
}

// inGroup is an error when we are not in group gid.
func (m *machine) inGroup(gid int) error {
	groups, err := m.ownGroups()
	if err != nil {
		return fmt.Errorf("look up our own groups: %w", err)
	}
	if gid != m.egid && !slices.Contains(groups, gid) {
		return fmt.Errorf("fpmd is not root (it is %s) and not in this group", m.self())
	}
	return nil
}
