package smtp

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckMailbox(t *testing.T) {
	long := strings.Repeat("x", 300)
	tests := []struct {
		path string
		want string // if another than path
	}{
		{path: "a@b"},
		{path: "Some.Body+tag@mail.Example.org"},
		{path: "!#$%&'*+-/=?^_`{|}~@example.org"},
		{path: "1@2.3"},

		// More than RFC 5321 has, because such addresses exist.
		{path: "a..b.@example.org"},
		{path: ".@example.org"},
		{path: long + "@example.org"},
		{path: "a@under_score.example.org"},
		{path: "a@" + strings.Repeat("x", 64) + ".org"},

		// Source routes are dropped: RFC 5321, appendix C.
		{"@x:a@b", "a@b"},
		{"@x.example,@y.example:a@b", "a@b"},
		{`@x:"a:b@c"@d`, `"a:b@c"@d`},
		{"@x:a@[IPv6:::1]", "a@[IPv6:::1]"},

		// Quoted local parts are kept as they came.
		{path: `"a b"@c`},
		{path: `"a@b>,<c@d"@e`},
		{path: `"a\"b\\"@c`},
		{path: `"\a"@c`},
		{path: `""@c`},
		{path: `"@x:a"@b`},

		// Address literals: RFC 5321, section 4.1.3.
		{path: "a@[192.0.2.1]"},
		{path: "a@[IPv6:2001:db8::1]"},
		{path: "a@[ipv6:2001:DB8:0:0:0:0:0:1]"},
		{path: "a@[IPv6:::ffff:192.0.2.1]"},
		{path: "a@[x400:anything!]"},
		{path: `"a b"@[192.0.2.1]`},
	}
	for _, test := range tests {
		if test.want == "" {
			test.want = test.path
		}
		if got, err := CheckMailbox(test.path, false); got != test.want || err != nil {
			t.Errorf("CheckMailbox(%q) = %q, %v, want %q", test.path, got, err, test.want)
		}
	}
}

func TestCheckMailboxRefuses(t *testing.T) {
	tests := []struct{ path, err string }{
		// Parts that are missing. The null path and postmaster are for the
		// caller, since they are no mailbox everywhere.
		{"", "no domain"},
		{"postmaster", "no domain"},
		{"@", "source route without a mailbox"},
		{"a@", "domain is empty or longer than 255 octets"},
		{"@x:", "no domain"},
		{"@x:@y", "no local part"},

		// Local parts that want quotes.
		{"a b@c", `character ' ' in a local part that is not quoted`},
		{"a@b@c", `character '@' in a local part that is not quoted`},
		{"a,b@c", `character ',' in a local part that is not quoted`},
		{`a"b"@c`, `character '"' in a local part that is not quoted`},
		{`a\@b@c`, `character '\\' in a local part that is not quoted`},
		{"<a@b", `character '<' in a local part that is not quoted`},
		{"a(comment)@b", `character '(' in a local part that is not quoted`},

		// Quotes that end too early or too late.
		{`"@c`, "unbalanced quotes"},
		{`"a@c`, "unbalanced quotes"},
		{`"a\"@c`, "unbalanced quotes"},
		{`"a@c"`, "unbalanced quotes"},
		{`"a"b@c`, "text after the quotes"},
		{`"a""b"@c`, "text after the quotes"},

		// Domains.
		{"a@b> NOTIFY=NEVER", `character '>' in the domain`},
		{"a@b c", `character ' ' in the domain`},
		{"a@b.", "empty label in the domain"},
		{"a@.b", "empty label in the domain"},
		{"a@b..c", "empty label in the domain"},
		{"a@-b", "hyphen at an end of a label of the domain"},
		{"a@b-.c", "hyphen at an end of a label of the domain"},
		{"a@b/../c", `character '/' in the domain`},
		{"a@" + strings.Repeat("x.", 127) + "yy", "domain is empty or longer than 255 octets"},

		// Address literals.
		{"a@[]", "bad address literal"},
		{"a@[192.0.2.1", "bad address literal"},
		{"a@192.0.2.1]", `character ']' in the domain`},
		{"a@[192.0.2.1]x", "bad address literal"},
		{"a@[192.0.2]", "bad address literal"},
		{"a@[192.0.2.256]", "bad address literal"},
		{"a@[::1]", "bad address literal"},
		{"a@[IPv6:192.0.2.1]", "bad address literal"},
		{"a@[IPv6:fe80::1%eth0]", "bad address literal"},
		{"a@[IPv6:]", "bad address literal"},
		{"a@[x400:]", "bad address literal"},
		{"a@[x 400:y]", "bad address literal"},
		{"a@[x400:y z]", "bad address literal"},
		{"a@[x400:[y]]", "bad address literal"},
		{"a@[example.org]", "bad address literal"},

		// Source routes.
		{"@x", "source route without a mailbox"},
		{"@x,y:a@b", "bad source route"},
		{"@x,:a@b", "bad source route"},
		{"@:a@b", "bad source route"},
		{`@"x":a@b`, "bad source route"},
		{"@[IPv6:::1]:a@b", "bad source route"},
		{"@x:@y:a@b", `character '@' in a local part that is not quoted`},

		// What could end a line, in an address or in a log.
		{"a\x00@b", "control character in the address"},
		{"a@b\x7f", "control character in the address"},
		{"\"a\tb\"@c", "control character in the address"},
		{"\"a\\\nb\"@c", "control character in the address"},
		{"a\u0085@b", "control character in the address"},
		{"a@b\u2028", "control character in the address"},

		{"a\xff@b", "neither US-ASCII nor UTF-8"},
		{"\u00e9@b", ErrNeedsUTF8.Error()},
		{"a@\u00e9", ErrNeedsUTF8.Error()},
		{"@\u00e9:a@b", ErrNeedsUTF8.Error()},
	}
	for _, test := range tests {
		if got, err := CheckMailbox(test.path, false); got != "" || err == nil || err.Error() != test.err {
			t.Errorf("CheckMailbox(%q) = %q, %v, want %s", test.path, got, err, test.err)
		}
	}
}

