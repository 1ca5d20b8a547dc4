package abuse

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// edges are what a server has been found to take for the end of a line, before
// or after the dot that ends a message, and some that none should.
var edges = []string{
	"", "\n", "\r", "\r\n", "\n\r", "\r\r\n", "\r\n\n", "\r\x00\n", "\x00\r\n", "\r\n\x00",
	"\r\n\t", "\t\r\n", "\r\n ", " \r\n", "\r\n.", "\v\n", "\x85",
}

const smuggled = "MAIL FROM:<smuggler@peers.example>\r\nRCPT TO:<smuggled@peers.example>\r\nDATA\r\nSubject: smuggled\r\n\r\n"

// bodies returns messages that some server could take for two, each with its
// last CRLF.
func bodies() (all []string) {
	for _, left := range edges {
		for _, right := range edges {
			body := "Subject: one\r\n\r\nThe body." + left + "." + right + smuggled
			if !strings.Contains(body, "\r\n.\r\n") {
				all = append(all, body)
			}
		}
	}
	return all
}

func TestOnlyCRLFDotCRLFEndsMessage(t *testing.T) {
	t.Parallel()
	g := start(t, gatewaytest.AsTested,
		listener("pass", `bare_newlines = "pass"`),
		gatewaytest.LMTP, gatewaytest.ToInbox)
	sent := 0
	for n, body := range bodies() {
		stored := strings.ReplaceAll(body, "\r\n.", "\r\n")
		for _, to := range []struct{ listener, network, hello string }{
			{"smtp", "tcp", "EHLO"}, {"pass", "tcp", "EHLO"}, {"lmtp", "unix", "LHLO"},
		} {
			user := fmt.Sprintf("%s-%d", to.listener, n)
			c := dial(t, to.network, g.Address(to.listener))
			c.send(to.hello + " client.peers.example\r\n" + envelope(user) + "DATA\r\n" + body + ".\r\nQUIT\r\n")
			got, err := c.rest()
			c.Close()
			want, mail := "250", []string{stored}
			if to.listener != "pass" && hasBareNewline(body) {
				want, mail = "550", nil
			}
			if want = "220 250 250 250 354 " + want + " 221"; err != nil || codes(got) != want {
				t.Errorf("%s: %q got %q, %v, want %s", to.listener, body, got, err, want)
			}
			checkMail(t, g, user, mail...)
			sent += len(mail)
		}
	}
	checkMail(t, g, "smuggled")
	if n := received(t, g); n != sent {
		t.Errorf("%d transactions, want %d", n, sent)
	}

	// It does not take the true end either for part of the message.
	c := dial(t, "tcp", g.Address("smtp"))
	c.send("EHLO client.peers.example\r\n" + envelope("two") + "DATA\r\none\r\n.\r\n" + smuggled + ".\r\nQUIT\r\n")
	c.expect("220 250 250 250 354 250 250 250 354 250 221")
	checkMail(t, g, "two", "one\r\n")
	checkMail(t, g, "smuggled", "Subject: smuggled\r\n\r\n")
}

// In a chunk a dot means nothing. A body may even have a true end.
func TestChunksHaveNoEndOfMessage(t *testing.T) {
	t.Parallel()
	g := start(t, gatewaytest.AsTested,
		listener("chunks", "chunking = true"),
		listener("pass", "chunking = true", `bare_newlines = "pass"`))
	sent := 0
	for n, body := range append(bodies(), "one\r\n.\r\n"+smuggled) {
		body += ".\r\nQUIT\r\n"
		for _, to := range []string{"chunks", "pass"} {
			user := fmt.Sprintf("%s-%d", to, n)
			half := len(body) / 2
			c := dial(t, "tcp", g.Address(to))
			c.send("EHLO client.peers.example\r\n" + envelope(user) +
				fmt.Sprintf("BDAT %d\r\n%sBDAT %d LAST\r\n%sQUIT\r\n", half, body[:half], len(body)-half, body[half:]))
			got, err := c.rest()
			c.Close()
			want, mail := "250", []string{body}
			if to != "pass" && hasBareNewline(body) {
				want, mail = "550", nil
			}
			if want = "220 250 250 250 250 " + want + " 221"; err != nil || codes(got) != want {
				t.Errorf("%s: %q got %q, %v, want %s", to, body, got, err, want)
			}
			checkMail(t, g, user, mail...)
			sent += len(mail)
		}
	}
	checkMail(t, g, "smuggled")
	if n := received(t, g); n != sent {
		t.Errorf("%d transactions, want %d", n, sent)
	}
}

// hasBareNewline reports whether a CR or LF is left without the CRLFs.
func hasBareNewline(body string) bool {
	return strings.ContainsAny(strings.ReplaceAll(body, "\r\n", ""), "\r\n")
}
