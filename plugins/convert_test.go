package plugins

import (
	"net/netip"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
	"github.com/mailgw/mailgw/xforward"
)

// wholeTransaction is a transaction with something in every field.
func wholeTransaction() *backends.DataContext {
	return &backends.DataContext{
		ID: "TX",
		Session: backends.Session{
			ID: "S", Listener: "in", Protocol: "ESMTP", Local: "[::1]:25", HELO: "h\xe9lo",
			Peer:     backends.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:25"), UID: 1, GID: 2, PID: 3},
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
	for _, tx := range []*backends.DataContext{wholeTransaction(), empty} {
		octets, err := proto.Marshal(transactionToWire(tx))
		if err != nil {
			t.Fatal(err)
		}
		var wire pb.Transaction
		if err := proto.Unmarshal(octets, &wire); err != nil {
			t.Fatal(err)
		}
		if got := transactionFromWire(&wire); !reflect.DeepEqual(got, tx) {
			t.Errorf("got  %+v\nwant %+v", got, tx)
		}
	}
}

// A field that is added to the contract is to be added to the protocol.
func TestWholeTransactionIsWhole(t *testing.T) {
	tx := wholeTransaction()
	for _, v := range []any{tx.Session, tx.Session.Peer, *tx.Session.XForward, tx.Envelope, tx.Envelope.Recipients[0]} {
		for i, v := 0, reflect.ValueOf(v); i < v.NumField(); i++ {
			if v.Field(i).IsZero() {
				t.Errorf("%s.%s is empty", v.Type(), v.Type().Field(i).Name)
			}
		}
	}
}
