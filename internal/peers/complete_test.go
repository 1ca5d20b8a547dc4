package peers

import (
	"fmt"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

const (
	lmtpTCPListener = `
[[listener]]
name = "lmtp-tcp"
address = "tcp:127.0.0.1:0"
protocol = "lmtp"
`
	smtpsListener = `
[[listener]]
name = "smtps"
address = "tcp:127.0.0.1:0"
protocol = "smtp"
`
)

// A complete gateway offers all that it can.
type complete struct {
	*gatewaytest.Gateway
	ca         *issuer
	clientCert string // path of the certificate and key of a client that may send XFORWARD
}

// startComplete starts one with four listeners: smtp, lmtp on a socket that
// everybody may connect to, lmtp-tcp, and smtps, which has TLS from the start
// where the others have STARTTLS. The routes are those of byRules, and the inbox
// is a witness.
func startComplete(t *testing.T) *complete {
	t.Helper()
	c := &complete{ca: newIssuer(t)}
	cert, _ := c.ca.file(gatewayName)
	var fingerprint string
	c.clientCert, fingerprint = c.ca.file("client.peers.example")
	tls := func(mode string) string {
		return fmt.Sprintf(`dsn = true
ask = ["inbox"]
xforward = ["cert:%s"]
[listener.tls]
mode = %q
certificates = [%q]
client_certificates = "ask"
client_ca = %q
`, fingerprint, mode, cert, c.ca.path()) + byRules
	}
	c.Gateway = gatewaytest.Start(t, gatewaytest.AsTested,
		gatewaytest.LMTP, "mode = \"0666\"\n", tls("starttls"),
		lmtpTCPListener, "chunking = true\n", tls("starttls"),
		gatewaytest.SMTP, "chunking = true\n", tls("starttls"),
		smtpsListener, "chunking = true\n", tls("implicit"),
		rules, witnessInbox(t))
	return c
}
