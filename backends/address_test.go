package backends_test

import (
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// putInto puts an address into the envelope in every way that there is.
func putInto(tx *backends.DataContext, address string) map[string]error {
	return map[string]error{
		"SetSender":    tx.SetSender(address),
		"Redirect":     tx.Redirect(0, "first@example.org", address),
		"AddRecipient": tx.AddRecipient(backends.Recipient{Address: address}),
	}
}

// The author learns of a bad address where it is made, and nothing is edited.
func TestBadAddressesAreRefused(t *testing.T) {
	for _, test := range []struct{ address, want string }{
		{"user", "not of the form local@domain"},
		{"@example.org", "not of the form"},
		{"user@", "not of the form"},
		{"<user@example.org>", "more than local@domain"},
		{"User <user@example.org>", "more than"},
		{"x@y.example> NOTIFY=NEVER", "more than"},
		{"a@example.org,b@example.org", "more than"},
		{"a@example.org b@example.org", "more than"},
		{"@relay.example:user@example.org", "more than"},
		{"two words@example.org", "lacks quotes"},
		{"user@[192.0.2.1", "more than"},
		{"user@example.org\r\nDATA", "control character"},
		{"us\x00er@example.org", "control character"},
		{"us\u0085er@example.org", "control character"},
		{"us\xffer@example.org", "neither US-ASCII nor UTF-8"},
		{strings.Repeat("x", 1013) + "@example.org", "address of 1025 octets, want at most 1024"},
	} {
		tx := transaction(1)
		for method, err := range putInto(tx, test.address) {
			if err == nil || !strings.HasPrefix(err.Error(), "edit: ") || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s %.50q: got %v, want %q", method, test.address, err, test.want)
			}
		}
		if edits := tx.Edits(); !edits.IsZero() {
			t.Errorf("%.50q: got edits %+v, want none", test.address, edits)
		}
	}
}

// Only some addresses may stand without a domain, or be empty.
func TestAddressesWithoutDomain(t *testing.T) {
	for address, good := range map[string]map[string]bool{
		"":           {"SetSender": true},
		"Postmaster": {"Redirect": true, "AddRecipient": true},
	} {
		for method, err := range putInto(transaction(1), address) {
			if (err == nil) != good[method] {
				t.Errorf("%s %q: got %v, want an error: %t", method, address, err, !good[method])
			}
		}
	}
}

// What the gateway takes is not refused here, but for its length.
func FuzzAddress(f *testing.F) {
	for _, address := range []string{
		"user@example.org", `"two words"@example.org`, `"a@b\"c"@example.org`, "user@[192.0.2.1]", "user@[IPv6:2001:db8::1]",
		"gr\u00fc\u00dfe@b\u00fccher.example", ".dots..@a_b.example", "user@[tag:<@>]", "postmaster", "@a:b@c", "a\u2028@b",
	} {
		f.Add(address)
	}
	f.Fuzz(func(t *testing.T, address string) {
		checked, err := smtp.CheckMailbox(address, true)
		if err != nil || checked != address || len(address) > 1024 {
			return
		}
		for method, err := range putInto(transaction(1), address) {
			if err != nil {
				t.Errorf("%s: %v, and the gateway takes it", method, err)
			}
		}
	})
}

func TestParametersOfAddedRecipients(t *testing.T) {
	for _, test := range []struct {
		param string
		want  string // part of the error; empty if the parameter is good
	}{
		{"NOTIFY=NEVER", ""},
		{"X", ""},
		{"ORCPT=rfc822;a=b", ""},
		{"X=gr\u00fc\u00dfe", ""},

		{"", "parameter is empty"},
		{"=NEVER", "not of the form"},
		{"X=", "not of the form"},
		{"X=a NOTIFY=NEVER", "not of the form"},
		{"X=a\tb", "control character"},
		{"X=a\r\nDATA", "control character"},
		{"X=\xff", "neither US-ASCII nor UTF-8"},
		{"X=" + strings.Repeat("x", 1023), "parameter of 1025 octets"},
	} {
		tx := transaction(1)
		err := tx.AddRecipient(backends.Recipient{Address: "a@example.org", Params: backends.Params{"RRVS=1", test.param}})
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.50q: got %v, want an error with %q", test.param, err, test.want)
		}
		if edits := tx.Edits(); edits.IsZero() != (test.want != "") {
			t.Errorf("%.50q: got edits %+v", test.param, edits)
		}
	}
}

func TestRoutesWithoutAGoodNameAreRefused(t *testing.T) {
	for _, name := range []string{"", "-q", "two words", "gr\u00fcn", "q\n", strings.Repeat("x", 64)} {
		tx := transaction(1)
		if err := tx.Divert(0, name); err == nil || !strings.Contains(err.Error(), "is no name") {
			t.Errorf("%q: got %v, want an error", name, err)
		}
		if edits := tx.Edits(); !edits.IsZero() {
			t.Errorf("%q: got edits %+v, want none", name, edits)
		}
	}
	if err := transaction(1).Divert(0, strings.Repeat("x", 63)); err != nil {
		t.Error(err)
	}
}
