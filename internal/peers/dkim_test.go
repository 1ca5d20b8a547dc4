package peers

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/mailgw/mailgw/internal/dnstest"
	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// dkimKeys are the keys of author.example, by selector, and their records in
// the DNS.
type dkimKeys struct {
	keys    map[string]crypto.Signer
	records map[string]string
}

func newDKIMKeys(t *testing.T) dkimKeys {
	t.Helper()
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, e, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(r.Public())
	if err != nil {
		t.Fatal(err)
	}
	return dkimKeys{map[string]crypto.Signer{"r": r, "e": e}, map[string]string{
		"r._domainkey.author.example": "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der),
		"e._domainkey.author.example": "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(public),
		"_dmarc.author.example":       "v=DMARC1; p=reject",
	}}
}

// serve answers for the records, and returns where.
func (k dkimKeys) serve(t *testing.T) string {
	z := dnstest.Zone{TXT: map[string][]string{}}
	for name, record := range k.records {
		z.TXT[name] = []string{record}
	}
	return dnstest.Serve(t, z)
}

// sign signs all the header fields of a message with each key, in a
// canonicalization.
func (k dkimKeys) sign(t *testing.T, canonicalization, message string) string {
	t.Helper()
	header, body, _ := strings.Cut(canonicalization, "/")
	signatures := ""
	for selector, key := range k.keys {
		s, err := dkim.NewSigner(&dkim.SignOptions{
			Domain: "author.example", Selector: selector, Signer: key,
			HeaderCanonicalization: dkim.Canonicalization(header), BodyCanonicalization: dkim.Canonicalization(body),
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Write([]byte(message))
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		signatures += s.Signature()
	}
	return signatures + message
}

// check checks that each message has two good signatures, for go-msgauth, which
// has made them, and for dkimpy.
func (k dkimKeys) check(t *testing.T, messages map[string]string) {
	t.Helper()
	job := struct {
		Records  map[string]string `json:"records"`
		Messages [][]byte          `json:"messages"`
	}{Records: k.records}
	var names []string
	for name, message := range messages {
		names = append(names, name)
		job.Messages = append(job.Messages, []byte(message))
		verified, err := dkim.VerifyWithOptions(strings.NewReader(message), &dkim.VerifyOptions{
			LookupTXT: func(name string) ([]string, error) { return []string{k.records[name]}, nil },
		})
		if err != nil || len(verified) != 2 || verified[0].Err != nil || verified[1].Err != nil {
			t.Errorf("%s: %v, want two good signatures", name, err)
			for _, v := range verified {
				t.Error(v.Err)
			}
		}
	}
	input, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	// Debian's own Python, which has dkimpy.
	python := peer(t, "/usr/bin/python3")
	if err := exec.Command(python, "-c", "import dkim, nacl").Run(); err != nil {
		gatewaytest.Without(t, "no dkimpy: internal/peers/install installs it")
	}
	cmd := exec.CommandContext(t.Context(), python, "testdata/verify.py")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var good []int
	if err := json.Unmarshal(out, &good); err != nil {
		t.Fatal(err)
	}
	for i, n := range good {
		if n != 2 {
			t.Errorf("%s: dkimpy finds %d good signatures in\n%.2000q", names[i], n, job.Messages[i])
		}
	}
}

// The backend dkim signs what dkimpy verifies.
func TestDKIMSigns(t *testing.T) {
	t.Parallel()
	k := newDKIMKeys(t)
	var sign strings.Builder
	for selector, key := range k.keys {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "key.pem")
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&sign, "[[backend.signer.settings.sign]]\ndomain = \"author.example\"\nselector = %q\nkey = %q\n", selector, path)
	}
	g := gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.LMTP, "chunking = true\n", `
[listener.routes]
"*" = ["signer", "inbox"]
`, gatewaytest.Inbox, `
[backend.signer]
plugin = "dkim"
[backend.signer.settings]
internal = ["local"]
`, sign.String())
	signed := map[string]string{}
	for i, m := range corpus() {
		user := fmt.Sprint("user", i)
		sendSigned(t, "unix", g.Address("lmtp"), "BDAT", m.text, user+"@peers.example")
		mail := g.Mail(user)
		if len(mail) != 1 || !strings.HasSuffix(mail[0], m.text) {
			t.Fatalf("%s: %q has %q, want it below its signatures", m.name, user, mail)
		}
		signed[m.name] = mail[0]
	}
	k.check(t, signed)
}
