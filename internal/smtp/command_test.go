package smtp

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestReadLine(t *testing.T) {
	const limit = 12 // of a reader with a buffer of 16, the least that bufio has
	long := strings.Repeat("x", 100)
	tests := []struct {
		input string
		want  string
		err   error
	}{
		// What clients send.
		{"NOOP\r\n", "NOOP", nil},
		{"\r\n", "", nil},
		{"8 bit \xff\x00\r\n", "8 bit \xff\x00", nil},

		// The limit counts the CRLF: RFC 5321, section 4.5.3.1.4.
		{"0123456789\r\n", "0123456789", nil},
		{"0123456789a\r\n", "", ErrLineTooLong},

		// Longer than the buffer, so that it takes several reads to skip. The
		// length is told first: what a line of no end holds is of no interest.
		{long + "\r\n", "", ErrLineTooLong},
		{long + "\n", "", ErrLineTooLong},
		{"0123456789abcd\r\n", "", ErrLineTooLong},  // fills it
		{"0123456789abcde\r\n", "", ErrLineTooLong}, // fills it with the CR

		// A line that another party could see as two, or as none.
		{"\n", "", ErrBareNewline},
		{"NOOP\n", "", ErrBareNewline},
		{"NO\rOP\r\n", "", ErrBareNewline},
		{"NOOP\r\r\n", "", ErrBareNewline},
		{"\rNOOP\n", "", ErrBareNewline},

		// A line without an end is none.
		{"", "", io.EOF},
		{"NOOP", "", io.EOF},
		{"NOOP\r", "", io.EOF},
		{long, "", io.EOF},
	}
	for _, test := range tests {
		r := bufio.NewReaderSize(strings.NewReader(test.input+"next\r\n"), 16)
		if test.err == io.EOF {
			r = bufio.NewReaderSize(strings.NewReader(test.input), 16)
		}
		got, err := ReadLine(r, limit)
		if string(got) != test.want || !errors.Is(err, test.err) {
			t.Errorf("ReadLine(%q) = %q, %v, want %q, %v", test.input, got, err, test.want, test.err)
		}
		if test.err == io.EOF {
			continue
		}
		// Whatever the line was, the one after it is not touched.
		if next, err := ReadLine(r, limit); string(next) != "next" || err != nil {
			t.Errorf("after %q: ReadLine = %q, %v", test.input, next, err)
		}
	}
}
