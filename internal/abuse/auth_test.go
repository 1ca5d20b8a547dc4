package abuse

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

var (
	annsName     = base64.StdEncoding.EncodeToString([]byte("ann@peers.example"))
	annsPassword = base64.StdEncoding.EncodeToString([]byte("secret"))
	annsPlain    = base64.StdEncoding.EncodeToString([]byte("\x00ann@peers.example\x00secret"))
)

// loginListeners take mail of ann alone, and have a short timeout.
func loginListeners(t *testing.T) string {
	t.Helper()
	// The cheapest hash: nobody is to guess it.
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(file, []byte("ann@peers.example bcrypt="+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	keys := []string{`ask = ["users"]`, "auth.in_clear = true", "auth.required = true", `limits.command_timeout = "1s"`}
	return listener("login", append(keys, withTLS(t, "starttls"))...) +
		gatewaytest.LMTP + strings.Join(keys, "\n") + gatewaytest.ToInbox +
		fmt.Sprintf("\n[backend.users]\nplugin = \"users\"\n[backend.users.settings]\nfile = %q\n", file)
}

var loginTargets = []struct{ listener, network, hello string }{{"login", "tcp", "EHLO x\r\n"}, {"lmtp", "unix", "LHLO x\r\n"}}

// What a client says in an exchange is a response, and never a command; what
// comes after it is not part of it. In one piece or in two, it is all the same.
func TestAuthIsSplitAtEveryOctet(t *testing.T) {
	t.Parallel()
	g := start(t, gatewaytest.Plain, loginListeners(t))
	mail := "DATA\r\nSubject: login\r\n\r\n.\r\n"
	for _, to := range loginTargets {
		for n, test := range []struct {
			said, heard string
			mail        []string
		}{
			{"AUTH LOGIN\r\n" + annsName + "\r\n" + annsPassword + "\r\n%s" + mail, "334 334 235 250 250 354 250", []string{"Subject: login\r\n\r\n"}},
			{"AUTH LOGIN\r\nMAIL FROM:<>\r\n%s", "334 501 530 503", nil},
			{"AUTH PLAIN\r\n*\r\n%s", "334 501 530 503", nil},
			{"AUTH PLAIN\r\nRSET\r\nNOOP\r\n", "334 501 250", nil},
		} {
			for at := len(to.hello); ; at++ {
				user := fmt.Sprintf("%s-%d-%03d", to.listener, n, at)
				said := test.said
				if strings.Contains(said, "%s") {
					said = fmt.Sprintf(said, strings.ReplaceAll(envelope(user), "sender@", "ann@"))
				}
				if said = to.hello + said + "QUIT\r\n"; at == len(said) {
					break
				}
				c := dial(t, to.network, g.Address(to.listener))
				c.expect("220")
				c.send(said[:at])
				c.expect("250")
				c.send(said[at:])
				if got, err := c.rest(); err != nil || codes(got) != test.heard+" 221" {
					t.Errorf("%q split after %d: got %q, %v, want %s", said, at, got, err, test.heard)
				}
				c.Close()
				checkMail(t, g, user, test.mail...)
			}
		}
	}
}

// An exchange may end in all the ways in which a session may.
func TestAuthIsLeft(t *testing.T) {
	t.Parallel()
	g := start(t, gatewaytest.AsTested, loginListeners(t))
	var all sync.WaitGroup
	for _, to := range loginTargets {
		for _, test := range []struct{ name, said, heard, open string }{
			{"the name is awaited", "AUTH LOGIN\r\n", "334", ""},
			{"half a name", "AUTH LOGIN\r\n" + annsName[:5], "334", ""},
			{"the password is awaited", "AUTH LOGIN\r\n" + annsName + "\r\n", "334 334", ""},
			{"a client that was let in", "AUTH PLAIN " + annsPlain + "\r\n", "235", ""},
			{"a client that waits", "AUTH PLAIN " + annsPlain + "\r\n", "", "235"},
			{"a stranger who waits", "AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00nobody\x00secret")) + "\r\n", "", "535"},
		} {
			for _, how := range []string{"vanishes", "half-closes", "falls silent"} {
				c := dial(t, to.network, g.Address(to.listener))
				c.expect("220")
				c.send(to.hello + test.said)
				c.expect(strings.TrimSpace("250 " + test.heard))
				want := test.open
				switch how {
				case "vanishes":
					c.Close()
					continue
				case "half-closes":
					c.closeWrite()
				case "falls silent":
					want = strings.TrimSpace(want + " 421")
				}
				all.Go(func() {
					if got, err := c.rest(); err != nil || codes(got) != want {
						t.Errorf("%s: %s, then %s: got %q, %v, want %q", to.listener, test.name, how, got, err, want)
					}
				})
			}
		}
	}
	all.Wait()
}

// A login in the clear is none, once there is TLS.
func TestAuthIsForgottenByTLS(t *testing.T) {
	t.Parallel()
	g := start(t, gatewaytest.AsTested, loginListeners(t))
	for _, said := range []string{
		"EHLO x\r\nAUTH PLAIN " + annsPlain + "\r\nSTARTTLS\r\n",
		"EHLO x\r\nAUTH PLAIN " + annsPlain + "\r\nSTARTTLS\r\nEHLO x\r\nAUTH PLAIN " + annsPlain + "\r\n",
	} {
		c := dial(t, "tcp", g.Address("login"))
		c.send(said)
		c.expect("220 250 235 220")
		secure := c.secure()
		secure.send("EHLO x\r\nMAIL FROM:<ann@peers.example>\r\nAUTH PLAIN " + annsPlain + "\r\nMAIL FROM:<ann@peers.example>\r\nQUIT\r\n")
		if got, err := secure.rest(); err != nil || codes(got) != "250 530 235 250 221" {
			t.Errorf("%q: then in TLS %q, %v", said, got, err)
		}
	}
}

// Nobody guesses for long in one session, nor says a megabyte in one line.
func TestAuthIsGuessed(t *testing.T) {
	t.Parallel()
	g := start(t, gatewaytest.AsTested, loginListeners(t))
	wrong := base64.StdEncoding.EncodeToString([]byte("\x00ann@peers.example\x00guess"))
	for _, to := range loginTargets {
		c := dial(t, to.network, g.Address(to.listener))
		c.send(to.hello + strings.Repeat("AUTH PLAIN "+wrong+"\r\n", 30))
		got, _ := c.rest()
		all := codes(got)
		guesses := strings.Count(all, "535")
		if !strings.HasSuffix(all, " 421") || guesses > 20 || strings.Contains(all, "235") {
			t.Errorf("%s: %d guesses got %s", to.listener, guesses, all)
		}

		c = dial(t, to.network, g.Address(to.listener))
		c.send(to.hello + "AUTH PLAIN\r\n" + strings.Repeat("A", 1<<20) + "\r\nQUIT\r\n")
		if got, err := c.rest(); err != nil || codes(got) != "220 250 334 500 221" {
			t.Errorf("%s: a line of a megabyte got %q, %v", to.listener, got, err)
		}
	}
}
