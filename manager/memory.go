package manager

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"
)

const (
	trimEvery = 10 * time.Second
	// trimConns is how many connections must have gone for their memory to be
	// worth a collection: some MiB.
	trimConns = 1000
)

// trim gives memory back to the system when most of a crowd of connections has
// gone, until ctx ends. The runtime alone would take minutes: next to
// nothing is allocated while nobody asks, so there is no collection.
func (m *Manager) trim(ctx context.Context) {
	t := time.NewTicker(trimEvery)
	defer t.Stop()
	for most := 0; ; {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
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
	}
}
