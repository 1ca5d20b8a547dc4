package backends

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"
)

// A DataContext is one mail transaction as a backend sees it: envelope,
// message, and a status for each recipient. The fields are for reading; the
// methods may be called from several goroutines.
type DataContext struct {
	// ID names the transaction. It stands in every log line and in the reply.
	ID string

	Session  Session
	Envelope Envelope

	// Size is the number of octets of the message.
	Size int64

	// Body is the message, header and all, with CRLF line ends and without
	// dot-stuffing. It can be read once, need not be read to its end, and
	// may be read after Deliver returned while a started delivery is under
	// way. An error of Read other than io.EOF means that the rest of the
	// message cannot be had.
	Body io.Reader

	mu         sync.Mutex
	quiet      sync.Cond // calling became zero
	calling    int       // calls of the Status hook under way
	hooks      Hooks
	recipients []fate              // made when first needed
	unwatch    map[int]func() bool // stop waiting for the end of the ctx of a started delivery
	ended      bool                // Deliver returned
	edits      Edits
}

// fate is what is known of one recipient.
type fate struct {
	status  Status
	started bool
	closed  bool // undecided when Deliver returned
}

// An Envelope is what MAIL and RCPT said.
type Envelope struct {
	// Sender is the reverse-path without its angle brackets, "" for the null
	// reverse-path (RFC 5321, section 4.5.5).
	Sender string

	// Params are the parameters of MAIL.
	Params Params

	// Recipients are those that were accepted, in the order of RCPT,
	// duplicates too. Indexes into it name a recipient.
	Recipients []Recipient
}

// A Recipient is one accepted RCPT.
type Recipient struct {
	// Address is the forward-path without angle brackets and source route,
	// with every other octet as it came.
	Address string

	// Params are the parameters of RCPT.
	Params Params
}

// Params are the parameters of a MAIL or RCPT command, as they came:
// "SIZE=1000", "SMTPUTF8".
type Params []string

// Lookup returns the value of the parameter with that keyword, in any case,
// and whether it is there.
func (p Params) Lookup(keyword string) (value string, ok bool) {
	for _, param := range p {
		k, v, _ := strings.Cut(param, "=")
		if strings.EqualFold(k, keyword) {
			return v, true
		}
	}
	return "", false
}

// ofMessage are the keywords of parameters of MAIL that are OfMessage.
var ofMessage = []string{"SIZE", "BODY", "SMTPUTF8", "REQUIRETLS", "PRDR"}

// OfMessage returns the parameters of MAIL that tell of the message itself, and
// what it takes to carry it: SIZE, BODY, SMTPUTF8, REQUIRETLS and PRDR.
func (p Params) OfMessage() Params { return slices.DeleteFunc(slices.Clone(p), isOfSender) }

// OfSender returns the other parameters of MAIL: RET, ENVID, AUTH, and all that
// are not known here.
func (p Params) OfSender() Params {
	return slices.DeleteFunc(slices.Clone(p), func(param string) bool { return !isOfSender(param) })
}

func isOfSender(param string) bool {
	keyword, _, _ := strings.Cut(param, "=")
	return !slices.ContainsFunc(ofMessage, func(k string) bool { return strings.EqualFold(k, keyword) })
}

// SetStatus decides recipient i. The first status counts; a second one is
// ignored and logged, and so is one for a recipient that does not exist, or
// that went on to the next backend because Deliver returned.
func (tx *DataContext) SetStatus(i int, s Status) {
	hooks, why := tx.decide(i, s)
	if why != "" {
		if hooks.Ignored != nil {
			hooks.Ignored(i, s, why)
		}
		return
	}
	defer tx.decided()
	if hooks.Status != nil {
		hooks.Status(i, s)
	}
}

// decide keeps a status, or says why it does not count. If it does, Run does
// not return before decided was called.
func (tx *DataContext) decide(i int, s Status) (hooks Hooks, why string) {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	f, why := tx.fate(i)
	switch {
	case why != "":
		return tx.hooks, why
	case s.IsZero():
		return tx.hooks, "the status is empty"
	case !f.status.IsZero():
		return tx.hooks, "the recipient has its status already"
	case f.closed:
		return tx.hooks, "Deliver had returned"
	}
	tx.keep(i, s)
	tx.calling++
	return tx.hooks, ""
}

func (tx *DataContext) decided() {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	if tx.calling--; tx.calling == 0 {
		tx.quiet.Broadcast()
	}
}

// SetAll decides every recipient that has no status yet.
func (tx *DataContext) SetAll(s Status) {
	if s.IsZero() {
		tx.SetStatus(0, s) // which tells that it is ignored
		return
	}
	recipients, hooks := tx.decideAll(s)
	if recipients == nil {
		return
	}
	defer tx.decided()
	switch {
	case hooks.StatusAll != nil:
		hooks.StatusAll(recipients, s)
	case hooks.Status != nil:
		hooks.together(func() {
			for _, i := range recipients {
				hooks.Status(i, s)
			}
		})
	}
}

// Together calls f, which sets statuses of several recipients. Clients may then
// be told of all of them at once, where each of them would be told by itself.
func (tx *DataContext) Together(f func()) {
	tx.mu.Lock()
	hooks := tx.hooks
	tx.mu.Unlock()
	hooks.together(f)
}

