package manager

import (
	"context"
	"errors"
	"fmt"
	"net"
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
	// logOfPool is that of where requests are told of.
	logOfPool = []string{"access_log"}
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

// A Front is where a pool can be asked.
type Front struct {
	Name       string
	Listen     []Address
	ScriptName string
}

// Fronts are those of all pools now, in the order of the configuration. Any goroutine may ask at any time.
func (m *Manager) Fronts() (fs []Front) {
	for _, p := range m.pools.all() {
		fs = append(fs, Front{p.name, p.front.Load().Listen, p.config().ScriptName})
	}
	return fs
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
	p       *pool
	cfg     *PoolConfig
	server  *fcgi.Server // for connections that come from then on; nil: as before
	stay    []*listener  // of those that there are, in the end
	fresh   []*listener  // bound, and served in the end
	relogs  bool         // requests are told of elsewhere from then on:
	access  *accessLog   // there
	arrives bool         // the pool is a new one, which takes
	takes   []taking     // of others
}

// refront prepares the front that cfg says for p; nil: it has it. m.reload is held.
func (m *Manager) refront(p *pool, cfg *PoolConfig) (_ *refront, err error) {
	changes := p.changes(cfg)
	if !slices.ContainsFunc(changes, Change.ofFront) {
		return nil, nil
	}
	r := &refront{p: p, cfg: cfg, relogs: anyOf(changes, logOfPool)}
	defer func() {
		if err != nil {
			r.undo()
		}
	}()
	if anyOf(changes, grantsOfPool) {
		r.server = p.newServer(cfg)
	}
	for _, l := range p.listeners {
		stays := l.named || slices.Contains(cfg.Listen, l.addr)
		switch {
		case l.unit && !stays:
			return nil, fmt.Errorf("pool.%s.listen: %q is missing: a socket unit listens there for it: want systemctl stop of that, and a restart of fpmd", cfg.Name, l.addr.Address)
		case stays:
			if err := openToAll(cfg, l); err != nil {
				return nil, err
			}
			r.stay = append(r.stay, l)
		}
	}
	if err := r.bind(); err != nil {
		return nil, err
	}
	if r.relogs {
		if r.access, err = m.opts.Logs.access(cfg, m.cfg.Supervisor); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// openToAll refuses a socket unit's l that others than this machine reach, where cfg does not say who may.
func openToAll(cfg *PoolConfig, l *listener) error {
	if l.unit && l.addr.Network != "unix" && !l.addr.loopback() && len(cfg.AllowedClients) == 0 {
		return errOpenToAll(cfg, l.addr)
	}
	return nil
}

// bind binds what r's pool neither has already nor takes.
func (r *refront) bind() error {
	cfg, m := r.cfg, r.p.mgr
	for _, a := range cfg.Listen {
		if slices.ContainsFunc(r.stay, func(l *listener) bool { return l.addr == a }) || slices.ContainsFunc(r.takes, func(t taking) bool { return t.l.addr == a }) {
			continue
		}
		l, err := listen(a, cfg)
		if other, at := m.listensAt(a); err != nil && other != nil {
			err = fmt.Errorf("pool.%s.listen: %q: pool %s listens at %s until this reload is over: want another address first, in a reload of its own, or a restart of fpmd", cfg.Name, a.Address, other.name, at)
		}
		if err != nil {
			return err
		}
		r.fresh = append(r.fresh, l)
	}
	return nil
}

// listensAt is the pool that has a, or another address with the same port, and that address; nil: none has.
func (m *Manager) listensAt(a Address) (*pool, Address) {
	for _, p := range m.pools.all() {
		for _, l := range p.listeners {
			if l.addr == a || a.Network == "tcp" && l.addr.Network == "tcp" && portOf(l.addr) == portOf(a) {
				return p, l.addr
			}
		}
	}
	return nil, a
}

func portOf(a Address) string {
	_, port, _ := net.SplitHostPort(a.Address) // which the configuration has seen to
	return port
}

// undo gives up what refront has done. Of nil, there is nothing, and so it is with commit.
func (r *refront) undo() {
	if r == nil {
		return
	}
	for _, l := range r.fresh {
		l.close()
	}
	r.p.mgr.opts.Logs.release(r.access)
	if r.arrives {
		m := r.p.mgr
		m.draining.Go(func() { r.p.stop(m.hurry, causeRemoved) }) // ends with what workers there are, whether they serve or have not come up
	}
}

// commit has the pool show its new front. Who has connected to an address that it leaves, and waits there, is still taken.
// An error is of a socket that can't have the owner, mode or backlog that it is to have: it stays as it was, and so do these keys.
// m.reload is held.
func (r *refront) commit() error {
	switch {
	case r == nil:
		return nil
	case r.arrives:
		return r.commitArrival()
	}
	p, m := r.p, r.p.mgr
	before, shown := p.server.Load(), r.cfg
	gone := slices.DeleteFunc(slices.Clone(p.listeners), func(l *listener) bool { return slices.Contains(r.stay, l) })
	var errs []error
	for _, l := range r.stay {
		if err := l.adjust(r.cfg); err != nil {
			errs = append(errs, r.stays(l, err))
		}
	}
	if len(errs) > 0 {
		shown = r.cfg.dressedAs(p.front.Load())
	}
	p.listeners = slices.Concat(r.stay, r.fresh)
	p.front.Store(shown)
	if r.relogs {
		m.opts.Logs.release(p.access.Swap(r.access))
	}
	if r.server != nil {
		p.server.Store(r.server)
		for _, l := range r.stay {
			before.Release(l.Listener)
			m.serve(p, l)
		}
	}
	for _, l := range gone {
		l.unlink()
		m.forget(l.stored) // first: systemd has room for so many
		before.Retire(l.Listener)
		p.log.Info("listens no more", "listen", l.addr.Address)
	}
	for _, l := range r.fresh {
		m.store(l)
		m.serve(p, l)
		p.log.Info("listens", "listen", l.addr.Address)
	}
	if r.server != nil { // now: letGo, which ends it with its last connection, would close listeners that are not released yet
		p.mu.Lock()
		p.formerly = append(p.formerly, before)
		p.mu.Unlock()
	}
	return r.tellNotAdjusted(errs)
}

// dressedAs is cfg with the owner, mode and backlog of other, which its sockets have: so that the next reload tries again.
func (cfg *PoolConfig) dressedAs(other *PoolConfig) *PoolConfig {
	c := *cfg
	c.ListenMode, c.ListenOwner, c.ListenGroup, c.ListenBacklog = other.ListenMode, other.ListenOwner, other.ListenGroup, other.ListenBacklog
	return &c
}

// stays is why l, whose owner, mode and backlog could not be changed because of err, has its old ones.
func (r *refront) stays(l *listener, err error) error {
	return fmt.Errorf("pool.%s.listen: %q stays as it was: %w", r.p.name, l.addr.Address, err)
}

func (r *refront) tellNotAdjusted(errs []error) error {
	err := errors.Join(errs...)
	if err != nil {
		r.p.log.Error("socket not changed", "cause", err, "next", "the next reload tries again")
	}
	return err
}

// adjust gives l the backlog, and a Unix socket the owner and mode, that cfg says; of a socket unit, nothing.
func (l *listener) adjust(cfg *PoolConfig) error {
	if l.unit {
		return nil
	}
	err := setBacklog(l.Listener.(syscall.Conn), cfg.ListenBacklog)
	if err == nil && l.stands() { // else it is made again, or another's
		_, err = dress(l.addr.Address, cfg)
	}
	return err
}
