package record

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

func TestRedactMessage(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{
			"addresses are the same everywhere, and nothing else is left of who speaks to whom",
			"From: \"Ann, the Boss\" <Ann@Acme.example>\r\n" +
				"To: bob@acme.example,\r\n =?utf-8?q?Bo=C3=9F?= <\"a b\"@[192.0.2.1]> (home)\r\n" +
				"Message-ID: <1234.ann@acme.example>\r\n" +
				"Cc: ANN@acme.example\r\n\r\n",
			"From: \"xxx, xxx xxxx\" <user1@domain1.example>\r\n" +
				"To: user2@domain1.example,\r\n xxxxxxxxxxxxxxxxxxxx <user3@domain2.example> (xxxx)\r\n" +
				"Message-ID: <user4@domain1.example>\r\n" +
				"Cc: user1@domain1.example\r\n\r\n",
		},
		{
			"texts keep their length and their lines",
			"Subject: the\r\n\tdeal\r\nReceived: from a ([1.2.3.4]) for <bob@acme.example>\r\n\r\nDear Bob,\r\n\r\n\t1.000 $\r\nbare\rand\nno end",
			"Subject: xxx\r\n\txxxx\r\nReceived: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n\r\nxxxxxxxxx\r\n\r\n\txxxxxxx\r\nxxxx\rxxx\nxxxxxx",
		},
		{
			"fields that nobody knows lose their names",
			"X-Acme-Secret: 1\r\nx-other: 2\r\nX-ACME-SECRET: 3\r\nsubject : 4\r\nDate: Fri, 20 Nov 2026 10:00:00 +0100\r\nDate: on Ann's birthday\r\nMIME-Version: 1.0 (Ann's)\r\n",
			"X-Redacted-1: x\r\nX-Redacted-2: x\r\nX-Redacted-1: x\r\nSubject: x\r\nDate: Fri, 20 Nov 2026 10:00:00 +0100\r\nDate: xxxxxxxxxxxxxxxxx\r\nMIME-Version: xxxxxxxxxxx\r\n",
		},
		{
			"parts stay parts",
			"Content-Type: multipart/mixed; boundary=\"==acme\"; x=ann\r\n\r\npreamble\r\n" +
				"--==acme\r\nContent-Type: multipart/alternative;\r\n boundary=inner\r\n\r\n" +
				"--inner\r\nContent-Type: text/plain; charset=utf-8; format=flowed\r\nContent-Transfer-Encoding: base64\r\n\r\nQW5uIQ==\r\n--inner--\r\n" +
				"--==acme  \r\nContent-Type: application/pdf; name=\"Ann's salary.pdf\"\r\nContent-Disposition: attachment; filename=salary.pdf\r\nX-Acme: 1\r\n\r\n%PDF\r\n--inner\r\n" +
				"--==acme--\r\nepilogue\r\n",
			"Content-Type: multipart/mixed; boundary=boundary1\r\n\r\nxxxxxxxx\r\n" +
				"--boundary1\r\nContent-Type: multipart/alternative; boundary=boundary2\r\n\r\n" +
				"--boundary2\r\nContent-Type: text/plain; charset=utf-8; format=flowed\r\nContent-Transfer-Encoding: base64\r\n\r\nxxxxxxxx\r\n--boundary2--\r\n" +
				"--boundary1\r\nContent-Type: application/pdf; name=xxxxxxxxxxxxxxxx\r\nContent-Disposition: attachment; filename=xxxxxxxxxx\r\nX-Redacted-1: x\r\n\r\nxxxx\r\nxxxxxxx\r\n" +
				"--boundary1--\r\nxxxxxxxx\r\n",
		},
		{
			"a message within a message has a header, unless it is encoded",
			"Content-Type: multipart/digest; boundary=a\r\n\r\n--a\r\nContent-Type: message/rfc822\r\n\r\nSubject: in\r\n\r\nin\r\n" +
				"--a\r\nContent-Transfer-Encoding: base64\r\nContent-Type: message/rfc822\r\n\r\nSubject: in\r\n--a--\r\n",
			"Content-Type: multipart/digest; boundary=boundary1\r\n\r\n--boundary1\r\nContent-Type: message/rfc822\r\n\r\nSubject: xx\r\n\r\nxx\r\n" +
				"--boundary1\r\nContent-Transfer-Encoding: base64\r\nContent-Type: message/rfc822\r\n\r\nxxxxxxxxxxx\r\n--boundary1--\r\n",
		},
		{"a type that cannot be read is gone", "Content-Type: ann/smith; boundary=a\r\n\r\n--a\r\n", "Content-Type: xxxxxxxxxxxxxxxxxxxxx\r\n\r\nxxx\r\n"},
		{"of a type that nobody knows the first half stays", "Content-Type: application/x-acme; charset=acme\r\n", "Content-Type: application/x-redacted\r\n"},
		{"no header", "hello Bob\r\nSubject: not one\r\n", "xxxxxxxxx\r\nxxxxxxxxxxxxxxxx\r\n"},
		{"nothing", "", ""},
	} {
		p := &pseudonyms{}
		if got := string(p.redactMessage([]byte(test.in))); got != test.want {
			t.Errorf("%s: got\n%s\nwant\n%s", test.name, got, test.want)
		}
	}
}

