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
)

// Errors of ReadLine. The line was read to its end; the next one can be read.
var (
	ErrLineTooLong = errors.New("line too long")
	ErrBareNewline = errors.New("line does not end in CRLF")
)

// ReadLine reads a command line of at most limit octets with its CRLF, which it
// returns without. The line is valid until the next read. It ends at the
// first LF; if there is no CR before it, or another one elsewhere, the error
// is ErrBareNewline, so that no two parties can see different lines. The
// buffer of r bounds a line too, whatever limit says.
func ReadLine(r *bufio.Reader, limit int) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	tooLong := len(line) > limit || err == bufio.ErrBufferFull
	for err == bufio.ErrBufferFull {
		_, err = r.ReadSlice('\n')
	}
	text, ok := bytes.CutSuffix(line, []byte("\r\n"))
	switch {
	case err != nil:
		return nil, err
	case tooLong:
		return nil, ErrLineTooLong
	case !ok || bytes.IndexByte(text, '\r') >= 0:
		return nil, ErrBareNewline
	}
	return text, nil
}

// ParseCommand parts a line into the verb, in upper case, and what follows
// it, without white space around.
func ParseCommand(line string) (verb, args string) {
	verb, args, _ = strings.Cut(strings.TrimRight(line, " \t"), " ")
	return strings.ToUpper(verb), strings.TrimLeft(args, " ")
}

// CutPath parts the arguments of MAIL or RCPT, given the prefix "FROM:" or
// "TO:", into the path without angle brackets and the parameters. White
// space before the path and a path without angle brackets are let through,
// because before-queue content filters get what strangers wrote.
func CutPath(args, prefix string) (path string, params []string, err error) {
	if len(args) < len(prefix) || !strings.EqualFold(args[:len(prefix)], prefix) {
		return "", nil, fmt.Errorf("%s<address> expected", prefix)
	}
	args = strings.TrimLeft(args[len(prefix):], " ")
	bracket := strings.HasPrefix(args, "<")
	end := pathEnd(args, bracket)
	switch {
	case end < 0:
		return "", nil, errors.New("unbalanced quotes or angle brackets")
	case bracket:
		path, args = args[1:end], args[end+1:]
		if args != "" && args[0] != ' ' {
			return "", nil, errors.New("text after the angle bracket")
		}
	default:
		if path, args = args[:end], args[end:]; path == "" {
			return "", nil, errors.New("no address")
		}
	}
	params = strings.Fields(args)
	return path, params, checkParams(params)
}

// pathEnd returns the index of the ">" that closes the path, or of the space
// or end after one without brackets; -1 if there is none.
func pathEnd(s string, bracket bool) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '>' && bracket, c == ' ' && !bracket:
			return i
		}
	}
	if bracket || quoted {
		return -1
	}
	return len(s)
}

// checkParams checks the syntax that all parameters have: RFC 5321, section
// 4.1.2. Non-ASCII octets are for the caller to check.
func checkParams(params []string) error {
	seen := map[string]bool{}
	for _, p := range params {
		keyword, value, hasValue := strings.Cut(p, "=")
		if !isKeyword(keyword) {
			return ParamError{fmt.Sprintf("bad parameter %s", p)}
		}
		if hasValue && value == "" {
			return ParamError{fmt.Sprintf("parameter %s has no value after =", keyword)}
		}
		if i := strings.IndexFunc(p, func(r rune) bool { return r < '!' || r == 0x7f }); i >= 0 {
			return ParamError{fmt.Sprintf("control character in parameter %s", keyword)}
		}
		if keyword = strings.ToUpper(keyword); seen[keyword] {
			return ParamError{fmt.Sprintf("parameter %s given twice", keyword)}
		}
		seen[keyword] = true
	}
	return nil
}

// A ParamError is a fault in a parameter of MAIL or RCPT, not in the path.
type ParamError struct{ text string }

func (e ParamError) Error() string { return e.text }

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
