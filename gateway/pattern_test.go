package gateway

import "testing"

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
	for _, text := range []string{"user@example.org", "@example.com", "postmaster@*", `""@*`} {
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
	p := patterns[int]{}
	if err := p.add("@example.org", "the first place", 1); err != nil {
		t.Fatal(err)
	}
	err := p.add("*@Example.ORG", "the second place", 1)
	if want := "means the same as @example.org in the first place"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := p.add("user@example.org", "", 2); err != nil {
		t.Errorf("got %v for a more exact pattern, want no tie", err)
	}
}
