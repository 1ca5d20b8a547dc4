package milter

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/backends"
)

// A header is that of a message while a milter changes it. Fields that are deleted
// keep their places, so that those after them keep their numbers.
type header struct {
	fields []field
	spaced bool // values have the space after the colon
}

// A field is one that came, or a new one.
type field struct {
	name string
	came []byte // as it came, with its CRLF; nil for a new one
	text string // new text, without the CRLF at its end; "" if it stays
	gone bool
}

// newHeader makes a header of fields as they came. Before them it has one that is
// not there: milters expect that the MTA adds a Received without telling of it, and
// count it when they insert fields.
func newHeader(came [][]byte, spaced bool) header {
	h := header{fields: []field{{gone: true}}, spaced: spaced}
	for _, f := range came {
		name, _ := h.split(f)
		h.fields = append(h.fields, field{name: name, came: f})
	}
	return h
}

// split returns the name and the value of a field as milters see it: lines are
// parted by LF, and the last one has no end.
func (h *header) split(came []byte) (name, value string) {
	before, after, _ := bytes.Cut(bytes.TrimSuffix(came, []byte("\r\n")), []byte(":"))
	value = strings.ReplaceAll(string(after), "\r\n", "\n")
	if !h.spaced {
		value = strings.TrimPrefix(value, " ") // one, and no tab, as Sendmail does
	}
	return strings.TrimRight(string(before), " \t"), value
}

// join returns a field of the milter's as it stands in a message.
func (h *header) join(name, value string) (string, error) {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }) {
		return "", fmt.Errorf("%.80q is no name of a field", name)
	}
	if !h.spaced {
		value = " " + value
	}
	lines := strings.Split(name+":"+strings.ReplaceAll(value, "\r\n", "\n"), "\n")
	// An empty line would end the header.
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.Trim(line, " \t") == "" })
	for i, line := range lines {
		if i > 0 && line[0] != ' ' && line[0] != '\t' {
			line = "\t" + line // as Postfix does
		}
		switch lines[i] = line; {
		case strings.Contains(line, "\r"):
			return "", fmt.Errorf("%.80s: a bare CR", name)
		case len(line) > 998: // RFC 5322, section 2.1.1
			return "", fmt.Errorf("%.80s: a line of more than 998 octets", name)
		}
	}
	return strings.Join(lines, "\r\n"), nil
}

// insert puts a field at a place, counted from the one that is not there, or at the
// end if there are not so many.
func (h *header) insert(place int, name, value string) error {
	text, err := h.join(name, value)
	if err == nil {
		h.fields = slices.Insert(h.fields, min(place, len(h.fields)), field{name: name, text: text})
	}
	return err
}

// add puts a field at the end.
func (h *header) add(name, value string) error { return h.insert(len(h.fields), name, value) }

// change gives the nth field of a name, counted from 1, another value. If that is
// empty, it deletes the field. If there are not so many, it adds one.
func (h *header) change(nth int, name, value string) (err error) {
	for i := range h.fields {
		f := &h.fields[i]
		if !strings.EqualFold(f.name, name) {
			continue
		}
		if nth--; nth > 0 {
			continue
		}
		if f.gone = value == ""; !f.gone {
			f.text, err = h.join(name, value)
		}
		return err
	}
	if value == "" {
		return nil
	}
	return h.add(name, value)
}

// edit makes the changes.
func (h *header) edit(tx *backends.DataContext) error {
	at := 0 // the position, in the message that came, of the next field that did
	for _, f := range h.fields {
		var err error
		switch {
		case f.came == nil && !f.gone:
			err = tx.AddField(at, f.text)
		case f.came != nil && f.gone:
			err = tx.RemoveField(at)
		case f.came != nil && f.text != "":
			err = tx.ReplaceField(at, f.text)
		}
		if err != nil {
			return err
		}
		if f.came != nil {
			at++
		}
	}
	return nil
}

// appendTo appends the header as it is now, without the empty line at its end.
func (h *header) appendTo(b []byte) []byte {
	for _, f := range h.fields {
		switch {
		case f.gone:
			continue
		case f.text != "":
			b = append(b, f.text...)
		default:
			b = append(b, bytes.TrimSuffix(f.came, []byte("\r\n"))...)
		}
		b = append(b, "\r\n"...)
	}
	return b
}
