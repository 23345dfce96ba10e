package manager

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ExecWorker is what every worker process runs first, as `fpmd exec-worker`: it
// does to itself what a parent can't do to a child in Go, gives up its
// privileges, and becomes the worker's program. It returns an exit code only
// when it can't. It is exported for the command line and of no other use.
//
// It knows what to do from the recipe that it inherits, and says what went
// wrong on the pipe beside it.
func ExecWorker(args []string) (exit int) {
	// Some of what follows is a thread's own, and exec keeps this thread's.
	runtime.LockOSThread()
	r, err := readRecipe()
	if err != nil || len(args) > 0 {
		fmt.Fprintln(os.Stderr, "fpmd exec-worker is how fpmd starts its workers, and does nothing by hand")
		return 64 // EX_USAGE
	}
	err = r.exec()
	if _, werr := unix.Write(refusalFD, []byte(err.Error())); werr != nil {
		fmt.Fprintf(os.Stderr, "fpmd exec-worker: %v\n", err)
	}
	return 126 // as a shell says of a program that it could not run
}

func readRecipe() (*recipe, error) {
	f := os.NewFile(recipeFD, "recipe")
	if f == nil {
		return nil, os.ErrInvalid
	}
	// A file that can't be read at an offset is none of ours, and not waited for.
	r := new(recipe)
	return r, gob.NewDecoder(io.NewSectionReader(f, 0, math.MaxInt64)).Decode(r)
}

// exec does what the recipe says, in an order that matters: privileges go as
// late as they can, and the folder is entered without them. It returns only an
// error.
func (r *recipe) exec() error {
	// What we hold beyond the worker's descriptors, and what somebody let us
	// inherit, ends here.
	if err := unix.CloseRange(recipeFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range (want Linux 5.11 or later): %w", err)
	}
	if err := armLifeline(); err != nil {
		return err
	}
	if r.Group {
		if err := enterGroup(groupFD); err != nil {
			return err
		}
	}
	if err := r.schedule(); err != nil {
		return err
	}
	if err := r.Limits.set(); err != nil {
		return err
	}
	if r.Chroot != "" { // after what is read in /proc, which may not be there
		if err := enter(r.Chroot); err != nil {
			return err
		}
	}
	unix.Umask(r.Umask)
	who := userName(r.Cred)
	if r.Cred != nil {
		if err := r.Cred.become(); err != nil {
			return fmt.Errorf("become %s: %w", who, err)
		}
	}
	if r.Dir != "" {
		if err := os.Chdir(r.Dir); err != nil {
			return fmt.Errorf("%w, as %s", err, who)
		}
	}
	if !r.NewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	path, err := r.lookPath()
	if err != nil {
		return fmt.Errorf("%w, as %s", err, who)
	}
	if err := defaultSignals(); err != nil {
		return err
	}
	err = syscall.Exec(path, r.Argv, r.Env)
	if _, serr := os.Stat(path); errors.Is(err, unix.ENOENT) && serr == nil {
		return fmt.Errorf("exec %s as %s: %w: the file is there, the interpreter that it names is not", path, who, err)
	}
	return fmt.Errorf("exec %s as %s: %w", path, who, explainLimit(err, who, r.Limits.Nproc))
}

// armLifeline makes the kernel kill this process group when the last write end
// of the lifeline is closed, which the supervisor alone holds. It stays armed
// over exec and fork, and needs no cooperation of what runs; only a descendant
// that makes a process group of its own is out of its reach.
func armLifeline() error {
	if _, err := unix.FcntlInt(lifelineFD, unix.F_SETSIG, int(unix.SIGKILL)); err != nil {
		return fmt.Errorf("lifeline: F_SETSIG: %w", err)
	}
	if _, err := unix.FcntlInt(lifelineFD, unix.F_SETOWN, -unix.Getpgrp()); err != nil {
		return fmt.Errorf("lifeline: F_SETOWN: %w", err)
	}
	flags, err := unix.FcntlInt(lifelineFD, unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("lifeline: F_GETFL: %w", err)
	}
	if _, err := unix.FcntlInt(lifelineFD, unix.F_SETFL, flags|unix.O_ASYNC); err != nil {
		return fmt.Errorf("lifeline: F_SETFL: %w", err)
	}
	// A supervisor that died before this will not be noticed by a signal.
	end := []unix.PollFd{{Fd: lifelineFD, Events: unix.POLLIN}}
	n, err := unix.Poll(end, 0)
	if err != nil {
		return fmt.Errorf("lifeline: poll: %w", err)
	}
	if n != 0 {
		return errors.New("lifeline: the supervisor is gone")
	}
	return nil
}

