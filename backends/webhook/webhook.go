package webhook

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"syscall"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// Settings say where the hook is, and how it is asked.
type Settings struct {
	// URL is that of the hook: http or https. If Socket is the path of a unix
	// socket, that is connected to instead of the host.
	URL    string `toml:"url"`
	Socket string `toml:"socket"`

	// SecretFile has the secret of the signature, and BearerFile a token that
	// is sent as "Authorization: Bearer TOKEN". Empty is none.
	SecretFile string `toml:"secret_file"`
	BearerFile string `toml:"bearer_file"`

	// CA has the certificates that vouch for the hook's. If it is empty, they
	// are the system's.
	CA string `toml:"ca"`

	// Certificate and Key are shown to a hook that asks for a certificate.
	Certificate string `toml:"certificate"`
	Key         string `toml:"key"`

	// Timeout is how long the hook may take for a message, redirects and all.
	Timeout time.Duration `toml:"timeout"`

	// Redirects is how many are followed for a message, up to 10.
	Redirects int `toml:"redirects"`

	// Addresses are the addresses and networks that may be connected to. If
	// there are none, it is as the package comment says.
	Addresses []string `toml:"addresses"`

	// Directory is for temporary files. If it is empty, it is the system's.
	Directory string `toml:"directory"`
}

// Defaults are the Settings that hold for keys that are not given. URL has
// none.
var Defaults = Settings{Timeout: 30 * time.Second}

const (
	maxRedirects = 10
	minSecret    = 16 // octets: 128 bits, if they are random
)

// New returns a backend that asks the hook of s. It does not connect to it yet.
func New(s Settings) (backends.Backend, error) {
	var faults []error
	fault := func(key string, err error) {
		if err != nil {
			faults = append(faults, backends.SettingError{Key: key, Err: err})
		}
	}
	u, err := parseURL(s.URL)
	fault("url", err)
	secret, err := readSecret(s.SecretFile)
	if err == nil && s.SecretFile != "" && len(secret) < minSecret {
		err = fmt.Errorf("%s: a secret of %d octets, want %d or more", s.SecretFile, len(secret), minSecret)
	}
	fault("secret_file", err)
	bearer, err := readSecret(s.BearerFile)
	if err == nil && bytes.ContainsFunc(bearer, func(r rune) bool { return r <= ' ' || r > '~' }) {
		err = fmt.Errorf("%s: want one line of printable US-ASCII without spaces", s.BearerFile)
	}
	fault("bearer_file", err)
	roots, err := readCA(s.CA)
	fault("ca", err)
	certificates, err := readCertificate(s.Certificate, s.Key)
	fault("certificate", err)
	allowed, err := parseNetworks(s.Addresses)
	fault("addresses", err)
	fault("directory", probe(s.Directory))
	if s.Timeout <= 0 {
		fault("timeout", fmt.Errorf("%v, want more than 0s", s.Timeout))
	}
	if s.Redirects < 0 || s.Redirects > maxRedirects {
		fault("redirects", fmt.Errorf("%d, want 0 to %d", s.Redirects, maxRedirects))
	}
	if s.Socket != "" && (s.Redirects > 0 || len(s.Addresses) > 0) {
		fault("socket", errors.New("with it there are no redirects and no addresses"))
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return &backend{
		hook:      newHook(u, s, allowed, &tls.Config{RootCAs: roots, Certificates: certificates}, string(bearer)),
		secret:    secret,
		timeout:   s.Timeout,
		directory: s.Directory,
		host:      cmp.Or(s.Socket, u.Scheme+"://"+u.Host),
	}, nil
}

func parseURL(text string) (*url.URL, error) {
	if text == "" {
		return nil, errors.New("is missing")
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, err
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("has the scheme %q, want http or https", u.Scheme)
	case u.Hostname() == "":
		return nil, errors.New("has no host")
	case u.User != nil:
		return nil, errors.New("has a user; want bearer_file for what is secret")
	case u.Fragment != "":
		return nil, errors.New("has a fragment")
	}
	return u, nil
}

// readSecret returns what is in a file that is not readable by everybody,
// without its line end. No path is no secret.
func readSecret(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode()&0o006 != 0 {
		return nil, fmt.Errorf("%s: mode %04o lets everybody at the secret; want chmod o= %[1]s", path, info.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	text = bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r"))
	if len(text) == 0 {
		return nil, fmt.Errorf("%s: the file is empty", path)
	}
	return text, nil
}

// readCA returns the certificates of a file, or nil, which are the system's.
func readCA(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: no certificate in it", path)
	}
	return roots, nil
}

func readCertificate(certificate, key string) ([]tls.Certificate, error) {
	switch {
	case certificate == "" && key == "":
		return nil, nil
	case certificate == "" || key == "":
		return nil, errors.New("certificate and key go together")
	}
	pair, err := tls.LoadX509KeyPair(certificate, key)
	return []tls.Certificate{pair}, err
}

// probe finds out whether temporary files can be made in a directory.
func probe(directory string) error {
	file, err := temporary(directory)
	if err != nil {
		return err
	}
	return file.Close()
}

// parseNetworks reads addresses and networks.
func parseNetworks(texts []string) (networks []netip.Prefix, err error) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if addr, addrErr := netip.ParseAddr(text); addrErr == nil && addr.Zone() == "" {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%q is neither an address nor a network such as 192.0.2.0/24", text)
		}
		networks = append(networks, p)
	}
	return networks, nil
}

type backend struct {
	hook      *hook
	secret    []byte // nil: no signature
	timeout   time.Duration
	directory string
	host      string // where the hook is
}

// MayEdit says what an answer can ask for.
func (b *backend) MayEdit() backends.EditKinds {
	return backends.EditHeader | backends.EditEnvelope
}

// Needs has the host of the hook: the rest of its URL may be a secret.
func (b *backend) Needs() []string {
	return []string{"connects to " + b.host, "writes " + cmp.Or(b.directory, os.TempDir())}
}

func (b *backend) Deliver(ctx context.Context, tx *backends.DataContext) error {
	m, err := keep(tx, b.directory)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errors.Join(err, backends.StorageFull)
	case err != nil:
		return err
	}
	defer m.Close()

	answer, err := b.ask(ctx, tx, m)
	if err != nil {
		return err
	}
	if err := answer.edit(tx, m); err != nil {
		return err
	}
	answer.decide(tx)
	return nil
}

// ask posts a message to the hook.
func (b *backend) ask(ctx context.Context, tx *backends.DataContext, m *message) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	f, err := newForm(tx, m)
	if err != nil {
		return nil, err
	}
	if b.secret != nil {
		f.sign(b.secret, time.Now())
	}
	text, whole, err := b.hook.post(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("hook %s: %w", b.hook, err)
	}
	a, err := parseAnswer(text, len(tx.Envelope.Recipients))
	if err == nil && !whole && a.delivers() {
		err = errors.New("it was given before the whole message was sent, and says 2yz")
	}
	if err != nil {
		return nil, fmt.Errorf("hook %s: answer: %w", b.hook, err)
	}
	return a, nil
}
