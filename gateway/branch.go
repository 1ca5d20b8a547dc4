package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/record"
	"github.com/mailgw/mailgw/internal/smtp"
)

// A branch is recipients that share a route, at one backend of it.
type branch struct {
	route      *route
	stage      int    // index of the backend in the route
	divertedBy string // the backend that has diverted the recipients; empty if they are on their own route
	sender     string
	params     backends.Params // of MAIL
	message    backends.Message
	to         []destination
}

// last reports whether no backend follows.
func (b *branch) last() bool { return b.stage+1 == len(b.route.backends) }

// diverted reports whether it has left the route of the recipients.
func (b *branch) diverted() bool { return b.divertedBy != "" }

// A destination is a recipient as a backend sees it. Its decide tells the
// recipient that the client named, or that a backend has added.
type destination struct {
	backends.Recipient
	origin int // index of that recipient
	answer func(origin int, backend string, s backends.Status)
}

func (to destination) decide(backend string, s backends.Status) { to.answer(to.origin, backend, s) }

// branches groups the recipients by route.
func (d *delivery) branches() []*branch {
	m := d.message
	first := &branch{route: d.recipients[0].route, sender: d.sender, params: d.params, message: m}
	first.to = make([]destination, 0, len(d.recipients)) // nearly always there is no other one
	branches := []*branch{first}
	answer := d.decide
	for i, r := range d.recipients {
		at := slices.IndexFunc(branches, func(b *branch) bool { return b.route == r.route })
		if at < 0 {
			at = len(branches)
			branches = append(branches, &branch{route: r.route, sender: d.sender, params: d.params, message: m})
		}
		branches[at].to = append(branches[at].to, destination{r.Recipient, i, answer})
	}
	return branches
}

// mayAdd reports whether a backend from the next one of b on, or of a route to
// which a poisonous message is diverted from there, may bring more recipients.
// The last one does so in vain, which nobody is to call a success.
func (d *delivery) mayAdd(b *branch) bool {
	for _, name := range b.route.backends[b.stage:] {
		backend := d.backends[name]
		if backends.EditsOf(backend.Backend)&backends.EditEnvelope != 0 {
			return true
		}
		if poison := d.routes[backend.PoisonRoute]; poison != nil && !b.diverted() && d.mayAdd(&branch{route: poison, divertedBy: name}) {
			return true
		}
	}
	return false
}

