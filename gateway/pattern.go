package gateway

import (
	"errors"
	"fmt"
	"strings"

	"github.com/mailgw/mailgw/internal/smtp"
)

// A pattern stands for mailbox addresses. The most exact pattern that matches
// an address decides, wherever it stands:
//
//	user@example.org   that address; also "postmaster", the one address
//	                   without a domain, and "<>", the null sender
//	@example.org       every address of the domain; *@example.org is the same
//	user@*             the user in every domain, or without one
//	*                  every address, the null sender too; *@* is the same
//
// Upper and lower case are the same, in the local part too. A quoted local
// part is the same as the one without quotes, but a * in it is a plain
// character. Domains are compared as they are written, so that an
// internationalized domain has two forms.
type pattern struct {
	rank          rank
	local, domain string // in lower case, without quotes; empty if all match
}

// A rank is how exact a pattern is.
type rank int

const (
	oneAddress rank = iota
	oneDomain
	oneUser
	everything
)

func parsePattern(text string) (pattern, error) {
	switch {
	case text == "<>":
		return pattern{oneAddress, "", ""}, nil
	case strings.EqualFold(text, "postmaster"):
		return pattern{oneAddress, "postmaster", ""}, nil
	case text == "*":
		return pattern{everything, "", ""}, nil
	}
	at := strings.LastIndexByte(text, '@')
	if at < 0 {
		return pattern{}, errors.New("no domain; want user@domain, @domain, user@* or *")
	}
	local, domain := text[:at], text[at+1:]
	allLocals, allDomains := local == "" || local == "*", domain == "*"
	if allLocals {
		local = "all"
	}
	if allDomains {
		domain = "all"
	}
	if local[0] == '@' {
		return pattern{}, errors.New("a source route")
	}
	quoted, literal := local[0] == '"', strings.HasPrefix(domain, "[")
	if strings.Contains(local, "*") && !quoted || strings.Contains(domain, "*") && !literal {
		return pattern{}, errors.New("a * stands for the whole local part or the whole domain")
	}
	address, err := smtp.CheckMailbox(local+"@"+domain, true)
	if err != nil {
		return pattern{}, err
	}
	local, domain = smtp.FoldMailbox(address)
	switch {
	case allLocals && allDomains:
		return pattern{everything, "", ""}, nil
	case allLocals:
		return pattern{oneDomain, "", domain}, nil
	case allDomains:
		return pattern{oneUser, local, ""}, nil
	}
	return pattern{oneAddress, local, domain}, nil
}

// patterns are patterns, each with a value.
type patterns[T any] map[pattern]entry[T]

type entry[T any] struct {
	value T
	text  string // the pattern as it is written
	place string // where it is written
}

// add adds a pattern. It is an error if another one has the same meaning;
// place tells the reader of that error where a pattern is.
func (p patterns[T]) add(text, place string, value T) error {
	key, err := parsePattern(text)
	if err != nil {
		return err
	}
	if other, ok := p[key]; ok {
		return fmt.Errorf("means the same as %s in %s", other.text, other.place)
	}
	p[key] = entry[T]{value, text, place}
	return nil
}

// lookup returns the value of the pattern that decides an address, or the
// zero T if none matches. The null sender is the empty address.
func (p patterns[T]) lookup(address string) T {
	local, domain := smtp.FoldMailbox(address)
	for _, key := range [...]pattern{
		{oneAddress, local, domain},
		{oneDomain, "", domain},
		{oneUser, local, ""},
		{everything, "", ""},
	} {
		if e, ok := p[key]; ok {
			return e.value
		}
	}
	var none T
	return none
}
