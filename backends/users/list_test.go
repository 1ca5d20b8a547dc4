package users

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

const aVerifier = "SCRAM-SHA-256$4096:c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

var aHash = "$2b$10$" + strings.Repeat(".", bcryptDigits)

func TestParse(t *testing.T) {
	tests := []struct{ text, want string }{ // want: the users, or the error
		{"", ""},
		{"# ann bcrypt=x\n\n   # indented\n\t\n", ""},
		{"ann", "ann"},
		{"ann\r\nbob\r\n", "ann; bob"},
		{"  ann\tbcrypt=" + aHash + "  send-as=<>\n", "ann bcrypt=" + aHash + " send-as=<>"},
		{"ann bcrypt=" + strings.Replace(aHash, "2b", "2y", 1), "ann bcrypt=" + strings.Replace(aHash, "2b", "2y", 1)},
		{secretLine + "ann scram=" + aVerifier, "ann scram=" + aVerifier},
		{"ann scram=" + aVerifier + "\n" + secretLine, "ann scram=" + aVerifier},
		{"ann cert=" + strings.ToUpper(annsCert), "ann cert=" + annsCert},
		{"ann cert=AA:" + annsCert[2:], "ann cert=" + annsCert},
		{"ann send-as=a@x cert=" + annsCert + " send-as=@x", "ann cert=" + annsCert + " send-as=a@x send-as=@x"},
		{"\uff21nn@example.org", "Ann@example.org"}, // SASLprep
		{"a\u200bnn", "ann"},

		{"ann\nANN", `f:2: the user is on line 1 already`},
		{"ann@x.example\n\nann@X.example", `f:3: the user is on line 1 already`},
		{"ann cert=" + annsCert + "\nbob cert=" + annsCert, "f:2: cert: the certificate is on line 1 already"},
		{`"ann"@x`, `f:1: the name of a user may not begin with #, !, " or @`},
		{"@x", `f:1: the name of a user may not begin`},
		{"x@", `f:1: the name of a user may not begin`},
		{"a\u0007b", `f:1: the name of the user has a character that SASLprep`},
		{"a\xffb", `f:1: the name of the user has a character that SASLprep`},
		{"\u00ad", `f:1: the name of the user is empty`},
		{"ann secret", `f:1: a word without =; want bcrypt=, scram=, cert= or send-as=`},
		{"ann colour=red", `f:1: unknown field; want bcrypt=, scram=, cert= or send-as=`},
		{"ann Bcrypt=x", `f:1: unknown field`},

		{"ann bcrypt=secret", "f:1: bcrypt: no bcrypt hash"},
		{"ann bcrypt=" + aHash + "x", "f:1: bcrypt: no bcrypt hash"},
		{"ann bcrypt=" + strings.Replace(aHash, "2b", "2x", 1), "f:1: bcrypt: no bcrypt hash"},
		{"ann bcrypt=" + strings.Replace(aHash, "10", "03", 1), "f:1: bcrypt: cost 3 is not within 4 to 16"},
		{"ann bcrypt=" + strings.Replace(aHash, "10", "17", 1), "f:1: bcrypt: cost 17 is not within 4 to 16"},
		{"ann bcrypt=" + aHash + " bcrypt=" + aHash, "f:1: bcrypt: given twice"},

		{secretLine + "ann scram=" + aVerifier + " scram=" + aVerifier, "f:2: scram: given twice"},
		{"ann scram=" + aVerifier + "\nbob scram=" + aVerifier, `f:1: scram takes a line with !secret`},
		{secretLine + "ann scram=" + strings.Replace(aVerifier, "256", "1", 1), "f:2: scram: no verifier"},
		{secretLine + "ann scram=" + strings.Replace(aVerifier, "$", ":", 1), "f:2: scram: no verifier"},
		{secretLine + "ann scram=" + aVerifier + ":", "f:2: scram: no verifier"},
		{secretLine + "ann scram=" + strings.Replace(aVerifier, "c2FsdA==", "", 1), "f:2: scram: no verifier"},
		{secretLine + "ann scram=" + strings.Replace(aVerifier, "4096", "4095", 1), "f:2: scram: want at least 4096 iterations"},
		{secretLine + "ann scram=" + strings.Replace(aVerifier, "4096", "-1", 1), "f:2: scram: want at least 4096 iterations"},
		{secretLine + "ann scram=" + strings.Replace(aVerifier, "c2FsdA==", "c2FsdA", 1), "f:2: scram: the salt or a key is not base64"},
		{secretLine + "ann scram=" + strings.Replace(aVerifier, "AAAA", "", 1), "f:2: scram: a key that has not 32 octets"},

		{"ann cert=" + annsCert[1:], "f:1: cert: want the 64 hexadecimal digits"},
		{"ann send-as=example.org", `f:1: send-as: no domain`},
		{"ann send-as=", `f:1: send-as: `},

		{"!secret", "f:1: !secret wants the base64 of at least 16 octets"},
		{"!secret c2FsdA==\nann scram=" + aVerifier, "f:1: !secret wants the base64 of at least 16 octets"},
		{strings.TrimSpace(secretLine) + " x", "f:1: !secret wants"},
		{secretLine + secretLine, "f:2: a second !secret"},
		{"!include x", `f:1: a line with ! that is not "!secret BASE64"`},

		// All at once.
		{"ann x\nbob\ncarol x\nbob", "f:1: a word without =; want bcrypt=, scram=, cert= or send-as=\n" +
			"f:3: a word without =; want bcrypt=, scram=, cert= or send-as=\nf:4: the user is on line 2 already"},
	}
	for _, tt := range tests {
		l, err := parse("f", tt.text+"\n")
		if strings.HasPrefix(tt.want, "f:") {
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Count(err.Error(), "\n") != strings.Count(tt.want, "\n") {
				t.Errorf("%q: error %v, want %s", tt.text, err, tt.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
			continue
		}
		var got []string
		for _, u := range l.users {
			got = append(got, u.String())
		}
		if text := strings.Join(got, "; "); text != tt.want {
			t.Errorf("%q: got %s, want %s", tt.text, text, tt.want)
		}
	}
}

// Half a line may be a user without what follows, or another user.
func TestLineWithoutItsEndIsAFault(t *testing.T) {
	for _, text := range []string{"ann", "ann\nbob bcrypt=" + aHash, secretLine + "# comm"} {
		_, err := parse("f", text)
		want := fmt.Sprintf("f:%d: the line has no end", strings.Count(text, "\n")+1)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: error %v, want %s", text, err, want)
		}
	}
}

// A file that looks like another kind of users file, or whose words have lost
// their places, has no users, and its faults show none of its words: they are in
// the log.
func TestFaultsShowNoWords(t *testing.T) {
	const secret = "dG9wc2VjcmV0dG9wc2VjcmV0dG9wc2VjcmV0"
	for text, want := range map[string]string{
		"!secret=" + secret:                "a line with !",
		"!secret" + secret:                 "a line with !",
		"!secret\n" + secret + " bob":      "!secret wants",
		"!secret " + secret + " " + secret: "!secret wants",

		"ann hunter2":                 "a word without =",
		"ann hunter2=secret":          "unknown field",
		"hunter2 secret":              "a word without =",
		"hunter2\nhunter2":            "f:2: the user is on line 1 already",
		"ann " + secret + "==":        "unknown field",
		"ann scram " + aVerifier:      "a word without =",
		"ann " + aVerifier:            "unknown field",
		"ann scram=" + aVerifier[14:]: "scram: no verifier",
		"ann bcrypt=hunter2":          "bcrypt: no bcrypt hash",
		"ann send-as=hunter2":         "send-as: no domain",
		"ann cert=hunter2":            "cert: want the 64",
		"ann scram=SCRAM-SHA-256$hunter2:c2FsdA==$AAAA:BBBB": "scram: want at least 4096 iterations",

		aVerifier:                              "may not have =, $ or :",
		"ann\nscram=" + aVerifier + " bob":     "may not have =, $ or :",
		"bcrypt=" + aHash:                      "may not have =, $ or :",
		aHash:                                  "may not have =, $ or :",
		"ann:" + aHash:                         "may not have =, $ or :",
		"ann:" + aHash + ":Ann":                "may not have =, $ or :",
		"root:$6$salt$hash:19000:0:99999:7:::": "may not have =, $ or :",
	} {
		_, err := parse("f", text+"\n")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q in it", text, err, want)
			continue
		}
		for _, word := range []string{secret, aVerifier[14:], aHash, "hunter2", "root", "salt", "ann"} {
			if strings.Contains(err.Error(), word) {
				t.Errorf("%q: the error shows %q: %v", text, word, err)
			}
		}
	}
}

