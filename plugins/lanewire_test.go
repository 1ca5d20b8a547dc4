package plugins

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"

	protobuf "google.golang.org/protobuf/proto"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// someTransactions are those that the lane encodes and decodes by itself, and some that
// it leaves to the generated code.
func someTransactions() map[string]*backends.DataContext {
	long, many, plain := wholeTransaction(), wholeTransaction(), wholeTransaction()
	long.Session.HELO, long.Envelope.Recipients[1].Address = strings.Repeat("h", 127), strings.Repeat("a", 20_000)
	many.Envelope.Recipients = slices.Repeat(many.Envelope.Recipients, 300)
	plain.Session.TLS, plain.Session.Client = nil, nil
	negative := &backends.DataContext{Size: -1, Session: backends.Session{Peer: backends.Peer{PID: -1}}}
	return map[string]*backends.DataContext{
		"whole": wholeTransaction(), "empty": {}, "long": long, "many": many, "plain": plain, "negative": negative,
		"some": message("hello", "ann@example.org", ""),
	}
}

func TestLaneWritesTransactionsLikeProtobuf(t *testing.T) {
	for name, tx := range someTransactions() {
		want := octetsOf(t, transactionToWire(tx))
		got := appendTransaction([]byte("before"), tx)
		if !bytes.Equal(got, append([]byte("before"), want...)) {
			t.Errorf("%s: got  %x\nwant %x", name, got, want)
		}
	}
}

// Nothing of a usual transaction is left to the generated code.
func TestLaneReadsTransactions(t *testing.T) {
	for name, tx := range someTransactions() {
		got, ok := decodeTransaction(octetsOf(t, transactionToWire(tx)))
		if usual := tx.Session.TLS == nil && tx.Size >= 0; ok != usual {
			t.Errorf("%s: decoded %t, want %t", name, ok, usual)
		}
		if tx.Body = nil; ok && !reflect.DeepEqual(got, tx) {
			t.Errorf("%s: got  %+v\nwant %+v", name, got, tx)
		}
	}
}

func FuzzLaneReadsTransactionsLikeProtobuf(f *testing.F) {
	for _, tx := range someTransactions() {
		octets, _ := protobuf.Marshal(transactionToWire(tx))
		f.Add(octets[:min(len(octets), 2000)])
	}
	f.Fuzz(func(t *testing.T, octets []byte) {
		got, ok := decodeTransaction(octets)
		if !ok {
			return
		}
		wire := &pb.Transaction{}
		if err := protobuf.Unmarshal(octets, wire); err != nil {
			t.Fatalf("got %+v, want the error %v", got, err)
		}
		if want := transactionFromWire(wire); !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if !bytes.Equal(appendTransaction(nil, got), octetsOf(t, transactionToWire(got))) {
			t.Error("it is written otherwise")
		}
	})
}

// What is said of many recipients is encoded once.
func TestLaneWritesStatusesLikeProtobuf(t *testing.T) {
	for _, s := range []backends.Status{backends.Delivered, {}, {Code: 450, Text: strings.Repeat("x", maxText)}} {
		recipients := []int{0, 1, 127, 128, 1 << 20}
		want := octetsOf(t, statusesToWire(recipients, s))
		if got := appendStatuses([]byte("before"), recipients, s); !bytes.Equal(got, append([]byte("before"), want...)) {
			t.Errorf("%v: got %x, want %x", s, got, want)
		}
	}
}

// someAnswers are answers, and whether the lane decodes them by itself.
var someAnswers = map[string]struct {
	answer *pb.ToGateway
	usual  bool
}{
	"status":   {&pb.ToGateway{Statuses: status250(3)}, true},
	"statuses": {&pb.ToGateway{Statuses: slices.Concat(status250(0), status250(1), status250(1<<32-1))}, true},
	"mixed": {&pb.ToGateway{Statuses: slices.Concat(status250(0), status250(1),
		[]*pb.RecipientStatus{{Recipient: 2, Status: &pb.Status{Code: 550}}, {Recipient: 3, Status: &pb.Status{Code: 550}}}, status250(4))}, true},
	"long text":  {&pb.ToGateway{Statuses: []*pb.RecipientStatus{{Status: &pb.Status{Code: 450, Text: strings.Repeat("x", 9000)}}}}, true},
	"no code":    {&pb.ToGateway{Statuses: []*pb.RecipientStatus{{Status: &pb.Status{}}}}, true},
	"no edits":   {&pb.ToGateway{Returned: noEdits}, true},
	"edits":      {returnEdits(&pb.Edits{Sender: []byte{}}), false},
	"failure":    {&pb.ToGateway{Returned: &pb.Returned{Result: &pb.Returned_Failure{Failure: "x"}}}, false},
	"started":    {&pb.ToGateway{Started: []uint32{1, 2}}, false},
	"response":   {&pb.ToGateway{SmtpResponse: &pb.Status{Code: 250}}, false},
	"first part": {&pb.ToGateway{First: true, Last: true}, false},
	"nothing":    {&pb.ToGateway{}, false},
}

func TestLaneWritesAndReadsAnswersLikeProtobuf(t *testing.T) {
	room := &answerRoom{}
	for name, test := range someAnswers {
		octets := octetsOf(t, test.answer)
		if got, err := appendAnswer(nil, test.answer); err != nil || !bytes.Equal(got, octets) {
			t.Errorf("%s: got %x, %v, want %x", name, got, err, octets)
		}
		got, ok := room.decode(octets)
		if ok != test.usual || ok && !protobuf.Equal(got, test.answer) {
			t.Errorf("%s: got %v, %t; want %v, %t", name, got, ok, test.answer, test.usual)
		}
	}
}

func FuzzLaneReadsAnswersLikeProtobuf(f *testing.F) {
	for _, test := range someAnswers {
		octets, _ := protobuf.Marshal(test.answer)
		f.Add(octets)
	}
	room := &answerRoom{}
	f.Fuzz(func(t *testing.T, octets []byte) {
		got, ok := room.decode(octets)
		if !ok {
			return
		}
		want := &pb.ToGateway{}
		if err := newCodec(maxParts).decode(octets, want); err != nil || !protobuf.Equal(got, want) {
			t.Errorf("got %v, want %v, %v", got, want, err)
		}
	})
}
