package exec

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/xforward"
)

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o600) }

// A program has the environment that is documented, and nothing else.
func TestEnvironment(t *testing.T) {
	peer := backends.Session{Protocol: "ESMTP", Peer: backends.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:25")}, HELO: "peer.example.net"}
	proxied, forwarded, local, user := peer, peer, peer, peer
	proxied.Client = &backends.Client{Addr: netip.MustParseAddrPort("[2001:db8::1]:25"), Name: "client.example.net"}
	forwarded.XForward = &xforward.Attrs{Forwarded: true, Name: "client.example.net", Addr: "2001:db8::2", Proto: "SMTP", HELO: "he\nlo", Ident: "QID1"}
	local.Peer = backends.Peer{UID: 1000}
	local.XForward = &xforward.Attrs{Ident: "QID2"}
	user.User, user.Mechanism = "ann", "PLAIN"
	forwarded.User, forwarded.Mechanism = "proxy", "PLAIN" // nothing that the client has proved

	one, two := []string{"ann@example.org"}, []string{`"a b"@example.org`, "bob@example.org"}
	tests := []struct {
		name       string
		session    backends.Session
		recipients []string
		env        map[string]string
		want       []string // what differs from the first
	}{
		{"peer", peer, one, nil, []string{
			"CLIENT_ADDRESS=192.0.2.1", "CLIENT_HELO=peer.example.net", "CLIENT_HOSTNAME=", "CLIENT_PROTOCOL=ESMTP",
			"MAILGW_TX=TX1", "PATH=" + path, "QUEUE_ID=", "RECIPIENT=ann@example.org", "RECIPIENTS=ann@example.org",
			"SASL_METHOD=", "SASL_USERNAME=", "SENDER=sender@example.net", "SIZE=49",
		}},
		{"two recipients", peer, two, nil, []string{"RECIPIENT=", "RECIPIENTS=\"a b\"@example.org\nbob@example.org"}},
		{"proxy", proxied, one, nil, []string{"CLIENT_ADDRESS=2001:db8::1", "CLIENT_HOSTNAME=client.example.net"}},
		{"XFORWARD", forwarded, one, nil, []string{
			"CLIENT_ADDRESS=2001:db8::2", "CLIENT_HOSTNAME=client.example.net", "CLIENT_HELO=he?lo", "CLIENT_PROTOCOL=SMTP", "QUEUE_ID=QID1",
		}},
		{"local", local, one, nil, []string{"CLIENT_ADDRESS=", "QUEUE_ID=QID2"}},
		{"user", user, one, nil, []string{"SASL_USERNAME=ann", "SASL_METHOD=PLAIN"}},
		{"settings", peer, one, map[string]string{"PATH": "/bin", "HOME": "/home/mail"}, []string{"PATH=/bin", "HOME=/home/mail"}},
	}
	for _, tt := range tests {
		file := filepath.Join(t.TempDir(), "environment")
		b := newBackend(t, "", func(s *Settings) {
			s.Command = []string{"/bin/sh", "-c", `exec cat /proc/self/environ >"$0"`, file}
			s.Env = tt.env
		})
		tx := transaction(message, tt.recipients...)
		tx.Session = tt.session
		if got := deliver(t, b, tx); got != "" {
			t.Fatal(got)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got := slices.Sorted(strings.SplitSeq(strings.TrimSuffix(string(text), "\x00"), "\x00"))
		// The shell's own.
		got = slices.DeleteFunc(got, func(v string) bool {
			name, _, _ := strings.Cut(v, "=")
			return name == "PWD" || name == "OLDPWD" || name == "SHLVL" || name == "_"
		})
		if want := overlaid(tests[0].want, tt.want); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, want)
		}
	}
}

// overlaid returns variables, those in over in the place of those in under.
func overlaid(under, over []string) []string {
	all := map[string]string{}
	for _, v := range slices.Concat(under, over) {
		name, _, _ := strings.Cut(v, "=")
		all[name] = v
	}
	var list []string
	for _, v := range all {
		list = append(list, v)
	}
	slices.Sort(list)
	return list
}
