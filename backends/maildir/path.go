package maildir

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// A template says where mailboxes are. No two mailboxes that differ in what
// the template names have the same path, and none is inside tmp, new or cur of
// another one: a component has one placeholder at most, what stands for it is
// encoded one to one, and only the last component can be missing.
type template struct {
	base       string // an absolute path, up to the first placeholder
	components []component
}

// A component is one name in a path.
type component struct{ before, placeholder, after string }

// componentForm matches a name with one placeholder or none.
var componentForm = regexp.MustCompile(`^([^{}]*)(?:\{(user|detail|domain|address)\}([^{}]*))?$`)

func parseTemplate(path string) (template, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return template{}, err
	}
	names := strings.Split(path[1:], "/")
	first := slices.IndexFunc(names, func(n string) bool { return strings.Contains(n, "{") })
	if first < 0 {
		first = len(names) - 1
	}
	t := template{base: "/" + strings.Join(names[:first], "/")}
	for i, name := range names[first:] {
		match := componentForm.FindStringSubmatch(name)
		if match == nil {
			return template{}, fmt.Errorf("%q: want one of {user}, {detail}, {domain} and {address} at most", name)
		}
		c := component{match[1], match[2], match[3]}
		if c.placeholder == "detail" && first+i < len(names)-1 {
			return template{}, errors.New("{detail} stands in the last component only")
		}
		t.components = append(t.components, c)
	}
	return t, nil
}

// firstOfUser returns the place of the first component whose directory is of
// one user, or of the last one.
func (t template) firstOfUser() int {
	i := slices.IndexFunc(t.components, func(c component) bool { return c.placeholder == "user" || c.placeholder == "address" })
	if i < 0 {
		return len(t.components) - 1
	}
	return i
}

// Addresses that have no mailbox.
var (
	errBadAddress = backends.NewStatus(550, "5.1.3", "bad address syntax")
	errTooLong    = backends.NewStatus(550, "5.1.3", "address too long")
)

// A mailboxName is what an address says of the mailbox, in lower case.
type mailboxName struct{ user, detail, domain string }

// splitAddress parts a checked address. Addresses that differ in nothing but
// case or quotes have one mailbox, as they have one route.
func splitAddress(address, delimiters string) mailboxName {
	local, domain := smtp.FoldMailbox(address)
	n := mailboxName{user: local, domain: domain}
	if len(local) > 0 {
		if i := strings.IndexAny(local[1:], delimiters); i >= 0 {
			n.user, n.detail = local[:i+1], local[i+2:]
		}
	}
	return n
}

// expand returns the path of a mailbox below the base.
func (t template) expand(n mailboxName) (string, error) {
	var names []string
	for _, c := range t.components {
		if c.placeholder == "detail" && n.detail == "" {
			continue
		}
		name, err := c.expand(n)
		if err != nil {
			return "", err
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return ".", nil
	}
	return strings.Join(names, "/"), nil
}

func (c component) expand(n mailboxName) (string, error) {
	const longest = 255 // NAME_MAX of Linux
	var value string
	switch c.placeholder {
	case "":
		return c.before, nil
	case "user":
		value = encode(n.user)
	case "detail":
		value = encode(n.detail)
	case "domain":
		value = encode(n.domain)
	case "address":
		value = encode(n.user) + "@" + encode(n.domain)
	}
	name := c.before + value + c.after
	if c.placeholder == "detail" && slices.Contains(subdirectories, name) {
		// It would be inside of the mailbox without detail.
		name = fmt.Sprintf("%%%02X", name[0]) + name[1:]
	}
	switch {
	case value == "": // the local part is ""
		return "", errBadAddress
	case len(name) > longest:
		return "", errTooLong
	}
	return name, nil
}

// encode makes a part of a file name of s, and different ones of different
// strings. What may stand in a local part without quotes stays, and so do
// letters of all scripts. Other octets are percent-encoded: "/" and "%" above
// all, and a dot at the start.
func encode(s string) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9',
			strings.ContainsRune("!#$&'*+-=?^_`{|}~", r),
			r == '.' && i > 0,
			r > unicode.MaxASCII && unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			for _, c := range []byte(string(r)) {
				fmt.Fprintf(&b, "%%%02X", c)
			}
		}
	}
	return b.String()
}
