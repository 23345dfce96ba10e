package manager

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// DefaultPath is where a configuration is that is not named, and what the unit
// fpmd.service serves.
const DefaultPath = "/etc/fpmd/fpmd.toml"

// Warnings says what is allowed and will hurt all the same: file and line, the
// key to blame, its value, and what would do. It looks at this machine, and asks systemd of the unit that
// fpmd is; of one that is installed, when the configuration is that one's.
func (c *Config) Warnings() []string {
	return texts(c.warnings(thisFacts(c.Path)), ConfigError.Error)
}

// warnings is Warnings where f is known.
func (c *Config) warnings(f facts) []ConfigError {
	w := &warner{cfg: c, facts: f}
	w.starts()
	for _, p := range c.Pools {
		w.sockets(p)
		w.files(p)
		w.times(p)
		w.operators(p)
		w.buffers(p)
	}
	w.descriptors()
	w.slots()
	w.memory()
	w.processes()
	return w.list
}

// A warner collects warnings, a rule to a method.
type warner struct {
	facts
	cfg  *Config
	list []ConfigError
}

// warn blames a key of a pool, or the pool's table where that leaves it at its default.
func (w *warner) warn(p *PoolConfig, key string, value any, format string, args ...any) {
	w.warnOf("pool."+p.Name, key, value, format, args...)
}

// warnOf is warn for a key of any table.
func (w *warner) warnOf(table, key string, value any, format string, args ...any) {
	at, ok := w.cfg.places[table+"."+key]
	if !ok {
		at = w.cfg.places[table]
	}
	w.list = append(w.list, ConfigError{
		File: at.file, Line: at.line, Key: table + "." + key, Value: literal(value), Want: fmt.Sprintf(format, args...),
	})
}

// operators warns of an application that could use the control socket.
func (w *warner) operators(p *PoolConfig) {
	s := &w.cfg.Supervisor
	if s.ControlGroup != "" && p.Cred != nil && slices.Contains(p.Cred.Groups, uint32(s.ControlGID)) {
		w.warnOf("supervisor", "control_group", s.ControlGroup, "user %s of pool %s is in it, and its application could stop fpmd: want a group of operators alone", p.Cred.Name, p.Name)
	}
}

// sockets warns of Unix sockets that the web server does not get to, and of a
// backlog that the kernel cuts.
func (w *warner) sockets(p *PoolConfig) {
	if w.somaxconn > 0 && p.ListenBacklog > w.somaxconn {
		w.warn(p, "listen_backlog", p.ListenBacklog, "the kernel takes no more than net.core.somaxconn = %d: sysctl -w net.core.somaxconn=%d, or want less", w.somaxconn, p.ListenBacklog)
	}
	if w.euid >= firstLogin { // somebody's own fpmd has his own web server before it
		return
	}
	for _, a := range p.Listen {
		if a.Network != "unix" {
			continue
		}
		switch key, why, value := w.barred(p, a.Address); {
		case key != "":
			w.warn(p, key, value, "%s", why)
		case len(w.webUsers) == 0 && w.euid == 0 && p.ListenOwner < 0 && p.ListenGroup < 0 && p.ListenMode&0o006 != 0o006:
			w.warn(p, "listen_group", "", "only root can connect to %s: want the web server's group, such as \"www-data\"", a.Address)
		}
	}
}

// rootHome is what nobody is advised to open: root's keys and history are in it.
const rootHome = "/root"

// firstLogin is the first number that a system gives to a person.
const firstLogin = 1000

// barred says what keeps the web server from the socket at path: the key to
// blame, its value, and why. It is no answer when there is no user that a web server usually
// has, or one of several gets there.
func (w *warner) barred(p *PoolConfig, path string) (key, why string, value any) {
	owner, group := p.ListenOwner, p.ListenGroup
	if owner < 0 {
		owner = w.euid
	}
	if group < 0 {
		group = w.egid
	}
	for i, u := range w.webUsers {
		k, reason, v := "", "", any(nil)
		if dir := w.closed(&u.Credential, path); dir != "" {
			k, v = "listen", path
			reason = fmt.Sprintf("it can't enter %s: chmod o+x %s, or want a socket in another folder", dir, dir)
			if dir == rootHome {
				reason = "it can't enter " + dir + ": want a socket in another folder, such as /run/fpmd: root's home stays closed"
			}
		} else if !u.may(owner, group, p.ListenMode, 0o2) {
			k, v = "listen_group", p.ListenGroup
			if p.ListenGroup < 0 {
				v = ""
			}
			reason = fmt.Sprintf("want listen_group = %q", u.group)
			if slices.Contains(u.Groups, uint32(group)) || int(u.UID) == owner {
				k, v = "listen_mode", octal(p.ListenMode)
				reason = "want listen_mode = \"0660\""
			}
		}
		if k == "" {
			return "", "", nil
		}
		if i == 0 {
			key, value = k, v
			why = fmt.Sprintf("%s, who the web server usually is, can't connect to %s: %s", u.Name, path, reason)
		}
	}
	return key, why, value
}

