package gateway

import (
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/smtp"
)

func TestMostExactPatternDecides(t *testing.T) {
	all := []string{
		"*", "user@*", "@example.org", "user@example.org", "<>", "postmaster", `"a b"@example.org`,
		`"*"@example.org`, "postmaster@*", "@[192.0.2.1]", "jürgen@*", "@müller.example", "a@[IPv6:2001:DB8::1]",
	}
	p := patterns[string]{}
	for i := range all {
		// The order in which they stand does not matter.
		if err := p.add(all[len(all)-1-i], "test", all[len(all)-1-i]); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct{ address, want string }{
		// Exact address, domain, user, everything.
		{"user@example.org", "user@example.org"},
		{"other@example.org", "@example.org"},
		{"user@example.com", "user@*"},
		{"other@example.com", "*"},
		{"user@sub.example.org", "user@*"},
		{"other@sub.example.org", "*"},

		// Case.
		{"USER@EXAMPLE.ORG", "user@example.org"},
		{"Other@Example.Org", "@example.org"},
		{"JÜRGEN@example.com", "jürgen@*"},
		{"x@MÜLLER.example", "@müller.example"},
		{"a@[ipv6:2001:db8::1]", "a@[IPv6:2001:DB8::1]"},

		// Quotes.
		{`"user"@example.org`, "user@example.org"},
		{`"\u\ser"@example.org`, "user@example.org"},
		{`"A b"@example.org`, `"a b"@example.org`},
		{`"user@example.org"@example.com`, "*"},
		{`"x@y"@example.org`, "@example.org"},

		// A * in an address is nothing special.
		{"*@example.org", `"*"@example.org`},
		{`"*"@example.org`, `"*"@example.org`},
		{"*@example.com", "*"},
		{"user@*", "user@*"}, // no address that the dialogue lets through

		// Addresses without a domain.
		{"", "<>"},
		{"postmaster", "postmaster"},
		{"PostMaster", "postmaster"},
		{"postmaster@example.org", "@example.org"},
		{"postmaster@example.com", "postmaster@*"},
		{"user@[192.0.2.1]", "@[192.0.2.1]"},
	} {
		if got := p.lookup(test.address); got != test.want {
			t.Errorf("%q is decided by %q, want %q", test.address, got, test.want)
		}
	}
}

func TestAddressWithoutDomainMatchesUserAndEverything(t *testing.T) {
	p := patterns[string]{}
	p.add("*", "", "everything")
	for _, address := range []string{"", "postmaster"} {
		if got := p.lookup(address); got != "everything" {
			t.Errorf("%q: got %q, want the value of *", address, got)
		}
	}
	p.add("Postmaster@*", "", "user")
	if got := p.lookup("postmaster"); got != "user" {
		t.Errorf("postmaster: got %q, want the value of Postmaster@*", got)
	}
}

func TestNothingMatches(t *testing.T) {
	p := patterns[string]{}
	for _, text := range []string{"user@example.org", "@example.com", "postmaster@*"} {
		if err := p.add(text, "", text); err != nil {
			t.Fatal(err)
		}
	}
	for _, address := range []string{"", "user", "other@example.org", "user@sub.example.com"} {
		if got := p.lookup(address); got != "" {
			t.Errorf("%q is decided by %q, want no pattern", address, got)
		}
	}
}

func TestTieNamesTheOtherPattern(t *testing.T) {
	for _, test := range []struct{ one, other string }{
		{"@example.org", "*@example.org"},
		{"@example.org", "@EXAMPLE.org"},
		{"user@example.org", `"USER"@example.org`},
		{`"a b"@example.org`, `"a\ b"@example.org`},
		{"*", "*@*"},
		{"*", "@*"},
		{"user@*", "User@*"},
		{"postmaster", "Postmaster"},
		{"<>", "<>"},
	} {
		p := patterns[int]{}
		if err := p.add(test.one, "the first place", 1); err != nil {
			t.Fatal(err)
		}
		err := p.add(test.other, "the second place", 1)
		if err == nil || !strings.Contains(err.Error(), test.one) || !strings.Contains(err.Error(), "the first place") {
			t.Errorf("%s after %s: %v, want an error that names the first and its place", test.other, test.one, err)
		}
	}
	for _, test := range []struct{ one, other string }{
		{"postmaster", "postmaster@*"},
		{"*@example.org", `"*"@example.org`},
		{"user@*", `user@example.org`},
		{"@müller.example", "@xn--mller-kva.example"},
	} {
		p := patterns[int]{}
		if err := p.add(test.one, "", 1); err != nil {
			t.Fatal(err)
		}
		if err := p.add(test.other, "", 2); err != nil {
			t.Errorf("%s after %s: %v, want no tie", test.other, test.one, err)
		}
	}
}

func TestBadPattern(t *testing.T) {
	for pattern, want := range map[string]string{
		"":                          "no domain",
		"user":                      "no domain",
		"example.org":               "no domain",
		"@":                         "domain is empty",
		"user@":                     "domain is empty",
		"us*@example.org":           "a * stands for the whole",
		"**@example.org":            "a * stands for the whole",
		"user@*.example.org":        "a * stands for the whole",
		"@*.org":                    "a * stands for the whole",
		"@.example.org":             "empty label",
		"a b@example.org":           "character ' '",
		"<user@example.org>":        "character '<'",
		`"user@example.org`:         "unbalanced quotes",
		"@relay:user@example.org":   "a source route",
		"user@[192.0.2.300]":        "bad address literal",
		"user@example.org # remark": "character ' '",
		"\xff@example.org":          "neither US-ASCII nor UTF-8",
	} {
		err := patterns[int]{}.add(pattern, "", 1)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", pattern, err, want)
		}
	}
}

// FuzzPattern looks for an address that the patterns made of it do not match,
// and for a pattern of one address that is none.
func FuzzPattern(f *testing.F) {
	for _, address := range []string{"user@example.org", `"a\"*b"@[IPv6:::1]`, "@example.org", "user@*"} {
		f.Add(address)
	}
	f.Fuzz(func(t *testing.T, text string) {
		address, err := smtp.CheckMailbox(text, true)
		if p, patternErr := parsePattern(text); patternErr == nil && p.rank == oneAddress && p.domain != "" && err != nil {
			t.Fatalf("%q is a pattern of one address, and none: %v", text, err)
		}
		if err != nil {
			return
		}
		at := strings.LastIndexByte(address, '@')
		local, domain := address[:at], address[at:]
		if strings.Contains(local, "*") && local[0] != '"' {
			local = `"` + local + `"`
		}
		for _, text := range []string{local + domain, domain, "*" + domain, local + "@*", "*", "*@*"} {
			p := patterns[bool]{}
			if err := p.add(text, "", true); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			if !p.lookup(address) {
				t.Fatalf("%q does not match %q", text, address)
			}
		}
	})
}
