package manager

import (
	"cmp"
	"context"
	"errors"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
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
	checks := time.NewTicker(cmp.Or(m.opts.CheckEvery, checkEvery))
	defer checks.Stop()
	checkers := make(map[*pool]*checker)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for most := 0; ; {
		select {
		case <-checks.C:
			now := make(map[*pool]*checker) // of the pools that there are
			for _, p := range m.andLeaving() {
				now[p] = cmp.Or(checkers[p], &checker{pool: p})
				now[p].check(time.Now())
			}
			checkers = now
			continue
		case now := <-look.C:
			for _, p := range m.andLeaving() {
				p.look(now)
			}
			continue
		case <-t.C:
		case <-ctx.Done():
			return
		}
		most = m.trim(most)
		for _, p := range m.andLeaving() {
			p.weigh()
			p.tellLimits()
			p.letGo()
		}
		m.opts.Logs.sweep(time.Now())
		if m.reload.TryLock() { // else it is a reload's, or the stop's; the next time, then
			if !m.stopped {
				m.restore()
				m.forgetRemoved()
			}
			m.reload.Unlock()
		}
	}
}

// forgetRemoved bounds what is kept of pools that are gone. m.reload is held, so that none is coming.
func (m *Manager) forgetRemoved() {
	pools := m.andLeaving()
	m.events.prune(func(name string) bool { return poolNamed(pools, name) == nil })
}

// trim gives memory back to the system when most of a crowd of connections has
// gone. The runtime alone would take minutes: next to nothing is allocated
// while nobody asks, so there is no collection. most is the size of the crowd so
// far, and is returned brought up to date.
func (m *Manager) trim(most int) int {
	conns, top := 0, 0
	for _, p := range m.andLeaving() {
		now, most := p.connections()
		conns += now
		top += most
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
// without which nobody connects. What it can't make it complains of once. m.reload is held.
func (m *Manager) restore() {
	dir := m.cfg.Supervisor.RuntimeDir
	if missing(m.socks) || !m.holdsRuntimeDir() {
		m.lock.Close()
		m.lock = nil
		err := m.claim(dir)
		if m.complains(dir, err) {
			m.log.Error("runtime_dir was removed", "cause", err, "next", "try again until it works; no worker starts until then")
		}
		if err == nil {
			m.log.Warn("runtime_dir was removed", "runtime_dir", dir, "next", "made again")
		}
	}
	if l := m.control; l != nil && missing(l.addr.Address) {
		again, err := m.listenControl()
		if m.complains(l.addr.Address, err) {
			m.log.Error("control socket was removed", "cause", err, "next", "try again until it works")
		}
		if err == nil {
			m.control = again
			l.Close()
			m.serveControl(again)
		}
	}
	for _, p := range m.pools.all() {
		for i, l := range p.listeners {
			if l.addr.Network != "unix" {
				continue
			}
			if !missing(l.addr.Address) {
				delete(m.complaints, l.addr.Address)
				continue
			}
			if l.unit {
				if m.complains(l.addr.Address, errSocketUnits) {
					p.log.Error("socket was removed", "listen", l.addr.Address, "cause", errSocketUnits, "next", "nobody new connects until its socket unit is restarted")
				}
				continue
			}
			again, err := listen(l.addr, p.front.Load())
			if m.complains(l.addr.Address, err) {
				p.log.Error("socket was removed", "listen", l.addr.Address, "cause", err, "next", "try again until it works; nobody new connects until then")
			}
			if err != nil {
				continue
			}
			m.forget(l.stored)
			m.store(again)
			p.listeners[i] = again
			p.server.Load().Retire(l.Listener) // nobody finds it any more; who waits in its backlog is still taken
			m.serve(p, again)
			p.log.Warn("socket was removed", "listen", l.addr.Address, "next", "made again")
		}
	}
}

// errSocketUnits is why fpmd does not make a socket again.
var errSocketUnits = errors.New("systemd has made it, for a socket unit")

// complains reports whether err, about path, is another than the last time. What the system
// says counts, not the words around it, which may have a name made at random.
func (m *Manager) complains(path string, err error) bool {
	if err == nil {
		delete(m.complaints, path)
		return false
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		err = errno
	}
	if m.complaints[path] == err.Error() {
		return false
	}
	if m.complaints == nil {
		m.complaints = make(map[string]string)
	}
	m.complaints[path] = err.Error()
	return true
}

func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}
