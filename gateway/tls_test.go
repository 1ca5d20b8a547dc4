package gateway

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// An issuer issues certificates for tests.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	ca := &issuer{}
	ca.cert, ca.key = ca.issue(t, "ca.example", true)
	return ca
}

// issue makes a certificate, which signs itself if there is no CA yet.
func (ca *issuer) issue(t *testing.T, name string, isCA bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: isCA, BasicConstraintsValid: true,
	}
	parent, signer := template, key
	if ca.cert != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// file writes a certificate with its key and returns the file's name.
func (ca *issuer) file(t *testing.T, dir, name string) string {
	t.Helper()
	cert, key := ca.issue(t, name, false)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	path := filepath.Join(dir, name+".pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (ca *issuer) client(name string) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return &tls.Config{RootCAs: pool, ServerName: name}
}

// secure does the handshake of a client.
func (c client) secure(t *testing.T, config *tls.Config) (client, error) {
	t.Helper()
	s := tls.Client(c.Conn, config)
	if err := s.HandshakeContext(t.Context()); err != nil {
		return client{}, err
	}
	return client{s, bufio.NewReader(s)}, nil
}

// tellTLS is a backend that tells how the session is secured.
var tellTLS = map[string]backends.Backend{"tls": backends.Func(func(_ context.Context, tx *backends.DataContext) error {
	text := tx.Session.Protocol
	if s := tx.Session.TLS; s != nil {
		text += fmt.Sprintf(" %s %s %.8s %s", s.Version, s.ServerName, s.ClientCertificate, s.ClientName)
	}
	tx.SetAll(backends.NewStatus(250, "2.0.0", text))
	return nil
})}

func tlsServer(t *testing.T, keys, tlsKeys string) *Server {
	return testServer(t, tellTLS, keys+"\n[listener.tls]\n"+tlsKeys+"\n[listener.routes]\n'*' = ['tls']\n")
}

// mailIt sends one message and returns the answer.
func (c client) mailIt(t *testing.T) string {
	t.Helper()
	return c.ask(t, "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA", ".")
}

// STARTTLS forgets what was said, and throws away what was injected before
// the handshake.
func TestSTARTTLS(t *testing.T) {
	ca := newIssuer(t)
	s := tlsServer(t, "protocol = 'smtp'", "mode = 'starttls'\ncertificates = ['"+ca.file(t, t.TempDir(), "mx.example")+"']")
	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "EHLO in-the-clear")
	if got := c.mailIt(t); got != "250 2.0.0 ESMTP (ID)" {
		t.Errorf("in the clear: %q", got)
	}
	c.ask(t, "MAIL FROM:<before@example.net>", "STARTTLS now")
	io.WriteString(c, "STARTTLS\r\nRSET\r\nEHLO injected\r\n")
	if got := c.hear(t); got != "220 2.0.0 ready to start TLS" {
		t.Fatalf("STARTTLS: %q", got)
	}
	c, err := c.secure(t, ca.client("mx.example"))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.ask(t, "RCPT TO:<ok@example.org>"); got != "503 5.5.1 say MAIL first" {
		t.Errorf("RCPT after the handshake: %q", got)
	}
	if got := c.ask(t, "MAIL FROM:<>"); got != "503 5.5.1 say EHLO first" {
		t.Errorf("MAIL after the handshake: %q", got)
	}
	io.WriteString(c, "EHLO secure\r\n")
	for line := ""; !strings.HasPrefix(line, "250 "); {
		if line, err = c.ReadString('\n'); err != nil || strings.Contains(line, "STARTTLS") {
			t.Fatalf("EHLO within TLS: %q, %v", line, err)
		}
	}
	if got := c.ask(t, "STARTTLS"); got != "503 5.5.1 TLS is active already" {
		t.Errorf("STARTTLS within TLS: %q", got)
	}
	if got := c.mailIt(t); got != "250 2.0.0 ESMTPS TLS 1.3 mx.example   (ID)" {
		t.Errorf("within TLS: %q", got)
	}
}

