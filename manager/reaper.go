package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ourChildren are the workers of this process. There is one table because the
// kernel has one of our children.
var ourChildren = children{pids: map[int]bool{}}

// children are processes that somebody here waits for by number. The reaper of
// orphans leaves them alone.
type children struct {
	// mu guards pids, and is held from fork until the number is in it, so that
	// the reaper never sees a worker that is not known yet. It is held over
	// fork and wait4 of the dead, which don't wait.
	mu   sync.Mutex
	pids map[int]bool
}

// fork starts a process that reap has to be called for.
func (c *children) fork(path string, argv []string, attr *syscall.ProcAttr) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Until the child has got as far as exec, which on a busy machine takes it a tenth of a second, its
	// parent's thread stands still, and keeps its processor from Go. Requests go on with another one.
	defer Aside()()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err == nil {
		c.pids[pid] = true
	}
	return pid, err
}

// reap takes the exit status of a process that fork has started and that has
// ended.
func (c *children) reap(pid int) syscall.WaitStatus {
	c.mu.Lock() // before the kernel may give the number to the next fork
	defer c.mu.Unlock()
	var ws syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(pid, &ws, 0, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	delete(c.pids, pid)
	return ws
}

// reapOrphan takes pid's exit status if it is an orphan that we adopted and
// has ended.
func (c *children) reapOrphan(pid, ownGroup int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pids[pid] {
		return false
	}
	if pgid, err := unix.Getpgid(pid); err != nil || pgid == ownGroup {
		return false
	}
	reaped, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
	return err == nil && reaped == pid
}

// becomeSubreaper makes this process the parent of every descendant whose
// parent has died, so that what an application leaves behind is seen.
// reapOrphans must run from then on.
func becomeSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a child subreaper: %w", err)
	}
	if _, err := leaderChildren(); err != nil {
		return fmt.Errorf("list our children (CONFIG_PROC_CHILDREN): %w", err)
	}
	return nil
}

// reapOrphans reaps the orphans that we adopted, until ctx ends.
//
// A wait for any child would also take the exit status of a worker, or of a
// command that os/exec started and is about to wait for. So it waits for
// nobody in general, and asks by number, for those only that are an orphan
// beyond doubt:
//
//   - it is a child of our first thread. The kernel gives orphans to that one,
//     and what we start belongs to the thread that started it;
//   - no worker has the number: those are entered before they can be seen here;
//   - it is not in our process group. What os/exec starts is there (unless it
//     is told otherwise, and nothing here is), and an application, which begins
//     in a group of its own, is not.
//
// An orphan that moves into our process group stays a zombie until we end.
func reapOrphans(ctx context.Context) {
	ended := make(chan os.Signal, 1) // one is enough: a pass looks at all
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	// The kernel's list may leave one out when others end while it is read.
	again := time.NewTicker(time.Minute)
	defer again.Stop()
	own := unix.Getpgrp()
	for {
		pids, _ := leaderChildren() // readable: becomeSubreaper has tried
		for _, pid := range pids {
			ourChildren.reapOrphan(pid, own)
		}
		select {
		case <-ctx.Done():
			return
		case <-ended:
		case <-again.C:
		}
	}
}

// leaderChildren lists the children of our first thread.
func leaderChildren() ([]int, error) {
	b, err := os.ReadFile("/proc/self/task/" + strconv.Itoa(os.Getpid()) + "/children")
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
