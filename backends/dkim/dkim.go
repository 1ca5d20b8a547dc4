// Package dkim is a backend that signs the mail of its own domains with DKIM
// (RFC 6376, RFC 8463), and tells of the mail of strangers whether DKIM, SPF
// (RFC 7208) and DMARC (RFC 7489) speak for it, in a header field
// Authentication-Results (RFC 8601):
//
//	[[backend.dkim.settings.sign]]
//	domain = "example.org"
//	selector = "2026a"
//	key = "2026a.pem"
//
// A client is either one of our own, one that has logged in or that internal
// names, or a stranger. Mail of our own clients is signed if its From field has
// one domain and that has keys. A client that has logged in may sign only as the
// domain of its user's name or of its sender, so that no user speaks for another
// domain of this host. What has no key goes on as it is.
//
// Mail of strangers is never signed. It gets the field on top, and loses those
// that claim to be ours. With dmarc = "enforce" what the author's domain has refused
// gets 550 5.7.1, and if the DNS does not tell, 451 4.7.0. What is to be quarantined
// takes the route quarantine, if there is one.
//
// Nothing but header fields is changed, and messages pass through in pieces. Trouble
// of the DNS is "temperror" in the field. Trouble with a signature of our own is a
// failure of the backend. If on_failure lets mail pass then, it has no signature, or
// still has the fields that claim to be ours.
//
// The organizational domain comes from the public suffix list, which is part of the
// program. It does not look at ARC, sends no reports, and reads the keys only at
// the start. To go-msgauth v0.7.0 a good signature is none if another tag of it has
// "b=" in it, such as a copy of the header from February in z.
package dkim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/backends"
)

// Settings say what is signed, and what becomes of the mail of strangers.
type Settings struct {
	// Internal are the clients whose mail is our own, besides those that have
	// logged in: addresses and networks, "local" for processes on this
	// machine and clients that XFORWARD calls so, "all" for everybody.
	Internal []string `toml:"internal"`

	Sign []Sign `toml:"sign"`

	// Canonicalization is that of the header and that of the body, "simple"
	// or "relaxed" each.
	Canonicalization string `toml:"canonicalization"`

	// Headers are the fields to sign as far as they are there. Oversign are
	// those of which, besides, none may be added later.
	Headers  []string `toml:"headers"`
	Oversign []string `toml:"oversign"`

	// Verify says that mail of strangers gets a field
	// Authentication-Results.
	Verify bool `toml:"verify"`

	// AuthservID is the name in these fields: RFC 8601, section 2.5. If it is
	// empty, it is that of the machine.
	AuthservID string `toml:"authserv_id"`

	// DMARC is "report", or "enforce" to do what the domains of authors ask
	// for. Quarantine is the route of what is to be quarantined; without one
	// it goes on.
	DMARC      string `toml:"dmarc"`
	Quarantine string `toml:"quarantine"`

	// Resolver is HOST:PORT of the DNS server that is asked. If it is empty,
	// it is the system's.
	Resolver string `toml:"resolver"`
}

// Defaults are the Settings that hold for keys that are not given. Nothing is
// signed.
var Defaults = Settings{
	Canonicalization: "relaxed/relaxed",
	// What mailing lists may add without harm.
	Headers: []string{"Sender", "List-Id", "List-Post", "List-Unsubscribe", "List-Unsubscribe-Post"},
	// What tells people and programs how to read a message.
	Oversign: []string{
		"From", "Reply-To", "To", "Cc", "Subject", "Date", "Message-ID", "In-Reply-To", "References",
		"MIME-Version", "Content-Type", "Content-Transfer-Encoding",
	},
	Verify: true,
	DMARC:  "report",
}

