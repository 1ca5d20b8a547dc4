package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
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

// branches groups the recipients by route.
func (d *delivery) branches(m backends.Message) []*branch {
	var branches []*branch
	for i, r := range d.recipients {
		to := destination{r.Recipient, i, func(backend string, s backends.Status) { d.answer(i, backend, s) }}
		at := slices.IndexFunc(branches, func(b *branch) bool { return b.route == r.route })
		if at < 0 {
			at = len(branches)
			branches = append(branches, &branch{route: r.route, sender: d.sender, message: m})
		}
		branches[at].to = append(branches[at].to, to)
	}
	return branches
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

// A branch is recipients that share a route, at one backend of it.
type branch struct {
	route   *route
	stage   int // index of the backend in the route
	sender  string
	message backends.Message
	to      []destination
}

// A destination is a recipient as a backend sees it. Its decide tells the
// recipient that the client named.
type destination struct {
	backends.Recipient
	origin int // index of the recipient that the client named
	decide func(backend string, s backends.Status)
}

// run calls the next backend of b, several times if it wants few recipients
// at once, and returns without waiting.
func (d *delivery) run(b *branch) {
	backend := d.backends[b.route.backends[b.stage]]
	most := backend.RecipientsPerTransaction
	if most == 0 {
		most = len(b.to)
	}
	for to := range slices.Chunk(b.to, most) {
		part := *b
		part.to = to
		d.hold(backend.name, to)
		d.busy.Add(1)
		go d.call(backend, &part)
	}
}

// everybody returns the indexes of n recipients.
func everybody(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// hold notes that a backend has recipients now.
func (d *delivery) hold(backend string, to []destination) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, to := range to {
		d.holders[to.origin] = backend
	}
}

// call carries b through its next backend and hands what is left to the one
// after it.
func (d *delivery) call(backend *namedBackend, b *branch) {
	ctx, cancel := context.WithTimeout(d.ctx, backend.Timeout)
	body := newBody(b.message)
	// The call itself and each started delivery hold the message.
	var holders atomic.Int32
	holders.Store(1)
	release := func() {
		if holders.Add(-1) == 0 {
			body.close()
			cancel()
			d.finish()
		}
	}
	defer release()
	defer d.recovered(backend, b)

	tx := d.dataContext(b, body)
	if err := ctx.Err(); err != nil {
		// Nobody waits for the answer, so nothing is to be delivered.
		d.fail(backend, b, everybody(len(b.to)), err)
		return
	}
	started := make([]bool, len(b.to))
	undecided, err := backends.Run(ctx, backend, tx, backends.Hooks{
		Status: func(i int, s backends.Status) {
			b.to[i].decide(backend.name, s)
			if started[i] {
				release()
			}
		},
		Started: func(i int) {
			started[i] = true
			holders.Add(1)
		},
		SMTPResponse: d.respond,
		Ignored: func(i int, s backends.Status, why string) {
			to := ""
			if i >= 0 && i < len(b.to) {
				to = b.to[i].Address
			}
			d.ignored(backend.name, to, s, why)
		},
		Replace: d.replace,
	})
	if holders.Load() > 1 {
		context.AfterFunc(d.ctx, func() { tx.SetAll(backends.StatusOf(context.Cause(d.ctx))) })
	}
	d.proceed(backend, b, tx, undecided, err)
}

// proceed carries the recipients that backend left undecided on to the next
// backend, or answers them if the route ends or the backend failed.
func (d *delivery) proceed(backend *namedBackend, b *branch, tx *backends.DataContext, undecided []int, err error) {
	if err == nil && len(undecided) > 0 {
		if b.stage+1 == len(b.route.backends) {
			err = errUndecided
		} else if next, editErr := d.next(b, tx, undecided); editErr != nil {
			err = editErr
		} else {
			d.run(next)
			return
		}
	}
	d.fail(backend, b, undecided, err)
}

// fail answers the recipients that a backend left undecided when it failed
// with err. What the client is not told of it, the operator is.
func (d *delivery) fail(backend *namedBackend, b *branch, undecided []int, err error) {
	if _, plain := err.(backends.Status); err != nil && !plain {
		d.log.Error("backend", "backend", backend.name, "event", "failure", "error", err.Error())
	}
	for _, i := range undecided {
		b.to[i].decide(backend.name, backends.StatusOf(err))
	}
}

var errUndecided = errors.New("the last backend of the route left recipients undecided")

// recovered answers the recipients of b if the gateway itself has a bug.
func (d *delivery) recovered(backend *namedBackend, b *branch) {
	if r := recover(); r != nil {
		d.log.Error("backend", "backend", backend.name, "event", "panic", "error", fmt.Sprint(r), "stack", string(debug.Stack()))
		for _, to := range b.to {
			to.decide(backend.name, backends.TryLater)
		}
	}
}

func (d *delivery) dataContext(b *branch, body io.Reader) *backends.DataContext {
	tx := &backends.DataContext{
		ID:       d.id,
		Session:  d.session.Clone(), // backends run side by side, and may change what is theirs
		Envelope: backends.Envelope{Sender: b.sender, Params: slices.Clone(d.params)},
		Size:     b.message.Size(),
		Body:     body,
	}
	for _, to := range b.to {
		tx.Envelope.Recipients = append(tx.Envelope.Recipients,
			backends.Recipient{Address: to.Address, Params: slices.Clone(to.Params)})
	}
	return tx
}

// respond keeps the first response that a backend gives.
func (d *delivery) respond(s backends.Status) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.response.IsZero() {
		d.response = s
	}
}

