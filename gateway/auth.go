package gateway

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/emersion/go-sasl"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// authMechanisms are those of AUTH (RFC 4954), the best ones first.
var authMechanisms = []string{"SCRAM-SHA-256", "EXTERNAL", "PLAIN", "LOGIN"}

// maxResponse is the longest line of a client in an exchange. The mechanisms
// here need 1 KiB at most for names and passwords of 255 octets.
const maxResponse = 4096

// mechanisms returns what AUTH offers at this point of the session: what is
// configured, and a backend can decide.
func (d *dialog) mechanisms() []string {
	if d.session.TLS == nil && !d.Auth.InClear {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(d.Auth.Mechanisms), func(name string) bool {
		switch name {
		case "SCRAM-SHA-256":
			return d.who(backends.AboutSCRAM, d.Ask) == nil
		case "EXTERNAL":
			if d.certificate() == "" {
				return true
			}
		}
		return d.who(backends.AboutAUTH, d.Ask) == nil
	})
}

func (d *dialog) auth(args string) smtp.Reply {
	name, initial := smtp.ParseCommand(args)
	offered := d.mechanisms()
	switch {
	case d.session.TLS == nil && !d.Auth.InClear && d.TLS.Mode == "starttls" && len(d.Auth.Mechanisms) > 0:
		return reply(538, "5.7.11", "say STARTTLS first") // RFC 4954, section 6
	case len(offered) == 0:
		return reply(502, "5.5.1", "AUTH is not offered here")
	case !d.extended:
		return reply(503, "5.5.1", "say "+hello[d.Protocol]+" first")
	case d.tx != nil:
		return reply(503, "5.5.1", "MAIL transaction in progress")
	case d.session.User != "":
		return reply(503, "5.5.1", "authenticated already")
	case name == "":
		return reply(501, "5.5.4", "AUTH wants a mechanism: "+strings.Join(offered, ", "))
	case !slices.Contains(offered, name):
		return reply(504, "5.5.4", "mechanism not offered; there is "+strings.Join(offered, ", "))
	}
	d.exchange = newExchange(d, name)
	switch initial {
	case "":
		return d.step(nil)
	case "=": // RFC 4954, section 4: a response without octets
		return d.step([]byte{})
	}
	return d.response(initial)
}

// response goes on with an exchange. line is what the client has sent.
func (d *dialog) response(line string) smtp.Reply {
	if line == "*" {
		d.exchange = nil
		return reply(501, "5.7.0", "authentication cancelled")
	}
	octets, err := base64.StdEncoding.Strict().DecodeString(line)
	if err != nil {
		d.exchange = nil
		return reply(501, "5.5.2", "base64 expected")
	}
	return d.step(octets)
}

// step gives a response to the mechanism, which may have to ask backends.
// nil is no response at all.
func (d *dialog) step(response []byte) smtp.Reply {
	d.ask = func(ctx context.Context) smtp.Reply {
		x := d.exchange
		x.ctx = ctx
		challenge, done, err := x.mechanism.Next(response)
		if err == nil && !done {
			return reply(334, "", base64.StdEncoding.EncodeToString(challenge))
		}
		d.exchange = nil
		if err == nil {
			err = x.checkUser()
		}
		if err != nil {
			return d.guessed(authRefusal(err))
		}
		d.session.User, d.session.Mechanism = x.user, x.name
		return reply(235, "2.7.0", "authentication successful")
	}
	return smtp.Reply{}
}

// guessed counts a login that went wrong. There is an end to them.
func (d *dialog) guessed(r smtp.Reply) smtp.Reply {
	d.guesses++
	if d.Limits.BadCommands > 0 && d.guesses >= d.Limits.BadCommands {
		r, _ = d.enough()
	}
	return r
}

// checkUser checks the name that a backend has given: others will write it
// into header fields.
func (x *exchange) checkUser() error {
	switch {
	case x.user == "":
		return backends.BadCredentials
	case len(x.user) > 255 || !utf8.ValidString(x.user) || strings.ContainsFunc(x.user, unicode.IsControl):
		x.logFailure(backends.AboutAUTH, fmt.Sprintf("no name of a user: %.400q", x.user))
		return backends.TryLater
	}
	return nil
}

// authRefusal answers what did not succeed. An error that is no Status is the
// mechanism's, about what the client has sent.
func authRefusal(err error) smtp.Reply {
	var s backends.Status
	switch {
	case !errors.As(err, &s):
		return reply(501, "5.5.2", "this is no response of the mechanism")
	case s == backends.TryLater, s == backends.TimedOut, s.Positive(): // which is no word on who it is
		return reply(454, "4.7.0", "temporary authentication failure") // RFC 4954, section 6
	}
	return statusReply(s)
}

// loggable returns what the log may have of a line: no password.
func (d *dialog) loggable(line string) string {
	if d.exchange != nil {
		return "(response)"
	}
	verb, args := smtp.ParseCommand(line)
	switch {
	case verb == "AUTH":
		// What stands in the place of the mechanism may be a password.
		name, _ := smtp.ParseCommand(args)
		if !slices.Contains(authMechanisms, name) {
			name = "(unknown)"
		}
		return "AUTH " + name
	case d.afterAuth:
		if _, known := verbs[verb]; !known {
			return "(after AUTH)"
		}
	}
	return line
}

// An exchange is AUTH under way.
type exchange struct {
	*dialog
	name      string
	mechanism sasl.Server
	ctx       context.Context // of the step under way
	user      string          // once it is known
}

func newExchange(d *dialog, name string) *exchange {
	x := &exchange{dialog: d, name: name}
	switch name {
	case "PLAIN":
		x.mechanism = sasl.NewPlainServer(x.password)
	case "LOGIN":
		x.mechanism = &loginServer{authenticate: x.password}
	case "EXTERNAL":
		x.mechanism = sasl.NewExternalServer(func(identity string) error {
			return x.login(backends.Credentials{Identity: identity})
		})
	case "SCRAM-SHA-256":
		x.mechanism = newSCRAMServer(x.verifier, func(user string) { x.user = user })
	}
	return x
}

func (x *exchange) password(identity, user, password string) error {
	if user == "" || password == "" {
		return backends.BadCredentials
	}
	return x.login(backends.Credentials{Identity: identity, User: user, Password: password})
}

// login asks who it is that shows c.
func (x *exchange) login(c backends.Credentials) error {
	c.Mechanism = x.name
	x.claims = c.User
	q := x.about(backends.AboutAUTH, "")
	q.Credentials = c
	a, err := x.firstOpinion(x.ctx, x.who(backends.AboutAUTH, x.Ask), q)
	x.user = a.User
	return err
}

// verifier asks for what proves that a user knows the password.
func (x *exchange) verifier(user string) (backends.SCRAMVerifier, error) {
	x.claims = user
	q := x.about(backends.AboutSCRAM, user)
	a, err := x.firstOpinion(x.ctx, x.who(backends.AboutSCRAM, x.Ask), q)
	if err == nil && a.SCRAM.IsZero() {
		err = backends.BadCredentials
	}
	return a.SCRAM, err
}
