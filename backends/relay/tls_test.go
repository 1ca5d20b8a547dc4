package relay

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// issue writes the certificate of a new CA, and one of its making for mx.example.org
// with its key, in PEM form.
func issue(t *testing.T) (ca, certificate string) {
	t.Helper()
	dir := t.TempDir()
	ca, certificate = filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem")
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{"mx.example.org"},
		NotBefore: root.NotBefore, NotAfter: root.NotAfter,
	}
	rootKey, leafKey := newKey(t), newKey(t)
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, leafKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, ca, pem.Block{Type: "CERTIFICATE", Bytes: rootDER})
	writePEM(t, certificate, pem.Block{Type: "CERTIFICATE", Bytes: leafDER}, pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	return ca, certificate
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writePEM(t *testing.T, path string, blocks ...pem.Block) {
	t.Helper()
	var text []byte
	for _, b := range blocks {
		text = append(text, pem.EncodeToMemory(&b)...)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// An inbox takes what comes to a target, and knows the user ann.
type inbox struct{ came chan *backends.DataContext }

func (b inbox) Deliver(_ context.Context, tx *backends.DataContext) error {
	b.came <- tx
	tx.SetAll(backends.Delivered)
	return nil
}

func (inbox) Capabilities() backends.Capabilities {
	return backends.Capabilities{EightBitMIME: true, SMTPUTF8: true, BinaryMIME: true, DSN: true, RequireTLS: true}
}

func (inbox) Authenticate(_ context.Context, _ *backends.Session, c backends.Credentials) (string, error) {
	if c.User == "ann" && c.Password == "secret" {
		return c.User, nil
	}
	return "", backends.BadCredentials
}

// deliver gives the relay a small transaction with parameters of MAIL, and returns
// what its recipient is told.
func deliver(t *testing.T, b backends.Backend, params ...string) string {
	t.Helper()
	tx := newTransaction()
	tx.Envelope = backends.Envelope{Sender: "ann@example.net", Params: params, Recipients: []backends.Recipient{{Address: "bob@example.org"}}}
	w := &witness{}
	run(t, b, tx, "Subject: one\r\n\r\nhi\r\n", w)
	status := ""
	for _, line := range w.told {
		if text, ok := strings.CutPrefix(line, "0: "); ok && status == "" {
			status = text
		}
	}
	return status
}

// Over TLS a target is what its certificate says; in the clear it gets no
// password and no message with REQUIRETLS.
func TestTLS(t *testing.T) {
	ca, certificate := issue(t)
	foreignCA, _ := issue(t)
	logTo(t, &witness{})
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("ann\nsecret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	files := fmt.Sprintf("tls.certificates = ['%s']\nask = ['inbox']\noffer_requiretls = true\n", certificate)
	in := inbox{make(chan *backends.DataContext, 1)}
	starttls := startGateway(t, "protocol = 'smtp'\ntls.mode = 'starttls'\n"+files, in)
	implicit := startGateway(t, "protocol = 'smtp'\ntls.mode = 'implicit'\nauth.required = true\n"+files, in)
	clear := startGateway(t, "protocol = 'smtp'", in)

	const delivered, noTLS = "250 2.0.0 delivered (ID)", "451 4.7.5 no secure connection to the next hop, try again later"
	for _, test := range []struct {
		name, target string
		edit         func(*Settings)
		params       []string
		want         string
		session      string // as the target sees it
	}{
		{"STARTTLS", "smtp+starttls://" + starttls, nil, nil, delivered, "ESMTPS "},
		{"from the first octet", "smtps://" + implicit, func(s *Settings) { s.CredentialsFile = secret }, nil, delivered, "ESMTPSA ann"},
		{"without credentials", "smtps://" + implicit, nil, nil, "451 4.3.5 authenticate first", ""},
		{"REQUIRETLS", "smtp+starttls://" + starttls, nil, []string{"REQUIRETLS"}, delivered, "ESMTPS  REQUIRETLS"},
		{"REQUIRETLS in the clear", "smtp://" + starttls, nil, []string{"REQUIRETLS"}, noRequireTLS.Error(), ""},
		{"no STARTTLS", "smtp+starttls://" + clear, nil, nil, noTLS, ""},
		{"no TLS", "smtps://" + clear, nil, nil, noTLS, ""},
		{"another CA", "smtp+starttls://" + starttls, func(s *Settings) { s.TLSCA = foreignCA }, nil, noTLS, ""},
		{"CAs of the system", "smtps://" + implicit, func(s *Settings) { s.TLSCA = "" }, nil, noTLS, ""},
		{"another name", "smtps://" + implicit, func(s *Settings) { s.TLSServerName = "mx.example.net" }, nil, noTLS, ""},
		{"the name of the URL", "smtps://" + implicit, func(s *Settings) { s.TLSServerName = "" }, nil, noTLS, ""},
		{"not verified", "smtp+starttls://" + starttls, func(s *Settings) { s.TLSServerName, s.TLSVerify = "", false }, nil, delivered, "ESMTPS "},
		{"not verified, and REQUIRETLS", "smtp+starttls://" + starttls, func(s *Settings) { s.TLSVerify = false }, []string{"REQUIRETLS"}, noRequireTLS.Error(), ""},
	} {
		s := to(test.target)
		s.TLSCA, s.TLSServerName = ca, "mx.example.org"
		if test.edit != nil {
			test.edit(&s)
		}
		b := newRelay(t, s)
		got := deliver(t, b, test.params...)
		session := ""
		if strings.HasPrefix(got, "250") {
			got = got[:strings.LastIndex(got, "(")] + "(ID)"
			tx := <-in.came
			session = tx.Session.Protocol + " " + tx.Session.User
			if slices.Contains(tx.Envelope.Params, "REQUIRETLS") {
				session += " REQUIRETLS"
			}
		}
		if got != test.want || session != test.session {
			t.Errorf("%s: got %q, session %q; want %q, %q", test.name, got, session, test.want, test.session)
		}
	}
}

// A changed password counts from the next connection on.
func TestCredentialsChange(t *testing.T) {
	logTo(t, &witness{})
	ca, certificate := issue(t)
	in := inbox{make(chan *backends.DataContext, 1)}
	address := startGateway(t, fmt.Sprintf("protocol = 'smtp'\ntls.mode = 'implicit'\nask = ['inbox']\nauth.required = true\ntls.certificates = ['%s']\n", certificate), in)
	secret := filepath.Join(t.TempDir(), "secret")
	s := to("smtps://" + address)
	s.TLSCA, s.TLSServerName, s.CredentialsFile = ca, "mx.example.org", secret
	if err := os.WriteFile(secret, []byte("ann\nguess\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newRelay(t, s)
	if got := deliver(t, b); got != noAuth.Error() {
		t.Errorf("with a wrong password: %s", got)
	}
	if err := os.WriteFile(secret, []byte("ann\nsecret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := deliver(t, b); !strings.HasPrefix(got, "250 ") {
		t.Errorf("with the right one: %s", got)
	}
}
