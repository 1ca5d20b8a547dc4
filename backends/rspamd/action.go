package rspamd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// An effect is what is done with a message.
type effect struct {
	kind  effectKind
	route string // for divert
}

type effectKind string

const (
	pass     effectKind = "pass"     // it goes on
	mark     effectKind = "header"   // it goes on, with the field that says that it is spam
	retitle  effectKind = "subject"  // it goes on, with the subject that rspamd gives it
	divert   effectKind = "divert"   // it goes on by a named route
	tempfail effectKind = "tempfail" // it is to come again
	reject   effectKind = "reject"   // it is refused
	discard  effectKind = "discard"  // it is taken, and nobody gets it
)

func parseEffect(text string) (effect, error) {
	if route, ok := strings.CutPrefix(text, "divert:"); ok {
		trial := backends.DataContext{Envelope: backends.Envelope{Recipients: make([]backends.Recipient, 1)}}
		return effect{divert, route}, trial.Divert(0, route)
	}
	e := effect{kind: effectKind(text)}
	if !slices.Contains([]effectKind{pass, mark, retitle, tempfail, reject, discard}, e.kind) {
		return effect{}, fmt.Errorf("%q is none of pass, header, subject, divert:ROUTE, tempfail, reject, discard", text)
	}
	return e, nil
}

// effectOf returns what the settings want done after an answer.
func (b *backend) effectOf(a *answer) effect {
	action := a.Action
	if r := a.Milter.Reject; action == "reject" && (r == "discard" || r == "quarantine") {
		action = r
	}
	if e, ok := b.effects[action]; ok {
		return e
	}
	return b.effects["other"]
}

// follow does with the message what the settings want done after an answer.
func (b *backend) follow(ctx context.Context, tx *backends.DataContext, h *header, a *answer) error {
	e := b.effectOf(a)
	if a.Milter.NoAction {
		e = effect{kind: pass}
	}
	slog.InfoContext(ctx, "scanned", "action", a.Action, "done", string(e.kind), "score", a.Score, "required_score", a.RequiredScore)
	switch e.kind {
	case tempfail:
		tx.SetAll(backends.NewStatus(451, "4.7.1", cmp.Or(a.Messages.SMTP, "try again later")).Sanitized())
		return nil
	case reject:
		tx.SetAll(backends.NewStatus(550, "5.7.1", cmp.Or(a.Messages.SMTP, "message rejected as spam")).Sanitized())
		return nil
	case discard:
		tx.SetAll(dropped)
		return nil
	}
	h.follow(a, e.kind)
	if h.err != nil {
		return h.err
	}
	return followEnvelope(tx, a, e.route)
}

// dropped is the answer for recipients that do not get the message since rspamd
// said so.
var dropped = backends.NewStatus(250, "2.0.0", "message accepted")

// follow makes the edits of an answer. Signatures are put on top of what else is
// added there.
func (h *header) follow(a *answer, kind effectKind) {
	for name, places := range a.Milter.Remove {
		h.remove(name, places...)
	}
	for _, signature := range a.Signatures {
		h.insert(0, "DKIM-Signature", signature)
	}
	for _, name := range slices.Sorted(maps.Keys(a.Milter.Add)) {
		for _, add := range a.Milter.Add[name] {
			h.insert(add.order, name, add.value)
		}
	}
	switch {
	case a.Milter.NoAction:
		h.insert(-1, actionField, a.Action)
	case kind == mark && len(a.Milter.SpamHeader) > 0:
		for _, name := range slices.Sorted(maps.Keys(a.Milter.SpamHeader)) {
			h.remove(name, 0)
			h.insert(-1, name, a.Milter.SpamHeader[name])
		}
	case kind == mark:
		h.remove(spamField, 0)
		h.insert(-1, spamField, "Yes")
	case kind == retitle && a.Subject != "":
		h.replaceSubject(a.Subject)
	}
}

// followEnvelope changes the envelope. route is empty if nobody is diverted.
func followEnvelope(tx *backends.DataContext, a *answer, route string) error {
	var faults []error
	if from := a.Milter.ChangeFrom; from != nil {
		faults = append(faults, tx.SetSender(bare(*from)))
	}
	for _, to := range a.Milter.AddRecipients {
		faults = append(faults, tx.AddRecipient(backends.Recipient{Address: bare(to)}))
	}
	var deleted []int
	gone := map[mailbox]bool{}
	for _, to := range a.Milter.DeleteRecipients {
		gone[mailboxOf(bare(to))] = true
	}
	for i, to := range tx.Envelope.Recipients {
		switch {
		case gone[mailboxOf(to.Address)]:
			deleted = append(deleted, i)
		case route != "":
			faults = append(faults, tx.Divert(i, route))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	for _, i := range deleted {
		tx.SetStatus(i, dropped)
	}
	return nil
}

// A mailbox is an address in the form in which routes compare them.
type mailbox struct{ local, domain string }

func mailboxOf(address string) (m mailbox) {
	m.local, m.domain = smtp.FoldMailbox(address)
	return m
}

// bare returns an address without its angle brackets.
func bare(address string) string {
	return strings.TrimSuffix(strings.TrimPrefix(address, "<"), ">")
}