// schedule puts this thread under the worker's policy. An error names the key, if there is one.
func (r *recipe) schedule() error {
	if r.Policy != nil {
		if err := r.Policy.Set(0); err != nil {
			if key := r.Limits.Scheduling; key != "" {
				return fmt.Errorf("scheduling = %q: %w", key, err)
			}
			return fmt.Errorf("leave fpmd's own scheduling policy: %w", err)
		}
	}
	if r.TimerSlack > 0 {
		// A real-time thread has none, nor what it starts, for good.
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(r.TimerSlack), 0, 0, 0); err != nil {
			return fmt.Errorf("set the timer slack to %d ns: %w", r.TimerSlack, err)
		}
	}
	return nil
}

// become gives up who we are for c, for good, in all threads.
func (c *Credential) become() error {
	groups := make([]int, len(c.Groups))
	for i, g := range c.Groups {
		groups[i] = int(g)
	}
	uid, gid := int(c.UID), int(c.GID)
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("setgroups %v: %w", groups, err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("setresgid %d: %w", gid, err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("setresuid %d: %w", uid, err)
	}
	if uid != 0 {
		// A supervisor that is not root, but was given capabilities to change
		// users by, would pass them on: only root loses them with its number.
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&hdr, &none[0]); err != nil {
			return fmt.Errorf("drop all capabilities: %w", err)
		}
	}
	return c.verify(groups)
}

// verify looks whether we are c, and can't be root again.
func (c *Credential) verify(groups []int) error {
	uid, gid := int(c.UID), int(c.GID)
	if r, e, s := unix.Getresuid(); r != uid || e != uid || s != uid {
		return fmt.Errorf("uids are %d %d %d after setresuid %d", r, e, s, uid)
	}
	if r, e, s := unix.Getresgid(); r != gid || e != gid || s != gid {
		return fmt.Errorf("gids are %d %d %d after setresgid %d", r, e, s, gid)
	}
	have, err := unix.Getgroups()
	slices.Sort(have)
	slices.Sort(groups)
	if err != nil || !slices.Equal(slices.Compact(have), slices.Compact(groups)) {
		return errors.Join(fmt.Errorf("groups are %v after setgroups %v", have, groups), err)
	}
	if uid != 0 && syscall.Setresuid(0, 0, 0) == nil {
		return errors.New("could become root again")
	}
	if uid != 0 && gid != 0 && syscall.Setresgid(0, 0, 0) == nil {
		return errors.New("could become group root again")
	}
	return nil
}

// lookPath finds the program as a shell with the worker's environment would.
func (r *recipe) lookPath() (string, error) {
	if len(r.Argv) == 0 {
		return "", errors.New("no program to run")
	}
	for _, kv := range r.Env {
		if path, ok := strings.CutPrefix(kv, "PATH="); ok {
			if err := os.Setenv("PATH", path); err != nil {
				return "", err
			}
		}
	}
	path, err := exec.LookPath(r.Argv[0])
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%s: not found on PATH=%s", r.Argv[0], os.Getenv("PATH"))
	}
	if err != nil {
		return "", fmt.Errorf("look up %s: %w", r.Argv[0], err)
	}
	return path, nil
}

// defaultSignals makes the program begin with no signal ignored and none
// blocked. Exec does that for signals with handlers only; what we or the Go
// runtime were started with, from nohup for one, would be passed on.
func defaultSignals() error {
	var dfl [64]byte // a struct sigaction of zeros is SIG_DFL on every architecture
	for sig := 1; sig <= 64; sig++ {
		if sig == int(unix.SIGKILL) || sig == int(unix.SIGSTOP) {
			continue
		}
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&dfl)), 0, 8, 0, 0); errno != 0 {
			return fmt.Errorf("reset signal %d: %w", sig, errno)
		}
	}
	var none unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil); err != nil {
		return fmt.Errorf("unblock all signals: %w", err)
	}
	return nil
}
