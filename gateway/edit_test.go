package gateway

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/mailgw/mailgw/backends"
)

func TestEditHeader(t *testing.T) {
	type edits []backends.FieldEdit
	add := func(at int, field string) backends.FieldEdit {
		return backends.FieldEdit{Op: backends.AddField, At: at, Field: field}
	}
	replace := func(at int, field string) backends.FieldEdit {
		return backends.FieldEdit{Op: backends.ReplaceField, At: at, Field: field}
	}
	remove := func(at int) backends.FieldEdit { return backends.FieldEdit{Op: backends.RemoveField, At: at} }
	const message = "A: 1\r\nB:  2 \r\n\tfolded\r\nA: 3\r\n\r\nbody: x\r\n"
	for _, test := range []struct {
		name, message string
		edits         edits
		want          string
	}{
		// Positions are those of the message as it came, whatever was edited before.
		{"add first", message, edits{add(0, "X: y")}, "X: y\r\n" + message},
		{"add between", message, edits{add(1, "X: y")}, "A: 1\r\nX: y\r\nB:  2 \r\n\tfolded\r\nA: 3\r\n\r\nbody: x\r\n"},
		{"add last", message, edits{add(3, "X: y")}, "A: 1\r\nB:  2 \r\n\tfolded\r\nA: 3\r\nX: y\r\n\r\nbody: x\r\n"},
		{"add past the last", message, edits{add(99, "X: y")}, "A: 1\r\nB:  2 \r\n\tfolded\r\nA: 3\r\nX: y\r\n\r\nbody: x\r\n"},
		{"add two in order", message, edits{add(0, "X: 1"), add(0, "X: 2\r\n\tfolded")}, "X: 1\r\nX: 2\r\n\tfolded\r\n" + message},
		{"replace a folded one", message, edits{replace(1, "C: 4")}, "A: 1\r\nC: 4\r\nA: 3\r\n\r\nbody: x\r\n"},
		{"remove a folded one", message, edits{remove(1)}, "A: 1\r\nA: 3\r\n\r\nbody: x\r\n"},
		{"remove and add at one place", message, edits{remove(0), add(0, "X: y"), add(1, "Y: z")},
			"X: y\r\nY: z\r\nB:  2 \r\n\tfolded\r\nA: 3\r\n\r\nbody: x\r\n"},
		{"remove all", message, edits{remove(0), remove(1), remove(2)}, "\r\nbody: x\r\n"},

		// Messages whose header ends otherwise than in an empty line.
		{"empty message", "", edits{add(0, "X: y")}, "X: y\r\n"},
		{"no header", "\r\nbody\r\n", edits{add(0, "X: y")}, "X: y\r\n\r\nbody\r\n"},
		{"no body", "A: 1\r\n", edits{add(1, "X: y")}, "A: 1\r\nX: y\r\n"},
		{"no last line end", "A: 1", edits{add(1, "X: y")}, "A: 1\r\nX: y\r\n"},
		{"text at once", "hello world\r\nA: 1\r\n", edits{add(0, "X: y")}, "X: y\r\nhello world\r\nA: 1\r\n"},
		{"text after a field", "A: 1\r\nhello\r\nB: 2\r\n", edits{add(9, "X: y")}, "A: 1\r\nX: y\r\nhello\r\nB: 2\r\n"},
		{"white space first", " odd\r\nA: 1\r\n\r\n", edits{add(9, "X: y")}, "X: y\r\n\r\n odd\r\nA: 1\r\n\r\n"},
		{"white space before the colon", "A : 1\r\n\r\n", edits{remove(0)}, "\r\n"},
		{"a long field", "A: " + strings.Repeat("x", 9000) + "\r\nB: 2\r\n\r\n", edits{remove(0)}, "B: 2\r\n\r\n"},
	} {
		m, err := editHeader(strings.NewReader(test.message), test.edits)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got, _ := io.ReadAll(io.NewSectionReader(m, 0, m.Size())); string(got) != test.want {
			t.Errorf("%s:\n got %q\nwant %q", test.name, got, test.want)
		}
		if err := iotest.TestReader(io.NewSectionReader(m, 0, m.Size()), []byte(test.want)); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestEditHeaderErrors(t *testing.T) {
	const message = "A: 1\r\n\r\n"
	for _, edit := range []backends.FieldEdit{{Op: backends.ReplaceField, At: 1, Field: "X: y"}, {Op: backends.RemoveField, At: 1}} {
		if _, err := editHeader(strings.NewReader(message), []backends.FieldEdit{edit}); err == nil {
			t.Errorf("%+v: no error", edit)
		}
	}
	for name, huge := range map[string]string{
		"many fields": strings.Repeat("A: 1\r\n", maxHeaderFields+1),
		"one field":   "A: 1" + strings.Repeat("\r\n x", maxHeaderSize/4),
		// A line ends just where we look no further.
		"a line at the limit": strings.Repeat("A: "+strings.Repeat("x", 1019)+"\r\n", maxHeaderSize/1024) + "B: 2\r\n\r\n",
	} {
		if _, err := editHeader(strings.NewReader(huge), []backends.FieldEdit{{Field: "X: y"}}); !errors.Is(err, errHeaderTooLarge) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// What is added to headers is in memory, so it is bounded.
func TestAddedFieldsAreBounded(t *testing.T) {
	field := "X: y" + strings.Repeat("\r\n "+strings.Repeat("x", 990), 100)
	for n, want := range map[int]error{5: nil, 20: errHeaderTooLarge} {
		edits := slices.Repeat([]backends.FieldEdit{{Field: field}}, n)
		if _, err := editHeader(strings.NewReader("A: 1\r\n\r\n"), edits); err != want {
			t.Errorf("%d octets added: got %v, want %v", n*len(field), err, want)
		}
	}
}

func TestReplacementHasWholeLines(t *testing.T) {
	for text, ok := range map[string]bool{
		"":              true,
		"a\r\nb\r\n":    true,
		"a\r\nb":        true,
		"a\nb\r\n":      false,
		"a\rb\r\n":      false,
		"a\r\r\n":       false,
		"\n":            false,
		"a\r\nb\r":      false,
		"a\r\n\n":       false,
		"\r\n.\r\n\r\n": true,
	} {
		got, err := io.ReadAll(&wholeLines{r: iotest.OneByteReader(strings.NewReader(text))})
		if (err == nil) != ok {
			t.Errorf("%q: error %v", text, err)
		}
		if ok && string(got) != text {
			t.Errorf("%q: got %q", text, got)
		}
	}
}

func TestBodyIsNotReadAfterTheEnd(t *testing.T) {
	b := newBody(bytes.NewReader([]byte("message")))
	if _, err := b.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	b.close()
	if n, err := b.Read(make([]byte, 3)); n != 0 || err != errBodyClosed {
		t.Errorf("got %d octets, %v", n, err)
	}
}
