package dkim

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/backendtest"
	"github.com/mailgw/mailgw/internal/dnstest"
	"github.com/mailgw/mailgw/xforward"
)

// world is a DNS with domains of all kinds. Each d.example has the key s.
func world() dnstest.Zone {
	_, key := keys()
	z := dnstest.Zone{
		TXT: map[string][]string{
			"reject.example":            {"v=spf1 ip4:192.0.2.1 -all"},
			"_dmarc.reject.example":     {"v=DMARC1; p=reject; rua=mailto:x@example.net"},
			"_dmarc.strict.example":     {"v=DMARC1; p=reject; adkim=s; aspf=s"},
			"sub.strict.example":        {"v=spf1 ip4:192.0.2.1 -all"},
			"_dmarc.quarantine.example": {"v=DMARC1; p=quarantine; sp=none"},
			"_dmarc.own.none.example":   {"v=DMARC1; p=reject"},
			"_dmarc.none.example":       {"v=DMARC1; p=none"},
			"_dmarc.pct.example":        {"v=DMARC1; p=reject; pct=20"},
			"_dmarc.zero.example":       {"v=DMARC1; p=quarantine; pct=0"},
			"_dmarc.two.example":        {"v=DMARC1; p=reject", "v=DMARC1; p=none"},
			"_dmarc.other.example":      {"v=spf1 -all", "v=DMARC1; p=reject"},
			"_dmarc.broken.example":     {"v=DMARC1; p=perhaps"},
			"_dmarc.upper.example":      {"v=DMARC1; P=REJECT; SP=None"},
			"_dmarc.sloppy.example":     {"v = DMARC1 ;p= reject; adkim=relaxed; aspf=; fo=0,1; ri=0; rf=iodef; pct=100%; nonsense"},
			"_dmarc.version.example":    {"v=DMARC10; p=reject"},
			"_dmarc.badsub.example":     {"v=DMARC1; p=reject; sp=perhaps"},
			"_dmarc.co.uk":              {"v=DMARC1; p=reject"},
			"_dmarc.xn--bcher-kva.example": {
				"v=DMARC1; p=reject"},
			"soft.example":           {"v=spf1 ~all"},
			"helo.example":           {"v=spf1 ip4:192.0.2.1 -all"},
			"six.example":            {"v=spf1 ip6:2001:db8::/32 -all"},
			"loop.example":           {"v=spf1 include:loop.example -all"},
			"byname.example":         {"v=spf1 a:host.example -all"},
			"away.example":           {"v=spf1 include:servfail.example -all"},
			"_dmarc.away.example":    {"v=DMARC1; p=reject"},
			"_dmarc.keyless.example": {"v=DMARC1; p=reject"},
			"s._domainkey.revoked.example": {
				"v=DKIM1; k=ed25519; p="},
		},
		A: map[string][4]byte{"host.example": {192, 0, 2, 1}},
		Fails: map[string]bool{
			"servfail.example": true, "_dmarc.servfail.example": true, "s._domainkey.keyless.example": true,
		},
	}
	for _, domain := range []string{
		"reject.example", "sub.reject.example", "strict.example", "sub.strict.example", "quarantine.example", "a.quarantine.example", "none.example", "own.none.example",
		"pct.example", "other.example", "elsewhere.example", "evil.co.uk", "two.example", "xn--bcher-kva.example",
	} {
		z.TXT["s._domainkey."+domain] = []string{record(key)}
	}
	return z
}

func from(author string) string {
	return "From: " + author + "\r\nSubject: test\r\n\r\nHello.\r\n"
}

