package record

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/backends"
)

// What is not known to be harmless is redacted. This stays:
//
//   - the ID, the time, the names of the backend, the listener and routes; the
//     protocol, the mechanism of AUTH, version and cipher of TLS;
//   - codes and enhanced codes of answers, what kinds of edits there are, and the
//     positions of header fields;
//   - the parameters in harmlessParams;
//   - of a message what redactMessage keeps: how it is built, and the length of
//     lines.
//
// Each address becomes userN@domainN.example, each host hostN.example, and each
// IP address one that is for documentation: the same one everywhere in the
// record, but in answers and edits, where all become one. Texts become x's.

// Redact replaces what tells of people and their mail. What a verdict depends on
// may be lost with it.
func (r *Record) Redact() {
	p := &pseudonyms{}
	p.session(&r.Session)
	p.envelope(&r.Envelope)
	r.Message = p.redactMessage(r.Message)
	r.Said = r.Said.redacted()
	r.Redacted = true
}

// pseudonyms are those of one record. Each kind counts from 1.
type pseudonyms struct {
	addresses, domains, hosts, v4, v6, boundaries, fields numbers
}

// numbers gives each name a number, from 1.
type numbers map[string]int

func (n *numbers) of(name string) int {
	if *n == nil {
		*n = numbers{}
	}
	if (*n)[name] == 0 {
		(*n)[name] = len(*n) + 1
	}
	return (*n)[name]
}

// address leaves the null sender and "postmaster", who is everywhere.
func (p *pseudonyms) address(address string) string {
	folded := strings.ToLower(address)
	if folded == "" || folded == "postmaster" {
		return folded
	}
	domain := folded[strings.LastIndexByte(folded, '@')+1:]
	return fmt.Sprintf("user%d@domain%d.example", p.addresses.of(folded), p.domains.of(domain))
}

func (p *pseudonyms) host(name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf("host%d.example", p.hosts.of(strings.ToLower(name)))
}

// ip returns an address of RFC 5737 or RFC 3849. After 254 of IPv4 they begin
// again.
func (p *pseudonyms) ip(addr netip.Addr) netip.Addr {
	switch {
	case !addr.IsValid():
		return addr
	case addr.Is4():
		return netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + (p.v4.of(addr.String())-1)%254)})
	}
	n := p.v6.of(addr.String())
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 14: byte(n >> 8), 15: byte(n)})
}

func (p *pseudonyms) addrPort(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(p.ip(a.Addr()), a.Port())
}

func (p *pseudonyms) session(s *backends.Session) {
	*s = s.Clone() // which may be in use elsewhere
	s.ID, s.Local, s.HELO = "", "", p.host(s.HELO)
	s.Peer = backends.Peer{Addr: p.addrPort(s.Peer.Addr)}
	if s.User != "" {
		s.User = p.address(s.User)
	}
	if c := s.Client; c != nil {
		*c = backends.Client{
			Source: c.Source, Addr: p.addrPort(c.Addr), Local: p.addrPort(c.Local),
			Name: p.host(c.Name), ReverseName: p.host(c.ReverseName), HELO: p.host(c.HELO), Protocol: c.Protocol,
		}
	}
	if t := s.TLS; t != nil {
		*t = backends.TLS{Version: t.Version, Cipher: t.Cipher, ServerName: p.host(t.ServerName), ClientName: p.host(t.ClientName)}
	}
	if x := s.XForward; x != nil {
		x.Name, x.HELO, x.Ident, x.Port = p.host(x.Name), p.host(x.HELO), "", ""
		addr, _ := netip.ParseAddr(x.Addr)
		if x.Addr = ""; addr.IsValid() {
			x.Addr = p.ip(addr).String()
		}
	}
}

func (p *pseudonyms) envelope(e *backends.Envelope) {
	e.Sender, e.Params = p.address(e.Sender), redactParams(e.Params)
	e.Recipients = slices.Clone(e.Recipients)
	for i, to := range e.Recipients {
		e.Recipients[i] = backends.Recipient{Address: p.address(to.Address), Params: redactParams(to.Params)}
	}
}

// harmlessParams are the parameters of MAIL and RCPT that tell nothing of
// people.
var harmlessParams = []string{"SIZE", "BODY", "SMTPUTF8", "RET", "NOTIFY", "REQUIRETLS", "PRDR"}

// redactParams keeps the keywords of the others, and of their values that there
// are some.
func redactParams(params backends.Params) (redacted backends.Params) {
	for i, param := range params {
		keyword, _, hasValue := strings.Cut(param, "=")
		switch {
		case slices.Contains(harmlessParams, strings.ToUpper(keyword)):
		case !slices.Contains([]string{"ENVID", "ORCPT", "AUTH", "XVERP"}, strings.ToUpper(keyword)):
			param = fmt.Sprintf("X-REDACTED-%d", i+1)
		case hasValue:
			param = keyword + "=redacted"
		}
		redacted = append(redacted, param)
	}
	return redacted
}

// redacted keeps codes and kinds. It gives the same for what it has given.
func (s Said) redacted() Said {
	r := Said{Response: redactStatus(s.Response), Edits: redactEdits(s.Edits)}
	for _, a := range s.Answers {
		a.Status = redactStatus(a.Status)
		if a.Failure != "" {
			a.Failure = redactedText
		}
		r.Answers = append(r.Answers, a)
	}
	return r
}

const (
	redactedText    = "redacted"
	redactedAddress = "redacted@redacted.example"
)

func redactStatus(s backends.Status) backends.Status {
	if s.Text != "" {
		s.Text = redactedText
	}
	return s
}

func redactEdits(e backends.Edits) (r backends.Edits) {
	for _, f := range e.Fields {
		if f.Op != backends.RemoveField {
			f.Field = redactedName(f.Field) + ": " + redactedText
		}
		r.Fields = append(r.Fields, f)
	}
	if e.Message != nil {
		r.Message = bytes.NewReader([]byte(redactedText))
	}
	if e.Sender != nil {
		sender := *e.Sender
		if sender != "" {
			sender = redactedAddress
		}
		r.Sender = &sender
	}
	if e.SenderParams != nil {
		r.SenderParams = append(backends.Params{}, redactParams(e.SenderParams)...)
	}
	for i, addresses := range e.Redirects {
		if r.Redirects == nil {
			r.Redirects = map[int][]string{}
		}
		r.Redirects[i] = slices.Repeat([]string{redactedAddress}, len(addresses))
	}
	for _, to := range e.Added {
		r.Added = append(r.Added, backends.Recipient{Address: redactedAddress, Params: redactParams(to.Params)})
	}
	r.Diversions = e.Diversions
	return r
}

// redactedName returns the name of a field, if that is known.
func redactedName(field string) string {
	name, _, _ := strings.Cut(field, ":")
	if known := knownField(name); known != "" {
		return known
	}
	return "X-Redacted"
}
