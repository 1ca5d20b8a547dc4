package abuse

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// pipelined is a session of three transactions, one of which is given up, and
// what is heard in it. All of it may be sent at once.
func pipelined(hello, user string) (said string, heard string) {
	said = hello + " x\r\n" +
		envelope(user) + "DATA\r\nSubject: one\r\n\r\n..dot\r\n...\r\nRSET\r\n.\r\n" +
		envelope("nobody") + "RSET\r\n" +
		envelope(user) + "BDAT 14\r\nSubject: two\r\nBDAT 0\r\nBDAT 11 LAST\r\n\r\nRSET\r\n.\r\n" +
		"QUIT\r\n"
	return said, "250 250 250 354 250 250 250 250 250 250 250 250 250 221"
}

var pipelinedMail = []string{
	"Subject: one\r\n\r\n.dot\r\n..\r\nRSET\r\n",
	"Subject: two\r\n\r\nRSET\r\n.\r\n",
}

// It does not matter where the network cuts what a client says.
func TestSplitAtEveryOctet(t *testing.T) {
	t.Parallel()
	g := start(t, gatewaytest.Plain, listener("chunks", "chunking = true"))
	const first = "NOOP\r\n" // so that there is an answer to wait for
	for at := len(first); ; at++ {
		user := fmt.Sprintf("split-%03d", at)
		said, heard := pipelined("EHLO", user)
		if said = first + said; at == len(said) {
			break
		}
		c := dial(t, "tcp", g.Address("chunks"))
		c.expect("220")
		c.send(said[:at])
		// The server has read the first part, all of it since it came as one,
		// when it has answered a command in it.
		c.expect("250")
		c.send(said[at:])
		if got, err := c.rest(); err != nil || codes(got) != heard {
			t.Errorf("split after %q: got %q, %v", said[:at], got, err)
		}
		c.Close()
		checkMail(t, g, user, pipelinedMail...)
	}
	checkMail(t, g, "nobody")
}

// Sessions may be sent in one piece, however long.
func TestPipelinedTransactions(t *testing.T) {
	t.Parallel()
	const rounds = 20
	g := start(t, gatewaytest.AsTested,
		listener("chunks", "chunking = true"),
		gatewaytest.LMTP, "chunking = true\n", gatewaytest.ToInbox)
	for _, to := range []struct{ listener, network, hello string }{{"chunks", "tcp", "EHLO"}, {"lmtp", "unix", "LHLO"}} {
		said, heard := pipelined(to.hello, to.listener)
		said, heard = strings.TrimSuffix(said, "QUIT\r\n"), strings.TrimSuffix(heard, " 221")
		c := dial(t, to.network, g.Address(to.listener))
		c.send(strings.Repeat(said, rounds) + "QUIT\r\n")
		if got, err := c.rest(); err != nil || codes(got) != "220"+strings.Repeat(" "+heard, rounds)+" 221" {
			t.Errorf("%s: got %q, %v", to.listener, got, err)
		}
		checkMail(t, g, to.listener, slices.Repeat(pipelinedMail, rounds)...)
	}
}

// What follows QUIT is not looked at, and does not keep the client from the
// answer.
func TestNothingFollowsQuit(t *testing.T) {
	t.Parallel()
	g := start(t, gatewaytest.AsTested, gatewaytest.LMTP, gatewaytest.ToInbox)
	for _, after := range []string{
		"\r\n",
		"QUIT\r\n",
		envelope("late") + "DATA\r\nSubject: late\r\n\r\n.\r\n",
		"MAIL FROM:<sender@peers.example", // and no more
		strings.Repeat("NOOP\r\n", 100),
		strings.Repeat(envelope("late")+"DATA\r\n.\r\n", 2000),
	} {
		for _, to := range []struct{ listener, network, hello string }{{"smtp", "tcp", "EHLO"}, {"lmtp", "unix", "LHLO"}} {
			c := dial(t, to.network, g.Address(to.listener))
			c.expect("220")
			c.Write([]byte(to.hello + " client.peers.example\r\nQUIT\r\n" + after)) // in vain, at its end
			got, err := c.rest()
			// Of what is more than it has read the kernel tells the client.
			if tooMuch := len(after) > 4096 && errors.Is(err, syscall.ECONNRESET); err != nil && !tooMuch || codes(got) != "250 221" {
				t.Errorf("%s: %.40q after QUIT: got %q, %v", to.listener, after, got, err)
			}
		}
	}
	checkMail(t, g, "late")
}
