package manager

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// GroupLimits are what the kernel holds a worker to together with all that it has started,
// in a control group of its own. 0: no limit.
type GroupLimits struct {
	Memory int64 // memory.max, in bytes
	Pids   int   // pids.max: processes and threads
}

// files are the limits by the kernel's own names, with the key to blame.
func (l GroupLimits) files() []groupFile {
	return []groupFile{
		{"cgroup_memory_max", "memory", l.Memory, formatSize(l.Memory)},
		{"cgroup_pids_max", "pids", int64(l.Pids), strconv.Itoa(l.Pids)},
	}
}

// A groupFile is one limit.
type groupFile struct {
	key, controller string
	value           int64
	shown           string
}

func (f groupFile) String() string { return f.key + " = " + f.shown }

// A groupTree is the part of the tree of control groups (v2) that fpmd has for itself. In it
// are fpmd's own group, and one of each worker, in which all that descends from it stays.
type groupTree struct {
	root     string // folder of the group that was delegated to us
	last     int64  // the highest id of a worker whose group is left there: it may stay for a while
	late     bool   // processes can't be started in their groups, and enter them as the first they do
	log      *slog.Logger
	removals sync.WaitGroup // of groups whose last processes are ending
}

// supervisorGroup is where fpmd itself is: a group that gives controllers to those below it
// can have no processes of its own. systemd's DelegateSubgroup= may put it there at once.
const supervisorGroup = "supervisor"

