package dkim

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/mail"
	"regexp"
	"slices"
	"strings"

	"github.com/emersion/go-msgauth/authres"
	"github.com/emersion/go-msgauth/dmarc"
	"golang.org/x/net/publicsuffix"
)

// authors are the domains of a From field.
type authors struct {
	domains []string // in A-labels, each once

	// malformed says that there is not just one From field, or that it is
	// not as RFC 5322 has it. domains are then all that a program may take for
	// one.
	malformed bool

	// tooMany says that there are more than maxAuthors, or that it would take
	// long to tell.
	tooMany bool
}

// An author's name may be in a charset that we do not know. It does not matter.
var addresses = mail.AddressParser{WordDecoder: &mime.WordDecoder{
	CharsetReader: func(_ string, in io.Reader) (io.Reader, error) { return in, nil },
}}

// What looks like the domain of an address, and what may be around its @ and
// dots without being a part of it.
var (
	afterAt    = regexp.MustCompile(`@\s*([^\x00-\x20\x7f<>()\[\],;:@"\\]+)`)
	aroundDots = regexp.MustCompile(`[\x00-\x20"\\]*([.@])[\x00-\x20"\\]*`)
)

func authorsOf(m *message) authors {
	fields := append(m.values("From"), valuesOf(m.beyond, "From")...)
	if len(strings.Join(fields, "")) > maxFrom {
		return authors{malformed: true, tooMany: true}
	}
	a := authors{malformed: len(fields) != 1}
	for _, field := range fields {
		domains, ok := domainsIn(field)
		a.malformed = a.malformed || !ok
		for _, domain := range domains {
			a.add(asciiDomain(strings.TrimRight(domain, ".")))
		}
	}
	return a
}

func (a *authors) add(domain string) {
	switch {
	case !isDomain(domain):
		a.malformed = true
	case slices.Contains(a.domains, domain):
	case len(a.domains) == maxAuthors:
		a.tooMany = true
	default:
		a.domains = append(a.domains, domain)
	}
}

// domainsIn returns the domains of the addresses in a field, and whether it is as
// RFC 5322 has it. If it is not, they are all that may be taken for one.
func domainsIn(field string) (domains []string, ok bool) {
	list, err := addresses.ParseList(field)
	for _, address := range list {
		domains = append(domains, address.Address[strings.LastIndexByte(address.Address, '@')+1:])
	}
	if err == nil {
		return domains, true
	}
	for _, reading := range []string{field, aroundDots.ReplaceAllString(withoutComments(field), "$1")} {
		for _, match := range afterAt.FindAllStringSubmatch(reading, -1) {
			domains = append(domains, match[1])
		}
	}
	return domains, false
}

// withoutComments leaves comments out, wherever they are: RFC 5322, section
// 4.4, has them even within domains.
func withoutComments(field string) string {
	depth := 0
	return strings.Map(func(r rune) rune {
		switch {
		case r == '(':
			depth++
		case r == ')' && depth > 0:
			depth--
		case depth == 0:
			return r
		}
		return -1
	}, field)
}

const (
	maxAuthors = 10       // domains of which the policy is looked up
	maxFrom    = 16 << 10 // octets of From fields
)

// A policy is what a domain wants to be done with mail that is not its own.
type policy struct {
	author string
	record *dmarc.Record
	err    error // dmarc.ErrNoPolicy if there is none
}

// policiesOf looks up the policies of all authors: RFC 7489, section 6.6.1.
func (b *backend) policiesOf(ctx context.Context, a authors) (policies []policy) {
	for _, author := range a.domains {
		record, err := b.policyOf(ctx, author)
		policies = append(policies, policy{author, record, err})
	}
	return policies
}

