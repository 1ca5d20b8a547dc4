package relay

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
	"github.com/mailgw/mailgw/internal/smtpclient"
)

// Deliver hands the message to the first target that can be talked to. Another
// one is tried as long as no target has answered for a recipient, and none has
// got anything of the message. It decides all recipients, unless the message
// cannot be read.
func (b *backend) Deliver(ctx context.Context, tx *backends.DataContext) error {
	var tried []*target
	answers := make([]backends.Status, len(tx.Envelope.Recipients)) // if no target takes the message
	for t := b.choose(tried, time.Now()); t != nil; t = b.choose(tried, time.Now()) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		tried = append(tried, t)
		d := delivery{backend: b, target: t, tx: tx}
		err := d.try(ctx, len(tried) < len(b.targets))
		next, again := errors.AsType[untouched](err)
		if !again {
			return err
		}
		next.join(answers)
	}
	for i, s := range answers {
		tx.SetStatus(i, s)
	}
	return nil
}

// An untouched message may be given to another target. If there is none, the
// recipients get these answers.
type untouched struct {
	status  backends.Status
	refused []refusal // or each its own
}

type refusal struct {
	recipient int
	status    backends.Status
}

func (u untouched) Error() string { return u.status.Error() }

// join gives the recipients these answers but where they have one that is not for
// good: that target may take the message some other time.
func (u untouched) join(answers []backends.Status) {
	if u.refused == nil {
		for i := range answers {
			u.refused = append(u.refused, refusal{i, u.status})
		}
	}
	for _, r := range u.refused {
		if !answers[r.recipient].Temporary() {
			answers[r.recipient] = r.status
		}
	}
}

// A delivery is an attempt to hand a message to one target.
type delivery struct {
	*backend
	*target
	tx *backends.DataContext

	c        *conn
	to       []int     // the recipients that the target hears of
	cannot   []refusal // those that it cannot take the message for
	tooMany  []refusal // those for another transaction
	refused  int       // at RCPT, in this transaction
	message  *source
	passage  *passage
	answered bool            // a transaction is over
	unfit    backends.Status // what a message gets that the target never takes, if this is one
	told     bool            // what was written, and the answer of an SMTP client
	logged   error           // the last one
	failure  error           // of the message, which is ours
	ended    error           // of the session, before the target has answered for a recipient
}

// try makes the attempt. A connection that was used before may have come to its
// end for reasons that do not hold for a new one.
func (d *delivery) try(ctx context.Context, others bool) error {
	for {
		began := time.Now()
		c, err := d.connectInTime(ctx, others)
		if err != nil {
			return d.giveUp(ctx, began, err)
		}
		d.c, d.ended = c, nil
		err = d.converse(ctx, began)
		usedBefore := c.sent > 1
		d.release(c)
		if _, ended := errors.AsType[*smtpclient.Error](err); !ended {
			return err
		}
		if !usedBefore || ctx.Err() != nil {
			return d.giveUp(ctx, began, err)
		}
	}
}

// connectInTime leaves half of the time to the others, if there are some.
func (d *delivery) connectInTime(ctx context.Context, others bool) (*conn, error) {
	if deadline, ok := ctx.Deadline(); ok && others {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/2)
		defer cancel()
	}
	return d.connect(ctx)
}

// giveUp rests a target that cannot be talked to.
func (d *delivery) giveUp(ctx context.Context, began time.Time, err error) error {
	switch {
	case errors.Is(err, errBusy):
		slog.WarnContext(ctx, "a target is not tried", "target", d.url, "error", err)
	case errors.Is(ctx.Err(), context.Canceled): // which is not the target's fault
		return ctx.Err()
	default:
		pause, _ := d.rest.failed(began, time.Now())
		slog.WarnContext(ctx, "a target is rested", "target", d.url, "error", err, "pause", pause)
	}
	if ctx.Err() != nil {
		return untouched{status: backends.TimedOut}
	}
	return untouched{status: sessionStatus(err)}
}

// converse talks about the message over d.c. An *smtpclient.Error is one of the
// session, before the target has answered for a recipient.
func (d *delivery) converse(ctx context.Context, began time.Time) error {
	d.c.sent++
	if d.isOurselves() {
		slog.ErrorContext(ctx, "the target is this gateway", "target", d.url)
		d.tx.SetAll(loop)
		return nil
	}
	if err := d.introduce(ctx); err != nil {
		return err
	}
	if err := d.sift(); err != nil {
		return err
	}
	if err := d.forward(ctx); err != nil {
		return err
	}
	d.send(ctx)
	if d.ended != nil {
		return d.ended
	}
	for _, r := range d.cannot {
		d.tx.SetStatus(r.recipient, r.status)
	}
	if e, ok := errors.AsType[*smtpclient.Error](d.c.Err()); ok && e.Reply.Code == 421 {
		d.giveUp(ctx, began, e)
	} else {
		d.rest.well()
	}
	return d.failure
}

// isOurselves reports whether the target bears the name of this very process.
func (d *delivery) isOurselves() bool {
	name := d.c.extensions["X-MAILGW"]
	return name != "" && name == d.tx.Session.Gateway
}

// sift parts the recipients that the target cannot take the message for from the
// others. If there are no others, another target may be able to.
func (d *delivery) sift() error {
	if s := d.c.refuses(d.tx); !s.IsZero() {
		return untouched{status: s}
	}
	d.to, d.cannot = nil, nil
	for i, r := range d.tx.Envelope.Recipients {
		if s := d.c.refusesRecipient(r); !s.IsZero() {
			d.cannot = append(d.cannot, refusal{i, s})
		} else {
			d.to = append(d.to, i)
		}
	}
	if len(d.to) == 0 {
		return untouched{refused: d.cannot}
	}
	return nil
}

