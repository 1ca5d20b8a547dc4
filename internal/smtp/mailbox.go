package smtp

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"
)

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
