package maildir

import (
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

func TestPaths(t *testing.T) {
	long := strings.Repeat("x", 255)
	tests := []struct{ template, address, want string }{
		{"/m/{domain}/{user}", "ann@example.org", "/m/example.org/ann"},
		{"/m/{domain}/{user}", "Ann@EXAMPLE.org", "/m/example.org/ann"},
		{"/m/{domain}/{user}", "ann+news@example.org", "/m/example.org/ann"},
		{"/m/{domain}/{user}", "ann+@example.org", "/m/example.org/ann"},
		{"/m/{domain}/{user}", "+news@example.org", "/m/example.org/+news"},
		{"/m/{domain}/{user}", "ann@[192.0.2.1]", "/m/%5B192.0.2.1%5D/ann"},
		{"/m/{domain}/{user}", "postmaster", "/m/gateway.example.org/postmaster"},
		{"/m/{domain}/{user}/Maildir", "ann@example.org", "/m/example.org/ann/Maildir"},
		{"/m/{user}", "ann@example.org", "/m/ann"},
		{"/m/{address}", "ann+news@example.org", "/m/ann@example.org"},
		{"/m/all", "ann@example.org", "/m/all"},
		{"/m/../n/./{user}/", "ann@example.org", "/n/ann"},

		// Without a detail its component is left out.
		{"/m/{user}/{detail}", "ann@example.org", "/m/ann"},
		{"/m/{user}/{detail}", "ann+news@example.org", "/m/ann/news"},
		{"/m/{user}/.{detail}", "ann@example.org", "/m/ann"},
		{"/m/{user}/.{detail}", "ann+a.b+c@example.org", "/m/ann/.a.b+c"},
		{"/m/{detail}", "ann@example.org", "/m"},

		// A detail is never inside of the mailbox without it.
		{"/m/{user}/{detail}", "ann+new@example.org", "/m/ann/%6Eew"},
		{"/m/{user}/{detail}", "ann+CUR@example.org", "/m/ann/%63ur"},
		{"/m/{user}/t{detail}", "ann+mp@example.org", "/m/ann/%74mp"},
		{"/m/{user}/.{detail}", "ann+new@example.org", "/m/ann/.new"},

		// Hostile local parts stay below the base.
		{"/m/{user}", `"../../etc"@example.org`, "/m/%2E.%2F..%2Fetc"},
		{"/m/{user}", `..@example.org`, "/m/%2E."},
		{"/m/{user}", `.@example.org`, "/m/%2E"},
		{"/m/{user}", `.ssh@example.org`, "/m/%2Essh"},
		{"/m/{user}", `a/b@example.org`, "/m/a%2Fb"},
		{"/m/{user}", `a%2Fb@example.org`, "/m/a%252fb"},
		{"/m/{user}", `"a b"@example.org`, "/m/a%20b"},
		{"/m/{user}", `"ann"@example.org`, "/m/ann"},
		{"/m/{user}", `"a@b"@example.org`, "/m/a%40b"},
		{"/m/{user}/.{detail}", `"ann+../x"@example.org`, "/m/ann/.%2E.%2Fx"},
		{"/m/{domain}", `ann@[x:../../etc]`, "/m/%5Bx%3A..%2F..%2Fetc%5D"},
		{"/m/{user}", "Ann.M\u00dcLLER@example.org", "/m/ann.m\u00fcller"},
		{"/m/{user}", "a\u00adb@example.org", "/m/a%C2%ADb"},
		{"/m/{user}", long + "@example.org", "/m/" + long},

		// There is no mailbox.
		{"/m/{user}", `""@example.org`, ""},
		{"/m/{user}", "a\x00b@example.org", ""},
		{"/m/{user}", "\"a\r\nb\"@example.org", ""},
		{"/m/{user}", "a\xffb@example.org", ""},
		{"/m/{user}", "ann@", ""},
		{"/m/{user}", "@example.org", ""},
		{"/m/{user}", "", ""},
		{"/m/{user}", long + "x@example.org", ""},
		{"/m/{user}", strings.Repeat(".", 254) + "@example.org", ""},
	}
	for _, tt := range tests {
		b := mustNew(t, Settings{Path: tt.template, RecipientDelimiter: "+", Mode: 0o600, DirMode: 0o700, Hostname: "gateway.example.org"}).(*backend)
		path, err := b.path(tt.address)
		got := filepath.Join(b.template.base, path)
		switch {
		case tt.want == "" && backends.StatusOf(err).Enhanced != "5.1.3":
			t.Errorf("%s, %q: got %q, %v, want 5.1.3", tt.template, tt.address, got, err)
		case tt.want != "" && (err != nil || got != tt.want):
			t.Errorf("%s, %q: got %q, %v, want %q", tt.template, tt.address, got, err, tt.want)
		}
	}
}

func TestRecipientDelimiters(t *testing.T) {
	tests := []struct {
		delimiters string
		address    string
		want       mailboxName
	}{
		{"+", "a+b+c@d", mailboxName{"a", "b+c", "d"}},
		{"+", "++b@d", mailboxName{"+", "b", "d"}},
		{"+-", "a-b+c@d", mailboxName{"a", "b+c", "d"}},
		{"", "a+b@d", mailboxName{"a+b", "", "d"}},
		{"+", `"a b+c"@d`, mailboxName{"a b", "c", "d"}},
		{"+", `""@d`, mailboxName{"", "", "d"}},
	}
	for _, tt := range tests {
		if got := splitAddress(tt.address, tt.delimiters); got != tt.want {
			t.Errorf("%q, %q: got %+v, want %+v", tt.delimiters, tt.address, got, tt.want)
		}
	}
}

// Whatever an address is, its path stays below the base, fits, is in no other
// mailbox, and gives user, detail and domain back, so that no other mailbox
// has it.
func FuzzPath(f *testing.F) {
	for _, address := range []string{
		"ann+news@example.org", `"../../etc/passwd"@example.org`, "a%2Fb@[IPv6:::1]", "Stra\u00dfe@\u00fc.example",
		"..+new@x", `".+."@x`, "\u212a@x", "postmaster",
	} {
		f.Add(address)
	}
	s := Defaults
	s.Path, s.Hostname = "/m/{domain}/{user}/{detail}", "gateway.example.org"
	made, err := New(s)
	if err != nil {
		f.Fatal(err)
	}
	b := made.(*backend)
	f.Fuzz(func(t *testing.T, address string) {
		path, err := b.path(address)
		if err != nil {
			if !backends.StatusOf(err).Permanent() {
				t.Errorf("%q: %v", address, err)
			}
			return
		}
		names := strings.Split(path, "/")
		if !filepath.IsLocal(path) || filepath.Clean(path) != path || len(names) < 2 || len(names) > 3 {
			t.Fatalf("%q: got %q", address, path)
		}
		for i, name := range names {
			if len(name) > 255 || name[0] == '.' || i == 2 && slices.Contains(subdirectories, name) {
				t.Errorf("%q: got name %q", address, name)
			}
			if names[i], err = url.PathUnescape(name); err != nil {
				t.Errorf("%q: %v", address, err)
			}
		}
		got := mailboxName{domain: names[0], user: names[1]}
		if len(names) == 3 {
			got.detail = names[2]
		}
		if !strings.Contains(address, "@") {
			address += "@" + s.Hostname
		}
		// A source route is no part of the mailbox.
		if strings.HasPrefix(address, "@") {
			_, address, _ = strings.Cut(address, ":")
		}
		if want := splitAddress(address, "+"); got != want {
			t.Errorf("%q: path %q gives %+v back, want %+v", address, path, got, want)
		}
	})
}
