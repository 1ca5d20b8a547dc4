package smtp

import (
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

// CheckRet checks the value of RET: RFC 3461, section 4.3.
func CheckRet(v string) error {
	switch upper(v) {
	case "FULL", "HDRS":
		return nil
	}
	return errors.New("RET is FULL or HDRS")
}

// CheckEnvID checks the value of ENVID: RFC 3461, section 4.4.
func CheckEnvID(v string) error {
	if v == "" || len(v) > 100 || !isXtext(v) {
		return errors.New("ENVID is at most 100 octets of xtext")
	}
	return nil
}

// CheckNotify checks the value of NOTIFY: RFC 3461, section 4.1.
func CheckNotify(v string) error {
	if upper(v) == "NEVER" {
		return nil
	}
	for word := range strings.SplitSeq(upper(v), ",") {
		switch word {
		case "SUCCESS", "FAILURE", "DELAY":
		default:
			return errors.New("NOTIFY is NEVER, or some of SUCCESS,FAILURE,DELAY")
		}
	}
	return nil
}

// CheckORcpt checks the value of ORCPT: RFC 3461, section 4.2, and RFC 6533,
// section 3 for the type utf-8. The address need not be a mailbox.
func CheckORcpt(v string, utf8Allowed bool) error {
	kind, addr, ok := strings.Cut(v, ";")
	if !ok || !isKeyword(kind) || addr == "" || len(v) > 500 {
		return errors.New("ORCPT is type;address, at most 500 octets")
	}
	switch {
	case !strings.EqualFold(kind, "utf-8"):
		// Postfix has UTF-8 in xtext for recipients of SMTPUTF8 that come
		// without an ORCPT.
		if _, ok := decodeXtext(addr); !ok {
			return errors.New("the address of ORCPT is not xtext")
		}
	case !isUnitext(addr):
		return errors.New(`the address of ORCPT is not UTF-8 with \x{...} for what is special`)
	case !utf8Allowed && !IsASCII(addr):
		return ErrNeedsUTF8
	}
	return nil
}

// isXtext reports whether v is xtext of printable US-ASCII, which RFC 3461,
// sections 4.2 and 4.4, demands.
func isXtext(v string) bool {
	text, ok := decodeXtext(v)
	return ok && IsASCII(text)
}

// isUnitext reports whether v is utf-8-addr-unitext of RFC 6533, section 3,
// which is utf-8-addr-xtext too if it is US-ASCII. "+" and "=" are let
// through, as Postfix does.
func isUnitext(v string) bool {
	for v != "" {
		r, size := utf8.DecodeRuneInString(v)
		switch {
		case r == utf8.RuneError && size == 1, r == ' ', isControl(r):
			return false
		case r == '\\':
			hex, rest, ok := strings.Cut(v, "}")
			if !ok || !isEmbedded(hex) {
				return false
			}
			v = rest
		default:
			v = v[size:]
		}
	}
	return true
}

// isEmbedded reports whether s, without its brace at the end, is a character
// in the form of \x{2B}.
func isEmbedded(s string) bool {
	hex, ok := strings.CutPrefix(s, `\x{`)
	code, err := strconv.ParseUint(hex, 16, 21)
	return ok && err == nil && utf8.ValidRune(rune(code)) && !isControl(rune(code))
}

// CheckAuth checks the value of AUTH at MAIL: RFC 4954, section 5.
func CheckAuth(v string) error {
	if v == "" || !isXtext(v) {
		return errors.New("AUTH is <> or the xtext of a mailbox")
	}
	return nil
}

// IsAuthMailbox reports whether a checked value of AUTH names somebody.
func IsAuthMailbox(v string) bool {
	text, _ := decodeXtext(v)
	_, err := CheckMailbox(text, false)
	return err == nil
}

// decodeXtext decodes xtext (RFC 3461, section 4). It reports false for what is
// none, or is no printable text. An "=" is let through, as Postfix does and
// sends.
func decodeXtext(v string) (text string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		c := v[i]
		if c < '!' || c > '~' {
			return "", false
		}
		if c == '+' {
			if i+2 >= len(v) {
				return "", false
			}
			code, err := strconv.ParseUint(v[i+1:i+3], 16, 8)
			if err != nil {
				return "", false
			}
			c = byte(code)
			i += 2
		}
		b.WriteByte(c)
	}
	text = b.String()
	return text, utf8.ValidString(text) && !hasControl(text)
}
