package peers

import (
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// swaks shows what it is told: <- for yes and <** for no, and with TLS <~ and
// <~*.
func TestSwaks(t *testing.T) {
	t.Parallel()
	swaks := peer(t, "swaks")
	c := startComplete(t)
	const (
		all   = "ann@peers.example,busy@peers.example,gone@peers.example,bob@peers.example"
		plain = "--pipeline --server "
	)
	login := "--auth-user " + loginName + " --auth-password " + password + " --auth "
	verified := "--tls-verify --tls-ca-path " + c.ca.path() + " "
	tests := map[string]struct {
		server, to string
		want       []string // answers to the message
		told       string   // of the session
	}{
		"lmtp": {
			"--protocol LMTP --socket " + c.Address("lmtp"), all,
			[]string{
				"<-  250 2.0.0 <ann@peers.example> delivered",
				"<** 450 4.2.1 <busy@peers.example> mailbox busy",
				"<** 550 5.1.1 <gone@peers.example> no such user",
				"<-  250 2.0.0 <bob@peers.example> delivered",
			},
			"LMTP",
		},
		"pipeline": {plain + c.Address("smtp"), "ann@peers.example,bob@peers.example", []string{"<-  250 2.0.0 delivered"}, "ESMTP"},
		"refused":  {plain + c.Address("smtp"), "gone@peers.example", []string{"<** 550 5.1.1 no such user"}, ""},
		"prdr": {
			"--prdr --server " + c.Address("smtp"), all,
			[]string{
				"<-  353 an answer for each recipient follows",
				"<-  250 2.0.0 <ann@peers.example> delivered",
				"<** 450 4.2.1 <busy@peers.example> mailbox busy",
				"<** 550 5.1.1 <gone@peers.example> no such user",
				"<-  250 2.0.0 <bob@peers.example> delivered",
				"<-  250 2.0.0 delivered",
			},
			"ESMTP",
		},
		"starttls": {
			login + "PLAIN --tls " + verified + plain + c.Address("smtp"), "ann@peers.example,bob@peers.example",
			[]string{"<~  250 2.0.0 delivered"}, "ESMTPSA TLS 1.3 as login@peers.example by PLAIN",
		},
		"implicit": {
			"--tls-on-connect --tls-protocol tlsv1_2 --tls-cert " + c.clientCert + " --tls-key " + c.clientCert + " " + verified + plain + c.Address("smtps"),
			"bob@peers.example", []string{"<~  250 2.0.0 delivered"}, "ESMTPS TLS 1.2 of client.peers.example",
		},
		"secure-lmtp": {
			login + "LOGIN --tls --protocol LMTP " + verified + "--server " + c.Address("lmtp-tcp"), "busy@peers.example,ann@peers.example",
			[]string{"<~* 450 4.2.1 <busy@peers.example> mailbox busy", "<~  250 2.0.0 <ann@peers.example> delivered"}, "LMTPSA TLS 1.3 as login@peers.example by LOGIN",
		},
	}
	for name, test := range tests {
		sender := name + "@peers.example"
		args := append(strings.Fields(test.server), "--to", test.to,
			"--from", sender, "--ehlo", "swaks.peers.example", "--data", "Subject: from swaks\n\n.dot\n.\n")
		transcript, err := exec.Command(swaks, args...).CombinedOutput()
		if got := swaksAnswers(transcript); !slices.Equal(got, test.want) {
			t.Errorf("swaks %q got\n%s\nwant\n%s\nthe whole:\n%s", args, strings.Join(got, "\n"), strings.Join(test.want, "\n"), transcript)
		}
		// It fails unless somebody gets the message.
		if good := test.told != ""; good != (err == nil) {
			t.Errorf("swaks %q: %v", args, err)
		}
		if test.told == "" {
			continue
		}
		if got, _, _ := strings.Cut(c.told(t, sender), ": "); got != test.told {
			t.Errorf("swaks %q: the backend was told %q, want %q", args, got, test.told)
		}
	}
	const message = "Subject: from swaks\r\n\r\n.dot\r\n"
	for user, n := range map[string]int{"ann": 5, "bob": 5, "busy": 0, "gone": 0} {
		if got := c.Mail(user); !slices.Equal(got, slices.Repeat([]string{message}, n)) {
			t.Errorf("%s has %q, want %d of %q", user, got, n, message)
		}
	}
}

// swaksAnswers returns the answers to a message, without the id of the
// transaction with which each of them ends.
func swaksAnswers(transcript []byte) []string {
	answers := regexp.MustCompile(`(?s)\n [-~]> \.\n(.*)\n [-~]> QUIT\n`).FindSubmatch(transcript)
	if answers == nil {
		return nil
	}
	return strings.Split(regexp.MustCompile(`(?m) \(\w{16}\)$`).ReplaceAllString(string(answers[1]), ""), "\n")
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
