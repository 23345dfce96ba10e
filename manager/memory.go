package manager

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// weigh looks at the memory of workers that have a limit. One beyond max_memory is due for
// replacement; one beyond max_memory_hard is killed, and the requests that it has fail.
func (p *pool) weigh() {
	cfg := p.config()
	limit := cfg.MaxMemory
	if limit == 0 {
		limit = cfg.MaxMemoryHard
	}
	if limit == 0 {
		return
	}
	for _, w := range p.workersOf(nil) {
		p.mu.Lock()
		proc := w.proc
		p.mu.Unlock()
		if proc == nil {
			continue
		}
		has := memoryOf(proc.pid, limit)
		switch {
		case has <= limit:
		case proc.isReaped(): // it may have been a stranger's, that was given the number
		case cfg.MaxMemoryHard > 0 && has > cfg.MaxMemoryHard:
			cause := fmt.Sprintf("max_memory_hard = %s: it has %s", formatSize(cfg.MaxMemoryHard), formatSize(has>>20<<20))
			w.log.Warn("worker takes too much memory", "cause", cause, "next", "kill it")
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

// memoryOf is how much memory a process has, in bytes: its share of what it has in common
// with others, and all of the rest. Up to enough, what the kernel has at hand
// will do, which counts all that is shared: the exact sum takes it milliseconds. 0: it is gone.
func memoryOf(pid int, enough int64) int64 {
	if resident := residentOf(pid); resident <= enough {
		return resident
	}
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(rollup) {
		if rest, ok := bytes.CutPrefix(line, []byte("Pss:")); ok {
			if fields := bytes.Fields(rest); len(fields) > 0 {
				kib, _ := strconv.ParseInt(string(fields[0]), 10, 64) // the kernel writes numbers
				return kib << 10
			}
		}
	}
	return 0
}

// residentOf is what a process has in memory, in bytes, with all that it shares with others. 0: it is gone.
func residentOf(pid int) int64 {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	fields := bytes.Fields(statm)
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(string(fields[1]), 10, 64) // the kernel writes numbers
	return pages * int64(os.Getpagesize())
}
