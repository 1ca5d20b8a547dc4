package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/mailgw/mailgw/backends"
)

// A message that was with a backend when its process crashed is a suspect. It
// is known again, when the client sends it again, by sender, recipients and
// content as they came. It is then given to an instance of its own, so that it
// cannot take others along; and once it has crashed too many, to none.
type suspects struct {
	alone chan struct{} // has an element while a suspect has its instance

	mu    sync.Mutex
	known map[fingerprint]suspect
	order []fingerprint // the oldest first
}

type fingerprint [sha256.Size]byte

type suspect struct {
	crashes int
	output  []string // the last lines of the process
}

// maxSuspects bounds what is kept of a backend's suspects. The oldest one is
// forgotten.
const maxSuspects = 1000

func newSuspects() *suspects {
	return &suspects{alone: make(chan struct{}, 1), known: map[fingerprint]suspect{}}
}

// add notes a suspect.
func (s *suspects) add(f fingerprint, of suspect) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, again := s.known[f]; !again {
		if len(s.order) == maxSuspects {
			delete(s.known, s.order[0])
			s.order = s.order[1:]
		}
		s.order = append(s.order, f)
	}
	s.known[f] = of
}

// look returns what is known of a message, nil if it is no suspect. The
// fingerprint is taken only if there are suspects.
func (s *suspects) look(take func() (fingerprint, error)) (*suspect, error) {
	s.mu.Lock()
	none := len(s.known) == 0
	s.mu.Unlock()
	if none {
		return nil, nil
	}
	f, err := take()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if found, ok := s.known[f]; ok {
		return &found, nil
	}
	return nil, nil
}

// clear forgets a suspect that was innocent.
func (s *suspects) clear(f fingerprint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, f)
	s.order = slices.DeleteFunc(s.order, func(other fingerprint) bool { return other == f })
}

// fingerprint tells the message with those recipients, as they came.
func (d *delivery) fingerprint(to []destination) (f fingerprint, err error) {
	h := sha256.New()
	text := func(s string) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(s))))
		io.WriteString(h, s)
	}
	text(d.sender)
	for _, to := range to {
		d.mu.Lock()
		address := d.fates[to.origin].address
		d.mu.Unlock()
		text(address)
	}
	if _, err := io.Copy(h, io.NewSectionReader(d.original, 0, d.original.size)); err != nil {
		return f, spoolError{err}
	}
	h.Sum(f[:0])
	return f, nil
}

// deliverTo has backend deliver the transaction of a branch: alone if it is a
// suspect, and not at all if it has crashed the backend too often.
func (d *delivery) deliverTo(ctx context.Context, backend *namedBackend, b *branch, tx *backends.DataContext, hooks backends.Hooks) (undecided []int, err error) {
	if backend.PoisonCrashes == 0 {
		return backends.Run(ctx, backend, tx, hooks)
	}
	was, err := backend.suspects.look(func() (fingerprint, error) { return d.fingerprint(b.to) })
	switch {
	case err != nil:
		return everybody(len(b.to)), err
	case was == nil:
		undecided, err = backends.Run(ctx, backend, tx, hooks)
	case was.crashes >= backend.PoisonCrashes:
		return everybody(len(b.to)), &poisonError{*was}
	default:
		undecided, err = d.deliverAlone(ctx, backend, tx, hooks)
	}
	return undecided, d.judge(backend, b, undecided, was, err)
}

// deliverAlone has an instance of backend deliver that serves nobody else.
func (d *delivery) deliverAlone(ctx context.Context, backend *namedBackend, tx *backends.DataContext, hooks backends.Hooks) ([]int, error) {
	isolator, ok := backend.Backend.(backends.Isolator)
	if !ok {
		return backends.Run(ctx, backend, tx, hooks)
	}
	select {
	case backend.suspects.alone <- struct{}{}:
	case <-ctx.Done():
		return everybody(len(tx.Envelope.Recipients)), ctx.Err()
	}
	defer func() { <-backend.suspects.alone }()
	d.log.Warn("backend", "backend", backend.name, "event", "suspect", "effect", "it is given to an instance of its own")
	instance, end, err := isolator.Isolated(ctx)
	if err != nil {
		return everybody(len(tx.Envelope.Recipients)), err
	}
	defer end()
	return backends.Run(ctx, instance, tx, hooks)
}

// judge notes what has become of a message, and returns err.
func (d *delivery) judge(backend *namedBackend, b *branch, undecided []int, was *suspect, err error) error {
	var crash *backends.CrashError
	if crashed := errors.As(err, &crash); !crashed && was == nil {
		return err
	}
	if was != nil {
		if f, err := d.fingerprint(b.to); err == nil {
			backend.suspects.clear(f)
		}
	}
	if crash == nil {
		return err
	}
	// Only those who are undecided come again.
	var again []destination
	for _, i := range undecided {
		again = append(again, b.to[i])
	}
	f, unreadable := d.fingerprint(again)
	if unreadable != nil || len(again) == 0 {
		return err
	}
	next := suspect{crashes: 1, output: crash.Output}
	if was != nil {
		next.crashes += was.crashes
	}
	backend.suspects.add(f, next)
	return err
}

// A poisonError is the error of a message that is given to no backend any more.
type poisonError struct{ suspect }

func (e *poisonError) Error() string {
	return fmt.Sprintf("the message has crashed it %d times", e.crashes)
}

// quarantine returns the branch of a message that is given to backend no more,
// or the error for its recipients.
func (d *delivery) quarantine(backend *namedBackend, b *branch, poison *poisonError) ([]*branch, error) {
	route := d.routes[backend.PoisonRoute]
	effect := "451"
	if route != nil && !b.diverted {
		effect = "they go to the named route " + backend.PoisonRoute
	}
	d.log.Error("backend", "backend", backend.name, "event", "poison", "error", poison.Error(), "output", poison.output, "effect", effect)
	if route == nil || b.diverted {
		return nil, backends.TryLater
	}
	return []*branch{{route: route, diverted: true, sender: b.sender, message: b.message, to: b.to}}, nil
}
