// Package xforward parses and prints the attributes of Postfix's XFORWARD and
// XCLIENT commands, and says which peers may send them.
//
// XFORWARD tells a server behind a proxy about the client in front of it, for
// one message; XCLIENT puts that client in the place of the proxy for the rest
// of the session. The rules are those of Postfix's XFORWARD_README,
// XCLIENT_README and smtpd(8).
package xforward

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Attrs are the attributes of the original client. An empty string means
// that the attribute is not known.
type Attrs struct {
	Name   string // host name
	Addr   string // "192.0.2.1", "2001:db8::1"
	Port   string
	Proto  string // SMTP or ESMTP
	HELO   string
	Ident  string // the proxy's name of the message: Postfix's queue id
	Source string // LOCAL or REMOTE

	// Forwarded is set once any of Name, Addr, Port, Proto and HELO was
	// sent, even as [UNAVAILABLE]. From then on all five come from here, and
	// none from the proxy's own connection.
	Forwarded bool
}

// Keyword is the EHLO keyword line. IDENT is not the last one, because the
// before-queue client of Postfix before 2022-11-28 loses the last attribute.
const Keyword = "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE"

const (
	maxValue = 255 // octets of a value as sent
	maxProto = 64  // octets of PROTO, decoded
	maxPort  = 5

	unavailable     = "[UNAVAILABLE]"
	tempUnavailable = "[TEMPUNAVAIL]"
)

// attribute tells how the value of an attribute of a T is kept and checked.
type attribute[T any] struct {
	name    string
	field   func(*T) *string
	check   func(value string) (kept string, ok bool) // of what is printable US-ASCII
	client  bool                                      // one of the five of XFORWARD that tell the client
	unknown bool                                      // may be [TEMPUNAVAIL]
}

var attributes = []attribute[Attrs]{
	{name: "NAME", field: func(a *Attrs) *string { return &a.Name }, check: checkName, client: true},
	{name: "ADDR", field: func(a *Attrs) *string { return &a.Addr }, check: checkAddr, client: true},
	{name: "PORT", field: func(a *Attrs) *string { return &a.Port }, check: checkPort, client: true},
	{name: "PROTO", field: func(a *Attrs) *string { return &a.Proto }, check: checkProto, client: true},
	{name: "HELO", field: func(a *Attrs) *string { return &a.HELO }, check: checkText, client: true},
	{name: "IDENT", field: func(a *Attrs) *string { return &a.Ident }, check: checkText},
	{name: "SOURCE", field: func(a *Attrs) *string { return &a.Source }, check: checkSource},
}

var errNoValue = errors.New("attribute=value expected")

// Parse adds the attributes of one XFORWARD command, whose arguments are
// args, to a. The caller presents an empty Attrs to the first command of a
// transaction. An error is the text of a 501 reply; a is not changed then.
func (a *Attrs) Parse(args string) error {
	set, err := parse(a, "XFORWARD", attributes, args)
	for _, attr := range set {
		a.Forwarded = a.Forwarded || attr.client
	}
	return err
}

// parse adds the attributes of one command to a, and returns them. If there
// is an error, a is not changed, and there are none.
func parse[T any](a *T, command string, known []attribute[T], args string) (set []attribute[T], err error) {
	fields := strings.FieldsFunc(args, func(r rune) bool { return r == ' ' || r == '\t' })
	if len(fields) == 0 {
		return nil, errNoValue
	}
	next := *a
	for _, field := range fields {
		name, raw, _ := strings.Cut(field, "=")
		name = printable(name)
		i := slices.IndexFunc(known, func(attr attribute[T]) bool { return strings.EqualFold(attr.name, name) })
		switch {
		case raw == "":
			return nil, errNoValue
		case len(raw) > maxValue:
			return nil, errors.New("attribute value too long")
		case i < 0:
			return nil, fmt.Errorf("bad %s attribute name: %.64s", command, name)
		}
		if err := known[i].set(&next, printable(decode(raw))); err != nil {
			return nil, err
		}
		set = append(set, known[i])
	}
	*a = next
	return set, nil
}

