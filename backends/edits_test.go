package backends_test

import (
	"context"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/mailgw/mailgw/backends"
)

func TestFieldsThatWouldDamageAHeaderAreRefused(t *testing.T) {
	tests := []struct {
		field string
		want  string // part of the error; empty if the field is good
	}{
		{"X-Spam: yes", ""},
		{"X-Empty:", ""},
		{"X-Folded: one\r\n two\r\n\tthree", ""},
		{"X-8bit: gr\u00fc\u00dfe", ""},
		{"X-Long: " + strings.Repeat("x", 990), ""},

		{"", "field name"},
		{"no colon", "field name"},
		{": no name", "field name"},
		{"two words: x", "field name"},
		{"gr\u00fc\u00dfe: x", "field name"},
		{"X-Long: " + strings.Repeat("x", 991), "998"},
		{"X: one\ntwo", "bare"},
		{"X: one\rtwo", "bare"},
		{"X: one\x00", "bare"},
		{"X: one\r\nY: two", "folded"},
		{"X: one\r\n", "folded"},
		{"X: one\r\n\r\nbody", "folded"},
		{"X: one\r\n \r\n two", "folded"},
	}
	for _, tt := range tests {
		tx := transaction(1)
		for _, edit := range []func(int, string) error{tx.AddField, tx.ReplaceField} {
			err := edit(0, tt.field)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%q: got %v, want an error with %q", tt.field, err, tt.want)
			}
		}
		if edits := tx.Edits(); edits.IsZero() != (tt.want != "") {
			t.Errorf("%q: got edits %+v", tt.field, edits)
		}
	}
	if err := transaction(1).RemoveField(-1); err == nil {
		t.Error("a negative position was taken")
	}
}

