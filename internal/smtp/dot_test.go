package smtp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"iter"
	"strings"
	"testing"
	"testing/iotest"
)

// unstuff is the definition that the DotReader is held against: with a CRLF
// before it, the start of a message is a line like any other.
func unstuff(wire string) (message, rest string, bare, ended bool) {
	wire = "\r\n" + wire
	if end := strings.Index(wire, "\r\n.\r\n"); end >= 0 {
		wire, rest, ended = wire[:end+len("\r\n")], wire[end+len("\r\n.\r\n"):], true
	} else if strings.HasSuffix(wire, "\r\n.\r") {
		wire = wire[:len(wire)-1] // the CR may belong to the end
	}
	message = strings.ReplaceAll(wire, "\r\n.", "\r\n")[len("\r\n"):]
	return message, rest, hasBareNewline(message), ended
}

func hasBareNewline(s string) bool {
	return strings.ContainsAny(strings.ReplaceAll(s, "\r\n", ""), "\r\n")
}

// checkDotReader reads wire through in, size octets at a time.
func checkDotReader(t *testing.T, wire string, in io.Reader, size int) {
	t.Helper()
	message, rest, bare, ended := unstuff(wire)
	r := bufio.NewReaderSize(in, 16)
	d := NewDotReader(r)

	var got []byte
	var err error
	for buf := make([]byte, size); err == nil; {
		var n int
		n, err = d.Read(buf)
		got = append(got, buf[:n]...)
	}
	wantErr := io.EOF
	if !ended {
		wantErr = io.ErrUnexpectedEOF
	}
	if string(got) != message || err != wantErr {
		t.Errorf("%q, %d at a time: got %q, %v, want %q, %v", wire, size, got, err, message, wantErr)
	}
	if !ended {
		return
	}
	if d.Bare() != bare {
		t.Errorf("%q, %d at a time: bare is %v", wire, size, d.Bare())
	}
	if _, err := d.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%q, %d at a time: read after the end: %v", wire, size, err)
	}
	if left, _ := io.ReadAll(r); string(left) != rest {
		t.Errorf("%q, %d at a time: left %q, want %q", wire, size, left, rest)
	}
}

// allStrings gives all strings of up to most octets that matter to a
// message: the dot, CR, LF, and one for all others.
func allStrings(most int) iter.Seq[string] {
	const octets = ".\r\na"
	return func(yield func(string) bool) {
		for level := []string{""}; ; most-- {
			var next []string
			for _, s := range level {
				if !yield(s) {
					return
				}
				for i := range octets {
					next = append(next, s+octets[i:i+1])
				}
			}
			if level = next; most == 0 {
				return
			}
		}
	}
}

// No input makes the message end elsewhere than at its first CRLF.CRLF, or
// changes it, however it arrives and is taken: all strings of up to 8 octets.
func TestDotReaderExhaustively(t *testing.T) {
	count := 0
	for wire := range allStrings(8) {
		count++
		checkDotReader(t, wire, strings.NewReader(wire), 512)
		checkDotReader(t, wire, iotest.OneByteReader(strings.NewReader(wire)), 512)
		for size := 1; size <= 3; size++ {
			checkDotReader(t, wire, strings.NewReader(wire), size)
		}
		if t.Failed() {
			return
		}
	}
	if count != 87381 {
		t.Errorf("checked %d strings", count)
	}
}

// The cases that have hurt others, for the reader who wants to see them.
func TestDotReader(t *testing.T) {
	tests := []struct {
		wire    string
		message string
		bare    bool
		rest    string
	}{
		// The end, and dot-stuffing: RFC 5321, section 4.5.2.
		{".\r\nQUIT\r\n", "", false, "QUIT\r\n"},
		{"a\r\n.\r\nQUIT\r\n", "a\r\n", false, "QUIT\r\n"},
		{"..\r\n...\r\n.a\r\n.\r\n", ".\r\n..\r\na\r\n", false, ""},
		{"a.\r\n.\r\n", "a.\r\n", false, ""},
		{"\r\n\r\n.\r\n", "\r\n\r\n", false, ""},

		// Two messages in one segment.
		{"a\r\n.\r\n.\r\n", "a\r\n", false, ".\r\n"},

		// What passes for the end of a message elsewhere is how mail is
		// smuggled (CVE-2023-51764 and its kin): here it ends nothing, and
		// it has a bare CR or LF by which the message can be refused.
		{"a\n.\nMAIL\r\n.\r\n", "a\n.\nMAIL\r\n", true, ""},
		{"a\n.\r\nMAIL\r\n.\r\n", "a\n.\r\nMAIL\r\n", true, ""},
		{"a\r\n.\nMAIL\r\n.\r\n", "a\r\n\nMAIL\r\n", true, ""},
		{"a\r.\rMAIL\r\n.\r\n", "a\r.\rMAIL\r\n", true, ""},
		{"a\r.\r\nMAIL\r\n.\r\n", "a\r.\r\nMAIL\r\n", true, ""},
		{"a\r\n.\rMAIL\r\n.\r\n", "a\r\n\rMAIL\r\n", true, ""},
		{"a\r\n.\r\r\nMAIL\r\n.\r\n", "a\r\n\r\r\nMAIL\r\n", true, ""},
		{"a\r\r\n.\r\n", "a\r\r\n", true, ""},
		{"\n.\r\n.\r\n", "\n.\r\n", true, ""},

		// A NUL and octets above 127 are text like any other.
		{"\x00\xff.\r\n.\r\n", "\x00\xff.\r\n", false, ""},
	}
	for _, test := range tests {
		r := bufio.NewReader(strings.NewReader(test.wire))
		d := NewDotReader(r)
		message, err := io.ReadAll(d)
		rest, _ := io.ReadAll(r)
		if string(message) != test.message || d.Bare() != test.bare || string(rest) != test.rest || err != nil {
			t.Errorf("%q: got %q, bare %v, left %q, %v", test.wire, message, d.Bare(), rest, err)
		}
	}
}

