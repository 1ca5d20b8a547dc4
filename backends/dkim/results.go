package dkim

import (
	"strings"

	"github.com/emersion/go-msgauth/authres"

	"github.com/mailgw/mailgw/backends"
)

// results are what is found out about a message.
type results struct {
	signatures []dkimResult
	spf        spfResult
	dmarc      []dmarcResult
}

const resultsName = "Authentication-Results"

// field returns the header field that tells of r: RFC 8601.
func (r results) field(id string) string {
	var all []authres.Result
	add := func(method string, value authres.ResultValue, reason string, properties map[string]string) {
		params := map[string]string{"reason": only(reasonChars, reason)}
		for name, p := range properties {
			params[name] = only(propertyChars, p)
		}
		all = append(all, &authres.GenericResult{Method: method, Value: value, Params: params})
	}
	for _, s := range r.signatures {
		// RFC 6008: header.b tells the signatures of one domain apart.
		add("dkim", s.value, s.reason, map[string]string{
			"header.d": s.domain, "header.s": s.tags["s"], "header.a": s.tags["a"], "header.b": s.tags["b"][:min(len(s.tags["b"]), 8)],
		})
	}
	if len(r.signatures) == 0 {
		add("dkim", authres.ResultNone, "", nil)
	}
	add("spf", r.spf.value, "", map[string]string{r.spf.property: r.spf.checked})
	for _, d := range r.dmarc {
		add("dmarc", d.value, "", map[string]string{"header.from": d.author, "policy.dmarc": string(d.policy)})
	}
	// No value has a semicolon. Where there are no properties the library
	// leaves a space.
	text := strings.NewReplacer(" ; ", ";\r\n\t", "; ", ";\r\n\t").Replace(authres.Format(id, all))
	return resultsName + ": " + strings.TrimRight(text, " ")
}

// What strangers say is told in octets that mean nothing else in the field.
const (
	letters       = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	reasonChars   = letters + " -/"
	propertyChars = letters + "!#$%&'*+-./=@^_`{|}~"

	longestValue = 200 // so that a line has less than 998 octets
)

// only returns s, shortened, with ? for what is not among chars.
func only(chars, s string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(chars, r) {
			return r
		}
		return '?'
	}, s[:min(len(s), longestValue)])
}

// removeForged removes the fields that claim to be ours: RFC 8601, section 5.
func (b *backend) removeForged(tx *backends.DataContext, m *message) error {
	for i, f := range m.fields {
		if !isNamed(f, resultsName) {
			continue
		}
		_, value, _ := strings.Cut(string(f), ":")
		if strings.EqualFold(authservID(value), b.AuthservID) {
			if err := tx.RemoveField(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// authservID returns the name at the beginning of the field: a token or a
// quoted string, among comments and white space.
func authservID(value string) string {
	var id strings.Builder
	depth, quoted := 0, false
	for i := 0; i < len(value); i++ {
		c := value[i]
		escaped := c == '\\' && i+1 < len(value) && (quoted || depth > 0)
		if escaped {
			i++
			c = value[i]
		}
		switch {
		case depth > 0 && (escaped || c != '(' && c != ')'):
		case quoted && (escaped || c != '"'):
			id.WriteByte(c)
		case c == '"' && depth == 0:
			quoted = !quoted
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case strings.IndexByte(" \t\r\n;/", c) >= 0:
			if id.Len() > 0 || c == ';' {
				return id.String()
			}
		default:
			id.WriteByte(c)
		}
	}
	return id.String()
}
