package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fpmd/manager"
)

// policiesOf is under what each thread of a process is, in the order in which they began.
func policiesOf(t *testing.T, pid int) (all []manager.Policy) {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		policy, err := manager.PolicyOf(tid)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, policy)
	}
	return all
}

// realTimeIsHad reports whether fpmd may put a pool under a real-time policy here. Where it may not, the check of the configuration says so.
func realTimeIsHad(t *testing.T) bool {
	t.Helper()
	if mayRealTime() {
		return true
	}
	dir := appDir(t)
	write(t, dir+"/app.py", helloApp)
	d := prepare(t, os.Args[0], dir, wsgiPool(dir, "scheduling = \"rr\"\n"))
	if out, code := d.told("check"); code == 0 || !strings.Contains(out, "fpmd itself can't have that") {
		t.Errorf("without the right to a real-time policy: %d: %s", code, out)
	}
	return false
}

// mayRealTime reports whether this process may have a real-time policy.
func mayRealTime() bool {
	cmd := exec.Command("sleep", "60")
	if cmd.Start() != nil {
		return false
	}
	err := manager.Foremost.Set(cmd.Process.Pid)
	cmd.Process.Kill()
	cmd.Wait()
	return err == nil
}

var (
	batchPolicy = manager.Policy{Number: unix.SCHED_BATCH}
	otherPolicy = manager.Policy{Number: unix.SCHED_NORMAL}
	idlePolicy  = manager.Policy{Number: unix.SCHED_IDLE}

	realTimeWorkers = manager.Policy{Number: unix.SCHED_RR, Priority: 1}
)

// The supervisor's threads, and no process of a pool, are under SCHED_BATCH.
func TestSupervisorYields(t *testing.T) {
	dir := appDir(t)
	write(t, dir+"/app.py", helloApp)
	d := serve(t, dir, wsgiPool(dir, "workers = 2"))
	d.waitLogTimes("msg=\"worker ready\"", 2) // until then the second is fpmd exec-worker, as we are
	supervisor := d.cmd.Process.Pid
	workers := children(supervisor)
	if len(workers) != 2 {
		t.Fatalf("%d workers, want 2", len(workers))
	}
	for pid, want := range map[int]manager.Policy{supervisor: batchPolicy, workers[0]: otherPolicy, workers[1]: otherPolicy} {
		for i, got := range policiesOf(t, pid) {
			if got != want {
				t.Errorf("thread %d of process %d (supervisor %d) is under %v, want %v", i, pid, supervisor, got, want)
			}
		}
	}
}

