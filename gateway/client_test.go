package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/xforward"
)

// tellClient tells who the client is, by all that is known.
func tellClient(_ context.Context, tx *backends.DataContext) error {
	s, text := tx.Session, "nobody"
	if c := s.Client; c != nil {
		text = fmt.Sprintf("%s %s %q %v %s %s to %v", c.Source, c.Name, c.ReverseName, c.Addr, c.Protocol, c.HELO, c.Local)
		for _, t := range c.TLVs {
			text += fmt.Sprintf(" %#x=%q", t.Type, t.Value)
		}
	}
	tx.SetAll(backends.NewStatus(250, "2.0.0", fmt.Sprintf("%s; user %s by %s; %s %s; from %v",
		text, s.User, s.Mechanism, s.Protocol, s.HELO, s.ClientAddr())))
	return nil
}

// localOnly is a backend that refuses clients from elsewhere.
type localOnly struct{ backends.Func }

func (localOnly) CheckConnection(_ context.Context, s *backends.Session) (backends.Status, error) {
	if addr := s.ClientAddr(); addr.IsValid() && !addr.IsLoopback() {
		return backends.NewStatus(550, "5.7.1", fmt.Sprintf("not from %v", addr)), nil
	}
	return backends.Status{}, nil
}

// A trust of certificates is the proxy's, and no longer good for the client
// that it has put in its place.
func TestXClientEndsTrustByCertificate(t *testing.T) {
	d := testServer(t, testBackends, "protocol = 'smtp'\n").listeners[0].dialog(backends.Peer{}, "test")
	sum := strings.Repeat("ab", 32)
	var err error
	if d.xclientTrust, err = xforward.ParseTrust([]string{"cert:" + sum}); err != nil {
		t.Fatal(err)
	}
	d.trust = d.xclientTrust
	d.startedTLS(&backends.TLS{ClientCertificate: sum})
	if !d.trusted || !d.mayXClient {
		t.Error("the certificate is not trusted")
	}
	if r, _ := d.command("XCLIENT NAME=a.example"); r.Code != 220 || !d.mayXClient {
		t.Errorf("a name: %v, still trusted: %t", r, d.mayXClient)
	}
	if d.certificate() != sum {
		t.Error("the certificate is forgotten")
	}
	if r, _ := d.command("XCLIENT ADDR=192.0.2.1"); r.Code != 220 || d.trusted || d.mayXClient || d.certificate() != "" {
		t.Errorf("an address: %v, still trusted: %t, %t, certificate %q", r, d.trusted, d.mayXClient, d.certificate())
	}
}

// What PROXY, XCLIENT and XFORWARD tell is each over the one before, and the
// peer of the socket is told beside them. Nothing of one is mixed with another.
func TestClientIsNeverMixed(t *testing.T) {
	tell := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		s := tx.Session
		text := fmt.Sprintf("peer %v, client %+v, XFORWARD %+v, from %v", s.Peer.Addr.Addr(), *s.Client, s.XForward, s.ClientAddr())
		tx.SetAll(backends.NewStatus(250, "2.0.0", text))
		return nil
	})
	s := testServer(t, map[string]backends.Backend{"tell": tell},
		"protocol = 'smtp'\nproxy = ['127.0.0.1']\nxclient = ['192.0.2.1']\nxforward = ['192.0.2.3']\n[listener.routes]\n'*' = ['tell']\n")
	serve(t, s)
	c := dial(t, s)
	io.WriteString(c, "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x10\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\x00\x00\x19\xe0\x00\x01x")
	c.hear(t)
	const (
		proxied     = "Addr:192.0.2.1:1024 Local:192.0.2.2:25 Name: ReverseName: HELO: Protocol: TLVs:[{Type:224 Value:[120]}]}, XFORWARD "
		named       = "Addr:192.0.2.1:1024 Local:192.0.2.2:25 Name:a.example ReverseName:a.example HELO: Protocol: TLVs:[{Type:224 Value:[120]}]}, XFORWARD "
		readdressed = "Addr:192.0.2.3:3 Local:invalid AddrPort Name:a.example ReverseName:a.example HELO: Protocol: TLVs:[]}, XFORWARD "
	)
	for _, test := range []struct {
		say  []string
		want string
	}{
		{[]string{"HELO proxy"}, "PROXY " + proxied + "<nil>, from 192.0.2.1"},
		{[]string{"XCLIENT NAME=a.example PORT=3", "HELO proxy"}, "XCLIENT " + named + "<nil>, from 192.0.2.1"},
		{[]string{"XCLIENT ADDR=192.0.2.3", "HELO proxy"}, "XCLIENT " + readdressed + "<nil>, from 192.0.2.3"},
		{[]string{"XFORWARD ADDR=192.0.2.4 HELO=h"}, "XCLIENT " + readdressed + "&{Name: Addr:192.0.2.4 Port: Proto: HELO:h Ident: Source: Forwarded:true}, from 192.0.2.4"},
		{[]string{"XFORWARD HELO=h"}, "XCLIENT " + readdressed + "&{Name: Addr: Port: Proto: HELO:h Ident: Source: Forwarded:true}, from invalid IP"},
		{[]string{"XFORWARD IDENT=i"}, "XCLIENT " + readdressed + "&{Name: Addr: Port: Proto: HELO: Ident:i Source: Forwarded:false}, from 192.0.2.3"},
	} {
		c.ask(t, test.say...)
		got := c.ask(t, "MAIL FROM:<>", "RCPT TO:<a@example.org>", "DATA", ".")
		if want := "250 2.0.0 peer 127.0.0.1, client {Source:" + test.want + " (ID)"; got != want {
			t.Errorf("%q: got %q, want %q", test.say, got, want)
		}
	}
}

