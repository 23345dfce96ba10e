package manager

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// A machine is what a configuration is checked against: the edge at which a
// test can be root, or have users and folders that are not there.
type machine struct {
	euid, egid int
	processors int
	tempDir    string
	asking     bool   // LoadOptions.Asking
	held       heldTo // to which limits

	controllers []string // of control groups v2

	lookupEnv   func(name string) (string, bool)
	readFile    func(path string) ([]byte, error)
	readEnvFile func(path string, as *Credential) ([]byte, error)
	readDir     func(path string) ([]fs.DirEntry, error)
	glob        func(pattern string) ([]string, error)
	stat        func(path string) (fs.FileInfo, error)
	statIn      func(root, path string) (fs.FileInfo, error)
	jail        func(path string) error // what is wrong with a folder to chroot to

	ownGroups func() ([]int, error)
	user      func(name string) (*user.User, error)
	userID    func(uid string) (*user.User, error)
	group     func(name string) (*user.Group, error)
	groupID   func(gid string) (*user.Group, error)
	groupsOf  func(*user.User) ([]string, error)
}

func thisMachine() machine {
	return machine{
		euid: os.Geteuid(), egid: os.Getegid(), processors: runtime.NumCPU(), tempDir: os.TempDir(), held: ourLimits(), controllers: groupControllers(),
		lookupEnv: os.LookupEnv,
		readFile:  readConfigFile, readEnvFile: readEnvFile, readDir: os.ReadDir, glob: filepath.Glob, stat: os.Stat, statIn: statIn, jail: rootsAlone,
		ownGroups: os.Getgroups,
		user:      user.Lookup, userID: user.LookupId, group: user.LookupGroup, groupID: user.LookupGroupId,
		groupsOf: (*user.User).GroupIds,
	}
}

// readConfigFile reads a regular file, up to one byte more than a configuration may
// have: a pipe that nobody writes to would keep a reload waiting for ever.
func readConfigFile(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, &os.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxConfigFile+1))
}

// runtimeDir is the default of supervisor.runtime_dir.
func (m *machine) runtimeDir() string {
	if m.euid == 0 {
		root, _ := Defaults()
		return root.RuntimeDir
	}
	if dir, ok := m.lookupEnv("XDG_RUNTIME_DIR"); ok && filepath.IsAbs(dir) {
		return filepath.Join(dir, "fpmd")
	}
	return filepath.Join(m.tempDir, fmt.Sprintf("fpmd-%d", m.euid))
}

// userNamed finds a user by name, or by number. An error says what is wrong
// with the name in the words of a ConfigError.
func (m *machine) userNamed(name string) (*user.User, error) {
	u, err := m.user(name)
	if _, unknown := errors.AsType[user.UnknownUserError](err); unknown && isNumber(name) {
		u, err = m.userID(name)
	}
	switch _, noName := errors.AsType[user.UnknownUserError](err); {
	case err == nil:
		return u, nil
	case noName:
		return nil, errors.New("no such user: want one that this machine has")
	}
	if _, noID := errors.AsType[user.UnknownUserIdError](err); noID {
		return nil, errors.New("no such user: want one that this machine has")
	}
	return nil, fmt.Errorf("look the user up: %w", err)
}

// groupNamed is userNamed for a group, and gives its number.
func (m *machine) groupNamed(name string) (int, error) {
	g, err := m.group(name)
	if _, unknown := errors.AsType[user.UnknownGroupError](err); unknown && isNumber(name) {
		g, err = m.groupID(name)
	}
	if err == nil {
		return number(g.Gid)
	}
	_, noName := errors.AsType[user.UnknownGroupError](err)
	_, noID := errors.AsType[user.UnknownGroupIdError](err)
	if noName || noID {
		return 0, errors.New("no such group: want one that this machine has")
	}
	return 0, fmt.Errorf("look the group up: %w", err)
}

// credential is u as the kernel knows it; gid, unless it is -1, takes the place of u's own group.
func (m *machine) credential(u *user.User, gid int) (*Credential, error) {
	uid, err := number(u.Uid)
	if err != nil {
		return nil, fmt.Errorf("the user's number: %w", err)
	}
	if gid < 0 {
		if gid, err = number(u.Gid); err != nil {
			return nil, fmt.Errorf("the number of the user's group: %w", err)
		}
	}
	ids, err := m.groupsOf(u)
	if err != nil {
		return nil, fmt.Errorf("look up the user's groups: %w", err)
	}
	c := &Credential{UID: uint32(uid), GID: uint32(gid), Groups: []uint32{uint32(gid)}, Name: u.Username, Home: u.HomeDir}
	for _, id := range ids {
		g, err := number(id)
		if err != nil {
			return nil, fmt.Errorf("the number of a group of the user: %w", err)
		}
		c.Groups = append(c.Groups, uint32(g))
	}
	slices.Sort(c.Groups)
	c.Groups = slices.Compact(c.Groups)
	return c, nil
}

// self names who we are.
func (m *machine) self() string {
	if u, err := m.userID(strconv.Itoa(m.euid)); err == nil {
		return "user " + u.Username
	}
	return "uid " + strconv.Itoa(m.euid)
}

// searchPath is the PATH that workers get, of pools that give none.
func (m *machine) searchPath() string {
	if path, ok := m.lookupEnv("PATH"); ok && path != "" {
		return path
	}
	return defaultPath
}

// program looks for name in the folders of the workers' PATH, and says what stands in its way.
func (d *draft) program(name string) error {
	if d.l.asking {
		return nil
	}
	if strings.Contains(name, "/") {
		return d.executable(name)
	}
	path := d.searchPath()
	for _, dir := range filepath.SplitList(path) {
		if filepath.IsAbs(dir) && d.executable(filepath.Join(dir, name)) == nil {
			return nil
		}
	}
	return fmt.Errorf("not found on PATH=%s%s: want a program that is there, or its path", path, d.within())
}

func (d *draft) executable(path string) error {
	fi, err := d.stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("%w%s: want a program", err, d.within())
	case !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0:
		return fmt.Errorf("%s is no file that can be executed%s: want a program", path, d.within())
	}
	return nil
}

func isNumber(s string) bool {
	_, err := number(s)
	return err == nil
}

// number reads the number of a user or group. The last one means "no change"
// to the kernel, and none of them.
func number(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n == 1<<32-1 {
		err = strconv.ErrRange
	}
	return int(n), err
}