// The results are told as RFC 8601 has them, parted here by a bar and without
// what differs each time. Where DKIM is told, all of them are.
func TestResults(t *testing.T) {
	b := newBackend(t, world(), nil)
	for _, test := range []struct {
		why, sender, message, want string
	}{
		{"nothing speaks for it", "x@reject.example", from("x@nothing.example"),
			"dkim=none|spf=pass smtp.mailfrom=x@reject.example|dmarc=none header.from=nothing.example policy.dmarc=none"},

		// DKIM.
		{"aligned signature", "x@soft.example", signed(t, "reject.example", from("x@reject.example")),
			"dkim=pass header.a=ed25519-sha256 header.b=B header.d=reject.example header.s=s|spf=softfail smtp.mailfrom=x@soft.example|dmarc=pass header.from=reject.example policy.dmarc=reject"},
		{"changed body", "x@soft.example", signed(t, "reject.example", from("x@reject.example")) + "more\r\n",
			`dkim=fail reason="body hash did not verify" header.a=ed25519-sha256 header.b=B header.d=reject.example header.s=s|spf=softfail smtp.mailfrom=x@soft.example|dmarc=fail header.from=reject.example policy.dmarc=reject`},
		{"changed header", "x@soft.example", strings.Replace(signed(t, "reject.example", from("x@reject.example")), "Subject: test", "Subject: text", 1),
			`dkim=fail reason="signature did not verify" header.a=ed25519-sha256 header.b=B header.d=reject.example header.s=s|spf=softfail smtp.mailfrom=x@soft.example|dmarc=fail header.from=reject.example policy.dmarc=reject`},
		{"no key", "x@soft.example", signed(t, "nokey.example", from("x@nothing.example")),
			`dkim=permerror reason="no key for signature" header.a=ed25519-sha256 header.b=B header.d=nokey.example header.s=s|spf=softfail smtp.mailfrom=x@soft.example|dmarc=none header.from=nothing.example policy.dmarc=none`},
		{"revoked key", "x@soft.example", signed(t, "revoked.example", from("x@nothing.example")),
			`dkim=permerror reason="key revoked" header.a=ed25519-sha256 header.b=B header.d=revoked.example header.s=s|spf=softfail smtp.mailfrom=x@soft.example|dmarc=none header.from=nothing.example policy.dmarc=none`},
		{"key out of reach", "x@soft.example", signed(t, "keyless.example", from("x@keyless.example")),
			`dkim=temperror reason="key unavailable" header.a=ed25519-sha256 header.b=B header.d=keyless.example header.s=s|spf=softfail smtp.mailfrom=x@soft.example|dmarc=temperror header.from=keyless.example policy.dmarc=reject`},
		{"two signatures, one of them good", "x@soft.example",
			signed(t, "elsewhere.example", "DKIM-Signature: v=1; d=reject.example; s=\" ; dkim=pass; h=from; a=b\r\n"+from("x@reject.example")),
			"dkim=pass header.a=ed25519-sha256 header.b=B header.d=elsewhere.example header.s=s|" +
				`dkim=permerror reason="signature missing required tag" header.a=b header.d=reject.example header.s="?"|` +
				"spf=softfail smtp.mailfrom=x@soft.example|dmarc=fail header.from=reject.example policy.dmarc=reject"},
		{"nothing but a bad line after the header", "x@soft.example", strings.Replace(signed(t, "reject.example", from("x@reject.example")), "\r\n\r\n", "\r\nno field\r\n\r\n", 1),
			`dkim=permerror reason="no empty line follows the header" header.a=ed25519-sha256 header.b=B header.d=reject.example header.s=s|spf=softfail smtp.mailfrom=x@soft.example|dmarc=fail header.from=reject.example policy.dmarc=reject`},

		// Alignment.
		{"relaxed, below", "x@soft.example", signed(t, "sub.reject.example", from("x@reject.example")), "dmarc=pass header.from=reject.example policy.dmarc=reject"},
		{"relaxed, above", "x@soft.example", signed(t, "reject.example", from("x@a.b.reject.example")), "dmarc=pass header.from=a.b.reject.example policy.dmarc=reject"},
		{"strict, same", "x@soft.example", signed(t, "strict.example", from("x@STRICT.example")), "dmarc=pass header.from=strict.example policy.dmarc=reject"},
		{"strict, below", "x@sub.strict.example", signed(t, "sub.strict.example", from("x@strict.example")), "dmarc=fail header.from=strict.example policy.dmarc=reject"},
		{"by SPF", "x@reject.example", from("x@sub.reject.example"), "dmarc=pass header.from=sub.reject.example policy.dmarc=reject"},
		{"a public suffix is nobody's organization", "x@soft.example", signed(t, "evil.co.uk", from("x@victim.co.uk")), "dmarc=none header.from=victim.co.uk policy.dmarc=none"},
		{"A-labels and U-labels are the same", "x@soft.example", signed(t, "xn--bcher-kva.example", from("x@Bücher.example")), "dmarc=pass header.from=xn--bcher-kva.example policy.dmarc=reject"},

		// Policies.
		{"subdomain policy", "x@soft.example", from("x@a.quarantine.example"), "dmarc=fail header.from=a.quarantine.example policy.dmarc=none"},
		{"own policy of a subdomain", "x@soft.example", from("x@own.none.example"), "dmarc=fail header.from=own.none.example policy.dmarc=reject"},
		{"for a part only", "x@soft.example", from("x@pct.example"), "dmarc=fail header.from=pct.example policy.dmarc=quarantine"},
		{"for nothing", "x@soft.example", from("x@zero.example"), "dmarc=fail header.from=zero.example policy.dmarc=none"},
		{"two records are none", "x@soft.example", from("x@two.example"), "dmarc=none header.from=two.example policy.dmarc=none"},
		{"other records do not count", "x@soft.example", from("x@other.example"), "dmarc=fail header.from=other.example policy.dmarc=reject"},
		{"broken record", "x@soft.example", from("x@broken.example"), "dmarc=permerror header.from=broken.example policy.dmarc=none"},
		{"upper case", "x@soft.example", from("x@upper.example"), "dmarc=fail header.from=upper.example policy.dmarc=reject"},
		{"upper case, below", "x@soft.example", from("x@a.upper.example"), "dmarc=fail header.from=a.upper.example policy.dmarc=none"},
		{"errors in what has a default", "x@soft.example", from("x@sloppy.example"), "dmarc=fail header.from=sloppy.example policy.dmarc=reject"},
		{"another version", "x@soft.example", from("x@version.example"), "dmarc=none header.from=version.example policy.dmarc=none"},
		{"broken subdomain policy", "x@soft.example", from("x@badsub.example"), "dmarc=permerror header.from=badsub.example policy.dmarc=none"},
		{"policy out of reach", "x@soft.example", from("x@servfail.example"), "dmarc=temperror header.from=servfail.example"},

		// Authors.
		{"two authors", "x@reject.example", from("x@reject.example, y@strict.example"),
			"dmarc=pass header.from=reject.example policy.dmarc=reject|dmarc=fail header.from=strict.example policy.dmarc=reject"},
		{"two From fields", "x@soft.example", "From: x@nothing.example\r\n" + from("x@strict.example"),
			"dmarc=none header.from=nothing.example policy.dmarc=none|dmarc=fail header.from=strict.example policy.dmarc=reject"},
		{"an address for a name", "x@soft.example", from("boss@strict.example <x@nothing.example>"),
			"dmarc=fail header.from=strict.example policy.dmarc=reject|dmarc=none header.from=nothing.example policy.dmarc=none"},
		{"a quoted name", "x@soft.example", from(`"boss@strict.example" <x@nothing.example>`), "dmarc=none header.from=nothing.example policy.dmarc=none"},
		{"a folded name of a strange charset", "x@soft.example", from("=?klingon?q?boss?=\r\n\t<x@nothing.example>"), "dmarc=none header.from=nothing.example policy.dmarc=none"},
		{"no author", "x@soft.example", "Subject: test\r\n\r\n", "dmarc=permerror policy.dmarc=none"},
		{"too many authors", "x@soft.example", from("a@" + strings.Join(strings.Split("abcdefghijk", ""), ".example, a@") + ".example"), "dmarc=permerror policy.dmarc=reject"},

		// SPF.
		{"by name", "x@byname.example", from("x@nothing.example"), "spf=pass smtp.mailfrom=x@byname.example"},
		{"another network", "x@six.example", from("x@nothing.example"), "spf=fail smtp.mailfrom=x@six.example"},
		{"no record", "x@nothing.example", from("x@nothing.example"), "spf=none smtp.mailfrom=x@nothing.example"},
		{"a loop", "x@loop.example", from("x@nothing.example"), "spf=permerror smtp.mailfrom=x@loop.example"},
		{"out of reach", "x@away.example", from("x@away.example"), "spf=temperror smtp.mailfrom=x@away.example|dmarc=temperror header.from=away.example policy.dmarc=reject"},
		{"two @", `"x@reject.example"@six.example`, from("x@nothing.example"), `spf=fail smtp.mailfrom="?x@reject.example?@six.example"`},
		{"VERP", "x=y@reject.example", from("x@nothing.example"), `spf=pass smtp.mailfrom="x=y@reject.example"`},
		{"null sender", "", from("x@nothing.example"), "spf=none smtp.helo=client.example.net"},
	} {
		o := deliver(t.Context(), b, stranger, test.sender, test.message)
		if len(o.added) != 1 {
			t.Errorf("%s: got %+v", test.why, o)
			continue
		}
		got := strings.Split(o.added[0], ";\r\n\t")
		for i := range got {
			got[i] = signatureStart.ReplaceAllString(got[i], "header.b=B ")
		}
		want := strings.Split(test.want, "|")
		whole := strings.HasPrefix(test.want, "dkim=")
		if got[0] != "Authentication-Results: mx.example.org" || !containsInOrder(got, want) || whole && len(got) != len(want)+1 {
			t.Errorf("%s: got\n%q, want\n%q", test.why, got, want)
		}
		if o.removed != nil || o.routes != nil {
			t.Errorf("%s: got %+v", test.why, o)
		}
	}
}

