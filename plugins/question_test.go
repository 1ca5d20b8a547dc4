package plugins

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	protobuf "google.golang.org/protobuf/proto"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

func anOpinion(o *pb.Opinion) *pb.Answer { return &pb.Answer{Result: &pb.Answer_Opinion{Opinion: o}} }
func aUser(name string) *pb.Answer       { return &pb.Answer{Result: &pb.Answer_User{User: []byte(name)}} }
func aVerifier(v *pb.SCRAMVerifier) *pb.Answer {
	return &pb.Answer{Result: &pb.Answer_Scram{Scram: v}}
}

var key32 = bytes.Repeat([]byte("k"), 32)

// rawOpinions are answers as a plugin may send them, and the error that comes
// of those that break the protocol.
var rawOpinions = map[string]struct {
	about  backends.Topic
	answer *pb.Answer
	err    string
}{
	"nothing":        {backends.AboutAUTH, &pb.Answer{}, ""},
	"opinion":        {backends.AboutVRFY, anOpinion(&pb.Opinion{Status: &pb.Status{Code: 252}}), ""},
	"for ever":       {backends.AboutRecipient, anOpinion(&pb.Opinion{Status: &pb.Status{Code: 550}, Valid: 9223372036854}), ""},
	"no members":     {backends.AboutEXPN, &pb.Answer{Result: &pb.Answer_Members{}}, ""},
	"other question": {backends.AboutSender, aUser("ann"), "to another question"},
	"user for list":  {backends.AboutEXPN, aUser("ann"), "to another question"},
	"2yz for login":  {backends.AboutAUTH, anOpinion(&pb.Opinion{Status: &pb.Status{Code: 250}}), "to another question"},
	"other members":  {backends.AboutVRFY, &pb.Answer{Result: &pb.Answer_Members{}}, "to another question"},
	"other verifier": {backends.AboutAUTH, aVerifier(&pb.SCRAMVerifier{Salt: key32, Iterations: 1, StoredKey: key32, ServerKey: key32}),
		"to another question"},

	"empty status":    {backends.AboutSender, anOpinion(&pb.Opinion{Status: &pb.Status{}}), "an empty status"},
	"empty error":     {backends.AboutAUTH, &pb.Answer{Result: &pb.Answer_Status{}}, "an empty status"},
	"negative time":   {backends.AboutRecipient, anOpinion(&pb.Opinion{Valid: -1}), "valid for -1 ms"},
	"more than ever":  {backends.AboutRecipient, anOpinion(&pb.Opinion{Valid: 9223372036855}), "valid for 9223372036855 ms"},
	"long key":        {backends.AboutRecipient, anOpinion(&pb.Opinion{Key: make([]byte, maxText+1)}), "a key of 8193 octets"},
	"empty user":      {backends.AboutAUTH, aUser(""), "a user of 0 octets"},
	"long user":       {backends.AboutAUTH, aUser(strings.Repeat("x", maxText+1)), "a user of 8193 octets"},
	"empty verifier":  {backends.AboutSCRAM, aVerifier(&pb.SCRAMVerifier{}), "a verifier with a salt of 0"},
	"no iterations":   {backends.AboutSCRAM, aVerifier(&pb.SCRAMVerifier{Salt: key32, StoredKey: key32, ServerKey: key32}), "0 iterations"},
	"many iterations": {backends.AboutSCRAM, aVerifier(&pb.SCRAMVerifier{Salt: key32, StoredKey: key32, ServerKey: key32, Iterations: 1 << 31}), "2147483648 iterations"},
	"long salt":       {backends.AboutSCRAM, aVerifier(&pb.SCRAMVerifier{Salt: make([]byte, maxText+1), StoredKey: key32, ServerKey: key32, Iterations: 1}), "a salt of 8193"},
	"short key":       {backends.AboutSCRAM, aVerifier(&pb.SCRAMVerifier{Salt: key32, StoredKey: key32[:31], ServerKey: key32, Iterations: 1}), "keys of 31 and 32"},
	"no server key":   {backends.AboutSCRAM, aVerifier(&pb.SCRAMVerifier{Salt: key32, StoredKey: key32, Iterations: 1}), "keys of 32 and 0"},
	"long name":       {backends.AboutSCRAM, aVerifier(&pb.SCRAMVerifier{Salt: key32, StoredKey: key32, ServerKey: key32, Iterations: 1, User: make([]byte, maxText+1)}), "a user of 8193"},
	"long failure":    {backends.AboutSender, &pb.Answer{Result: &pb.Answer_Failure{Failure: strings.Repeat("x", maxMessage-100)}}, "xxx"},
}

func TestQuestionCrossesTheBorderWhole(t *testing.T) {
	tx := wholeTransaction()
	for _, q := range []backends.Question{
		{About: backends.AboutConnection, Session: &backends.Session{ID: "S"}},
		{About: backends.AboutHELO, Session: &tx.Session},
		{About: backends.AboutSender, Session: &tx.Session, Envelope: &backends.Envelope{}},
		{About: backends.AboutRecipient, Session: &tx.Session, Recipient: tx.Envelope.Recipients[0],
			Envelope: &backends.Envelope{Sender: tx.Envelope.Sender, Params: tx.Envelope.Params}},
		{About: backends.AboutAUTH, Session: &tx.Session,
			Credentials: backends.Credentials{Mechanism: "PLAIN", Identity: "i\xff", User: "u\xff", Password: "p\xff"}},
		{About: backends.AboutSCRAM, Session: &tx.Session, Text: "t\xff"},
	} {
		wire := &pb.Question{}
		cross(t, questionToWire(q), wire)
		if got := questionFromWire(wire); !reflect.DeepEqual(got, q) {
			t.Errorf("got  %+v\nwant %+v", got, q)
		}
	}
}