// RFC 6531, section 3.3.
func TestCheckMailboxUTF8(t *testing.T) {
	for path, ok := range map[string]bool{
		"a@b":                        true,
		"\u00e9@b":                   true,
		"a@b\u00fccher.example":      true,
		"\"\u00e9 \\\u00e9\"@b":      true,
		"@\u00e9:\u00e9@b":           true,
		"\u7528\u6237@\u4f8b.\u5b50": true,

		// UTF-8 changes nothing for what is not letters.
		"a\xff@b":      false,
		"a\xc0\xaeb@c": false, // an overlong dot
		"a\u0085@b":    false,
		"a\u2029@b":    false,
		"\u00e9 a@b":   false,
		"a@[\u00e9]":   false,
		"a@[x:\u00e9]": false,
	} {
		got, err := CheckMailbox(path, true)
		if ok != (err == nil) || errors.Is(err, ErrNeedsUTF8) || got == "" && ok {
			t.Errorf("CheckMailbox(%q) = %q, %v", path, got, err)
		}
	}
}

func TestSplitMailbox(t *testing.T) {
	tests := []struct{ address, local, domain string }{
		{"a@b", "a", "b"},
		{"postmaster", "postmaster", ""},
		{"", "", ""},
		{`"a b"@c`, "a b", "c"},
		{`"a@b"@c`, "a@b", "c"},
		{`"\a\"\\"@c`, `a"\`, "c"},
		{`""@c`, "", "c"},
		{"\"\u00e9\\\u00e9\"@c", "\u00e9\u00e9", "c"},
		{"a@[IPv6:::1]", "a", "[IPv6:::1]"},
		{`"../../etc"@c`, "../../etc", "c"}, // for the caller to mind
	}
	for _, test := range tests {
		if local, domain := SplitMailbox(test.address); local != test.local || domain != test.domain {
			t.Errorf("SplitMailbox(%q) = %q, %q", test.address, local, domain)
		}
	}
}

// An address that was accepted is the end of what came, is accepted again,
// and has nothing in it that ends a line or a path.
func FuzzCheckMailbox(f *testing.F) {
	f.Fuzz(func(t *testing.T, path string) {
		address, err := CheckMailbox(path, true)
		if isPlain(path) && (checkLocal(path[:lastAt(path)]) != nil || checkName(path[lastAt(path)+1:]) != nil) {
			t.Errorf("%q is no plain mailbox", path)
		}
		if err != nil {
			if text := err.Error(); !IsASCII(text) || strings.ContainsFunc(text, isControl) {
				t.Errorf("CheckMailbox(%q): %q is no text for a reply", path, text)
			}
			return
		}
		if again, err := CheckMailbox(address, true); !strings.HasSuffix(path, address) || again != address || err != nil {
			t.Errorf("CheckMailbox(%q) = %q, then %q, %v", path, address, again, err)
		}
		if _, err := CheckMailbox(path, false); IsASCII(path) != (err == nil) || !IsASCII(path) && err != ErrNeedsUTF8 {
			t.Errorf("CheckMailbox(%q) without UTF-8: %v", path, err)
		}
		if cut, _, err := CutPath("TO:<"+address+"> X", "TO:"); cut != address || err != nil {
			t.Errorf("CutPath takes %q for %q, %v", address, cut, err)
		}
		local, domain := SplitMailbox(address)
		if domain == "" || local == "" && !strings.HasPrefix(address, `""@`) {
			t.Errorf("SplitMailbox(%q) = %q, %q", address, local, domain)
		}
	})
}

// Case is folded as a reader expects, but no letter becomes an ASCII one.
func TestFoldMailbox(t *testing.T) {
	for address, want := range map[string][2]string{
		"User@Example.ORG":           {"user", "example.org"},
		"PostMaster":                 {"postmaster", ""},
		`"A\ B"@x.example`:           {"a b", "x.example"},
		"J\u00dcRGEN@\u00c9.example": {"j\u00fcrgen", "\u00e9.example"},
		"\u212Aim@x.example":         {"\u212Aim", "x.example"},
		"\u0130@x.example":           {"\u0130", "x.example"},
	} {
		if local, domain := FoldMailbox(address); [2]string{local, domain} != want {
			t.Errorf("%q: got %q and %q, want %q", address, local, domain, want)
		}
	}
}
