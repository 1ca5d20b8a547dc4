package dkim

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/dnstest"
	"github.com/mailgw/mailgw/xforward"
)

// newSigner returns a backend with two keys for example.org, of which one is
// for all below it, too, and one for sub.example.org.
func newSigner(t *testing.T, change func(*Settings)) *backend {
	t.Helper()
	r, e := keys()
	rsaPath, edPath := keyFile(t, r), keyFile(t, e)
	z := dnstest.Zone{TXT: map[string][]string{
		"r._domainkey.example.org":     {record(r)},
		"e._domainkey.example.org":     {record(e)},
		"e._domainkey.sub.example.org": {record(e)},
	}}
	return newBackend(t, z, func(s *Settings) {
		s.Sign = []Sign{
			{Domain: "example.org", Selector: "r", Key: rsaPath},
			{Domain: "Example.org", Selector: "e", Key: edPath, Subdomains: true},
			{Domain: "sub.example.org", Selector: "e", Key: edPath},
		}
		if change != nil {
			change(s)
		}
	})
}

// signers returns the selectors and domains of the signatures in fields, which
// have to be DKIM-Signature fields.
func signers(t *testing.T, fields []string) (all []string) {
	t.Helper()
	for _, f := range fields {
		value, ok := strings.CutPrefix(f, "DKIM-Signature:")
		if !ok {
			t.Fatalf("%q is no signature", f)
		}
		tags := tagsOf(value)
		all = append(all, tags["s"]+" "+tags["d"])
	}
	return all
}

// Who may sign, and as whom.
func TestWhoSigns(t *testing.T) {
	local := backends.Session{HELO: "localhost"}
	forwarded := backends.Session{XForward: &xforward.Attrs{Addr: "192.0.2.1", Forwarded: true, Source: "REMOTE"}}
	forwardedLocal := backends.Session{XForward: &xforward.Attrs{Addr: "192.0.2.1", Forwarded: true, Source: "LOCAL"}}
	onlyIdent := backends.Session{XForward: &xforward.Attrs{Ident: "4hFXKL2cQWz9rNt"}}
	proxied := backends.Session{Client: &backends.Client{Source: "PROXY"}}
	forwardedByUser := user
	forwardedByUser.XForward = forwarded.XForward
	plain := user
	plain.User = "ann"
	other := user
	other.User = "eve@example.net"
	both := []string{"r example.org", "e example.org"}
	for _, test := range []struct {
		why          string
		internal     []string
		session      backends.Session
		sender, from string
		want         []string
	}{
		{"a stranger", nil, stranger, "ann@example.org", "ann@example.org", nil},
		{"a user", nil, user, "ann@example.org", "Ann <ann@EXAMPLE.org>", both},
		{"a user of another domain", nil, other, "eve@example.net", "ann@example.org", nil},
		{"a user who may send as that domain", nil, other, "ann@example.org", "ann@example.org", both},
		{"a user without a domain", nil, plain, "ann@example.org", "ann@example.org", both},
		{"a user without a domain, and no sender", nil, plain, "", "ann@example.org", nil},
		{"a domain without keys", nil, user, "ann@example.org", "ann@example.com", nil},
		{"a domain that ends alike", nil, user, "ann@example.org", "ann@an-example.org", nil},

		{"internal by address", []string{"192.0.2.1"}, stranger, "bounces@example.com", "ann@example.org", both},
		{"internal by network", []string{"2001:db8::/32", "192.0.2.0/24"}, stranger, "", "ann@example.org", both},
		{"internal by the address of the client", []string{"192.0.2.1"}, forwarded, "", "ann@example.org", both},
		{"another network", []string{"2001:db8::/32"}, stranger, "", "ann@example.org", nil},
		{"a local process", []string{"local"}, local, "", "ann@example.org", both},
		{"a local process that tells its queue id", []string{"local"}, onlyIdent, "", "ann@example.org", both},
		{"a local process, but not internal", []string{"0.0.0.0/0"}, local, "", "ann@example.org", nil},
		{"not local", []string{"local"}, stranger, "", "ann@example.org", nil},
		{"local to Postfix", []string{"local"}, forwardedLocal, "", "ann@example.org", both},
		{"a stranger to Postfix", []string{"local"}, forwarded, "", "ann@example.org", nil},
		{"a stranger to Postfix, which has logged in", nil, forwardedByUser, "ann@example.org", "ann@example.org", nil},
		{"unknown to the proxy", []string{"local", "0.0.0.0/0", "::/0"}, proxied, "", "ann@example.org", nil},
		{"everybody", []string{"all"}, proxied, "", "ann@example.org", both},

		{"a domain below", []string{"all"}, stranger, "", "ann@a.b.example.org", []string{"e example.org"}},
		{"a domain below with keys of its own", []string{"all"}, stranger, "", "ann@sub.example.org", []string{"e sub.example.org"}},
		{"several authors of one domain", []string{"all"}, stranger, "", "ann@example.org, bob@example.org", both},
		{"authors of several domains", []string{"all"}, stranger, "", "ann@example.org, bob@example.com", nil},
		{"no address", []string{"all"}, stranger, "", "ann", nil},
		{"no good address", []string{"all"}, stranger, "", "bob@ <ann@example.org>", nil},
	} {
		b := newSigner(t, func(s *Settings) { s.Internal, s.Verify = test.internal, false })
		o := deliver(t.Context(), b, test.session, test.sender, from(test.from))
		if got := signers(t, o.added); o.err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: got %+v, want %q", test.why, o, test.want)
		}
	}
}

