package peers

import (
	"slices"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// relaysTo are lines for an SMTP listener that hears who the client is, and gives
// its mail to a relay; that for carol to one that puts the client in its place.
func relaysTo(target string) string {
	return `
xforward = ["127.0.0.0/8"]
mirror = true
dsn = true
[listener.routes]
"*" = ["relay"]
"carol@*" = ["in-place"]
[backend.relay]
plugin = "relay"
settings.targets = ["` + target + `"]
[backend.in-place]
plugin = "relay"
settings = { targets = ["` + target + `"], xclient = true }
`
}

// Mail goes through the relay into Postfix, which knows as much of its client and
// of its envelope as if there were no relay.
func TestRelayToPostfix(t *testing.T) {
	p := newPostfix(t)
	g := gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.LMTP, p.trusted(), gatewaytest.ToInbox, gatewaytest.Inbox,
		gatewaytest.SMTP, relaysTo("smtp://"+p.address))
	p.start(deliversTo(g) + "smtpd_authorized_xforward_hosts = 127.0.0.0/8\nsmtpd_authorized_xclient_hosts = 127.0.0.0/8\n" +
		"smtpd_recipient_restrictions = check_recipient_access inline:{{gone@peers.example = 550 5.1.6 moved away}}, reject_unauth_destination\n")

	message := lines("From: sender@peers.example", "Subject: t\u00e4st", "", ".", "..", "8 bits: \xe4", "")
	c, err := connect("tcp", g.Address("smtp"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	gatewaytest.Eventually(t, "the listener announces what Postfix can do", func() bool {
		return c.PrintfLine("EHLO client.peers.example") == nil && announces(c, "DSN")
	})
	for _, command := range []string{
		"XFORWARD NAME=origin.example ADDR=192.0.2.77 PORT=4321 PROTO=ESMTP HELO=helo.example IDENT=4ORIGIN SOURCE=REMOTE",
		"MAIL FROM:<sender@peers.example> BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=env+2B1",
		"RCPT TO:<ann@peers.example> NOTIFY=SUCCESS ORCPT=rfc822;a+2Bn@elsewhere.example",
		"RCPT TO:<b\u00f6b@peers.example>",
		"RCPT TO:<carol@peers.example>",
		"RCPT TO:<gone@peers.example>",
	} {
		if err := c.say(250, command); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.say(354, "DATA"); err != nil {
		t.Fatal(err)
	}
	c.W.WriteString(strings.ReplaceAll(string(message), "\r\n.", "\r\n.."))
	c.PrintfLine(".")
	if _, text, err := c.ReadResponse(550); err != nil || !strings.Contains(text, "5.1.6 <gone@peers.example>: Recipient address rejected: moved away") {
		t.Errorf("the answer is %q, %v; want Postfix's for the one that it has refused", text, err)
	}

	gatewaytest.Eventually(t, "the mail and the notification are delivered", func() bool {
		return len(g.Mail("ann")) == 1 && len(g.Mail("b\u00f6b")) == 1 && len(g.Mail("carol")) == 1 && len(g.Mail("sender")) == 1
	})
	log := strings.Join(gatewaytest.Follow(t, p.log).Lines(), "\n")
	for _, want := range []string{
		"client=unknown[127.0.0.1], orig_queue_id=4ORIGIN, orig_client=origin.example[192.0.2.77]",
		"client=origin.example[192.0.2.77]",
	} {
		if !strings.Contains(log, want+"\n") {
			t.Errorf("Postfix has not logged %q:\n%s", want, log)
		}
	}
	for _, user := range []string{"ann", "b\u00f6b", "carol"} {
		checkReceived(t, g, user, message)
	}
	const client = "Received: from helo.example (origin.example [192.0.2.77])\r\n\tby mx.peers.example (Postfix) with UTF8SMTP id "
	if got := g.Mail("carol")[0]; !strings.HasPrefix(got, client) {
		t.Errorf("carol has\n%s\nwant %s", got, client)
	}
	notification := g.Mail("sender")[0]
	for _, want := range []string{"\r\nOriginal-Envelope-Id: env+1\r\n", "\r\nOriginal-Recipient: rfc822;a+n@elsewhere.example\r\n"} {
		if !strings.Contains(notification, want) {
			t.Errorf("the notification has no %q:\n%s", want, notification)
		}
	}
	if ours := strings.Join(gatewaytest.Follow(t, g.Log).Lines(), "\n"); strings.Count(ours, "queued as") != 3 || !strings.Contains(ours, `"body":"unchanged","header":"+0-0"`) {
		t.Errorf("the log has not the words of Postfix for three recipients, and that nothing was edited:\n%s", ours)
	}
}

// A Postfix that takes fewer recipients at once than there are gets the message in
// several transactions, of which the client hears nothing: in SMTP it would have to
// send it to all again.
func TestRelayOfMoreRecipientsThanPostfixTakes(t *testing.T) {
	p := newPostfix(t)
	g := gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.LMTP, p.trusted(), gatewaytest.ToInbox, gatewaytest.Inbox,
		gatewaytest.SMTP, relaysTo("smtp://"+p.address))
	p.start(deliversTo(g) + "smtpd_recipient_limit = 2\n")
	users := []string{"ann", "bob", "dan", "eve", "fay"}
	var to []string
	for _, user := range users {
		to = append(to, user+"@peers.example")
	}
	message := lines("Subject: for many", "", "..", strings.Repeat("long ", 20_000), "")
	sendOne(t, "tcp", g.Address("smtp"), message, "sender@peers.example", to...)
	gatewaytest.Eventually(t, "the mail is delivered", func() bool {
		return !slices.ContainsFunc(users, func(user string) bool { return len(g.MailFiles(user)) == 0 })
	})
	for _, user := range users {
		checkReceived(t, g, user, message)
	}
}

// announces reads the reply to EHLO, and reports whether it has a keyword.
func announces(c *client, keyword string) bool {
	_, text, err := c.ReadResponse(250)
	return err == nil && strings.Contains("\n"+text+"\n", "\n"+keyword+"\n")
}
