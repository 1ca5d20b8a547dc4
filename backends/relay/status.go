package relay

import (
	"context"
	"errors"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
	"github.com/mailgw/mailgw/internal/smtpclient"
)

// What clients hear of trouble with a target. They learn neither where it is nor
// what it is called; the log has that.
var (
	noAnswer   = backends.NewStatus(451, "4.4.1", "no answer from the next hop, try again later")
	lost       = backends.NewStatus(451, "4.4.2", "bad connection to the next hop, try again later")
	busy       = backends.NewStatus(451, "4.4.5", "too much mail for the next hop, try again later")
	notNow     = backends.NewStatus(451, "4.3.2", "the next hop takes no mail now, try again later")
	noTLS      = backends.NewStatus(451, "4.7.5", "no secure connection to the next hop, try again later")
	noAuth     = backends.NewStatus(451, "4.7.0", "not authenticated by the next hop, try again later")
	notTrusted = backends.NewStatus(451, "4.3.0", "not trusted by the next hop, try again later")
	loop       = backends.NewStatus(451, "4.4.6", "routing loop: the next hop is this gateway")
	tooMany    = backends.NewStatus(452, "4.5.3", "too many recipients for the next hop") // RFC 9422, section 4.1

	bareNewline = backends.NewStatus(550, "5.6.0", "message with bare CR or LF, which the next hop does not take")
)

// sessionStatus returns what it means for a message that no session could be had
// with a target. That is trouble between the two of us, even if the target
// refuses for good.
func sessionStatus(err error) backends.Status {
	e, ok := errors.AsType[*smtpclient.Error](err)
	if !ok {
		return busy
	}
	switch e.Stage {
	case connecting:
		return noAnswer
	case handshake, smtpclient.STARTTLS:
		return noTLS
	case smtpclient.AUTH:
		return noAuth
	}
	if e.Err == nil {
		return notNow
	}
	return lost
}

// transactionStatus returns what an error in a transaction means for a recipient.
func transactionStatus(ctx context.Context, e *smtpclient.Error) backends.Status {
	switch {
	case ctx.Err() != nil:
		return backends.StatusOf(ctx.Err())
	case e.Err != nil:
		return lost
	}
	return replyStatus(e.Reply)
}

// ofSession are replies that a target gives to us, not to the message: it wants
// other commands before, or does not know who we are (RFC 4954, section 6).
// Its settings or ours are wrong.
var ofSession = map[int]bool{502: true, 503: true, 530: true, 534: true, 535: true, 538: true}

// clientStatus returns what it means for a message that the target refuses
// XCLIENT: with these codes Postfix does not let us say it, and with any other it
// refuses the client in our place, which must not rest it for all others.
func clientStatus(r smtp.Reply) backends.Status {
	switch r.Code {
	case 500, 501, 502, 503, 550:
		return notTrusted
	}
	return replyStatus(r)
}

// replyStatus returns the target's words as a Status. Codes that no reply to a
// message has become those of their class.
func replyStatus(r smtp.Reply) backends.Status {
	s := backends.NewStatus(r.Code, r.Enhanced, r.Text)
	switch {
	case ofSession[r.Code]:
		s.Code, s.Enhanced = 451, "4.3.5" // RFC 3463, section 3.4: system incorrectly configured
	case s.Positive() && (s.Code < 250 || s.Code > 252):
		s.Code = 250
	case s.Temporary() && s.Code > 459, s.Code == 421: // which would end our session with the client
		s.Code = 451
	case s.Permanent() && s.Code > 559:
		s.Code = 554
	}
	return s
}
