package xforward

import (
	"slices"
	"strings"
	"testing"
)

func TestParseXClient(t *testing.T) {
	for _, test := range []struct {
		name     string
		commands []string
		want     ClientAttrs
		err      string // of the last command
	}{
		{"all attributes", []string{"NAME=a.example ADDR=192.0.2.1 PROTO=ESMTP HELO=b.example REVERSE_NAME=c.example PORT=25 LOGIN=user DESTADDR=192.0.2.2 DESTPORT=26"},
			ClientAttrs{"a.example", "c.example", "192.0.2.1", "25", "ESMTP", "b.example", "user", "192.0.2.2", "26", true}, ""},
		{"names in any case", []string{"addr=IPv6:2001:db8::1 pOrT=1"}, ClientAttrs{Addr: "2001:db8::1", Port: "1", Readdressed: true}, ""},
		{"xtext", []string{"LOGIN=a+3Db HELO=+20"}, ClientAttrs{Login: "a=b", HELO: "?"}, ""},
		{"unavailable", []string{"ADDR=192.0.2.1 NAME=a.example LOGIN=u", "ADDR=[unavailable] NAME=[UNAVAILABLE] LOGIN=+5BUNAVAILABLE+5D"}, ClientAttrs{Readdressed: true}, ""},
		{"unavailable for now", []string{"NAME=[TEMPUNAVAIL] REVERSE_NAME=[tempunavail]"}, ClientAttrs{}, ""},
		{"not for now", []string{"ADDR=[TEMPUNAVAIL]"}, ClientAttrs{}, "bad ADDR syntax: [TEMPUNAVAIL]"},
		{"attributes stay", []string{"REVERSE_NAME=a.example", "PORT=25"}, ClientAttrs{ReverseName: "a.example", Port: "25"}, ""},
		{"but for some", []string{"PROTO=SMTP HELO=a LOGIN=u PORT=25", "PORT=26"}, ClientAttrs{Port: "26"}, ""},
		{"the address last", []string{"NAME=a.example REVERSE_NAME=b.example", "PORT=25", "ADDR=192.0.2.1"}, ClientAttrs{Name: "a.example", ReverseName: "b.example", Addr: "192.0.2.1", Port: "25", Readdressed: true}, ""},
		{"another client", []string{"ADDR=192.0.2.1 PORT=25 NAME=a.example DESTADDR=192.0.2.9 DESTPORT=25", "REVERSE_NAME=b.example", "HELO=c.example ADDR=192.0.2.2"}, ClientAttrs{HELO: "c.example", Addr: "192.0.2.2", Readdressed: true}, ""},
		{"more of the same client", []string{"ADDR=192.0.2.1 PORT=25", "REVERSE_NAME=b.example"}, ClientAttrs{ReverseName: "b.example", Addr: "192.0.2.1", Port: "25", Readdressed: true}, ""},

		// As in xclient_cmd() of Postfix, a name that is verified is the
		// unverified one, too.
		{"verified name", []string{"NAME=a.example"}, ClientAttrs{Name: "a.example", ReverseName: "a.example"}, ""},
		{"both names", []string{"REVERSE_NAME=b.example NAME=a.example"}, ClientAttrs{Name: "a.example", ReverseName: "b.example"}, ""},
		{"no verified name", []string{"REVERSE_NAME=b.example", "NAME=[UNAVAILABLE]"}, ClientAttrs{ReverseName: "b.example"}, ""},

		// Dovecot over LMTP.
		{"protocol of Dovecot", []string{"PROTO=LMTP"}, ClientAttrs{Proto: "LMTP"}, ""},
		{"address of Dovecot", []string{"ADDR=2001:db8::1 DESTADDR=::ffff:192.0.2.1"}, ClientAttrs{Addr: "2001:db8::1", DestAddr: "192.0.2.1", Readdressed: true}, ""},

		{"a port out of range", []string{"PORT=65536"}, ClientAttrs{}, "bad PORT syntax: 65536"},
		{"protocol in any case", []string{"PROTO=esmtp"}, ClientAttrs{Proto: "ESMTP"}, ""},
		{"protocol", []string{"PROTO=HTTP"}, ClientAttrs{}, "bad PROTO syntax: HTTP"},
		{"port", []string{"PORT=123456"}, ClientAttrs{}, "bad PORT syntax: 123456"},
		{"address", []string{"DESTADDR=example.org"}, ClientAttrs{}, "bad DESTADDR syntax: example.org"},
		{"name", []string{"NAME=a..b"}, ClientAttrs{}, "bad NAME syntax: a..b"},
		{"unknown", []string{"IDENT=1"}, ClientAttrs{}, "bad XCLIENT attribute name: IDENT"},
		{"no value", []string{"NAME="}, ClientAttrs{}, "attribute=value expected"},
		{"nothing", []string{""}, ClientAttrs{}, "attribute=value expected"},
		{"too long", []string{"HELO=" + strings.Repeat("a", 256)}, ClientAttrs{}, "attribute value too long"},
		{"all or none", []string{"REVERSE_NAME=a.example", "ADDR=192.0.2.1 PORT=x"}, ClientAttrs{ReverseName: "a.example"}, "bad PORT syntax: x"},
	} {
		var got ClientAttrs
		var err error
		for _, command := range test.commands {
			err = got.Parse(command)
		}
		text := ""
		if err != nil {
			text = err.Error()
		}
		if got != test.want || text != test.err {
			t.Errorf("%s: %q: got %+v, %q, want %+v, %q", test.name, test.commands, got, text, test.want, test.err)
		}
	}
}

