package manager

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A worker beyond max_memory is due for replacement; one that has ended is not weighed by who
// has been given its number.
func TestWeigh(t *testing.T) {
	p := newPool(&Manager{log: slog.New(slog.NewTextHandler(io.Discard, nil))}, &PoolConfig{MaxMemory: 4 << 10})
	g := p.newGeneration(p.config())
	weighed := func(proc *process) string {
		p.mu.Lock()
		w := g.newWorkerLocked("")
		w.proc = proc
		p.mu.Unlock()
		p.weigh()
		p.mu.Lock()
		defer p.mu.Unlock()
		close(w.gone)
		return w.due
	}
	proc := startWorker(t, shell(t, ready+"sleep 1000; exit"))
	if due, want := weighed(proc), "max_memory = 4KiB: it has "; !strings.HasPrefix(due, want) {
		t.Errorf("due because of %q, want %q", due, want)
	}
	if due := weighed(&process{pid: os.Getpid(), reaped: true}); due != "" {
		t.Errorf("due because of %q, which is a stranger's", due)
	}
	p.wg.Wait()
}

// A worker of a generation that was replaced, and is kept or finishes what it has, has the limit that it was
// started with, whatever the next one has.
func TestWeighByItsOwnLimit(t *testing.T) {
	const little = 4 << 10
	for _, tt := range []struct {
		its, next int64
		due       bool
	}{{0, little, false}, {little, 0, true}} {
		p := newPool(&Manager{log: slog.New(slog.NewTextHandler(io.Discard, nil))}, &PoolConfig{MaxMemory: tt.its})
		g := p.newGeneration(p.config())
		p.cfg.Store(&PoolConfig{MaxMemory: tt.next})
		p.mu.Lock()
		w := g.newWorkerLocked("")
		w.proc = startWorker(t, shell(t, ready+"sleep 1000; exit"))
		p.mu.Unlock()
		p.weigh()
		p.mu.Lock()
		if due := w.due != ""; due != tt.due {
			t.Errorf("of limit %d, when the next one has %d: due because of %q", tt.its, tt.next, w.due)
		}
		close(w.gone)
		p.mu.Unlock()
		p.wg.Wait()
	}
}

// What workers share counts by their part of it; where the kernel does not say how large that
// is, not at all; and while all of it is not too much, nobody asks.
func TestMemoryOf(t *testing.T) {
	page := int64(os.Getpagesize())
	const rollup = "55d5-7ffe ---p 00000000 00:00 0  [rollup]\nRss:  900 kB\nPss:  120 kB\nPss_Dirty:  9 kB\n"
	for name, tt := range map[string]struct {
		statm, rollup string // "": a folder, which can't be read
		enough, want  int64
		err           error
	}{
		"little":                    {"500 10 4 1 0 9 0\n", rollup, 10 * page, 10 * page, nil},
		"shared by many":            {"500 100 90 1 0 9 0\n", rollup, 10 * page, 120 << 10, nil},
		"it is not told how many":   {"500 100 70 1 0 9 0\n", "", 10 * page, 30 * page, syscall.EISDIR},
		"nothing is told":           {"", "", 10 * page, 0, syscall.EISDIR},
		"it has just become zombie": {"0 0 0 0 0 0 0\n", "", 10 * page, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, content := range map[string]string{"statm": tt.statm, "smaps_rollup": tt.rollup} {
				path := filepath.Join(dir, file)
				err := os.WriteFile(path, []byte(content), 0o600)
				if content == "" {
					err = errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if has, err := memoryOf(dir, tt.enough); has != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("%d bytes, %v; want %d, %v", has, err, tt.want, tt.err)
			}
		})
	}
}

// A worker of another user is held to max_memory where root may not look into it, too, as in a
// container; that is said once.
func TestWeighWithoutPtrace(t *testing.T) {
	if os.Geteuid() != 0 {
		return // only root has workers of another user
	}
	var said strings.Builder
	p := newPool(&Manager{log: slog.New(slog.NewTextHandler(&said, nil))}, &PoolConfig{MaxMemory: 4 << 10})
	g := p.newGeneration(p.config())
	var workers []*worker
	for range 2 {
		proc := startWorker(t, shell(t, ready+"sleep 1000; exit"))
		p.mu.Lock()
		w := g.newWorkerLocked("")
		w.proc = proc
		workers = append(workers, w)
		p.mu.Unlock()
	}
	withoutPtrace(t, p.weigh)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range workers {
		if want := "max_memory = 4KiB: it has "; !strings.HasPrefix(w.due, want) {
			t.Errorf("due because of %q, want %q", w.due, want)
		}
		close(w.gone)
	}
	if n := strings.Count(said.String(), "smaps_rollup: permission denied"); n != 1 {
		t.Errorf("said %d times, want once:\n%s", n, said.String())
	}
}

// withoutPtrace runs f on a thread that may not look into processes of others.
func withoutPtrace(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all, fewer [2]unix.CapUserData
	if err := unix.Capget(&header, &all[0]); err != nil {
		t.Fatal(err)
	}
	fewer = all
	for i := range fewer {
		fewer[i].Effective = 0
	}
	if err := unix.Capset(&header, &fewer[0]); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Capset(&header, &all[0]); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}