func TestEditsAreKeptInOrder(t *testing.T) {
	tx := transaction(2)
	if edits := tx.Edits(); !edits.IsZero() {
		t.Errorf("edits of nothing: %+v", edits)
	}
	err := errors.Join(
		tx.AddField(7, "X: last"),
		tx.RemoveField(1),
		tx.ReplaceField(0, "Y: first"),
		tx.Redirect(1, "a@example.org", "b@example.org"),
		tx.Redirect(1, "c@example.org"),
		tx.SetSender("a@example.org"),
		tx.SetSender(""),
		tx.SetSenderParams(backends.Params{"RET=FULL"}),
		tx.SetSenderParams(nil))
	if err != nil {
		t.Fatal(err)
	}

	null := ""
	want := backends.Edits{
		Fields: []backends.FieldEdit{
			{Op: backends.AddField, At: 7, Field: "X: last"},
			{Op: backends.RemoveField, At: 1},
			{Op: backends.ReplaceField, At: 0, Field: "Y: first"},
		},
		Sender: &null, SenderParams: backends.Params{},
		Redirects: map[int][]string{1: {"c@example.org"}},
	}
	if got := tx.Edits(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// What tells of the message is not for a backend to change.
func TestSenderParams(t *testing.T) {
	came := backends.Params{"SIZE=100", "body=8BITMIME", "SMTPUTF8", "RET=FULL", "AUTH=<>"}
	for _, test := range []struct {
		params, want backends.Params
		err          string
	}{
		{backends.Params{"RET=HDRS", "ENVID=x", "XVERP"}, backends.Params{"RET=HDRS", "ENVID=x", "XVERP"}, ""},
		{came, backends.Params{"RET=FULL", "AUTH=<>"}, ""},
		{backends.Params{"SMTPUTF8"}, backends.Params{}, ""},
		{backends.Params{}, backends.Params{}, ""},
		{nil, backends.Params{}, ""},
		{backends.Params{"RET=HDRS", "REQUIRETLS"}, nil, `edit: sender: parameter "REQUIRETLS" is of the message`},
		{backends.Params{"SIZE=1"}, nil, `parameter "SIZE=1"`},
		{backends.Params{"size"}, nil, `parameter "size"`},
		{backends.Params{"BODY=BINARYMIME"}, nil, `parameter "BODY=BINARYMIME"`},
		{backends.Params{"PRDR"}, nil, `parameter "PRDR"`},
		{backends.Params{"RET="}, nil, `edit: sender: parameter "RET=" is not of the form`},
		{backends.Params{"A=1\r\nRCPT"}, nil, "control character"},
	} {
		tx := transaction(1)
		tx.Envelope.Params = came
		err := tx.SetSenderParams(test.params)
		if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%q: got %v, want %q", test.params, err, test.err)
		}
		if got := tx.Edits().SenderParams; !reflect.DeepEqual(got, test.want) {
			t.Errorf("%q: got %q, want %q", test.params, got, test.want)
		}
	}
	if got, want := came.OfMessage(), (backends.Params{"SIZE=100", "body=8BITMIME", "SMTPUTF8"}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q of the message, want %q", got, want)
	}
}

func TestImpossibleRedirectsAreRefused(t *testing.T) {
	tx := transaction(1)
	for _, err := range []error{tx.Redirect(1, "a@example.org"), tx.Redirect(-1, "a@example.org"), tx.Redirect(0)} {
		if err == nil {
			t.Error("a redirect of nobody, or to nobody, was taken")
		}
	}
	if edits := tx.Edits(); !edits.IsZero() {
		t.Errorf("got edits %+v, want none", edits)
	}
}

func TestAddedAndDivertedRecipientsAreKept(t *testing.T) {
	tx := transaction(2)
	params := backends.Params{"NOTIFY=NEVER"}
	err := errors.Join(
		tx.AddRecipient(backends.Recipient{Address: "a@example.org", Params: params}),
		tx.AddRecipient(backends.Recipient{Address: "a@example.org"}),
		tx.Divert(1, "quarantine"),
		tx.Divert(0, "audit"),
		tx.Divert(1, "spam"))
	if err != nil {
		t.Fatal(err)
	}
	params[0] = "changed"
	want := backends.Edits{
		Added: []backends.Recipient{
			{Address: "a@example.org", Params: backends.Params{"NOTIFY=NEVER"}},
			{Address: "a@example.org"},
		},
		Diversions: map[int]string{0: "audit", 1: "spam"},
	}
	if got := tx.Edits(); !reflect.DeepEqual(got, want) || got.IsZero() {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if n := len(tx.Envelope.Recipients); n != 2 {
		t.Errorf("the envelope has %d recipients, want the 2 of before", n)
	}
}

// Each of them alone is an edit.
func TestAdditionAndDiversionAreEdits(t *testing.T) {
	for _, e := range []backends.Edits{
		{Added: []backends.Recipient{{Address: "a@example.org"}}},
		{Diversions: map[int]string{0: "quarantine"}},
		{SenderParams: backends.Params{}},
	} {
		if e.IsZero() {
			t.Errorf("%+v is nothing", e)
		}
	}
}

func TestImpossibleDiversionsAreRefused(t *testing.T) {
	tx := transaction(1)
	for _, i := range []int{1, -1} {
		if err := tx.Divert(i, "quarantine"); err == nil || !strings.Contains(err.Error(), "no such recipient") {
			t.Errorf("recipient %d: got %v, want an error", i, err)
		}
	}
	if edits := tx.Edits(); !edits.IsZero() {
		t.Errorf("got edits %+v, want none", edits)
	}
}

func TestEditsAfterTheReturnOfDeliverAreRefused(t *testing.T) {
	tx := transaction(1)
	if _, err := backends.Run(t.Context(), backends.Func(func(context.Context, *backends.DataContext) error { return nil }), tx, backends.Hooks{}); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"AddField":        tx.AddField(0, "X: late"),
		"ReplaceMessage":  tx.ReplaceMessage(strings.NewReader("")),
		"SetSender":       tx.SetSender("late@example.org"),
		"SetSenderParams": tx.SetSenderParams(nil),
		"Redirect":        tx.Redirect(0, "a@example.org"),
		"AddRecipient":    tx.AddRecipient(backends.Recipient{Address: "a@example.org"}),
		"Divert":          tx.Divert(0, "quarantine"),
	} {
		if err == nil || !strings.Contains(err.Error(), "Deliver had returned") {
			t.Errorf("%s: got %v, want an error", name, err)
		}
	}
	if edits := tx.Edits(); !edits.IsZero() {
		t.Errorf("got edits %+v, want none", edits)
	}
}

func TestReplaceMessage(t *testing.T) {
	tx := transaction(1)
	if err := tx.ReplaceMessage(strings.NewReader("Subject: new\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	m := tx.Edits().Message
	got, err := io.ReadAll(io.NewSectionReader(m, 0, m.Size()))
	if err != nil || string(got) != "Subject: new\r\n\r\n" {
		t.Errorf("got %q and %v", got, err)
	}
}

// Which of the two comes first must not matter, so both cannot be.
func TestMessageAndHeaderAreNotBothEdited(t *testing.T) {
	tx := transaction(1)
	if err := tx.ReplaceMessage(strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	if err := tx.AddField(0, "X: y"); err == nil {
		t.Error("a field was added to a replaced message")
	}
	tx = transaction(1)
	if err := tx.AddField(0, "X: y"); err != nil {
		t.Fatal(err)
	}
	if err := tx.ReplaceMessage(strings.NewReader("")); err == nil {
		t.Error("a message with an added field was replaced")
	}
}

func TestMessageThatBreaksOffReplacesNothing(t *testing.T) {
	tx := transaction(1)
	broken := io.MultiReader(strings.NewReader("Subject: ne"), iotest.ErrReader(errors.New("broken")))
	if err := tx.ReplaceMessage(broken); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("got %v, want the error of the read", err)
	}
	if edits := tx.Edits(); !edits.IsZero() {
		t.Errorf("got edits %+v, want none", edits)
	}
}

// The gateway reads edits while a delivery that was started may make more.
func TestEditsDoNotChangeLater(t *testing.T) {
	tx := transaction(2)
	addresses := []string{"a@example.org"}
	added := backends.Recipient{Address: "c@example.org"}
	if err := errors.Join(tx.AddField(0, "X: 1"), tx.Redirect(0, addresses...), tx.AddRecipient(added), tx.Divert(0, "quarantine")); err != nil {
		t.Fatal(err)
	}
	edits := tx.Edits()
	addresses[0] = "changed@example.org"
	if err := errors.Join(tx.AddField(0, "X: 2"), tx.Redirect(1, "b@example.org"), tx.AddRecipient(added), tx.Divert(0, "spam")); err != nil {
		t.Fatal(err)
	}
	want := backends.Edits{
		Fields:     []backends.FieldEdit{{Op: backends.AddField, Field: "X: 1"}},
		Redirects:  map[int][]string{0: {"a@example.org"}},
		Added:      []backends.Recipient{added},
		Diversions: map[int]string{0: "quarantine"},
	}
	if !reflect.DeepEqual(edits, want) {
		t.Errorf("got %+v, want the edits of before", edits)
	}
}
