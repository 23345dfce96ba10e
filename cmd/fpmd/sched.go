package main

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// yieldToWorkers puts every thread of this process under SCHED_BATCH: the
// kernel does not interrupt a worker to wake us, so under load one wake brings
// several answers (docs/decisions.md). It reports whether it did: who started us
// with a policy of his own keeps it, and his workers inherit it.
func yieldToWorkers() (done bool, err error) {
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return false, fmt.Errorf("sched_getattr: %w", err)
	}
	if attr.Policy != unix.SCHED_NORMAL {
		return false, nil
	}
	attr.Policy = unix.SCHED_BATCH
	return schedule(attr)
}

// schedule has every thread of this process scheduled by attr. It reports whether any is, also with an error.
func schedule(attr *unix.SchedAttr) (done bool, err error) {
	// A thread that begins meanwhile may have come of one that was not asked
	// yet; it is in the second listing.
	for range 2 {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return done, err
		}
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				return done, err
			}
			if err := unix.SchedSetAttr(tid, attr, 0); err != nil && err != unix.ESRCH {
				return done, fmt.Errorf("sched_setattr of thread %d: %w", tid, err)
			}
			done = true
		}
	}
	return done, nil
}
