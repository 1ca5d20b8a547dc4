package exec

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/mailgw/mailgw/backends"
)

// path is that of programs for which the settings have no other one.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// variables are what the environment tells of a transaction.
var variables = []variable{
	{"SENDER", func(tx *backends.DataContext) string { return tx.Envelope.Sender }},
	{"RECIPIENT", func(tx *backends.DataContext) string {
		if len(tx.Envelope.Recipients) > 1 {
			return ""
		}
		return recipients(tx)
	}},
	{"RECIPIENTS", recipients},
	{"SIZE", func(tx *backends.DataContext) string { return strconv.FormatInt(tx.Size, 10) }},
	{"CLIENT_ADDRESS", func(tx *backends.DataContext) string {
		if addr := tx.Session.ClientAddr(); addr.IsValid() {
			return addr.String()
		}
		return ""
	}},
	{"CLIENT_HOSTNAME", func(tx *backends.DataContext) string { return client(&tx.Session).Name }},
	{"CLIENT_HELO", func(tx *backends.DataContext) string { return client(&tx.Session).HELO }},
	{"CLIENT_PROTOCOL", func(tx *backends.DataContext) string { return client(&tx.Session).Protocol }},
	{"SASL_USERNAME", func(tx *backends.DataContext) string { user, _ := tx.Session.ClientUser(); return user }},
	{"SASL_METHOD", func(tx *backends.DataContext) string { _, mechanism := tx.Session.ClientUser(); return mechanism }},
	{"QUEUE_ID", func(tx *backends.DataContext) string {
		if x := tx.Session.XForward; x != nil {
			return x.Ident
		}
		return ""
	}},
	{"MAILGW_TX", func(tx *backends.DataContext) string { return tx.ID }},
}

type variable struct {
	name string
	of   func(tx *backends.DataContext) string
}

func recipients(tx *backends.DataContext) string {
	var all []string
	for _, r := range tx.Envelope.Recipients {
		all = append(all, clean(r.Address))
	}
	return strings.Join(all, "\n")
}

// client returns what is known of the client, wherever it is told.
func client(s *backends.Session) (c backends.Client) {
	if x := s.XForward; x != nil && x.Forwarded {
		return backends.Client{Name: x.Name, HELO: x.HELO, Protocol: x.Proto}
	}
	if s.Client != nil {
		c = *s.Client
	}
	c.HELO, c.Protocol = cmp.Or(c.HELO, s.HELO), cmp.Or(c.Protocol, s.Protocol)
	return c
}

// environment returns the whole environment of a program.
func (b *backend) environment(tx *backends.DataContext) []string {
	env := []string{"PATH=" + cmp.Or(b.Env["PATH"], path)}
	for _, name := range slices.Sorted(maps.Keys(b.Env)) {
		if name != "PATH" {
			env = append(env, name+"="+b.Env[name])
		}
	}
	for _, v := range variables {
		value := v.of(tx)
		if v.name != "RECIPIENTS" {
			value = clean(value)
		}
		env = append(env, v.name+"="+value)
	}
	return env
}

// clean lets nobody end a line, or a whole variable, before its end. Addresses
// that the gateway lets in have no control characters.
func clean(value string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, value)
}

// checkVariable checks one of the settings.
func checkVariable(name, value string) error {
	switch {
	case name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00"):
		return errors.New("a name must not be empty or have a =, and nothing may have a NUL")
	case slices.ContainsFunc(variables, func(v variable) bool { return v.name == name }):
		return errors.New("the transaction says what it is")
	}
	return nil
}
