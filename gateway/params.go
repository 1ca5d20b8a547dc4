package gateway

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// A paramCheck returns the refusal of a parameter's value.
type paramCheck func(d *dialog, tx *transaction, value string) (r smtp.Reply, ok bool)

var mailParams = map[string]paramCheck{
	"SIZE":     (*dialog).sizeParam,
	"BODY":     (*dialog).bodyParam,
	"SMTPUTF8": (*dialog).utf8Param,
	"PRDR":     (*dialog).prdrParam,
	"AUTH":     (*dialog).authParam,

	"REQUIRETLS": (*dialog).requireTLSParam,
	"RET":        dsnParam(func(v string, _ bool) error { return smtp.CheckRet(v) }),
	"ENVID":      dsnParam(func(v string, _ bool) error { return smtp.CheckEnvID(v) }),
}

var rcptParams = map[string]paramCheck{
	"NOTIFY": dsnParam(func(v string, _ bool) error { return smtp.CheckNotify(v) }),
	"ORCPT":  dsnParam(smtp.CheckORcpt),
}

func (d *dialog) checkParams(tx *transaction, known map[string]paramCheck, params []string) (smtp.Reply, bool) {
	for _, p := range params {
		keyword, value, _ := strings.Cut(p, "=")
		check, ok := known[strings.ToUpper(keyword)]
		if !ok {
			check = (*dialog).unknownParam
		}
		if r, ok := check(d, tx, value); !ok {
			if r.Code == 555 {
				r.Text = fmt.Sprintf("parameter not supported: %.40s", keyword)
			}
			return r, false
		}
		if !tx.utf8 && !smtp.IsASCII(p) {
			return pathReply("", smtp.ErrNeedsUTF8), false
		}
	}
	return smtp.Reply{}, true
}

// unknownParam lets a parameter pass if the listener keeps what it does not
// know. RFC 5321, section 4.1.1.11.
func (d *dialog) unknownParam(*transaction, string) (smtp.Reply, bool) {
	return reply(555, "5.5.4", "parameter not supported"), d.UnknownParameters == "keep"
}

// noLonger refuses a parameter of which a configuration before this one has
// promised that the backends heed it: RFC 5321, section 4.1.1.11.
var noLonger = reply(455, "4.3.3", "this was offered before and is not any more")

// dsnParam checks a parameter of RFC 3461 where the listener takes them.
func dsnParam(check func(value string, utf8 bool) error) paramCheck {
	return func(d *dialog, tx *transaction, value string) (smtp.Reply, bool) {
		switch {
		case !d.offer.dsn:
			return d.unknownParam(tx, value)
		case !d.DSN:
			return noLonger, false
		}
		if err := check(value, tx.utf8); err != nil {
			return reply(501, "5.5.4", err.Error()), false
		}
		return smtp.Reply{}, true
	}
}

func (d *dialog) sizeParam(tx *transaction, value string) (smtp.Reply, bool) {
	// RFC 1870, section 4: up to 20 digits.
	if value == "" || len(value) > 20 || strings.Trim(value, "0123456789") != "" {
		return reply(501, "5.5.4", "SIZE is a number of octets"), false
	}
	size, err := strconv.ParseInt(value, 10, 64)
	if limit := d.offer.size; limit > 0 && (err != nil || size > limit) {
		return statusReply(tooLarge), false
	}
	tx.declared = size
	return smtp.Reply{}, true
}

var tooLarge = backends.NewStatus(552, "5.3.4", "message too large")

func (d *dialog) bodyParam(tx *transaction, value string) (smtp.Reply, bool) {
	tx.binary = d.offer.binary && strings.EqualFold(value, "BINARYMIME")
	switch {
	case !d.offer.eightBit:
		return d.unknownParam(tx, value)
	case strings.EqualFold(value, "7BIT"), strings.EqualFold(value, "8BITMIME"), tx.binary:
		return smtp.Reply{}, true
	}
	return reply(501, "5.5.4", "BODY is 7BIT or 8BITMIME"), false
}

func (d *dialog) utf8Param(tx *transaction, value string) (smtp.Reply, bool) {
	switch {
	case !d.offer.utf8:
		return d.unknownParam(tx, value)
	case value != "":
		return reply(501, "5.5.4", "SMTPUTF8 has no value"), false
	}
	return smtp.Reply{}, true
}

// prdrParam asks for an answer for each recipient in SMTP.
func (d *dialog) prdrParam(tx *transaction, value string) (smtp.Reply, bool) {
	switch {
	case d.Protocol != "smtp":
		return d.unknownParam(tx, value)
	case value != "":
		return reply(501, "5.5.4", "PRDR has no value"), false
	}
	tx.prdr = true
	return smtp.Reply{}, true
}

// authParam takes the word of a client for who has submitted the message: RFC
// 4954, section 5.
func (d *dialog) authParam(tx *transaction, value string) (smtp.Reply, bool) {
	if len(d.mechanisms()) == 0 {
		return d.unknownParam(tx, value)
	}
	if err := smtp.CheckAuth(value); err != nil {
		return reply(501, "5.5.4", err.Error()), false
	}
	return smtp.Reply{}, true
}

// requireTLSParam asks that the message goes on over TLS alone: RFC 8689,
// section 2.
func (d *dialog) requireTLSParam(tx *transaction, value string) (smtp.Reply, bool) {
	switch {
	case !d.offer.requireTLS:
		return d.unknownParam(tx, value)
	case !d.OfferRequireTLS:
		return noLonger, false
	case value != "":
		return reply(501, "5.5.4", "REQUIRETLS has no value"), false
	case d.session.TLS == nil:
		return reply(530, "5.7.0", "REQUIRETLS takes TLS: say STARTTLS first"), false
	}
	return smtp.Reply{}, true
}
