package gateway

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

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

	mu      sync.Mutex
	dropped map[*namedBackend]int // copies that were not made, since the log has told of some
	telling *time.Timer           // runs while there are any
}

// tellDropped is how long the log may be without copies that were not made.
const tellDropped = time.Minute

// drop counts a copy for shadow that is not made.
func (s *shadowing) drop(shadow *namedBackend) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dropped == nil {
		s.dropped = map[*namedBackend]int{}
		s.telling = time.AfterFunc(tellDropped, s.tell)
	}
	s.dropped[shadow]++
}

// tell logs how many copies were not made, if there are any.
func (s *shadowing) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dropped == nil {
		return
	}
	s.telling.Stop()
	for shadow, n := range s.dropped {
		shadow.log.Warn("backend", "backend", shadow.name, "event", "shadow", "shadow_of", shadow.ShadowOf, "dropped", n)
	}
	s.dropped = nil
}

// A comparison is of what a backend and its shadow say of one transaction.
type comparison struct {
	delivery        *delivery
	branch          *branch
	backend, shadow *namedBackend

	mu    sync.Mutex
	first *verdict // of the one that has spoken before the other
}

// shadowed lets the shadow of backend, if it has one and it is its turn, have a
// copy of a transaction. The function, which may be nil, wants to know what the
// backend itself says, as long as its message can be read.
func (d *delivery) shadowed(backend *namedBackend, b *branch) func(record.Said) {
	shadow := d.shadows[backend.name]
	if shadow == nil || rand.Float64()*100 >= shadow.ShadowShare {
		return nil
	}
	copied := d.copyFor(shadow, b)
	if copied == nil {
		return nil
	}
	c := &comparison{delivery: d, branch: b, backend: backend, shadow: shadow}
	tx := d.dataContext(b, bytes.NewReader(copied))
	d.shadowing.running.Go(func() {
		defer d.shadowing.copies.give(int64(len(copied)))
		ctx, cancel := context.WithTimeout(d.parent, shadow.Timeout)
		defer cancel()
		c.note(shadow, bytes.NewReader(copied), record.Hear(ctx, shadow, tx, d.forget))
	})
	return func(s record.Said) { c.note(backend, b.message, s) }
}

// copyFor copies the message of b, if there is room and it can be read. Else it
// returns nil.
func (d *delivery) copyFor(shadow *namedBackend, b *branch) []byte {
	size := b.message.Size()
	if !d.shadowing.copies.take(size) {
		d.shadowing.drop(shadow)
		return nil
	}
	copied, err := contents(b.message)
	if err != nil {
		d.shadowing.copies.give(size)
		d.shadowing.drop(shadow)
		return nil
	}
	return copied
}

// contents returns a copy of a message.
func contents(m backends.Message) ([]byte, error) {
	b := make([]byte, m.Size())
	if _, err := m.ReadAt(b, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return b, nil
}

// note takes what one of the two says of m. After the second one it logs how they
// differ.
func (c *comparison) note(by *namedBackend, m backends.Message, s record.Said) {
	v := c.delivery.verdict(by, c.branch, m, s)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.first == nil:
		c.first = v
	case by == c.shadow:
		c.log(v, c.first)
	default:
		c.log(c.first, v)
	}
}

// log logs a line for each recipient, and one for what is edited for all who go
// on, if somebody does with both and anything is edited.
func (c *comparison) log(says, original *verdict) {
	log := c.delivery.log.With("backend", c.shadow.name, "event", "shadow", "shadow_of", c.backend.name)
	for i, to := range c.branch.to {
		one, other := says.answers[i], original.answers[i]
		log.Info("backend", "to", to.Address, "same", one == other, "says", cut(one), "original", cut(other))
	}
	differs := says.differs(original)
	same := says.edits == original.edits && differs == nil
	if !says.goesOn || !original.goesOn || same && says.edits == "" {
		return
	}
	attrs := []any{"same", same, "says", cut(cmp.Or(says.edits, "no edits")), "original", cut(cmp.Or(original.edits, "no edits"))}
	if differs != nil {
		attrs = append(attrs, "differs", strings.Join(differs, ", "))
	}
	log.Info("backend", attrs...)
}

// cut bounds what the log has of what backends say.
func cut(s string) string { return s[:min(len(s), maxErrorText)] }