// cross encodes a message and decodes it into another one.
func cross(t testing.TB, from, to protobuf.Message) {
	t.Helper()
	octets, err := protobuf.Marshal(from)
	if err == nil {
		err = protobuf.Unmarshal(octets, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The password goes where it is needed, and nowhere else.
func TestCredentialsCrossForAUTHOnly(t *testing.T) {
	for topic, wire := range topicsToWire {
		q := questionToWire(about(topic, ""))
		if has := q.Credentials != nil; has != (topic == backends.AboutAUTH) || q.Topic != wire {
			t.Errorf("%v: credentials %t", q.Topic, has)
		}
	}
}

func TestAnswerCrossesTheBorderWhole(t *testing.T) {
	for _, test := range []struct {
		about  backends.Topic
		answer backends.Answer
	}{
		{backends.AboutSender, backends.Answer{}},
		{backends.AboutSender, backends.Answer{Opinion: backends.Opinion{Status: backends.NoSuchUser}}},
		{backends.AboutRecipient, backends.Answer{Opinion: backends.Opinion{
			Status: backends.Delivered, For: math.MaxInt64 / time.Millisecond * time.Millisecond, Key: "@\xff"}}},
		{backends.AboutVRFY, backends.Answer{Opinion: backends.Opinion{Status: backends.NewStatus(252, "", "a\nb")}}},
		{backends.AboutAUTH, backends.Answer{User: "u\xff"}},
		{backends.AboutSCRAM, backends.Answer{SCRAM: backends.SCRAMVerifier{
			Salt: []byte("s"), Iterations: math.MaxInt32, StoredKey: key32, ServerKey: bytes.Repeat([]byte("x"), 32)}}},
		{backends.AboutEXPN, backends.Answer{Members: []string{"a\xff", ""}}},
		{backends.AboutEXPN, backends.Answer{Members: []string{}}},
	} {
		wire := &pb.Answer{}
		cross(t, answerToWire(test.answer), wire)
		if got, err := answerFromWire(wire, test.about); err != nil || !reflect.DeepEqual(got, test.answer) {
			t.Errorf("got  %+v, %v\nwant %+v", got, err, test.answer)
		}
	}
}

// What a Go plugin says wrong is found, and does not become something else.
func TestAbsurdAnswerOfBackend(t *testing.T) {
	for _, test := range []struct {
		about  backends.Topic
		answer backends.Answer
		err    string
	}{
		{backends.AboutRecipient, backends.Answer{Opinion: backends.Opinion{For: -time.Hour}}, "valid for -3600000 ms"},
		{backends.AboutSCRAM, backends.Answer{SCRAM: backends.SCRAMVerifier{
			Salt: key32, Iterations: 1<<32 + 1, StoredKey: key32, ServerKey: key32}}, "4294967297 iterations"},
		{backends.AboutSCRAM, backends.Answer{SCRAM: backends.SCRAMVerifier{Iterations: -1}}, "-1 iterations"},
	} {
		if got, err := answerFromWire(answerToWire(test.answer), test.about); err == nil || !strings.Contains(err.Error(), test.err) {
			t.Errorf("got %+v, %v, want %q", got, err, test.err)
		}
	}
}

// Answers are bounded before they are decoded, as all that a plugin sends.
func TestMemoryForOneAnswerIsBounded(t *testing.T) {
	for name, test := range map[string]struct {
		octets []byte
		to     protobuf.Message
	}{
		"members":       {protowire.AppendBytes([]byte{6<<3 | 2}, bytes.Repeat([]byte{1<<3 | 2, 0}, 5000)), &pb.Answer{}},
		"faults":        {bytes.Repeat([]byte{1<<3 | 2, 0}, 5000), &pb.ConfigureResponse{}},
		"topics":        {bytes.Repeat([]byte{6 << 3, 1}, 5000), &pb.ConfigureResponse{}},
		"packed topics": {protowire.AppendBytes([]byte{6<<3 | 2}, bytes.Repeat([]byte{1}, 5000)), &pb.ConfigureResponse{}},
	} {
		err := newCodec(maxParts).Unmarshal(split(test.octets, 1000), test.to)
		if err == nil || !strings.Contains(err.Error(), "parts, which is more than 4096") {
			t.Errorf("%s: got the error %v", name, err)
		}
		if err := newCodec(0).Unmarshal(split(test.octets, 1000), test.to); err != nil {
			t.Errorf("%s, without a bound: %v", name, err)
		}
	}
}

// Whatever a plugin says, what is taken of it is within bounds, and means the
// same when it crosses again.
func FuzzAnswer(f *testing.F) {
	for _, test := range rawOpinions {
		octets, _ := protobuf.Marshal(test.answer)
		f.Add(octets[:min(len(octets), 500)], int(test.about))
	}
	f.Fuzz(func(t *testing.T, octets []byte, topic int) {
		wire := &pb.Answer{}
		if protobuf.Unmarshal(octets, wire) != nil {
			return
		}
		a, err := answerFromWire(wire, backends.Topic(topic))
		if err != nil {
			if !a.IsZero() {
				t.Errorf("got %+v and the error %v", a, err)
			}
			return
		}
		if o := a.Opinion; o.For < 0 || len(o.Key) > maxText || len(o.Status.Text) > maxText || len(a.User) > maxText {
			t.Errorf("got %+v", a)
		}
		again, err := answerFromWire(answerToWire(a), backends.Topic(topic))
		if err != nil || !reflect.DeepEqual(again, a) {
			t.Errorf("got %+v, %v, want %+v", again, err, a)
		}
	})
}
