package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/mailgw/mailgw/backends"
)

// A message that was with a backend when its process crashed is a suspect, for
// each recipient to whom it comes again. It is known again, when the client sends it
// again, by sender, recipient and content as they came, whoever else gets it with
// him then. It is then given to an instance of its own, so that it
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
const maxSuspects = 10000

func newSuspects() *suspects {
	return &suspects{alone: make(chan struct{}, 1), known: map[fingerprint]suspect{}}
}

// note notes what a message has done: of all its fingerprints those are suspects
// with which the process has crashed, the others are not. Several that are equal
// may have been under way, so that crashes are counted only if it was alone. output
// are the last lines of the process.
func (s *suspects) note(all, crashed []fingerprint, alone bool, output []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[fingerprint]suspect{}
	for _, f := range crashed {
		n := s.known[f].crashes
		if alone || n == 0 {
			n++
		}
		next[f] = suspect{n, output}
	}
	for _, f := range all {
		delete(s.known, f)
	}
	if len(s.known) < len(s.order) {
		s.order = slices.DeleteFunc(s.order, func(f fingerprint) bool { _, known := s.known[f]; return !known })
	}
	for f, of := range next {
		if len(s.order) == maxSuspects {
			delete(s.known, s.order[0])
			s.order = s.order[1:]
		}
		s.known[f], s.order = of, append(s.order, f)
	}
}

// look returns the worst that is known of a message, nil if it is no suspect.
// The fingerprints are taken only if there are suspects.
func (s *suspects) look(take func() ([]fingerprint, error)) (worst *suspect, err error) {
	s.mu.Lock()
	none := len(s.known) == 0
	s.mu.Unlock()
	if none {
		return nil, nil
	}
	all, err := take()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range all {
		if found, ok := s.known[f]; ok && (worst == nil || found.crashes > worst.crashes) {
			worst = &found
		}
	}
	return worst, nil
}

// fingerprints tell the message for each of those recipients, as they came.
func (d *delivery) fingerprints(to []destination) ([]fingerprint, error) {
	content, err := d.content()
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]fingerprint, len(to))
	for i, to := range to {
		// No address has a NUL.
		all[i] = sha256.Sum256([]byte(d.sender + "\x00" + d.fates[to.origin].address + "\x00" + string(content)))
	}
	return all, nil
}

// content returns the digest of the message as it came.
func (d *delivery) content() ([]byte, error) {
	d.summed.Do(func() { d.sum, d.unsummed = d.message.sum() })
	return d.sum, d.unsummed
}

// sum returns the digest of a message.
func (m *message) sum() ([]byte, error) {
	h := sha256.New()
	_, err := io.Copy(h, io.NewSectionReader(m, 0, m.size))
	return h.Sum(nil), err
}

// A trial is the delivery of a branch by a backend that it may crash.
type trial struct {
	delivery *delivery
	backend  *namedBackend
	branch   *branch
	was      *suspect // nil if the message was none
	started  []bool   // recipients whose deliveries are judged one by one
}

// deliverTo has backend deliver the transaction of a branch: alone if it is a
// suspect, and not at all if it has crashed the backend too often.
func (d *delivery) deliverTo(ctx context.Context, backend *namedBackend, b *branch, tx *backends.DataContext, hooks backends.Hooks) (undecided []int, err error) {
	if backend.PoisonCrashes == 0 {
		return backends.Run(ctx, backend, tx, hooks)
	}
	was, err := backend.suspects.look(func() ([]fingerprint, error) { return d.fingerprints(b.to) })
	if err != nil {
		return everybody(len(b.to)), err
	}
	t := &trial{d, backend, b, was, make([]bool, len(b.to))}
	hooks = t.attend(hooks)
	switch {
	case was == nil:
		undecided, err = backends.Run(ctx, backend, tx, hooks)
	case was.crashes >= backend.PoisonCrashes:
		return everybody(len(b.to)), &poisonError{*was}
	default:
		undecided, err = d.deliverAlone(ctx, backend, tx, hooks)
	}
	return undecided, t.judge(tx, err)
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
		return everybody(len(tx.Envelope.Recipients)), fmt.Errorf("another suspect has the instance for suspects: %w", context.Cause(ctx))
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

// attend has the trial judge deliveries that were started, at their ends. The
// hooks that it wraps may let the message go.
func (t *trial) attend(hooks backends.Hooks) backends.Hooks {
	status, begin := hooks.Status, hooks.Started
	hooks.Started = func(i int) {
		t.started[i] = true
		begin(i)
	}
	hooks.Status = func(i int, s backends.Status) {
		// A temporary one may come of a crash, which is told before.
		if t.was != nil && t.started[i] && !s.Temporary() {
			t.note(t.branch.to[i:i+1], nil, nil)
		}
		status(i, s)
	}
	hooks.Crashed = func(i int, crash *backends.CrashError) {
		of := t.branch.to[i : i+1]
		t.note(of, of, crash.Output)
	}
	return hooks
}

// judge notes what has become of a message when Deliver has returned, and returns
// err. One that has been answered is no suspect any more; one that has only failed
// still is.
func (t *trial) judge(tx *backends.DataContext, err error) error {
	crash, crashed := errors.AsType[*backends.CrashError](err)
	if !crashed && (t.was == nil || err != nil && backends.IsFailure(err)) {
		return err
	}
	var tried, guilty []destination
	for i, to := range t.branch.to {
		if crashed || !t.started[i] {
			tried = append(tried, to)
		}
		if s := tx.Status(i); crashed && (s.IsZero() || s.Temporary()) { // it comes again
			guilty = append(guilty, to)
		}
	}
	var output []string
	if crashed {
		output = crash.Output
	}
	t.note(tried, guilty, output)
	return err
}

// note makes suspects of the message for guilty recipients, and for the others that
// were tried none.
func (t *trial) note(tried, guilty []destination, output []string) {
	all, err := t.delivery.fingerprints(tried)
	if err != nil {
		return
	}
	if crashed, err := t.delivery.fingerprints(guilty); err == nil {
		t.backend.suspects.note(all, crashed, t.was != nil, output)
	}
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
	if route != nil && !b.diverted() {
		effect = "they go to the named route " + backend.PoisonRoute
	}
	d.log.Error("backend", "backend", backend.name, "event", "poison", "error", poison.Error(), "output", poison.output, "effect", effect)
	if route == nil || b.diverted() {
		return nil, backends.TryLater
	}
	return []*branch{{route: route, divertedBy: backend.name, sender: b.sender, params: b.params, message: b.message, to: b.to}}, nil
}
