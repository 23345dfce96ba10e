package manager

import (
	"strings"
	"testing"
	"time"
)

// What will hurt is warned of, and nothing else.
func TestWarnings(t *testing.T) {
	for name, tt := range map[string]struct {
		change    func(*PoolConfig)
		euid      int
		somaxconn int
		want      string
	}{
		"nothing":                       {func(p *PoolConfig) {}, 1000, 4096, ""},
		"a backlog beyond the kernel's": {func(p *PoolConfig) { p.ListenBacklog = 5000 }, 1000, 4096, "net.core.somaxconn = 4096"},
		"a kernel that says nothing":    {func(p *PoolConfig) { p.ListenBacklog = 5000 }, 1000, 0, ""},
		"a socket of root's alone":      {func(p *PoolConfig) {}, 0, 4096, "only root can connect"},
		"with the web server's group":   {func(p *PoolConfig) { p.ListenGroup = 33 }, 0, 4096, ""},
		"with its user":                 {func(p *PoolConfig) { p.ListenOwner = 33 }, 0, 4096, ""},
		"open to all":                   {func(p *PoolConfig) { p.ListenMode = 0o666 }, 0, 4096, ""},
		"TCP":                           {func(p *PoolConfig) { p.Listen = []Address{{"tcp", "127.0.0.1:9000"}} }, 0, 4096, ""},
		"a short drain":                 {func(p *PoolConfig) { p.DrainTimeout = time.Second }, 1000, 4096, "drain_timeout = 1s is less than request_timeout = 1m0s"},
	} {
		_, p := Defaults()
		p.Name, p.Listen = "blog", []Address{{"unix", "/run/fpmd/blog.sock"}}
		tt.change(&p)
		ws := (&Config{Pools: []*PoolConfig{&p}}).warnings(tt.euid, tt.somaxconn)
		switch {
		case tt.want == "" && len(ws) > 0:
			t.Errorf("%s: %q", name, ws)
		case tt.want != "" && (len(ws) != 1 || !strings.HasPrefix(ws[0], "pool blog: ") || !strings.Contains(ws[0], tt.want)):
			t.Errorf("%s: %q, want %q", name, ws, tt.want)
		}
	}
}
