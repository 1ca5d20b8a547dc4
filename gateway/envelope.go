package gateway

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

func (d *dialog) mail(args string) smtp.Reply {
	switch {
	case !d.greeted:
		return reply(503, "5.5.1", "say "+hello[d.Protocol]+" first")
	case d.tx != nil:
		return reply(503, "5.5.1", "nested MAIL")
	}
	path, params, err := d.cutPath(args, "FROM:")
	if err != nil {
		return pathReply("5.1.7", err)
	}
	now := time.Now()
	tx := &transaction{id: newID(now), params: params, began: now, ends: now.Add(d.Limits.MessageTimeout), rates: d.rates}
	_, tx.utf8 = tx.params.Lookup("SMTPUTF8")
	if r, ok := d.checkParams(tx, mailParams, params); !ok {
		return r
	}
	if path != "" { // RFC 5321, section 4.5.5: the null reverse-path
		if tx.sender, err = smtp.CheckMailbox(path, tx.utf8); err != nil {
			return pathReply("5.1.7", err)
		}
	}
	if !d.senders.permits(tx.sender) {
		return statusReply(d.senders.reply)
	}
	if r, ok := d.secured(tx.sender); !ok {
		return r
	}
	d.distrustAuth(tx)
	tx.session = d.session
	tx.session.XForward = d.xforward
	tx.session.Protocol = d.withProtocol(tx.utf8)
	if r, ok := d.within(d.rates.check(tx, "")); !ok {
		return r
	}
	asked := d.who(backends.AboutSender, d.Ask)
	if asked == nil { // so that there is nothing to allocate
		return d.open(tx, args, senderOK)
	}
	q := func() backends.Question {
		return backends.Question{About: backends.AboutSender, Session: &tx.session, Envelope: tx.envelope()}
	}
	return d.question(asked, q, func(a backends.Answer, err error) smtp.Reply {
		r, ok := opinion(a, err, senderOK)
		if !ok {
			return r
		}
		return d.open(tx, args, r)
	})
}

var senderOK = reply(250, "2.1.0", "sender ok")

// open begins the transaction that MAIL with those arguments is for, and returns
// the reply that says so, unless something has no room for it.
func (d *dialog) open(tx *transaction, args string, says smtp.Reply) smtp.Reply {
	if !d.charge(tx, args) {
		return statusReply(backends.StorageFull)
	}
	if r, ok := d.within(d.rates.take(tx, "")); !ok {
		d.gen.spool.refund(tx.charged)
		return r
	}
	d.tx = tx
	return says
}

// distrustAuth replaces what a client says of who has submitted the message, if
// it is not authenticated itself or names nobody: RFC 4954, section 5. Where
// AUTH is not offered, it is a parameter like others.
func (d *dialog) distrustAuth(tx *transaction) {
	if d.session.User == "" && len(d.mechanisms()) == 0 {
		return
	}
	for i, p := range tx.params {
		keyword, value, _ := strings.Cut(p, "=")
		if strings.EqualFold(keyword, "AUTH") && (d.session.User == "" || !smtp.IsAuthMailbox(value)) {
			tx.params[i] = "AUTH=<>"
		}
	}
}

// secured refuses a sender who has to come over TLS or to be authenticated.
func (d *dialog) secured(sender string) (smtp.Reply, bool) {
	switch {
	case d.session.TLS == nil && d.tlsSenders.lookup(sender):
		return reply(530, "5.7.0", "this sender has to say STARTTLS first"), false
	case d.session.User == "" && d.authSenders.lookup(sender):
		return d.authenticateFirst(), false
	}
	return smtp.Reply{}, true
}

func (d *dialog) rcpt(args string) smtp.Reply {
	switch {
	case d.tx == nil:
		return reply(503, "5.5.1", "say MAIL first")
	case d.tx.message != nil:
		return reply(503, "5.5.1", "the message has begun")
	}
	path, params, err := d.cutPath(args, "TO:")
	if err != nil {
		return pathReply("5.1.3", err)
	}
	if r, ok := d.checkParams(d.tx, rcptParams, params); !ok {
		return r
	}
	address, err := recipientAddress(path, d.tx.utf8)
	if err != nil {
		return pathReply("5.1.3", err)
	}
	if most := d.Limits.Recipients; most > 0 && len(d.tx.recipients) >= most {
		// RFC 5321, section 4.5.3.1.10: temporary, so that the client sends
		// the message to the others again.
		return reply(452, "4.5.3", "too many recipients")
	}
	if !d.recipients.permits(address) {
		return statusReply(d.recipients.reply)
	}
	route := d.routes.lookup(address)
	switch {
	case route == nil:
		return reply(550, "5.7.1", "no route for this recipient")
	case d.OneRoute && len(d.tx.recipients) > 0 && route != d.tx.recipients[0].route:
		return reply(452, "4.5.3", "send to this recipient in a transaction of its own")
	case !d.charge(d.tx, args):
		return statusReply(backends.StorageFull)
	}
	if r, ok := d.within(d.rates.check(d.tx, address)); !ok {
		return r
	}
	to := recipient{backends.Recipient{Address: address, Params: params}, route}
	asked := d.who(backends.AboutRecipient, d.Ask, route.backends)
	if asked == nil { // so that there is nothing to allocate
		return d.accept(to, recipientOK)
	}
	q := func() backends.Question {
		return backends.Question{About: backends.AboutRecipient, Session: &d.tx.session, Envelope: d.tx.envelope(), Recipient: to.Recipient}
	}
	return d.question(asked, q, func(a backends.Answer, err error) smtp.Reply {
		r, ok := opinion(a, err, recipientOK)
		if !ok {
			return r
		}
		return d.accept(to, r)
	})
}