var odd = strings.Join([]string{
	"Received: from a by b; Sat, 21 Nov 2026 15:00:00 +0000",
	"SUBJECT :\ttwo  spaces \r\n\t and a fold ",
	"To: bob@example.org,\r\n eve@example.org",
	"To: again@example.org",
	"From: =?utf-8?q?=C3=84nn?= <ann@example.org>",
	"X-Long: " + strings.Repeat("x", 900),
	"", "Hello. ", "\t", "\xe4\xff\x00", "", strings.Repeat("long ", 10000), "", "",
}, "\r\n")

// What is signed verifies, in each canonicalization, and however the message
// ends.
func TestSignatureVerifies(t *testing.T) {
	_, rest, _ := strings.Cut(odd, "From:")
	header, _, _ := strings.Cut("From:"+rest, "\r\n\r\n")
	for _, c := range []string{"relaxed/relaxed", "relaxed/simple", "simple/relaxed", "simple/simple"} {
		b := newSigner(t, func(s *Settings) { s.Canonicalization = c })
		for _, message := range []string{odd, strings.TrimRight(odd, "\r\n"), odd + "\r\n\r\n", header, header + "\r\n", header + "\r\n\r\n"} {
			o := deliver(t.Context(), b, user, "ann@example.org", message)
			if got := signers(t, o.added); len(got) != 2 {
				t.Fatalf("%s: %.100q: got %+v", c, message, o)
			}
			for _, added := range [][]string{o.added, append([]string{"X-Added: 1", "Sender: list@example.net"}, o.added...)} {
				whole := strings.Join(added, "\r\n") + "\r\n" + message
				o := deliver(t.Context(), b, stranger, "", whole)
				if len(o.added) != 1 || strings.Count(o.added[0], "dkim=pass") != 2 {
					t.Errorf("%s: %q: got %q", c, whole, o.added)
				}
			}
		}
	}
}

// Nobody can add a field that would be shown instead of the one that was
// signed.
func TestOversigned(t *testing.T) {
	b := newSigner(t, nil)
	o := deliver(t.Context(), b, user, "ann@example.org", from("ann@example.org"))
	whole := strings.Join(o.added, "\r\n") + "\r\n" + from("ann@example.org")
	for _, name := range Defaults.Oversign {
		o := deliver(t.Context(), b, stranger, "", name+": x\r\n"+whole)
		if len(o.added) != 1 || strings.Count(o.added[0], "dkim=fail") != 2 {
			t.Errorf("another %s: got %q", name, o.added)
		}
	}
}

