package xforward

import (
	"cmp"
	"strconv"
	"strings"
)

// ClientAttrs are the attributes of the client that a proxy speaks for. An
// empty string means that the attribute is not known.
type ClientAttrs struct {
	Name        string // host name, verified
	ReverseName string // host name, not verified
	Addr        string // "192.0.2.1", "2001:db8::1"
	Port        string
	Proto       string // SMTP, ESMTP, LMTP
	HELO        string
	Login       string // who it has proved to be
	DestAddr    string // what it connected to
	DestPort    string

	// Readdressed is set once ADDR was sent, even as [UNAVAILABLE]. From then
	// on nothing is to be taken for the client's because it is the proxy's.
	Readdressed bool
}

// ClientKeyword is the EHLO keyword line of XCLIENT.
const ClientKeyword = "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT"

var clientAttributes = []attribute[ClientAttrs]{
	{name: "NAME", field: func(a *ClientAttrs) *string { return &a.Name }, check: checkName, unknown: true},
	{name: "REVERSE_NAME", field: func(a *ClientAttrs) *string { return &a.ReverseName }, check: checkName, unknown: true},
	{name: "ADDR", field: func(a *ClientAttrs) *string { return &a.Addr }, check: checkClientAddr},
	{name: "PORT", field: func(a *ClientAttrs) *string { return &a.Port }, check: checkClientPort},
	{name: "PROTO", field: func(a *ClientAttrs) *string { return &a.Proto }, check: checkClientProto},
	{name: "HELO", field: func(a *ClientAttrs) *string { return &a.HELO }, check: checkText},
	{name: "LOGIN", field: func(a *ClientAttrs) *string { return &a.Login }, check: checkLogin},
	{name: "DESTADDR", field: func(a *ClientAttrs) *string { return &a.DestAddr }, check: checkClientAddr},
	{name: "DESTPORT", field: func(a *ClientAttrs) *string { return &a.DestPort }, check: checkClientPort},
}

// Parse adds the attributes of one XCLIENT command, whose arguments are args,
// to a. They stay to the end of the session, but for PROTO, HELO and LOGIN,
// which each command tells anew. All others may come before ADDR, in commands
// of their own; a second ADDR is that of another client, of whom only that is
// known which comes with it. An error is the text of a 501 reply; a is not
// changed then.
func (a *ClientAttrs) Parse(args string) error {
	next := *a
	next.Proto, next.HELO, next.Login = "", "", ""
	set, err := parse(&next, "XCLIENT", clientAttributes, args)
	if err != nil {
		return err
	}
	told := map[string]bool{}
	for _, attr := range set {
		told[attr.name] = true
	}
	if told["ADDR"] && a.Readdressed {
		next = ClientAttrs{}
		if _, err := parse(&next, "XCLIENT", clientAttributes, args); err != nil {
			return err
		}
	}
	next.Readdressed = told["ADDR"] || a.Readdressed
	if told["NAME"] && next.Name != "" && !told["REVERSE_NAME"] {
		next.ReverseName = next.Name // which was found before it was verified
	}
	*a = next
	return nil
}

// checkClientAddr takes an IPv6 address without IPV6:, too, as Dovecot sends it
// over LMTP.
func checkClientAddr(v string) (string, bool) {
	if kept, ok := checkAddr(v); ok {
		return kept, true
	}
	return checkAddr("IPV6:" + v)
}

// checkClientProto takes LMTP, too, which Dovecot sends and Postfix refuses.
func checkClientProto(v string) (string, bool) {
	v = strings.ToUpper(v)
	return v, v == "SMTP" || v == "ESMTP" || v == "LMTP"
}

// checkLogin takes what may be the name of a user.
func checkLogin(v string) (string, bool) { return v, v != "" }

// checkClientPort takes a port that there can be, since it becomes one.
func checkClientPort(v string) (string, bool) {
	_, err := strconv.ParseUint(v, 10, 16)
	return v, err == nil
}

// Commands returns the commands, without their CRLF, that tell a to a server
// that announced the attributes named in announced. No command is longer than
// 512 octets with its CRLF. What is not known is told as unavailable, since the
// server would take it from this connection; only the protocol has no such
// value, and what the client connected to is left out. The address comes last,
// because by it the server judges whether we may say more.
func (a *ClientAttrs) Commands(announced []string) []string {
	var pairs, last []string
	for _, attr := range clientAttributes {
		value := *attr.field(a)
		if !isAnnounced(attr.name, announced) || value == "" && (attr.name == "PROTO" || strings.HasPrefix(attr.name, "DEST")) {
			continue
		}
		pair := attr.name + "=" + cmp.Or(encoded(attr.name, value), unavailable)
		if attr.name == "ADDR" {
			last = append(last, pair)
		} else {
			pairs = append(pairs, pair)
		}
	}
	return pack("XCLIENT", append(pairs, last...))
}