func TestXClientCommands(t *testing.T) {
	all := strings.Fields(ClientKeyword)[1:]
	long := strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63) + "." + strings.Repeat("d", 63)
	for _, test := range []struct {
		attrs     ClientAttrs
		announced []string
		want      []string
	}{
		{ClientAttrs{Name: "a.example", ReverseName: "b.example", Addr: "2001:db8::1", Port: "25", Proto: "ESMTP", HELO: "c d", Login: "u+1", DestAddr: "192.0.2.1", DestPort: "26"}, all,
			[]string{"XCLIENT NAME=a.example REVERSE_NAME=b.example PORT=25 PROTO=ESMTP HELO=c+20d LOGIN=u+2B1 DESTADDR=192.0.2.1 DESTPORT=26 ADDR=IPV6:2001:db8::1"}},
		{ClientAttrs{Addr: "192.0.2.1", Login: "ann"}, []string{"addr", "FUTURE"}, []string{"XCLIENT ADDR=192.0.2.1"}},
		{ClientAttrs{Addr: "192.0.2.1"}, nil, nil},

		// Nothing is left for the server to take from our connection, but for what
		// cannot be told as unavailable.
		{ClientAttrs{}, all, []string{"XCLIENT NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE] PORT=[UNAVAILABLE] HELO=[UNAVAILABLE] LOGIN=[UNAVAILABLE] ADDR=[UNAVAILABLE]"}},

		{ClientAttrs{Name: long, ReverseName: long, HELO: strings.Repeat("+", 100), Addr: "192.0.2.1"}, []string{"NAME", "REVERSE_NAME", "HELO", "ADDR"},
			[]string{"XCLIENT NAME=" + long, "XCLIENT REVERSE_NAME=" + long + " HELO=[UNAVAILABLE] ADDR=192.0.2.1"}},
	} {
		got := test.attrs.Commands(test.announced)
		if !slices.Equal(got, test.want) {
			t.Errorf("%+v: got %q, want %q", test.attrs, got, test.want)
		}
		for _, command := range got {
			if len(command) > 510 {
				t.Errorf("%q has %d octets", command, len(command))
			}
		}
	}
}

// What is parsed is printable, an error changes nothing, and nothing of one
// client is taken for another's.
func FuzzParseXClient(f *testing.F) {
	f.Add("NAME=a.example ADDR=IPV6:2001:db8::1 PROTO=ESMTP LOGIN=a+20b")
	f.Add("ADDR=[UNAVAILABLE] NAME=[TEMPUNAVAIL] HELO=+0D+0A")
	f.Add("PROTO=lmtp ADDR=2001:db8::1 DESTADDR=192.0.2.1 DESTPORT=24")
	f.Fuzz(func(t *testing.T, args string) {
		var a ClientAttrs
		err := a.Parse(args)
		if err != nil && a != (ClientAttrs{}) {
			t.Errorf("%q: changed to %+v in spite of %v", args, a, err)
		}
		other := ClientAttrs{"old", "old", "192.0.2.255", "255", "OLD", "old", "old", "192.0.2.255", "255", true}
		if other.Parse(args); a.Readdressed && other != a {
			t.Errorf("%q: after another client %+v, want %+v", args, other, a)
		}
		for _, attr := range clientAttributes {
			if v := *attr.field(&a); v != printable(v) || len(v) > maxValue {
				t.Errorf("%q: %s is %q", args, attr.name, v)
			}
		}
	})
}
