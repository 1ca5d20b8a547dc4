package peers

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// Postfix hands over one message for three recipients, one of which is to be
// deferred and one to be bounced.
func TestPostfixGetsAnAnswerForEachRecipient(t *testing.T) {
	p := newPostfix(t)
	g := gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.LMTP, p.trusted(), byRules, rules, gatewaytest.Inbox)
	p.start(deliversTo(g))

	message := lines(
		"From: sender@peers.example",
		"To: ann@peers.example,",
		"\tbusy@peers.example ,  gone@peers.example",
		"Subject:  two  spaces and a trailing one ",
		"Message-ID: <answers@peers.example>",
		"X-Odd: "+strings.Repeat("folded\r\n ", 20)+"end",
		"",
		".", "..", "...and more dots", " .",
		"From here it is no separator",
		"eight bits: \x80\xff \xc3\xa9 \xed\xa0\x80",
		"\x01control\x7f\tcharacters\x1b",
		strings.Repeat("long ", 4000),
		"trailing space ",
		"", "",
	)
	sendOne(t, "tcp", p.address, message, "sender@peers.example", "ann@peers.example", "busy@peers.example", "gone@peers.example")

	// The fourth recipient is the sender, who gets the bounce.
	log := gatewaytest.Follow(t, p.log)
	status := map[string]logged{}
	gatewaytest.Eventually(t, "Postfix has logged what became of four recipients", func() bool {
		for _, line := range log.Lines() {
			if l, ok := parseLogged(line); ok {
				status[l.to] = l
			}
		}
		return len(status) == 4
	})
	for _, want := range []logged{
		{to: "ann@peers.example", dsn: "2.0.0", status: "sent", reply: "250 2.0.0 <ann@peers.example> "},
		{to: "busy@peers.example", dsn: "4.2.1", status: "deferred", reply: "450 4.2.1 <busy@peers.example> mailbox busy "},
		{to: "gone@peers.example", dsn: "5.1.1", status: "bounced", reply: "550 5.1.1 <gone@peers.example> no such user "},
		{to: "sender@peers.example", dsn: "2.0.0", status: "sent", reply: "250 2.0.0 <sender@peers.example> "},
	} {
		got := status[want.to]
		if got.dsn != want.dsn || got.status != want.status || !strings.Contains(got.reply, want.reply) {
			t.Errorf("Postfix has logged %+v, want %+v", got, want)
		}
	}

	id := status["ann@peers.example"].id
	gatewaytest.Eventually(t, "the deferred recipient is alone in the queue", func() bool {
		queue := p.queue()
		return len(queue) == 1 && queue[0].ID == id &&
			len(queue[0].Recipients) == 1 && queue[0].Recipients[0].Address == "busy@peers.example"
	})
	checkMail(t, g, message)
	checkLog(t, g, id)
}

// checkMail checks that the Maildirs hold the message as it was sent, below
// the field of Postfix, and the bounce, and nothing else.
func checkMail(t *testing.T, g *gatewaytest.Gateway, message []byte) {
	t.Helper()
	checkReceived(t, g, "ann", message)
	bounces := g.Mail("sender")
	if len(bounces) != 1 || !strings.Contains(bounces[0], "\r\nFinal-Recipient: rfc822; gone@peers.example\r\n") ||
		!strings.Contains(bounces[0], "\r\nStatus: 5.1.1\r\n") {
		t.Errorf("the sender has %q, want one bounce with status 5.1.1 of gone", bounces)
	}
	for _, user := range []string{"busy", "gone"} {
		if mail := g.Mail(user); len(mail) != 0 {
			t.Errorf("%s has %q", user, mail)
		}
	}
}

// checkReceived checks that a user has one message, the one that was sent
// below the Received field of the MTA that it came through.
func checkReceived(t *testing.T, g *gatewaytest.Gateway, user string, message []byte) {
	t.Helper()
	mail := g.Mail(user)
	if len(mail) != 1 {
		t.Fatalf("%s has %d messages", user, len(mail))
	}
	head, ok := strings.CutSuffix(mail[0], string(message))
	if !ok || !regexp.MustCompile(`^Received: from .*\r\n(\t.*\r\n)+$`).MatchString(head) {
		t.Errorf("%s has\n%q\nwant a Received field and\n%q", user, mail[0], message)
	}
}

// checkLog checks that the gateway's log tells the same story, under the id
// that the message has in Postfix's queue.
func checkLog(t *testing.T, g *gatewaytest.Gateway, id string) {
	t.Helper()
	got := map[string]string{}
	transactions := map[string]bool{}
	for _, e := range gatewaytest.Follow(t, g.Log).Events() {
		if e.Ident != id {
			continue
		}
		transactions[e.TX] = true
		if e.Message == "status" {
			got[e.To] = fmt.Sprintf("%s %d", e.Backend, e.Code)
		}
	}
	want := map[string]string{
		"ann@peers.example":  "inbox 250",
		"busy@peers.example": "rules 450",
		"gone@peers.example": "rules 550",
	}
	if !maps.Equal(got, want) || len(transactions) != 1 || transactions[""] {
		t.Errorf("the gateway has logged of %s: %v in transactions %q, want %v in one",
			id, got, slices.Collect(maps.Keys(transactions)), want)
	}
}
