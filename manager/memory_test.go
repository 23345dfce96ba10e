package manager

import (
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
)

// A worker beyond max_memory is due for replacement; one that has ended is not weighed by who
// has been given its number.
func TestWeigh(t *testing.T) {
	p := newPool(&Manager{log: slog.New(slog.NewTextHandler(io.Discard, nil))}, &PoolConfig{MaxMemory: 4 << 10})
	g := p.newGeneration(p.config())
	weighed := func(proc *process) string {
		p.mu.Lock()
		w := g.newWorkerLocked()
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
