// Package smtp is the grammar that servers and clients of SMTP (RFC 5321)
// and LMTP (RFC 2033) share: commands, paths, parameters, replies, and the
// encoding of a message after DATA. It does no I/O of its own.
package smtp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Errors of ReadLine. The line was read to its end; the next one can be read.
// A DotWriter has ErrBareNewline too.
var (
	ErrLineTooLong = errors.New("line too long")
	ErrBareNewline = errors.New("line does not end in CRLF")

	// ErrLostChunk is either of them for BDAT: a chunk follows, of which
	// nobody can tell the size, so that no other line can be read.
	ErrLostChunk = errors.New("no telling where the chunk of BDAT ends")
)

// ReadLine reads a command line of at most limit octets with its CRLF, which it
// returns without. The line is valid until the next read. It ends at the
// first LF; if there is no CR before it, or another one elsewhere, the error
// is ErrBareNewline, so that no two parties can see different lines. The
// buffer of r bounds a line too, whatever limit says.
func ReadLine(r *bufio.Reader, limit int) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	tooLong := len(line) > limit || err == bufio.ErrBufferFull
	chunk := beginsBDAT(line)
	for err == bufio.ErrBufferFull {
		_, err = r.ReadSlice('\n')
	}
	text, ok := bytes.CutSuffix(line, []byte("\r\n"))
	switch {
	case err != nil:
		return nil, err
	case chunk && (tooLong || !ok || bytes.IndexByte(text, '\r') >= 0):
		return nil, ErrLostChunk
	case tooLong:
		return nil, ErrLineTooLong
	case !ok || bytes.IndexByte(text, '\r') >= 0:
		return nil, ErrBareNewline
	}
	return text, nil
}

// beginsBDAT reports whether a line, or the beginning of one, has the verb
// BDAT.
func beginsBDAT(line []byte) bool {
	for len(line) > 0 && isBlank(rune(line[0])) {
		line = line[1:]
	}
	const verb = "BDAT"
	if len(line) < len(verb) {
		return false
	}
	for i := range len(verb) {
		if line[i]&^0x20 != verb[i] { // a letter in either case
			return false
		}
	}
	return true
}

// ParseCommand parts a line into the verb, in upper case, and what follows
// it, without white space around.
func ParseCommand(line string) (verb, args string) {
	verb = trimBlanks(line)
	for i := range len(verb) {
		if isBlank(rune(verb[i])) {
			verb, args = verb[:i], trimBlanks(verb[i:])
			break
		}
	}
	return upper(verb), args
}

// trimBlanks returns s without the blanks around it.
func trimBlanks(s string) string {
	for s != "" && isBlank(rune(s[0])) {
		s = s[1:]
	}
	for s != "" && isBlank(rune(s[len(s)-1])) {
		s = s[:len(s)-1]
	}
	return s
}

// CutPath parts the arguments of MAIL or RCPT, given the prefix "FROM:" or
// "TO:", into the path without angle brackets and the parameters, whose
// syntax is checked; the path's is not. White space before the path and a
// path without angle brackets are let through, because before-queue content
// filters get what strangers wrote.
func CutPath(args, prefix string) (path string, params []string, err error) {
	if len(args) < len(prefix) || !strings.EqualFold(args[:len(prefix)], prefix) {
		return "", nil, fmt.Errorf("%s<address> expected", prefix)
	}
	args = trimBlanks(args[len(prefix):])
	bracket := strings.HasPrefix(args, "<")
	end := pathEnd(args, bracket)
	switch {
	case end < 0:
		return "", nil, errors.New("unbalanced quotes or angle brackets")
	case bracket:
		path, args = args[1:end], args[end+1:]
	default:
		path, args = args[:end], args[end:]
	}
	switch {
	case path == "" && !bracket:
		return "", nil, errors.New("no address")
	case args != "" && !isBlank(rune(args[0])):
		return "", nil, errors.New("text after the angle bracket")
	}
	if args == "" {
		return path, nil, nil
	}
	params = strings.FieldsFunc(args, isBlank)
	return path, params, CheckParams(params)
}

// pathEnd returns the index of the ">" that closes the path, or of the blank
// or end after one without brackets; -1 if there is none.
func pathEnd(s string, bracket bool) int {
	if end := strings.IndexByte(s, '>'); bracket && end > 0 && strings.IndexByte(s[:end], '"') < 0 {
		return end // as of nearly all paths
	}
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '>' && bracket, isBlank(rune(c)) && !bracket:
			return i
		}
	}
	if bracket || quoted {
		return -1
	}
	return len(s)
}

// CheckParams checks the syntax that all parameters have: RFC 5321, section
// 4.1.2. A value may have an "=", as that of AUTH does, and be UTF-8:
// whether that was agreed on is for the caller to check.
func CheckParams(params []string) error {
	if len(params) == 0 {
		return nil
	}
	seen := map[string]bool{}
	for _, p := range params {
		keyword, value, hasValue := strings.Cut(p, "=")
		switch {
		case !isKeyword(keyword):
			return paramErrorf("bad parameter %+.40q", p)
		case hasValue && value == "":
			return paramErrorf("parameter %.40s has no value after =", keyword)
		case !utf8.ValidString(value) || hasControl(value) || strings.ContainsFunc(value, isBlank):
			return paramErrorf("parameter %.40s has control characters or is not UTF-8", keyword)
		case seen[upper(keyword)]:
			return paramErrorf("parameter %.40s given twice", keyword)
		}
		seen[upper(keyword)] = true
	}
	return nil
}

// A ParamError is a fault in a parameter of MAIL or RCPT, not in the path.
type ParamError struct{ text string }

func (e ParamError) Error() string { return e.text }

func paramErrorf(format string, args ...any) error {
	return ParamError{fmt.Sprintf(format, args...)}
}

func isKeyword(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && (c != '-' || i == 0) {
			return false
		}
	}
	return s != ""
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

// isBlank reports whether r parts words of a command. A tab may too, because
// Postfix lets it through.
func isBlank(r rune) bool { return r == ' ' || r == '\t' }

// isControl reports whether r could end a line or confuse a terminal, in
// US-ASCII or beyond.
func isControl(r rune) bool {
	return unicode.IsControl(r) || r == '\u2028' || r == '\u2029'
}

func hasControl(s string) bool {
	for _, r := range s {
		if isControl(r) {
			return true
		}
	}
	return false
}

// upper returns s in upper case. It leaves alone what is not US-ASCII: "ſ" is
// no S and "ı" no I, although package strings takes them for it.
func upper(s string) string {
	if IsASCII(s) {
		return strings.ToUpper(s)
	}
	return s
}