var signatureStart = regexp.MustCompile(`header\.b=\S{8} `)

func containsInOrder(all, some []string) bool {
	for _, s := range all {
		if len(some) > 0 && s == some[0] {
			some = some[1:]
		}
	}
	return len(some) == 0
}

// What SPF takes for the client is the one that a proxy speaks for.
func TestSPFOfTheClient(t *testing.T) {
	b := newBackend(t, world(), nil)
	proxied := backends.Session{Peer: stranger.Peer, HELO: "proxy.example"}
	six := proxied
	six.XForward = &xforward.Attrs{Addr: "2001:db8::1", HELO: "helo.example", Forwarded: true}
	four := proxied
	four.Client = &backends.Client{Addr: netip.MustParseAddrPort("[::ffff:192.0.2.1]:1"), HELO: "helo.example"}
	unknown := proxied
	unknown.XForward = &xforward.Attrs{Forwarded: true}
	for _, test := range []struct {
		session      backends.Session
		sender, want string
	}{
		{six, "x@six.example", "spf=pass smtp.mailfrom=x@six.example"},
		{six, "", "spf=fail smtp.helo=helo.example"},
		{four, "", "spf=pass smtp.helo=helo.example"},
		{unknown, "x@reject.example", "spf=none smtp.mailfrom=x@reject.example"},
		{backends.Session{HELO: "helo.example"}, "", "spf=none smtp.helo=helo.example"},
	} {
		o := deliver(t.Context(), b, test.session, test.sender, from("x@nothing.example"))
		if len(o.added) != 1 || !strings.Contains(o.added[0], "\t"+test.want+";") {
			t.Errorf("%+v from %q: got %+v, want %s", test.session, test.sender, o, test.want)
		}
	}
}