// closed is the first folder on the way to path that c can't enter; "": none. Folders that
// are not there yet are fpmd's or systemd's to make, and open.
func (w *warner) closed(c *Credential, path string) string {
	var dirs []string
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		dirs = append(dirs, dir)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	for _, dir := range slices.Backward(dirs) {
		if st, err := w.stat(dir); err == nil && !c.may(st.uid, st.gid, st.mode, 0o1) {
			return dir
		}
	}
	return ""
}

// A webUser is one that a web server's package makes.
type webUser struct {
	Credential
	group string // name of its group
}

// may reports whether the file's permissions give c what bits mean, which are
// the others' bits.
func (c *Credential) may(uid, gid int, mode, bits os.FileMode) bool {
	_, shift := c.class(uid, gid)
	return mode>>shift&bits == bits
}

// class is whose permissions of a file count for c, as chmod has it, and where they
// stand in its mode.
func (c *Credential) class(uid, gid int) (who string, shift int) {
	switch {
	case int(c.UID) == uid:
		return "u", 6
	case slices.Contains(c.Groups, uint32(gid)):
		return "g", 3
	}
	return "o", 0
}

// buffers warns of files that are memory.
func (w *warner) buffers(p *PoolConfig) {
	if dir := w.cfg.Supervisor.RuntimeDir; p.BufferFiles > 0 && w.inMemory(dir) {
		w.warn(p, "buffer_files", sizeOf(p.BufferFiles), "the files are below runtime_dir = %q, which is itself in memory: want a runtime_dir on a disk, such as \"/var/lib/fpmd\"", dir)
	}
}

// times warns of ends that come before what they should wait for.
func (w *warner) times(p *PoolConfig) {
	if p.DrainTimeout < p.RequestTimeout {
		w.warn(p, "drain_timeout", p.DrainTimeout, "less than request_timeout = %v: a stop, a reload or a replacement cuts requests that had time left: want %v or more", p.RequestTimeout, p.RequestTimeout)
	}
	if p.SlowTimeout > 0 && p.RequestTimeout > 0 && p.SlowTimeout >= p.RequestTimeout {
		w.warn(p, "slow_timeout", p.SlowTimeout, "not less than request_timeout = %v: a request that has no answer by then is ended before it is told of as slow: want less", p.RequestTimeout)
	}
	if need := p.DrainTimeout + p.StopTimeout; w.unit.stop > 0 && w.unit.stop < need {
		w.warn(p, "drain_timeout", p.DrainTimeout, "with stop_timeout = %v it is %v, but %s has TimeoutStopSec=%v, when systemd kills what still answers: want TimeoutStopSec=%d there (systemctl edit), or less here",
			p.StopTimeout, need, w.unit.name, w.unit.stop, int((need + 10*time.Second).Seconds()))
	}
}

const (
	// descriptorsOfFpmd is what it has open besides what pools take: standard
	// streams, logs, the lock, the host's archive, the poller.
	descriptorsOfFpmd = 64
	// descriptorsOfWorker is what ARCHITECTURE.md counts, without its slots.
	descriptorsOfWorker = 6
	// slotsOfCommand is what package worker takes, where a program decides by itself.
	slotsOfCommand = 64
)

// slots is how many exchanges at once a worker of p takes, as far as that is known.
func (p *PoolConfig) slots() int {
	switch {
	case p.WSGI != "":
		return 1
	case p.Threads == 0:
		return slotsOfCommand
	}
	return p.Threads
}

// generations is how many there are at once of p's workers during a reload: those that serve, the new ones,
// and those that are kept.
func (p *PoolConfig) generations() int {
	if p.KeepGeneration > 0 {
		return 3
	}
	return 2
}

// workers is how many workers of each of pools there may be at once, beside those of other generations: as many as it says, and,
// where max_workers is less than all of them, those that take most, as each has it.
func (w *warner) workers(pools []*PoolConfig, each func(*PoolConfig) int64) map[*PoolConfig]int {
	left := cmp.Or(w.cfg.Supervisor.MaxWorkers, math.MaxInt)
	workers := make(map[*PoolConfig]int)
	for _, p := range slices.SortedStableFunc(slices.Values(pools), func(a, b *PoolConfig) int { return cmp.Compare(each(b), each(a)) }) {
		workers[p] = min(p.Workers, left)
		left -= workers[p]
	}
	return workers
}

// fewer is what would do where there may be too many workers.
func (w *warner) fewer() string {
	if w.cfg.Supervisor.MaxWorkers > 0 {
		return "fewer, or less max_workers"
	}
	return "fewer"
}

