package relay

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

func TestSettings(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	secret := file("secret", "ann\nsecret\n", 0o600)
	open := file("open", "ann\nsecret\n", 0o604)
	short := file("short", "ann\n", 0o600)
	for _, test := range []struct {
		name string
		edit func(*Settings)
		want []string
	}{
		{"one target", func(s *Settings) {}, nil},
		{"no target", func(s *Settings) { s.Targets = nil }, []string{"targets: want at least one, such as smtp://127.0.0.1:10026"}},
		{"all wrong", func(s *Settings) {
			s.Targets = []string{"smtp://a.example", "ftp://b.example"}
			s.Order, s.XForwardErrors, s.Hello = "random", "ignore", "a b"
			s.Connections, s.Idle, s.MaxAge = 0, 0, -1
		}, []string{
			`targets[1]: "ftp://b.example": ` + errScheme.Error(),
			`order: "random" is none of ordered, balanced`,
			`xforward_errors: "ignore" is none of continue, fail`,
			"connections: 0 is less than 1",
			"idle: 0s is not above zero",
			"max_age: -1ns is not above zero",
			`hello: "a b" is no name`,
		}},
		{"credentials over TLS", func(s *Settings) {
			s.Targets, s.CredentialsFile = []string{"smtps://a.example", "smtp+starttls://b"}, secret
		}, nil},
		{"credentials to this machine", func(s *Settings) {
			s.Targets, s.CredentialsFile = []string{"smtp://[::1]", "lmtp+unix:///run/lmtp"}, secret
		}, nil},
		{"credentials in the clear", func(s *Settings) { s.Targets, s.CredentialsFile = []string{"lmtp://a.example"}, secret }, []string{
			`targets[0]: "lmtp://a.example": everybody on the way could read the credentials; want smtps or smtp+starttls`}},
		{"credentials in the URL", func(s *Settings) { s.Targets = []string{"smtps://user:secret@a.example", "smtp://user:%zz@b"} }, []string{
			`targets[0]: "smtps://***@a.example": a user and a password belong in credentials_file`,
			`targets[1]: "smtp://***@b": invalid URL escape "%zz"`}},
		{"credentials for all to read", func(s *Settings) { s.Targets, s.CredentialsFile = []string{"smtps://a.example"}, open }, []string{
			"credentials_file: " + open + ": mode 0604 lets everybody at the password; want chmod o= " + open}},
		{"no password", func(s *Settings) { s.Targets, s.CredentialsFile = []string{"smtps://a.example"}, short }, []string{
			"credentials_file: " + short + ": want two lines, the user and the password"}},
		{"no such files", func(s *Settings) { s.CredentialsFile, s.TLSCA = dir+"/none", dir+"/none" }, []string{
			"credentials_file: open " + dir + "/none: no such file or directory",
			"tls_ca: open " + dir + "/none: no such file or directory"}},
		{"no certificates", func(s *Settings) { s.TLSCA = secret }, []string{"tls_ca: " + secret + ": no certificate in PEM form"}},
	} {
		s := to("smtp://127.0.0.1:25")
		test.edit(&s)
		b, err := New(s)
		if err == nil {
			b.(*backend).Close()
		}
		if got := faultsOf(err); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

// faultsOf returns the faults of which err consists.
func faultsOf(err error) (faults []string) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			faults = append(faults, faultsOf(e)...)
		}
		return faults
	}
	if fault, ok := errors.AsType[backends.SettingError](err); ok {
		return []string{fault.Error()}
	}
	if err != nil {
		return []string{"no SettingError: " + err.Error()}
	}
	return nil
}

func TestCredentials(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	for _, test := range []struct{ text, user, password string }{
		{"ann\nsecret\n", "ann", "secret"},
		{"ann\r\nse cret", "ann", "se cret"},
		{"ann\n secret \n\n", "ann", " secret "},
		{"", "", ""},
		{"ann", "", ""},
		{"ann secret\n", "", ""},
		{"\nsecret\n", "", ""},
		{"ann\nsecret\nmore\n", "", ""},
	} {
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		user, password, err := readCredentials(path)
		if user != test.user || password != test.password || (err == nil) != (test.user != "") {
			t.Errorf("%q: got %q, %q, %v", test.text, user, password, err)
		}
	}
}
