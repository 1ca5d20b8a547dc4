package backends

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReadHeader(t *testing.T) {
	long := "X: " + strings.Repeat("x", 10000) + "\r\n"
	noName := strings.Repeat("x", 5000) + ": no field\r\n"
	for _, test := range []struct {
		message string
		fields  []string
		rest    string
	}{
		{"A: 1\r\nB: 2\r\n\r\nbody\r\n", []string{"A: 1\r\n", "B: 2\r\n"}, "\r\nbody\r\n"},
		{"A: 1\r\n\t2\r\n 3\r\nB :x\r\n\r\n", []string{"A: 1\r\n\t2\r\n 3\r\n", "B :x\r\n"}, "\r\n"},
		{long + "\r\n", []string{long}, "\r\n"},
		// No header, or one without an end.
		{"\r\nA: 1\r\n", nil, "\r\nA: 1\r\n"},
		{" folded\r\nA: 1\r\n", nil, " folded\r\nA: 1\r\n"},
		{"A: 1\r\ntext\r\n", []string{"A: 1\r\n"}, "text\r\n"},
		{"A: 1", []string{"A: 1"}, ""},
		{"A: 1\r\ntext", []string{"A: 1\r\n"}, "text"},
		{"", nil, ""},
		{noName, nil, noName},
		{"two words: x\r\n", nil, "two words: x\r\n"},
	} {
		for _, input := range []io.Reader{strings.NewReader(test.message), iotest.OneByteReader(strings.NewReader(test.message))} {
			r := bufio.NewReader(input)
			fields, err := ReadHeader(r)
			rest, _ := io.ReadAll(r)
			var got []string
			for _, f := range fields {
				got = append(got, string(f))
			}
			if err != nil || !slices.Equal(got, test.fields) || string(rest) != test.rest {
				t.Errorf("%.60q: got fields %.80q, rest %.60q, error %v; want %.80q, %.60q", test.message, got, rest, err, test.fields, test.rest)
			}
		}
	}
}

// A header without an end costs no more memory than the largest one that is
// taken, however it is cut into lines.
func TestHeaderThatIsTooLarge(t *testing.T) {
	const most = 4 << 20
	for name, test := range map[string]struct {
		begin, line string
		large       bool
	}{
		"one line":        {"X: ", "x", true},
		"folded lines":    {"X: \r\n", " x\r\n", true},
		"many fields":     {"", "X: " + strings.Repeat("x", 100) + "\r\n", true},
		"a body":          {"X: 1\r\n\r\n", "x", false},
		"no field at all": {"", "x", false},
	} {
		endless := &repeated{text: test.line}
		fields, err := ReadHeader(bufio.NewReader(io.MultiReader(strings.NewReader(test.begin), endless)))
		if (err != nil) != test.large || err != nil && err.Error() != "the header is too large" {
			t.Errorf("%s: got %d fields, %v", name, len(fields), err)
		}
		if endless.read > most+8192 {
			t.Errorf("%s: %d octets were read", name, endless.read)
		}
	}
	whole := "X: " + strings.Repeat("x", most-5) + "\r\n"
	if fields, err := ReadHeader(bufio.NewReader(strings.NewReader(whole))); err != nil || len(fields) != 1 || string(fields[0]) != whole {
		t.Errorf("a header of %d octets: got %d fields, %v", len(whole), len(fields), err)
	}
}

// repeated gives a text without end.
type repeated struct {
	text string
	read int
}

func (r *repeated) Read(p []byte) (n int, err error) {
	for n < len(p) {
		k := copy(p[n:], r.text[r.read%len(r.text):])
		n += k
		r.read += k
	}
	return n, nil
}

// A header that breaks off is an error, never a shorter header.
func TestHeaderThatBreaksOff(t *testing.T) {
	broken := errors.New("broken")
	for _, begin := range []string{"", "A", "A: 1", "A: 1\r\n", "A: 1\r\n folded", "A: " + strings.Repeat("x", 5000)} {
		r := io.MultiReader(strings.NewReader(begin), iotest.ErrReader(broken))
		if fields, err := ReadHeader(bufio.NewReader(r)); err != broken {
			t.Errorf("%.20q: got %q, %v, want %v", begin, fields, err, broken)
		}
	}
}

