package record

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

func TestCompare(t *testing.T) {
	status := func(code int, enhanced, text string) Answer {
		return Answer{Status: backends.NewStatus(code, enhanced, text)}
	}
	field := func(at int, text string) backends.Edits {
		return backends.Edits{Fields: []backends.FieldEdit{{Op: backends.AddField, At: at, Field: text}}}
	}
	message := func(text string) backends.Edits {
		return backends.Edits{Message: bytes.NewReader([]byte(text))}
	}
	for _, test := range []struct {
		name    string
		was, is Said
		how     string // "redacted", "exact"
		want    string
	}{
		{"same", Said{Answers: []Answer{{Next: true}}}, Said{Answers: []Answer{{Next: true}}}, "", "a@b  same: next backend"},
		{"other text", Said{Answers: []Answer{status(550, "5.1.1", "no")}}, Said{Answers: []Answer{status(550, "5.1.1", "gone")}}, "",
			"a@b  same but for the text: was 550 5.1.1 no, is 550 5.1.1 gone"},
		{"other text, exactly", Said{Answers: []Answer{status(550, "5.1.1", "no")}}, Said{Answers: []Answer{status(550, "5.1.1", "gone")}}, "exact",
			"a@b  differs: was 550 5.1.1 no, is 550 5.1.1 gone"},
		{"other enhanced code", Said{Answers: []Answer{status(550, "5.1.1", "no")}}, Said{Answers: []Answer{status(550, "5.1.2", "no")}}, "",
			"a@b  differs: was 550 5.1.1 no, is 550 5.1.2 no"},
		{"other text than that which was redacted", Said{Answers: []Answer{status(550, "5.1.1", "redacted")}}, Said{Answers: []Answer{status(550, "5.1.1", "gone")}}, "redacted",
			"a@b  same: 550 5.1.1 redacted"},
		{"other code than that which was redacted", Said{Answers: []Answer{status(550, "5.1.1", "redacted")}}, Said{Answers: []Answer{status(450, "4.1.1", "gone")}}, "redacted",
			"a@b  differs: was 550 5.1.1 redacted, is 450 4.1.1 redacted"},
		{"failures have no wording", Said{Answers: []Answer{{Failure: "pid 1"}}}, Said{Answers: []Answer{{Failure: "pid\n2"}}}, "",
			`a@b  same but for the text: was failure: pid 1, is "failure: pid\n2"`},
		{"not even exactly", Said{Answers: []Answer{{Failure: "pid 1"}}}, Said{Answers: []Answer{{Failure: "pid 2"}}}, "exact",
			"a@b  same but for the text: was failure: pid 1, is failure: pid 2"},
		{"a failure that is none any more", Said{Answers: []Answer{{Failure: "pid 1"}}}, Said{Answers: []Answer{status(451, "4.3.0", "pid 1")}}, "exact",
			"a@b  differs: was failure: pid 1, is 451 4.3.0 pid 1"},
		{"no answer in the file", Said{Answers: []Answer{{}}}, Said{Answers: []Answer{{Next: true}}}, "", "a@b  differs: was nothing, is next backend"},
		{"edits", Said{Answers: []Answer{{Next: true}}, Edits: field(0, "A: b")}, Said{Answers: []Answer{{Next: true}}, Edits: field(1, "A: b")}, "",
			"a@b  same: next backend\nedit  differs: was add 0 A: b, is add 1 A: b"},
		{"an edit that is gone", Said{Answers: []Answer{{Next: true}}, Edits: field(0, "A: b")}, Said{Answers: []Answer{{Next: true}}}, "",
			"a@b  same: next backend\nedit  differs: was add 0 A: b, is nothing"},
		{"messages", Said{Answers: []Answer{{Next: true}}, Edits: message("a\r\nb\r\n")}, Said{Answers: []Answer{{Next: true}}, Edits: message("a\r\nc\r\n")}, "",
			"a@b  same: next backend\nedit  differs: was message of 6 octets, is message of 6 octets, another one from line 2 on"},
		{"response in other words", Said{Answers: []Answer{{Next: true}}, Response: backends.Delivered}, Said{Answers: []Answer{{Next: true}}, Response: backends.NewStatus(250, "2.0.0", "ok")}, "",
			"a@b  same: next backend\nresponse  same but for the text: was 250 2.0.0 delivered, is 250 2.0.0 ok"},
		{"response", Said{Answers: []Answer{{Next: true}}, Response: backends.Delivered}, Said{Answers: []Answer{{Next: true}}}, "",
			"a@b  same: next backend\nresponse  differs: was 250 2.0.0 delivered, is nothing"},
	} {
		r := &Record{Envelope: backends.Envelope{Recipients: []backends.Recipient{{Address: "a@b"}}}, Said: test.was, Redacted: test.how == "redacted"}
		var got []string
		for _, f := range r.Compare(test.is, test.how == "exact") {
			got = append(got, f.String())
		}
		if text := strings.Join(got, "\n"); text != test.want {
			t.Errorf("%s: got\n%s\nwant\n%s", test.name, text, test.want)
		}
	}
}

// A Witness speaks once all is said, that of started deliveries too.
func TestWitness(t *testing.T) {
	var heard []Said
	w := NewWitness(4, func(s Said) { heard = append(heard, s) })
	tx := &backends.DataContext{Envelope: backends.Envelope{Recipients: make([]backends.Recipient, 4)}}
	undecided, err := backends.Run(t.Context(), backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		tx.SetStatus(0, backends.NewStatus(250, "2.0.0", "grüße"))
		tx.StartDelivery(context.Background(), 1)
		tx.StartDelivery(context.Background(), 2)
		tx.SetStatus(1, backends.Delivered)
		tx.SetSMTPResponse(backends.Delivered)
		return tx.AddField(0, "A: b")
	}), tx, backends.Hooks{Status: w.Status, Started: w.Started, SMTPResponse: w.SMTPResponse})
	w.Returned(undecided, err, tx.Edits())
	if heard != nil {
		t.Error("it did not wait for a delivery")
	}
	tx.SetStatus(2, backends.NoSuchUser)
	if len(heard) != 1 || len(heard[0].Edits.Fields) != 1 || heard[0].Response != backends.Delivered {
		t.Fatalf("heard %+v", heard)
	}
	want := []string{"250 2.0.0 gr??e", "250 2.0.0 delivered", "550 5.1.1 no such user", "next backend"}
	for i, a := range heard[0].Answers {
		if !strings.HasPrefix(a.String(), strings.TrimRight(want[i], "?")) {
			t.Errorf("recipient %d: %v, want %s", i, a, want[i])
		}
	}
	for _, test := range []struct {
		err  error
		want string
	}{
		{errors.New("no table"), "failure: no table"},
		{backends.NoSuchUser, "550 5.1.1 no such user"},
		{context.DeadlineExceeded, "failure: context deadline exceeded"},
		{nil, "next backend"},
	} {
		NewWitness(1, func(s Said) {
			if got := s.Answers[0].String(); got != test.want || test.err != nil && s.Edits.Fields != nil {
				t.Errorf("%v: got %s, want %s; %+v", test.err, got, test.want, s.Edits)
			}
		}).Returned([]int{0}, test.err, tx.Edits())
	}
}
