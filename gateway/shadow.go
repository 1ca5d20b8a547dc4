package gateway

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"sync"

	"github.com/mailgw/mailgw/backends"
)

// A backend can have a shadow: another one that gets a copy of some of what it
// gets. What the shadow says is compared and logged, and nothing else comes of it;
// so it has to be one without effects. Copies are bounded; what is beyond is not
// copied, but counted.

const (
	maxShadowCopies = 20
	maxShadowBytes  = 32 << 20
)

// shadowing is what all shadows of the process take.
type shadowing struct {
	running sync.WaitGroup

	mu      sync.Mutex
	copies  int
	bytes   int64
	dropped int // since the last copy that was made
}

// take reserves room for a copy. It reports how many got none since the last
// one.
func (s *shadowing) take(size int64) (dropped int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.copies == maxShadowCopies || s.bytes+size > maxShadowBytes {
		s.dropped++
		return 0, false
	}
	s.copies++
	s.bytes += size
	dropped, s.dropped = s.dropped, 0
	return dropped, true
}

func (s *shadowing) give(size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.copies--
	s.bytes -= size
}

// A comparison is what a backend and its shadow say of the recipients of one
// transaction.
type comparison struct {
	delivery   *delivery
	backend    *namedBackend
	shadow     *namedBackend
	recipients []destination

	mu       sync.Mutex
	original verdicts
	shade    verdicts
	open     int // of the two, how many are not done
}

// verdicts are what one backend says: a status, "next backend", or "failure".
type verdicts []string

// shadowed lets the shadow of backend, if it has one and it is its turn, have a
// copy of a transaction. The hook and the function note what the backend itself
// says; the function is called when all deliveries that it has started have ended.
func (d *delivery) shadowed(backend *namedBackend, b *branch) (hook func(i int, s backends.Status), done func(undecided []int, err error)) {
	shadow := d.shadows[backend.name]
	if shadow == nil || rand.Float64()*100 >= shadow.ShadowShare {
		return func(int, backends.Status) {}, func([]int, error) {}
	}
	copied, ok := d.copyFor(shadow, b)
	if !ok {
		return func(int, backends.Status) {}, func([]int, error) {}
	}
	c := &comparison{
		delivery: d, backend: backend, shadow: shadow, recipients: b.to, open: 2,
		original: make(verdicts, len(b.to)), shade: make(verdicts, len(b.to)),
	}
	tx := d.dataContext(b, bytes.NewReader(copied))
	d.shadowing.running.Go(func() {
		defer d.shadowing.give(int64(len(copied)))
		ctx, cancel := context.WithTimeout(d.parent, shadow.Timeout)
		defer cancel()
		undecided, err := backends.Run(ctx, shadow, tx, backends.Hooks{
			Status:  func(i int, s backends.Status) { c.note(c.shade, i, s) },
			Replace: forget,
		})
		c.done(c.shade, undecided, err)
	})
	return func(i int, s backends.Status) { c.note(c.original, i, s) },
		func(undecided []int, err error) { c.done(c.original, undecided, err) }
}

// copyFor copies the message of b, if there is room.
func (d *delivery) copyFor(shadow *namedBackend, b *branch) ([]byte, bool) {
	size := b.message.Size()
	dropped, ok := d.shadowing.take(size)
	if !ok {
		return nil, false
	}
	if dropped > 0 {
		d.log.Warn("backend", "backend", shadow.name, "event", "shadow", "dropped", dropped)
	}
	copied := make([]byte, size)
	if _, err := b.message.ReadAt(copied, 0); err != nil && err != io.EOF {
		d.shadowing.give(size)
		return nil, false
	}
	return copied, true
}

// forget reads a message that the shadow puts in the place of its copy, and keeps
// nothing of it.
func forget(r io.Reader) (backends.Message, error) {
	_, err := io.Copy(io.Discard, r)
	return bytes.NewReader(nil), err
}

func (c *comparison) note(v verdicts, i int, s backends.Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v[i] = s.Sanitized().Error()
}

// done notes what a backend has left undecided. After the second one it logs how
// they differ.
func (c *comparison) done(v verdicts, undecided []int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range undecided {
		switch {
		case err == nil:
			v[i] = "next backend"
		case backends.IsFailure(err):
			v[i] = "failure: " + err.Error()
		default:
			v[i] = backends.StatusOf(err).Sanitized().Error()
		}
	}
	if c.open--; c.open > 0 {
		return
	}
	for i, to := range c.recipients {
		c.delivery.log.Info("backend", "backend", c.shadow.name, "event", "shadow", "to", to.Address,
			"shadow_of", c.backend.name, "same", c.shade[i] == c.original[i], "says", c.shade[i], "original", c.original[i])
	}
}
