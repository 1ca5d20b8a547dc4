package smtp

import (
	"fmt"
	"strconv"
	"strings"
)

// A Reply is the answer to a command: RFC 5321, section 4.2, with an
// enhanced status code (RFC 2034) unless Enhanced is empty.
type Reply struct {
	Code     int
	Enhanced string
	Text     string // one line or several, parted by "\n"
}

// AppendTo appends r to b in the form that goes over the wire, and returns
// the extended buffer.
func (r Reply) AppendTo(b []byte) []byte {
	for text := r.Text; ; {
		line, rest, more := strings.Cut(text, "\n")
		b = strconv.AppendInt(b, int64(r.Code), 10)
		if more {
			b = append(b, '-')
		} else {
			b = append(b, ' ')
		}
		if r.Enhanced != "" {
			b = append(b, r.Enhanced...)
			b = append(b, ' ')
		}
		b = append(b, line...)
		b = append(b, '\r', '\n')
		if !more {
			return b
		}
		text = rest
	}
}

// String returns r with its lines parted by "\n".
func (r Reply) String() string {
	return strings.TrimSuffix(strings.ReplaceAll(string(r.AppendTo(nil)), "\r\n", "\n"), "\n")
}

// maxReply bounds the text of a reply that a client reads. The longest one
// that servers have is that to EHLO, with some tens of lines.
const maxReply = 16 << 10

// Add adds one line of a reply, as a client reads it without its CRLF, to r,
// and reports whether more lines follow. It wants the zero Reply first. The
// text is what the server sent, control characters and all. After an error
// the connection is of no more use.
func (r *Reply) Add(line string) (more bool, err error) {
	code := 0
	if len(line) >= 3 {
		code, _ = strconv.Atoi(line[:3])
	}
	switch {
	case code < 200 || code > 599 || len(line) > 3 && line[3] != ' ' && line[3] != '-':
		return false, fmt.Errorf("not a reply: %.80q", line)
	case r.Code != 0 && r.Code != code:
		return false, fmt.Errorf("reply changes its code from %d: %.80q", r.Code, line)
	case len(r.Text)+len(line) > maxReply:
		return false, fmt.Errorf("reply of more than %d octets", maxReply)
	}
	more = len(line) > 3 && line[3] == '-'
	text := line[min(4, len(line)):]
	// RFC 2034, section 4: all lines have the same enhanced code.
	enhanced, rest, _ := strings.Cut(text, " ")
	if enhanced == r.Enhanced && enhanced != "" || r.Code == 0 && isEnhanced(enhanced, code) {
		r.Enhanced, text = enhanced, rest
	}
	if r.Code != 0 {
		text = r.Text + "\n" + text
	}
	r.Code, r.Text = code, text
	return more, nil
}

// isEnhanced reports whether s is an enhanced status code (RFC 3463, section
// 2) of the class of code.
func isEnhanced(s string, code int) bool {
	class, rest, _ := strings.Cut(s, ".")
	subject, detail, _ := strings.Cut(rest, ".")
	return class == strconv.Itoa(code/100) && isUpTo999(subject) && isUpTo999(detail)
}

func isUpTo999(s string) bool {
	return s != "" && len(s) <= 3 && strings.Trim(s, "0123456789") == ""
}
