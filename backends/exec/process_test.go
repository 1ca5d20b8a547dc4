package exec

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

type closer struct {
	bytes.Buffer
	closed bool
}

func (c *closer) Close() error {
	c.closed = true
	return nil
}

// The standard input of a program ends only where the message does: not even for the
// moment before the program is killed.
func TestOnlyAWholeMessageHasAnEnd(t *testing.T) {
	for _, lf := range []bool{false, true} {
		for _, broken := range []error{nil, errors.New("broken off")} {
			var input closer
			p := &process{stdin: &input, lf: lf, message: strings.NewReader(message)}
			if broken != nil {
				p.message = io.MultiReader(p.message, iotest.ErrReader(broken))
			}
			if err := p.feed(); !errors.Is(err, broken) || input.closed != (broken == nil) {
				t.Errorf("lf %t, %v: got %v, closed: %t", lf, broken, err, input.closed)
			}
		}
	}
}

// Wherever a message is cut, its lines end in LF for CRLF, and nothing else
// changes.
func FuzzLineFeeds(f *testing.F) {
	f.Add([]byte("a\r\n\r\nb\r\r\n\rc\n\r"), uint8(1))
	f.Add([]byte("\r\n"), uint8(2))
	f.Fuzz(func(t *testing.T, message []byte, size uint8) {
		var got closer
		l := &lineFeeds{w: &got}
		for rest := message; len(rest) > 0; {
			n := min(len(rest), int(size)+1)
			if k, err := l.Write(rest[:n]); k != n || err != nil {
				t.Fatal(k, err)
			}
			rest = rest[n:]
		}
		l.Close()
		if want := bytes.ReplaceAll(message, []byte("\r\n"), []byte("\n")); !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%q in pieces of %d: got %q, want %q", message, int(size)+1, got.Bytes(), want)
		}
	})
}

// Fields are the lines that were printed, and no line is lost or moved.
func FuzzFieldsOf(f *testing.F) {
	for _, text := range []string{"", "\n", "A: 1\r\n", "A: 1\n 2\n\t3\nB: 4\n\n", " A: 1", "A: 1\n\nB: 2", "\n A", "\r\r\n "} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		fields := fieldsOf(text)
		want := strings.TrimRight(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
		if got := strings.Join(fields, "\n"); strings.ReplaceAll(got, "\r", "") != strings.ReplaceAll(want, "\r", "") {
			t.Errorf("%q: got %q", text, fields)
		}
		for _, field := range fields[min(1, len(fields)):] {
			if strings.HasPrefix(field, " ") || strings.HasPrefix(field, "\t") {
				t.Errorf("%q: %q is a field", text, field)
			}
		}
	})
}

func TestOutputIsBounded(t *testing.T) {
	first, last := output{most: 10}, output{most: 10, last: true}
	for _, part := range []string{"01234567", "89abcdef", "", strings.Repeat("x", 100), "yz"} {
		first.Write([]byte(part))
		last.Write([]byte(part))
	}
	if got := first.String(); got != "0123456789" || !first.cut() || first.size != 118 {
		t.Errorf("first: %q of %d", got, first.size)
	}
	if got := last.String(); got != "xxxxxxxxyz" || !last.cut() || last.size != 118 {
		t.Errorf("last: %q of %d", got, last.size)
	}
}