// everybody returns the indexes of n recipients.
func everybody(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// hold notes that a backend has the recipients of b now.
func (d *delivery) hold(backend string, b *branch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, to := range b.to {
		if f := &d.fates[to.origin]; f.decided.IsZero() {
			f.holder = backend
			if b.diverted() {
				f.route, f.divertedBy = b.route.name, b.divertedBy
			}
		}
	}
}

// call carries b through its next backend and hands what is left to the one
// after it: it leaves one job of that to the caller. adds says that it is one of the
// calls that may add recipients.
func (d *delivery) call(backend *namedBackend, b *branch, adds bool) (next *job) {
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
	added := func() {
		if adds {
			adds = false
			d.adding(-1)
		}
	}
	defer added()
	defer d.recovered(backend, b)

	tx := d.dataContext(b, body)
	if err := ctx.Err(); err != nil {
		// Nobody waits for the answer, so nothing is to be delivered.
		for _, to := range b.to {
			to.decide(backend.name, backends.StatusOf(err))
		}
		return nil
	}
	witness := d.witness(backend, b)
	hooks := d.hooks(backend, b, witness, func() { holders.Add(1) }, release)
	undecided, err := d.deliverTo(ctx, backend, b, tx, hooks)
	if holders.Load() > 1 {
		context.AfterFunc(d.ctx, func() { tx.SetAll(backends.StatusOf(context.Cause(d.ctx))) })
	}
	next = d.proceed(backend, b, tx, undecided, err)
	added()
	if witness != nil {
		if next != nil { // mail does not wait for who takes notes
			go next.begin()
			next = nil // whatever becomes of the notes
		}
		witness.Returned(undecided, err, tx.Edits())
	}
	return next
}

// hooks tell what a backend says of b. Each delivery that it starts is held until
// its status comes, which releases it.
func (d *delivery) hooks(backend *namedBackend, b *branch, witness *record.Witness, hold, release func()) backends.Hooks {
	started := make([]bool, len(b.to))
	return backends.Hooks{
		Status: func(i int, s backends.Status) {
			b.to[i].decide(backend.name, s)
			witness.Status(i, s)
			if started[i] {
				release()
			}
		},
		Together: d.together,
		Started: func(i int) {
			started[i] = true
			hold()
			witness.Started(i)
		},
		SMTPResponse: func(s backends.Status) {
			d.respond(s)
			witness.SMTPResponse(s)
		},
		Wrote: func(left backends.Digest) { d.compare(left, b.to) },
		Ignored: func(i int, s backends.Status, why string) {
			to := ""
			if i >= 0 && i < len(b.to) {
				to = b.to[i].Address
			}
			d.ignored(backend.name, to, s, why)
		},
		Replace: d.replace,
	}
}

// proceed carries the recipients that backend left undecided on to the next
// backends, or answers them if the route ends or the backend failed. It leaves one
// job to the caller.
func (d *delivery) proceed(backend *namedBackend, b *branch, tx *backends.DataContext, undecided []int, err error) *job {
	branches, err := d.outcome(backend, b, tx, undecided, err)
	if err != nil {
		d.fail(backend, b, undecided, err)
		return nil
	}
	return d.run(slices.DeleteFunc(branches, func(next *branch) bool {
		ends := next.stage == len(next.route.backends)
		if ends {
			d.fail(backend, next, everybody(len(next.to)), errUndecided)
		}
		return ends
	})...)
}

// outcome returns the branches of those that backend left undecided. A failure
// is what the operator says: for the others it is an error.
func (d *delivery) outcome(backend *namedBackend, b *branch, tx *backends.DataContext, undecided []int, err error) ([]*branch, error) {
	policy := backend.OnFailure
	if err == nil {
		branches, invalid := d.next(backend, b, tx, undecided)
		if invalid == nil {
			return branches, nil
		}
		err = invalid
		for _, to := range tx.Edits().Added {
			d.addFailed(backend.name, to.Address)
			// No recipient is told a success any more. Who had the message all
			// the same would get it each time that the client tries again.
			if policy == "pass" {
				policy = "tempfail"
			}
		}
	}
	if poison, ok := errors.AsType[*poisonError](err); ok {
		return d.quarantine(backend, b, poison)
	}
	if !backends.IsFailure(err) || d.ctx.Err() != nil {
		return nil, err
	}
	if trouble, ok := errors.AsType[spoolError](err); ok { // of our own
		return nil, errors.Join(trouble.status(), err)
	}
	switch policy {
	case "pass":
		d.logFailure(backend, err, "they go on to the next backend")
		on := *b
		on.stage, on.to = b.stage+1, nil
		for _, i := range undecided {
			on.to = append(on.to, b.to[i])
		}
		return slices.DeleteFunc([]*branch{&on}, func(b *branch) bool { return len(b.to) == 0 }), nil
	case "reject":
		d.logFailure(backend, err, "they are refused")
		return nil, unchecked
	}
	return nil, err
}

// unchecked is the answer for recipients of a backend that has failed, where
// the operator wants them refused.
var unchecked = backends.NewStatus(554, "5.3.0", "message refused: it could not be processed")

// maxErrorText is how much of an error the log has. A panic has its stack.
const maxErrorText = 8 << 10

// fail answers the recipients that a backend left undecided when it failed
// with err. What the client is not told of it, the operator is.
func (d *delivery) fail(backend *namedBackend, b *branch, undecided []int, err error) {
	if _, plain := err.(backends.Status); err != nil && !plain {
		d.logFailure(backend, err)
	}
	for _, i := range undecided {
		b.to[i].decide(backend.name, backends.StatusOf(err))
	}
}

func (d *delivery) logFailure(backend *namedBackend, err error, effect ...string) {
	text := err.Error()
	attrs := []any{"backend", backend.name, "event", "failure", "error", text[:min(len(text), maxErrorText)]}
	if effect != nil {
		attrs = append(attrs, "effect", effect[0])
	}
	d.log.Error("backend", attrs...)
}

var errUndecided = errors.New("the last backend of the route left recipients undecided")

// recovered answers the recipients of b if the gateway itself has a bug.
func (d *delivery) recovered(backend *namedBackend, b *branch) {
	if r := recover(); r != nil {
		d.logPanic(backend.name, r)
		for _, to := range b.to {
			to.decide(backend.name, backends.TryLater)
		}
	}
}

func (d *delivery) logPanic(backend string, r any) {
	d.log.Error("backend", "backend", backend, "event", "panic", "error", fmt.Sprint(r), "stack", string(debug.Stack()))
}

func (d *delivery) dataContext(b *branch, body io.Reader) *backends.DataContext {
	tx := &backends.DataContext{
		ID:       d.id,
		Session:  d.session.Clone(), // backends run side by side, and may change what is theirs
		Envelope: backends.Envelope{Sender: b.sender, Params: slices.Clone(b.params), Recipients: make([]backends.Recipient, len(b.to))},
		Size:     b.message.Size(),
		Body:     body,
	}
	for i, to := range b.to {
		tx.Envelope.Recipients[i] = backends.Recipient{Address: to.Address, Params: slices.Clone(to.Params)}
	}
	return tx
}

// compare notes how the message that has left for some recipients differs from
// the one that came.
func (d *delivery) compare(left backends.Digest, to []destination) {
	if d.digester == nil {
		return
	}
	added, removed, body := left.Since(d.digest)
	e := &edits{body: "unchanged", header: fmt.Sprintf("+%d-%d", added, removed)}
	if body {
		e.body = "changed"
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, to := range to {
		d.fates[to.origin].edited = e
	}
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
	return replacement{m, d}, nil
}

// A replacement is a message that takes the place of another one. It can be
// closed before the transaction ends.
type replacement struct {
	*message
	delivery *delivery
}

func (r replacement) Close() error {
	d := r.delivery
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.Index(d.messages, r.message)
	if i < 0 {
		return nil // it was released
	}
	d.messages = slices.Delete(d.messages, i, i+1)
	return r.message.Close()
}

// next makes the branches of those that a backend left undecided and of those
// that it has added, with its edits: first that of the route, then those of
// other routes.
func (d *delivery) next(backend *namedBackend, b *branch, tx *backends.DataContext, undecided []int) ([]*branch, error) {
	edits := tx.Edits()
	branches, err := d.plan(backend, b, edits, undecided)
	if err != nil {
		return nil, err
	}
	for _, to := range edits.Added {
		added, err := d.add(to)
		if err != nil {
			return nil, err
		}
		branches[0].to = append(branches[0].to, added)
	}
	return slices.DeleteFunc(branches, func(b *branch) bool { return len(b.to) == 0 }), nil
}

// plan checks the edits of a backend and returns the branches of next, if anybody
// goes on, but for those that are added: they belong to the first one. It
// changes nothing.
func (d *delivery) plan(backend *namedBackend, b *branch, edits backends.Edits, undecided []int) ([]*branch, error) {
	if len(undecided) == 0 && edits.Added == nil {
		return nil, nil
	}
	if may := backends.EditsOf(backend.Backend); edits.Kinds()&^may != 0 {
		return nil, fmt.Errorf("edit: %v, but the backend has announced %v", edits.Kinds()&^may, may)
	}
	on := branch{route: b.route, stage: b.stage + 1, divertedBy: b.divertedBy, sender: b.sender, params: b.params, message: b.message}
	if err := d.edit(&on, edits); err != nil {
		return nil, err
	}
	branches := []*branch{&on}
	for _, i := range undecided {
		to := []destination{b.to[i]}
		var err error
		if addresses, ok := edits.Redirects[i]; ok {
			if to, err = d.redirect(b.to[i], addresses); err != nil {
				return nil, err
			}
		}
		goes := &on
		if name, ok := edits.Diversions[i]; ok {
			if goes, err = d.divert(backend, &branches, b.to[i], name); err != nil {
				return nil, err
			}
		}
		goes.to = append(goes.to, to...)
	}
	return branches, d.checkAdded(b, edits.Added)
}

// edit makes the edits of the message, the sender and its parameters.
func (d *delivery) edit(on *branch, edits backends.Edits) error {
	if edits.Message != nil {
		on.message = edits.Message
	} else if edits.Fields != nil {
		m, err := editHeader(on.message, edits.Fields)
		if err != nil {
			return err
		}
		on.message = m
	}
	if edits.Sender != nil {
		if checked, err := smtp.CheckMailbox(*edits.Sender, d.utf8); *edits.Sender != "" && (err != nil || checked != *edits.Sender) {
			return fmt.Errorf("edit: sender %.400q: %w", *edits.Sender, cmp.Or(err, errSourceRoute))
		}
		on.sender = *edits.Sender
	}
	if edits.SenderParams != nil {
		if err := smtp.CheckParamsOf("MAIL", edits.SenderParams, d.utf8); err != nil {
			return fmt.Errorf("edit: parameters of the sender: %w", err)
		}
		on.params = slices.Concat(on.params.OfMessage(), edits.SenderParams)
	}
	return nil
}

// divert returns the branch of a named route, which may have to be added to
// branches. The first of these is the one that is left.
func (d *delivery) divert(by *namedBackend, branches *[]*branch, to destination, name string) (*branch, error) {
	on := (*branches)[0]
	route := d.routes[name]
	switch {
	case on.diverted():
		return nil, fmt.Errorf("edit: divert %q to %.100q: it was diverted already", to.Address, name)
	case route == nil:
		return nil, fmt.Errorf("edit: divert %q: there is no %.100q in [named_routes]", to.Address, name)
	}
	at := slices.IndexFunc(*branches, func(b *branch) bool { return b.route == route })
	if at < 0 {
		at = len(*branches)
		*branches = append(*branches, &branch{route: route, divertedBy: by.name, sender: on.sender, params: on.params, message: on.message})
	}
	return (*branches)[at], nil
}

// checkAdded checks the recipients that a backend of b adds.
func (d *delivery) checkAdded(b *branch, added []backends.Recipient) error {
	for _, to := range added {
		if err := checkRecipient(to.Address, d.utf8); err != nil {
			return fmt.Errorf("edit: add recipient %.400q: %w", to.Address, err)
		}
		if err := smtp.CheckParamsOf("RCPT", to.Params, d.utf8); err != nil {
			return fmt.Errorf("edit: add recipient %q: parameters: %w", to.Address, err)
		}
		if b.last() {
			return fmt.Errorf("edit: add recipient %q: no backend follows in the route", to.Address)
		}
	}
	return nil
}

// redirect puts destinations in the place of one. It gets the worst of their
// answers, when all have answered.
func (d *delivery) redirect(from destination, addresses []string) ([]destination, error) {
	var mu sync.Mutex
	var answers []backends.Status
	to := make([]destination, len(addresses))
	for i, address := range addresses {
		if err := checkRecipient(address, d.utf8); err != nil {
			return nil, fmt.Errorf("edit: redirect %q to %.400q: %w", from.Address, address, err)
		}
		var once sync.Once
		answer := func(_ int, backend string, s backends.Status) {
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
		to[i] = destination{backends.Recipient{Address: address, Params: from.Params}, from.origin, answer}
	}
	return to, nil
}

// checkRecipient checks an address that a backend has put into the envelope.
func checkRecipient(address string, utf8 bool) error {
	checked, err := recipientAddress(address, utf8)
	if err == nil && checked != address {
		err = errSourceRoute
	}
	return err
}

var errSourceRoute = errors.New("a source route")