func (h Hooks) together(f func()) {
	if h.Together == nil {
		f()
		return
	}
	h.Together(f)
}

// decideAll is decide for all recipients that are undecided, which it returns.
func (tx *DataContext) decideAll(s Status) (recipients []int, hooks Hooks) {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	tx.makeFates()
	for i := range tx.recipients {
		if f := &tx.recipients[i]; f.undecided() {
			if recipients == nil {
				recipients = make([]int, 0, len(tx.recipients)-i)
			}
			tx.keep(i, s)
			recipients = append(recipients, i)
		}
	}
	if recipients != nil {
		tx.calling++
	}
	return recipients, tx.hooks
}

// undecided reports whether a status would count.
func (f *fate) undecided() bool { return f.status.IsZero() && !f.closed }

// keep keeps the status of recipient i. The caller holds tx.mu.
func (tx *DataContext) keep(i int, s Status) {
	tx.recipients[i].status = s
	if unwatch := tx.unwatch[i]; unwatch != nil {
		unwatch()
	}
}

// Status returns the status of recipient i, or the zero Status if it has
// none yet.
func (tx *DataContext) Status(i int) Status {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	f, why := tx.fate(i)
	if why != "" {
		return Status{}
	}
	return f.status
}

// Undecided reports whether a status for recipient i would count.
func (tx *DataContext) Undecided(i int) bool {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	f, why := tx.fate(i)
	return why == "" && f.undecided()
}

// StartDelivery says that recipient i is being delivered beyond the return
// of Deliver. It is to be called before Deliver returns. If ctx ends before
// SetStatus is called, the recipient gets TimedOut. A started recipient never
// goes on to the next backend.
func (tx *DataContext) StartDelivery(ctx context.Context, i int) {
	why := tx.start(i)
	if why != "" {
		tx.mu.Lock()
		hooks := tx.hooks
		tx.mu.Unlock()
		if hooks.Ignored != nil {
			hooks.Ignored(i, Status{}, why)
		}
		return
	}
	unwatch := context.AfterFunc(ctx, func() {
		if tx.Undecided(i) {
			tx.SetStatus(i, TimedOut)
		}
	})
	tx.mu.Lock()
	if tx.unwatch == nil {
		tx.unwatch = map[int]func() bool{}
	}
	tx.unwatch[i] = unwatch
	decided := !tx.recipients[i].status.IsZero()
	tx.mu.Unlock()
	if decided {
		unwatch()
	}
}

// start notes that the delivery of recipient i was started, or says why it
// cannot be. The hook is called under the lock, so that it comes before the
// recipient's status and before the return of Run.
func (tx *DataContext) start(i int) (why string) {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	f, why := tx.fate(i)
	switch {
	case why != "":
		return why
	case !f.status.IsZero():
		return "the recipient has its status already"
	case f.started:
		return "the delivery was started already"
	case tx.ended:
		return "Deliver had returned"
	}
	f.started = true
	if tx.hooks.Started != nil {
		tx.hooks.Started(i)
	}
	return ""
}

// SetSMTPResponse gives the text of the one reply that an SMTP client sees
// when all its recipients are delivered. It is to be called before the last one has
// its status, since the client may be told at once. It changes no recipient's
// status, and has no effect in LMTP.
func (tx *DataContext) SetSMTPResponse(s Status) {
	tx.mu.Lock()
	hooks := tx.hooks
	tx.mu.Unlock()
	if hooks.SMTPResponse != nil {
		hooks.SMTPResponse(s)
	}
}

// Wrote tells the digest of the message as a backend has passed it on, so that
// the log can tell what was edited. It is to be called before the statuses
// that come of it.
func (tx *DataContext) Wrote(d Digest) {
	tx.mu.Lock()
	hooks := tx.hooks
	tx.mu.Unlock()
	if hooks.Wrote != nil {
		hooks.Wrote(d)
	}
}

// Crashed tells that the process that was to deliver recipient i has ended after
// Deliver returned. It is to be called before the status that comes of it.
func (tx *DataContext) Crashed(i int, crash *CrashError) {
	tx.mu.Lock()
	hooks := tx.hooks
	tx.mu.Unlock()
	if hooks.Crashed != nil {
		hooks.Crashed(i, crash)
	}
}

// fate returns recipient i, or why there is none. Callers hold tx.mu.
func (tx *DataContext) fate(i int) (*fate, string) {
	tx.makeFates()
	if i < 0 || i >= len(tx.recipients) {
		return nil, "there is no such recipient"
	}
	return &tx.recipients[i], ""
}

func (tx *DataContext) makeFates() {
	if tx.recipients == nil {
		tx.recipients = make([]fate, len(tx.Envelope.Recipients))
	}
}

func (tx *DataContext) begin(hooks Hooks) {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	tx.hooks = hooks
	tx.makeFates()
}

// end closes the recipients that are neither decided nor started.
func (tx *DataContext) end() (undecided []int) {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	tx.ended = true
	// A status that another goroutine sets at this moment counts.
	for tx.quiet.L = &tx.mu; tx.calling > 0; {
		tx.quiet.Wait()
	}
	// Those of the beginning, whatever the backend did to the envelope.
	for i := range tx.recipients {
		if f := &tx.recipients[i]; f.status.IsZero() && !f.started {
			f.closed = true
			undecided = append(undecided, i)
		}
	}
	return undecided
}
