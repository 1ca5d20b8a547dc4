package relay

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/xforward"
)

func forwardedBy(ident string) *xforward.Attrs { return &xforward.Attrs{Ident: ident} }

// What the target hears of the client is all of one source: XFORWARD, or what is
// known of our connection (XFORWARD_README of Postfix).
func TestForwarded(t *testing.T) {
	peer := backends.Peer{Addr: netip.MustParseAddrPort("[::ffff:192.0.2.1]:2525")}
	for _, test := range []struct {
		name    string
		session backends.Session
		want    string
	}{
		{"peer", backends.Session{Peer: peer, HELO: "h.example", Protocol: "UTF8SMTPSA"},
			"NAME=[UNAVAILABLE] ADDR=192.0.2.1 PORT=2525 PROTO=ESMTP HELO=h.example IDENT=tx1 SOURCE=REMOTE"},
		{"process on this machine", backends.Session{HELO: "h.example", Protocol: "LMTP"},
			"NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE] PORT=[UNAVAILABLE] PROTO=ESMTP HELO=h.example IDENT=tx1 SOURCE=LOCAL"},
		{"PROXY", backends.Session{Peer: peer, HELO: "h.example", Protocol: "SMTP", Client: &backends.Client{Addr: netip.MustParseAddrPort("[2001:db8::1]:25")}},
			"NAME=[UNAVAILABLE] ADDR=IPV6:2001:db8::1 PORT=25 PROTO=SMTP HELO=h.example IDENT=tx1 SOURCE=REMOTE"},
		{"XCLIENT", backends.Session{Peer: peer, HELO: "p.example", Protocol: "ESMTP", Client: &backends.Client{Name: "c.example", HELO: "h.example", Protocol: "SMTP"}},
			"NAME=c.example ADDR=[UNAVAILABLE] PORT=[UNAVAILABLE] PROTO=SMTP HELO=h.example IDENT=tx1 SOURCE=REMOTE"},
		{"XFORWARD", backends.Session{Peer: peer, HELO: "p.example", Protocol: "ESMTP", XForward: &xforward.Attrs{Addr: "198.51.100.7", Ident: "4QQ", Forwarded: true}},
			"NAME=[UNAVAILABLE] ADDR=198.51.100.7 PORT=[UNAVAILABLE] PROTO=[UNAVAILABLE] HELO=[UNAVAILABLE] IDENT=4QQ"},
		{"XFORWARD of IDENT and SOURCE", backends.Session{Peer: peer, HELO: "p.example", Protocol: "ESMTP", XForward: &xforward.Attrs{Ident: "4QQ", Source: "LOCAL"}},
			"NAME=[UNAVAILABLE] ADDR=192.0.2.1 PORT=2525 PROTO=ESMTP HELO=p.example IDENT=4QQ SOURCE=LOCAL"},
	} {
		attrs := forwarded(&backends.DataContext{ID: "tx1", Session: test.session})
		got := strings.Join(attrs.Commands(strings.Fields(xforward.Keyword)), "|")
		if got != "XFORWARD "+test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}
