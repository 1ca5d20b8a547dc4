package xforward

import (
	"fmt"
	"net/netip"
	"os/user"
	"strconv"
	"strings"
)

// Trust is a set of peers that may send XFORWARD. The zero Trust trusts
// nobody.
type Trust struct {
	prefixes   []netip.Prefix
	unix       bool // every peer on a unix socket
	uids, gids map[uint32]bool
}

// ParseTrust reads a set of peers: "192.0.2.0/24", "2001:db8::1",
// "unix" (every peer on a unix socket), "uid:postfix", "gid:115".
func ParseTrust(entries []string) (Trust, error) {
	t := Trust{uids: map[uint32]bool{}, gids: map[uint32]bool{}}
	for _, e := range entries {
		var err error
		kind, name, _ := strings.Cut(e, ":")
		switch kind {
		case "unix":
			t.unix = true
			if e != kind {
				err = fmt.Errorf("unix stands alone")
			}
		case "uid":
			err = addID(t.uids, name, func(n string) (string, error) {
				u, err := user.Lookup(n)
				if err != nil {
					return "", err
				}
				return u.Uid, nil
			})
		case "gid":
			err = addID(t.gids, name, func(n string) (string, error) {
				g, err := user.LookupGroup(n)
				if err != nil {
					return "", err
				}
				return g.Gid, nil
			})
		default:
			var p netip.Prefix
			if p, err = parsePrefix(e); err == nil {
				t.prefixes = append(t.prefixes, p)
			}
		}
		if err != nil {
			return Trust{}, fmt.Errorf("%q: %w", e, err)
		}
	}
	return t, nil
}

func addID(set map[uint32]bool, name string, lookup func(string) (string, error)) error {
	id, err := strconv.ParseUint(name, 10, 32)
	if err != nil {
		var s string
		if s, err = lookup(name); err != nil {
			return err
		}
		if id, err = strconv.ParseUint(s, 10, 32); err != nil {
			return err
		}
	}
	set[uint32(id)] = true
	return nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		if addr.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("an address with a zone")
		}
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("neither an address, a network, unix, uid: nor gid:")
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("bits set beyond the prefix length; did you mean %s?", p.Masked())
	}
	return p, nil
}

// Addr reports whether a TCP peer with that address is trusted.
func (t Trust) Addr(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	for _, p := range t.prefixes {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// Unix reports whether a peer on a unix socket with these credentials is
// trusted. The group is the one that the peer's process had when it
// connected; its supplementary groups do not count.
func (t Trust) Unix(uid, gid uint32) bool {
	return t.unix || t.uids[uid] || t.gids[gid]
}
