package gateway

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// A transaction is what a client asked for between MAIL and the end of the
// message.
type transaction struct {
	id         string
	session    backends.Session
	sender     string
	params     backends.Params
	recipients []recipient
	utf8       bool      // SMTPUTF8
	binary     bool      // BODY=BINARYMIME
	prdr       bool      // PRDR
	charged    int64     // octets of the spool's budget that the envelope takes
	began      time.Time // at MAIL

	message *message  // as far as it has come
	ends    time.Time // until when the message may take, once it has begun
	lines   lineEnds  // of chunks
	fault   error     // why the message is refused, once that is known
}

// envelope is what is known of it so far, for backends that are asked.
func (tx *transaction) envelope() *backends.Envelope {
	e := &backends.Envelope{Sender: tx.sender, Params: tx.params}
	for _, r := range tx.recipients {
		e.Recipients = append(e.Recipients, r.Recipient)
	}
	return e
}

// A recipient is one accepted RCPT and where it goes.
type recipient struct {
	backends.Recipient
	route *route
}

// namedBackend is a backend and what the configuration says of it.
type namedBackend struct {
	backends.Backend
	name string
	BackendConfig
	opinions opinions
}

// A delivery carries one transaction through the backends and gathers the
// answers. Each recipient gets exactly one.
//
// The recipients of one route are a branch. A backend answers some of its
// recipients, and the others form the next branch, with the edits that the
// backend made. At the deadline, all that have no answer get one.
type delivery struct {
	*transaction
	backends map[string]*namedBackend
	log      *slog.Logger
	spool    *spool
	maxSize  int64 // of a replaced message; zero is no limit
	received time.Time

	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex
	answers  []backends.Status // of the transaction's recipients, in order
	holders  []string          // the backend that has each of them
	response backends.Status   // by SetSMTPResponse
	progress chan struct{}     // has a token after answers changed

	busy     atomic.Int32 // calls of backends that may still read messages
	messages []*message   // to be closed when none is busy; guarded by mu
}

// begin starts the delivery of m, which it closes at the end. The caller
// asks wait or fold for the answers.
func (d *delivery) begin(ctx context.Context, m *message, budget time.Duration) {
	d.ctx, d.cancel = context.WithTimeout(ctx, budget)
	context.AfterFunc(d.ctx, func() { d.answerAll(backends.StatusOf(context.Cause(d.ctx))) })
	d.messages = []*message{m}
	d.busy.Store(1)
	for _, b := range d.branches(m) {
		d.run(b)
	}
	d.finish()
}

// finish notes that a call that may read messages has ended. After the last
// one the messages are given back; a recipient without an answer would be a
// bug by then, and gets TryLater.
func (d *delivery) finish() {
	if d.busy.Add(-1) == 0 {
		d.release()
		d.cancel()
	}
}

// release gives back what the transaction holds. No backend may read it any
// more.
func (d *delivery) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.messages {
		m.Close()
	}
	d.messages = nil
	d.spool.refund(d.charged)
	d.charged = 0
}

// answer gives recipient i its status, unless it has one. It is what the
// client is told.
func (d *delivery) answer(i int, backend string, s backends.Status) {
	s = s.Sanitized()
	d.mu.Lock()
	late := !d.answers[i].IsZero()
	if !late {
		d.answers[i] = s
	}
	d.mu.Unlock()
	if late {
		// That the deadline has passed is known already.
		if d.ctx == nil || s != backends.StatusOf(context.Cause(d.ctx)) {
			d.ignored(backend, d.recipients[i].Address, s, "the recipient was answered already")
		}
		return
	}
	d.log.Info("status",
		"to", d.recipients[i].Address,
		"backend", backend,
		"code", s.Code,
		"enhanced", s.Enhanced,
		"text", s.Text,
		"delay", time.Since(d.began).Round(time.Microsecond),
		"wait", time.Since(d.received).Round(time.Microsecond))
	select {
	case d.progress <- struct{}{}:
	default:
	}
}

// answerAll answers every recipient that has no answer yet, in the name of
// the backend that has it.
func (d *delivery) answerAll(s backends.Status) {
	for i := range d.recipients {
		d.mu.Lock()
		open, holder := d.answers[i].IsZero(), d.holders[i]
		d.mu.Unlock()
		if open {
			d.answer(i, holder, s)
		}
	}
}

func (d *delivery) ignored(backend, to string, s backends.Status, why string) {
	d.log.Warn("backend", "backend", backend, "event", "ignored", "to", to, "status", s.Error(), "reason", why)
}

// wait blocks until recipient i is answered and returns its status.
func (d *delivery) wait(i int) backends.Status {
	for {
		if s := d.poll(i); !s.IsZero() {
			return s
		}
		<-d.progress
	}
}

// poll returns the status of recipient i if it has one.
func (d *delivery) poll(i int) backends.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.answers[i]
}

// fold makes one answer of all: any 4yz gives the first 4yz; else any 5yz
// gives the first 5yz; else it is a success. It waits for all answers.
func (d *delivery) fold() backends.Status {
	for i := range d.recipients {
		d.wait(i)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	worst := worstOf(d.answers)
	if response := d.response.Sanitized(); worst.Positive() && response.Positive() {
		return response
	}
	return worst
}

// bestOf returns the first 2yz, else the first 4yz, else the first status.
func bestOf(all []backends.Status) backends.Status {
	for _, is := range []func(backends.Status) bool{backends.Status.Positive, backends.Status.Temporary} {
		if i := slices.IndexFunc(all, is); i >= 0 {
			return all[i]
		}
	}
	return all[0]
}

// worstOf returns the first 4yz, else the first 5yz, else the first status.
func worstOf(all []backends.Status) backends.Status {
	for _, is := range []func(backends.Status) bool{backends.Status.Temporary, backends.Status.Permanent} {
		if i := slices.IndexFunc(all, is); i >= 0 {
			return all[i]
		}
	}
	return all[0]
}