// A session counts for the client that XCLIENT has put in its proxy's place.
func TestXClientCountsClients(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'smtp'\nxclient = ['127.0.0.1']\n[listener.limits]\nconnections_per_peer = 1\n")
	serve(t, s)
	const welcome, tooMany = "220 mx.example.org ESMTP mailgw", "421 4.7.0 mx.example.org too many connections, try again later"
	session := func(xclient, want string) client {
		c := dial(t, s)
		if got := c.hear(t); got != welcome {
			t.Fatalf("before %s: got %q", xclient, got)
		}
		if got := c.ask(t, xclient); got != want {
			t.Errorf("%s: got %q, want %q", xclient, got, want)
		}
		return c
	}
	for range 2 {
		first := session("XCLIENT ADDR=192.0.2.1", welcome)
		unknown := session("XCLIENT ADDR=[UNAVAILABLE]", welcome) // who these are is not known
		another := session("XCLIENT ADDR=[UNAVAILABLE]", welcome)
		session("XCLIENT ADDR=192.0.2.2", welcome).ask(t, "QUIT")
		if rest, err := io.ReadAll(session("XCLIENT ADDR=192.0.2.1", tooMany)); len(rest) > 0 || err != nil {
			t.Errorf("after 421: got %q, %v", rest, err)
		}
		for _, c := range []client{first, unknown, another} {
			c.Close()
		}
		waitForSessions(t, s.listeners[0], 0, 0)
	}
}

// waitForSessions waits until a listener has so many sessions, and counts those
// of so many peers.
func waitForSessions(t *testing.T, l *listener, sessions, peers int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
		l.mu.Lock()
		all, counted := l.all, len(l.peers)
		l.mu.Unlock()
		if all == sessions && counted == peers {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d sessions of %d peers, want %d of %d", all, counted, sessions, peers)
		}
	}
}

// XCLIENT may come before TLS, where XFORWARD may not, and its client stays
// when TLS has begun; who has logged in has to say so again.
func TestXClientBeforeTLS(t *testing.T) {
	ca := newIssuer(t)
	s := testServer(t, testBackends, "protocol = 'smtp'\nrequire_tls = true\nxclient = ['127.0.0.1']\nxforward = ['127.0.0.1', '192.0.2.1']\n"+
		"[listener.tls]\nmode = 'starttls'\ncertificates = ['"+ca.file(t, t.TempDir(), "mx.example.org")+"']\n[listener.routes]\n'*' = ['client']\n")
	serve(t, s)
	c := dial(t, s)
	c.hear(t)
	for _, exchange := range [][2]string{
		{"XFORWARD NAME=a.example", "530 5.7.0 say STARTTLS first"},
		{"XCLIENT ADDR=192.0.2.1 LOGIN=ann", "220 mx.example.org ESMTP mailgw"},
		{"XFORWARD NAME=a.example", "530 5.7.0 say STARTTLS first"},
		{"STARTTLS", "220 2.0.0 ready to start TLS"},
	} {
		if got := c.ask(t, exchange[0]); got != exchange[1] {
			t.Fatalf("%s: got %q, want %q", exchange[0], got, exchange[1])
		}
	}
	secure := tls.Client(c.Conn, ca.client("mx.example.org"))
	c = client{secure, bufio.NewReader(secure)}
	if got := c.ask(t, "EHLO client", "MAIL FROM:<>", "RCPT TO:<a@example.org>", "DATA", "."); got !=
		`250 2.0.0 XCLIENT  "" 192.0.2.1:0   to invalid AddrPort; user  by ; ESMTPS client; from 192.0.2.1 (ID)` {
		t.Errorf("got %q", got)
	}
}

// Each line of the log names the client as it is known at that point.
func TestLogNamesTheClient(t *testing.T) {
	var log lockedBuffer
	s := testServer(t, testBackends, "protocol = 'smtp'\nproxy = ['127.0.0.1']\nxclient = ['192.0.2.1']\nask = ['early']\n")
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	serve(t, s)
	c := dial(t, s)
	io.WriteString(c, "PROXY TCP4 192.0.2.1 192.0.2.2 1024 25\r\n")
	c.hear(t)
	c.ask(t, "FIRST", "XCLIENT NAME=a.example ADDR=192.0.2.66", "SECOND", "HELO client", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA", ".", "QUIT")
	for _, want := range []string{
		`peer=127\.0\.0\.1:\d+ client=192\.0\.2\.1:1024 command=FIRST`,
		`peer=127\.0\.0\.1:\d+ client=192\.0\.2\.66:0 command=SECOND`,
		`msg=received .*client=192\.0\.2\.66:0 `,
		`msg=status .*client=192\.0\.2\.66:0 `,
	} {
		if !regexp.MustCompile(want).MatchString(log.String()) {
			t.Errorf("no line like %s in\n%s", want, log.String())
		}
	}
}
