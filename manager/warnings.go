package manager

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Warnings says what is allowed and will hurt all the same, pool by pool, each
// with what would do.
func (c *Config) Warnings() []string {
	somaxconn := 0 // not known
	if b, err := os.ReadFile("/proc/sys/net/core/somaxconn"); err == nil {
		somaxconn, _ = strconv.Atoi(strings.TrimSpace(string(b))) // else it stays unknown
	}
	return c.warnings(os.Geteuid(), somaxconn)
}

// warnings is Warnings on a machine where net.core.somaxconn is known, unless it is 0.
func (c *Config) warnings(euid, somaxconn int) (ws []string) {
	warn := func(p *PoolConfig, format string, args ...any) {
		ws = append(ws, "pool "+p.Name+": "+fmt.Sprintf(format, args...))
	}
	for _, p := range c.Pools {
		if somaxconn > 0 && p.ListenBacklog > somaxconn {
			warn(p, "listen_backlog = %d, but the kernel takes no more than net.core.somaxconn = %d: raise that with sysctl", p.ListenBacklog, somaxconn)
		}
		unix := false
		for _, a := range p.Listen {
			unix = unix || a.Network == "unix"
		}
		if unix && euid == 0 && p.ListenOwner < 0 && p.ListenGroup < 0 && p.ListenMode&0o006 != 0o006 {
			warn(p, "only root can connect to its socket: set listen_group to the web server's group, such as \"www-data\"")
		}
		if p.DrainTimeout < p.RequestTimeout {
			warn(p, "drain_timeout = %v is less than request_timeout = %v: a stop or a reload cuts requests that had time left", p.DrainTimeout, p.RequestTimeout)
		}
	}
	return ws
}
