package peers

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// Postfix hands messages over by its LMTP and its SMTP client, with TLS from
// STARTTLS and from the start. It verifies the gateway's certificate, shows its
// own one and is trusted for it, and passes SMTPUTF8 and DSN on.
func TestPostfixWithTLS(t *testing.T) {
	t.Parallel()
	c := startComplete(t)
	p := newPostfix(t)
	p.start(asSent + securesTo(c) + fmt.Sprintf(`
transport_maps = inline:{ unix.example=lmtp:unix:%s, tcp.example=lmtp:inet:%s,
	starttls.example=smtp:[127.0.0.1]:%s, implicit.example=smtps:[127.0.0.1]:%s }
`, c.Address("lmtp"), c.Address("lmtp-tcp"), port(c.Address("smtp")), port(c.Address("smtps"))))

	message := lines("From: s\u00e9nder@peers.example", "Message-ID: <secure@peers.example>", "Subject: \u00e9", "", ".", "..dot", "\xff", "")
	protocols := map[string]string{"unix": "UTF8LMTPSA", "tcp": "UTF8LMTPSA", "starttls": "UTF8SMTPSA", "implicit": "UTF8SMTPSA"}
	for user := range protocols {
		sendOne(t, "tcp", p.address, message, "sénder-"+user+"@peers.example> SMTPUTF8 BODY=8BITMIME RET=HDRS ENVID="+user,
			user+"@"+user+".example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;first@elsewhere.example")
	}
	log := gatewaytest.Follow(t, p.log)
	sent := map[string]logged{}
	verified := 0
	gatewaytest.Eventually(t, "Postfix has logged what became of all messages", func() bool {
		for _, line := range log.Lines() {
			if strings.Contains(line, ": fatal: ") {
				t.Fatal(line)
			}
			if strings.Contains(line, ": Verified TLS connection established to ") {
				verified++
			}
			if l, ok := parseLogged(line); ok {
				sent[l.to] = l
			}
		}
		return len(sent) == len(protocols)
	})
	if verified != len(protocols) {
		t.Errorf("Postfix has logged %d verified connections, want %d", verified, len(protocols))
	}
	for user, protocol := range protocols {
		if got := sent[user+"@"+user+".example"]; got.status != "sent" || got.dsn != "2.0.0" {
			t.Errorf("Postfix has logged %+v, want it sent", got)
			continue
		}
		checkReceived(t, c.Gateway, user, message)
		sender := "sénder-" + user + "@peers.example"
		want := fmt.Sprintf("%s TLS 1.3 of client.peers.example as login@peers.example by SCRAM-SHA-256 for 127.0.0.1: MAIL <%s> BODY=8BITMIME ENVID=%s RET=HDRS SMTPUTF8, "+
			"RCPT <%[3]s@%[3]s.example> ORCPT=rfc822;first@elsewhere.example NOTIFY=SUCCESS,DELAY", protocol, sender, user)
		if got := c.told(t, sender); got != want {
			t.Errorf("the backend was told\n%s\nwant\n%s", got, want)
		}
	}
}

// securesTo is for main.cf: Postfix speaks TLS with a gateway.
func securesTo(c *complete) string {
	var lines strings.Builder
	for _, client := range []string{"lmtp", "smtp"} {
		fmt.Fprintf(&lines, `
%[1]s_tls_security_level = verify
%[1]s_tls_verify_cert_match = %[2]s
%[1]s_tls_CAfile = %[3]s
%[1]s_tls_cert_file = %[4]s
%[1]s_tls_key_file = %[4]s
%[1]s_tls_loglevel = 1
%[1]s_send_xforward_command = yes
%[1]s_sasl_auth_enable = yes
%[1]s_sasl_password_maps = static:%[5]s:%[6]s
%[1]s_sasl_tls_security_options = noanonymous
`, client, gatewayName, c.ca.path(), c.clientCert, loginName, password)
	}
	return lines.String()
}