// DMARC is enforced if it is to be, and only where all is known.
func TestEnforce(t *testing.T) {
	refused := backends.Status{Code: 550, Enhanced: "5.7.1"}
	later := backends.Status{Code: 451, Enhanced: "4.7.0"}
	diverted := map[int]string{0: "spam", 1: "spam"}
	authors := "a@a.example, a@b.example, a@c.example, a@d.example, a@e.example, a@f.example, a@g.example, a@h.example, a@i.example, a@j.example, a@k.example"
	b := newBackend(t, world(), func(s *Settings) { s.DMARC, s.Quarantine = "enforce", "spam" })
	open := newBackend(t, world(), func(s *Settings) { s.DMARC = "enforce" })
	for _, test := range []struct {
		message string
		status  backends.Status
		routes  map[int]string
	}{
		{from("x@nothing.example"), backends.Status{}, nil},
		{from("x@none.example"), backends.Status{}, nil},
		{from("x@reject.example"), refused, nil},
		{signed(t, "reject.example", from("x@reject.example")), backends.Status{}, nil},
		{from("x@quarantine.example"), backends.Status{}, diverted},
		{from("x@pct.example"), backends.Status{}, diverted},
		{from("x@quarantine.example, x@reject.example"), refused, nil}, // the strictest
		{from("x@servfail.example"), later, nil},
		{from("x@servfail.example, x@reject.example"), refused, nil},
		{signed(t, "keyless.example", from("x@keyless.example")), later, nil},
		{from("x@broken.example"), backends.Status{}, nil},
		{from(authors), refused, nil},
		{from(strings.Repeat("x@none.example, ", 2000) + "x@none.example"), refused, nil},
	} {
		o := deliver(t.Context(), b, stranger, "x@soft.example", test.message)
		if o.status.Code != test.status.Code || o.status.Enhanced != test.status.Enhanced || !maps.Equal(o.routes, test.routes) || o.status.IsZero() && len(o.added) != 1 {
			t.Errorf("%q: got %+v, want %v, routes %v", test.message, o, test.status, test.routes)
		}
		if o := deliver(t.Context(), open, stranger, "x@soft.example", test.message); o.status.Code != test.status.Code || o.routes != nil {
			t.Errorf("%q, without a route: got %+v, want %v", test.message, o, test.status)
		}
	}
	if b.MayEdit() != backends.EditHeader|backends.EditEnvelope || open.MayEdit() != backends.EditHeader {
		t.Errorf("may edit %v and %v", b.MayEdit(), open.MayEdit())
	}
	if b, open := backends.DiversionsOf(b), backends.DiversionsOf(open); !slices.Equal(b, []string{"spam"}) || open != nil {
		t.Errorf("divert to %q and %q", b, open)
	}
}

