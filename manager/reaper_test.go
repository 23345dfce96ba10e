package manager

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

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