// introduce puts the client in our place, if that is wanted.
func (d *delivery) introduce(ctx context.Context) error {
	if !d.xclient || !d.c.has("XCLIENT") {
		return nil
	}
	d.c.single = true // it is this client's from now on
	attrs := presented(&d.tx.Session)
	// Servers go by the EHLO that follows, and forget the HELO of XCLIENT.
	if isWord(attrs.HELO) {
		d.c.Name = attrs.HELO
	}
	err := d.c.XClient(ctx, attrs.Commands(d.c.Words("XCLIENT")))
	if e, ok := errors.AsType[*smtpclient.Error](err); ok && e.Err == nil {
		// It may be this client that it does not want, and the target is well.
		slog.WarnContext(ctx, "the target refuses XCLIENT", "target", d.url, "error", e)
		return untouched{status: clientStatus(e.Reply)}
	}
	d.c.offer = offerOf(d.c.Conn)
	return err
}

// forward tells the target who the client is.
func (d *delivery) forward(ctx context.Context) error {
	if !d.xforward {
		return nil
	}
	attrs := forwarded(d.tx)
	err := d.c.XForward(ctx, attrs.Commands(d.c.Words("XFORWARD")))
	switch refused, ok := errors.AsType[*smtpclient.Error](err); {
	case !ok || d.c.Err() != nil:
		return err
	case d.xforwardErrors == "fail":
		slog.WarnContext(ctx, "the target refuses XFORWARD", "target", d.url, "error", refused)
		return untouched{status: notTrusted}
	default:
		slog.WarnContext(ctx, "the target refuses XFORWARD, and the message goes on without it", "target", d.url, "error", refused)
	}
	return nil
}

// send hands over the message, in one transaction or several.
func (d *delivery) send(ctx context.Context) {
	d.message = &source{message: d.tx.Body, keep: func() bool { return len(d.tooMany) > 0 }}
	defer d.message.close()
	d.transact(ctx)
	for d.again(ctx) {
		d.transact(ctx)
	}
	for _, r := range d.tooMany {
		// A client that hears of something temporary would come again with what is never taken.
		if !d.unfit.IsZero() {
			r.status = d.unfit
		}
		d.cannot = append(d.cannot, r)
	}
}

// transact hands over the message for as many recipients as the target takes in one
// transaction.
func (d *delivery) transact(ctx context.Context) {
	d.refused, d.tooMany = 0, nil
	if most := d.c.limit("RCPTMAX"); most > 0 && len(d.to) > most {
		for _, i := range d.to[most:] {
			d.tooMany = append(d.tooMany, refusal{i, tooMany})
		}
		d.to = d.to[:most]
	}
	d.passage = newPassage(d.tx, d.message, d.c.offer)
	message := &smtpclient.Transaction{
		Sender:   d.tx.Envelope.Sender,
		Params:   d.c.mailParams(d.tx),
		Message:  d.passage,
		Size:     d.tx.Size,
		Chunking: true,
	}
	for _, i := range d.to {
		r := d.tx.Envelope.Recipients[i]
		message.Recipients = append(message.Recipients, smtpclient.Recipient{Address: r.Address, Params: d.c.known(r.Params)})
	}
	d.c.Send(ctx, message, func(k int, reply smtp.Reply, err error) {
		if err == nil {
			d.delivered(d.to[k], reply)
			return
		}
		d.notDelivered(ctx, k, err)
	})
}

// delivered gives a recipient the words of the target.
func (d *delivery) delivered(i int, reply smtp.Reply) {
	s := replyStatus(reply)
	if !d.told {
		d.told = true
		d.tx.Wrote(d.passage.wrote(!d.c.has("CHUNKING")))
		d.tx.SetSMTPResponse(s)
	}
	d.tx.SetStatus(i, s)
}

// notDelivered gives recipient k of the transaction a refusal, or what the trouble
// means.
func (d *delivery) notDelivered(ctx context.Context, k int, err error) {
	var e *smtpclient.Error
	errors.As(err, &e)
	i, accepted := d.to[k], k-d.refused
	if e.Stage == smtpclient.RCPT {
		d.refused++
	}
	ours, isOurs := errors.AsType[smtpclient.MessageError](err)
	switch {
	case isOurs && errors.Is(ours, smtp.ErrBareNewline):
		d.unfit = bareNewline
		d.tx.SetStatus(i, d.unfit)
	case isOurs && !d.passage.refused.IsZero():
		d.unfit = d.passage.refused
		d.tx.SetStatus(i, d.unfit)
	case isOurs:
		d.failure = ours.Err // who has no status yet gets that of the error
	case e.Stage == smtpclient.MAIL && d.c.Err() != nil && !d.answered:
		d.ended = e
	case accepted > 0 && isTooMany(e):
		d.tooMany = append(d.tooMany, refusal{i, replyStatus(e.Reply)})
	default:
		d.log(ctx, e)
		d.tx.SetStatus(i, transactionStatus(ctx, e))
	}
}

// log logs the trouble of several recipients once.
func (d *delivery) log(ctx context.Context, e *smtpclient.Error) {
	if e.Err == nil || d.logged == error(e) {
		return
	}
	d.logged = e
	slog.WarnContext(ctx, "trouble with the target", "target", d.url, "error", e)
}
