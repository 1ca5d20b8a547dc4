package dkim

import (
	"cmp"
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/spf"
	"github.com/emersion/go-msgauth/authres"
	"github.com/emersion/go-msgauth/dkim"
	"github.com/emersion/go-msgauth/dmarc"

	"github.com/mailgw/mailgw/backends"
)

// dnsTimeout is how long all lookups for a message may take. RFC 7208, section
// 4.6.4, wants at least 20 seconds.
const dnsTimeout = 20 * time.Second

// verify adds the field with the results, and does what DMARC demands.
func (b *backend) verify(ctx context.Context, tx *backends.DataContext, m *message) error {
	r, err := b.check(ctx, tx, m)
	if err == nil {
		err = ctx.Err() // or all may be temperror
	}
	if err != nil {
		return err
	}
	if err := tx.AddField(0, r.field(b.AuthservID)); err != nil {
		return err
	}
	if b.DMARC == "enforce" {
		return b.enforce(tx, r.dmarc)
	}
	return nil
}

// check asks the DNS for all that it wants to know at once. It returns when no
// lookup is under way any more.
func (b *backend) check(ctx context.Context, tx *backends.DataContext, m *message) (r results, err error) {
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	var policies []policy
	var lookups sync.WaitGroup
	authors := authorsOf(m)
	lookups.Go(func() { r.spf = b.checkSPF(ctx, tx) })
	lookups.Go(func() { policies = b.policiesOf(ctx, authors) })
	if r.signatures, err = b.checkSignatures(ctx, m); err != nil {
		cancel()
	}
	lookups.Wait()
	for _, p := range policies {
		r.dmarc = append(r.dmarc, p.judge(r.signatures, r.spf))
	}
	switch {
	case authors.tooMany:
		r.dmarc = append(r.dmarc, dmarcResult{authres.ResultPermError, "", dmarc.PolicyReject})
	case len(authors.domains) == 0:
		r.dmarc = []dmarcResult{{authres.ResultPermError, "", dmarc.PolicyNone}}
	}
	return r, err
}

// enforce does what the strictest policy demands: RFC 7489, section 6.6.1.
func (b *backend) enforce(tx *backends.DataContext, all []dmarcResult) error {
	demands := map[dmarc.Policy]string{} // and whose they are
	unknown := ""
	for _, r := range all {
		switch {
		case r.value == authres.ResultTempError && r.policy != dmarc.PolicyNone:
			unknown = r.author
		case r.value == authres.ResultFail, r.value == authres.ResultPermError:
			demands[r.policy] = r.author
		}
	}
	if author, ok := demands[dmarc.PolicyReject]; ok {
		return backends.NewStatus(550, "5.7.1", "refused by the DMARC policy of "+cmp.Or(author, "too many authors"))
	}
	if unknown != "" {
		return backends.NewStatus(451, "4.7.0", "DMARC cannot be checked now for "+unknown+", try again later")
	}
	if _, ok := demands[dmarc.PolicyQuarantine]; ok && b.Quarantine != "" {
		for i := range tx.Envelope.Recipients {
			if err := tx.Divert(i, b.Quarantine); err != nil {
				return err
			}
		}
	}
	return nil
}

// An spfResult is what SPF says of the sender or, for the null sender, of the
// name in HELO.
type spfResult struct {
	value    authres.ResultValue
	domain   string // in A-labels
	property string // "smtp.mailfrom" or "smtp.helo"
	checked  string // its value
}

// checkSPF checks the sender: RFC 7208, sections 2.3 and 2.4.
func (b *backend) checkSPF(ctx context.Context, tx *backends.DataContext) spfResult {
	helo, sender := heloOf(&tx.Session), tx.Envelope.Sender
	r := spfResult{authres.ResultNone, domainOf(sender), "smtp.mailfrom", sender}
	local := sender[:max(0, strings.LastIndexByte(sender, '@'))]
	if sender == "" {
		r = spfResult{authres.ResultNone, asciiDomain(strings.TrimSuffix(helo, ".")), "smtp.helo", helo}
		local = "postmaster"
	}
	addr := clientAddr(&tx.Session)
	if !addr.IsValid() || !isDomain(r.domain) || !strings.Contains(r.domain, ".") {
		return r
	}
	// The library takes what follows the first @ for the domain.
	local = strings.ReplaceAll(local, "@", "")
	value, _ := spf.CheckHostWithSender(net.IP(addr.AsSlice()), helo, local+"@"+r.domain, spf.WithContext(ctx), spf.WithResolver(b.dns))
	r.value = authres.ResultValue(value)
	return r
}

// A dkimResult is what became of one signature.
type dkimResult struct {
	value  authres.ResultValue
	reason string
	domain string // that signed, in A-labels
	tags   map[string]string
}

const (
	// maxSignatures is how many signatures are checked, from the top.
	maxSignatures = 10

	// maxPicks is how many fields are looked at to find those that are
	// signed. It is the square of the header's size that a stranger could make
	// us look at.
	maxPicks = 1 << 20
)

// checkSignatures verifies the signatures of a message, which it reads if there
// are any.
func (b *backend) checkSignatures(ctx context.Context, m *message) ([]dkimResult, error) {
	results, why := unchecked(m)
	if why == "" && len(results) > 0 {
		verifications, err := dkim.VerifyWithOptions(m, &dkim.VerifyOptions{
			LookupTXT:        func(name string) ([]string, error) { return b.dns.LookupTXT(ctx, name) },
			MaxVerifications: maxSignatures,
		})
		switch {
		case errors.Is(m.err, errBlank):
			why = errBlank.Error()
		case m.err != nil:
			return nil, m.err
		case err != nil && !errors.Is(err, dkim.ErrTooManySignatures):
			return nil, err
		}
		for i, v := range verifications {
			results[i].value, results[i].reason = valueOf(v.Err)
			results[i].domain = asciiDomain(v.Domain)
		}
	}
	if why != "" {
		for i := range results {
			results[i].value, results[i].reason = authres.ResultPermError, why
		}
	}
	return results, nil
}

// unchecked returns the signatures of a message, and why they are not to be
// verified, or "".
func unchecked(m *message) (results []dkimResult, why string) {
	fields := m.values("DKIM-Signature")
	picks := 0
	for _, f := range fields[:min(len(fields), maxSignatures)] {
		tags := tagsOf(f)
		results = append(results, dkimResult{domain: asciiDomain(tags["d"]), tags: tags})
		picks += (1 + strings.Count(tags["h"], ":")) * len(m.fields)
	}
	switch {
	case m.malformed:
		why = "no empty line follows the header"
	case picks > maxPicks:
		why = "too many fields are signed"
	}
	return results, why
}

// valueOf returns the result and the reason that the library's error means. Its
// texts may go on, after a colon, with what is nobody's business.
func valueOf(err error) (value authres.ResultValue, reason string) {
	if err == nil {
		return authres.ResultPass, ""
	}
	reason, _, _ = strings.Cut(strings.TrimPrefix(err.Error(), "dkim: "), ":")
	switch {
	case dkim.IsTempFail(err):
		return authres.ResultTempError, reason
	case dkim.IsPermFail(err):
		return authres.ResultPermError, reason
	}
	return authres.ResultFail, reason
}

// tagsOf returns the tags of a signature: RFC 6376, section 3.2. It does not
// judge them.
func tagsOf(signature string) map[string]string {
	tags := map[string]string{}
	for tag := range strings.SplitSeq(signature, ";") {
		name, value, _ := strings.Cut(tag, "=")
		tags[strings.TrimSpace(name)] = strings.Join(strings.Fields(value), "")
	}
	return tags
}