// workersGroup is what the groups of workers are called: POOL.ID.
var workersGroup = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}\.([0-9]{1,15})$`)

// claimGroups makes the tree ours that was delegated to this process, moves us to our
// place in it, and removes what an fpmd that was killed has left there. Without one the error says why.
func claimGroups(log *slog.Logger) (*groupTree, error) {
	own, err := ownGroup()
	if err != nil {
		return nil, err
	}
	t := &groupTree{root: own, log: log}
	if filepath.Base(own) == supervisorGroup && delegated(filepath.Dir(own)) {
		t.root = filepath.Dir(own)
	} else if !delegated(own) {
		return nil, fmt.Errorf("its control group %s is not its own: want Delegate=yes in its unit", own)
	}
	place := filepath.Join(t.root, supervisorGroup)
	if err := os.Mkdir(place, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%w: want Delegate=yes in its unit, without ProtectControlGroups=", err)
	}
	if _, err := os.Stat(filepath.Join(place, "cgroup.kill")); err != nil {
		return nil, fmt.Errorf("%w: want Linux 5.14 or later", err)
	}
	// Whoever is there would lose his workers to what follows.
	there, err := os.ReadFile(filepath.Join(place, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	self := strconv.Itoa(os.Getpid())
	if pids := strings.Fields(string(there)); len(pids) > 0 && !slices.Equal(pids, []string{self}) {
		return nil, fmt.Errorf("processes %s are in its control group %s: want one for each fpmd", strings.Join(pids, ", "), place)
	}
	if err := writeGroup(place, "cgroup.procs", self); err != nil {
		return nil, err
	}
	t.late = !canClone3()
	left, err := os.ReadDir(t.root)
	if err != nil {
		return nil, err
	}
	for _, e := range left {
		if name := workersGroup.FindStringSubmatch(e.Name()); e.IsDir() && name != nil {
			id, _ := strconv.ParseInt(name[1], 10, 64) // it is a number, and no large one
			t.last = max(t.last, id)
			g := &group{tree: t, path: filepath.Join(t.root, e.Name())}
			g.kill()
			t.removals.Go(g.remove) // ends with its last process, or after removeWait
		}
	}
	return t, nil
}

// enable has the groups of workers held to what a controller, such as memory, counts.
func (t *groupTree) enable(controller string) error {
	if err := writeGroup(t.root, "cgroup.subtree_control", "+"+controller); err != nil {
		has, _ := os.ReadFile(filepath.Join(t.root, "cgroup.controllers"))
		return fmt.Errorf("enable the controller %s, of %q: %w", controller, strings.TrimSpace(string(has)), err)
	}
	return nil
}

// wait waits until no group of a worker is left, or the processes in it have had their time. A
// nil tree has none.
func (t *groupTree) wait() {
	if t != nil {
		t.removals.Wait()
	}
}

// A group is the control group of one worker.
type group struct {
	tree   *groupTree
	path   string
	door   *os.File // its folder, which the process is started in, or the file by which it enters; closed then
	limits GroupLimits
}

// make makes a group for a worker that is about to start.
func (t *groupTree) make(name string, limits GroupLimits) (_ *group, err error) {
	g := &group{tree: t, path: filepath.Join(t.root, name), limits: limits}
	if err := os.Mkdir(g.path, 0o755); err != nil {
		return nil, fmt.Errorf("control group: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(g.path) // it is empty
		}
	}()
	for _, f := range limits.files() {
		if f.value == 0 {
			continue
		}
		if err := writeGroup(g.path, f.controller+".max", strconv.FormatInt(f.value, 10)); err != nil {
			return nil, fmt.Errorf("%v: %w", f, err)
		}
		if f.controller != "memory" {
			continue
		}
		// What swaps is slow for as long as there is room, and what is killed in part goes on
		// without the part. Neither file is on every kernel.
		for file, value := range map[string]string{"memory.swap.max": "0", "memory.oom.group": "1"} {
			if err := writeGroup(g.path, file, value); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("%v: %w", f, err)
			}
		}
	}
	if t.late {
		g.door, err = os.OpenFile(filepath.Join(g.path, "cgroup.procs"), os.O_WRONLY, 0)
	} else {
		g.door, err = os.Open(g.path)
	}
	if err != nil {
		return nil, fmt.Errorf("control group: %w", err)
	}
	return g, nil
}

// canClone3 reports whether this process may use the system call that starts another one in a control group. A
// filter that looks at what others are asked for, as RestrictNamespaces= of a unit does, can't look into this one,
// and forbids it.
func canClone3() bool {
	_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0)
	return errno == unix.EINVAL // of arguments that are none
}

// enterGroup moves this process to the control group whose cgroup.procs it has as a descriptor.
func enterGroup(fd int) error {
	if _, err := unix.Write(fd, []byte("0")); err != nil {
		return fmt.Errorf("enter its control group: %w", err)
	}
	return nil
}

// kill kills every process of the group, also those that have left their process group, and
// those that are being forked. A nil group has none.
func (g *group) kill() {
	if g != nil {
		_ = writeGroup(g.path, "cgroup.kill", "1") // it fails where there is no group any more
	}
}

// met says which of its limits the processes of the group have met, or "".
func (g *group) met() string {
	if g == nil {
		return ""
	}
	var met []string
	for _, f := range g.limits.files() {
		switch {
		case f.value == 0:
		case f.controller == "memory" && g.count("memory.events", "oom_kill") > 0:
			met = append(met, "out of memory: "+f.String())
		case f.controller == "pids" && g.count("pids.events", "max") > 0:
			met = append(met, "no more processes: "+f.String())
		}
	}
	return strings.Join(met, "; ")
}

// count is a number of a file in which each line has a name and a number.
func (g *group) count(file, name string) int64 {
	b, err := os.ReadFile(filepath.Join(g.path, file))
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(b) {
		if fields := strings.Fields(string(line)); len(fields) == 2 && fields[0] == name {
			n, _ := strconv.ParseInt(fields[1], 10, 64) // the kernel writes numbers
			return n
		}
	}
	return 0
}

// close gives the group up once its worker has been reaped. It does not wait.
func (g *group) close() {
	if g == nil {
		return
	}
	if removeGroup(g.path) == nil {
		return
	}
	g.tree.removals.Go(g.remove) // ends with its last process, or after removeWait
}

// removeWait is how long processes that were killed may take to end: one that waits for a
// disk can't before that answers.
const removeWait = 10 * time.Second

// remove removes the group as soon as the last of its processes, which were killed, has ended.
func (g *group) remove() {
	wait := time.Millisecond
	for end := time.Now().Add(removeWait); ; wait = min(2*wait, 100*time.Millisecond) {
		err := removeGroup(g.path)
		switch {
		case err == nil:
			return
		case time.Now().After(end):
			g.tree.log.Warn("control group is left", "group", g.path, "cause", err, "next", "remove it at the next start")
			return
		}
		time.Sleep(wait)
	}
}

// removeGroup removes a group in which no process is, with the groups in it that its processes have made. One
// that is gone is no error.
func removeGroup(path string) error {
	err := os.Remove(path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	within, _ := os.ReadDir(path) // gone meanwhile: nothing
	for _, e := range within {
		if e.IsDir() {
			if err := removeGroup(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// tellLimits says once of a worker that it has met a limit which does not end it: it has no more
// processes or threads, and the application sees to that well or badly.
func (p *pool) tellLimits() {
	for _, w := range p.workersOf(nil) {
		p.mu.Lock()
		proc, told := w.proc, w.limited
		p.mu.Unlock()
		if proc == nil || proc.group == nil || told {
			continue
		}
		if met := proc.group.met(); met != "" {
			p.mu.Lock()
			w.limited = true
			p.mu.Unlock()
			w.log.Warn("worker has met a limit", "cause", met)
		}
	}
}

// holdToGroups sees to it that workers of cfg can be held to what its keys cgroup_* say; what
// can't be is refused, as ConfigErrors: whoever asks for a limit is not to have none.
func (m *Manager) holdToGroups(cfg *Config) error {
	var errs ConfigErrors
	for _, p := range cfg.Pools {
		for _, f := range p.Group.files() {
			if f.value == 0 {
				continue
			}
			err := m.noGroups
			if m.groups != nil {
				err = m.groups.enable(f.controller)
			}
			if err != nil {
				key := "pool." + p.Name + "." + f.key
				at := cfg.places[key]
				errs = append(errs, ConfigError{File: at.file, Line: at.line, Key: key, Value: f.shown, Want: fmt.Sprintf("fpmd can't hold workers to it: %v", err)})
			}
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return errs
}

// ownGroup is the folder of the control group that this process is in.
func ownGroup() (string, error) {
	mount, within, err := groupMount()
	if err != nil {
		return "", err
	}
	own := ownCgroup()
	if own == "" {
		return "", errNoGroups
	}
	path, err := filepath.Rel(within, own)
	if err != nil || !filepath.IsLocal(path) {
		return "", fmt.Errorf("its control group %s is not below %s, which is mounted: want it to be", own, within)
	}
	return filepath.Join(mount, path), nil
}

var errNoGroups = errors.New("this system has no control groups v2: want systemd.unified_cgroup_hierarchy=1 when it boots")

// groupMount is where control groups v2 are mounted, and which of them is its root.
func groupMount() (mount, within string, err error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(b)) {
		of, what, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(of); len(fields) >= 5 && strings.HasPrefix(what, "cgroup2 ") {
			return fields[4], fields[3], nil
		}
	}
	return "", "", errNoGroups
}

// groupControllers are what processes of this machine can be held to in control groups v2.
func groupControllers() []string {
	mount, _, err := groupMount()
	if err != nil {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// delegated reports whether a group, with all below it, is whose processes are in it: systemd
// marks it so. What a container has for its root is its own as well.
func delegated(path string) bool {
	for _, name := range []string{"user.delegate", "trusted.delegate"} {
		var value [8]byte
		if n, err := unix.Getxattr(path, name, value[:]); err == nil && string(value[:n]) == "1" {
			return true
		}
	}
	mount, within, err := groupMount()
	if err != nil || path != mount || within != "/" {
		return false
	}
	_, err = os.Stat(filepath.Join(path, "cgroup.type")) // which the machine's root has not
	return err == nil
}

// writeGroup writes a file of a group in one go, as the kernel wants it.
func writeGroup(path, file, value string) error {
	f, err := os.OpenFile(filepath.Join(path, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// checkGroups refuses limits for which the kernel has nothing in control groups v2.
func (d *draft) checkGroups() {
	if d.l.asking {
		return
	}
	for _, f := range d.Group.files() {
		if f.value > 0 && !slices.Contains(d.l.controllers, f.controller) {
			d.given[f.key].refuse("control groups v2 of this machine do not have the controller %s, but %q: leave it out, or boot with systemd.unified_cgroup_hierarchy=1 and cgroup_enable=%s",
				f.controller, strings.Join(d.l.controllers, " "), f.controller)
		}
	}
}
