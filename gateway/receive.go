package gateway

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// A messageSource gives the octets of a message up to its end.
type messageSource interface {
	io.Reader
	// Bare reports whether a CR or LF that stands alone was read.
	Bare() bool
}

// receive reads the message of the transaction that d is in and starts its
// delivery. The caller asks replies for the answers. An error means that the
// client was lost before the end of the message, so there is nobody to
// answer and nothing is delivered.
func (s *Server) receive(ctx context.Context, d *dialog, r messageSource, log *slog.Logger) (*delivery, error) {
	m, err := s.spool.store(r, int64(d.Limits.MessageSize))
	delivery := s.newDelivery(d, log)
	if err == nil && r.Bare() && d.BareNewlines == "refuse" {
		m.Close()
		err = errBareNewline
	}
	if refusal, ok := refusalOf(err); ok {
		// The commands go on after the end of the message.
		_, lost := io.Copy(io.Discard, r)
		if lost == nil {
			delivery.refuse(refusal, err)
			return delivery, nil
		}
		err = lost
	}
	if err != nil {
		delivery.log.Info("refused", "reason", "the message is incomplete", "error", cause(err))
		delivery.release()
		return nil, err
	}
	delivery.logReceived(m)
	delivery.begin(ctx, m, d.Limits.AnswerTimeout)
	return delivery, nil
}

var (
	errBareNewline = errors.New("bare CR or LF in the message")
	bareNewline    = backends.NewStatus(550, "5.6.0", "message refused: it has a bare CR or LF, see RFC 5321, section 2.3.8")
)

// refusalOf returns what a client is told of a message that is not taken. It
// reports false for an error of the connection, which leaves nobody to tell.
func refusalOf(err error) (s backends.Status, ok bool) {
	var trouble spoolError
	switch {
	case err == errTooLarge:
		return tooLarge, true
	case err == errBareNewline:
		return bareNewline, true
	case errors.As(err, &trouble):
		return trouble.status(), true
	}
	return s, false
}

// newDelivery prepares the delivery of the transaction that d was in. log is
// the session's.
func (s *Server) newDelivery(d *dialog, log *slog.Logger) *delivery {
	tx := d.endMessage()
	ident := ""
	if x := tx.session.XForward; x != nil {
		ident = x.Ident
	}
	return &delivery{
		transaction: tx,
		backends:    s.backends,
		spool:       s.spool,
		maxSize:     maxReplaced(int64(d.Limits.MessageSize)),
		log:         log.With("tx", tx.id, "ident", ident, "from", tx.sender),
		received:    time.Now(),
		answers:     make([]backends.Status, len(tx.recipients)),
		holders:     make([]string, len(tx.recipients)),
		progress:    make(chan struct{}, 1),
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

func (d *delivery) logReceived(m *message) {
	attrs := []any{"size", m.size, "recipients", len(d.recipients), "protocol", d.session.Protocol, "helo", d.session.HELO}
	if x := d.session.XForward; x != nil && x.Forwarded {
		attrs = append(attrs, "client_name", x.Name, "client_addr", x.Addr, "client_helo", x.HELO, "client_proto", x.Proto)
	}
	d.log.Info("received", attrs...)
}

// refuse answers all recipients without asking a backend.
func (d *delivery) refuse(s backends.Status, err error) {
	d.log.Info("refused", "reply", s.Error(), "reason", err.Error())
	d.answerAll(s)
	d.release()
}

// replies gives what the client is told: one reply in SMTP; in LMTP one for
// each recipient, in the order of RCPT, as soon as it and its predecessors
// are known (RFC 2033, section 4.2). It calls block before it waits.
func (d *delivery) replies(protocol string, block func()) iter.Seq[smtp.Reply] {
	return func(yield func(smtp.Reply) bool) {
		if protocol == "smtp" {
			block()
			yield(d.reply("", d.fold()))
			return
		}
		for i, r := range d.recipients {
			s := d.poll(i)
			if s.IsZero() {
				block()
				s = d.wait(i)
			}
			// A long address must not push the reason out of the line.
			prefix := ""
			if len(r.Address) < 200 {
				prefix = "<" + r.Address + "> "
			}
			if !yield(d.reply(prefix, s)) {
				return
			}
		}
	}
}

// reply tells a status, with the ID of the transaction by which it is found
// in the log.
func (d *delivery) reply(prefix string, s backends.Status) smtp.Reply {
	s.Text = prefix + s.Text
	s = s.Sanitized()
	s.Text += " (" + d.id + ")"
	return statusReply(s)
}
