package manager

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// weigh looks at the memory of workers that have a limit, each that of its own generation. One beyond max_memory is due
// for replacement; one beyond max_memory_hard is killed, and the requests that it has fail.
func (p *pool) weigh() {
	for _, w := range p.workersOf(nil) {
		cfg := w.gen.cfg
		limit := cmp.Or(cfg.MaxMemory, cfg.MaxMemoryHard)
		if limit == 0 {
			continue
		}
		p.mu.Lock()
		proc := w.proc
		p.mu.Unlock()
		if proc == nil {
			continue
		}
		has, err := memoryOf(procDir(proc.pid), limit)
		switch {
		case proc.isReaped(): // it may have been a stranger's, that was given the number
			continue
		case err != nil:
			next := "count what a worker has to itself, and nothing that it shares; CAP_SYS_PTRACE would do for the whole"
			if has == 0 {
				next = "no worker is held to max_memory; it takes a /proc in which fpmd sees its workers"
			}
			p.mgr.rough.Do(func() { p.mgr.log.Warn("memory can't be measured exactly", "cause", err, "next", next) })
		}
		switch {
		case has <= limit:
		case cfg.MaxMemoryHard > 0 && has > cfg.MaxMemoryHard:
			cause := fmt.Sprintf("max_memory_hard = %s: it has %s", formatSize(cfg.MaxMemoryHard), formatSize(has>>20<<20))
			w.tellMemory(cause)
			w.retire(cause)
			w.kill()
		case cfg.MaxMemory > 0 && has > cfg.MaxMemory:
			p.mu.Lock()
			if w.due == "" {
				w.due = fmt.Sprintf("max_memory = %s: it has %s", formatSize(cfg.MaxMemory), formatSize(has>>20<<20))
				w.gen.kick()
			}
			p.mu.Unlock()
		}
	}
}

// memoryOf is how much memory the process has whose folder in /proc is dir, in bytes: its
// share of what it has in common with others, and all of the rest. Up to enough, what the
// kernel has at hand will do, which counts all that is shared: the exact sum takes it
// milliseconds. Where that is denied, it is what the process has to itself, and why. 0: it is gone.
func memoryOf(dir string, enough int64) (int64, error) {
	resident, shared, err := residentOf(dir)
	if err != nil || resident <= enough {
		return resident, err
	}
	rollup, err := os.ReadFile(dir + "/smaps_rollup")
	if errors.Is(err, unix.ESRCH) { // a zombie
		return 0, nil
	}
	for line := range bytes.Lines(rollup) {
		if rest, ok := bytes.CutPrefix(line, []byte("Pss:")); ok {
			if fields := bytes.Fields(rest); len(fields) > 0 {
				kib, _ := strconv.ParseInt(string(fields[0]), 10, 64) // the kernel writes numbers
				return kib << 10, nil
			}
		}
	}
	if err == nil {
		err = fmt.Errorf("%s/smaps_rollup has no Pss", dir)
	}
	return resident - shared, err
}

// residentOf is what a process has in memory, in bytes, and how much of that others may have, too.
func residentOf(dir string) (resident, shared int64, err error) {
	statm, err := os.ReadFile(dir + "/statm")
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscan(string(statm), new(int64), &resident, &shared); err != nil {
		return 0, 0, fmt.Errorf("%s/statm: %w", dir, err)
	}
	page := int64(os.Getpagesize())
	return resident * page, shared * page, nil
}

// procDir is where the kernel tells of a process.
func procDir(pid int) string { return fmt.Sprintf("/proc/%d", pid) }
