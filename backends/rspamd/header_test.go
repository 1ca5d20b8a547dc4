package rspamd

import (
	"context"
	"mime"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/mailgw/mailgw/backends"
)

func TestFieldsFitIntoLines(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	tests := []struct {
		value string
		width int
		want  string
	}{
		{"a b", usualLine, "Name: a b"},
		{"", usualLine, "Name: "},

		// What is folded stays folded, as DKIM signatures need it.
		{"v=1;\r\n\t b=" + long(80) + ";\n c", maxLine, "Name: v=1;\r\n\t b=" + long(80) + ";\r\n c"},
		{"\n a \n", maxLine, "Name: \r\n a "},

		// The last white space that fits, else the first that does not, but
		// none that would leave a line empty.
		{long(60) + " " + long(9) + " " + long(60), usualLine, "Name: " + long(60) + " " + long(9) + "\r\n " + long(60)},
		{long(60) + "  " + long(9) + " \t" + long(60) + "  ", usualLine, "Name: " + long(60) + " \r\n " + long(9) + " \t" + long(60)},
		{long(100) + " b", usualLine, "Name: " + long(100) + "\r\n b"},
		{long(100), usualLine, "Name: " + long(100)},
		{"a" + strings.Repeat(" ", 100), usualLine, "Name: a"},
		{strings.Repeat(" ", 100), usualLine, "Name:"},
		{"\n" + strings.Repeat(" ", 70) + "a " + long(10), usualLine, "Name: \r\n" + strings.Repeat(" ", 70) + "a\r\n " + long(10)},
		{"\n" + strings.Repeat(" ", 1000) + "a", maxLine, "Name: \r\n a"},

		// At any place, if there is no other way.
		{long(992), maxLine, "Name: " + long(992)},
		{long(993), maxLine, "Name: " + long(992) + "\r\n x"},
		{long(993) + " b", usualLine, "Name: " + long(992) + "\r\n x b"},
		{"\n" + long(2000), maxLine, "Name: \r\n " + long(997) + "\r\n " + long(997) + "\r\n " + long(6)},
	}
	for _, test := range tests {
		h := newHeader(transaction(""), nil)
		got := h.field("Name", test.value, test.width)
		if got != test.want {
			t.Errorf("%.100q in %d: got\n%q, want\n%q", test.value, test.width, got, test.want)
		}
		if err := h.tx.AddField(0, got); err != nil {
			t.Errorf("%.100q in %d: %v", test.value, test.width, err)
		}
	}
}

// Beyond US-ASCII a value is encoded, unless the message may have UTF-8. No
// letter is cut in two.
func TestFieldsBeyondASCII(t *testing.T) {
	value := strings.Repeat("größe ", 20) + strings.Repeat("ß", 600)
	tx := transaction("")
	encoded := newHeader(tx, nil).field("Subject", value, usualLine)
	for line := range strings.SplitSeq(encoded, "\r\n") {
		if len(line) > usualLine {
			t.Errorf("a line of %d octets: %q", len(line), line)
		}
	}
	unfolded := strings.ReplaceAll(encoded, "\r\n", "")
	if got, err := new(mime.WordDecoder).DecodeHeader(unfolded); err != nil || got != "Subject: "+value {
		t.Errorf("got %q, %v, want %q", got, err, value)
	}

	tx.Envelope.Params = backends.Params{"SMTPUTF8"}
	got := newHeader(tx, nil).field("Subject", value, usualLine)
	if !strings.HasPrefix(got, "Subject: größe") || !utf8.ValidString(got) {
		t.Errorf("got %q", got)
	}
	if err := tx.AddField(0, got); err != nil {
		t.Error(err)
	}
}

// Whatever an answer says, the edits of the header can be made, and every
// recipient gets an answer or goes on.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		`{"action": "no action", "score": 1.5, "required_score": 15, "symbols": {"X": {"name": "X"}}}`,
		`{"action": "rewrite subject", "subject": "größer\n", "dkim-signature": ["a\r\n b", ""]}`,
		`{"action": "add header", "milter": {"spam_header": {"X-Y": "Yes\r"}}}`,
		`{"action": "add header", "milter": {"spam_header": "a"}}`,
		`{"action": "hold", "milter": {"add_rcpt": "a@b", "del_rcpt": ["<\"a\\\"@b>", "\"\\"], "change_from": "<>"}}`,
		`{"action": "reject", "milter": {"no_action": true, "reject": "discard"}}`,
		`{"action": "x", "milter": {"add_headers": {"A": ["b", {"value": "c", "order": 1}], "B": {"value": "\u0000", "index": -9}}, "remove_headers": {"A": 0, "b": [1, -1]}}}`,
		`{"action": "soft reject", "messages": {"smtp_message": "later\r\n250 ok"}, "milter": {"add_headers": []}}`,
		`{"action": "` + strings.Repeat("x", 2000) + `", "milter": {"no_action": true}}`,
	} {
		f.Add([]byte(seed), false)
	}
	s := Defaults
	s.Actions = map[string]string{"hold": "divert:quarantine", "other": "pass"}
	made, err := New(s)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte, smtputf8 bool) {
		a, err := parseAnswer(text)
		if err != nil {
			return
		}
		tx := transaction(someMessage, "a@b", `"\\"@b`)
		if smtputf8 {
			tx.Envelope.Params = backends.Params{"SMTPUTF8"}
		}
		h := newHeader(tx, [][]byte{[]byte("A: 1\r\n"), []byte("Subject: 2\r\n"), []byte("a : 3\r\n")})
		follow := backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			return made.(*backend).follow(ctx, tx, h, a)
		})
		undecided, err := backends.Run(t.Context(), follow, tx, backends.Hooks{})
		if h.err != nil {
			t.Errorf("the header cannot be edited: %v", h.err)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "edit: sender: ") && !strings.HasPrefix(err.Error(), "edit: add recipient") {
			t.Errorf("got error %v", err)
		}
		for i := range tx.Envelope.Recipients {
			if got := tx.Status(i); got.IsZero() != slices.Contains(undecided, i) || err != nil && !got.IsZero() {
				t.Errorf("recipient %d: got %q, undecided %v, error %v", i, got, undecided, err)
			}
		}
		if k := tx.Edits(); k.Kinds()&^made.(*backend).MayEdit() != 0 {
			t.Errorf("edits of %v were not announced", k.Kinds())
		}
	})
}
