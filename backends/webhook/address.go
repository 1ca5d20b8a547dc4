package webhook

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// errNotAllowed is the error of a connection to an address that may not be
// connected to.
var errNotAllowed = errors.New("connecting to this address is not allowed")

// control returns what a net.Dialer calls before it connects, when the address
// is known. Nothing that resolves names can get around it.
func control(mayDial func(netip.Addr) bool) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if !mayDial(to.Addr().Unmap().WithZone("")) {
			return fmt.Errorf("%s: %w", to.Addr(), errNotAllowed)
		}
		return nil
	}
}

// notPublic are the networks of the registries of IANA for special purposes
// (RFC 6890) that are not reached over the Internet, or lead to an IPv4 address
// that is in the IPv6 one. 224.0.0.0/3 is multicast and what is reserved. Of
// IPv6 only 2000::/3 is public at all.
var notPublic = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
	"192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
	"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)

var ipv6Public = netip.MustParsePrefix("2000::/3")

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// isPublic reports whether an address is one of the Internet.
func isPublic(a netip.Addr) bool {
	return (a.Is4() || ipv6Public.Contains(a)) &&
		!slices.ContainsFunc(notPublic, func(p netip.Prefix) bool { return p.Contains(a) })
}
