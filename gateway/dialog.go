package gateway

import (
	"cmp"
	"fmt"
	"log/slog"
	"strings"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
	"github.com/mailgw/mailgw/xforward"
)

// A dialog decides what a server says in a session. It takes one command
// line after the other and returns the reply and what is to be done next. It
// does no I/O and never blocks.
type dialog struct {
	*listener
	session             backends.Session
	proxied             *backends.Client     // by PROXY
	client              xforward.ClientAttrs // by XCLIENT
	counted             string               // the countKey that it counts by
	trusted, mayXClient bool                 // may send XFORWARD, XCLIENT

	greeted   bool // by HELO, EHLO or LHLO
	extended  bool // by EHLO or LHLO
	offer     offer
	xforward  *xforward.Attrs
	tx        *transaction // from MAIL to the end of the message
	errors    int          // bad commands since the last message
	refused   int          // all refused commands since the last message
	claims    string       // the user that a login was for, in the command under way
	guesses   int          // of AUTH that went wrong, whoever was to blame
	chunk     chunk        // that BDAT has announced
	exchange  *exchange    // of AUTH, while it is under way
	afterAuth bool         // a response that came too late may follow
	rejected  bool         // before the greeting: only QUIT is left
	hasty     bool         // sent more already, without waiting for the next reply

	verb      verb   // of the command under way
	ask       ask    // what its reply takes
	opinionOf string // the backend that has decided it
	overRate  string // the rate that had no more for it
}

// A chunk is what BDAT announces.
type chunk struct {
	size int64
	last bool
}

// An action is what follows a reply.
type action int

const (
	readCommand action = iota
	readMessage        // then take the transaction by endMessage
	readChunk          // there is no reply yet
	skipChunk          // of a BDAT that was refused
	askBackends        // by calling answer; there is no reply yet
	startTLS           // then call startedTLS
	hangUp
)

// A verb is a command of the protocol.
type verb struct {
	handle   func(d *dialog, args string) smtp.Reply
	then     action // if the reply is no refusal
	refused  action // if it is
	protocol string // smtp or lmtp; empty for both
	clear    bool   // allowed in the clear where TLS is required
	guarded  bool   // not allowed to strangers where AUTH is required
	last     bool   // of a group of commands that come at once
}

var verbs = map[string]verb{
	"HELO":     {handle: (*dialog).helo, protocol: "smtp", clear: true, last: true},
	"EHLO":     {handle: (*dialog).ehlo, protocol: "smtp", clear: true, last: true},
	"LHLO":     {handle: (*dialog).ehlo, protocol: "lmtp", clear: true, last: true},
	"STARTTLS": {handle: (*dialog).starttls, then: startTLS, clear: true, last: true},
	"AUTH":     {handle: (*dialog).auth, last: true},
	"MAIL":     {guarded: true, handle: (*dialog).mail},
	"RCPT":     {handle: (*dialog).rcpt},
	"DATA":     {handle: (*dialog).data, then: readMessage, last: true},
	"BDAT":     {handle: (*dialog).bdat, then: readChunk, refused: skipChunk, clear: true}, // needs MAIL anyway
	"RSET":     {handle: (*dialog).rset},
	"NOOP":     {handle: (*dialog).noop, clear: true, last: true},
	"QUIT":     {handle: (*dialog).quit, then: hangUp, clear: true, last: true},
	"VRFY":     {guarded: true, handle: (*dialog).vrfy, last: true},
	"EXPN":     {guarded: true, handle: (*dialog).expn, last: true},
	"HELP":     {handle: (*dialog).help},
	"XFORWARD": {handle: (*dialog).xforwardAttrs},
	"XCLIENT":  {handle: (*dialog).xclient, clear: true, last: true},

	// RFC 5321, appendices F.1 and F.6.
	"TURN": {handle: (*dialog).obsolete},
	"SEND": {handle: (*dialog).obsolete},
	"SOML": {handle: (*dialog).obsolete},
	"SAML": {handle: (*dialog).obsolete},
}

