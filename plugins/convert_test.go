package plugins

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
	"github.com/mailgw/mailgw/xforward"
)

// wholeTransaction is a transaction with something in every field.
func wholeTransaction() *backends.DataContext {
	return &backends.DataContext{
		ID: "TX",
		Session: backends.Session{
			ID: "S", Listener: "in", Protocol: "ESMTP", Local: "[::1]:25", HELO: "h\xe9lo", User: "u\xff", Mechanism: "PLAIN",
			Peer: backends.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:25"), UID: 1, GID: 2, PID: 3},
			Client: &backends.Client{
				Source: "PROXY", Addr: netip.MustParseAddrPort("192.0.2.2:0"), Local: netip.MustParseAddrPort("[2001:db8::1]:25"),
				Name: "n\xff", ReverseName: "r\xff", HELO: "h\xff", Protocol: "ESMTP",
				TLVs: []backends.TLV{{Type: 0xe0, Value: []byte("v\xff")}, {Type: 4}},
			},
			TLS:      &backends.TLS{Version: "TLS 1.3", Cipher: "c", ServerName: "n\xff", ClientCertificate: "ab", ClientName: "m\xff"},
			XForward: &xforward.Attrs{Name: "n", Addr: "a", Port: "p", Proto: "SMTP", HELO: "h", Ident: "i", Source: "LOCAL", Forwarded: true},
		},
		Envelope: backends.Envelope{
			Sender: "sender@example.org",
			Params: backends.Params{"SIZE=5", "X=\xff"},
			Recipients: []backends.Recipient{
				{Address: "\"q\xc3\xbc\"@example.org", Params: backends.Params{"NOTIFY=NEVER"}},
				{Address: "two", Params: backends.Params{"ORCPT=rfc822;two"}},
			},
		},
		Size: 1 << 40,
	}
}

func TestTransactionCrossesTheBorderWhole(t *testing.T) {
	empty := &backends.DataContext{ID: "E"}
	unknown := &backends.DataContext{Session: backends.Session{Client: &backends.Client{Source: "XCLIENT"}}}
	for _, tx := range []*backends.DataContext{wholeTransaction(), empty, unknown} {
		wire := &pb.Transaction{}
		cross(t, transactionToWire(tx), wire)
		if got := transactionFromWire(wire); !reflect.DeepEqual(got, tx) {
			t.Errorf("got  %+v\nwant %+v", got, tx)
		}
	}
}

// A field that is added to the contract is to be added to the protocol.
func TestWholeTransactionIsWhole(t *testing.T) {
	tx := wholeTransaction()
	for _, v := range []any{
		tx.Session, tx.Session.Peer, *tx.Session.Client, tx.Session.Client.TLVs[0], *tx.Session.TLS, *tx.Session.XForward,
		tx.Envelope, tx.Envelope.Recipients[0],
	} {
		for i, v := 0, reflect.ValueOf(v); i < v.NumField(); i++ {
			if v.Field(i).IsZero() {
				t.Errorf("%s.%s is empty", v.Type(), v.Type().Field(i).Name)
			}
		}
	}
}

func TestEditsCrossTheBorderWhole(t *testing.T) {
	sender, null := "s\xff", ""
	for _, want := range []backends.Edits{
		{},
		{
			Fields:     []backends.FieldEdit{{Op: backends.AddField, At: 7, Field: "X: \xff"}, {Op: backends.RemoveField, At: 1}},
			Sender:     &sender,
			Redirects:  map[int][]string{0: {"a\xff", "b"}},
			Added:      []backends.Recipient{{Address: "c\xff", Params: backends.Params{"NOTIFY=NEVER", "X=\xff"}}, {Address: "d"}},
			Diversions: map[int]string{0: "quarantine", 1: "gr\u00fcn"},
		},
		{Sender: &null},
	} {
		tx := message("", "one", "two")
		wire := &pb.Returned{}
		cross(t, editsToWire(want), wire)
		if result, err := returnedFromWire(wire, tx); result != nil || err != nil {
			t.Fatalf("%+v: got the errors %v and %v", want, result, err)
		}
		if got := tx.Edits(); !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
}

// A field that is added to the contract is to be added to the protocol.
func TestEveryEditIsKnown(t *testing.T) {
	if n := reflect.TypeFor[backends.Edits]().NumField(); n != 6 {
		t.Errorf("there are %d kinds of edits, want 6, which cross the border", n)
	}
}