func (attr attribute[T]) set(a *T, value string) error {
	kept, ok := "", strings.EqualFold(value, unavailable) || attr.unknown && strings.EqualFold(value, tempUnavailable)
	if !ok {
		kept, ok = attr.check(value)
	}
	if !ok {
		return fmt.Errorf("bad %s syntax: %s", attr.name, value)
	}
	*attr.field(a) = kept
	return nil
}

// Commands returns the commands, without their CRLF, that tell a to a server
// that announced the attributes named in announced. No command is longer
// than 512 octets with its CRLF. What is not known is left out, or told as
// unavailable where the server must not take it from this connection; the
// same goes for a value that would be too long for the server.
func (a *Attrs) Commands(announced []string) []string {
	var pairs []string
	for _, attr := range attributes {
		value := encoded(attr.name, *attr.field(a))
		if value == "" && attr.client && a.Forwarded {
			value = unavailable
		}
		if value != "" && isAnnounced(attr.name, announced) {
			pairs = append(pairs, attr.name+"="+value)
		}
	}
	return pack("XFORWARD", pairs)
}

func isAnnounced(name string, announced []string) bool {
	return slices.ContainsFunc(announced, func(n string) bool { return strings.EqualFold(n, name) })
}

// pack puts pairs of attribute and value into as few commands as it takes.
func pack(command string, pairs []string) (commands []string) {
	const maxCommand = 512 - len("\r\n")
	for _, pair := range pairs {
		if last := len(commands) - 1; last >= 0 && len(commands[last])+1+len(pair) <= maxCommand {
			commands[last] += " " + pair
		} else {
			commands = append(commands, command+" "+pair)
		}
	}
	return commands
}

// encoded returns a value as it is sent; empty if it is not known, or too long
// for the server.
func encoded(name, value string) string {
	if strings.HasSuffix(name, "ADDR") && strings.Contains(value, ":") {
		value = "IPV6:" + value
	}
	if value = encode(value); len(value) > maxValue {
		return ""
	}
	return value
}

func checkText(v string) (string, bool) { return neuter(v), true }

func checkName(v string) (string, bool) { return v, validHostname(v) }

// checkAddr takes an IPv4 address, or IPV6: and an IPv6 address. One that
// is IPv4 mapped into IPv6 is kept as IPv4.
func checkAddr(v string) (string, bool) {
	const prefix = "IPV6:"
	six := len(v) > len(prefix) && strings.EqualFold(v[:len(prefix)], prefix)
	if six {
		v = v[len(prefix):]
	}
	addr, err := netip.ParseAddr(v)
	if err != nil || addr.Zone() != "" || addr.Is6() != six {
		return "", false
	}
	return addr.Unmap().String(), true
}

func checkPort(v string) (string, bool) {
	return v, len(v) <= maxPort && strings.Trim(v, "0123456789") == ""
}

func checkProto(v string) (string, bool) { return neuter(v), len(v) <= maxProto }

func checkSource(v string) (string, bool) {
	v = strings.ToUpper(v)
	return v, v == "LOCAL" || v == "REMOTE"
}

// validHostname follows valid_hostname() of Postfix: labels of letters,
// digits, hyphen and underscore; no empty label; at most 255 octets; not all
// numeric.
func validHostname(v string) bool {
	if len(v) > 255 || strings.Trim(v, "0123456789.") == "" {
		return false
	}
	for label := range strings.SplitSeq(v, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if !(c == '-' || c == '_' || '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z') {
				return false
			}
		}
	}
	return true
}

// printable replaces every octet that is not printable US-ASCII by "?".
func printable(v string) string {
	return replace(v, func(c byte) bool { return c < ' ' || c > '~' })
}

// neuter replaces the characters that are special in a header, which Postfix
// does not let through either.
func neuter(v string) string {
	return replace(v, func(c byte) bool { return strings.IndexByte(" <>()\\\";@", c) >= 0 })
}

func replace(v string, bad func(byte) bool) string {
	b := []byte(v)
	for i, c := range b {
		if bad(c) {
			b[i] = '?'
		}
	}
	return string(b)
}
