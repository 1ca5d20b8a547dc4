package xforward

import (
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	tests := []struct {
		commands []string // of one transaction, without the verb
		want     Attrs
	}{
		// What Postfix sends: to a before-queue filter, and after the queue.
		{
			[]string{"NAME=mail.example.org ADDR=192.0.2.1 PORT=4711 HELO=mail.example.org IDENT=[UNAVAILABLE] PROTO=ESMTP SOURCE=REMOTE"},
			Attrs{"mail.example.org", "192.0.2.1", "4711", "ESMTP", "mail.example.org", "", "REMOTE", true},
		},
		{
			[]string{"NAME=mail.example.org ADDR=IPV6:2001:db8::1 PORT=4711", "PROTO=ESMTP HELO=[IPv6:2001:db8::1] IDENT=4hFXKL2cQWz9rNt SOURCE=REMOTE"},
			Attrs{"mail.example.org", "2001:db8::1", "4711", "ESMTP", "[IPv6:2001:db8::1]", "4hFXKL2cQWz9rNt", "REMOTE", true},
		},
		{
			[]string{"NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE] PORT=[UNAVAILABLE] HELO=[UNAVAILABLE] IDENT=[UNAVAILABLE] PROTO=[UNAVAILABLE] SOURCE=[UNAVAILABLE]"},
			Attrs{Forwarded: true},
		},
		{[]string{"IDENT=4hFXKL2cQWz9rNt SOURCE=LOCAL"}, Attrs{Ident: "4hFXKL2cQWz9rNt", Source: "LOCAL"}},

		// Names in any case, white space of any length.
		{[]string{"name=a  Helo=b\tsource=remote "}, Attrs{Name: "a", HELO: "b", Source: "REMOTE", Forwarded: true}},

		// The first "=" parts name and value, and only that.
		{[]string{"HELO=a=b="}, Attrs{HELO: "a=b=", Forwarded: true}},
		{[]string{"HELO=="}, Attrs{HELO: "=", Forwarded: true}},

		// Later values override, in the same command and in the next.
		{[]string{"HELO=a PROTO=SMTP HELO=b", "PROTO=ESMTP"}, Attrs{HELO: "b", Proto: "ESMTP", Forwarded: true}},
		{[]string{"NAME=a", "ADDR=192.0.2.1", "NAME=b"}, Attrs{Name: "b", Addr: "192.0.2.1", Forwarded: true}},
		{[]string{"NAME=a IDENT=b", "NAME=[UNAVAILABLE] IDENT=[UNAVAILABLE]"}, Attrs{Forwarded: true}},

		// Unavailable in any case, encoded or not.
		{[]string{"HELO=[Unavailable] NAME=+5BUNAVAILABLE+5D"}, Attrs{Forwarded: true}},
		{[]string{"IDENT=[unavailable] SOURCE=+5bunavailable]"}, Attrs{}},
		{[]string{"HELO=[UNAVAILABLE]x PROTO=UNAVAILABLE"}, Attrs{HELO: "[UNAVAILABLE]x", Proto: "UNAVAILABLE", Forwarded: true}},

		// Any one of the five tells the client; the other two do not.
		{[]string{"NAME=[UNAVAILABLE]"}, Attrs{Forwarded: true}},
		{[]string{"ADDR=[UNAVAILABLE]"}, Attrs{Forwarded: true}},
		{[]string{"PORT=[UNAVAILABLE]"}, Attrs{Forwarded: true}},
		{[]string{"PROTO=[UNAVAILABLE]"}, Attrs{Forwarded: true}},
		{[]string{"HELO=[UNAVAILABLE]"}, Attrs{Forwarded: true}},

		// xtext, with digits of either case. What is not xtext is from a
		// Postfix before 2.3, and meant as it stands.
		{[]string{"HELO=a+2Bb+2bc"}, Attrs{HELO: "a+b+c", Forwarded: true}},
		{[]string{"IDENT=+2B41"}, Attrs{Ident: "+41"}},
		{[]string{"HELO=a+b IDENT=+ PROTO=x+4"}, Attrs{HELO: "a+b", Ident: "+", Proto: "x+4", Forwarded: true}},
		{[]string{"HELO=+41+4"}, Attrs{HELO: "+41+4", Forwarded: true}},
		{[]string{"NAME=+61.example ADDR=192+2E0.2.1 PORT=+32+35 SOURCE=+4cOCAL"}, Attrs{Name: "a.example", Addr: "192.0.2.1", Port: "25", Source: "LOCAL", Forwarded: true}},

		// Nothing that could end a line, or mean something in a header.
		{[]string{"HELO=a+0D+0ARCPT+20TO:+00"}, Attrs{HELO: "a??RCPT?TO:?", Forwarded: true}},
		{[]string{"IDENT=a+09b+7F+1B[2J"}, Attrs{Ident: "a?b??[2J"}},
		{[]string{`PROTO=<a>(b)\";@c`}, Attrs{Proto: "?a??b?????c", Forwarded: true}},
		{[]string{"HELO=\x00\x7f\u00e9+C3+A9"}, Attrs{HELO: "??????", Forwarded: true}},
		{[]string{"HELO=a\u00a0b\u2003c\vd"}, Attrs{HELO: "a??b???c?d", Forwarded: true}},

		// Addresses. One that is IPv4 is IPv4 in any form.
		{[]string{"ADDR=ipv6:2001:DB8:0::1"}, Attrs{Addr: "2001:db8::1", Forwarded: true}},
		{[]string{"ADDR=IPV6:::ffff:192.0.2.1"}, Attrs{Addr: "192.0.2.1", Forwarded: true}},
		{[]string{"ADDR=IPv6:::ffff:c000:201"}, Attrs{Addr: "192.0.2.1", Forwarded: true}},
		{[]string{"ADDR=IPV6:::"}, Attrs{Addr: "::", Forwarded: true}},

		// Names, as Postfix takes them.
		{[]string{"NAME=under_score.1-2.example"}, Attrs{Name: "under_score.1-2.example", Forwarded: true}},
		{[]string{"NAME=" + strings.Repeat("x", 63)}, Attrs{Name: strings.Repeat("x", 63), Forwarded: true}},

		// The longest that are let through. 255 is of what was sent, 64 of
		// what it means.
		{[]string{"HELO=" + strings.Repeat("x", 255)}, Attrs{HELO: strings.Repeat("x", 255), Forwarded: true}},
		{[]string{"HELO=" + strings.Repeat("+41", 85)}, Attrs{HELO: strings.Repeat("A", 85), Forwarded: true}},
		{[]string{"PROTO=" + strings.Repeat("+41", 64)}, Attrs{Proto: strings.Repeat("A", 64), Forwarded: true}},
		{[]string{"PORT=00025"}, Attrs{Port: "00025", Forwarded: true}},
		{[]string{"PORT=99999"}, Attrs{Port: "99999", Forwarded: true}},
	}
	for _, test := range tests {
		var got Attrs
		for _, args := range test.commands {
			if err := got.Parse(args); err != nil {
				t.Errorf("%q: %v", args, err)
			}
		}
		if got != test.want {
			t.Errorf("%q: got %+v, want %+v", test.commands, got, test.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct{ args, err string }{
		// There is at least one attribute, and each has a value.
		{"", "attribute=value expected"},
		{" \t", "attribute=value expected"},
		{"NAME", "attribute=value expected"},
		{"NAME=", "attribute=value expected"},
		{"=", "attribute=value expected"},
		{"HELO=a PROTO", "attribute=value expected"},

		{"COLOUR=blue", "bad XFORWARD attribute name: COLOUR"},
		{"=a", "bad XFORWARD attribute name: "},
		{"LOGIN=a", "bad XFORWARD attribute name: LOGIN"}, // XCLIENT has it
		{"HELO=a COLOUR=blue", "bad XFORWARD attribute name: COLOUR"},
		{"\u017fOURCE=LOCAL", "bad XFORWARD attribute name: ??OURCE"},
		{"\x1b[2J=a", "bad XFORWARD attribute name: ?[2J"},
		{strings.Repeat("x", 1000) + "=a", "bad XFORWARD attribute name: " + strings.Repeat("x", 64)},

		{"HELO=" + strings.Repeat("x", 256), "attribute value too long"},
		{"HELO=" + strings.Repeat("+41", 86), "attribute value too long"},
		{"PROTO=" + strings.Repeat("x", 65), "bad PROTO syntax: " + strings.Repeat("x", 65)},

		{"PORT=a", "bad PORT syntax: a"},
		{"PORT=-1", "bad PORT syntax: -1"},
		{"PORT=123456", "bad PORT syntax: 123456"},
		{"PORT=25+0D", "bad PORT syntax: 25?"},
		{"SOURCE=ELSEWHERE", "bad SOURCE syntax: ELSEWHERE"},

		{"ADDR=2001:db8::1", "bad ADDR syntax: 2001:db8::1"},
		{"ADDR=IPV6:192.0.2.1", "bad ADDR syntax: IPV6:192.0.2.1"},
		{"ADDR=::ffff:192.0.2.1", "bad ADDR syntax: ::ffff:192.0.2.1"},
		{"ADDR=IPV6:", "bad ADDR syntax: IPV6:"},
		{"ADDR=[192.0.2.1]", "bad ADDR syntax: [192.0.2.1]"},
		{"ADDR=[IPV6:::1]", "bad ADDR syntax: [IPV6:::1]"},
		{"ADDR=IPV6:[::1]", "bad ADDR syntax: IPV6:[::1]"},
		{"ADDR=IPV6:fe80::1%eth0", "bad ADDR syntax: IPV6:fe80::1%eth0"},
		{"ADDR=192.0.2", "bad ADDR syntax: 192.0.2"},
		{"ADDR=192.0.2.256", "bad ADDR syntax: 192.0.2.256"},
		{"ADDR=192.0.2.01", "bad ADDR syntax: 192.0.2.01"},
		{"ADDR=192.0.2.1/24", "bad ADDR syntax: 192.0.2.1/24"},
		{"ADDR=unknown", "bad ADDR syntax: unknown"},

		{"NAME=a..b", "bad NAME syntax: a..b"},
		{"NAME=.a", "bad NAME syntax: .a"},
		{"NAME=a.", "bad NAME syntax: a."},
		{"NAME=-a", "bad NAME syntax: -a"},
		{"NAME=a-.b", "bad NAME syntax: a-.b"},
		{"NAME=192.0.2.1", "bad NAME syntax: 192.0.2.1"},
		{"NAME=a+20b", "bad NAME syntax: a b"},
		{"NAME=a<b>", "bad NAME syntax: a<b>"},
		{"NAME=b\u00fccher.example", "bad NAME syntax: b??cher.example"},
		{"NAME=" + strings.Repeat("x", 64), "bad NAME syntax: " + strings.Repeat("x", 64)},
	}
	before := Attrs{Name: "before", Addr: "192.0.2.9", HELO: "before", Forwarded: true}
	for _, test := range tests {
		a := before
		if err := a.Parse(test.args); err == nil || err.Error() != test.err {
			t.Errorf("Parse(%q): %v, want %s", test.args, err, test.err)
		}
		if a != before {
			t.Errorf("Parse(%q) failed and left %+v", test.args, a)
		}
	}
}

// all are the attributes as a server announces them.
var all = strings.Fields(Keyword)[1:]

func TestKeyword(t *testing.T) {
	if Keyword != "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE" {
		t.Error(Keyword)
	}
	for _, attr := range attributes {
		if !slices.Contains(all, attr.name) {
			t.Errorf("%s is taken and not announced", attr.name)
		}
	}
}

func TestCommands(t *testing.T) {
	full := Attrs{"mail.example.org", "2001:db8::1", "4711", "ESMTP", "[192.0.2.1]", "4hFXKL2cQWz9rNt", "REMOTE", true}
	x := strings.Repeat("x", 255)
	tests := []struct {
		attrs     Attrs
		announced []string
		want      []string
	}{
		{full, all, []string{"XFORWARD NAME=mail.example.org ADDR=IPV6:2001:db8::1 PORT=4711 PROTO=ESMTP HELO=[192.0.2.1] IDENT=4hFXKL2cQWz9rNt SOURCE=REMOTE"}},

		// A server gets what it announced, whatever it cannot have.
		{full, nil, nil},
		{full, []string{"ident", "Name", "LOGIN"}, []string{"XFORWARD NAME=mail.example.org IDENT=4hFXKL2cQWz9rNt"}},
		{Attrs{}, all, nil},
		{Attrs{Ident: "a"}, all, []string{"XFORWARD IDENT=a"}},

		// What is not known of a client that was told is unavailable, or the
		// server would take the gateway's own connection for it.
		{Attrs{Addr: "192.0.2.1", Forwarded: true}, all, []string{"XFORWARD NAME=[UNAVAILABLE] ADDR=192.0.2.1 PORT=[UNAVAILABLE] PROTO=[UNAVAILABLE] HELO=[UNAVAILABLE]"}},
		{Attrs{Ident: "a", Forwarded: true}, []string{"NAME", "IDENT"}, []string{"XFORWARD NAME=[UNAVAILABLE] IDENT=a"}},

		// xtext as Postfix writes it.
		{Attrs{HELO: "a+b=c d\r\n\x7f\u00e9"}, all, []string{"XFORWARD HELO=a+2Bb=c+20d+0D+0A+7F+C3+A9"}},

		// 512 octets with the CRLF, to the octet.
		{Attrs{HELO: x, Ident: x[:234]}, all, []string{"XFORWARD HELO=" + x + " IDENT=" + x[:234]}},
		{Attrs{HELO: x, Ident: x[:235]}, all, []string{"XFORWARD HELO=" + x, "XFORWARD IDENT=" + x[:235]}},
		{Attrs{Name: x, HELO: x, Ident: x, Source: "LOCAL"}, all, []string{"XFORWARD NAME=" + x, "XFORWARD HELO=" + x, "XFORWARD IDENT=" + x + " SOURCE=LOCAL"}},

		// A value that a server would refuse, and with it all others of the
		// command, is not sent.
		{Attrs{HELO: x + "x", Ident: strings.Repeat("+", 86), Source: "LOCAL"}, all, []string{"XFORWARD SOURCE=LOCAL"}},
		{Attrs{HELO: x + "x", Forwarded: true}, []string{"HELO"}, []string{"XFORWARD HELO=[UNAVAILABLE]"}},
	}
	for _, test := range tests {
		got := test.attrs.Commands(test.announced)
		if !slices.Equal(got, test.want) {
			t.Errorf("%+v to a server with %q:\ngot  %q\nwant %q", test.attrs, test.announced, got, test.want)
		}
		for _, c := range got {
			if len(c) > 510 {
				t.Errorf("%d octets: %q", len(c), c)
			}
		}
	}
}

// tell sends a to a server as a relay does, and returns what it has then.
func tell(t *testing.T, a Attrs) Attrs {
	t.Helper()
	var got Attrs
	for _, c := range a.Commands(all) {
		args, ok := strings.CutPrefix(c, "XFORWARD ")
		if err := got.Parse(args); !ok || len(c) > 510 || printable(c) != c || err != nil {
			t.Errorf("%+v is told as %q: %v", a, c, err)
		}
	}
	return got
}

// Nothing that a client sends makes Parse panic or keep what could end a
// line; and what it keeps, the next server learns.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, first, second string) {
		var a Attrs
		for _, args := range []string{first, second} {
			before := a
			err := a.Parse(args)
			if err != nil && (a != before || printable(err.Error()) != err.Error() || len(err.Error()) > 400) {
				t.Errorf("Parse(%q): %q, left %+v", args, err, a)
			}
		}
		fits := true
		for _, attr := range attributes {
			value := *attr.field(&a)
			if printable(value) != value || len(value) > maxValue {
				t.Errorf("%q, %q: %s is %q", first, second, attr.name, value)
			}
			fits = fits && len(encode(value)) <= maxValue
		}
		if told := tell(t, a); fits && told != a {
			t.Errorf("%q, %q: %+v is told as %+v", first, second, a, told)
		}
	})
}

// xtext gives back what was put in, and is xtext.
func FuzzXtext(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		e := encode(s)
		if printable(e) != e || strings.Contains(e, " ") || decode(e) != s {
			t.Errorf("%q is encoded as %q, and that decoded as %q", s, e, decode(e))
		}
		if d := decode(s); len(d) > len(s) {
			t.Errorf("%q is decoded as %q", s, d)
		}
	})
}
