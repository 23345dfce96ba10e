package manager

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The requests that have ended are never fewer than they were, also when a pool of which they were is removed.
func TestFiguresOfRemovedPools(t *testing.T) {
	dir := t.TempDir()
	m := heirOf(t, filepath.Join(dir, "run"), io.Discard, nil, listenPool("a", unixAt(dir+"/a.sock")), listenPool("b", unixAt(dir+"/b.sock")))
	defer die(m)
	for i, p := range m.pools.all() {
		p.counts[ok].Store(uint64(5 + i))
	}
	a := m.pools.named("a")
	m.part(a)
	for range 2 {
		if f := m.Figures(); f.Requests != 5+6 {
			t.Errorf("%d requests have ended, want 11", f.Requests)
		}
		m.draining.Wait()
	}
	if ps := m.pools.all(); len(ps) != 1 || ps[0].name != "b" {
		t.Errorf("%d pools are left, want b", len(ps))
	}
	if _, err := os.Lstat(dir + "/a.sock"); !os.IsNotExist(err) {
		t.Errorf("the socket of the pool that was removed: %v", err)
	}
}

// Of pools that are gone, no more is kept than of the last keptHistories of them; of those that there are, and of fpmd, all. Who reads
// too late is told what he has missed.
func TestHistoriesOfRemovedPools(t *testing.T) {
	var r record
	f, late := r.follow(time.Time{}, nil), r.follow(time.Time{}, nil)
	r.add(Event{Kind: EventStart})
	r.add(Event{Kind: EventFailing, Pool: "stays"})
	const gone = 3 * keptHistories
	for i := range gone {
		r.add(Event{Kind: EventFailing, Pool: fmt.Sprint("p", i)})
		for events, _ := f.Next(); len(events) > 0; events, _ = f.Next() {
		}
		r.prune(func(pool string) bool { return pool != "stays" })
	}
	if len(r.rings) != keptHistories+2 || len(f.read) > len(r.rings)+1 {
		t.Errorf("%d histories are kept, and %d by who follows, want %d", len(r.rings), len(f.read), keptHistories+2)
	}
	if events, _ := late.Next(); len(events) == 0 || events[0].Kind != EventMissed || events[0].Count != gone-keptHistories {
		t.Errorf("who has not read yet gets %d events, the first of which is %+v, want that %d are missed", len(events), events[:min(len(events), 1)], gone-keptHistories)
	}
	if r.whole().IsZero() {
		t.Error("all is said to be kept")
	}
	for _, pool := range []string{"", "stays", fmt.Sprint("p", gone-1), fmt.Sprint("p", gone-keptHistories)} {
		if !r.knows(pool) {
			t.Errorf("nothing is kept of pool %q", pool)
		}
	}
}

// A pool that a socket unit listens for can't be removed, unless another takes the address; and not even that one, if it would be open to
// everybody there, or if the unit has the pool's name. What a reload prepares takes nothing from anybody, and leaves nothing when it is refused.
func TestRemovedPoolsOfSocketUnits(t *testing.T) {
	dir := t.TempDir()
	at := unixAt(filepath.Join(dir, "unit.sock"))
	unit, _ := unitSocket(t, "x.socket", "unix", at.Address)
	open, port := unitSocket(t, "open.socket", "tcp", "0.0.0.0:0")
	named, _ := unitSocket(t, "c", "unix", filepath.Join(dir, "c.sock"))
	clients := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	b := listenPool("b", port)
	b.AllowedClients = clients
	m := heirOf(t, filepath.Join(dir, "run"), io.Discard, []*os.File{unit, open, named}, listenPool("a", at), b, listenPool("c", unixAt(dir+"/c-too.sock")))
	defer die(m)
	heir := listenPool("heir", port)
	heir.AllowedClients = clients
	for _, tt := range []struct {
		leaves string
		next   *PoolConfig
		want   string
	}{
		{"a", listenPool("heir", unixAt(dir+"/other.sock")), "pool.a is missing: a socket unit listens"},
		{"a", listenPool("heir", at), ""},
		{"b", listenPool("heir", port), "want allowed_clients"},
		{"b", heir, ""},
		{"c", listenPool("heir", unixAt(dir+"/c-too.sock")), "pool.c is missing: a socket unit listens"},
	} {
		p := m.pools.named(tt.leaves)
		n := len(p.listeners)
		r, err := m.arrive(tt.next, []*pool{p})
		if r != nil && r.p.claim.want != [wants]int{} {
			t.Errorf("a pool that does not serve yet wants %v workers of what others have", r.p.claim.want)
		}
		if err == nil {
			err = mayLeave(p, map[string]*refront{"heir": r})
		}
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s leaves, and heir listens at %v: %v, want %q", tt.leaves, tt.next.Listen, err, tt.want)
		}
		r.undo()
		if len(p.listeners) != n {
			t.Errorf("%s has %d listeners after the reload was refused, want %d", tt.leaves, len(p.listeners), n)
		}
	}
	m.draining.Wait()
	m.rations.mu.Lock()
	defer m.rations.mu.Unlock()
	if n := len(m.rations.claims); n != 3 {
		t.Errorf("%d pools have a claim, want the 3 that there are", n)
	}
}

// A pool that was removed starts no worker for nobody, in the place of one that is due; and who comes to it after all, as over a connection that
// was accepted before, finds one there.
func TestRemovedPoolKeepsOne(t *testing.T) {
	for _, pm := range []PM{Static, Dynamic, OnDemand} {
		cfg := PoolConfig{PM: pm, Workers: 3, StartWorkers: 3, MinSpareWorkers: 2, MaxSpareWorkers: 3, MaxAge: time.Minute, IdleTimeout: time.Hour}
		inTown(t, cfg, nil, func(t *testing.T, v *town) {
			v.ask(3, time.Second)
			v.wantOutcomes(map[outcome]int{ok: 3})
			v.wait(10 * time.Second)
			before := v.launched.Load()
			v.set(func() { v.load = time.Hour })
			v.mu.Lock()
			v.left = time.Now()
			v.gen.kick()
			v.mu.Unlock()
			v.wait(10 * time.Second)
			v.wantServing(1)
			came := time.Now()
			v.ask(1, time.Second)
			v.wantOutcomes(map[outcome]int{ok: 1})
			if took := time.Since(came); took > time.Second {
				t.Errorf("%v: who comes after all is answered after %v", pm, took)
			}
			v.wait(5 * time.Minute)
			if n := v.launched.Load() - before; n > 0 {
				t.Errorf("%v: %d workers were started for nobody", pm, n)
			}
		})
	}
}

// A pool that has come up and is not asked yet has no steward: it has no claim on what others have.
func TestArrivalHasNoClaim(t *testing.T) {
	cfg := PoolConfig{PM: Static, Workers: 2}
	inTown(t, cfg, func(v *town) { v.comes, v.arrives = true, true }, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		if v.wantServing(2); v.claim.gen != nil {
			t.Error("its steward has asked for workers")
		}
		v.kill(0)
		v.wait(time.Minute)
		v.wantServing(1)
	})
}
