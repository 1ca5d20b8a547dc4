package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

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
	client              xforward.ClientAttrs // by XCLIENT
	trusted, mayXClient bool                 // may send XFORWARD, XCLIENT

	greeted  bool // by HELO, EHLO or LHLO
	extended bool // by EHLO or LHLO
	xforward *xforward.Attrs
	tx       *transaction // from MAIL to the end of the message
	errors   int          // bad commands since the last message
	refused  int          // all refused commands since the last message
	chunk    chunk        // that BDAT has announced
	exchange *exchange    // of AUTH, while it is under way
	rejected bool         // before the greeting: only QUIT is left
	hasty    bool         // sent more already, without waiting for the next reply

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
	last     bool   // of a group of commands that come at once
}

var verbs = map[string]verb{
	"HELO":     {handle: (*dialog).helo, protocol: "smtp", clear: true, last: true},
	"EHLO":     {handle: (*dialog).ehlo, protocol: "smtp", clear: true, last: true},
	"LHLO":     {handle: (*dialog).ehlo, protocol: "lmtp", clear: true, last: true},
	"STARTTLS": {handle: (*dialog).starttls, then: startTLS, clear: true, last: true},
	"AUTH":     {handle: (*dialog).auth, last: true},
	"MAIL":     {handle: (*dialog).mail},
	"RCPT":     {handle: (*dialog).rcpt},
	"DATA":     {handle: (*dialog).data, then: readMessage, last: true},
	"BDAT":     {handle: (*dialog).bdat, then: readChunk, refused: skipChunk, clear: true}, // needs MAIL anyway
	"RSET":     {handle: (*dialog).rset},
	"NOOP":     {handle: (*dialog).noop, clear: true, last: true},
	"QUIT":     {handle: (*dialog).quit, then: hangUp, clear: true, last: true},
	"VRFY":     {handle: (*dialog).vrfy, last: true},
	"EXPN":     {handle: (*dialog).expn, last: true},
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

func reply(code int, enhanced, text string) smtp.Reply {
	return smtp.Reply{Code: code, Enhanced: enhanced, Text: text}
}

func statusReply(s backends.Status) smtp.Reply {
	return reply(s.Code, s.Enhanced, s.Text)
}

// greeting opens the session.
func (d *dialog) greeting() (smtp.Reply, action) {
	d.verb, d.opinionOf = verb{}, ""
	return d.handled(d.welcome())
}

// welcome greets the client, unless a backend refuses it.
func (d *dialog) welcome() smtp.Reply {
	name := map[string]string{"smtp": "ESMTP", "lmtp": "LMTP"}[d.Protocol]
	hello := reply(220, "", d.hostname+" "+name+" mailgw")
	q := func() backends.Question { return d.about(backends.AboutConnection, "") }
	return d.question(d.who(backends.AboutConnection, d.Ask), q, func(a backends.Answer, err error) smtp.Reply {
		r, ok := opinion(a, err, hello)
		switch {
		case ok:
			return hello
		case r.Code < 500:
			return reply(421, r.Enhanced, d.hostname+" "+r.Text)
		}
		d.rejected = true // RFC 5321, section 3.1
		return reply(554, r.Enhanced, d.hostname+" "+r.Text)
	})
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
	switch {
	case d.rejected && name != "QUIT":
		return d.bad(reply(503, "5.7.0", "no service for you, good bye"))
	case httpMethods[name]:
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
	}
	d.verb = v
	return d.handled(v.handle(d, args))
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
	case r.Code >= 500 && r.Code <= 503, r.Code == backends.BadCredentials.Code:
		r, next = d.bad(r)
	case r.Code >= 400:
		r, next = d.refuse(r)
	}
	if next == readCommand {
		next = d.verb.refused
	}
	return r, next
}

var hello = map[string]string{"smtp": "EHLO", "lmtp": "LHLO"}

// badLine answers a line that could not be read as a command.
func (d *dialog) badLine(err error) (smtp.Reply, action) {
	d.opinionOf, d.overRate = "", ""
	if d.exchange != nil {
		d.exchange = nil
		return d.bad(reply(500, "5.5.6", err.Error())) // RFC 4954, section 4
	}
	if err == smtp.ErrLostChunk {
		return reply(421, "4.7.0", d.hostname+" "+err.Error()), hangUp
	}
	return d.bad(reply(500, "5.5.2", err.Error()))
}

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
		d.budget.refund(d.tx.charged)
		d.rates.spend(d.tx, time.Now())
		d.rates.leave(d.tx)
		if d.tx.message != nil {
			d.tx.message.Close()
		}
	}
	d.tx = nil
	d.xforward = nil
}

