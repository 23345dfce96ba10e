package manager

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// setChroot reads the folder that is / for a pool's workers.
func (d *draft) setChroot(v value) {
	var jail string
	if v.path(&jail, ""); jail == "" {
		return
	}
	d.Chroot = jail
	if v.l.asking {
		return
	}
	switch {
	case jail == "/":
		v.refuse("everything is in it: want a folder, or leave it out")
	case v.l.euid != 0:
		v.refuse("fpmd is not root (it is %s) and can't change the root folder of workers: leave it out, or start fpmd as root", v.l.self())
	case !v.l.held.capChroot:
		v.refuse("fpmd does not have CAP_SYS_CHROOT: leave it out, or add that to CapabilityBoundingSet= of its unit")
	default:
		if err := v.l.jail(jail); err != nil {
			v.refuse("%v", err)
		}
	}
	d.noDirectory = d.noDirectory || d.given["chroot"].refused()
}

// rootsAlone refuses a folder that another than root could change, or put another one in the place of: who
// may write in / decides what setuid programs take for /etc/passwd.
func rootsAlone(dir string) error {
	for at := dir; ; at = filepath.Dir(at) {
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return fmt.Errorf("%w: want a folder that is there", &fs.PathError{Op: "stat", Path: at, Err: err})
		}
		switch {
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return fmt.Errorf("%s is no folder: want one, by its own name", at)
		case st.Uid != 0:
			return fmt.Errorf("%s belongs to user %d: want a folder that is root's, as is the way to it", at, st.Uid)
		case st.Mode&0o022 != 0 && (at == dir || st.Mode&unix.S_ISVTX == 0):
			return fmt.Errorf("others may write in %s (mode %#o): want a folder that only root changes, as is the way to it", at, st.Mode&0o7777)
		}
		if at == "/" {
			return nil
		}
	}
}

// statIn is os.Stat for whom root is /: no link and no .. leads out of it.
func statIn(root, path string) (fs.FileInfo, error) {
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat2(int(dir.Fd()), path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	fi, err := f.Stat()
	return fi, errors.Join(err, f.Close())
}

// stat is what a worker of the pool sees at path.
func (d *draft) stat(path string) (fs.FileInfo, error) {
	if d.Chroot == "" {
		return d.l.stat(path)
	}
	return d.l.statIn(d.Chroot, path)
}

// within says where path is, for errors about what a worker sees.
func (d *draft) within() string {
	if d.Chroot == "" {
		return ""
	}
	return " within chroot = " + d.Chroot
}

// enter makes dir / for this process, for good.
func enter(dir string) error {
	if err := unix.Chroot(dir); err != nil {
		return fmt.Errorf("chroot %s: %w", dir, err)
	}
	return os.Chdir("/") // else what is outside could be reached by ..
}