// What cannot be signed as others read it goes on without a signature, and
// what cannot be read is no message.
func TestUnsigned(t *testing.T) {
	b := newSigner(t, nil)
	for _, message := range []string{
		strings.Replace(from("ann@example.org"), "\r\n\r\n", "\r\nno field\r\n\r\n", 1),
		strings.Repeat("To: x@example.org\r\n", 400) + from("ann@example.org"),
		from("ann@example.org") + strings.Repeat("\r\n", 100_000) + "end\r\n",
		"From: ann@example.org\r\n" + from("ann@example.org"),
	} {
		if o := deliver(t.Context(), b, user, "ann@example.org", message); o.err != nil || o.added != nil {
			t.Errorf("%.100q: got %+v", message, o)
		}
	}
	tx := &backends.DataContext{Session: user, Body: io.MultiReader(strings.NewReader(from("ann@example.org")), iotest.ErrReader(io.ErrUnexpectedEOF))}
	if _, err := backends.Run(t.Context(), b, tx, backends.Hooks{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want the error of the message", err)
	}
}

// Another program writes RSA keys in PKCS #1, or puts other things before a key.
func TestKeys(t *testing.T) {
	r, e := keys()
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs1 := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(r)}
	for _, test := range []struct {
		path, want string // the error
	}{
		{keyFile(t, r), ""},
		{keyFile(t, e), ""},
		{keyFile(t, small), ""},
		{pemFile(t, 0o640, pkcs1), ""},
		{pemFile(t, 0o644, pkcs1), "mode 0644 lets everybody at the key; want chmod o= "},
		{pemFile(t, 0o600, &pem.Block{Type: "CERTIFICATE", Bytes: pkcs1.Bytes}), "has no private key in PEM form"},
		{pemFile(t, 0o600, &pem.Block{Type: "RSA PRIVATE KEY", Bytes: []byte("x")}), "asn1: "},
		{keyFile(t, curve), "want an RSA or an Ed25519 key"},
		{t.TempDir(), "mode "},
		{"", "no such file"},
	} {
		_, err := readKey(test.path)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v, want %q", test.path, err, test.want)
		}
	}
}

// All faults are told at once, by their keys.
func TestFaults(t *testing.T) {
	_, err := New(Settings{
		Internal:         []string{"192.0.2.1", "example.org"},
		Sign:             []Sign{{}, {Domain: "a b", Selector: "x/y", Key: "nokey"}},
		Canonicalization: "relaxed",
		Headers:          []string{"from"},
		Oversign:         []string{"Subject", "From"},
		AuthservID:       "a b",
		DMARC:            "reject",
		Quarantine:       "spam",
		Resolver:         "192.0.2.53",
	})
	var got []string
	for _, line := range strings.Split(err.Error(), "\n") {
		key, _, _ := strings.Cut(line, ": ")
		got = append(got, key)
	}
	want := []string{
		"sign[0].domain", "sign[0].selector", "sign[0].key", "sign[1].domain", "sign[1].selector", "sign[1].key",
		"internal", "canonicalization", "oversign", "authserv_id", "dmarc", "quarantine", "resolver",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", err, want)
	}
	for _, names := range [][]string{{}, {"Subject"}, {"From", "a:b"}, {"From", ""}, {"From", strings.Repeat("x", 900)}} {
		if checkNames(nil, names) == nil {
			t.Errorf("%q may be signed", names)
		}
	}
	for _, network := range []string{"", "192.0.2.0/33", "::ffff:192.0.2.1", "::ffff:192.0.2.0/120"} {
		if _, err := parseClients([]string{network}); err == nil {
			t.Errorf("%q may be internal", network)
		}
	}
	if err := checkNames(Defaults.Headers, Defaults.Oversign); err != nil {
		t.Error(err)
	}
}

// Whatever a message has, no field is made of it that may not be added, and a
// field of ours is always known for one.
func FuzzFields(f *testing.F) {
	f.Add("x@example.org", "client.example.net", "From: a@b.example\r\nDKIM-Signature: v=1; d=x; s=y\r\n\r\n")
	f.Add("\"@;\\\" dkim=pass\"@é.example", "(", odd)
	f.Add("", "a\\\"; dkim=pass", "DKIM-Signature: d=\\\"; h=\r\n ;s=(\r\nFrom: \"(\r\n")
	f.Fuzz(func(t *testing.T, sender, helo, text string) {
		m, err := readMessage(strings.NewReader(text))
		if err != nil {
			t.Skip()
		}
		r := results{spf: spfResult{"pass", "", "smtp.mailfrom", sender}}
		for _, v := range append(m.values("DKIM-Signature"), sender, helo) {
			tags := tagsOf(v)
			r.signatures = append(r.signatures, dkimResult{"fail", v, v, tags})
		}
		for _, author := range append(authorsOf(m).domains, helo) {
			r.dmarc = append(r.dmarc, dmarcResult{"fail", author, "reject"})
		}
		field := r.field("mx.example.org")
		tx := &backends.DataContext{}
		if err := tx.AddField(0, field); err != nil {
			t.Fatal(err)
		}
		if strings.Count(field, ";") != len(r.signatures)+len(r.dmarc)+1 || strings.Count(field, "\"")%2 != 0 {
			t.Errorf("%q breaks out in %q", text, field)
		}
		if id := authservID(strings.TrimPrefix(field, resultsName+":")); id != "mx.example.org" {
			t.Errorf("%q: got the name %q", field, id)
		}
		authservID(text)
	})
}
