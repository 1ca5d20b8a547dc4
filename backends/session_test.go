package backends

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/mailgw/mailgw/xforward"
)

func TestClientAddr(t *testing.T) {
	peer := Peer{Addr: netip.MustParseAddrPort("192.0.2.1:25")}
	client := &Client{Addr: netip.MustParseAddrPort("192.0.2.2:25")}
	for _, test := range []struct {
		session Session
		want    string
	}{
		{Session{Peer: peer}, "192.0.2.1"},
		{Session{}, "invalid IP"}, // a unix socket
		{Session{Peer: peer, Client: client}, "192.0.2.2"},
		{Session{Peer: peer, Client: &Client{}}, "invalid IP"},
		{Session{Peer: peer, Client: client, XForward: &xforward.Attrs{Forwarded: true, Addr: "2001:db8::1"}}, "2001:db8::1"},
		// What is not known is not taken from elsewhere.
		{Session{Peer: peer, Client: client, XForward: &xforward.Attrs{Forwarded: true, Addr: "unknown"}}, "invalid IP"},
		// IDENT alone says nothing of the client.
		{Session{Peer: peer, XForward: &xforward.Attrs{Ident: "QUEUEID"}}, "192.0.2.1"},
	} {
		if got := test.session.ClientAddr().String(); got != test.want {
			t.Errorf("%+v: got %s, want %s", test.session, got, test.want)
		}
	}
}

func TestSessionClone(t *testing.T) {
	s := Session{Client: &Client{TLVs: []TLV{{Type: 1}}}, TLS: &TLS{Version: "TLS 1.3"}, XForward: &xforward.Attrs{Name: "a"}}
	c := s.Clone()
	if !reflect.DeepEqual(c, s) {
		t.Errorf("got %+v, want %+v", c, s)
	}
	c.Client.TLVs[0].Type, c.TLS.Version, c.XForward.Name = 2, "", ""
	if s.Client.TLVs[0].Type != 1 || s.TLS.Version == "" || s.XForward.Name == "" {
		t.Errorf("a change of the clone changed the original: %+v", s)
	}
}
