package manager

import (
	"strings"
	"testing"
	"time"
)

// A worker of several slots whose answer to the probe takes longer than what its start has left of start_timeout is
// not replaced for that: its other slots are greeted after the answer.
func TestSlowProbeOfManySlots(t *testing.T) {
	var said lines
	s := beginSite(t, &said, "exchange worker", "workers = 1\nthreads = 3\nstart_timeout = \"2s\"\nprobe = \"/?wait=a\"", nil)
	began := time.Now()
	s.awaitBegun("a")
	time.Sleep(time.Until(began.Add(s.config().StartTimeout))) // it was launched before
	s.release("a")
	await(t, "three free slots, or an end", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.idle) == 3 || strings.Contains(said.String(), "greets fewer slots")
	})
	if strings.Contains(said.String(), "greets fewer slots") {
		t.Error(said.String())
	}
}
