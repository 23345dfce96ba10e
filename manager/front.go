package manager

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"fpmd/fcgi"
)

// What a pool shows to the front web server: its listeners, and what it grants those who connect. A reload changes it when
// everything else of the pool has worked; connections that are open keep what they began with.

var (
	// sizesOfPool are the keys that count without new workers.
	sizesOfPool = []string{"workers", "start_workers", "min_spare_workers", "max_spare_workers", "idle_timeout"}
	// listenOfPool are those of the listeners, and
	listenOfPool = []string{"listen", "listen_mode", "listen_owner", "listen_group", "listen_backlog"}
	// grantsOfPool those of what connections get.
	grantsOfPool = []string{"allowed_clients", "max_connections", "client_timeout", "buffer_request", "buffer_response", "buffer_files", "max_environ"}
)

// newServer is what p answers connections with that come while cfg counts.
func (p *pool) newServer(cfg *PoolConfig) *fcgi.Server {
	return &fcgi.Server{
		Handler:      p.serve,
		MaxParams:    int(cfg.MaxEnviron),
		BodyMemory:   int(cfg.BufferRequest),
		BodyFile:     cfg.BufferFiles,
		AnswerBuffer: int(cfg.BufferResponse),
		AnswerFile:   cfg.BufferFiles,
		SpoolDir:     p.mgr.socks,
		PeerTimeout:  cfg.ClientTimeout,
		Hurry:        p.crowded,
		MaxConns:     cfg.MaxConnections,
		Logger:       p.log,
		Allow:        allowed(cfg.AllowedClients),
	}
}

// servers are the one that takes new connections, and those before it that have some left.
func (p *pool) servers() []*fcgi.Server {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]*fcgi.Server{p.server.Load()}, p.formerly...)
}

// connections counts those that are open, and how many there were at once at most since it was last asked.
func (p *pool) connections() (now, most int) {
	for _, s := range p.servers() {
		st := s.Stats()
		now += st.Conns
		most += st.Most
	}
	return now, most
}

// letGo ends the servers that have no connection left.
func (p *pool) letGo() {
	for _, s := range p.servers()[1:] {
		if s.Stats().Conns > 0 {
			continue
		}
		p.mu.Lock()
		p.formerly = slices.DeleteFunc(p.formerly, func(f *fcgi.Server) bool { return f == s })
		p.mu.Unlock()
		p.mgr.serving.Go(func() { // ends within the time for a backlog
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_ = s.Shutdown(ctx) // there is nobody whom it could be too late for
		})
	}
}

// A refront is what a reload is about to make of a pool's front: all that can fail has been done.
type refront struct {
	p      *pool
	cfg    *PoolConfig
	server *fcgi.Server // for connections that come from then on; nil: as before
	stay   []*listener  // of those that there are, in the end
	moved  []*listener  // the same, by descriptors that server is to accept from; as stay without server
	fresh  []*listener  // bound, and served in the end
}

// refront prepares the front that cfg says for p; nil: it has it. m.reload is held.
func (m *Manager) refront(p *pool, cfg *PoolConfig) (_ *refront, err error) {
	changes := p.changes(cfg)
	regrants := anyOf(changes, grantsOfPool)
	if !regrants && !anyOf(changes, listenOfPool) {
		return nil, nil
	}
	r := &refront{p: p, cfg: cfg}
	defer func() {
		if err != nil {
			r.undo()
		}
	}()
	if regrants {
		r.server = p.newServer(cfg)
	}
	for _, l := range p.listeners {
		if l.unit || slices.Contains(cfg.Listen, l.addr) {
			r.stay = append(r.stay, l)
		}
	}
	for _, l := range r.stay {
		if r.server != nil {
			if l, err = l.dup(); err != nil {
				return nil, fmt.Errorf("pool.%s.listen: %q: %w", cfg.Name, l.addr.Address, err)
			}
		}
		r.moved = append(r.moved, l)
	}
	for _, a := range cfg.Listen {
		if slices.ContainsFunc(r.stay, func(l *listener) bool { return l.addr == a }) {
			continue
		}
		if other := m.listensAt(a); other != nil {
			return nil, fmt.Errorf("pool.%s.listen: %q: pool %s listens there until this reload is over: want two reloads, the first without it", cfg.Name, a.Address, other.name)
		}
		l, err := listen(a, cfg)
		if err != nil {
			return nil, err
		}
		r.fresh = append(r.fresh, l)
	}
	return r, nil
}

// listensAt is the pool that has a listener at a, or nil.
func (m *Manager) listensAt(a Address) *pool {
	i := slices.IndexFunc(m.pools, func(p *pool) bool {
		return slices.ContainsFunc(p.listeners, func(l *listener) bool { return l.addr == a })
	})
	if i < 0 {
		return nil
	}
	return m.pools[i]
}

// undo gives up what refront has done. Of nil, there is nothing, and so it is with commit.
func (r *refront) undo() {
	if r == nil {
		return
	}
	for _, l := range r.fresh {
		l.close()
	}
	if r.server != nil {
		for _, l := range r.moved {
			l.Close()
		}
	}
}

// commit has the pool show its new front. Who has connected to an address that it leaves, and waits there, is still taken.
// m.reload is held.
func (r *refront) commit() {
	if r == nil {
		return
	}
	p, m := r.p, r.p.mgr
	before := p.server.Load()
	gone := slices.DeleteFunc(slices.Clone(p.listeners), func(l *listener) bool { return slices.Contains(r.stay, l) })
	p.listeners = slices.Concat(r.moved, r.fresh)
	p.front.Store(r.cfg)
	if r.server != nil {
		p.mu.Lock()
		p.server.Store(r.server)
		p.formerly = append(p.formerly, before)
		p.mu.Unlock()
	}
	for i, l := range r.moved {
		if err := l.adjust(r.cfg); err != nil {
			p.log.Error("socket not changed", "listen", l.addr.Address, "cause", err, "next", "it stays as it was")
		}
		if r.server != nil {
			m.serve(p, l)
			before.Retire(r.stay[i].Listener)
		}
	}
	for _, l := range r.fresh {
		m.store(l)
		m.serve(p, l)
		p.log.Info("listens", "listen", l.addr.Address)
	}
	for _, l := range gone {
		l.unlink()
		m.forget(l.stored)
		before.Retire(l.Listener)
		p.log.Info("listens no more", "listen", l.addr.Address)
	}
}

// dup is l by a descriptor of its own: the socket, its name and its backlog are the same.
func (l *listener) dup() (*listener, error) {
	f, err := l.Listener.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return l, err
	}
	nl, err := net.FileListener(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return l, err
	}
	again := *l
	again.Listener = nl
	if ul, ok := nl.(*net.UnixListener); ok { // which removes no name when it is closed
		again.Listener = unixListener{ul, &net.UnixAddr{Name: l.addr.Address, Net: "unix"}}
	}
	return &again, nil
}

// adjust gives l the backlog, and a Unix socket the owner and mode, that cfg says; of a socket unit, nothing.
func (l *listener) adjust(cfg *PoolConfig) error {
	if l.unit {
		return nil
	}
	err := setBacklog(l.Listener.(syscall.Conn), cfg.ListenBacklog)
	if err == nil && l.addr.Network == "unix" && !missing(l.addr.Address) { // else it is made again
		_, err = dress(l.addr.Address, cfg)
	}
	return err
}
