package manager

import (
	"testing"
	"time"
)

// What does not add up for a moment is nothing; for seconds it is told, once.
func TestBugsAreTold(t *testing.T) {
	inTown(t, PoolConfig{PM: Static, Workers: 2}, nil, func(t *testing.T, v *town) {
		v.wait(time.Minute)
		c := checker{pool: v.pool}
		look := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); v.wait(100 * time.Millisecond) {
				c.check(time.Now())
			}
		}
		lose := func() *slot { // a slot that is neither taken nor free
			v.mu.Lock()
			defer v.mu.Unlock()
			s := v.idle[0]
			v.idle = v.idle[1:]
			return s
		}
		find := func(s *slot) {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.idle = append(v.idle, s)
		}
		s := lose()
		look(time.Second)
		find(s)
		look(5 * time.Second)
		if n := v.told("does not add up"); n > 0 {
			t.Errorf("told %d times of what was over in a second", n)
		}
		for n := range 2 {
			s := lose()
			look(20 * time.Second)
			if got := v.told("does not add up"); got != n+1 {
				t.Errorf("told %d times, want %d", got, n+1)
			}
			find(s)
			look(time.Second)
		}
	})
}
