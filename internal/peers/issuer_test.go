package peers

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// An issuer issues certificates. All peers trust it, and the gateway's
// certificate is for gatewayName and its address.
type issuer struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

const gatewayName = "gw.peers.example"

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	ca := &issuer{t: t, dir: gatewaytest.Directory(t)}
	ca.cert, ca.key = ca.issue("ca.peers.example")
	ca.write(ca.path(), "CERTIFICATE", ca.cert.Raw)
	return ca
}

// path is the file with the issuer's certificate.
func (ca *issuer) path() string { return filepath.Join(ca.dir, "ca.pem") }

// issue makes a certificate. The first one signs itself, and all others.
func (ca *issuer) issue(name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		ca.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: ca.cert == nil, BasicConstraintsValid: true,
	}
	parent, signer := ca.cert, ca.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return cert, key
}

// file issues a certificate and writes it with its key into one file. The
// fingerprint is its SHA-256 in hexadecimal digits.
func (ca *issuer) file(name string) (path, fingerprint string) {
	ca.t.Helper()
	cert, key := ca.issue(name)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		ca.t.Fatal(err)
	}
	path = filepath.Join(ca.dir, name+".pem")
	ca.write(path, "CERTIFICATE", cert.Raw)
	ca.write(path, "PRIVATE KEY", der)
	sum := sha256.Sum256(cert.Raw)
	return path, hex.EncodeToString(sum[:])
}

// write adds a block to a file.
func (ca *issuer) write(path, kind string, der []byte) {
	ca.t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		ca.t.Fatal(err)
	}
	defer file.Close()
	if err := pem.Encode(file, &pem.Block{Type: kind, Bytes: der}); err != nil {
		ca.t.Fatal(err)
	}
}
