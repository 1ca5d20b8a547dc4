package smtp

import (
	"errors"
	"strings"
)

// CheckRet checks the value of RET: RFC 3461, section 4.3.
func CheckRet(v string) error {
	if !strings.EqualFold(v, "FULL") && !strings.EqualFold(v, "HDRS") {
		return errors.New("RET is FULL or HDRS")
	}
	return nil
}

// CheckEnvID checks the value of ENVID: RFC 3461, section 4.4.
func CheckEnvID(v string) error {
	if len(v) == 0 || len(v) > 100 || !isXtext(v) {
		return errors.New("ENVID is at most 100 octets of xtext")
	}
	return nil
}

// CheckNotify checks the value of NOTIFY: RFC 3461, section 4.1.
func CheckNotify(v string) error {
	if strings.EqualFold(v, "NEVER") {
		return nil
	}
	seen := map[string]bool{}
	for word := range strings.SplitSeq(strings.ToUpper(v), ",") {
		if word != "SUCCESS" && word != "FAILURE" && word != "DELAY" || seen[word] {
			return errors.New("NOTIFY is NEVER, or some of SUCCESS,FAILURE,DELAY")
		}
		seen[word] = true
	}
	return nil
}

// CheckORcpt checks the value of ORCPT: RFC 3461, section 4.2, and RFC 6533,
// section 3 for the type utf-8.
func CheckORcpt(v string, utf8Allowed bool) error {
	kind, addr, ok := strings.Cut(v, ";")
	if !ok || !isKeyword(kind) || addr == "" || len(v) > 500 {
		return errors.New("ORCPT is type;address, at most 500 octets")
	}
	if strings.EqualFold(kind, "utf-8") {
		// The xtext of addresses has \x{...} in place of +XX: utf-8-addr-xtext.
		if !utf8Allowed && !IsASCII(addr) {
			return ErrNeedsUTF8
		}
		return nil
	}
	if !isXtext(addr) {
		return errors.New("the address of ORCPT is not xtext")
	}
	return nil
}

// isXtext reports whether v is xtext (RFC 3461, section 4). An "=" is let
// through, as Postfix does and sends.
func isXtext(v string) bool {
	const hex = "0123456789ABCDEFabcdef"
	for i := 0; i < len(v); i++ {
		switch c := v[i]; {
		case c < '!' || c > '~':
			return false
		case c == '+':
			if i+2 >= len(v) || strings.IndexByte(hex, v[i+1]) < 0 || strings.IndexByte(hex, v[i+2]) < 0 {
				return false
			}
			i += 2
		}
	}
	return true
}
