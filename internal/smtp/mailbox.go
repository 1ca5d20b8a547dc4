package smtp

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// CheckMailbox checks a path and returns it without its source route, which
// is to be ignored (RFC 5321, appendix C). What is left is a mailbox, with a
// quoted local part or an address literal if need be. Dots may stand anywhere
// in a local part, and it may be longer than 64 octets, because such
// addresses exist. Non-ASCII is taken only if utf8Allowed is set.
func CheckMailbox(path string, utf8Allowed bool) (address string, err error) {
	if isPlain(path) {
		return path, nil
	}
	switch {
	case !utf8.ValidString(path):
		return "", errors.New("neither US-ASCII nor UTF-8")
	case hasControl(path):
		return "", errors.New("control character in the address")
	case !utf8Allowed && !IsASCII(path):
		return "", ErrNeedsUTF8
	}
	if address, err = cutRoute(path); err != nil {
		return "", err
	}
	at := lastAt(address)
	if at < 0 {
		return "", errors.New("no domain")
	}
	if err := checkLocal(address[:at]); err != nil {
		return "", err
	}
	if err := checkDomain(address[at+1:]); err != nil {
		return "", err
	}
	return address, nil
}

// isPlain reports whether path is a mailbox like nearly all, of letters, digits,
// dots and hyphens. It is only quicker than to look at all that a path may have.
func isPlain(path string) bool {
	at := strings.IndexByte(path, '@')
	if at <= 0 || len(path) > 255 {
		return false
	}
	for i := range at {
		if c := path[i]; !isAlnum(c) && c != '.' && c != '-' {
			return false
		}
	}
	before := byte('.')
	for i := at + 1; i < len(path); i++ {
		c := path[i]
		switch {
		case isAlnum(c):
		case c == '-' && before != '.':
		case c == '.' && before != '.' && before != '-':
		default:
			return false
		}
		before = c
	}
	return before != '.' && before != '-'
}

// cutRoute returns path without the source route "@a,@b:" before it. A route
// has no address literals, so that the first colon is the one after it.
func cutRoute(path string) (mailbox string, err error) {
	if !strings.HasPrefix(path, "@") {
		return path, nil
	}
	route, mailbox, ok := strings.Cut(path, ":")
	if !ok {
		return "", errors.New("source route without a mailbox")
	}
	for hop := range strings.SplitSeq(route, ",") {
		if domain, ok := strings.CutPrefix(hop, "@"); !ok || checkName(domain) != nil {
			return "", errors.New("bad source route")
		}
	}
	return mailbox, nil
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

// lastAt finds the @ that parts the mailbox. A quoted local part may have
// others before it. Domains have none: RFC 5321 would bear one in an address
// literal of a kind that nobody has defined.
func lastAt(s string) int { return strings.LastIndexByte(s, '@') }

func checkLocal(s string) error {
	if strings.HasPrefix(s, `"`) {
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

// checkQuoted checks a local part that begins with a quote. Control
// characters have been refused before.
func checkQuoted(s string) error {
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			i++
		case s[i] == '"' && i < len(s)-1:
			return errors.New("text after the quotes")
		case s[i] == '"':
			return nil
		}
	}
	return errors.New("unbalanced quotes")
}

func checkDomain(s string) error {
	if strings.HasPrefix(s, "[") {
		return checkLiteral(s)
	}
	return checkName(s)
}

// checkName checks a domain name. Labels may have an underscore, because
// such names exist; none may begin like an option of a command line.
func checkName(s string) error {
	if s == "" || len(s) > 255 {
		return errors.New("domain is empty or longer than 255 octets")
	}
	for rest, more := s, true; more; {
		var label string
		label, rest, more = strings.Cut(rest, ".")
		if label == "" {
			return errors.New("empty label in the domain")
		}
		if label[0] == '-' || label[len(label)-1] == '-' {
			return errors.New("hyphen at an end of a label of the domain")
		}
		for i := range len(label) {
			if c := label[i]; !isAlnum(c) && c < utf8.RuneSelf && c != '-' && c != '_' {
				return fmt.Errorf("character %q in the domain", c)
			}
		}
	}
	return nil
}

// checkLiteral checks an address literal, "[...": RFC 5321, section 4.1.3.
func checkLiteral(s string) error {
	content, ok := strings.CutSuffix(s[1:], "]")
	if !ok || !validLiteral(content) {
		return errors.New("bad address literal")
	}
	return nil
}

func validLiteral(s string) bool {
	tag, content, tagged := strings.Cut(s, ":")
	switch {
	case !tagged:
		addr, err := netip.ParseAddr(s)
		return err == nil && addr.Is4()
	case strings.EqualFold(tag, "IPv6"):
		addr, err := netip.ParseAddr(content)
		return err == nil && addr.Is6() && addr.Zone() == ""
	}
	return isKeyword(tag) && content != "" && !strings.ContainsFunc(content, func(r rune) bool {
		return r < '!' || r > '~' || strings.ContainsRune(`[]\`, r)
	})
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

// FoldMailbox is SplitMailbox in lower case: addresses with the same result
// are one mailbox to us, in routes and on the disk. No letter becomes one of
// US-ASCII that was none: the Kelvin sign would be a k, and its owner somebody
// else.
func FoldMailbox(address string) (local, domain string) {
	if isLower(address) {
		return SplitMailbox(address)
	}
	return SplitMailbox(strings.Map(func(r rune) rune {
		if l := unicode.ToLower(r); r < utf8.RuneSelf || l >= utf8.RuneSelf {
			return l
		}
		return r
	}, address))
}

// isLower reports whether s is US-ASCII without letters in upper case.
func isLower(s string) bool {
	for i := range len(s) {
		if c := s[i]; c >= utf8.RuneSelf || 'A' <= c && c <= 'Z' {
			return false
		}
	}
	return true
}
