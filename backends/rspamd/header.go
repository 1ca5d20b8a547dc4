package rspamd

import (
	"bytes"
	"mime"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// Fields that rspamd's milter adds, too.
const (
	spamField   = "X-Spam"
	actionField = "X-Rspamd-Action"
)

const (
	maxFieldName = 200 // octets, so that a field can be folded
	usualLine    = 76  // RFC 2047, section 2; RFC 5322 recommends 78
	maxLine      = 998 // RFC 5322, section 2.1.1
)

// A header edits that of the message. Places of fields are those of the message
// as it came, whatever was edited before.
type header struct {
	tx    *backends.DataContext
	names []string // of the fields, in lower case
	gone  []bool   // the field is removed
	utf8  bool     // UTF-8 needs no encoding
	err   error    // the first one
}

func newHeader(tx *backends.DataContext, fields [][]byte) *header {
	h := &header{tx: tx, gone: make([]bool, len(fields))}
	for _, f := range fields {
		name, _, _ := bytes.Cut(f, []byte(":"))
		h.names = append(h.names, strings.ToLower(string(bytes.TrimRight(name, " \t"))))
	}
	_, h.utf8 = tx.Envelope.Params.Lookup("SMTPUTF8")
	return h
}

// places returns where the fields of a name are.
func (h *header) places(name string) (places []int) {
	name = strings.ToLower(name)
	for at := range h.names {
		if h.names[at] == name {
			places = append(places, at)
		}
	}
	return places
}

// remove removes fields of a name: the first is 1, the last -1, and 0 stands for
// all of them.
func (h *header) remove(name string, counts ...int) {
	places := h.places(name)
	for _, n := range counts {
		switch {
		case n == 0:
			h.removeAt(places...)
			return
		case n > 0 && n <= len(places):
			h.removeAt(places[n-1])
		case n < 0 && n >= -len(places):
			h.removeAt(places[len(places)+n])
		}
	}
}

func (h *header) removeAt(places ...int) {
	for _, at := range places {
		if !h.gone[at] {
			h.gone[at] = true
			h.note(h.tx.RemoveField(at))
		}
	}
}

// insert adds a field by rspamd's order, which counts as milters do: 0 is above
// the Received field that the MTA puts on top, which is not there here, and 1 is
// below it. Of fields with the same order the first is on top.
func (h *header) insert(order int, name, value string) {
	at := max(order-1, 0)
	if order < 0 {
		at = max(len(h.names)+order+1, 0)
	}
	h.note(h.tx.AddField(at, h.field(name, value, maxLine)))
}

// replaceSubject puts another Subject in the place of the first one, or at the
// end.
func (h *header) replaceSubject(subject string) {
	at := len(h.names)
	if places := h.places("Subject"); places != nil {
		at = places[0]
		h.removeAt(at)
	}
	h.note(h.tx.AddField(at, h.field("Subject", subject, usualLine)))
}

func (h *header) note(err error) {
	if h.err == nil {
		h.err = err
	}
}

// field returns a field that is folded where the value is, and further so that
// its lines fit into width where they can, and into maxLine always. DKIM
// signatures have to keep their form.
func (h *header) field(name, value string, width int) string {
	value = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(value)
	value = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\t' && r != '\n' {
			return '?'
		}
		return r
	}, value)
	if !h.utf8 && !smtp.IsASCII(value) {
		value = mime.QEncoding.Encode("utf-8", strings.Join(strings.Fields(value), " "))
		width = usualLine
	}
	first, rest, _ := strings.Cut(value, "\n")
	from := len(name) + len(": ")
	if strings.HasPrefix(first, "=?") {
		from-- // An encoded word needs most of a line.
	}
	lines := fold(name+": "+first, from, width)
	for line := range strings.SplitSeq(rest, "\n") {
		text := strings.TrimLeft(line, " \t")
		switch {
		case text == "":
			continue
		case text == line, len(line)-len(text) > usualLine:
			line = " " + text
		}
		lines = append(lines, fold(line, len(line)-len(text)+1, width)...)
	}
	return strings.Join(lines, "\r\n")
}

// fold parts a line that is longer than width before white space, from the
// place from on, or at any place if maxLine demands it.
func fold(line string, from, width int) (lines []string) {
	if len(line) > width {
		line = strings.TrimRight(line, " \t")
	}
	for from < len(line) && len(line) > width {
		at := strings.LastIndexAny(line[:width+1], " \t")
		if at < from {
			at = from + strings.IndexAny(line[from:], " \t")
		}
		if at < from && len(line) <= maxLine {
			break
		}
		if at < from || at > maxLine {
			for at = maxLine; !utf8.RuneStart(line[at]); at-- {
			}
		}
		lines = append(lines, line[:at])
		line = " " + strings.TrimLeft(line[at:], " \t")
		from = 2
	}
	return append(lines, line)
}

// isFieldName reports whether a field may have that name: RFC 5322, section
// 3.6.8.
func isFieldName(name string) bool {
	return name != "" && len(name) <= maxFieldName &&
		!strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' })
}
