package backends

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What is checked of an address, a parameter or a route when a backend puts it
// into the envelope, so that the author learns of a fault where it is made.
// The gateway checks them in full when it applies the edits, for the
// transaction at hand: nothing here refuses what it takes, but for the length.

// maxAddress is how many octets an address or a parameter may have. RFC 5321,
// section 4.5.3.1.3, has 256 for an address.
const maxAddress = 1 << 10

// specials are what parts addresses and their phrases in a header, dots aside:
// RFC 5322, section 3.2.3. An envelope has them within quotes or brackets.
const specials = ` <>()[],;:@\"`

// checkAddress checks that an address is bare, as Sender is.
func checkAddress(address string) error {
	if err := checkText("address", address); err != nil {
		return err
	}
	at := strings.LastIndexByte(address, '@')
	if at <= 0 || at == len(address)-1 {
		return fmt.Errorf("address %q is not of the form local@domain", address)
	}
	local, domain := address[:at], address[at+1:]
	quoted := len(local) > 1 && local[0] == '"' && local[len(local)-1] == '"'
	literal := domain[0] == '[' && domain[len(domain)-1] == ']'
	if !quoted && strings.ContainsAny(local, specials) || !literal && strings.ContainsAny(domain, specials) {
		return fmt.Errorf("address %q has more than local@domain, or lacks quotes", address)
	}
	return nil
}

// checkRecipient takes "postmaster" alone, too: RFC 5321, section 4.5.1.
func checkRecipient(address string) error {
	if strings.EqualFold(address, "postmaster") {
		return nil
	}
	return checkAddress(address)
}

// checkParam checks a parameter of MAIL or RCPT: RFC 5321, section 4.1.2.
func checkParam(p string) error {
	if err := checkText("parameter", p); err != nil {
		return err
	}
	keyword, value, hasValue := strings.Cut(p, "=")
	if keyword == "" || hasValue && value == "" || strings.Contains(p, " ") {
		return fmt.Errorf("parameter %q is not of the form keyword or keyword=value", p)
	}
	return nil
}

// checkText checks what an address and a parameter have in common.
func checkText(what, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("the %s is empty", what)
	case len(s) > maxAddress:
		return fmt.Errorf("%s of %d octets, want at most %d", what, len(s), maxAddress)
	case !utf8.ValidString(s):
		return fmt.Errorf("%s %q is neither US-ASCII nor UTF-8", what, s)
	case strings.ContainsFunc(s, unicode.IsControl):
		return fmt.Errorf("%s %q has a control character", what, s)
	}
	return nil
}

var routeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

// checkRoute checks the name of a route, which is as in gateway.toml.
func checkRoute(name string) error {
	if !routeName.MatchString(name) {
		return fmt.Errorf("route %.100q is no name: want up to 63 letters, digits, _ and -", name)
	}
	return nil
}
