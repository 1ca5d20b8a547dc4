package peers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// A relay that comes back into Postfix logs in there with what its file says. As
// long as the password is wrong, or Postfix has not the certificate that is wanted,
// mail stays in the queue.
func TestRelayLogsInToPostfix(t *testing.T) {
	ca, other := newIssuer(t), newIssuer(t)
	cert, _ := ca.file(gatewayName)
	const (
		notAuthenticated = "said: 451 4.7.0 <ann@peers.example> not authenticated by the next hop, try again later"
		notSecure        = "said: 451 4.7.5 <ann@peers.example> no secure connection to the next hop, try again later"
		refused          = "AUTH: server said 535 5.7.8 "
		notVerified      = "STARTTLS: tls: failed to verify certificate: "
	)
	for _, test := range []struct {
		name, mechanism string
		trusted         *issuer
		password        string // at first
		deferred        string // how, as long as it is so
		logged          string // by the gateway
		mended          bool   // by another password
	}{
		{"SCRAM", "SCRAM-SHA-256", ca, "a guess", notAuthenticated, refused, true},
		{"PLAIN", "PLAIN", ca, "a guess", notAuthenticated, refused, true},
		{"LOGIN", "LOGIN", ca, "a guess", notAuthenticated, refused, true},
		{"another CA", "PLAIN", other, password, notSecure, notVerified, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			secret := filepath.Join(gatewaytest.Directory(t), "secret")
			writeCredentials(t, secret, test.password)
			w := way{
				address: onUnix, listener: afterByLMTP, target: "smtp+starttls://BACK",
				relay: fmt.Sprintf("tls_ca = %q\ncredentials_file = %q\n", test.trusted.path(), secret),
				edit:  forThoseWhoLogIn,
			}
			l := newLoop(t, w)
			l.enableAUTH(test.mechanism)
			l.startAsPrinted(w, quickly+"smtpd_tls_cert_file = "+cert+"\n")
			sendOne(t, "tcp", l.address, delicate, "sender@peers.example> SMTPUTF8 BODY=8BITMIME", "ann@peers.example")
			l.awaitDeferred(t, test.deferred)
			l.checkLogged(t, test.logged)
			if !test.mended {
				return
			}
			writeCredentials(t, secret, password)
			if _, rest := l.mailOf(t, "ann"); rest != string(delicate) {
				t.Errorf("ann has\n%q\nwant\n%q", rest, delicate)
			}
			want := ", sasl_method=" + test.mechanism + ", sasl_username=" + loginName + ", "
			if log := strings.Join(gatewaytest.Follow(t, l.log).Lines(), ""); !strings.Contains(log, want) {
				t.Errorf("Postfix has not logged %q", want)
			}
		})
	}
}

// awaitDeferred waits until the one message in the queue is deferred with a reason.
func (l loop) awaitDeferred(t *testing.T, reason string) {
	t.Helper()
	gatewaytest.Eventually(t, "mail is deferred with "+reason, func() bool {
		queue := l.queue()
		return len(queue) == 1 && strings.Contains(queue[0].Recipients[0].Reason, reason)
	})
	if mail := l.g.Mail("ann"); len(mail) > 0 {
		t.Errorf("ann has %q", mail)
	}
}

// checkLogged checks that the gateway has told of an error of its relay.
func (l loop) checkLogged(t *testing.T, begins string) {
	t.Helper()
	var errors []string
	for _, e := range gatewaytest.Follow(t, l.g.Log).Events() {
		if e.Error != "" {
			errors = append(errors, e.Error)
		}
	}
	for _, e := range errors {
		if strings.HasPrefix(e, begins) {
			return
		}
	}
	t.Errorf("the gateway has logged %q, want %s...", errors, begins)
}

// forThoseWhoLogIn makes the server where mail comes back one for those who log in,
// over TLS, and for nobody else.
var forThoseWhoLogIn = strings.NewReplacer("-o smtpd_recipient_restrictions=permit_mynetworks,reject", `-o smtpd_recipient_restrictions=permit_sasl_authenticated,reject
  -o smtpd_tls_auth_only=yes
  -o smtpd_sasl_auth_enable=yes
  -o smtpd_sasl_security_options=noanonymous`)

// enableAUTH lets loginName log in by one mechanism of Cyrus SASL, whose files are
// where Debian's Postfix looks for them.
func (p *postfix) enableAUTH(mechanism string) {
	p.t.Helper()
	dir := filepath.Join(p.dir, "sasl")
	if err := os.Mkdir(dir, 0o755); err != nil {
		p.t.Fatal(err)
	}
	users := filepath.Join(dir, "users")
	config := fmt.Sprintf("pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: %s\nmech_list: %s\n", users, mechanism)
	if err := os.WriteFile(filepath.Join(dir, "smtpd.conf"), []byte(config), 0o644); err != nil {
		p.t.Fatal(err)
	}
	user, realm, _ := strings.Cut(loginName, "@")
	cmd := exec.CommandContext(p.t.Context(), unpackedPeer(p.t, "sasl", "/usr/sbin/saslpasswd2"), "-p", "-c", "-f", users, "-u", realm, user)
	cmd.Stdin = strings.NewReader(password)
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	if err := os.Chmod(users, 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// writeCredentials writes what the relay logs in with.
func writeCredentials(t *testing.T, path, password string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(loginName+"\n"+password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}
