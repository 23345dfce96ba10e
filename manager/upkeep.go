package manager

import (
	"context"
	"errors"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

const (
	upkeepEvery = 5 * time.Second
	// trimConns is how many connections must have gone for their memory to be
	// worth a collection: some MiB.
	trimConns = 1000
)

// upkeep looks after what nobody else comes by, until ctx ends.
func (m *Manager) upkeep(ctx context.Context) {
	t := time.NewTicker(upkeepEvery)
	defer t.Stop()
	for most := 0; ; {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		most = m.trim(most)
		m.restore()
	}
}

// trim gives memory back to the system when most of a crowd of connections has
// gone. The runtime alone would take minutes: next to nothing is allocated
// while nobody asks, so there is no collection. most is the size of the crowd so
// far, and is returned brought up to date.
func (m *Manager) trim(most int) int {
	conns, top := 0, 0
	for _, p := range m.pools {
		st := p.server.Stats()
		conns += st.Conns
		top += st.Most
	}
	most = max(most, top)
	if most-conns >= trimConns && conns < most/2 {
		runtime.GC() // whose finalizers let go of what the next one finds
		debug.FreeOSMemory()
		most = conns
	}
	return most
}

// restore makes again what somebody has removed while we run: the runtime
// folder, without which no worker starts, and the names of Unix sockets,
// without which nobody connects.
func (m *Manager) restore() {
	if !m.reload.TryLock() { // by a reload, or the stop; the next time, then
		return
	}
	defer m.reload.Unlock()
	if m.stopped {
		return
	}
	dir := m.cfg.Supervisor.RuntimeDir
	if missing(m.socks) || missing(m.lock.Name()) {
		m.lock.Close()
		if err := m.claim(dir); err != nil {
			m.log.Error("runtime_dir was removed", "cause", err, "next", "try again; no worker starts until then")
			return
		}
		m.log.Warn("runtime_dir was removed", "runtime_dir", dir, "next", "made again")
	}
	for _, p := range m.pools {
		for i, l := range p.listeners {
			if l.addr.Network != "unix" || !missing(l.addr.Address) {
				continue
			}
			again, err := listen(l.addr, p.config())
			if err != nil {
				p.log.Error("socket was removed", "listen", l.addr.Address, "cause", err, "next", "try again; nobody new connects until then")
				continue
			}
			p.listeners[i] = again
			l.Close() // nobody finds it any more; who has connected stays
			m.serve(p, again)
			p.log.Warn("socket was removed", "listen", l.addr.Address, "next", "made again")
		}
	}
}

func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}