// What parses prints the same, as a whole and line by line, and setting and
// deleting a user changes that user alone.
func FuzzParse(f *testing.F) {
	f.Add("", "ann")
	f.Add("# comment\r\n\n"+secretLine+"ann@Example.org bcrypt="+aHash+" scram="+aVerifier+"\n", "ANN@example.org")
	f.Add("bob cert="+annsCert+" send-as=<> send-as=@example.org send-as=*\ncarol\n", "dave")
	f.Add("\uff21nn\n\u00df\n", "ann")
	f.Fuzz(func(t *testing.T, text, name string) {
		l, err := parse("f", text)
		if err != nil {
			return
		}
		if got := l.String(); got != text {
			t.Fatalf("%q prints as %q", text, got)
		}
		for _, u := range l.users {
			again, err := parseUser(strings.Fields(u.String()))
			if err != nil {
				t.Fatalf("%q prints as %q: %v", text, u, err)
			}
			again.line = u.line
			if got, want := fmt.Sprintf("%+v", *again), fmt.Sprintf("%+v", *u); got != want {
				t.Fatalf("%q prints as %q: got %s, want %s", text, u, got, want)
			}
		}

		u, err := newUser(name)
		if err != nil {
			return
		}
		others := func(l *list) (lines []string) {
			for _, other := range l.users {
				if other.key != u.key {
					lines = append(lines, other.String())
				}
			}
			return lines
		}
		want := others(l)
		l.set(u)
		l, err = parse("f", l.String())
		if err != nil || l.find(name) == nil || !reflect.DeepEqual(others(l), want) {
			t.Fatalf("%q with %q: error %v, users %q, want %q", text, name, err, l.users, want)
		}
		l.remove(l.find(name))
		l, err = parse("f", l.String())
		if err != nil || l.find(name) != nil || !reflect.DeepEqual(others(l), want) {
			t.Fatalf("%q without %q: error %v, users %q, want %q", text, name, err, l.users, want)
		}
	})
}
