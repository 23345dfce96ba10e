package manager

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A real-time pool is refused where fpmd itself may not go before others, and no other pool.
func TestRealTimeIsRefused(t *testing.T) {
	m := testMachine(0)
	m.held.mayHave = func(p Policy) error {
		if p.RealTime() {
			return unix.EPERM
		}
		return nil
	}
	mustLoad(t, m, wsgiPool+"scheduling = \"idle\"\n")
	_, err := loadText(t, m, wsgiPool+"scheduling = \"rr\"\n")
	if err == nil || !strings.Contains(err.Error(), "pool.blog.scheduling: \"rr\": fpmd itself can't have that: operation not permitted: want an fpmd that is root with CAP_SYS_NICE, or LimitRTPRIO=2 in its unit") {
		t.Errorf("a real-time pool: %v", err)
	}
}

// Whether we may be under a policy is tried, and it is not the trying thread alone that is as before.
func TestTryingAPolicyLeavesNothing(t *testing.T) {
	before := ownPolicies(t)
	for name, p := range policies {
		if err := mayHave(p); err != nil && !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: %v", name, err)
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		after := ownPolicies(t)
		for p := range after {
			if _, ok := before[p]; !ok && time.Now().After(deadline) {
				t.Fatalf("%d threads are under %v: none was", after[p], p)
			}
		}
		if len(after) <= len(before) {
			return
		}
		time.Sleep(time.Millisecond) // until the threads that tried have ended
	}
}

// ownPolicies is how many threads of this process are under each policy.
func ownPolicies(t *testing.T) map[Policy]int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[Policy]int)
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		if p, err := PolicyOf(tid); err == nil { // else it has ended
			all[p]++
		}
	}
	return all
}

// What workers are put under, of what their pool says and what fpmd was started under.
func TestPolicyOfWorkers(t *testing.T) {
	idle, fifo := Policy{Number: unix.SCHED_IDLE}, Policy{Number: unix.SCHED_FIFO, Priority: 10}
	for _, tt := range []struct {
		scheduling string
		ours       *Policy
		want       *Policy
	}{
		{"", nil, nil},
		{"", &idle, &idle},
		{"", &fifo, &fifo},
		{"other", &fifo, &Policy{Number: unix.SCHED_NORMAL}},
		{"rr", nil, &Policy{Number: unix.SCHED_RR, Priority: 1}},
		{"rr", &idle, &Policy{Number: unix.SCHED_RR, Priority: 1}},
		{"rr", &fifo, &fifo}, // not behind the others of this fpmd
	} {
		got := policyOfWorkers(tt.scheduling, tt.ours)
		if (got == nil) != (tt.want == nil) || got != nil && *got != *tt.want {
			t.Errorf("%q, fpmd started under %v: %v, want %v", tt.scheduling, tt.ours, got, tt.want)
		}
	}
}
