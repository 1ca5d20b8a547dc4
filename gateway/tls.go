package gateway

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// tlsFiles are the certificates and keys of a listener. They are read again
// when they have changed; as long as what is there cannot be used, what was
// there before stays in use.
type tlsFiles struct {
	config TLSConfig
	log    *slog.Logger
	server *tls.Config // of all handshakes, so that it has the keys of their tickets

	mu      sync.Mutex
	current *tls.Config
	seen    map[string]fileStamp // of each file when it was read last
}

// A fileStamp tells whether a file has changed.
type fileStamp struct {
	modified time.Time
	size     int64
}

var tlsVersions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

var clientAuth = map[string]tls.ClientAuthType{
	"ignore":  tls.NoClientCert,
	"ask":     tls.RequestClientCert,
	"require": tls.RequireAnyClientCert,
}

// clientAuthByCA is clientAuth where certificates have to be of a CA.
var clientAuthByCA = map[string]tls.ClientAuthType{
	"ignore":  tls.NoClientCert,
	"ask":     tls.VerifyClientCertIfGiven,
	"require": tls.RequireAndVerifyClientCert,
}

func newTLSFiles(config TLSConfig, log *slog.Logger) *tlsFiles {
	f := &tlsFiles{config: config, log: log}
	f.server = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return f.get() }}
	return f
}

// get returns what the files say now.
func (f *tlsFiles) get() (*tls.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current != nil && !f.changed() {
		return f.current, nil
	}
	next, err := f.config.load()
	switch {
	case err == nil:
		f.current = next
	case f.current == nil:
		return nil, err
	default:
		f.log.Error("backend", "event", "certificate", "error", err.Error(), "effect", "the one before stays in use")
	}
	return f.current, nil
}

// changed reports whether a file is another one than when it was asked last.
func (f *tlsFiles) changed() bool {
	seen := map[string]fileStamp{}
	changed := false
	for _, path := range f.config.files() {
		var stamp fileStamp
		if info, err := os.Stat(path); err == nil {
			stamp = fileStamp{info.ModTime(), info.Size()}
		}
		seen[path] = stamp
		changed = changed || f.seen[path] != stamp
	}
	f.seen = seen
	return changed
}

func (c TLSConfig) files() []string {
	files := slices.Concat(c.Certificates, c.Keys)
	if c.ClientCA != "" {
		files = append(files, c.ClientCA)
	}
	return files
}

// load reads the files. crypto/tls chooses among several certificates by the
// name that the client asks for (SNI); the first one serves the others.
func (c TLSConfig) load() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tlsVersions[c.MinVersion], ClientAuth: clientAuth[c.ClientCertificates]}
	for i, file := range c.Certificates {
		key := file
		if len(c.Keys) > 0 {
			key = c.Keys[i]
		}
		cert, err := keyPair(file, key)
		if err != nil {
			if len(c.Keys) > 0 && !errors.Is(err, errCertificate) {
				return nil, tlsFault{fmt.Sprintf("keys[%d]", i), err}
			}
			return nil, tlsFault{fmt.Sprintf("certificates[%d]", i), err}
		}
		config.Certificates = append(config.Certificates, cert)
	}
	if c.ClientCA != "" {
		text, err := os.ReadFile(c.ClientCA)
		if err != nil {
			return nil, tlsFault{"client_ca", err}
		}
		config.ClientAuth = clientAuthByCA[c.ClientCertificates]
		config.ClientCAs = x509.NewCertPool()
		if !config.ClientCAs.AppendCertsFromPEM(text) {
			return nil, tlsFault{"client_ca", fmt.Errorf("%s: no certificate in PEM form", c.ClientCA)}
		}
	}
	return config, nil
}

// A tlsFault is a fault in the file that a key names.
type tlsFault struct {
	key string
	err error
}

func (f tlsFault) Error() string { return f.err.Error() }

var errCertificate = errors.New("certificate")

// keyPair reads a certificate and its key, which may be in the same file. An
// error is errCertificate if it is of the certificate's file.
func keyPair(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%w: %w", errCertificate, err)
	}
	if block, _ := pem.Decode(cert); block == nil {
		return tls.Certificate{}, fmt.Errorf("%w: %s: not in PEM form", errCertificate, certFile)
	}
	key := cert
	if keyFile != certFile {
		if key, err = os.ReadFile(keyFile); err != nil {
			return tls.Certificate{}, err
		}
	} else if !bytes.Contains(key, []byte("PRIVATE KEY-----")) {
		return tls.Certificate{}, fmt.Errorf("%w: %s: there is no private key in it; name the file of the key in keys", errCertificate, certFile)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		err = fmt.Errorf("%s with %s: %w", certFile, keyFile, err)
	}
	return pair, err
}

// tlsSession is what a backend may know of a handshake.
func tlsSession(state tls.ConnectionState) *backends.TLS {
	t := &backends.TLS{
		Version:    tls.VersionName(state.Version),
		Cipher:     tls.CipherSuiteName(state.CipherSuite),
		ServerName: state.ServerName,
	}
	if len(state.PeerCertificates) > 0 {
		sum := sha256.Sum256(state.PeerCertificates[0].Raw)
		t.ClientCertificate = hex.EncodeToString(sum[:])
	}
	if len(state.VerifiedChains) > 0 {
		t.ClientName = state.PeerCertificates[0].Subject.CommonName
		if names := state.PeerCertificates[0].DNSNames; len(names) > 0 {
			t.ClientName = names[0]
		}
	}
	return t
}
