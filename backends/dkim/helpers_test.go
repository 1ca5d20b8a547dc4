package dkim

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/dnstest"
)

// keys are made once: an RSA key takes its time.
var keys = sync.OnceValues(func() (*rsa.PrivateKey, ed25519.PrivateKey) {
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	_, e, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return r, e
})

// keyFile writes a private key in PKCS #8, and returns its path.
func keyFile(t *testing.T, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pemFile(t, 0o600, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func pemFile(t *testing.T, mode os.FileMode, block *pem.Block) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(block), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// newBackend returns a backend with the Defaults, as change changes them, that
// asks the DNS of z.
func newBackend(t *testing.T, z dnstest.Zone, change func(*Settings)) *backend {
	t.Helper()
	s := Defaults
	s.AuthservID, s.Resolver = "mx.example.org", dnstest.Serve(t, z)
	if change != nil {
		change(&s)
	}
	b, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return b.(*backend)
}

// stranger and user are sessions of clients at 192.0.2.1.
var (
	stranger = backends.Session{
		Peer: backends.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:25252")}, HELO: "client.example.net",
	}
	user = backends.Session{Peer: stranger.Peer, HELO: "laptop", User: "ann@example.org"}
)

// An outcome is what a backend did to a message.
type outcome struct {
	added   []string // fields, on top, with their folds
	removed []int
	status  backends.Status // of the first recipient; zero if it goes on
	routes  map[int]string
	err     error
}

func deliver(ctx context.Context, b backends.Backend, s backends.Session, sender, message string) (o outcome) {
	tx := &backends.DataContext{
		ID: "test", Session: s, Size: int64(len(message)), Body: strings.NewReader(message),
		Envelope: backends.Envelope{Sender: sender, Recipients: []backends.Recipient{{Address: "bob@example.org"}, {Address: "eve@example.org"}}},
	}
	_, o.err = backends.Run(ctx, b, tx, backends.Hooks{})
	if o.err != nil {
		o.status = backends.StatusOf(o.err)
		return o
	}
	edits := tx.Edits()
	for _, e := range edits.Fields {
		switch e.Op {
		case backends.AddField:
			o.added = append(o.added, e.Field)
		case backends.RemoveField:
			o.removed = append(o.removed, e.At)
		}
	}
	o.routes = edits.Diversions
	return o
}

// signed returns a message with a signature of a domain, with the Ed25519 key.
func signed(t *testing.T, domain, message string) string {
	t.Helper()
	_, key := keys()
	var b strings.Builder
	err := dkim.Sign(&b, strings.NewReader(message), &dkim.SignOptions{
		Domain: domain, Selector: "s", Signer: key, HeaderCanonicalization: "relaxed", BodyCanonicalization: "relaxed",
		HeaderKeys: []string{"From", "Subject"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