// TLS from the first octet, on TCP and on a unix socket.
func TestImplicitTLS(t *testing.T) {
	ca, dir := newIssuer(t), t.TempDir()
	for _, address := range []string{"tcp:127.0.0.1:0", "unix:" + dir + "/socket"} {
		s := tlsServer(t, "protocol = 'lmtp'\naddress = '"+address+"'", "mode = 'implicit'\ncertificates = ['"+ca.file(t, dir, "mx.example")+"']")
		c, err := dialServer(t, s).secure(t, ca.client("mx.example"))
		if err != nil {
			t.Fatalf("%s: %v", address, err)
		}
		c.hear(t)
		c.ask(t, "LHLO x")
		if got := c.mailIt(t); got != "250 2.0.0 <ok@example.org> LMTPS TLS 1.3 mx.example   (ID)" {
			t.Errorf("%s: got %q", address, got)
		}
	}
}

func TestRequireTLS(t *testing.T) {
	ca := newIssuer(t)
	s := tlsServer(t, "protocol = 'smtp'\nrequire_tls = true\nxforward = ['127.0.0.1']", "mode = 'starttls'\ncertificates = ['"+ca.file(t, t.TempDir(), "mx.example")+"']")
	c := dialServer(t, s)
	c.hear(t)
	for _, line := range []string{"MAIL FROM:<>", "RCPT TO:<x@y.example>", "DATA", "RSET", "VRFY x", "XFORWARD NAME=x"} {
		if got := c.ask(t, "EHLO x", line); got != "530 5.7.0 say STARTTLS first" {
			t.Errorf("%s: %q", line, got)
		}
	}
	if got := c.ask(t, "NOOP"); got != "250 2.0.0 ok" {
		t.Errorf("NOOP: %q", got)
	}
	if got := c.ask(t, "STARTTLS"); !strings.HasPrefix(got, "220 ") {
		t.Fatalf("STARTTLS: %q", got)
	}
	c, err := c.secure(t, ca.client("mx.example"))
	if err != nil {
		t.Fatal(err)
	}
	c.ask(t, "EHLO x")
	if got := c.mailIt(t); !strings.HasPrefix(got, "250 2.0.0 ESMTPS ") {
		t.Errorf("within TLS: %q", got)
	}
}

