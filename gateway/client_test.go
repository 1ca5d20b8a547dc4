package gateway

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"testing"

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