// However an address is written that some program may show for one of a domain,
// the policy of the domain holds.
func TestOddAuthorsAreFound(t *testing.T) {
	b := newBackend(t, world(), func(s *Settings) { s.DMARC = "enforce" })
	for _, author := range []string{
		"g: x@reject.example;", "<@evil.example:x@reject.example>", "x @ reject.example", "x@\r\n reject.example", "x@reject.example(c)",
		"x@reject\u3002example", "x@rejec\u00adt.example", "\xff <x@reject.example>", "\"open <x@reject.example>", "x@none.example,,x@reject.example",
		"x@(c)reject.example", "<x@(c(d))reject.example>", "x@reject(c).example", "x@reject . example", "x@reject\r\n\t.(c)example",
		"x@reject.example..", `x@"reject.example"`, `x@reject\.example`, "x@\x00reject.example", "x@reject.example\x00", "x(@reject.example",
	} {
		if o := deliver(t.Context(), b, stranger, "x@soft.example", from(author)); o.status.Code != 550 {
			t.Errorf("%q: got %+v", author, o)
		}
	}
	for _, message := range []string{
		"From eve@none.example Sat Nov 21 15:00:00 2026\r\n" + from("x@reject.example"),
		"Subject: test\r\nno field\r\n" + from("x@reject.example"),
		"From: x@none.example\r\nno field\r\n\tfolded\r\n" + strings.Repeat("x", 5000) + "\r\n" + from("x@reject.example"),
		" folded\r\nFrom: x@reject.example",
	} {
		if o := deliver(t.Context(), b, stranger, "x@soft.example", message); o.status.Code != 550 {
			t.Errorf("%.200q: got %+v", message, o)
		}
	}
	inBody := "From: x@none.example\r\nno field\r\n\r\n" + from("x@reject.example")
	if o := deliver(t.Context(), b, stranger, "x@soft.example", inBody); !o.status.IsZero() || len(o.added) != 1 {
		t.Errorf("%q: got %+v", inBody, o)
	}
}

// Who claims to be us is removed, and nobody else.
func TestForgedResultsAreRemoved(t *testing.T) {
	fields := []struct {
		field  string
		forged bool
	}{
		{"Authentication-Results: mx.example.org; dkim=pass", true},
		{"Authentication-Results: mx.example.net; dkim=pass", false},
		{"AUTHENTICATION-results :MX.Example.Org 1; none", true},
		{"Authentication-Results:\r\n\t(a (nested) \\) comment) mx.example.org\r\n ;dkim=pass", true},
		{`Authentication-Results: "mx.example\.org"; dkim=pass`, true},
		{"Authentication-Results: mx.example.org(c)/1; dkim=pass", true},
		{"Authentication-Results: mx.example.org", true},
		{"Authentication-Results: a.mx.example.org; dkim=pass", false},
		{"Authentication-Results: ; mx.example.org; dkim=pass", false},
		{"Authentication-Results: (mx.example.org) other.example; dkim=pass", false},
		{"X-Authentication-Results: mx.example.org; dkim=pass", false},
	}
	message, want := "", []int(nil)
	for i, f := range fields {
		message += f.field + "\r\n"
		if f.forged {
			want = append(want, i)
		}
	}
	message += from("x@nothing.example")
	b := newBackend(t, world(), nil)
	for _, s := range []backends.Session{stranger, user} {
		if o := deliver(t.Context(), b, s, "x@soft.example", message); !slices.Equal(o.removed, want) {
			t.Errorf("%+v: removed %v, want %v", s, o.removed, want)
		}
	}
	// An internal host may pass on what we have said before.
	b = newBackend(t, world(), func(s *Settings) { s.Internal = []string{"192.0.2.0/24"} })
	if o := deliver(t.Context(), b, stranger, "x@soft.example", message); o.removed != nil || o.added != nil {
		t.Errorf("internal: got %+v", o)
	}
	b = newBackend(t, world(), func(s *Settings) { s.Verify = false })
	if o := deliver(t.Context(), b, stranger, "x@soft.example", message); o.removed != nil || o.added != nil {
		t.Errorf("without verify: got %+v", o)
	}
}

