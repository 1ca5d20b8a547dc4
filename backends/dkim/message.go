package dkim

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"

	"github.com/mailgw/mailgw/backends"
)

// A message is a message of which the header has been read. It can be read
// once more by Read, as the library wants to have it: with an empty line after
// the header.
type message struct {
	fields [][]byte // of the header, as they came

	// malformed says that what follows the header is neither an empty line
	// nor the end, so that there are several ways to read it.
	malformed bool

	// beyond are fields in that case which come before the next empty line.
	// Programs that skip what is no field show them.
	beyond [][]byte

	r     io.Reader
	blank int // octets of white space at the end of what was read

	// err is why the message ended before its end. The library must not see
	// it, since it leaves goroutines behind then: it sees io.EOF.
	err error
}

// errBlank says that a message has so much white space at a stretch that the
// library would keep too much of it in memory.
var errBlank = errors.New("more than 64 KiB of white space at a stretch")

const (
	maxBlank  = 64 << 10
	maxBeyond = 64 << 10 // octets in which such fields are looked for
)

func readMessage(body io.Reader) (*message, error) {
	r := bufio.NewReaderSize(body, maxBeyond)
	fields, err := backends.ReadHeader(r)
	if err != nil {
		return nil, err
	}
	m := &message{fields: fields}
	switch next, err := r.Peek(2); {
	case err != nil && err != io.EOF:
		return nil, err
	case string(next) == "\r\n":
		r.Discard(2)
	default:
		m.malformed = len(next) > 0
		rest, err := r.Peek(maxBeyond)
		if err != nil && err != io.EOF {
			return nil, err
		}
		m.beyond = fieldsAmong(rest)
	}
	header := make([]io.Reader, 0, len(fields)+2)
	for _, f := range fields {
		header = append(header, bytes.NewReader(withoutEnd(f)), strings.NewReader("\r\n"))
	}
	m.r = io.MultiReader(append(header, strings.NewReader("\r\n"), r)...)
	return m, nil
}

// fieldsAmong returns the fields before the first empty line, between lines that
// are none.
func fieldsAmong(text []byte) (all [][]byte) {
	text, _, _ = bytes.Cut(text, []byte("\r\n\r\n"))
	for r := bufio.NewReader(bytes.NewReader(text)); ; {
		fields, _ := backends.ReadHeader(r)
		all = append(all, fields...)
		if _, err := r.ReadString('\n'); err != nil {
			return all
		}
	}
}

func withoutEnd(field []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(field, []byte("\n")), []byte("\r"))
}

func (m *message) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	for _, c := range p[:n] {
		if m.blank++; c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			m.blank = 0
		}
		if m.blank > maxBlank {
			m.err = errBlank
			return 0, io.EOF
		}
	}
	if err != nil && err != io.EOF {
		m.err = err
		err = io.EOF
	}
	return n, err
}

// values returns the values of the fields with that name, in any case, and
// unfolded.
func (m *message) values(name string) []string { return valuesOf(m.fields, name) }

func valuesOf(fields [][]byte, name string) (values []string) {
	for _, f := range fields {
		if isNamed(f, name) {
			_, value, _ := bytes.Cut(f, []byte(":"))
			values = append(values, strings.TrimSpace(lineEnds.Replace(string(value))))
		}
	}
	return values
}

var lineEnds = strings.NewReplacer("\r", "", "\n", "")

// isNamed reports whether a field has that name.
func isNamed(field []byte, name string) bool {
	n, _, _ := bytes.Cut(field, []byte(":"))
	return bytes.EqualFold(bytes.TrimSpace(n), []byte(name))
}