// replace spools a message that replaces the one at hand.
func (d *delivery) replace(r io.Reader) (backends.Message, error) {
	if !d.binary {
		r = &wholeLines{r: r}
	}
	m, err := d.spool.store(r, d.maxSize)
	if err != nil {
		if trouble := (spoolError{}); errors.As(err, &trouble) {
			err = errors.Join(trouble.status(), err)
		}
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.messages == nil {
		m.Close()
		return nil, errBodyClosed
	}
	d.messages = append(d.messages, m)
	return m, nil
}

// next makes the branch of those that a backend left undecided, with its
// edits.
func (d *delivery) next(b *branch, tx *backends.DataContext, undecided []int) (*branch, error) {
	edits := tx.Edits()
	next := &branch{route: b.route, stage: b.stage + 1, sender: b.sender, message: b.message}
	if edits.Message != nil {
		next.message = edits.Message
	} else if edits.Fields != nil {
		m, err := editHeader(b.message, edits.Fields)
		if err != nil {
			return nil, err
		}
		next.message = m
	}
	if edits.Sender != nil {
		if err := checkRecipient(*edits.Sender, d.utf8); err != nil && *edits.Sender != "" {
			return nil, fmt.Errorf("edit: sender %q: %w", *edits.Sender, err)
		}
		next.sender = *edits.Sender
	}
	for _, i := range undecided {
		addresses, ok := edits.Redirects[i]
		if !ok {
			next.to = append(next.to, b.to[i])
			continue
		}
		redirected, err := d.redirect(b.to[i], addresses)
		if err != nil {
			return nil, err
		}
		next.to = append(next.to, redirected...)
	}
	return next, nil
}

// redirect puts destinations in the place of one. It gets the worst of their
// answers, when all have answered.
func (d *delivery) redirect(from destination, addresses []string) ([]destination, error) {
	var mu sync.Mutex
	var answers []backends.Status
	to := make([]destination, len(addresses))
	for i, address := range addresses {
		if err := checkRecipient(address, d.utf8); err != nil {
			return nil, fmt.Errorf("edit: redirect %q to %q: %w", from.Address, address, err)
		}
		var once sync.Once
		decide := func(backend string, s backends.Status) {
			once.Do(func() {
				mu.Lock()
				answers = append(answers, s.Sanitized())
				last := len(answers) == len(addresses)
				mu.Unlock()
				if last {
					from.decide(backend, worstOf(answers))
				}
			})
		}
		to[i] = destination{backends.Recipient{Address: address, Params: from.Params}, from.origin, decide}
	}
	return to, nil
}

// checkRecipient checks an address that a backend has put into the envelope.
func checkRecipient(address string, utf8 bool) error {
	checked, err := recipientAddress(address, utf8)
	if err == nil && checked != address {
		err = errors.New("a source route")
	}
	return err
}
