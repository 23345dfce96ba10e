package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"fpmd/manager"
)

// A scheduler keeps this process under the policy that goes with its pools (docs/decisions.md).
// Its methods may be called by any goroutine.
type scheduler struct {
	log     *slog.Logger
	started *manager.Policy // what we were started under; nil: the kernel does not say, and all stays as it is
	slack   int64           // of timers, in ns, before we were under any other; 0: not known
	monitor int             // Go's thread that only watches the others

	mu      sync.Mutex // guards what follows, and the order of changes
	inForce func() []string
	coming  []string // pools that are being loaded
	now     manager.Policy
	failed  string // why it is not wholly under now; "": it is
}

// newScheduler is called before there are goroutines that work.
func newScheduler(log *slog.Logger) *scheduler {
	s := &scheduler{log: log, inForce: func() []string { return nil }}
	policy, err := manager.PolicyOf(0)
	if err == nil {
		s.monitor, err = monitor()
	}
	if err != nil {
		s.log.Warn("not under SCHED_BATCH", "cause", err, "effect", "more work an exchange under load")
		return s
	}
	s.started, s.now = &policy, policy
	if b, err := os.ReadFile("/proc/self/timerslack_ns"); err == nil {
		s.slack, _ = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64) // 0 is not known
	}
	return s
}

// asks is who says from now on which pools are real-time, beside those that are being loaded.
func (s *scheduler) asks(inForce func() []string) {
	s.mu.Lock()
	s.inForce = inForce
	s.mu.Unlock()
	s.loading(nil)
}

// loading is called with the real-time pools that are about to be loaded, before their workers start: what these may be is what they
// inherit, where fpmd is not root. Nil is their end.
func (s *scheduler) loading(coming []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.coming = coming
	s.followLocked()
}

// follow is called when other pools may be in force.
func (s *scheduler) follow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.followLocked()
}

// followLocked puts every thread of this process under SCHED_BATCH: the kernel does not interrupt a worker to wake us, so
// under load one wake brings several answers. Who started us with a policy of his own keeps it. While there are real-time pools
// it is theirs: who would wait for us are they. What can't be had is logged, and tried again the next time.
func (s *scheduler) followLocked() {
	if s.started == nil {
		return
	}
	realTime := slices.Compact(slices.Sorted(slices.Values(slices.Concat(s.inForce(), s.coming))))
	want := *s.started
	switch {
	case len(realTime) > 0 && !want.RealTime():
		want = manager.Foremost
	case want.Number == unix.SCHED_NORMAL:
		want = manager.Policy{Number: unix.SCHED_BATCH}
	}
	if want == s.now && s.failed == "" {
		return
	}
	before, failed := s.now, ""
	err := putThreads(want, s.monitor)
	if err != nil {
		failed = err.Error()
	}
	again := want == before && failed == s.failed // which has been said
	s.now, s.failed = want, failed
	switch {
	case again:
	case err != nil && want.RealTime():
		s.log.Warn("not before others", "policy", want, "pools", strings.Join(realTime, ", "), "cause", err, "effect", "their requests may wait for who computes")
	case err != nil && before.RealTime():
		s.log.Warn("still before others", "policy", want, "cause", err, "effect", "some threads of fpmd go before who computes, as they did")
	case err != nil:
		s.log.Warn("not under SCHED_BATCH", "cause", err, "effect", "more work an exchange under load")
	case want.RealTime():
		s.log.Info("fpmd goes before others", "policy", want, "pools", strings.Join(realTime, ", "))
	case before.RealTime():
		s.log.Info("fpmd goes before others no more", "policy", want)
	}
}

// putThreads puts every thread of this process under policy; but not thread monitor before others.
func putThreads(policy manager.Policy, monitor int) error {
	// A thread that begins meanwhile may have come of one that was not asked
	// yet; it is in the second listing.
	for range 2 {
		threads, err := ownThreads()
		if err != nil {
			return err
		}
		for _, tid := range threads {
			if policy.RealTime() && tid == monitor {
				continue
			}
			if err := policy.Set(tid); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// ownThreads are the threads of this process.
func ownThreads() (threads []int, err error) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil, err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return nil, fmt.Errorf("/proc/self/task: %w", err)
		}
		threads = append(threads, tid)
	}
	return threads, nil
}

// monitor is the thread of Go's sysmon, the first that the runtime starts. It does nothing for a request: it sleeps
// for 20 µs at a time while others run, and where it goes before others that is what it takes, some 50 times for each burst of
// work. It was a third of what sick pools cost fpmd.
func monitor() (tid int, err error) {
	threads, err := ownThreads()
	if err != nil {
		return 0, err
	}
	first := os.Getpid()
	age := func(tid int) uint32 { return uint32(tid - first) } // numbers begin anew after the largest
	slices.SortFunc(threads, func(a, b int) int { return cmp.Compare(age(a), age(b)) })
	if len(threads) < 2 {
		return 0, errors.New("this process has a single thread, and should have the runtime's monitor")
	}
	return threads[1], nil
}
