package milter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/backends"
)

const (
	maxChanges     = 10000   // of one message, but for pieces of a body
	maxChangedText = 1 << 20 // octets in them
)

// Changes are what a milter makes of a message. They are gathered before its
// verdict, and made after it, all or none.
type changes struct {
	tx    *backends.DataContext
	route string // of what is quarantined

	header      header
	body        *body           // nil: it stays
	sender      *string         // nil: it stays
	params      backends.Params // of the sender; nil: they stay
	added       []backends.Recipient
	deleted     map[int]bool
	quarantined bool
	reason      string

	directory string // of temporary files
	n, octets int
}

func newChanges(b *backend, tx *backends.DataContext) changes {
	return changes{tx: tx, route: b.Quarantine, directory: b.Directory, deleted: map[int]bool{}}
}

// close gives back what the changes take up.
func (c *changes) close() {
	if c.body != nil {
		c.body.close()
	}
}

// note adds a change to those before.
func (c *changes) note(a answer) error {
	if a.code == answerBody {
		if c.body == nil {
			c.body = &body{directory: c.directory}
		}
		return c.body.add(a.body)
	}
	c.n++
	for _, text := range a.texts {
		c.octets += len(text)
	}
	if c.n > maxChanges || c.octets > maxChangedText {
		return fmt.Errorf("more than %d changes, or %d octets in them", maxChanges, maxChangedText)
	}
	place := int(min(a.index, math.MaxInt32))
	switch a.code {
	case answerAddField:
		return c.header.add(a.texts[0], a.texts[1])
	case answerInsertField:
		return c.header.insert(place, a.texts[0], a.texts[1])
	case answerChangeField:
		return c.header.change(place, a.texts[0], a.texts[1])
	case answerAddRcpt:
		c.add(backends.Recipient{Address: bare(a.texts[0])})
	case answerAddRcptPar:
		c.add(backends.Recipient{Address: bare(a.texts[0]), Params: a.params()})
	case answerDeleteRcpt:
		c.remove(bare(a.texts[0]))
	case answerSender:
		sender := bare(a.texts[0])
		c.sender = &sender
		if len(a.texts) > 1 {
			c.params = a.params()
		}
	case answerQuarantine:
		if c.route == "" {
			return errors.New("quarantine was not offered")
		}
		c.quarantined, c.reason = true, a.texts[0]
	}
	return nil
}

// bare returns what stands within the angle brackets of an address, or else the
// address. A quoted local part may have angle brackets, too.
func bare(address string) string {
	start, quoted := 0, false
	for i := 0; i < len(address); i++ {
		switch c := address[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case c == '<' && !quoted:
			start = i + 1
		case c == '>' && !quoted && start > 0:
			return strings.TrimSpace(address[start:i])
		}
	}
	return strings.TrimSpace(address[start:])
}

// add adds a recipient, if it is none yet. One that was deleted stays as it came, but
// with parameters it is another one.
func (c *changes) add(to backends.Recipient) {
	is := func(r backends.Recipient) bool { return strings.EqualFold(r.Address, to.Address) }
	if slices.ContainsFunc(c.added, is) {
		return
	}
	there := false
	for i, r := range c.tx.Envelope.Recipients {
		if is(r) && c.tx.Undecided(i) && !(c.deleted[i] && len(to.Params) > 0) {
			delete(c.deleted, i)
			there = true
		}
	}
	if !there {
		c.added = append(c.added, to)
	}
}

// remove takes all recipients away that have an address. Upper and lower case are
// the same, as in the routes.
func (c *changes) remove(address string) {
	is := func(r backends.Recipient) bool { return strings.EqualFold(r.Address, address) }
	c.added = slices.DeleteFunc(c.added, is)
	for i, r := range c.tx.Envelope.Recipients {
		if is(r) && c.tx.Undecided(i) {
			c.deleted[i] = true
		}
	}
}

// carryOut makes the changes. Those who lose the message come last: by then nothing
// can go wrong any more.
func (c *changes) carryOut(ctx context.Context) error {
	if err := c.editMessage(); err != nil {
		return err
	}
	if c.sender != nil {
		if err := c.tx.SetSender(*c.sender); err != nil {
			return err
		}
	}
	if c.params != nil {
		if of := c.params.OfMessage(); len(of) > 0 {
			slog.WarnContext(ctx, "parameters of a new sender are ignored", "parameters", of)
		}
		if err := c.tx.SetSenderParams(c.params.OfSender()); err != nil {
			return err
		}
	}
	if err := c.editRecipients(ctx); err != nil {
		return err
	}
	for i := range c.deleted {
		c.tx.SetStatus(i, discarded)
	}
	return nil
}

func (c *changes) editMessage() error {
	if c.body == nil {
		return c.header.edit(c.tx)
	}
	body, err := c.body.reader()
	if err != nil {
		return err
	}
	header := append(c.header.appendTo(nil), "\r\n"...)
	return c.tx.ReplaceMessage(io.MultiReader(bytes.NewReader(header), body))
}

func (c *changes) editRecipients(ctx context.Context) error {
	if err := c.replace(); err != nil {
		return err
	}
	if c.quarantined {
		slog.InfoContext(ctx, "quarantined", "route", c.route, "reason", c.reason)
		return c.quarantine()
	}
	for _, to := range c.added {
		if err := c.tx.AddRecipient(to); err != nil {
			return err
		}
	}
	return nil
}

// replace sends a recipient that is deleted on to those that are added, whose answer
// it has then: a milter that rewrites an address adds one and deletes the other, and
// whoever loses the message for it must not hear of a success that there is not.
// Those that are added with parameters of their own cannot be had so.
func (c *changes) replace() error {
	var addresses []string
	var others []backends.Recipient
	for _, to := range c.added {
		if len(to.Params) > 0 && !c.quarantined {
			others = append(others, to)
		} else {
			addresses = append(addresses, to.Address)
		}
	}
	if len(c.deleted) == 0 || len(addresses) == 0 {
		return nil
	}
	first := slices.Min(slices.Collect(maps.Keys(c.deleted)))
	delete(c.deleted, first)
	c.added = others
	return c.tx.Redirect(first, addresses...)
}

// quarantine diverts all recipients. Those that are added have no route of their
// own, and go where the first one goes.
func (c *changes) quarantine() error {
	for i, to := range c.tx.Envelope.Recipients {
		if c.deleted[i] || !c.tx.Undecided(i) {
			continue
		}
		if err := c.tx.Divert(i, c.route); err != nil {
			return err
		}
		if len(c.added) > 0 {
			addresses := []string{to.Address}
			for _, added := range c.added {
				addresses = append(addresses, added.Address)
			}
			if err := c.tx.Redirect(i, addresses...); err != nil {
				return err
			}
			c.added = nil
		}
	}
	return nil
}
