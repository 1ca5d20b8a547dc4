package xforward

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
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
	certs      map[string]bool // SHA-256 of client certificates, in lower case
}

// ParseTrust reads a set of peers: "192.0.2.0/24", "2001:db8::1",
// "unix" (every peer on a unix socket), "uid:postfix", "gid:115", "cert:" and
// the SHA-256 of a client certificate in hexadecimal digits. An error
// names the first entry that is none of them.
func ParseTrust(entries []string) (Trust, error) {
	t := Trust{uids: map[uint32]bool{}, gids: map[uint32]bool{}, certs: map[string]bool{}}
	for _, e := range entries {
		if err := t.add(e); err != nil {
			return Trust{}, fmt.Errorf("%q: %w", e, err)
		}
	}
	return t, nil
}

func (t *Trust) add(entry string) error {
	switch kind, name, _ := strings.Cut(entry, ":"); kind {
	case "unix":
		if entry != kind {
			return errors.New("unix stands alone")
		}
		t.unix = true
	case "uid":
		return addID(t.uids, name, userID)
	case "gid":
		return addID(t.gids, name, groupID)
	case "cert":
		// Colons between the digits, as openssl prints them, do not count.
		sum, err := hex.DecodeString(strings.ReplaceAll(name, ":", ""))
		if err != nil || len(sum) != sha256.Size {
			return errors.New("cert: wants the 64 hexadecimal digits of a SHA-256")
		}
		t.certs[hex.EncodeToString(sum)] = true
	default:
		p, err := parsePrefix(entry)
		if err != nil {
			return err
		}
		t.prefixes = append(t.prefixes, p)
	}
	return nil
}

// addID adds a number, or the one that lookup finds for a name.
func addID(set map[uint32]bool, name string, lookup func(string) (string, error)) error {
	if name == "" {
		return errors.New("a number or a name is missing")
	}
	id, err := strconv.ParseUint(name, 10, 32)
	if err != nil {
		if name, err = lookup(name); err != nil {
			return err
		}
		if id, err = strconv.ParseUint(name, 10, 32); err != nil {
			return err
		}
	}
	set[uint32(id)] = true
	return nil
}

func userID(name string) (string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", err
	}
	return u.Uid, nil
}

func groupID(name string) (string, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return "", err
	}
	return g.Gid, nil
}

// parsePrefix reads an address or a network. What is IPv4 mapped into IPv6
// becomes IPv4, as the addresses of peers do.
func parsePrefix(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		if addr.Zone() != "" {
			return netip.Prefix{}, errors.New("an address with a zone")
		}
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, errors.New("neither an address, a network, unix, uid:NAME, gid:NAME nor cert:SHA256")
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
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

// Certificate reports whether a peer that has shown a certificate with this
// SHA-256, in hexadecimal digits of lower case, is trusted.
func (t Trust) Certificate(sum string) bool { return t.certs[sum] }
