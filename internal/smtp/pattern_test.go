package smtp

import (
	"slices"
	"strings"
	"testing"
)

func TestPatternMatches(t *testing.T) {
	for _, test := range []struct {
		pattern  string
		matching []string
		others   []string
	}{
		{"user@example.org",
			[]string{"user@example.org", "USER@Example.Org", `"user"@example.org`, `"\u\ser"@example.org`},
			[]string{"other@example.org", "user@example.com", "user@sub.example.org", "user", ""}},
		{"@example.org",
			[]string{"user@example.org", "postmaster@example.org", `"x@y"@example.org`, `""@example.org`, "*@example.org"},
			[]string{"user@sub.example.org", `"user@example.org"@example.com`, "postmaster", ""}},
		{"user@*",
			[]string{"user@example.org", "USER@[192.0.2.1]", "user"},
			[]string{"other@example.org", ""}},
		{"*", []string{"user@example.org", "postmaster", ""}, nil},
		{"postmaster", []string{"postmaster", "PostMaster"}, []string{"postmaster@example.org", ""}},
		{"<>", []string{""}, []string{"postmaster", `""@example.org`}},

		// The empty local part is not the null sender.
		{`""@*`, []string{`""@example.org`}, []string{"", "user@example.org"}},
		{`""@example.org`, []string{`""@example.org`}, []string{"", "user@example.org"}},

		// A * in quotes is nothing special.
		{`"*"@example.org`, []string{"*@example.org", `"\*"@example.org`}, []string{"user@example.org"}},

		{"@[IPv6:2001:DB8::1]", []string{"user@[ipv6:2001:db8::1]"}, []string{"user@[IPv6:2001:db8::2]"}},
		{"jürgen@müller.example", []string{"JÜRGEN@MÜLLER.example"}, []string{"jürgen@xn--mller-kva.example"}},
	} {
		p, err := ParsePattern(test.pattern)
		if err != nil {
			t.Errorf("%s: %v", test.pattern, err)
		}
		for _, address := range test.matching {
			if !p.Matches(address) {
				t.Errorf("%s does not match %q", test.pattern, address)
			}
		}
		for _, address := range test.others {
			if p.Matches(address) {
				t.Errorf("%s matches %q", test.pattern, address)
			}
		}
	}
}

func TestPatternsOfOneMeaningAreEqual(t *testing.T) {
	for _, test := range []struct {
		one, other string
		equal      bool
	}{
		{"@example.org", "*@example.org", true},
		{"@example.org", "@EXAMPLE.org", true},
		{"user@example.org", `"USER"@example.org`, true},
		{`"a b"@example.org`, `"a\ b"@example.org`, true},
		{"*", "*@*", true},
		{"*", "@*", true},
		{"user@*", "User@*", true},
		{"postmaster", "Postmaster", true},
		{"<>", "<>", true},

		{"postmaster", "postmaster@*", false},
		{"*@example.org", `"*"@example.org`, false},
		{"user@*", `user@example.org`, false},
		{"<>", `""@*`, false},
		{"@example.org", `""@example.org`, false},
		{"@müller.example", "@xn--mller-kva.example", false},
	} {
		one, err1 := ParsePattern(test.one)
		other, err2 := ParsePattern(test.other)
		if err1 != nil || err2 != nil || (one == other) != test.equal {
			t.Errorf("%s is %v, %v, and %s is %v, %v; want equal: %v", test.one, one, err1, test.other, other, err2, test.equal)
		}
	}
}

func TestPatternsAreOrderedByHowExactTheyAre(t *testing.T) {
	want := []string{"<>", "postmaster", "z@example.com", "a@example.org", "b@example.org", "@example.com", "@example.org", "a@*", "b@*", "*"}
	text := map[Pattern]string{}
	var patterns []Pattern
	for _, w := range slices.Backward(want) {
		p, err := ParsePattern(w)
		if err != nil {
			t.Fatal(err)
		}
		text[p] = w
		patterns = append(patterns, p)
	}
	slices.SortFunc(patterns, Pattern.Compare)
	for i, p := range patterns {
		if text[p] != want[i] {
			t.Errorf("%d is %s, want %s", i, text[p], want[i])
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
		if p, err := ParsePattern(pattern); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v, want %q", pattern, p, err, want)
		}
	}
}

// FuzzPattern looks for an address that the patterns made of it do not match,
// and for a pattern of one address that is none.
func FuzzPattern(f *testing.F) {
	for _, address := range []string{"user@example.org", `"a\"*b"@[IPv6:::1]`, `""@example.org`, "@example.org", "user@*"} {
		f.Add(address)
	}
	f.Fuzz(func(t *testing.T, text string) {
		address, err := CheckMailbox(text, true)
		if p, patternErr := ParsePattern(text); patternErr == nil && p.rank == oneAddress && p.domain != "" && err != nil {
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
			p, err := ParsePattern(text)
			if err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			if !p.Matches(address) {
				t.Fatalf("%q does not match %q", text, address)
			}
			if p.rank != everything && p.Matches("") {
				t.Fatalf("%q matches the null sender", text)
			}
		}
	})
}
