package backends

import (
	"bufio"
	"bytes"
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