func (d *dialog) helo(args string) smtp.Reply {
	return d.greet(args, false, func() smtp.Reply { return reply(250, "", d.hostname) })
}

// ehlo answers EHLO and LHLO, which differ in name only.
func (d *dialog) ehlo(args string) smtp.Reply {
	return d.greet(args, true, func() smtp.Reply { return reply(250, "", strings.Join(d.keywords(), "\n")) })
}

// keywords are what EHLO and LHLO tell: the name of this host, and what is on
// offer at this point of the session.
func (d *dialog) keywords() []string {
	keywords := []string{d.hostname, "PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"}
	if d.Protocol == "smtp" {
		keywords = append(keywords, "PRDR")
	}
	if most := d.Limits.Recipients; most > 0 {
		keywords = append(keywords, "LIMITS RCPTMAX="+strconv.Itoa(most)) // RFC 9422
	}
	if size := d.Limits.MessageSize; size > 0 {
		keywords = append(keywords, "SIZE "+strconv.FormatInt(int64(size), 10))
	} else {
		keywords = append(keywords, "SIZE")
	}
	if d.Chunking {
		keywords = append(keywords, "CHUNKING", "BINARYMIME")
	}
	if d.DSN {
		keywords = append(keywords, "DSN")
	}
	if d.TLS.Mode == "starttls" && d.session.TLS == nil {
		keywords = append(keywords, "STARTTLS")
	}
	if d.OfferRequireTLS && d.session.TLS != nil {
		keywords = append(keywords, "REQUIRETLS") // RFC 8689, section 2
	}
	if mechanisms := d.mechanisms(); len(mechanisms) > 0 && d.session.User == "" {
		keywords = append(keywords, "AUTH "+strings.Join(mechanisms, " "))
	}
	if d.trusted {
		keywords = append(keywords, xforward.Keyword)
	}
	if d.mayXClient {
		keywords = append(keywords, xforward.ClientKeyword)
	}
	return keywords
}

// greet takes the name of the client, unless a backend refuses it. The reply
// is then that of welcome.
func (d *dialog) greet(args string, extended bool, welcome func() smtp.Reply) smtp.Reply {
	name, _, _ := strings.Cut(args, " ")
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsGraphic(r) || r == unicode.ReplacementChar }) {
		return reply(501, "5.5.4", "a domain or an address literal is expected")
	}
	d.reset()
	q := func() backends.Question {
		q := d.about(backends.AboutHELO, "")
		q.Session.HELO = name
		return q
	}
	return d.question(d.who(backends.AboutHELO, d.Ask), q, func(a backends.Answer, err error) smtp.Reply {
		if r, ok := opinion(a, err, smtp.Reply{}); !ok {
			return r
		}
		d.greeted, d.extended, d.session.HELO = true, extended, name
		return welcome()
	})
}

func (d *dialog) starttls(args string) smtp.Reply {
	switch {
	case d.TLS.Mode != "starttls":
		return reply(502, "5.5.1", "STARTTLS is not offered here")
	case d.session.TLS != nil:
		return reply(503, "5.5.1", "TLS is active already")
	case args != "":
		return reply(501, "5.5.4", "STARTTLS has no arguments")
	}
	return reply(220, "2.0.0", "ready to start TLS")
}

// startedTLS goes on after a handshake. What was said before it is forgotten
// (RFC 3207, section 4.2), and a certificate may have brought trust.
func (d *dialog) startedTLS(t *backends.TLS) {
	d.forget()
	d.session.TLS = t
	d.judge()
}

// forget forgets what the client has said since the greeting.
func (d *dialog) forget() {
	d.reset()
	d.greeted, d.extended, d.session.HELO = false, false, ""
	d.session.User, d.session.Mechanism = "", ""
}

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
	tx := &transaction{id: newID(), params: params, began: time.Now(), rates: d.rates}
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
	tx.session = d.session
	tx.session.XForward = d.xforward
	tx.session.Protocol = d.withProtocol(tx.utf8)
	if r, ok := d.within(d.rates.check(tx, "", time.Now())); !ok {
		return r
	}
	q := func() backends.Question {
		return backends.Question{About: backends.AboutSender, Session: &tx.session, Envelope: tx.envelope()}
	}
	return d.question(d.who(backends.AboutSender, d.Ask), q, func(a backends.Answer, err error) smtp.Reply {
		r, ok := opinion(a, err, reply(250, "2.1.0", "sender ok"))
		switch {
		case !ok:
			return r
		case !d.charge(tx, args):
			return statusReply(backends.StorageFull)
		}
		if r, ok := d.within(d.rates.take(tx, "", time.Now())); !ok {
			d.budget.refund(tx.charged)
			return r
		}
		d.tx = tx
		return r
	})
}