// descriptors warns when the limit can't hold what the configuration allows: a
// crowd at one pool, full queues at the others, and all workers that a reload has at once.
func (w *warner) descriptors() {
	var most *PoolConfig
	crowd, others, workers := 0, 0, 0
	each := func(p *PoolConfig) int64 { return int64(p.generations() * (descriptorsOfWorker + p.slots())) }
	for p, n := range w.workers(w.cfg.Pools, each) {
		workers += n * int(each(p))
	}
	for _, p := range w.cfg.Pools {
		conns := p.MaxConnections * len(p.Listen)
		asking := min(p.QueueSize+p.Workers*p.slots(), conns)
		if most == nil || conns-asking > crowd {
			most, crowd = p, conns-asking
		}
		others += asking
	}
	need := descriptorsOfFpmd + others + crowd + workers
	if w.nofile > 0 && need > w.nofile {
		w.warn(most, "max_connections", most.MaxConnections, "RLIMIT_NOFILE allows %d descriptors, and %d may be needed: %d for so many connections here and the requests of the other pools, %d for the workers that a reload has at once: want LimitNOFILE=%d in the unit (ulimit -Hn in a shell), or less here",
			w.nofile, need, others+crowd, workers, need)
	}
}

// slots warns of workers that can't have a connection for each exchange that they are to take.
func (w *warner) slots() {
	for _, p := range w.cfg.Pools {
		if l := p.Limits.Nofile; l.Set && l.Value < int64(p.slots()+minNofile) {
			w.warn(p, "rlimit_nofile", l.Value, "a worker may take %d exchanges at once, with a descriptor for each, and needs some for itself and the application: want %d or more",
				p.slots(), p.slots()+minNofile)
		}
	}
}

// What a worker takes at the very least, in bytes that it shares with nobody: a
// hello was measured, at 6.7 MiB in Python 3.11 and 1.1 MiB in Go.
const (
	memoryOfWSGI    = 6 << 20
	memoryOfCommand = 1 << 20
	memoryOfSlot    = 64 << 10 // of an exchange under way, with its buffers
)

// memory warns when the workers can't fit, however small the applications are.
func (w *warner) memory() {
	var most *PoolConfig
	var need, top int64
	workers := 0
	each := func(p *PoolConfig) int64 { // without a reload
		n := int64(memoryOfCommand)
		if p.WSGI != "" {
			n = memoryOfWSGI
		}
		return int64(p.generations()-1) * (n + int64(p.slots())*memoryOfSlot)
	}
	of := w.workers(w.cfg.Pools, each)
	for _, p := range w.cfg.Pools {
		n := int64(of[p]) * each(p)
		if need, workers = need+n, workers+(p.generations()-1)*of[p]; n > top {
			most, top = p, n
		}
	}
	if w.bytes > 0 && need > w.bytes {
		w.warn(most, "workers", most.Workers, "%d workers in all pools take %d MiB or more, a hello each, and %s is %d MiB: want %s",
			workers, need>>20, w.bytesOf, w.bytes>>20, w.fewer())
	}
}

// processes warns when a user may not have as many processes as there are
// workers of his during a reload. Root may.
func (w *warner) processes() {
	workers, atOnce := map[uint32]int{}, map[uint32]int{}
	most := map[uint32]*PoolConfig{}
	his := map[uint32][]*PoolConfig{}
	for _, p := range w.cfg.Pools {
		uid := uint32(w.euid)
		if p.Cred != nil {
			uid = p.Cred.UID
		}
		his[uid] = append(his[uid], p)
		if m := most[uid]; m == nil || p.Workers > m.Workers {
			most[uid] = p
		}
	}
	for uid, pools := range his {
		for p, n := range w.workers(pools, func(p *PoolConfig) int64 { return int64(p.generations()) }) {
			workers[uid] += n
			atOnce[uid] += p.generations() * n
		}
	}
	for _, p := range w.cfg.Pools {
		uid := uint32(w.euid)
		if p.Cred != nil {
			uid = p.Cred.UID
		}
		n := atOnce[uid]
		if l := p.Limits.Nproc; l.Set { // takes the place of fpmd's own; the kernel counts all that the user has
			if uid != 0 && l.Value != unlimited && int64(n+minNproc) > l.Value {
				w.warn(p, "rlimit_nproc", l.Value, "a reload of the %d workers of %s takes %d processes, and as many threads more as they make: want %d or more",
					workers[uid], userName(p.Cred), n, 2*n+minNproc)
			}
			continue
		}
		if w.nproc > 0 && uid != 0 && most[uid] == p && n > w.nproc {
			w.warn(p, "workers", p.Workers, "RLIMIT_NPROC allows %s %d processes, and a reload of the %d workers takes %d: want LimitNPROC=%d or more in the unit (ulimit -u in a shell), or %s",
				userName(p.Cred), w.nproc, workers[uid], n, 2*n, w.fewer())
		}
	}
}
