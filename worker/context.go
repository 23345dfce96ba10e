package worker

import (
	"context"
	"sync"
	"time"

	"fpmd/protocol"
)

// An exchangeContext ends when the client leaves, or with the exchange. Most
// applications never ask, so the client is not watched, and no channel made,
// before one does.
type exchangeContext struct {
	mu     sync.Mutex
	x      *protocol.Exchange // nil when it has ended
	inner  context.Context    // nil when nobody has asked
	cancel context.CancelFunc
}

func (c *exchangeContext) ask() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inner == nil {
		c.inner, c.cancel = context.WithCancel(context.Background())
		if c.x != nil {
			c.x.Watch(c.cancel)
		} else {
			c.cancel()
		}
	}
	return c.inner
}

// end ends the context. What asks later is told that it has ended.
func (c *exchangeContext) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.x = nil
	if c.cancel != nil {
		c.cancel()
	}
}

func (c *exchangeContext) Done() <-chan struct{}       { return c.ask().Done() }
func (c *exchangeContext) Err() error                  { return c.ask().Err() }
func (c *exchangeContext) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value lets package context find the context within, which it then hangs
// children on without a goroutine for each.
func (c *exchangeContext) Value(key any) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inner == nil {
		return nil
	}
	return c.inner.Value(key)
}
