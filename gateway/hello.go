package gateway

import (
	"strconv"
	"strings"
	"unicode"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
	"github.com/mailgw/mailgw/xforward"
)

// greeting opens the session.
func (d *dialog) greeting() (smtp.Reply, action) {
	d.verb, d.opinionOf = verb{}, ""
	return d.handled(d.welcome())
}

// welcomes are the protocols as a greeting names them.
var welcomes = map[string]string{"smtp": "ESMTP", "lmtp": "LMTP"}

// welcome greets the client, unless a backend refuses it.
func (d *dialog) welcome() smtp.Reply {
	hello := reply(220, "", d.hostname+" "+welcomes[d.Protocol]+" mailgw")
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
	keywords := append(make([]string, 0, 16), d.hostname, "PIPELINING")
	if d.offer.eightBit {
		keywords = append(keywords, "8BITMIME")
	}
	if d.offer.utf8 {
		keywords = append(keywords, "SMTPUTF8")
	}
	keywords = append(keywords, "ENHANCEDSTATUSCODES")
	if d.Protocol == "smtp" {
		keywords = append(keywords, "PRDR")
	}
	if most := d.Limits.Recipients; most > 0 {
		keywords = append(keywords, "LIMITS RCPTMAX="+strconv.Itoa(most)) // RFC 9422
	}
	if size := d.offer.size; size > 0 {
		keywords = append(keywords, "SIZE "+strconv.FormatInt(size, 10))
	} else {
		keywords = append(keywords, "SIZE")
	}
	if d.offer.chunking {
		keywords = append(keywords, "CHUNKING")
	}
	if d.offer.binary {
		keywords = append(keywords, "BINARYMIME")
	}
	if d.offer.dsn {
		keywords = append(keywords, "DSN")
	}
	if d.TLS.Mode == "starttls" && d.session.TLS == nil {
		keywords = append(keywords, "STARTTLS")
	}
	if d.offer.requireTLS && d.session.TLS != nil {
		keywords = append(keywords, "REQUIRETLS") // RFC 8689, section 2
	}
	if mechanisms := d.mechanisms(); len(mechanisms) > 0 && d.session.User == "" {
		keywords = append(keywords, "AUTH "+strings.Join(mechanisms, " "))
	}
	if d.trusted {
		keywords = append(keywords, xforward.Keyword)
	}
	if d.trusted || d.hasOurName() {
		keywords = append(keywords, "X-MAILGW "+d.gen.name)
	}
	if d.mayXClient {
		keywords = append(keywords, xforward.ClientKeyword)
	}
	return keywords
}

// hasOurName reports whether the client has the name by which a relay of ours calls
// itself, if its settings say no other one. No Received field counts how often a
// message goes through a relay, so that it has to notice at once that it talks to
// ourselves.
func (d *dialog) hasOurName() bool {
	return strings.EqualFold(d.session.HELO, d.gen.machine) || strings.EqualFold(d.session.HELO, d.hostname)
}

// greet takes the name of the client, unless a backend refuses it. The reply
// is then that of welcome.
func (d *dialog) greet(args string, extended bool, welcome func() smtp.Reply) smtp.Reply {
	name, _, _ := strings.Cut(args, " ")
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsGraphic(r) || r == unicode.ReplacementChar }) {
		return reply(501, "5.5.4", "a domain or an address literal is expected")
	}
	q := func() backends.Question {
		q := d.about(backends.AboutHELO, "")
		q.Session.HELO = name
		return q
	}
	return d.question(d.who(backends.AboutHELO, d.Ask), q, func(a backends.Answer, err error) smtp.Reply {
		if r, ok := opinion(a, err, smtp.Reply{}); !ok {
			return r
		}
		d.reset() // RFC 5321, section 4.1.1.1: what is refused changes nothing
		d.greeted, d.extended, d.session.HELO = true, extended, name
		d.offer = d.listener.offer()
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

var protocols = map[string]string{"smtp": "SMTP", "lmtp": "LMTP"}

// withProtocol is the protocol in the terms of RFC 3848 and RFC 6531.
func (d *dialog) withProtocol(utf8 bool) string {
	name := protocols[d.Protocol]
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