// httpMethods are the commands of another protocol: RFC 9110, section 9.
var httpMethods = map[string]bool{
	"GET": true, "HEAD": true, "POST": true, "PUT": true, "DELETE": true,
	"CONNECT": true, "OPTIONS": true, "TRACE": true, "PATCH": true,
}

// sessionLog lets the log name the session: its peer and, if that is another one,
// the client.
func (d *dialog) sessionLog() *slog.Logger {
	attrs := []slog.Attr{
		slog.String("session", d.session.ID),
		slog.String("listener", d.Name),
		slog.String("peer", d.session.Peer.String()),
	}
	if d.session.Client != nil {
		attrs = append(attrs, slog.String("client", clientName(d.session.Client)))
	}
	return slog.New(d.gen.log.Handler().WithAttrs(attrs))
}

// transactionLog lets the session's log name the transaction too, as far as there
// is one yet: XFORWARD tells the client's name for it before MAIL.
func (d *dialog) transactionLog(log *slog.Logger) *slog.Logger {
	if d.tx != nil {
		log = log.With("tx", d.tx.id)
	}
	if d.xforward != nil && d.xforward.Ident != "" {
		log = log.With("ident", d.xforward.Ident)
	}
	if d.tx != nil {
		log = log.With("from", d.tx.sender)
	}
	return log
}

func reply(code int, enhanced, text string) smtp.Reply {
	return smtp.Reply{Code: code, Enhanced: enhanced, Text: text}
}

func statusReply(s backends.Status) smtp.Reply {
	return reply(s.Code, s.Enhanced, s.Text)
}

// command answers one command line.
func (d *dialog) command(line string) (smtp.Reply, action) {
	d.opinionOf, d.overRate = "", ""
	if d.exchange != nil {
		if d.verb = verbs["AUTH"]; d.outOfTurn(d.verb) {
			return d.tooHasty()
		}
		return d.handled(d.response(line))
	}
	name, args := smtp.ParseCommand(line)
	v, ok := verbs[name]
	d.verb, d.claims = v, ""
	d.afterAuth = name == "AUTH" || !ok && d.afterAuth
	switch {
	case d.rejected && name != "QUIT":
		return d.bad(reply(503, "5.7.0", "no service for you, good bye"))
	case !ok && httpMethods[name]:
		// A browser that was led here would have us take its lines for commands.
		return reply(421, "4.7.0", d.hostname+" this is "+strings.ToUpper(d.Protocol)+", good bye"), hangUp
	case d.outOfTurn(v):
		return d.tooHasty()
	case !ok:
		return d.bad(reply(500, "5.5.1", "command not recognized"))
	case v.protocol != "" && v.protocol != d.Protocol:
		// RFC 2033, section 4.1: an LMTP server refuses HELO and EHLO.
		return d.bad(reply(500, "5.5.1", "this is "+strings.ToUpper(d.Protocol)+", say "+hello[d.Protocol]))
	case d.RequireTLS && d.session.TLS == nil && !v.clear:
		return d.bad(reply(530, "5.7.0", "say STARTTLS first")) // RFC 3207, section 4
	case d.Auth.Required && d.session.User == "" && v.guarded:
		return d.bad(d.authenticateFirst())
	}
	return d.handled(v.handle(d, args))
}

// authenticateFirst tells a stranger what to do: RFC 4954, section 6.
func (d *dialog) authenticateFirst() smtp.Reply {
	if d.session.TLS == nil && !d.Auth.InClear && d.TLS.Mode == "starttls" {
		return reply(530, "5.7.0", "say STARTTLS and authenticate first")
	}
	return reply(530, "5.7.0", "authenticate first")
}

// handled passes on the reply of a handler, if there is one yet.
func (d *dialog) handled(r smtp.Reply) (smtp.Reply, action) {
	if d.ask != nil {
		return smtp.Reply{}, askBackends
	}
	return d.conclude(r)
}

