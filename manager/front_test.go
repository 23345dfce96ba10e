package manager

import (
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// What a reload can't do to a socket unit's listener it refuses: leave its address, or open it to everybody.
func TestRefrontOfSocketUnits(t *testing.T) {
	dir := t.TempDir()
	at := unixAt(filepath.Join(dir, "unit.sock"))
	unit, _ := unitSocket(t, "x.socket", "unix", at.Address)
	named, _ := unitSocket(t, "a", "tcp", "0.0.0.0:0")
	clients := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	pool := listenPool("a", at)
	pool.AllowedClients = clients
	m := heirOf(t, filepath.Join(dir, "run"), io.Discard, []*os.File{unit, named}, pool)
	defer die(m)
	for _, tt := range []struct {
		what    string
		clients []netip.Prefix
		listen  Address
		want    string
	}{
		{"without allowed_clients", nil, at, "want allowed_clients"},
		{"with another address", clients, unixAt(filepath.Join(dir, "other.sock")), "a socket unit listens there"},
	} {
		next := listenPool("a", tt.listen)
		next.AllowedClients = tt.clients
		if r, err := m.refront(m.pools.all()[0], next); r != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, %v, want an error with %q", tt.what, r, err, tt.want)
		}
	}
	if !missing(filepath.Join(dir, "other.sock")) {
		t.Error("what was refused has left a socket")
	}
}

// systemd keeps the sockets that a reload has bound, and no more those that it has left; who is started next has their clients.
func TestRefrontIsStored(t *testing.T) {
	dir := t.TempDir()
	store := newFakeStore(t)
	stays, goes, comes := unixAt(filepath.Join(dir, "stays")), unixAt(filepath.Join(dir, "goes")), unixAt(filepath.Join(dir, "comes"))
	m := heirOf(t, filepath.Join(dir, "run"), io.Discard, nil, listenPool("a", stays, goes))
	r, err := m.refront(m.pools.all()[0], listenPool("a", stays, comes))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.commit(); err != nil {
		t.Fatal(err)
	}
	store.read()
	var kept []string
	for name := range store.kept {
		kept = append(kept, parseStored(name).address)
	}
	slices.Sort(kept)
	if want := []string{comes.Address, stays.Address}; !slices.Equal(kept, want) {
		t.Errorf("systemd keeps %q, want %q", kept, want)
	}
	if !missing(goes.Address) {
		t.Error("the socket that was left has its name still")
	}
	die(m)
	m.pools.all()[0].server.Load().Close()
	if len(m.pools.all()[0].listeners) != 2 {
		t.Errorf("%d listeners, want 2", len(m.pools.all()[0].listeners))
	}
	m.serving.Wait()
}

// A socket that somebody has put in the place of ours is left alone, and one that can't be as it is to be is an error, which
// the next reload meets again.
func TestRefrontAdjusts(t *testing.T) {
	dir := t.TempDir()
	at := unixAt(filepath.Join(dir, "a.sock"))
	m := heirOf(t, filepath.Join(dir, "run"), io.Discard, nil, listenPool("a", at))
	defer die(m)
	p := m.pools.all()[0]
	commit := func(mode os.FileMode) error {
		next := listenPool("a", at)
		next.ListenMode = mode
		r, err := m.refront(p, next)
		if err != nil {
			t.Fatal(err)
		}
		return r.commit()
	}
	mode := func() os.FileMode {
		fi, err := os.Stat(at.Address)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Mode().Perm()
	}
	if err := commit(0o640); err != nil || mode() != 0o640 {
		t.Errorf("%v; mode %v, want 0640", err, mode())
	}
	if err := os.Remove(at.Address); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", at.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	was := mode()
	if err := commit(0o606); err != nil || mode() != was {
		t.Errorf("%v; the other socket has mode %v, and had %v", err, mode(), was)
	}
	p.listeners[0].Close() // so that its backlog can't be changed
	for range 2 {
		if err := commit(0o604); err == nil || !strings.Contains(err.Error(), at.Address) {
			t.Errorf("a socket that can't be changed: %v", err)
		}
	}
}

// A server that has no connection is let go at any moment of a change, and never with the listener that it was to release.
func TestRefrontBesideLetGo(t *testing.T) {
	dir := t.TempDir()
	at := unixAt(filepath.Join(dir, "a.sock"))
	const changes = 300
	roomy := func(n int) *PoolConfig { // for who is not accepted yet, too
		cfg := listenPool("a", at)
		cfg.MaxConnections, cfg.ListenBacklog = changes+n, 2*changes
		return cfg
	}
	m := heirOf(t, filepath.Join(dir, "run"), io.Discard, nil, roomy(0))
	p := m.pools.all()[0]
	m.serve(p, p.listeners[0])
	over := make(chan struct{})
	var upkeep sync.WaitGroup
	upkeep.Go(func() { // ends with over
		for {
			select {
			case <-over:
				return
			default:
				p.letGo()
			}
		}
	})
	for n := range changes {
		r, err := m.refront(p, roomy(1+n))
		if err == nil {
			err = r.commit()
		}
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("unix", at.Address)
		if err != nil {
			t.Fatalf("after change %d: %v", n, err)
		}
		c.Close()
	}
	close(over)
	upkeep.Wait()
	p.letGo()
	for _, s := range p.servers() {
		s.Close()
	}
	m.serving.Wait()
	die(m)
}