// A connection that breaks is told from a message that ends, and what came
// before is not lost: a slow client must not wait for its own octets.
func TestDotReaderGivesWhatHasCome(t *testing.T) {
	gone := errors.New("gone")
	in := io.MultiReader(strings.NewReader("a\r\n"), strings.NewReader(".b"), iotest.ErrReader(gone))
	d := NewDotReader(bufio.NewReader(in))
	buf := make([]byte, 100)
	for _, want := range []string{"a\r\n", "b"} {
		if n, err := d.Read(buf); string(buf[:n]) != want || err != nil {
			t.Fatalf("Read = %q, %v, want %q", buf[:n], err, want)
		}
	}
	if n, err := d.Read(buf); n != 0 || err != gone {
		t.Errorf("Read = %d, %v, want the error of the connection", n, err)
	}
}

// write writes message in the pieces that end at cuts.
func write(message string, cuts ...int) (wire string, err error) {
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	d := NewDotWriter(w)
	from := 0
	for _, to := range append(cuts, len(message)) {
		n, err := d.Write([]byte(message[from:to]))
		if err == nil && n != to-from {
			return "", io.ErrShortWrite
		}
		from = to
	}
	err = d.Close()
	w.Flush()
	return b.String(), err
}

// checkDotWriter writes message in pieces and reads it back.
func checkDotWriter(t *testing.T, message string, cuts ...int) {
	t.Helper()
	wire, err := write(message, cuts...)
	_, _, _, ended := unstuff(wire)
	if hasBareNewline(message) {
		if err != ErrBareNewline || ended {
			t.Errorf("%q cut at %v: wrote %q, %v", message, cuts, wire, err)
		}
		return
	}
	want := message
	if want != "" && !strings.HasSuffix(want, "\r\n") {
		want += "\r\n"
	}
	got, rest, _, _ := unstuff(wire)
	if err != nil || !ended || got != want || rest != "" {
		t.Errorf("%q cut at %v: wrote %q, %v", message, cuts, wire, err)
	}
}

// What is written is read back the same, however it is cut into writes; and
// what cannot be, because of a bare CR or LF, is never ended.
func TestDotWriterExhaustively(t *testing.T) {
	for message := range allStrings(7) {
		every := make([]int, len(message))
		for i := range every {
			every[i] = i
			checkDotWriter(t, message, i)
		}
		checkDotWriter(t, message)
		checkDotWriter(t, message, every...)
		if t.Failed() {
			return
		}
	}
}

func TestDotWriter(t *testing.T) {
	tests := []struct{ message, wire string }{
		{"", ".\r\n"},
		{"a", "a\r\n.\r\n"},
		{"a\r\n", "a\r\n.\r\n"},
		{".", "..\r\n.\r\n"},
		{".\r\n..\r\na.\r\n", "..\r\n...\r\na.\r\n.\r\n"},
		{"\r\n.\r\nMAIL", "\r\n..\r\nMAIL\r\n.\r\n"},
	}
	for _, test := range tests {
		if wire, err := write(test.message); wire != test.wire || err != nil {
			t.Errorf("%q: wrote %q, %v, want %q", test.message, wire, err, test.wire)
		}
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// A caller that checks Close alone learns of an error of the connection.
func TestDotWriterKeepsError(t *testing.T) {
	gone := errors.New("gone")
	d := NewDotWriter(bufio.NewWriterSize(failingWriter{gone}, 16))
	d.Write([]byte(strings.Repeat("a\r\n", 100)))
	if n, err := d.Write([]byte("b")); n != 0 || err != gone {
		t.Errorf("Write = %d, %v", n, err)
	}
	if err := d.Close(); err != gone {
		t.Errorf("Close = %v", err)
	}
}

func FuzzDotReader(f *testing.F) {
	f.Fuzz(func(t *testing.T, wire string, size uint8) {
		checkDotReader(t, wire, iotest.HalfReader(strings.NewReader(wire)), int(size)+1)
	})
}

func FuzzDotWriter(f *testing.F) {
	f.Fuzz(func(t *testing.T, message string, first, second uint16) {
		// Most of what a fuzzer thinks of has a bare CR or LF.
		clean := strings.ReplaceAll(strings.ReplaceAll(message, "\r", ""), "\n", "\r\n")
		for _, m := range []string{message, clean} {
			a := min(int(first), len(m))
			b := min(a+int(second), len(m))
			checkDotWriter(t, m, a, b)
		}
	})
}

// benchMessage is 64 KiB with lines as mail has them.
var benchMessage = bytes.Repeat([]byte(strings.Repeat("x", 74)+"\r\n"), 64<<10/76)

func BenchmarkDotReader(b *testing.B) {
	wire := append(bytes.Clone(benchMessage), ".\r\n"...)
	in := bytes.NewReader(wire)
	r := bufio.NewReader(in)
	buf := make([]byte, 32<<10)
	b.SetBytes(int64(len(wire)))
	b.ReportAllocs()
	for b.Loop() {
		in.Reset(wire)
		r.Reset(in)
		d := NewDotReader(r)
		var err error
		for err == nil {
			_, err = d.Read(buf)
		}
		if err != io.EOF {
			b.Fatal(err)
		}
	}
}

func BenchmarkDotWriter(b *testing.B) {
	w := bufio.NewWriter(io.Discard)
	b.SetBytes(int64(len(benchMessage)))
	b.ReportAllocs()
	for b.Loop() {
		d := NewDotWriter(w)
		d.Write(benchMessage)
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
