package main

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// The supervisor's threads, and no process of a pool, are under SCHED_BATCH.
func TestSupervisorYields(t *testing.T) {
	dir := appDir(t)
	write(t, dir+"/app.py", "def application(environ, start_response):\n    start_response('200 OK', [])\n    return []\n")
	d := serve(t, dir, wsgiPool(dir, "workers = 2"))
	d.waitLogTimes("msg=\"worker ready\"", 2) // until then the second is fpmd exec-worker, as we are
	supervisor := d.cmd.Process.Pid
	workers := children(supervisor)
	if len(workers) != 2 {
		t.Fatalf("%d workers, want 2", len(workers))
	}
	for pid, want := range map[int]uint32{supervisor: unix.SCHED_BATCH, workers[0]: unix.SCHED_NORMAL, workers[1]: unix.SCHED_NORMAL} {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			tid, _ := strconv.Atoi(task.Name())
			attr, err := unix.SchedGetAttr(tid, 0)
			if err != nil {
				t.Fatal(err)
			}
			if attr.Policy != want {
				t.Errorf("thread %d of process %d (supervisor %d) is under policy %d, want %d", tid, pid, supervisor, attr.Policy, want)
			}
		}
	}
}