// No word of what tells of people is left in the file.
func TestRedact(t *testing.T) {
	r := full()
	r.Envelope.Sender, r.Envelope.Recipients[3].Address = "ann@acme.example", "postmaster"
	r.Envelope.Params = backends.Params{"SIZE=100", "ENVID=acme", "X-ACME=1", "SMTPUTF8"}
	r.Message = []byte("From: Ann <ANN@acme.example>\r\n\r\nann\r\n")
	r.Redact()
	text := written(t, r)
	for _, want := range []string{
		"\nMAIL FROM:<user2@domain2.example> SIZE=100 ENVID=redacted X-REDACTED-3 SMTPUTF8\n",
		"\nRCPT TO:<postmaster>\n",
		"\n|From: xxx <user2@domain2.example>\n",
		"\nANSWER 0 550 5.1.1 redacted\n",
		"\nANSWER 2 failure redacted\n",
		"\nEDIT add 0 X-Redacted: redacted\n",
		"\nEDIT params RET=HDRS ENVID=redacted\n",
		"\nEDIT redirect 1 <redacted@redacted.example> <redacted@redacted.example>\n",
		"\nEDIT divert 3 quarantine\n",
		"\nPEER ADDR=192.0.2.1:52525\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	lower := strings.ToLower(text)
	for _, gone := range []string{"acme", "ann", "john", "jürgen", "client.example", "reverse.example", "lmtp.sock", "00ff", "4xyz", "archive", "y.example", "protocol: "} {
		if strings.Contains(lower, gone) {
			t.Errorf("%q is still in\n%s", gone, text)
		}
	}
	if got, err := read(text); err != nil || !reflect.DeepEqual(got.Said, r.Said) || !reflect.DeepEqual(r.Said, r.Said.redacted()) {
		t.Errorf("%v: what was said is redacted in another way the second time", err)
	}
}

func TestRedactIP(t *testing.T) {
	p := &pseudonyms{}
	for in, want := range map[string]string{"": "invalid IP"} {
		addr, _ := netip.ParseAddr(in)
		if got := p.ip(addr).String(); got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
	for _, test := range []struct{ in, want string }{
		{"198.51.100.7", "192.0.2.1"}, {"198.51.100.8", "192.0.2.2"}, {"198.51.100.7", "192.0.2.1"},
		{"fe80::1", "2001:db8::1"}, {"::ffff:198.51.100.7", "2001:db8::2"},
	} {
		if got := p.ip(netip.MustParseAddr(test.in)).String(); got != test.want {
			t.Errorf("%s became %s, want %s", test.in, got, test.want)
		}
	}
}

// FuzzRedact looks for a place in a message where a secret survives.
func FuzzRedact(f *testing.F) {
	f.Add("Content-Type: multipart/mixed; boundary=", "\r\nContent-ID: <a@b>\r\n\r\n--\r\nTo: \"x\" <a@b>\r\n\r\n")
	f.Add("Content-Type: text/", "")
	f.Add("From: ", "@acme.example\r\n")
	f.Fuzz(func(t *testing.T, before, after string) {
		const secret = "zqzqzq"
		got := (&pseudonyms{}).redactMessage([]byte(before + secret + after))
		if strings.Contains(strings.ToLower(string(got)), secret) {
			t.Fatalf("%q became %q", before+secret+after, got)
		}
	})
}
