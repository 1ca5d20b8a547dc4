// Package xforward parses and prints the attributes of Postfix's XFORWARD
// command, and says which peers may send it.
//
// XFORWARD tells a server behind a proxy about the client in front of it.
// The rules are those of Postfix's XFORWARD_README and smtpd(8).
package xforward

import (
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

	unavailable = "[UNAVAILABLE]"
)

// attribute tells how the value of an attribute is kept and checked.
type attribute struct {
	name   string
	field  func(*Attrs) *string
	client bool                                   // one of the five that tell the client
	check  func(value string) (kept, fault string) // fault is the text of a 501
}

var attributes = []attribute{
	{"NAME", func(a *Attrs) *string { return &a.Name }, true, checkName},
	{"ADDR", func(a *Attrs) *string { return &a.Addr }, true, checkAddr},
	{"PORT", func(a *Attrs) *string { return &a.Port }, true, checkPort},
	{"PROTO", func(a *Attrs) *string { return &a.Proto }, true, checkProto},
	{"HELO", func(a *Attrs) *string { return &a.HELO }, true, checkText},
	{"IDENT", func(a *Attrs) *string { return &a.Ident }, false, checkText},
	{"SOURCE", func(a *Attrs) *string { return &a.Source }, false, checkSource},
}

// Parse adds the attributes of one XFORWARD command, whose arguments are
// args, to a. The caller presents an empty Attrs to the first command of a
// transaction. An error is the text of a 501 reply; a is not changed then.
func (a *Attrs) Parse(args string) error {
	fields := strings.Fields(args)
	if len(fields) == 0 {
		return fmt.Errorf("syntax: XFORWARD attribute=value...")
	}
	next := *a
	for _, field := range fields {
		if err := next.set(field); err != nil {
			return err
		}
	}
	*a = next
	return nil
}

func (a *Attrs) set(field string) error {
	name, raw, _ := strings.Cut(field, "=")
	if raw == "" {
		return fmt.Errorf("attribute=value expected")
	}
	if len(raw) > maxValue {
		return fmt.Errorf("attribute value too long")
	}
	for _, attr := range attributes {
		if !strings.EqualFold(name, attr.name) {
			continue
		}
		value := decode(raw)
		if strings.EqualFold(value, unavailable) {
			value = ""
		} else {
			kept, fault := attr.check(printable(value))
			if fault != "" {
				return fmt.Errorf("bad %s %s: %s", attr.name, fault, printable(value))
			}
			value = kept
		}
		*attr.field(a) = value
		a.Forwarded = a.Forwarded || attr.client
		return nil
	}
	return fmt.Errorf("bad XFORWARD attribute name: %s", printable(name))
}

// Commands returns the commands, without their CRLF, that tell a to a server
// that announced the attributes named in announced. Unknown attributes are
// left out. No command is longer than 512 octets with its CRLF.
func (a *Attrs) Commands(announced []string) []string {
	const maxCommand = 512 - len("\r\n")
	var commands []string
	for _, attr := range attributes {
		value := *attr.field(a)
		if value == "" || !slices.ContainsFunc(announced, func(n string) bool { return strings.EqualFold(n, attr.name) }) {
			continue
		}
		if attr.name == "ADDR" && strings.Contains(value, ":") {
			value = "IPV6:" + value
		}
		pair := " " + attr.name + "=" + encode(value)
		if last := len(commands) - 1; last >= 0 && len(commands[last])+len(pair) <= maxCommand {
			commands[last] += pair
		} else {
			commands = append(commands, "XFORWARD"+pair)
		}
	}
	return commands
}

func checkText(v string) (string, string) { return neuter(v), "" }

func checkName(v string) (string, string) {
	if !validHostname(v) {
		return "", "syntax"
	}
	return v, ""
}

// checkAddr takes an IPv4 address, or IPV6: and an IPv6 address. One that
// is IPv4 mapped into IPv6 is kept as IPv4.
func checkAddr(v string) (string, string) {
	six := len(v) > 5 && strings.EqualFold(v[:5], "IPV6:")
	if six {
		v = v[5:]
	}
	addr, err := netip.ParseAddr(v)
	if err != nil || addr.Zone() != "" || addr.Is4() == six {
		return "", "syntax"
	}
	return addr.Unmap().String(), ""
}

func checkPort(v string) (string, string) {
	if len(v) > maxPort || strings.Trim(v, "0123456789") != "" {
		return "", "syntax"
	}
	return v, ""
}

func checkProto(v string) (string, string) {
	if len(v) > maxProto {
		return "", "length"
	}
	return neuter(v), ""
}

func checkSource(v string) (string, string) {
	if u := strings.ToUpper(v); u == "LOCAL" || u == "REMOTE" {
		return u, ""
	}
	return "", "value"
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
