package static

import (
	"errors"
	"strings"

	"github.com/mailgw/mailgw/internal/smtp"
)

// A pattern stands for addresses.
type pattern struct {
	local, domain       string // in lower case, without quotes
	anyLocal, anyDomain bool
}

func parsePattern(text string) (pattern, error) {
	if text == "*" {
		return pattern{anyLocal: true, anyDomain: true}, nil
	}
	at := strings.LastIndexByte(text, '@')
	if at < 0 {
		return pattern{}, errors.New("want user@domain, @domain, user@* or *")
	}
	local, domain := text[:at], text[at+1:]
	p := pattern{anyLocal: local == "" || local == "*", anyDomain: domain == "*"}
	if p.anyLocal {
		local = "any" // stands in, so that the other part is checked
	}
	if p.anyDomain {
		domain = "any"
	}
	address, err := smtp.CheckMailbox(local+"@"+domain, true)
	if err != nil {
		return pattern{}, err
	}
	p.local, p.domain = smtp.FoldMailbox(address)
	return p, nil
}

func (p pattern) matches(address string) bool {
	local, domain := smtp.FoldMailbox(address)
	return (p.anyLocal || p.local == local) && (p.anyDomain || p.domain == domain)
}
