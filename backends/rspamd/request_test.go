package rspamd

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/xforward"
)

// What rspamd is told is the client's: nothing of a proxy is taken for it, and
// nothing is invented.
func TestFactsAreThoseOfTheClient(t *testing.T) {
	peer := backends.Peer{Addr: netip.MustParseAddrPort("[::ffff:192.0.2.1]:25252")}
	tls := &backends.TLS{Version: "TLS 1.3", Cipher: "TLS_AES_128_GCM_SHA256"}
	tests := map[string]struct {
		session backends.Session
		want    string
	}{
		"peer": {
			backends.Session{Peer: peer, HELO: "peer.example", User: "ann", TLS: tls},
			"Helo: peer.example, Ip: 192.0.2.1, Queue-Id: test, Tls-Cipher: TLS_AES_128_GCM_SHA256, Tls-Version: TLS 1.3, User: ann",
		},
		"local process": {backends.Session{HELO: "localhost"}, "Helo: localhost, Queue-Id: test"},
		"link-local": {
			backends.Session{Peer: backends.Peer{Addr: netip.MustParseAddrPort("[fe80::1%eth0]:25")}},
			"Ip: fe80::1, Queue-Id: test",
		},
		"PROXY": {
			backends.Session{
				Peer: peer, HELO: "client.example", User: "ann", TLS: tls,
				Client: &backends.Client{Source: "PROXY", Addr: netip.MustParseAddrPort("[2001:db8::1]:1")},
			},
			"Helo: client.example, Ip: 2001:db8::1, Queue-Id: test, Tls-Cipher: TLS_AES_128_GCM_SHA256, Tls-Version: TLS 1.3, User: ann",
		},
		"XCLIENT": {
			backends.Session{
				Peer: peer, HELO: "proxy.example", User: "ann", TLS: tls,
				Client: &backends.Client{Source: "XCLIENT", Addr: netip.MustParseAddrPort("198.51.100.1:0"), Name: "client.example", HELO: "hi"},
			},
			"Helo: hi, Hostname: client.example, Ip: 198.51.100.1, Queue-Id: test, User: ann",
		},
		"XCLIENT that knows nothing": {
			backends.Session{Peer: peer, HELO: "hi", Client: &backends.Client{Source: "XCLIENT"}},
			"Helo: hi, Queue-Id: test",
		},
		"XFORWARD": {
			backends.Session{
				Peer: peer, HELO: "proxy.example", User: "proxy", TLS: tls,
				XForward: &xforward.Attrs{Forwarded: true, Addr: "203.0.113.1", Name: "client.example", HELO: "hi", Ident: "4XYZ"},
			},
			"Helo: hi, Hostname: client.example, Ip: 203.0.113.1, Queue-Id: 4XYZ",
		},
		"XFORWARD that knows nothing": {
			backends.Session{Peer: peer, HELO: "proxy.example", User: "proxy", TLS: tls, XForward: &xforward.Attrs{Forwarded: true}},
			"Queue-Id: test",
		},
		"XFORWARD of the queue id alone": {
			backends.Session{Peer: peer, HELO: "peer.example", XForward: &xforward.Attrs{Ident: "4XYZ"}},
			"Helo: peer.example, Ip: 192.0.2.1, Queue-Id: 4XYZ",
		},
		"hostile HELO": {
			backends.Session{HELO: "x\r\nUser: root\x00\x7f"},
			"Helo: x??User: root??, Queue-Id: test",
		},
	}
	var got string
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = factsOf(r, "Helo", "Hostname", "Ip", "Queue-Id", "Tls-Cipher", "Tls-Version", "User")
		answering(`{"action": "no action"}`)(w, r)
	})
	b := newBackend(t, address, nil)
	for name, test := range tests {
		tx := transaction(someMessage, "ann@example.org")
		tx.Session = test.session
		if _, err := backends.Run(t.Context(), b, tx, backends.Hooks{}); err != nil || got != test.want {
			t.Errorf("%s: rspamd was told %q, %v, want %q", name, got, err, test.want)
		}
	}
}

// rspamd would hang up, and the message come again and again.
func TestManyRecipientsAreNoTrouble(t *testing.T) {
	told := 0
	b := newBackend(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		told = len(r.Header["Rcpt"])
		answering(`{"action": "no action"}`)(w, r)
	}), nil)
	recipient := strings.Repeat("x", 118) + "@example.org" // and its field have 140 octets
	tx := transaction(someMessage, slices.Repeat([]string{recipient}, 1000)...)
	undecided, err := backends.Run(t.Context(), b, tx, backends.Hooks{})
	if want := maxRecipients / 140; err != nil || len(undecided) != 1000 || told != want {
		t.Errorf("%d go on, %v, and rspamd was told of %d, want 1000, %d", len(undecided), err, told, want)
	}
}

func factsOf(r *http.Request, names ...string) string {
	var facts []string
	for _, name := range names {
		for _, value := range r.Header.Values(name) {
			facts = append(facts, name+": "+value)
		}
	}
	return strings.Join(facts, ", ")
}

// The message is the same to the last octet, whatever its header is like.
func TestRequest(t *testing.T) {
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte(" q1 \nsecond line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got, message string
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		message = fmt.Sprintf("%s %s %s %d %v %s", r.Method, r.URL, r.Host, r.ContentLength, err, text)
		names := []string{"Deliver-To", "From", "Mta-Name", "Password", "Rcpt", "Settings-Id", "User-Agent"}
		got = factsOf(r, names...)
		for name := range r.Header {
			if !slices.Contains(append(names, "Content-Length", "Queue-Id", "Connection"), name) {
				t.Errorf("an unexpected field %s of the request", name)
			}
		}
		io.WriteString(w, `{"action": "no action"}`)
	})
	plain := newBackend(t, address, func(s *Settings) { s.Hostname = "mx.example" })
	full := newBackend(t, address, func(s *Settings) { s.Hostname, s.PasswordFile, s.SettingsID = "mx.example", password, "strict" })
	tests := []struct {
		b        backends.Backend
		message  string
		from, to string
		want     string
	}{
		{plain, "", "", "ann@example.org", "Deliver-To: ann@example.org, From: <>, Mta-Name: mx.example, Rcpt: <ann@example.org>, User-Agent: mailgw"},
		{
			full, "no header\r\n" + strings.Repeat("x", 1<<20), "jürgen@bücher.example", `"x, y"@example.org ann@example.org`,
			`From: <jürgen@bücher.example>, Mta-Name: mx.example, Password: q1, Rcpt: <"x, y"@example.org>, Rcpt: <ann@example.org>, Settings-Id: strict, User-Agent: mailgw`,
		},
		{
			plain, "A :\r\n folded\r\nB:\x00\xff\r\n\r\n.\r\n..\r\nno end", "a@b.example", "postmaster",
			"Deliver-To: postmaster, From: <a@b.example>, Mta-Name: mx.example, Rcpt: <postmaster>, User-Agent: mailgw",
		},
	}
	for _, test := range tests {
		to := []string{test.to}
		if at := strings.LastIndex(test.to, " "); at > 0 {
			to = []string{test.to[:at], test.to[at+1:]}
		}
		tx := transaction(test.message, to...)
		tx.Envelope.Sender = test.from
		if _, err := backends.Run(t.Context(), test.b, tx, backends.Hooks{}); err != nil || got != test.want {
			t.Errorf("got\n%s, %v, want\n%s", got, err, test.want)
		}
		if want := fmt.Sprintf("POST /checkv2 localhost %d <nil> %s", len(test.message), test.message); message != want {
			t.Errorf("rspamd got %.100q, want %.100q", message, want)
		}
	}
}
