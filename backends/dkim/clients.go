package dkim

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mailgw/mailgw/backends"
)

// clients are those whose mail is our own.
type clients struct {
	all, local bool
	networks   []netip.Prefix
}

func parseClients(list []string) (c clients, err error) {
	for _, text := range list {
		switch text {
		case "all":
			c.all = true
			continue
		case "local":
			c.local = true
			continue
		}
		network, err := netip.ParsePrefix(text)
		if addr, notAddr := netip.ParseAddr(text); notAddr == nil {
			network, err = addr.Prefix(addr.BitLen())
		}
		if err != nil || network.Addr().Is4In6() { // which no client has
			return c, fmt.Errorf(`%q, want an address, a network such as 192.0.2.0/24, "local" or "all"`, text)
		}
		c.networks = append(c.networks, network)
	}
	return c, nil
}

func (c clients) has(s *backends.Session) bool {
	addr := clientAddr(s)
	return c.all || c.local && isLocal(s) ||
		slices.ContainsFunc(c.networks, func(n netip.Prefix) bool { return n.Contains(addr) })
}

// clientAddr returns the address as networks and SPF have it.
func clientAddr(s *backends.Session) netip.Addr { return s.ClientAddr().Unmap().WithZone("") }

// isLocal reports whether the client is a process on this machine, or one that
// a trusted proxy calls local.
func isLocal(s *backends.Session) bool {
	if x := s.XForward; x != nil && (x.Source != "" || x.Forwarded) {
		return x.Source == "LOCAL"
	}
	return s.Client == nil && !s.Peer.Addr.IsValid()
}

// heloOf returns what the client said in HELO, to us or to the proxy that speaks
// for it.
func heloOf(s *backends.Session) string {
	switch {
	case s.XForward != nil && s.XForward.Forwarded:
		return s.XForward.HELO
	case s.Client != nil:
		return cmp.Or(s.Client.HELO, s.HELO)
	}
	return s.HELO
}
