package plugins

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	protobuf "google.golang.org/protobuf/proto"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
	"github.com/mailgw/mailgw/xforward"
)

// wholeTransaction is a transaction with something in every field.
func wholeTransaction() *backends.DataContext {
	return &backends.DataContext{
		ID: "TX",
		Session: backends.Session{
			ID: "S", Listener: "in", Protocol: "ESMTP", Local: "[::1]:25", Gateway: "G", HELO: "h\xe9lo", User: "u\xff", Mechanism: "PLAIN",
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
	sender, null := "s\u00fc@example.org", ""
	for _, want := range []backends.Edits{
		{},
		{
			Fields: []backends.FieldEdit{{Op: backends.AddField, At: 7, Field: "X: \xff"}, {Op: backends.RemoveField, At: 1}},
			Sender: &sender, SenderParams: backends.Params{"RET=HDRS", "X=\u00fc"},
			Redirects:  map[int][]string{0: {"\"a\u00fc b\"@example.org", "postmaster"}},
			Added:      []backends.Recipient{{Address: "c\u00fc@example.org", Params: backends.Params{"NOTIFY=NEVER", "X=\u00fc"}}, {Address: "d@example.org"}},
			Diversions: map[int]string{0: "quarantine", 1: "audit"},
		},
		{Sender: &null, SenderParams: backends.Params{}},
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

// What the Go package would not let a backend say is a breach of the protocol.
func TestAbsurdEditsAreRefused(t *testing.T) {
	long := []byte(strings.Repeat("x", 1013) + "@example.org")
	for name, test := range map[string]struct {
		edits *pb.Edits
		err   string
	}{
		"long sender":   {&pb.Edits{Sender: long}, "edit: sender: address of 1025 octets"},
		"long redirect": {&pb.Edits{Redirects: []*pb.Redirect{{Addresses: [][]byte{long}}}}, "edit: redirect recipient 0: address of 1025 octets"},
		"long added":    {&pb.Edits{Added: []*pb.Recipient{{Address: long}}}, "edit: add recipient: address of 1025 octets"},
		"long parameter": {&pb.Edits{Added: []*pb.Recipient{{Address: []byte("a@example.org"), Params: [][]byte{long}}}},
			"edit: add recipient \"a@example.org\": parameter of 1025 octets"},
		"long route":                   {&pb.Edits{Diversions: []*pb.Diversion{{Route: strings.Repeat("x", 64)}}}, "edit: divert recipient 0: route"},
		"long parameter of the sender": {&pb.Edits{SenderParams: &pb.SenderParams{Params: [][]byte{long}}}, "edit: sender: parameter of 1025 octets"},
		"parameter of the message": {&pb.Edits{SenderParams: &pb.SenderParams{Params: [][]byte{[]byte("REQUIRETLS")}}},
			"edit: sender: parameter \"REQUIRETLS\" is of the message"},
		"no address":    {&pb.Edits{Sender: []byte("MAIL\r\nRCPT")}, "control character"},
		"nobody":        {&pb.Edits{Redirects: []*pb.Redirect{{}}}, "no address"},
		"somebody else": {&pb.Edits{Diversions: []*pb.Diversion{{Recipient: 1<<32 - 1, Route: "audit"}}}, "no such recipient"},
	} {
		tx := message("", "one")
		result, err := returnedFromWire(&pb.Returned{Result: &pb.Returned_Edits{Edits: test.edits}}, tx)
		if result != nil || err == nil || !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s: got %v, %v, want %q", name, result, err, test.err)
		}
		if edits := tx.Edits(); !edits.IsZero() {
			t.Errorf("%s: got edits %+v, want none", name, edits)
		}
	}
}

// A field that is added to the contract is to be added to the protocol.
func TestEveryEditIsKnown(t *testing.T) {
	if n := reflect.TypeFor[backends.Edits]().NumField(); n != 7 {
		t.Errorf("there are %d kinds of edits, want 7, which cross the border", n)
	}
}

// What does it cost to carry an envelope across, with all that is known of the
// client?
func BenchmarkEnvelope(b *testing.B) {
	for _, n := range []int{1, 50} {
		tx := wholeTransaction()
		tx.Envelope.Recipients = slices.Repeat([]backends.Recipient{{Address: "recipient@example.org"}}, n)
		wire, err := protobuf.Marshal(transactionToWire(tx))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("encode/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := protobuf.Marshal(transactionToWire(tx)); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("decode/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var message pb.Transaction
				if err := protobuf.Unmarshal(wire, &message); err != nil {
					b.Fatal(err)
				}
				transactionFromWire(&message)
			}
		})
	}
}

// And to carry its answers back?
func BenchmarkStatuses(b *testing.B) {
	var statuses pb.ToGateway
	for i := range 50 {
		statuses.Statuses = append(statuses.Statuses, &pb.RecipientStatus{Recipient: uint32(i), Status: statusToWire(backends.Delivered)})
	}
	b.ReportAllocs()
	for b.Loop() {
		wire, err := protobuf.Marshal(&statuses)
		if err != nil {
			b.Fatal(err)
		}
		var message pb.ToGateway
		if err := protobuf.Unmarshal(wire, &message); err != nil {
			b.Fatal(err)
		}
		for _, s := range message.Statuses {
			if _, err := statusFromWire(s.Status); err != nil {
				b.Fatal(err)
			}
		}
	}
}
