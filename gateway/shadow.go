package gateway

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/record"
)

// A backend can have a shadow: another one that gets a copy of some of what it
// gets. What the shadow says is compared and logged, and nothing else comes of it;
// so it has to be one without effects. Copies are bounded; what is beyond is not
// copied, but counted.

// shadowing is what all shadows of the process take.
type shadowing struct {
	running sync.WaitGroup
	copies  copies
	dropped atomic.Int64 // since the last copy that was made
}

// A comparison is what a backend and its shadow say of the recipients of one
// transaction.
type comparison struct {
	delivery   *delivery
	backend    *namedBackend
	shadow     *namedBackend
	recipients []destination

	mu   sync.Mutex
	said map[*namedBackend][]record.Answer
}

// shadowed lets the shadow of backend, if it has one and it is its turn, have a
// copy of a transaction. The function, which may be nil, wants to know what the
// backend itself says.
func (d *delivery) shadowed(backend *namedBackend, b *branch) func(record.Said) {
	shadow := d.shadows[backend.name]
	if shadow == nil || rand.Float64()*100 >= shadow.ShadowShare {
		return nil
	}
	copied, ok := d.copyFor(shadow, b)
	if !ok {
		return nil
	}
	c := &comparison{
		delivery: d, backend: backend, shadow: shadow, recipients: b.to,
		said: map[*namedBackend][]record.Answer{},
	}
	tx := d.dataContext(b, bytes.NewReader(copied))
	d.shadowing.running.Go(func() {
		defer d.shadowing.copies.give(int64(len(copied)))
		ctx, cancel := context.WithTimeout(d.parent, shadow.Timeout)
		defer cancel()
		c.note(shadow, record.Hear(ctx, shadow, tx, forget))
	})
	return func(s record.Said) { c.note(backend, s) }
}

// forget reads a message that the shadow puts in the place of its copy, and keeps
// nothing of it.
func forget(r io.Reader) (backends.Message, error) {
	_, err := io.Copy(io.Discard, r)
	return bytes.NewReader(nil), err
}

// copyFor copies the message of b, if there is room.
func (d *delivery) copyFor(shadow *namedBackend, b *branch) ([]byte, bool) {
	size := b.message.Size()
	if !d.shadowing.copies.take(size) {
		d.shadowing.dropped.Add(1)
		return nil, false
	}
	if dropped := d.shadowing.dropped.Swap(0); dropped > 0 {
		d.log.Warn("backend", "backend", shadow.name, "event", "shadow", "dropped", dropped)
	}
	copied, err := contents(b.message)
	if err != nil {
		d.shadowing.copies.give(size)
	}
	return copied, err == nil
}

// contents returns a copy of a message.
func contents(m backends.Message) ([]byte, error) {
	b := make([]byte, m.Size())
	if _, err := m.ReadAt(b, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return b, nil
}

// note takes what one of the two says. After the second one it logs how they
// differ.
func (c *comparison) note(by *namedBackend, s record.Said) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.said[by] = s.Answers; len(c.said) < 2 {
		return
	}
	for i, to := range c.recipients {
		says, original := c.said[c.shadow][i].String(), c.said[c.backend][i].String()
		c.delivery.log.Info("backend", "backend", c.shadow.name, "event", "shadow", "to", to.Address,
			"shadow_of", c.backend.name, "same", says == original, "says", says, "original", original)
	}
}