// While there is a real-time pool, and no longer, fpmd's threads go before others, but for the one that only watches them;
// the pool's workers do as well, and those of other pools don't: they are under what they are told, with
// the niceness that they are told.
func TestRealTimePool(t *testing.T) {
	if !realTimeIsHad(t) {
		return
	}
	dir := appDir(t)
	write(t, dir+"/app.py", helloApp)
	others := ""
	for name, more := range map[string]string{"plain": "nice = 3", "idle": "scheduling = \"idle\""} {
		others += fmt.Sprintf("[pool.%s]\nlisten = %q\nwsgi = \"app:application\"\ndirectory = %q\npython = %q\nuser = \"nobody\"\nworkers = 1\n%s\n",
			name, filepath.Join(dir, name+".sock"), dir, interpreter, more)
	}
	realTime := "scheduling = \"rr\"\n"
	d := serve(t, dir, wsgiPool(dir, "workers = 1\n")+others)
	worker := func(pool string) int {
		t.Helper()
		pid := 0
		d.wait("pool "+pool+" with a single worker", func() bool {
			for _, p := range d.status().Pools {
				if p.Name == pool && len(p.Workers) == 1 && p.Workers[0].State == "idle" {
					pid = p.Workers[0].PID
				}
			}
			return pid > 0
		})
		return pid
	}
	slackHere, err := os.ReadFile("/proc/self/timerslack_ns")
	if err != nil {
		t.Fatal(err)
	}
	look := func(when string, supervisor, app manager.Policy) {
		t.Helper()
		strange := 0
		for _, got := range policiesOf(t, d.cmd.Process.Pid) {
			if got != supervisor {
				strange++
			}
		}
		if supervisor.RealTime() {
			strange-- // the monitor
		}
		if strange != 0 {
			t.Errorf("%s: of fpmd's threads %d are not under %v: %v", when, strange, supervisor, policiesOf(t, d.cmd.Process.Pid))
		}
		for pool, want := range map[string]manager.Policy{"app": app, "plain": otherPolicy, "idle": idlePolicy} {
			if got := policiesOf(t, worker(pool)); got[0] != want {
				t.Errorf("%s: the worker of pool %s is under %v, want %v", when, pool, got[0], want)
			}
		}
		if slack, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", worker("plain"))); err != nil || string(slack) != string(slackHere) {
			t.Errorf("%s: the timer slack of a worker of another pool is %s, want %s, as here: %v", when, slack, slackHere, err)
		}
		if n, err := unix.Getpriority(unix.PRIO_PROCESS, worker("plain")); err != nil || 20-n != 3 {
			t.Errorf("%s: the worker of nice = 3 has %d, %v", when, 20-n, err)
		}
		if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "hello") {
			t.Errorf("%s: %q, %v", when, answer, err)
		}
	}
	reload := func(config string) {
		t.Helper()
		write(t, filepath.Join(dir, "fpmd.toml"), config)
		if out, code := d.told("reload", "--wait"); code != 0 {
			t.Fatalf("reload: %d: %s", code, out)
		}
	}
	look("without a real-time pool", batchPolicy, otherPolicy)
	reload(wsgiPool(dir, "workers = 1\n"+realTime) + others)
	look("with one", manager.Foremost, realTimeWorkers)
	d.waitLog("msg=\"fpmd goes before others\"")
	if out, code := d.told("restart", "app", "plain", "idle"); code != 0 {
		t.Fatalf("restart: %d: %s", code, out)
	}
	look("with workers that fpmd has started before others", manager.Foremost, realTimeWorkers)
	reload(wsgiPool(dir, "workers = 1\n") + others)
	look("with none any more", batchPolicy, otherPolicy)
	d.waitLog("msg=\"fpmd goes before others no more\"")
}

// Workers of a real-time pool that compute without an end, four for each processor, keep nobody from being answered, nor
// fpmd from ending them.
func TestRealTimeWorkersThatLoop(t *testing.T) {
	if !realTimeIsHad(t) {
		return
	}
	dir := appDir(t)
	write(t, dir+"/app.py", helloApp)
	write(t, dir+"/loop.py", "def application(environ, start_response):\n    while True: pass\n")
	loop := filepath.Join(dir, "loop.sock")
	n := 4 * runtime.NumCPU()
	d := serve(t, dir, wsgiPool(dir, "workers = 1\n")+fmt.Sprintf(
		"[pool.loop]\nlisten = %q\nwsgi = \"loop:application\"\ndirectory = %q\npython = %q\nuser = \"nobody\"\nworkers = %d\nscheduling = \"rr\"\nrequest_timeout = \"1s\"\nstop_timeout = \"1s\"\n",
		loop, dir, interpreter, n))
	d.waitLogTimes("msg=\"worker ready\" pool=loop", n)
	looping := make(chan string, n)
	for range n {
		go func() { // ends with the answer, or after patience
			answer, err := askOnce(loop)
			looping <- fmt.Sprint(answer, err)
		}()
	}
	for range 5 {
		if answer, err := askOnce(d.sock()); err != nil || !strings.HasSuffix(answer, "hello") {
			t.Errorf("beside them: %q, %v", answer, err)
		}
	}
	for range n {
		if got := <-looping; !strings.Contains(got, "504") {
			t.Errorf("who asked them is told %q, want 504", got)
		}
	}
	d.waitLogTimes("msg=\"worker ready\" pool=loop", 2*n)
}