// A stranger cannot make us work without bound.
func TestHostileSignatures(t *testing.T) {
	b := newBackend(t, world(), nil)
	many := strings.Repeat("DKIM-Signature: v=1; d=x.example\r\n", 100)
	greedy := "DKIM-Signature: v=1; a=ed25519-sha256; d=reject.example; s=s; bh=x; b=x; h=from" + strings.Repeat(":x", 100_000) + "\r\n" + strings.Repeat("x: y\r\n", 1000)
	long := "DKIM-Signature: v=1; a=rsa-sha256; d=" + strings.Repeat("é", 400_000) + "; s=s; bh=x; b=x; h=from\r\n"
	blank := signed(t, "reject.example", from("x@reject.example")+strings.Repeat(" \r\n", 100_000))
	for _, test := range []struct {
		message, want string
		times         int
	}{
		{many + from("x@nothing.example"), "dkim=permerror", 10},
		{greedy + from("x@nothing.example"), `dkim=permerror reason="too many fields are signed"`, 1},
		{long + from("x@nothing.example"), `dkim=permerror reason="no key for signature"`, 1},
		{blank, `dkim=permerror reason="more than 64 KiB of white space at a stretch"`, 1},
	} {
		o := deliver(t.Context(), b, stranger, "x@soft.example", test.message)
		if len(o.added) != 1 || strings.Count(o.added[0], test.want) != test.times {
			t.Errorf("%.200q: got %.2000q, want %d times %s", test.message, o.added, test.times, test.want)
		}
	}
}

// The end of the transaction ends the lookups, and is no result.
func TestLookupsEndWithTheTransaction(t *testing.T) {
	asked := make(chan string, 100)
	b := newBackend(t, dnstest.Zone{Asked: asked}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	o := deliver(ctx, b, stranger, "x@soft.example", signed(t, "reject.example", from("x@reject.example")))
	if !errors.Is(o.err, context.Canceled) {
		t.Errorf("got %+v, want that it was canceled", o)
	}
}

// What cannot be read is no result either.
func TestBrokenOffMessage(t *testing.T) {
	b := newBackend(t, world(), nil)
	message := signed(t, "reject.example", from("x@reject.example"))
	second := signed(t, "elsewhere.example", message)
	for _, m := range []string{message, second} {
		tx := &backends.DataContext{
			Session: stranger, Envelope: backends.Envelope{Recipients: []backends.Recipient{{Address: "bob@example.org"}}},
			Body: io.MultiReader(strings.NewReader(m), iotest.ErrReader(io.ErrUnexpectedEOF)),
		}
		if _, err := backends.Run(t.Context(), b, tx, backends.Hooks{}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v, want the error of the message", err)
		}
	}
}

func TestContract(t *testing.T) {
	rsa, _ := keys()
	sign := []Sign{{Domain: "example.net", Selector: "s", Key: keyFile(t, rsa)}}
	for name, b := range map[string]*backend{
		"verify": newBackend(t, world(), nil),
		"sign":   newBackend(t, world(), func(s *Settings) { s.Sign, s.Internal = sign, []string{"all"} }),
	} {
		t.Run(name, func(t *testing.T) {
			if err := backendtest.Test(b, backendtest.Options{}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A record that is too large for a datagram is had over TCP; one that is too
// large for any key is none.
func TestLargeRecords(t *testing.T) {
	b := newBackend(t, dnstest.Zone{TXT: map[string][]string{
		"large.example": {strings.Repeat("x", maxRecord)},
		"huge.example":  {strings.Repeat("x", maxRecord+1), "small"},
	}}, nil)
	for domain, want := range map[string][]string{"large.example": {strings.Repeat("x", maxRecord)}, "huge.example": {"small"}} {
		if got, err := b.dns.LookupTXT(t.Context(), domain); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %.100q, %v", domain, got, err)
		}
	}
}