// New returns a backend that signs and verifies.
func New(s Settings) (backends.Backend, error) {
	b := &backend{Settings: s, dns: newResolver(s.Resolver)}
	var faults []error
	fault := func(key string, err error) {
		faults = append(faults, backends.SettingError{Key: key, Err: err})
	}
	for i, sign := range s.Sign {
		b.keys = append(b.keys, newSigningKey(sign, func(key string, err error) {
			fault(fmt.Sprintf("sign[%d].%s", i, key), err)
		}))
	}
	var err error
	if b.internal, err = parseClients(s.Internal); err != nil {
		fault("internal", err)
	}
	if header, body, _ := strings.Cut(s.Canonicalization, "/"); !isCanonical(header) || !isCanonical(body) {
		fault("canonicalization", fmt.Errorf(`%q, want "relaxed/relaxed", or "simple" for one of them`, s.Canonicalization))
	}
	if err := checkNames(s.Headers, s.Oversign); err != nil {
		fault("oversign", err)
	}
	if s.AuthservID == "" {
		b.AuthservID, _ = backends.Hostname()
	}
	if !isDomain(b.AuthservID) {
		fault("authserv_id", fmt.Errorf("%q is no name of a host", b.AuthservID))
	}
	if s.DMARC != "report" && s.DMARC != "enforce" {
		fault("dmarc", fmt.Errorf(`%q is neither "report" nor "enforce"`, s.DMARC))
	}
	if s.Quarantine != "" && s.DMARC != "enforce" {
		fault("quarantine", errors.New(`is for dmarc = "enforce"`))
	}
	if _, _, err := net.SplitHostPort(s.Resolver); s.Resolver != "" && err != nil {
		fault("resolver", fmt.Errorf("%q is not of the form HOST:PORT", s.Resolver))
	}
	if faults == nil {
		b.tell()
	}
	return b, errors.Join(faults...)
}

func isCanonical(c string) bool { return c == "simple" || c == "relaxed" }

// checkNames checks the names of the fields to sign. They stand in one line, and
// each of them twice if its field is there.
func checkNames(headers, oversign []string) error {
	all := slices.Concat(headers, oversign)
	seen := map[string]bool{}
	length := 0
	for _, name := range all {
		lower := strings.ToLower(name)
		switch {
		case strings.Trim(lower, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || name == "":
			return fmt.Errorf("%q is no name of a header field", name)
		case seen[lower]:
			return fmt.Errorf("%s is there twice, perhaps in headers", name)
		}
		seen[lower] = true
		length += 2 * (len(name) + 1)
	}
	switch {
	case !seen["from"]:
		return errors.New("has no From: RFC 6376, section 5.4")
	case length > maxNames:
		return errors.New("too many names, with those of headers")
	}
	return nil
}

// tell logs what the DNS has to have for the keys.
func (b *backend) tell() {
	for _, k := range b.keys {
		slog.Info("signs", "domain", k.domain, "name", k.selector+"._domainkey."+k.domain, "record", record(k.key))
	}
}

type backend struct {
	Settings
	internal clients
	keys     []signingKey
	dns      *resolver
}

// MayEdit has the envelope for the quarantine.
func (b *backend) MayEdit() backends.EditKinds {
	if b.Quarantine != "" {
		return backends.EditHeader | backends.EditEnvelope
	}
	return backends.EditHeader
}

// DivertsTo has the quarantine, if there is one.
func (b *backend) DivertsTo() []string {
	if b.Quarantine == "" {
		return nil
	}
	return []string{b.Quarantine}
}

// Needs has the DNS, and the keys, which are read at the start.
func (b *backend) Needs() []string {
	needs := []string{"connects to the DNS"}
	for _, s := range b.Sign {
		needs = append(needs, "reads "+s.Key)
	}
	return needs
}

// Deliver signs the mail of our own clients, and verifies that of strangers.
func (b *backend) Deliver(ctx context.Context, tx *backends.DataContext) error {
	m, err := readMessage(tx.Body)
	if err != nil {
		return err
	}
	internal := b.internal.has(&tx.Session)
	if b.Verify && !internal {
		if err := b.removeForged(tx, m); err != nil {
			return err
		}
	}
	user, _ := tx.Session.ClientUser()
	switch {
	case internal || user != "":
		return b.sign(ctx, tx, m)
	case b.Verify:
		return b.verify(ctx, tx, m)
	}
	return nil
}
