package plugins

import (
	"context"
	"sync"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// A laneContext is the ctx of a transaction. What most backends never use of it is
// made when it is asked for.
type laneContext struct {
	deadline time.Time // zero if there is none
	ids      ids

	mu     sync.Mutex
	ended  bool
	inner  context.Context
	cancel context.CancelFunc
}

func (c *laneContext) begin(tx *backends.DataContext, milliseconds uint32) {
	c.ids = idsOf(&tx.Session, tx.ID)
	if milliseconds > 0 {
		c.deadline = time.Now().Add(time.Duration(milliseconds) * time.Millisecond)
	}
}

// context returns a ctx of package context, which ends with c.
func (c *laneContext) context() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inner == nil {
		if c.deadline.IsZero() {
			c.inner, c.cancel = context.WithCancel(context.Background())
		} else {
			c.inner, c.cancel = context.WithDeadline(context.Background(), c.deadline)
		}
		if c.ended {
			c.cancel()
		}
	}
	return c.inner
}

// end ends it, if its deadline has not.
func (c *laneContext) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.cancel != nil {
		c.cancel()
	}
}

func (c *laneContext) Deadline() (time.Time, bool) { return c.deadline, !c.deadline.IsZero() }
func (c *laneContext) Done() <-chan struct{}       { return c.context().Done() }

// Err does not wait for a timer.
func (c *laneContext) Err() error {
	c.mu.Lock()
	inner, ended := c.inner, c.ended
	c.mu.Unlock()
	switch {
	case inner != nil:
		return inner.Err()
	case ended || !c.deadline.IsZero() && !time.Now().Before(c.deadline):
		return c.context().Err()
	}
	return nil
}

// Value also leads package context to the inner ctx, so that those made of c need no
// goroutine.
func (c *laneContext) Value(key any) any {
	if key == (idsKey{}) {
		return c.ids
	}
	return c.context().Value(key)
}
