package dkim

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/mailgw/mailgw/backends"
)

// Sign says with which key the mail of a domain is signed. Several of them for
// one domain make several signatures.
type Sign struct {
	// Domain is the domain of the From field, and the one that signs (d=).
	Domain string `toml:"domain"`

	// Subdomains says that it signs for the domains below it, too, but for
	// those that have a Sign of their own.
	Subdomains bool `toml:"subdomains"`

	// Selector says where the public key is: SELECTOR._domainkey.DOMAIN.
	Selector string `toml:"selector"`

	// Key is the path of the private key.
	Key string `toml:"key"`
}

// A signingKey is a Sign, ready for use.
type signingKey struct {
	domain, selector string
	subdomains       bool
	key              crypto.Signer
}

// newSigningKey returns the key of s, or tells with fault what is wrong.
func newSigningKey(s Sign, fault func(key string, err error)) signingKey {
	k := signingKey{domain: asciiDomain(s.Domain), selector: s.Selector, subdomains: s.Subdomains}
	if !isDomain(k.domain) {
		fault("domain", fmt.Errorf("%q is no domain", s.Domain))
	}
	if !isDomain(k.selector) {
		fault("selector", fmt.Errorf("%q is no name in the DNS", s.Selector))
	}
	var err error
	if k.key, err = readKey(s.Key); err != nil {
		fault("key", err)
	}
	return k
}

// isDomain reports whether a text can stand for a domain in a signature.
func isDomain(s string) bool {
	return s != "" && len(s) <= 253 && !strings.HasPrefix(s, ".") && !strings.HasSuffix(s, ".") && !strings.Contains(s, "..") &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}

// keysFor returns the keys of the domain that is nearest to that of an author.
func (b *backend) keysFor(author string) (keys []signingKey) {
	for _, k := range b.keys {
		switch {
		case k.domain != author && !(k.subdomains && strings.HasSuffix(author, "."+k.domain)):
		case len(keys) > 0 && len(k.domain) < len(keys[0].domain):
		case len(keys) > 0 && len(k.domain) > len(keys[0].domain):
			keys = []signingKey{k}
		default:
			keys = append(keys, k)
		}
	}
	return keys
}

// sign adds the signatures of the author's domain, if that has keys and the
// client may use them.
func (b *backend) sign(ctx context.Context, tx *backends.DataContext, m *message) error {
	authors := authorsOf(m)
	if len(authors.domains) != 1 || authors.malformed {
		return nil
	}
	author := authors.domains[0]
	keys := b.keysFor(author)
	if len(keys) == 0 {
		return nil
	}
	names := b.signedFields(m)
	why := b.whyUnsigned(tx, m, author, names)
	if why == "" {
		fields, err := b.signatures(keys, names, m)
		if err == nil {
			return errors.Join(addFields(tx, fields), ctx.Err())
		}
		if !errors.Is(err, errBlank) {
			return err
		}
		why = err.Error()
	}
	slog.WarnContext(ctx, "the message goes on without a signature", "domain", author, "reason", why)
	return nil
}

// whyUnsigned says why a message of an author's domain is not to be signed, or
// "".
func (b *backend) whyUnsigned(tx *backends.DataContext, m *message, author string, names []string) string {
	switch {
	case !b.internal.has(&tx.Session) && !speaksFor(tx, author):
		return "neither the user's name nor the sender is of that domain"
	case m.malformed:
		return "no empty line follows the header"
	case len(strings.Join(names, ":")) > maxNames:
		return "too many fields to sign"
	}
	return ""
}

func addFields(tx *backends.DataContext, fields []string) error {
	for _, f := range fields {
		if err := tx.AddField(0, f); err != nil {
			return err
		}
	}
	return nil
}

// maxNames is how long the names of the signed fields may be. They stand in
// one line, of 998 octets at most.
const maxNames = 900

// speaksFor reports whether an authenticated client may sign as a domain: that
// of its own name, or that of the sender, which the backend users has checked.
// Users of other domains are no authors of this one.
func speaksFor(tx *backends.DataContext, domain string) bool {
	user, _ := tx.Session.ClientUser()
	return user != "" && (domainOf(user) == domain || domainOf(tx.Envelope.Sender) == domain)
}

// domainOf returns the domain of an address in A-labels, or "".
func domainOf(address string) string {
	at := strings.LastIndexByte(address, '@')
	if at < 0 {
		return ""
	}
	return asciiDomain(address[at+1:])
}

// signedFields returns the names of the fields to sign. A name stands there for
// each field of it, and once more if none may be added later (RFC 6376,
// section 8.15).
func (b *backend) signedFields(m *message) (names []string) {
	for _, name := range b.Headers {
		names = append(names, slices.Repeat([]string{name}, len(m.values(name)))...)
	}
	for _, name := range b.Oversign {
		names = append(names, slices.Repeat([]string{name}, len(m.values(name))+1)...)
	}
	return names
}

// signatures reads the message, and returns a DKIM-Signature field for each
// key.
func (b *backend) signatures(keys []signingKey, names []string, m *message) (fields []string, err error) {
	var signers []*dkim.Signer
	defer func() {
		for _, s := range signers {
			s.Close() // ends its goroutine, if nothing has
		}
	}()
	var all []io.Writer
	for _, k := range keys {
		s, err := b.newSigner(k, names)
		if err != nil {
			return nil, err
		}
		signers = append(signers, s)
		all = append(all, s)
	}
	if _, err := io.Copy(io.MultiWriter(all...), m); err != nil {
		return nil, err
	}
	if m.err != nil {
		return nil, m.err
	}
	for _, s := range signers {
		if err := s.Close(); err != nil {
			return nil, err
		}
		fields = append(fields, strings.TrimSuffix(s.Signature(), "\r\n"))
	}
	return fields, nil
}

func (b *backend) newSigner(k signingKey, names []string) (*dkim.Signer, error) {
	header, body, _ := strings.Cut(b.Canonicalization, "/")
	return dkim.NewSigner(&dkim.SignOptions{
		Domain: k.domain, Selector: k.selector, Signer: k.key, HeaderKeys: names,
		HeaderCanonicalization: dkim.Canonicalization(header), BodyCanonicalization: dkim.Canonicalization(body),
	})
}