// conclude says what follows the reply to a command.
func (d *dialog) conclude(r smtp.Reply) (smtp.Reply, action) {
	next := d.verb.then
	switch {
	case r.Code == 421:
		next = hangUp
	case (r.Code >= 500 && r.Code <= 503 || r.Code == backends.BadCredentials.Code) && !d.forNobody():
		r, next = d.bad(r)
	case r.Code >= 400:
		r, next = d.refuse(r)
	}
	if next == readCommand {
		next = d.verb.refused
	}
	return r, next
}

// forNobody reports whether the command under way is to begin a message none
// of whose recipients was accepted. Clients that do not wait for the answers to
// RCPT say that all the time: it is refused, but no fault of theirs.
func (d *dialog) forNobody() bool {
	begins := d.verb.then == readMessage || d.verb.then == readChunk
	return begins && d.tx != nil && len(d.tx.recipients) == 0
}

var hello = map[string]string{"smtp": "EHLO", "lmtp": "LHLO"}

// badLine answers a line that could not be read as a command.
func (d *dialog) badLine(err error) (smtp.Reply, action) {
	d.verb, d.opinionOf, d.overRate, d.claims = verb{}, "", "", ""
	if d.exchange != nil {
		d.exchange = nil
		return d.bad(reply(500, "5.5.6", err.Error())) // RFC 4954, section 4
	}
	if err == smtp.ErrLostChunk {
		return reply(421, "4.7.0", d.hostname+" "+err.Error()), hangUp
	}
	return d.bad(reply(500, "5.5.2", err.Error()))
}

// forgive forgets the commands that were refused, once somebody has got a
// message. Who guesses passwords is not forgiven.
func (d *dialog) forgive() { d.errors, d.refused = 0, 0 }

// bad counts a bad command. The last one that is borne ends the session.
func (d *dialog) bad(r smtp.Reply) (smtp.Reply, action) {
	d.errors++
	if d.Limits.BadCommands > 0 && d.errors >= d.Limits.BadCommands {
		return d.enough()
	}
	return d.refuse(r)
}

// refuse counts a refused command, good or bad. Each costs a line of the log,
// so that there is an end to them: as many as a transaction may have
// recipients, and some more.
func (d *dialog) refuse(r smtp.Reply) (smtp.Reply, action) {
	d.refused++
	if d.refused > cmp.Or(d.Limits.Recipients, 10000)+100 {
		return d.enough()
	}
	return r, readCommand
}

func (d *dialog) enough() (smtp.Reply, action) {
	return reply(421, "4.7.0", d.hostname+" too many bad commands, good bye"), hangUp
}

// reset forgets the transaction, and what XFORWARD told of it.
func (d *dialog) reset() {
	if d.tx != nil {
		d.gen.spool.refund(d.tx.charged)
		d.rates.settle(d.tx)
		d.rates.leave(d.tx)
		if d.tx.message != nil {
			d.tx.message.Close()
		}
	}
	d.tx = nil
	d.xforward = nil
}

func (d *dialog) rset(args string) smtp.Reply {
	if args != "" {
		return reply(501, "5.5.4", "RSET has no arguments")
	}
	d.reset()
	return reply(250, "2.0.0", "ok")
}

// obsolete answers a verb of RFC 821 that is known and not taken: RFC 5321,
// section 4.2.4.
func (d *dialog) obsolete(string) smtp.Reply {
	return reply(502, "5.5.1", "obsolete, and not offered here")
}

func (d *dialog) noop(string) smtp.Reply { return reply(250, "2.0.0", "ok") }

func (d *dialog) quit(args string) smtp.Reply {
	if args != "" {
		return reply(501, "5.5.4", "QUIT has no arguments")
	}
	return reply(221, "2.0.0", d.hostname+" good bye")
}

func (d *dialog) vrfy(args string) smtp.Reply {
	if args == "" {
		return reply(501, "5.5.4", "VRFY wants an address")
	}
	q := func() backends.Question { return d.about(backends.AboutVRFY, withoutSMTPUTF8(args)) }
	return d.question(d.who(backends.AboutVRFY, d.Ask), q, func(a backends.Answer, err error) smtp.Reply {
		r, _ := opinion(a, err, reply(252, "2.5.0", "cannot verify, but will take a message and try"))
		return r
	})
}