// secured refuses a sender who has to come over TLS or to be authenticated.
func (d *dialog) secured(sender string) (smtp.Reply, bool) {
	switch {
	case d.session.TLS == nil && d.tlsSenders.lookup(sender):
		return reply(530, "5.7.0", "this sender has to say STARTTLS first"), false
	case d.session.User == "" && (d.Auth.Required || d.authSenders.lookup(sender)):
		return reply(530, "5.7.0", "authenticate first"), false // RFC 4954, section 6
	}
	return smtp.Reply{}, true
}

// withProtocol is the protocol in the terms of RFC 3848 and RFC 6531.
func (d *dialog) withProtocol(utf8 bool) string {
	name := strings.ToUpper(d.Protocol)
	switch {
	case utf8:
		name = "UTF8" + name
	case d.extended && name == "SMTP":
		name = "ESMTP"
	case !d.extended:
		return name
	}
	if d.session.TLS != nil {
		name += "S"
	}
	if d.session.User != "" {
		name += "A"
	}
	return name
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
	if r, ok := d.within(d.rates.check(d.tx, address, time.Now())); !ok {
		return r
	}
	to := backends.Recipient{Address: address, Params: params}
	q := func() backends.Question {
		return backends.Question{About: backends.AboutRecipient, Session: &d.tx.session, Envelope: d.tx.envelope(), Recipient: to}
	}
	return d.question(d.who(backends.AboutRecipient, d.Ask, route.backends), q, func(a backends.Answer, err error) smtp.Reply {
		r, ok := opinion(a, err, reply(250, "2.1.5", "recipient ok"))
		if !ok {
			return r
		}
		if r, ok := d.within(d.rates.take(d.tx, address, time.Now())); !ok {
			return r
		}
		d.tx.recipients = append(d.tx.recipients, recipient{to, route})
		return r
	})
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
	if !d.budget.charge(octets) {
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
	case !d.Chunking:
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
	d.rates.spend(tx, time.Now())
	d.tx = nil // its charge and its shares go with it
	d.reset()
	d.errors, d.refused = 0, 0
	return tx
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
	q := func() backends.Question { return d.about(backends.AboutUser, args) }
	return d.question(d.who(backends.AboutUser, d.Ask), q, func(a backends.Answer, err error) smtp.Reply {
		r, _ := opinion(a, err, reply(252, "2.5.0", "cannot verify, but will take a message and try"))
		return r
	})
}

func (d *dialog) expn(args string) smtp.Reply {
	if args == "" {
		return reply(501, "5.5.4", "EXPN wants a mailing list")
	}
	asked := d.who(backends.AboutList, d.Ask)
	if asked == nil {
		return reply(502, "5.5.1", "EXPN is not offered here")
	}
	q := func() backends.Question { return d.about(backends.AboutList, args) }
	return d.question(asked, q, func(a backends.Answer, err error) smtp.Reply {
		if r, ok := opinion(a, err, smtp.Reply{}); !ok {
			return r
		}
		if a.Members == nil {
			return reply(550, "5.1.1", "no such mailing list")
		}
		return statusReply(backends.NewStatus(250, "2.1.5", strings.Join(a.Members, "\n")).Sanitized())
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
		{"EXPN", d.who(backends.AboutList, d.Ask) != nil},
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

func (d *dialog) xforwardAttrs(args string) smtp.Reply {
	switch {
	case d.tx != nil:
		return reply(503, "5.5.1", "MAIL transaction in progress")
	case args == "":
		return reply(501, "5.5.4", "syntax: XFORWARD attribute=value...")
	case !d.trusted:
		return reply(550, "5.7.0", "insufficient authorization")
	}
	attrs := xforward.Attrs{}
	if d.xforward != nil {
		attrs = *d.xforward
	}
	if err := attrs.Parse(args); err != nil {
		return reply(501, "5.5.4", err.Error())
	}
	d.xforward = &attrs
	return reply(250, "2.0.0", "ok")
}
