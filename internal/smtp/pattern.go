package smtp

import (
	"cmp"
	"errors"
	"slices"
	"strings"
)

// A Pattern stands for mailbox addresses:
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
//
// Patterns that mean the same are equal.
type Pattern struct {
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

// ParsePattern reads a pattern.
func ParsePattern(text string) (Pattern, error) {
	switch {
	case text == "<>":
		return Pattern{oneAddress, "", ""}, nil
	case strings.EqualFold(text, "postmaster"):
		return Pattern{oneAddress, "postmaster", ""}, nil
	case text == "*":
		return Pattern{everything, "", ""}, nil
	}
	at := lastAt(text)
	if at < 0 {
		return Pattern{}, errors.New("no domain; want user@domain, @domain, user@*, *, postmaster or <>")
	}
	local, domain := text[:at], text[at+1:]
	allLocals, allDomains := local == "" || local == "*", domain == "*"
	if allLocals {
		local = "all" // stands in, so that the domain is checked
	}
	if allDomains {
		domain = "all"
	}
	switch {
	case local == "@":
		return Pattern{}, errors.New("two @")
	case local[0] == '@':
		return Pattern{}, errors.New("a source route")
	}
	quoted, literal := local[0] == '"', strings.HasPrefix(domain, "[")
	if strings.Contains(local, "*") && !quoted || strings.Contains(domain, "*") && !literal {
		return Pattern{}, errors.New("a * stands for the whole local part or the whole domain")
	}
	address, err := CheckMailbox(local+"@"+domain, true)
	if err != nil {
		return Pattern{}, err
	}
	local, domain = FoldMailbox(address)
	switch {
	case allLocals && allDomains:
		return Pattern{everything, "", ""}, nil
	case allLocals:
		return Pattern{oneDomain, "", domain}, nil
	case allDomains:
		return Pattern{oneUser, local, ""}, nil
	}
	return Pattern{oneAddress, local, domain}, nil
}

// PatternsOf returns the patterns that match a checked address, the most exact
// one first. The null sender is the empty address.
func PatternsOf(address string) []Pattern {
	all, n := patternsOf(address) // apart, so that a caller need not allocate
	return all[:n]
}

func patternsOf(address string) (all [4]Pattern, n int) {
	if address == "" {
		return [4]Pattern{{oneAddress, "", ""}, {everything, "", ""}}, 2
	}
	local, domain := FoldMailbox(address)
	return [4]Pattern{
		{oneAddress, local, domain},
		{oneDomain, "", domain},
		{oneUser, local, ""},
		{everything, "", ""},
	}, 4
}

// Matches reports whether p stands for a checked address, among others.
func (p Pattern) Matches(address string) bool {
	return slices.Contains(PatternsOf(address), p)
}

// Compare orders patterns, the more exact ones first.
func (p Pattern) Compare(q Pattern) int {
	return cmp.Or(cmp.Compare(p.rank, q.rank), cmp.Compare(p.domain, q.domain), cmp.Compare(p.local, q.local))
}