// withoutSMTPUTF8 cuts off the one parameter that VRFY and EXPN have: RFC 6531,
// section 3.7.4.2. Our replies are US-ASCII anyway.
func withoutSMTPUTF8(args string) string {
	if i := strings.LastIndexByte(args, ' '); i > 0 && strings.EqualFold(args[i+1:], "SMTPUTF8") {
		return strings.TrimRight(args[:i], " ")
	}
	return args
}

// maxMember is what EXPN can tell of one member: RFC 5321, section 4.5.3.1.5.
const maxMember = 490

func (d *dialog) expn(args string) smtp.Reply {
	if args == "" {
		return reply(501, "5.5.4", "EXPN wants a mailing list")
	}
	asked := d.who(backends.AboutEXPN, d.Ask)
	if asked == nil {
		return reply(502, "5.5.1", "EXPN is not offered here")
	}
	q := func() backends.Question { return d.about(backends.AboutEXPN, withoutSMTPUTF8(args)) }
	return d.question(asked, q, func(a backends.Answer, err error) smtp.Reply {
		if r, ok := opinion(a, err, smtp.Reply{}); !ok {
			return r
		}
		if a.Members == nil {
			return reply(550, "5.1.1", "no such mailing list")
		}
		for _, m := range a.Members {
			if strings.ContainsFunc(m, func(r rune) bool { return r < ' ' || r > '~' }) || len(m) > maxMember {
				d.logFailure(backends.AboutEXPN, fmt.Sprintf("no member of a list that a reply can tell: %.400q", m))
				return statusReply(backends.TryLater)
			}
		}
		return reply(250, "2.1.5", strings.Join(a.Members, "\n"))
	})
}

// syntax is what HELP tells of a verb.
var syntax = map[string]string{
	"HELO": "HELO domain", "EHLO": "EHLO domain", "LHLO": "LHLO domain",
	"STARTTLS": "STARTTLS", "AUTH": "AUTH mechanism [initial response in base64]",
	"MAIL": "MAIL FROM:<address> [parameter=value]...", "RCPT": "RCPT TO:<address> [parameter=value]...",
	"DATA": "DATA", "BDAT": "BDAT octets [LAST]", "RSET": "RSET", "NOOP": "NOOP", "QUIT": "QUIT",
	"VRFY": "VRFY address", "EXPN": "EXPN list", "HELP": "HELP [command]",
	"XFORWARD": "XFORWARD attribute=value...", "XCLIENT": "XCLIENT attribute=value...",
}

// help tells the commands that are good for something here, or the syntax of
// one of them.
func (d *dialog) help(args string) smtp.Reply {
	if args != "" {
		text, ok := syntax[strings.ToUpper(args)]
		if !ok {
			return reply(504, "5.5.4", "no such command")
		}
		return reply(214, "2.0.0", text)
	}
	offered := map[string]string{"smtp": "EHLO HELO", "lmtp": "LHLO"}[d.Protocol]
	for _, verb := range []struct {
		name string
		here bool
	}{
		{"STARTTLS", d.TLS.Mode == "starttls" && d.session.TLS == nil},
		{"AUTH", len(d.mechanisms()) > 0 && d.session.User == ""},
		{"MAIL RCPT DATA", true},
		{"BDAT", d.Chunking},
		{"RSET NOOP QUIT VRFY", true},
		{"EXPN", d.who(backends.AboutEXPN, d.Ask) != nil},
		{"XFORWARD", d.trusted},
		{"XCLIENT", d.mayXClient},
		{"HELP", true},
	} {
		if verb.here {
			offered += " " + verb.name
		}
	}
	return reply(214, "2.0.0", offered+"\nHELP and one of these tells its syntax, "+hello[d.Protocol]+" the extensions")
}