var recipientOK = reply(250, "2.1.5", "recipient ok")

// accept takes a recipient into the transaction, and returns the reply that
// says so, unless a rate has no more for it.
func (d *dialog) accept(to recipient, says smtp.Reply) smtp.Reply {
	if r, ok := d.within(d.rates.take(d.tx, to.Address)); !ok {
		return r
	}
	if all := d.tx.recipients; len(all) == cap(all) {
		d.tx.recipients = slices.Grow(all, 3*len(all)+1) // often one, or else many
	}
	d.tx.recipients = append(d.tx.recipients, to)
	return says
}

// cutPath parts the arguments of MAIL or RCPT.
func (d *dialog) cutPath(args, prefix string) (path string, params []string, err error) {
	path, params, err = smtp.CutPath(args, prefix)
	if err == nil && d.StrictEnvelopes && args[len(prefix)] != '<' {
		err = fmt.Errorf("%s<address> expected, with nothing before the angle bracket", prefix)
	}
	return path, params, err
}

// charge takes what a command adds to the envelope from the budget that
// messages share, so that no number of clients can use up memory.
func (d *dialog) charge(tx *transaction, args string) bool {
	const overhead = 256 // of what is kept besides the text, roughly
	octets := int64(len(args) + overhead)
	if !d.gen.spool.charge(octets) {
		return false
	}
	tx.charged += octets
	return true
}

// recipientAddress returns the address of a forward-path, which may be
// "postmaster" alone: RFC 5321, section 4.5.1.
func recipientAddress(path string, utf8 bool) (string, error) {
	if strings.EqualFold(path, "postmaster") && smtp.IsASCII(path) {
		return path, nil
	}
	return smtp.CheckMailbox(path, utf8)
}

// pathReply answers a fault in the arguments of MAIL or RCPT. enhanced is
// the code of a bad address.
func pathReply(enhanced string, err error) smtp.Reply {
	switch {
	case errors.As(err, new(smtp.ParamError)):
		return reply(501, "5.5.4", err.Error())
	case errors.Is(err, smtp.ErrNeedsUTF8):
		return reply(553, "5.6.7", err.Error()) // RFC 6531, section 3.5
	}
	return reply(501, enhanced, err.Error())
}

func (d *dialog) data(args string) smtp.Reply {
	switch {
	case args != "":
		return reply(501, "5.5.4", "DATA has no arguments")
	case d.tx == nil:
		return reply(503, "5.5.1", "say MAIL first")
	case d.tx.message != nil:
		return reply(503, "5.5.1", "BDAT has begun the message") // RFC 3030, section 2
	case d.tx.binary:
		return reply(503, "5.5.1", "a BINARYMIME message comes by BDAT") // RFC 3030, section 3
	case len(d.tx.recipients) == 0:
		return d.noRecipients()
	}
	return reply(354, "", "end the message with CRLF.CRLF")
}

// noRecipients refuses a message for nobody.
func (d *dialog) noRecipients() smtp.Reply {
	if d.Protocol == "lmtp" {
		return reply(503, "5.5.1", "no valid recipients") // RFC 2033, section 4.2
	}
	return reply(554, "5.5.1", "no valid recipients") // RFC 5321, section 3.3
}

// bdat refuses a chunk or lets it be read. Either way as many octets follow
// as the client says, and if that cannot be told, neither can where the next
// command begins.
func (d *dialog) bdat(args string) (r smtp.Reply) {
	var err error
	d.chunk.size, d.chunk.last, err = smtp.ParseChunk(args)
	switch {
	case err != nil:
		return reply(421, "4.7.0", d.hostname+" "+err.Error())
	case !d.Chunking && !d.offer.chunking:
		return reply(502, "5.5.1", "BDAT is not offered here")
	case d.tx == nil:
		return reply(503, "5.5.1", "say MAIL first")
	case len(d.tx.recipients) == 0:
		return d.noRecipients()
	}
	return smtp.Reply{}
}

// endMessage returns the transaction whose message was read, and is ready
// for the next one.
func (d *dialog) endMessage() *transaction {
	tx := d.tx
	d.rates.settle(tx)
	d.tx = nil // its charge and its shares go with it
	d.reset()
	return tx
}
