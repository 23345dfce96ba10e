package manager

import (
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Policy is how the kernel gives a thread the processor: sched(7).
type Policy struct {
	Number   uint32 // unix.SCHED_NORMAL and so on
	Priority uint32 // of a real-time policy, from 1; 0 for the others
}

// realTime is the value of the key scheduling that has a pool go before others.
const realTime = "rr"

// policies are what the key scheduling may name.
var policies = map[string]Policy{
	"other":  {Number: unix.SCHED_NORMAL},
	"batch":  {Number: unix.SCHED_BATCH},
	"idle":   {Number: unix.SCHED_IDLE},
	realTime: {Number: unix.SCHED_RR, Priority: 1},
}

// Foremost is what fpmd itself is under while it has a real-time pool, each of whose exchanges goes through it. It goes before
// that pool's workers: those that compute do not hold it up, nor keep it from ending them.
var Foremost = Policy{Number: unix.SCHED_RR, Priority: policies[realTime].Priority + 1}

// PolicyOf is what thread tid is under, 0 being the calling one.
func PolicyOf(tid int) (Policy, error) {
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return Policy{}, fmt.Errorf("sched_getattr of thread %d: %w", tid, err)
	}
	return Policy{Number: attr.Policy, Priority: attr.Priority}, nil
}

// RealTime reports whether it goes before all threads of the policies that share the processor.
func (p Policy) RealTime() bool { return p.Priority > 0 }

// String is its name, as sched(7) has it.
func (p Policy) String() string {
	switch p.Number {
	case unix.SCHED_NORMAL:
		return "SCHED_OTHER"
	case unix.SCHED_BATCH:
		return "SCHED_BATCH"
	case unix.SCHED_IDLE:
		return "SCHED_IDLE"
	case unix.SCHED_RR:
		return fmt.Sprintf("SCHED_RR, priority %d", p.Priority)
	}
	return fmt.Sprintf("policy %d, priority %d", p.Number, p.Priority)
}

// Set puts thread tid under p, 0 being the calling one, and asks nothing of the kernel where it is already. Its niceness stays.
func (p Policy) Set(tid int) error {
	if now, err := PolicyOf(tid); err != nil || now == p {
		return err
	}
	var err error
	if p.RealTime() {
		err = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: p.Number, Priority: p.Priority}, 0)
	} else {
		// sched_setattr would set the niceness as well, which the thread may be about to set itself.
		var param struct{ priority int32 }
		if _, _, errno := unix.Syscall(unix.SYS_SCHED_SETSCHEDULER, uintptr(tid), uintptr(p.Number), uintptr(unsafe.Pointer(&param))); errno != 0 {
			err = errno
		}
	}
	if err != nil {
		return fmt.Errorf("put thread %d under %v: %w", tid, p, err)
	}
	return nil
}

// mayHave is nil where a thread of this process may be put under p. Only trying tells: capabilities, RLIMIT_RTPRIO, RLIMIT_NICE,
// filters of system calls and control groups have a say. It is tried once.
func mayHave(p Policy) error {
	tried.mu.Lock()
	defer tried.mu.Unlock()
	if err, ok := tried.policies[p]; ok {
		return err
	}
	err := onLastLegs(func() error { return p.Set(0) })
	tried.policies[p] = err
	return err
}

// onLastLegs calls do on a thread that ends with it, since there may be no way back for that thread to what it was.
func onLastLegs(do func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // which would not end; another one is had while it is held
			result <- onLastLegs(do)
			runtime.UnlockOSThread()
			return
		}
		result <- do()
	}()
	return <-result
}

// tried is what mayHave knows.
var tried = struct {
	mu       sync.Mutex
	policies map[Policy]error
}{policies: make(map[Policy]error)}

// policyOfWorkers is what fpmd's workers under scheduling are to be put under, fpmd having been started under ours; nil: under
// nothing in particular. A real-time pool of an fpmd that was started under a real-time policy has that one.
func policyOfWorkers(scheduling string, ours *Policy) *Policy {
	p, given := policies[scheduling]
	if !given || p.RealTime() && ours != nil && ours.RealTime() {
		return ours
	}
	return &p
}

// RealTime is the names of the pools whose workers are under a real-time policy.
func (c *Config) RealTime() (names []string) {
	for _, p := range c.Pools {
		if p.Limits.Scheduling == realTime {
			names = append(names, p.Name)
		}
	}
	return names
}

// RealTime is the names of the pools whose workers are under a real-time policy, by what is in force.
func (m *Manager) RealTime() (names []string) {
	for _, p := range m.pools.all() {
		if p.config().Limits.Scheduling == realTime {
			names = append(names, p.name)
		}
	}
	return names
}
