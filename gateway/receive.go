package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// receive reads the message after DATA and returns its delivery, which is to be
// carried. An error means that the client was lost
// before the end of the message, so there is nobody to answer and nothing is
// delivered. bare tells, at the end of r, whether a CR or LF stood alone.
func (g *generation) receive(ctx context.Context, d *dialog, r io.Reader, bare func() bool, log *slog.Logger) (*delivery, error) {
	if err := g.take(d, r, log); err != nil {
		return nil, err
	}
	if d.tx.fault == nil && bare() && d.BareNewlines == "refuse" {
		d.tx.fault = errBareNewline
	}
	return g.prepare(ctx, d, log), nil
}

// receiveChunk reads the chunk after BDAT. After the last one it returns the
// delivery, as receive does; before, the reply to the chunk.
func (g *generation) receiveChunk(ctx context.Context, d *dialog, r io.Reader, log *slog.Logger) (*delivery, smtp.Reply, error) {
	tx := d.tx
	if err := g.take(d, io.TeeReader(r, writerFunc(tx.lines.scan)), log); err != nil {
		return nil, smtp.Reply{}, err
	}
	if !d.chunk.last {
		if refusal, ok := refusalOf(tx.fault); ok {
			return nil, statusReply(refusal), nil
		}
		return nil, reply(250, "2.0.0", fmt.Sprintf("%d octets", d.chunk.size)), nil
	}
	if tx.fault == nil && !tx.binary && tx.lines.end() && d.BareNewlines == "refuse" {
		tx.fault = errBareNewline
	}
	return g.prepare(ctx, d, log), smtp.Reply{}, nil
}

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

// take adds what r gives to the message of the transaction. It always reads
// to the end of r, because the commands go on there, whatever becomes of the
// message. An error means that the client was lost.
func (g *generation) take(d *dialog, r io.Reader, log *slog.Logger) error {
	tx := d.tx
	if tx.message == nil {
		tx.message = &message{spool: g.spool}
		if g.digests {
			tx.digester = backends.NewDigester()
		}
	}
	if tx.digester != nil {
		r = io.TeeReader(r, tx.digester)
	}
	var err error
	if tx.fault == nil {
		err = tx.message.fill(r, int64(d.Limits.MessageSize))
	}
	if _, ok := refusalOf(err); ok {
		tx.message.Close()
		tx.fault, err = err, nil
	}
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	if err != nil {
		d.transactionLog(log).Info("refused", "reason", "the message is incomplete", "error", cause(err))
		d.reset()
	}
	return err
}

// prepare ends the transaction that d is in and returns its delivery. The fault of
// the transaction is final then.
func (g *generation) prepare(ctx context.Context, d *dialog, log *slog.Logger) *delivery {
	tx, m := d.tx, d.tx.message
	if tx.fault == nil {
		tx.fault = checkHeader(m, d.Limits)
	}
	if tx.fault == nil {
		tx.fault = checkMIME(ctx, m, d.Limits)
	}
	return g.newDelivery(d, log) // which takes from d what d would give back
}

var (
	errBareNewline = errors.New("bare CR or LF in the message")
	bareNewline    = backends.NewStatus(550, "5.6.0", "message refused: it has a bare CR or LF, see RFC 5321, section 2.3.8")
)

// refusalOf returns what a client is told of a message that is not taken. It
// reports false for an error of the connection, which leaves nobody to tell.
func refusalOf(err error) (s backends.Status, ok bool) {
	switch err {
	case nil:
		return s, false
	case errTooLarge:
		return tooLarge, true
	case errBareNewline:
		return bareNewline, true
	case errHeaderLimit:
		return headerTooLarge, true
	case errHops:
		return tooManyHops, true
	case errMIME:
		return mimeTooComplex, true
	}
	trouble, ok := errors.AsType[spoolError](err)
	if ok {
		s = trouble.status()
	}
	return s, ok
}

// newDelivery prepares the delivery of the transaction that d was in. log is
// the session's.
func (g *generation) newDelivery(d *dialog, log *slog.Logger) *delivery {
	tx := d.endMessage()
	ident := ""
	if x := tx.session.XForward; x != nil {
		ident = x.Ident
	}
	fates := make([]fate, len(tx.recipients))
	for i, r := range tx.recipients {
		fates[i].address = r.Address
	}
	return &delivery{
		transaction: tx,
		backends:    g.backends,
		routes:      g.routes,
		spool:       g.spool,
		shadows:     g.shadows,
		shadowing:   g.shadowing,
		recordings:  g.recordings,
		maxSize:     maxReplaced(int64(d.Limits.MessageSize)),
		log:         logWith(log, slog.String("tx", tx.id), slog.String("ident", ident), slog.String("from", tx.sender)),
		received:    time.Now(),
		fates:       fates,
		budget:      d.Limits.AnswerTimeout,
		tell:        func() {},
	}
}

// maxReplaced bounds a message that a backend puts in the place of one that
// was within limit: a filter may add to it, but not without end.
func maxReplaced(limit int64) int64 {
	if limit == 0 {
		return 0
	}
	return 2*limit + 1<<20
}

func (d *delivery) logReceived() {
	attrs := append(make([]slog.Attr, 0, 11),
		slog.Int64("size", d.message.size),
		slog.Int("recipients", len(d.recipients)),
		slog.String("protocol", d.session.Protocol),
		slog.String("helo", d.session.HELO))
	if x := d.session.XForward; x != nil && x.Forwarded {
		attrs = append(attrs, slog.String("client_name", x.Name), slog.String("client_addr", x.Addr),
			slog.String("client_helo", x.HELO), slog.String("client_proto", x.Proto))
	}
	if d.session.User != "" {
		attrs = append(attrs, slog.String("user", d.session.User), slog.String("mechanism", d.session.Mechanism))
	}
	logTogether(d.log, d.received, "received", attrs...)
}

// refuse answers all recipients of a message that is not taken. Trouble of the
// spool is the operator's.
func (d *delivery) refuse(s backends.Status, err error) {
	defer d.release()
	defer d.answerAll(s)
	d.message.Close()
	level := slog.LevelInfo
	if _, ok := errors.AsType[spoolError](err); ok {
		level = slog.LevelError
	}
	d.log.Log(context.Background(), level, "refused", "reply", s.Error(), "reason", err.Error())
}

// reply tells a status, of the recipient to if there is one to be named, with the
// ID of the transaction by which it is found in the log.
func (d *delivery) reply(to string, s backends.Status) smtp.Reply {
	open, end := "<", "> "
	if to == "" || len(to) >= 200 { // a long address must not push the reason out of the line
		to, open, end = "", "", ""
	}
	whole := s
	whole.Text = open + to + end + s.Text + " (" + d.id + ")"
	if whole == whole.Sanitized() { // nearly always, and at once
		return statusReply(whole)
	}
	s.Text = open + to + end + s.Text
	s = s.Sanitized()
	s.Text += " (" + d.id + ")"
	return statusReply(s)
}