// A certificate brings the right to send XFORWARD; a certificate of another
// CA, or none, brings nothing or no session.
func TestClientCertificates(t *testing.T) {
	ca, dir := newIssuer(t), t.TempDir()
	server := ca.file(t, dir, "mx.example")
	caFile := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	pair := func(ca *issuer) tls.Certificate {
		p := ca.file(t, t.TempDir(), "client.example")
		cert, err := tls.LoadX509KeyPair(p, p)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	ours, strangers := pair(ca), pair(newIssuer(t))
	sum := sha256.Sum256(ours.Certificate[0])
	digits := hex.EncodeToString(sum[:])

	for _, test := range []struct {
		name, keys string
		shown      *tls.Certificate
		want       string // the answer, or empty if the session fails
		trusted    bool
	}{
		{"ask, ours", "client_certificates = 'ask'", &ours, "TLS 1.3 mx.example " + digits[:8] + "  (ID)", true},
		{"ask, none", "client_certificates = 'ask'", nil, "TLS 1.3 mx.example   (ID)", false},
		{"ask a CA, ours", "client_certificates = 'ask'\nclient_ca = '" + caFile + "'", &ours, "TLS 1.3 mx.example " + digits[:8] + " client.example (ID)", true},
		{"ask a CA, a stranger's", "client_certificates = 'ask'\nclient_ca = '" + caFile + "'", &strangers, "", false},
		{"require, none", "client_certificates = 'require'", nil, "", false},
		{"require, ours", "client_certificates = 'require'", &ours, "TLS 1.3 mx.example " + digits[:8] + "  (ID)", true},
		{"ignore, ours", "", &ours, "TLS 1.3 mx.example   (ID)", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := tlsServer(t, "protocol = 'smtp'\nxforward = ['cert:"+strings.ToUpper(digits)+"']",
				"mode = 'implicit'\ncertificates = ['"+server+"']\n"+test.keys)
			config := ca.client("mx.example")
			if test.shown != nil {
				config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return test.shown, nil }
			}
			c, err := dialServer(t, s).secure(t, config)
			if err == nil {
				_, err = c.ReadString('\n') // in TLS 1.3 a refusal comes here
			}
			if (err == nil) != (test.want != "") {
				t.Fatalf("the session: %v", err)
			}
			if err != nil {
				return
			}
			c.ask(t, "EHLO x")
			if got := c.ask(t, "XFORWARD IDENT=x"); strings.HasPrefix(got, "250 ") != test.trusted {
				t.Errorf("XFORWARD: %q", got)
			}
			if got := c.mailIt(t); got != "250 2.0.0 ESMTPS "+test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestTLSVersion(t *testing.T) {
	ca := newIssuer(t)
	s := tlsServer(t, "protocol = 'smtp'", "mode = 'implicit'\nmin_version = '1.3'\ncertificates = ['"+ca.file(t, t.TempDir(), "mx.example")+"']")
	config := ca.client("mx.example")
	config.MaxVersion = tls.VersionTLS12
	if _, err := dialServer(t, s).secure(t, config); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
}

// The client's choice of a name gets the certificate of that name, and files
// that change are read again; what cannot be used does no harm.
func TestCertificatesByNameAndAgain(t *testing.T) {
	ca, dir := newIssuer(t), t.TempDir()
	first, second := ca.file(t, dir, "first.example"), ca.file(t, dir, "second.example")
	s := tlsServer(t, "protocol = 'smtp'", "mode = 'implicit'\ncertificates = ['"+first+"', '"+second+"']")
	serve(t, s)
	serial := func(name string) string {
		t.Helper()
		c, err := dial(t, s).secure(t, ca.client(name))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return c.Conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	serial("first.example")
	before := serial("second.example")
	if again := serial("second.example"); again != before {
		t.Errorf("the certificate has changed from %s to %s", before, again)
	}
	if err := os.WriteFile(second, []byte("half a certif"), 0o600); err != nil {
		t.Fatal(err)
	}
	if broken := serial("second.example"); broken != before {
		t.Errorf("with a broken file: got %s, want %s as before", broken, before)
	}
	ca.file(t, dir, "second.example")
	if after := serial("second.example"); after == before {
		t.Error("the new certificate is not used")
	}
	if err := os.Remove(first); err != nil {
		t.Fatal(err)
	}
	serial("first.example")
}

// A client that dawdles in the handshake loses its session.
func TestSlowHandshake(t *testing.T) {
	ca := newIssuer(t)
	s := tlsServer(t, "protocol = 'smtp'\nlimits.command_timeout = '100ms'", "mode = 'implicit'\ncertificates = ['"+ca.file(t, t.TempDir(), "mx.example")+"']")
	c := dialServer(t, s)
	io.WriteString(c, "\x16\x03\x01")
	if rest, err := io.ReadAll(c); strings.Contains(string(rest), "220") {
		t.Errorf("got %q, %v", rest, err)
	}
}

// What is wrong with certificates is told at the start, with key and line.
func TestTLSConfigFaults(t *testing.T) {
	dir := t.TempDir()
	ca := newIssuer(t)
	good, other := ca.file(t, dir, "mx.example"), ca.file(t, dir, "other.example")
	bare := filepath.Join(dir, "bare.pem")
	if err := os.WriteFile(bare, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for keys, want := range map[string]string{
		"mode = 'maybe'":    "listener[0].tls.mode: want off, starttls or implicit, found \"maybe\"",
		"mode = 'starttls'": "listener[0].tls.certificates: is missing; TLS wants at least one",
		"mode = 'starttls'\ncertificates = ['missing.pem']":                                  "listener[0].tls.certificates[0]: *open *missing.pem: no such file or directory",
		"mode = 'starttls'\ncertificates = ['" + bare + "']":                                 "listener[0].tls.certificates[0]: *bare.pem: there is no private key in it; name the file of the key in keys",
		"mode = 'starttls'\ncertificates = ['" + good + "']\nkeys = ['missing.pem']":         "listener[0].tls.keys[0]: open *missing.pem: no such file or directory",
		"mode = 'starttls'\ncertificates = ['" + good + "']\nkeys = ['" + other + "']":       "listener[0].tls.keys[0]: *mx.example.pem with *other.example.pem: tls: private key does not match public key",
		"mode = 'starttls'\ncertificates = ['" + good + "']\nkeys = ['a', 'b']":              "listener[0].tls.keys: 2 keys for 1 certificates; want as many, in the same order, or none",
		"mode = 'starttls'\ncertificates = ['" + good + "']\nmin_version = '1.0'":            "listener[0].tls.min_version: want 1.2 or 1.3, found \"1.0\"",
		"mode = 'starttls'\ncertificates = ['" + good + "']\nclient_ca = '/nonexistent'":     "listener[0].tls.client_ca: open /nonexistent: no such file or directory",
		"mode = 'starttls'\ncertificates = ['" + good + "']\nclient_certificates = 'demand'": "listener[0].tls.client_certificates: want ignore, ask or require, found \"demand\"",
	} {
		_, err := listenerConfig(t, "protocol = 'smtp'\n[listener.tls]\n"+keys)
		if err == nil || !matches(strings.ReplaceAll(err.Error(), dir, ""), strings.ReplaceAll(want, dir, "")) {
			t.Errorf("%s:\n got %v\nwant %s", keys, err, want)
		}
	}
	_, err := listenerConfig(t, "protocol = 'smtp'\nrequire_tls = true")
	if err == nil || !strings.Contains(err.Error(), "listener[0].require_tls: there is no TLS: tls.mode is off") {
		t.Errorf("require_tls without TLS: %v", err)
	}
}

// A client that dawdles in the handshake does not hold up a shutdown.
func TestShutdownDuringHandshake(t *testing.T) {
	ca := newIssuer(t)
	s := tlsServer(t, "protocol = 'smtp'", "mode = 'implicit'\ncertificates = ['"+ca.file(t, t.TempDir(), "mx.example")+"']")
	c := dialServer(t, s)
	io.WriteString(c, "\x16")
	end := time.Now().Add(20 * time.Second)
	for sessions := 0; sessions == 0; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("after 20s there is no session")
		}
		s.mu.Lock()
		sessions = len(s.conns)
		s.mu.Unlock()
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// A client that comes again need not do the whole handshake again.
func TestTLSSessionIsResumed(t *testing.T) {
	ca := newIssuer(t)
	s := tlsServer(t, "protocol = 'smtp'", "mode = 'implicit'\ncertificates = ['"+ca.file(t, t.TempDir(), "mx.example")+"']")
	serve(t, s)
	config := ca.client("mx.example")
	config.ClientSessionCache = tls.NewLRUClientSessionCache(10)
	for i := range 3 {
		c, err := dial(t, s).secure(t, config)
		if err != nil {
			t.Fatal(err)
		}
		c.hear(t)
		c.ask(t, "NOOP", "QUIT")
		if resumed := c.Conn.(*tls.Conn).ConnectionState().DidResume; resumed != (i > 0) {
			t.Errorf("connection %d: resumed %v", i, resumed)
		}
	}
}

// What a backend does to its Session is its own affair.
func TestSessionIsNotShared(t *testing.T) {
	ca := newIssuer(t)
	all := map[string]backends.Backend{"change": backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		tx.SetAll(backends.NewStatus(250, "2.0.0", tx.Session.TLS.Version+" "+tx.Session.XForward.Ident))
		tx.Session.TLS.Version, tx.Session.XForward.Ident = "changed", "changed"
		return nil
	})}
	s := testServer(t, all, "protocol = 'smtp'\nxforward = ['127.0.0.1']\n[listener.tls]\nmode = 'implicit'\ncertificates = ['"+
		ca.file(t, t.TempDir(), "mx.example")+"']\n[listener.routes]\n'*' = ['change']\n'@example.com' = ['change']\n")
	c, err := dialServer(t, s).secure(t, ca.client("mx.example"))
	if err != nil {
		t.Fatal(err)
	}
	c.hear(t)
	c.ask(t, "EHLO x")
	for range 2 {
		c.ask(t, "XFORWARD IDENT=q", "MAIL FROM:<>", "RCPT TO:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
		if got := c.ask(t, "."); got != "250 2.0.0 TLS 1.3 q (ID)" {
			t.Errorf("got %q", got)
		}
	}
}

// heedsRequireTLS is a backend that REQUIRETLS can be offered for.
type heedsRequireTLS struct{ backends.Func }

func (heedsRequireTLS) Capabilities() backends.Capabilities {
	return backends.Capabilities{RequireTLS: true}
}

// REQUIRETLS is offered over TLS alone, and only where the backends heed it.
func TestRequireTLSExtension(t *testing.T) {
	all := map[string]backends.Backend{"heeds": heedsRequireTLS{tellEnvelope}, "not": backends.Func(tellEnvelope)}
	ca, dir := newIssuer(t), t.TempDir()
	keys := "protocol = 'lmtp'\noffer_requiretls = true\n[listener.tls]\nmode = 'starttls'\ncertificates = ['" + ca.file(t, dir, "mx.example.org") + "']\n[listener.routes]\n"
	c := testConfig(t, all, keys+"'*' = ['not', 'heeds']\n'@example.org' = ['heeds', 'not']\n")
	if _, err := New(c, all, slog.New(slog.DiscardHandler)); err == nil || !strings.HasSuffix(err.Error(),
		`listener[0].offer_requiretls: the route of "@example.org" ends in backend "not", which does not heed REQUIRETLS, and the client relies on us`) {
		t.Errorf("a backend that does not heed it: %v", err)
	}
	peer := dialServer(t, testServer(t, all, keys+"'*' = ['heeds']\n"))
	peer.hear(t)
	ehlo := func() string {
		io.WriteString(peer, "LHLO client\r\n")
		var keywords strings.Builder
		for line := ""; !strings.HasPrefix(line, "250 "); keywords.WriteString(line) {
			var err error
			if line, err = peer.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		return keywords.String()
	}
	if keywords := ehlo(); strings.Contains(keywords, "REQUIRETLS") {
		t.Errorf("offered in the clear: %q", keywords)
	}
	if got := peer.ask(t, "MAIL FROM:<> REQUIRETLS"); got != "530 5.7.0 REQUIRETLS takes TLS: say STARTTLS first" {
		t.Errorf("in the clear: %q", got)
	}
	peer.ask(t, "STARTTLS")
	peer, err := peer.secure(t, ca.client("mx.example.org"))
	if err != nil {
		t.Fatal(err)
	}
	if keywords := ehlo(); !strings.Contains(keywords, "REQUIRETLS\r\n") {
		t.Errorf("not offered over TLS: %q", keywords)
	}
	if got := peer.ask(t, "MAIL FROM:<> REQUIRETLS=YES"); got != "501 5.5.4 REQUIRETLS has no value" {
		t.Errorf("with a value: %q", got)
	}
	// The parameter and Postfix's header field reach the backend.
	if got := peer.ask(t, "MAIL FROM:<> requiretls", "RCPT TO:<a@example.org>", "DATA", "Require-TLS-ESMTP: yes\r\n\r\n."); got !=
		`250 2.0.0 <a@example.org> LMTPS client from="" ["requiretls"] to="a@example.org" [] (ID)` {
		t.Errorf("a message: %q", got)
	}
}
