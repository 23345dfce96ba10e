package manager

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// reaping makes the test binary a subreaper, with its reaper, for one test.
func reaping(t *testing.T) {
	t.Helper()
	if err := becomeSubreaper(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { reapOrphans(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
}

// The reaper takes no exit status that os/exec waits for.
func TestReaperLeavesCommandsAlone(t *testing.T) {
	reaping(t)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			for code := range 50 {
				err := exec.Command("sh", "-c", fmt.Sprintf("exit %d", code)).Run()
				if got := fmt.Sprint(err); code > 0 && got != fmt.Sprintf("exit status %d", code) || code == 0 && err != nil {
					t.Errorf("exit %d: %v", code, err)
				}
			}
		})
	}
	wg.Wait()
}

// Nor that of a worker, however soon it ends.
func TestReaperLeavesWorkersAlone(t *testing.T) {
	reaping(t)
	l := shell(t, ready+"exit 5")
	for range 20 {
		p := startWorker(t, l)
		<-p.done()
		if p.exit() != (exitStatus{code: 5}) {
			t.Errorf("it %v, want status 5", p.exit())
		}
	}
}

// Who is not beyond doubt an orphan is not reaped, even when it is looked at.
func TestNoOrphan(t *testing.T) {
	own := unix.Getpgrp()
	isZombie := func(pid int) func() bool {
		return func() bool { return strings.HasPrefix(procStatus(t, pid)["State"], "Z") }
	}
	t.Run("in our process group", func(t *testing.T) {
		cmd := exec.Command("sh", "-c", "exit 9")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, "it has ended", isZombie(cmd.Process.Pid))
		if ourChildren.reapOrphan(cmd.Process.Pid, own) {
			t.Error("reaped")
		}
		if err := cmd.Wait(); err == nil || err.Error() != "exit status 9" {
			t.Errorf("os/exec got %v", err)
		}
	})
	t.Run("a worker", func(t *testing.T) {
		attr := &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Setpgid: true}}
		pid, err := ourChildren.fork("/bin/sh", []string{"sh", "-c", "exit 9"}, attr)
		if err != nil {
			t.Fatal(err)
		}
		await(t, "it has ended", isZombie(pid))
		if ourChildren.reapOrphan(pid, own) {
			t.Error("reaped")
		}
		if got := exitStatusOf(ourChildren.reap(pid)); got.code != 9 {
			t.Errorf("it %v", got)
		}
		wantNoChildren(t)
	})
}

// What a worker leaves behind is ours to reap, and no zombie of it stays.
func TestOrphansAreReaped(t *testing.T) {
	reaping(t)
	records := make(chan printed, 10)
	l := shell(t, "setsid sh -c 'echo $$; exec sleep 1000' & "+ready+"wait")
	l.logger = logInto(records)
	p := startWorker(t, l)
	orphan := watchPid(t, nextPid(t, records))
	p.kill()
	<-p.done()
	if orphan.ended(0) {
		t.Fatal("the orphan died with the worker; it is no orphan")
	}
	killStrays(t, []string{fmt.Sprint(orphan.pid)})
	await(t, "the orphan has no entry in /proc", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", orphan.pid))
		return os.IsNotExist(err)
	})
}

// While a worker is forked, which takes as long as the machine likes, requests go on, also where Go has one
// processor: here the child stands still until a goroutine sees to it.
func TestForkLeavesAProcessor(t *testing.T) {
	needRoot(t, "makes a control group")
	mount, _, err := groupMount()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(mount, fmt.Sprintf("fpmd-test-fork-%d", os.Getpid()))
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dir.Close()
		await(t, "the group is removed", func() bool { return os.Remove(path) == nil })
	})
	if err := writeGroup(path, "cgroup.freeze", "1"); err != nil {
		t.Fatal(err)
	}
	thaw := exec.Command("sh", "-c", "sleep 5; echo 0 >"+path+"/cgroup.freeze") // or a failure would last for ever
	if err := thaw.Start(); err != nil {
		t.Fatal(err)
	}
	defer thaw.Wait()
	defer thaw.Process.Kill()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var ran, over atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() { // ends when the child is there, or was
		for ; !over.Load(); time.Sleep(time.Millisecond) {
			if b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs")); len(b) > 0 {
				frozen, _ := os.ReadFile(filepath.Join(path, "cgroup.freeze"))
				ran.Store(string(frozen) == "1\n")
				_ = writeGroup(path, "cgroup.freeze", "0")
				return
			}
		}
	})
	pid, err := ourChildren.fork("/bin/true", []string{"true"}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Setpgid: true, UseCgroupFD: true, CgroupFD: int(dir.Fd())}})
	over.Store(true)
	if err != nil {
		t.Fatal(err)
	}
	if !ran.Load() {
		t.Error("until the fork was over, nothing ran")
	}
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("afterwards Go has %d processors, want 1", n)
	}
	wg.Wait()
	ourChildren.reap(pid)
}
