package manager

import (
	"context"
	"math"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// facts are what a configuration is warned about besides itself: the edge at
// which a test can be another machine. A number that is 0 is not known, or no limit.
type facts struct {
	euid, egid int
	groups     []int  // supplementary, of fpmd
	path       string // where programs are looked for
	somaxconn  int
	nofile     int   // RLIMIT_NOFILE, hard: the runtime raises the soft one
	nproc      int   // RLIMIT_NPROC
	bytes      int64 // of memory for fpmd and its workers
	bytesOf    string
	unit       unit
	webUsers   []webUser
	stat       func(path string) (fileFacts, error)
	resolve    func(path string) (string, error) // its links
	userOf     func(uid int) string              // its name, or the number
	ours       func(dir string) error            // why it can't be the runtime_dir, once it is there
	bind       func(host string) error           // why nobody can listen on that address here
	inMemory   func(dir string) bool             // so are its files; one that is not there is as the folder that it will be in
	noSocket   func(path string) error           // what there is instead, or why nobody knows
}

// fileFacts is who may do what with a file. One with an access control list is open
// to all: its mode does not say to whom.
type fileFacts struct {
	mode     os.FileMode
	uid, gid int
}

// A unit is what systemd allows a service. What is 0 is not known, or no limit.
type unit struct {
	name   string        // "": there is none
	stop   time.Duration // TimeoutStopSec=
	nofile int           // LimitNOFILE=, hard
	nproc  int           // LimitNPROC=, soft
	memory int64         // MemoryMax=
}

// thisFacts are this machine's, for the configuration at config.
func thisFacts(config string) facts {
	m := thisMachine()
	f := facts{
		euid: os.Geteuid(), egid: os.Getegid(),
		somaxconn: int(readNumber("/proc/sys/net/core/somaxconn")),
		nofile:    limit(unix.RLIMIT_NOFILE, true),
		nproc:     limit(unix.RLIMIT_NPROC, false),
		webUsers:  webUsersOf(m),
		path:      m.searchPath(),
		stat:      statFacts,
		resolve:   filepath.EvalSymlinks,
		userOf:    m.userOf,
		ours:      oursOnceMade,
		bind:      bindable,
		inMemory:  inMemory,
		noSocket:  noSocket,
	}
	f.groups, _ = m.ownGroups() // without them more is closed to us than is, which is but a warning
	f.bytes, f.bytesOf = memTotal(), "MemTotal of /proc/meminfo"
	f.lower(cgroupMemory("/sys/fs/cgroup", ownCgroup()))
	switch name, user := ownUnit(); {
	case name != "": // our limits are its
		f.unit = askUnit(name, user)
	case config == DefaultPath:
		// Somebody looks from a shell, whose limits are none of the service's.
		if f.unit = askUnit("fpmd.service", false); f.unit.name != "" {
			f.nofile, f.nproc = f.unit.nofile, f.unit.nproc
			f.lower(f.unit.memory, "MemoryMax of "+f.unit.name)
		}
	}
	return f
}

// lower takes a limit of memory that is below the one known.
func (f *facts) lower(bytes int64, of string) {
	if bytes > 0 && (f.bytes == 0 || bytes < f.bytes) {
		f.bytes, f.bytesOf = bytes, of
	}
}

func readNumber(path string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	return parseLimit(strings.TrimSpace(string(b)))
}

// parseLimit is s as a number; 0 for "max", "infinity", and what would be as good as none.
func parseLimit(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n == math.MaxInt64 {
		return 0
	}
	return n
}

func limit(resource int, hard bool) int {
	var r unix.Rlimit
	if unix.Getrlimit(resource, &r) != nil {
		return 0
	}
	if hard {
		r.Cur = r.Max
	}
	return count(int64(r.Cur))
}

// count is a limit of things that are counted; what is beyond all that there can be is none.
func count(limit int64) int {
	if limit < 0 || limit > math.MaxInt32 { // none is the largest of uint64
		return 0
	}
	return int(limit)
}

func memTotal() int64 {
	b, _ := os.ReadFile("/proc/meminfo")
	_, rest, _ := strings.Cut(string(b), "MemTotal:")
	line, _, _ := strings.Cut(rest, "kB")
	return parseLimit(strings.TrimSpace(line)) << 10
}

// ownCgroup is our control group, in the one hierarchy of version 2.
func ownCgroup() string {
	b, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(b)) {
		if group, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(group)
		}
	}
	return ""
}

// cgroupMemory is the least memory.max of a group and those it is in.
func cgroupMemory(root, group string) (least int64, of string) {
	for ; group != ""; group = path.Dir(group) {
		file := path.Join(root, group, "memory.max")
		if n := readNumber(file); n > 0 && (least == 0 || n < least) {
			least, of = n, file
		}
		if group == "/" || group == "." {
			break
		}
	}
	return least, of
}

