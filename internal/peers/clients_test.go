package peers

import (
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// swaks shows what it is told: <- for yes and <** for no.
func TestSwaks(t *testing.T) {
	swaks := peer(t, "swaks")
	g := gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.LMTP, byRules, gatewaytest.SMTP, byRules, rules, gatewaytest.Inbox)
	tests := []struct {
		server, to string
		want       []string // answers to the message
	}{
		{
			"--protocol LMTP --socket " + g.Address("lmtp"), "ann@peers.example,busy@peers.example,gone@peers.example,bob@peers.example",
			[]string{
				"<-  250 2.0.0 <ann@peers.example> delivered",
				"<** 450 4.2.1 <busy@peers.example> mailbox busy",
				"<** 550 5.1.1 <gone@peers.example> no such user",
				"<-  250 2.0.0 <bob@peers.example> delivered",
			},
		},
		{"--pipeline --server " + g.Address("smtp"), "ann@peers.example,bob@peers.example", []string{"<-  250 2.0.0 delivered"}},
		{"--server " + g.Address("smtp"), "gone@peers.example", []string{"<** 550 5.1.1 no such user"}},
	}
	for _, test := range tests {
		args := append(strings.Fields(test.server), "--to", test.to,
			"--from", "sender@peers.example", "--ehlo", "swaks.peers.example", "--data", "Subject: from swaks\n\n.dot\n.\n")
		transcript, err := exec.Command(swaks, args...).CombinedOutput()
		// Each answer ends with the id of the transaction.
		_, answered, _ := strings.Cut(string(transcript), "\n -> .\n")
		answered, _, _ = strings.Cut(answered, "\n -> QUIT\n")
		got := strings.Split(regexp.MustCompile(` \(\w{16}\)(\n|$)`).ReplaceAllString(answered, "$1"), "\n")
		if !slices.Equal(got, test.want) {
			t.Errorf("swaks %q got\n%s\nwant\n%s\nthe whole:\n%s", args, strings.Join(got, "\n"), strings.Join(test.want, "\n"), transcript)
		}
		// It fails unless somebody gets the message.
		if good := strings.HasPrefix(test.want[0], "<- "); good != (err == nil) {
			t.Errorf("swaks %q: %v", args, err)
		}
	}
	for user, want := range map[string]int{"ann": 2, "bob": 2, "busy": 0, "gone": 0} {
		mail := g.Mail(user)
		if len(mail) != want {
			t.Errorf("%s has %d messages, want %d", user, len(mail), want)
		}
		for _, message := range mail {
			if want := "Subject: from swaks\r\n\r\n.dot\r\n"; message != want {
				t.Errorf("%s has %q, want %q", user, message, want)
			}
		}
	}
}

// smtp-source sends each message to three recipients, over several sessions.
func TestSMTPSource(t *testing.T) {
	postfix := findPostfix(t)
	g := gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.LMTP, gatewaytest.ToInbox, gatewaytest.SMTP, gatewaytest.ToInbox, gatewaytest.Inbox)
	for user, server := range map[string][]string{
		"lmtp": {"-L", "unix:" + g.Address("lmtp")},
		"smtp": {"inet:" + g.Address("smtp")},
		"kept": {"-d", "-L", "unix:" + g.Address("lmtp")},
	} {
		args := append([]string{
			"-s", "10", "-m", "200", "-r", "3", "-l", "10000",
			"-M", "source.peers.example", "-f", "sender@peers.example", "-t", user + "@peers.example",
		}, server...)
		if out, err := postfix.Command(t.Context(), "smtp-source", args...).CombinedOutput(); err != nil {
			t.Errorf("smtp-source %q: %v\n%s", args, err, out)
		}
		for _, to := range []string{user, "2" + user, "3" + user} {
			if n := len(g.MailFiles(to)); n != 200 {
				t.Errorf("%s has %d messages, want 200", to, n)
			}
		}
	}
}
