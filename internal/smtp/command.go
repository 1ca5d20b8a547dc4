// Package smtp is the grammar that servers and clients of SMTP (RFC 5321)
// and LMTP (RFC 2033) share: commands, paths, parameters, replies, and the
// encoding of a message after DATA. It does no I/O of its own.
package smtp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"
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

// CheckMailbox checks a path and returns it without its source route, which
// is to be ignored (RFC 5321, appendix C). The path is a mailbox, with a
// quoted local part or an address literal if need be. Dots may stand anywhere
// in a local part, and it may be longer than 64 octets, because such
// addresses exist. Non-ASCII is taken only if utf8 is set.
func CheckMailbox(path string, utf8Allowed bool) (address string, err error) {
	if !utf8.ValidString(path) {
		return "", errors.New("neither US-ASCII nor UTF-8")
	}
	if !utf8Allowed && !IsASCII(path) {
		return "", ErrNeedsUTF8
	}
	address = path
	if strings.HasPrefix(path, "@") {
		route, mailbox, ok := strings.Cut(path, ":")
		if !ok {
			return "", errors.New("source route without a mailbox")
		}
		for hop := range strings.SplitSeq(route, ",") {
			if domain, ok := strings.CutPrefix(hop, "@"); !ok || checkDomain(domain) != nil {
				return "", errors.New("bad source route")
			}
		}
		address = mailbox
	}
	at := lastAt(address)
	if at < 0 {
		return "", errors.New("no domain")
	}
	if err := checkLocal(address[:at]); err != nil {
		return "", err
	}
	return address, checkDomain(address[at+1:])
}

// ErrNeedsUTF8 says that an address is not US-ASCII where SMTPUTF8 was not
// asked for.
var ErrNeedsUTF8 = errors.New("not US-ASCII, and SMTPUTF8 was not asked for")

// IsASCII reports whether s has no octet above 127.
func IsASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// lastAt finds the @ that parts the mailbox. A domain has none, not even in
// an address literal.
func lastAt(s string) int { return strings.LastIndexByte(s, '@') }

func checkLocal(s string) error {
	if len(s) >= 2 && s[0] == '"' {
		return checkQuoted(s)
	}
	if s == "" {
		return errors.New("no local part")
	}
	for i := range len(s) {
		c := s[i]
		if !isAlnum(c) && c < utf8.RuneSelf && strings.IndexByte("!#$%&'*+-/=?^_`{|}~.", c) < 0 {
			return fmt.Errorf("character %q in a local part that is not quoted", c)
		}
	}
	return nil
}

func checkQuoted(s string) error {
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			if i != len(s)-1 {
				return errors.New("text after the quotes")
			}
			return nil
		case c == '\\':
			i++
			if i < len(s) && (s[i] < ' ' || s[i] == 0x7f) {
				return errors.New("control character in quotes")
			}
		case c < ' ' || c == 0x7f:
			return errors.New("control character in quotes")
		}
	}
	return errors.New("unbalanced quotes")
}

func checkDomain(s string) error {
	if strings.HasPrefix(s, "[") {
		return checkLiteral(s)
	}
	if s == "" || len(s) > 255 {
		return errors.New("domain is empty or longer than 255 octets")
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" {
			return errors.New("empty label in the domain")
		}
		for i := range len(label) {
			if c := label[i]; !isAlnum(c) && c < utf8.RuneSelf && c != '-' && c != '_' {
				return fmt.Errorf("character %q in the domain", c)
			}
		}
	}
	return nil
}

// checkLiteral checks an address literal: RFC 5321, section 4.1.3.
func checkLiteral(s string) error {
	s, ok := strings.CutSuffix(s[1:], "]")
	if !ok || strings.ContainsAny(s, "[]\\") {
		return errors.New("bad address literal")
	}
	tag, content, tagged := strings.Cut(s, ":")
	addr, err := netip.ParseAddr(s)
	if strings.EqualFold(tag, "IPv6") {
		addr, err = netip.ParseAddr(content)
		if err == nil && addr.Is6() && addr.Zone() == "" {
			return nil
		}
	} else if err == nil && addr.Is4() {
		return nil
	} else if tagged && isKeyword(tag) && content != "" &&
		strings.IndexFunc(content, func(r rune) bool { return r < '!' || r > '~' }) < 0 {
		return nil
	}
	return errors.New("bad address literal")
}

// SplitMailbox parts a checked address into local part, without its quotes,
// and domain. The domain is empty if there is none, as in "postmaster".
func SplitMailbox(address string) (local, domain string) {
	local = address
	if at := lastAt(address); at >= 0 {
		local, domain = address[:at], address[at+1:]
	}
	if len(local) < 2 || local[0] != '"' {
		return local, domain
	}
	b := make([]byte, 0, len(local))
	for i := 1; i < len(local)-1; i++ {
		if local[i] == '\\' {
			i++
		}
		b = append(b, local[i])
	}
	return string(b), domain
}