// policyOf looks up the policy that holds for a domain: RFC 7489, section 6.6.3.
func (b *backend) policyOf(ctx context.Context, author string) (*dmarc.Record, error) {
	record, err := b.lookupPolicy(ctx, author)
	if org := organizational(author); errors.Is(err, dmarc.ErrNoPolicy) && org != author {
		record, err = b.lookupPolicy(ctx, org)
		if err == nil && record.SubdomainPolicy != "" {
			record.Policy = record.SubdomainPolicy
		}
	}
	if err != nil {
		return nil, err
	}
	// A domain that asks for a part of its mail only (pct) is trying out a
	// policy, which then counts as the one below. That is the same for each
	// message, and what t=y means in the successor of RFC 7489.
	if record.Percent != nil && *record.Percent < 100 {
		record.Policy = below[record.Policy]
	}
	return record, nil
}

var below = map[dmarc.Policy]dmarc.Policy{
	dmarc.PolicyReject:     dmarc.PolicyQuarantine,
	dmarc.PolicyQuarantine: dmarc.PolicyNone,
	dmarc.PolicyNone:       dmarc.PolicyNone,
}

func (b *backend) lookupPolicy(ctx context.Context, domain string) (*dmarc.Record, error) {
	return dmarc.LookupWithOptions(domain, &dmarc.LookupOptions{LookupTXT: func(name string) ([]string, error) {
		records, err := b.dns.LookupTXT(ctx, name)
		records = slices.DeleteFunc(records, func(r string) bool { return !dmarcVersion.MatchString(r) })
		if len(records) != 1 { // several are as good as none
			return nil, err
		}
		return []string{usefulTags(records[0])}, err
	}})
}

var (
	dmarcVersion = regexp.MustCompile(`^v[ \t]*=[ \t]*DMARC1[ \t]*(;|$)`)
	usefulTag    = regexp.MustCompile(`^((p|sp)=.*|(adkim|aspf)=[rs]|pct=([0-9]{1,2}|100))$`)
)

// usefulTags returns a record in lower case, without what does not matter here
// and without syntax errors in what has a default. RFC 7489, section 6.3, has
// them ignored, but the library would refuse the record.
func usefulTags(record string) string {
	useful := "v=DMARC1"
	for tag := range strings.SplitSeq(strings.ToLower(record), ";") {
		if tag = strings.Join(strings.Fields(tag), ""); usefulTag.MatchString(tag) {
			useful += ";" + tag
		}
	}
	return useful
}

// organizational returns the domain that somebody has registered: RFC 7489,
// section 3.2.
func organizational(domain string) string {
	if org, err := publicsuffix.EffectiveTLDPlusOne(domain); err == nil {
		return org
	}
	return domain // a public suffix
}

// aligned reports whether a domain speaks for an author: RFC 7489, section 3.1.
func aligned(mode dmarc.AlignmentMode, domain, author string) bool {
	return domain == author || mode == dmarc.AlignmentRelaxed && organizational(domain) == organizational(author)
}

// A dmarcResult is what DMARC says of a message and one author.
type dmarcResult struct {
	value  authres.ResultValue
	author string       // "" if nobody can be told
	policy dmarc.Policy // what to do if it is no pass; "" if it is not known
}

// judge says what the checks mean for an author.
func (p policy) judge(signatures []dkimResult, spf spfResult) dmarcResult {
	switch {
	case errors.Is(p.err, dmarc.ErrNoPolicy):
		return dmarcResult{authres.ResultNone, p.author, dmarc.PolicyNone}
	case dmarc.IsTempFail(p.err):
		return dmarcResult{authres.ResultTempError, p.author, ""}
	case p.err != nil:
		return dmarcResult{authres.ResultPermError, p.author, dmarc.PolicyNone}
	}
	var found []authres.ResultValue
	for _, s := range signatures {
		if aligned(p.record.DKIMAlignment, s.domain, p.author) {
			found = append(found, s.value)
		}
	}
	if aligned(p.record.SPFAlignment, spf.domain, p.author) {
		found = append(found, spf.value)
	}
	// One that cannot be had now may pass later.
	for _, value := range []authres.ResultValue{authres.ResultPass, authres.ResultTempError} {
		if slices.Contains(found, value) {
			return dmarcResult{value, p.author, p.record.Policy}
		}
	}
	return dmarcResult{authres.ResultFail, p.author, p.record.Policy}
}
