package xforward

import (
	"net/netip"
	"os/user"
	"strings"
	"testing"
)

func TestTrustAddr(t *testing.T) {
	tests := []struct {
		entries string // parted by spaces
		addr    string
		want    bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.0/24", "192.0.2.255", true},
		{"192.0.2.0/24", "192.0.3.0", false},
		{"2001:db8::1", "2001:db8:0::1", true},
		{"2001:db8::1", "2001:db8::2", false},
		{"2001:db8::/32", "2001:db8:ffff::", true},
		{"2001:db8::/32", "2001:db9::", false},
		{"192.0.2.1 2001:db8::/32 198.51.100.0/24", "198.51.100.7", true},

		// A socket for both families sees IPv4 peers mapped into IPv6, and an
		// operator may write them so. Mapped or not, it is the same peer.
		{"192.0.2.0/24", "::ffff:192.0.2.1", true},
		{"::ffff:192.0.2.1", "192.0.2.1", true},
		{"::ffff:192.0.2.0/120", "::ffff:192.0.2.1", true},
		{"::ffff:192.0.2.0/120", "192.0.3.1", false},
		{"192.0.2.0/24", "::ffff:198.51.100.1", false},

		// All of one family is not all of the other.
		{"0.0.0.0/0", "192.0.2.1", true},
		{"0.0.0.0/0", "::ffff:192.0.2.1", true},
		{"0.0.0.0/0", "2001:db8::1", false},
		{"::/0", "2001:db8::1", true},
		{"::/0", "192.0.2.1", false},

		// The zone of a peer is a name of this host's, not the peer's.
		{"fe80::/10", "fe80::1%eth0", true},
		{"fe80::1", "fe80::1%eth0", true},
		{"fe80::1", "fe80::2%eth0", false},

		// Peers on unix sockets are others than those on TCP.
		{"unix uid:0 gid:0", "127.0.0.1", false},
		{"", "127.0.0.1", false},
	}
	for _, test := range tests {
		trust, err := ParseTrust(strings.Fields(test.entries))
		if err != nil {
			t.Errorf("%s: %v", test.entries, err)
			continue
		}
		if got := trust.Addr(netip.MustParseAddr(test.addr)); got != test.want {
			t.Errorf("%q trusts %s: %v", test.entries, test.addr, got)
		}
	}
}

func TestTrustUnix(t *testing.T) {
	root, err := user.LookupId("0")
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId("0")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		entries  string
		uid, gid uint32
		want     bool
	}{
		{"unix", 1000, 1000, true},
		{"uid:1000", 1000, 1, true},
		{"uid:1000", 1, 1000, false},
		{"gid:1000", 1, 1000, true},
		{"gid:1000", 1000, 1, false},
		{"uid:1000 gid:1001", 1, 1001, true},
		{"uid:1000 gid:1001", 1001, 1000, false},
		{"uid:" + root.Username, 0, 1, true},
		{"uid:" + root.Username, 1, 0, false},
		{"gid:" + group.Name, 1, 0, true},
		{"gid:" + group.Name, 0, 1, false},
		{"uid:4294967294", 4294967294, 1, true},

		// No address is a peer on a unix socket, and nobody is root by default.
		{"0.0.0.0/0 ::/0", 0, 0, false},
		{"", 0, 0, false},
	}
	for _, test := range tests {
		trust, err := ParseTrust(strings.Fields(test.entries))
		if err != nil {
			t.Errorf("%s: %v", test.entries, err)
			continue
		}
		if got := trust.Unix(test.uid, test.gid); got != test.want {
			t.Errorf("%q trusts uid %d gid %d: %v", test.entries, test.uid, test.gid, got)
		}
	}
}

func TestZeroTrustTrustsNobody(t *testing.T) {
	var trust Trust
	if trust.Addr(netip.MustParseAddr("127.0.0.1")) || trust.Addr(netip.Addr{}) || trust.Unix(0, 0) {
		t.Error("it trusts somebody")
	}
}

func TestParseTrustRefuses(t *testing.T) {
	const none = "neither an address, a network, unix, uid:NAME, gid:NAME nor cert:SHA256"
	tests := []struct{ entry, err string }{
		{"", none},
		{"localhost", none},
		{"192.0.2", none},
		{"192.0.2.0/33", none},
		{"192.0.2.0/", none},
		{"[::1]", none},
		{"!192.0.2.1", none},
		{" 192.0.2.1", none},
		{"192.0.2.1,192.0.2.2", none},
		{"UNIX", none},
		{"user:root", none},

		{"fe80::1%eth0", "an address with a zone"},
		{"fe80::1%eth0/64", "an address with a zone"},
		{"192.0.2.1/24", "bits set beyond the prefix length; did you mean 192.0.2.0/24?"},
		{"2001:db8::1/32", "bits set beyond the prefix length; did you mean 2001:db8::/32?"},
		{"::ffff:192.0.2.1/120", "bits set beyond the prefix length; did you mean 192.0.2.0/24?"},

		{"unix:", "unix stands alone"},
		{"unix:/run/socket", "unix stands alone"},
		{"uid", "a number or a name is missing"},
		{"uid:", "a number or a name is missing"},
		{"gid:", "a number or a name is missing"},
		{"uid:no-such-user", "user: unknown user no-such-user"},
		{"gid:no-such-group", "group: unknown group no-such-group"},
		{"uid:4294967296", "user: unknown user 4294967296"},
		{"uid:-1", "user: unknown user -1"},
	}
	for _, test := range tests {
		want := `"` + test.entry + `": ` + test.err
		trust, err := ParseTrust([]string{"0.0.0.0/0", "unix", test.entry})
		if err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", test.entry, err, want)
		}
		if trust.Addr(netip.MustParseAddr("192.0.2.1")) || trust.Unix(0, 0) {
			t.Errorf("%q is refused, and what stands before it is trusted", test.entry)
		}
	}
}
