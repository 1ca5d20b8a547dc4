package smtp

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestDSNParameters(t *testing.T) {
	ascii := func(v string) error { return CheckORcpt(v, false) }
	unicode := func(v string) error { return CheckORcpt(v, true) }
	tests := []struct {
		name    string
		check   func(string) error
		good    []string
		refused []string
	}{
		{
			"RET", CheckRet, // RFC 3461, section 4.3
			[]string{"FULL", "HDRS", "full", "Hdrs"},
			[]string{"", "NONE", "FULL,HDRS", "HDRS ", "HDR\u017f"},
		},
		{
			"ENVID", CheckEnvID, // RFC 3461, section 4.4
			[]string{"QQ314159", "a=b", "a+20b+2Bc+2bd", "+3D", strings.Repeat("x", 100)},
			[]string{
				"", strings.Repeat("x", 101), "a b", "a\x7f", "\u00e9",
				// What looks like xtext and is not.
				"a+", "a+2", "a+2G", "a+ 20", "a++20", "a+-1", "a+0x",
				// What decodes to more than printable US-ASCII would be a
				// line of its own, or worse, in the report.
				"a+0D+0AX", "+00", "+7F", "+C3+A9", "+09",
			},
		},
		{
			"NOTIFY", CheckNotify, // RFC 3461, section 4.1
			[]string{
				"NEVER", "never", "SUCCESS", "FAILURE", "DELAY",
				"SUCCESS,FAILURE,DELAY", "delay,Success", "DELAY,DELAY",
			},
			[]string{
				"", ",", "SUCCESS,", ",SUCCESS", "SUCCESS,,DELAY", "SUCCESS, DELAY",
				"NEVER,SUCCESS", "SUCCESS,NEVER", "NEVER,NEVER", "ALWAYS", "\u017fUCCESS",
			},
		},
		{
			"ORCPT", ascii, // RFC 3461, section 4.2: not only mailboxes
			[]string{
				"rfc822;a@b", "RFC822;a+2Bb@c", "rfc822;a=b@c", "rfc822;Bob", "rfc822;a;b",
				"x400;/G=Bob/S=Builder/+20", "rfc822;" + strings.Repeat("x", 493),
				"rfc822;+C3+BCnn@b", // as Postfix sends it
			},
			[]string{
				"", ";", "a@b", "rfc822", "rfc822;", ";a@b", "rfc 822;a@b", "\u00e9;a@b",
				"rfc822;a b", "rfc822;a+b@c", "rfc822;a+0Ab@c", "rfc822;\u00e9@b",
				"rfc822;+FC@b", "rfc822;+C2+85@b", "rfc822;+E2+80+A8@b",
				"rfc822;" + strings.Repeat("x", 494),
			},
		},
		{
			"ORCPT of UTF-8 in US-ASCII", ascii, // RFC 6533, section 3
			[]string{
				"utf-8;a@b", "UTF-8;a@b", `utf-8;\x{E9}@b`, `utf-8;\x{5C}\x{2b}\x{20}@b`, `utf-8;\x{1F4E7}@b`,
				"utf-8;a+b@c", "utf-8;a=b@c",
			},
			[]string{
				"utf-8;", "utf-8;\u00e9@b", `utf-8;a\b`, `utf-8;\x`, `utf-8;\x{`, `utf-8;\x{}`, `utf-8;\x{E9`,
				`utf-8;\x{EG}`, `utf-8;\X{E9}`, `utf-8;\x{-1}`, "utf-8;a b", "utf-8;a\x00b",
				// No character, or one that ends a line.
				`utf-8;\x{D800}`, `utf-8;\x{110000}`, `utf-8;\x{FFFFFFFFFF}`, `utf-8;\x{0A}`, `utf-8;\x{85}`, `utf-8;\x{2028}`,
			},
		},
		{
			"ORCPT of UTF-8", unicode, // RFC 6533, section 3
			[]string{"utf-8;\u00e9@b", "utf-8;\\x{E9}\u00e9@b", "utf-8;\U0001f4e7"},
			[]string{"utf-8;\xe9@b", "utf-8;\xc0\xae", "utf-8;\u0085", "utf-8;\u00e9\\", "rfc822;\u00e9@b"},
		},
	}
	for _, test := range tests {
		for _, v := range test.good {
			if err := test.check(v); err != nil {
				t.Errorf("%s=%s: %v", test.name, v, err)
			}
		}
		for _, v := range test.refused {
			if err := test.check(v); err == nil {
				t.Errorf("%s=%q was let through", test.name, v)
			}
		}
	}

	// The reply to this one is another: RFC 6531, section 3.5.
	if err := CheckORcpt("utf-8;\u00e9@b", false); err != ErrNeedsUTF8 {
		t.Errorf("ORCPT without SMTPUTF8: %v", err)
	}
}

// A parameter that is taken can be written into a command again, and is bounded.
func FuzzParameters(f *testing.F) {
	f.Fuzz(func(t *testing.T, v string) {
		for name, check := range map[string]func(string) error{
			"RET": CheckRet, "ENVID": CheckEnvID, "NOTIFY": CheckNotify, "AUTH": CheckAuth,
			"ORCPT":          func(v string) error { return CheckORcpt(v, false) },
			"ORCPT SMTPUTF8": func(v string) error { return CheckORcpt(v, true) },
		} {
			err := check(v)
			if err != nil {
				if text := err.Error(); !IsASCII(text) || strings.ContainsFunc(text, unicode.IsControl) || len(text) > 400 {
					t.Errorf("%s=%q: %q is no text for a reply", name, v, text)
				}
				continue
			}
			utf8OK := name == "ORCPT SMTPUTF8" && utf8.ValidString(v)
			if v == "" || strings.ContainsFunc(v, isControl) || strings.ContainsFunc(v, isBlank) || !IsASCII(v) && !utf8OK {
				t.Errorf("%s=%q is taken", name, v)
			}
		}
	})
}
