package peers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/xdg-go/scram"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/maildir"
	"github.com/mailgw/mailgw/plugins"
)

// A told is what a backend is told of a transaction beside the message.
type told struct {
	Session  backends.Session
	Envelope backends.Envelope
}

// String tells how the transaction came, and then its commands, but for SIZE.
func (t told) String() string {
	text := t.Session.Protocol
	if tls := t.Session.TLS; tls != nil {
		text += " " + tls.Version
		if tls.ClientName != "" {
			text += " of " + tls.ClientName
		}
	}
	if t.Session.User != "" {
		text += " as " + t.Session.User + " by " + t.Session.Mechanism
	}
	if c := t.Session.Client; c != nil {
		text += fmt.Sprintf(" from %v by %s", c.Addr, c.Source)
		if c.Name != "" {
			text += ", " + c.Name
		}
	}
	if x := t.Session.XForward; x != nil {
		text += " for " + x.Addr
	}
	text += ": MAIL <" + t.Envelope.Sender + ">" + t.params(t.Envelope.Params)
	for _, r := range t.Envelope.Recipients {
		text += ", RCPT <" + r.Address + ">" + t.params(r.Params)
	}
	return text
}

func (told) params(params backends.Params) (text string) {
	for _, p := range params {
		if keyword, _, _ := strings.Cut(p, "="); !strings.EqualFold(keyword, "SIZE") {
			text += " " + p
		}
	}
	return text
}

// A witness is a Maildir that writes down what it is told. So that a listener
// may offer DSN and AUTH, it says that it issues delivery status notifications,
// and knows one user with a password, and those who have a certificate.
type witness struct{ backends.Backend }

const testimony = "told.json" // in the directory of gateway.toml

// Deliver writes one line, which is there before the client has an answer.
func (w witness) Deliver(ctx context.Context, tx *backends.DataContext) error {
	line, err := json.Marshal(told{tx.Session, tx.Envelope})
	if err != nil {
		return err
	}
	file, err := os.OpenFile(testimony, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(append(line, '\n'))
	if closed := file.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return w.Backend.Deliver(ctx, tx)
}

func (witness) Capabilities() backends.Capabilities { return backends.Capabilities{DSN: true} }

const (
	loginName = "login@peers.example"
	password  = "open-sesame"
)

// Authenticate takes the name in the client's certificate for that of a user.
func (witness) Authenticate(_ context.Context, s *backends.Session, c backends.Credentials) (string, error) {
	switch {
	case c.Mechanism == "EXTERNAL" && s.TLS.ClientName != "":
		return s.TLS.ClientName, nil
	case c.User == loginName && c.Password == password:
		return loginName, nil
	}
	return "", backends.BadCredentials
}

// SCRAMVerifier returns that of the one user.
func (witness) SCRAMVerifier(_ context.Context, _ *backends.Session, user string) (backends.SCRAMVerifier, error) {
	if user != loginName {
		return backends.SCRAMVerifier{}, backends.BadCredentials
	}
	client, err := scram.SHA256.NewClient(loginName, password, "")
	if err != nil {
		return backends.SCRAMVerifier{}, err
	}
	const salt = "sixteen octets."
	c, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: salt, Iters: 4096})
	return backends.SCRAMVerifier{Salt: []byte(salt), Iterations: c.Iters, StoredKey: c.StoredKey, ServerKey: c.ServerKey}, err
}

// serveWitness is the main function of the plugin, which is the program of
// the tests itself.
func serveWitness() {
	plugins.Serve(maildir.Defaults, func(s maildir.Settings) (backends.Backend, error) {
		b, err := maildir.New(s)
		return witness{b}, err
	})
}

// witnessInbox is the part of gateway.toml that makes the inbox a witness.
func witnessInbox(t *testing.T) string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`
[backend.inbox]
plugin = %q
args = ["witness"]
[backend.inbox.settings]
path = "mail/{user}"
`, program)
}

// told returns what the witness was told of the one transaction of a sender.
func (c *complete) told(t *testing.T, sender string) string {
	t.Helper()
	text, err := os.ReadFile(c.Path(testimony))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for line := range bytes.Lines(text) {
		var one told
		if err := json.Unmarshal(line, &one); err != nil {
			t.Fatalf("%s: %v: %q", testimony, err, line)
		}
		if one.Envelope.Sender == sender {
			all = append(all, one.String())
		}
	}
	if len(all) != 1 {
		t.Fatalf("%d transactions of <%s> have reached the backend, want 1:\n%s", len(all), sender, text)
	}
	return all[0]
}