func statFacts(path string) (fileFacts, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileFacts{}, err
	}
	mode := os.FileMode(st.Mode & 0o777)
	if n, err := unix.Getxattr(path, "system.posix_acl_access", nil); err == nil && n > 0 {
		mode = 0o777
	}
	return fileFacts{mode, int(st.Uid), int(st.Gid)}, nil
}

// bindable is an error when host is none of this machine's addresses, or not known. A
// datagram's socket asks without taking a port that somebody could connect to.
func bindable(host string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second) // for a name
	defer cancel()
	c, err := new(net.ListenConfig).ListenPacket(ctx, "udp", net.JoinHostPort(host, "0"))
	if err != nil {
		return bare(err)
	}
	return c.Close()
}

// webUsersOf are the users of m that web servers usually are: Debian's, that of nginx's own
// packages, Red Hat's of Apache, and Arch's.
func webUsersOf(m machine) (users []webUser) {
	for _, name := range []string{"www-data", "nginx", "apache", "http"} {
		u, err := m.user(name)
		if err != nil {
			continue
		}
		c, err := m.credential(u, -1)
		if err == nil {
			users = append(users, webUser{*c, m.groupOf(int(c.GID), u.Gid)})
		}
	}
	return users
}

// ownUnit names the service that this process is the main one of, and says
// whether a user's systemd runs it. systemd tells that of the process that it has started.
func ownUnit() (name string, user bool) {
	if os.Getenv("SYSTEMD_EXEC_PID") != strconv.Itoa(os.Getpid()) {
		return "", false
	}
	b, _ := os.ReadFile("/proc/self/cgroup")
	return unitOf(string(b))
}

// unitOf reads a process's cgroup file.
func unitOf(cgroups string) (name string, user bool) {
	for line := range strings.Lines(cgroups) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controller, group, _ := strings.Cut(rest, ":")
		group = strings.TrimSuffix(group, "/"+supervisorGroup) // where fpmd has moved to
		if base := path.Base(group); (controller == "" || controller == "name=systemd") && strings.HasSuffix(base, ".service") {
			return base, strings.Contains(group, "/user@")
		}
	}
	return "", false
}

// askUnit asks systemd for what it allows a unit. There is no unit in the
// answer when there is no such unit, no systemd, or none that answers soon.
func askUnit(name string, user bool) unit {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	args := []string{"show", "-p", "LoadState,TimeoutStopUSec,LimitNOFILE,LimitNPROCSoft,MemoryMax", name}
	if user {
		args = append([]string{"--user"}, args...)
	}
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return unit{}
	}
	return parseUnit(name, string(out))
}

// parseUnit reads what systemctl show says.
func parseUnit(name, shown string) unit {
	props := map[string]string{}
	for line := range strings.Lines(shown) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		props[key] = value
	}
	if props["LoadState"] != "loaded" {
		return unit{}
	}
	return unit{
		name:   name,
		stop:   parseTimespan(props["TimeoutStopUSec"]),
		nofile: count(parseLimit(props["LimitNOFILE"])),
		nproc:  count(parseLimit(props["LimitNPROCSoft"])),
		memory: parseLimit(props["MemoryMax"]),
	}
}

// timespans are the units in which systemd writes times.
var timespans = map[string]time.Duration{
	"y": 8766 * time.Hour, "month": 8766 * time.Hour / 12, "w": 168 * time.Hour, "d": 24 * time.Hour, "h": time.Hour,
	"min": time.Minute, "s": time.Second, "ms": time.Millisecond, "us": time.Microsecond,
}

// parseTimespan reads a time as systemd writes it: "1min 30s". 0: "infinity", or
// something else.
func parseTimespan(s string) (sum time.Duration) {
	for field := range strings.FieldsSeq(s) {
		unit := strings.TrimLeft(field, ".0123456789")
		n, err := strconv.ParseFloat(strings.TrimSuffix(field, unit), 64)
		if err != nil || timespans[unit] == 0 {
			return 0
		}
		sum += time.Duration(n * float64(timespans[unit]))
	}
	return sum
}

// inMemory reports whether the file system that dir is on, or will be, has no disk.
func inMemory(dir string) bool {
	var st unix.Statfs_t
	for unix.Statfs(dir, &st) != nil {
		if dir == "/" {
			return false
		}
		dir = path.Dir(dir)
	}
	magic := uint32(st.Type) // of which a machine of 32 bits makes a number below 0
	return magic == unix.TMPFS_MAGIC || magic == unix.RAMFS_MAGIC
}