func TestDigestTellsEdits(t *testing.T) {
	const before = "A: 1\r\nB: 2\r\n folded\r\nC: 3\r\n\r\nbody\r\n"
	for _, test := range []struct {
		after          string
		added, removed int
		body           bool
	}{
		{before, 0, 0, false},
		{"X: 0\r\n" + before, 1, 0, false},
		{"A: 1\r\nC: 3\r\n\r\nbody\r\n", 0, 1, false},
		{"X: 0\r\nA: 1\r\nY: 0\r\nC: 3\r\n\r\nbody\r\n", 2, 1, false},
		{"A: 1\r\nB: 2\r\n\tfolded\r\nC: 3\r\n\r\nbody\r\n", 1, 1, false}, // folded anew
		{"B: 2\r\n folded\r\nA: 1\r\nC: 3\r\n\r\nbody\r\n", 1, 1, false},  // moved
		{"a: 1\r\nB: 2\r\n folded\r\nC: 3\r\n\r\nbody\r\n", 1, 1, false},
		{"A: 1\r\nB: 2\r\n folded\r\nC: 3\r\n\r\nbody", 0, 0, true},
		{"A: 1\r\nB: 2\r\n folded\r\nC: 3\r\n\r\nbody\r\n\r\n", 0, 0, true},
		{"A: 1\r\nB: 2\r\n folded\r\nC: 3\r\nbody\r\n", 0, 0, true},
		{"A: 1\r\nB: 2\r\n folded\r\nC: 3\r\n", 0, 0, true},
		{"", 0, 3, true},
	} {
		added, removed, body := digestOf(test.after, 1).Since(digestOf(before, 1000))
		if added != test.added || removed != test.removed || body != test.body {
			t.Errorf("%q: got +%d-%d, body %t; want +%d-%d, %t", test.after, added, removed, body, test.added, test.removed, test.body)
		}
	}
}

// With more fields than are compared, all of them count as changed but for
// those at the beginning and the end.
func TestDigestOfVeryManyFields(t *testing.T) {
	const fields = 3000
	a, b := Digest{Fields: []uint64{1}}, Digest{Fields: []uint64{1}}
	for i := range uint64(fields) {
		a.Fields = append(a.Fields, 10+2*i)
		b.Fields = append(b.Fields, 10+2*(i/2))
	}
	a.Fields, b.Fields = append(a.Fields, 2), append(b.Fields, 2)
	if added, removed, body := b.Since(a); added != fields-1 || removed != fields-1 || body {
		t.Errorf("got +%d-%d, body %t", added, removed, body)
	}
	if added, removed, _ := a.Since(a); added != 0 || removed != 0 {
		t.Errorf("against itself: got +%d-%d", added, removed)
	}
}

// A header of a great many fields does not make a digest as large as itself, and
// no field of it goes unseen.
func TestDigestIsBounded(t *testing.T) {
	header := strings.Repeat("a:\r\n", 1<<20)
	digest := digestOf(header+"\r\n", 1<<16)
	if got := len(digest.Fields); got != maxDigested {
		t.Errorf("%d fields, want %d", got, maxDigested)
	}
	added, removed, body := digestOf(header+"b:\r\n\r\n", 1<<16).Since(digest)
	if added != 1 || removed != 1 || body {
		t.Errorf("one more: got +%d-%d, body %t", added, removed, body)
	}
}

// digestOf writes a message in pieces of size octets.
func digestOf(message string, size int) Digest {
	d := NewDigester()
	for piece := range slices.Chunk([]byte(message), size) {
		d.Write(piece)
	}
	return d.Digest()
}

func FuzzDigest(f *testing.F) {
	f.Add("A: 1\r\n folded\r\nB : 2\r\n\r\nbody\r\n", 3)
	f.Add("A: 1\nno field\n", 1)
	f.Add(strings.Repeat("x", 4095)+":"+"\r\nA: 1", 7)
	f.Fuzz(func(t *testing.T, message string, size int) {
		r := bufio.NewReader(strings.NewReader(message))
		fields, err := ReadHeader(r)
		if err != nil {
			t.Fatal(err)
		}
		rest, _ := io.ReadAll(r)
		if whole := string(bytes.Join(fields, nil)) + string(rest); whole != message {
			t.Fatalf("got %q of %q", whole, message)
		}
		whole, pieces := digestOf(message, len(message)+1), digestOf(message, max(size%100, 1))
		if !slices.Equal(whole.Fields, pieces.Fields) || whole.Body != pieces.Body || len(whole.Fields) != len(fields) {
			t.Errorf("%q: %v whole, %v in pieces, with %d fields", message, whole, pieces, len(fields))
		}
		if rest := digestOf(message[len(message)-len(rest):], 10); len(rest.Fields) == 0 && rest.Body != whole.Body {
			t.Errorf("%q: the body is not what follows the header", message)
		}
	})
}
