package milter

import (
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"strconv"
	"strings"

	"github.com/mailgw/mailgw/backends"
)

// A client is who the mail came from, as far as that is known.
type client struct {
	name, reverse  string // the verified name, and the unverified one
	addr           netip.Addr
	port           uint16
	local          bool // a process on this machine, without an address
	helo, protocol string

	// tls and user are nil and empty if they are a proxy's.
	tls             *backends.TLS
	user, mechanism string
}

func clientOf(s *backends.Session) client {
	addr := s.ClientAddr().WithZone("").Unmap()
	if x := s.XForward; x != nil && x.Forwarded {
		port, _ := strconv.ParseUint(x.Port, 10, 16)
		return client{name: x.Name, addr: addr, port: uint16(port), helo: x.HELO, protocol: x.Proto}
	}
	c := client{
		addr: addr,
		helo: s.HELO, protocol: s.Protocol,
		tls: s.TLS, user: s.User, mechanism: s.Mechanism,
	}
	if p := s.Client; p != nil {
		c.name, c.reverse, c.port = p.Name, p.ReverseName, p.Addr.Port()
		c.helo, c.protocol = cmp.Or(p.HELO, s.HELO), cmp.Or(p.Protocol, s.Protocol)
		if p.Source == "XCLIENT" {
			c.tls = nil
		}
	} else {
		c.port, c.local = s.Peer.Addr.Port(), !addr.IsValid()
	}
	return c
}

// Families of addresses: SMFIA_*.
const (
	familyIPv4    = '4'
	familyIPv6    = '6'
	familyUnknown = 'U'
)

// connection returns what the milter is told of it. A process on this machine has
// no address, as in Sendmail, so that milters trust it: opendkim signs what it
// sends, but not what comes from a socket with a path ('L').
func (c *client) connection() []byte {
	data := appendStrings(nil, c.host())
	switch {
	case c.addr.Is4():
		data = append(data, familyIPv4)
	case c.addr.Is6():
		data = append(data, familyIPv6)
	default:
		return append(data, familyUnknown)
	}
	data = binary.BigEndian.AppendUint16(data, c.port)
	return appendStrings(data, c.addr.String())
}

// host returns the name, or what libmilter's documentation of xxfi_connect says
// for clients without one.
func (c *client) host() string {
	switch {
	case c.name != "":
		return c.name
	case c.addr.IsValid():
		return c.literal()
	case c.local:
		return "localhost"
	}
	return "unknown"
}

// literal returns the address as in SMTP: RFC 5321, section 4.1.3.
func (c *client) literal() string {
	switch {
	case c.addr.Is4():
		return "[" + c.addr.String() + "]"
	case c.addr.Is6():
		return "[IPv6:" + c.addr.String() + "]"
	}
	return ""
}

// knownMacros returns the macros of a transaction that are known from its
// beginning. Those of the settings come last.
func (b *backend) knownMacros(tx *backends.DataContext, c *client) map[string]string {
	known := map[string]string{
		"v":             "mailgw",
		"i":             tx.ID,
		"r":             c.protocol,
		"s":             c.helo,
		"_":             strings.TrimSpace(c.host() + " " + c.literal()),
		"{daemon_name}": tx.Session.Listener,
		"{client_name}": c.host(),
		"{client_ptr}":  c.reverse,
		"{auth_type}":   c.mechanism,
		"{auth_authen}": c.user,
	}
	if c.addr.IsValid() {
		known["{client_addr}"] = c.addr.String()
	}
	if c.port != 0 {
		known["{client_port}"] = strconv.Itoa(int(c.port))
	}
	if local, err := netip.ParseAddrPort(tx.Session.Local); err == nil {
		known["{daemon_addr}"] = local.Addr().String()
		known["{daemon_port}"] = strconv.Itoa(int(local.Port()))
	}
	if c.tls != nil {
		known["{tls_version}"] = strings.Replace(c.tls.Version, " ", "v", 1) // TLSv1.3
		known["{cipher}"] = c.tls.Cipher
		known["{cert_subject}"] = c.tls.ClientName
	}
	maps.Copy(known, b.macros)
	return known
}
