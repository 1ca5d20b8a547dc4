package abuse

import (
	"flag"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

var seed = flag.Uint64("seed", rand.Uint64(), "of random sessions, as a test that failed has told it")

// phrases are what random sessions are made of.
var phrases = []string{
	"EHLO client.peers.example\r\n", "LHLO client.peers.example\r\n", "HELO x\r\n", "STARTTLS\r\n", "\x16\x03\x01\x02\x00\x01",
	"MAIL FROM:<>\r\n", "MAIL FROM:<sender@peers.example> SIZE=100 BODY=8BITMIME\r\n", "MAIL FROM:<\u00fc@peers.example> SMTPUTF8\r\n",
	"MAIL FROM:<sender@peers.example> PRDR\r\n", "MAIL FROM:<sender@peers.example> BODY=BINARYMIME\r\n", "MAIL FROM:<a@b", "MAIL FROM:<a b@c> A=\r\n",
	"RCPT TO:<random@peers.example>\r\n", "RCPT TO:<slow@peers.example>\r\n", "RCPT TO:<@relay.example:random@peers.example>\r\n",
	"RCPT TO:<\"random\"@peers.example>\r\n", "RCPT TO:<>\r\n", "RCPT TO:<postmaster>\r\n",
	"DATA\r\n", "DATA \r\n", "DATA x\r\n", "Subject: random\r\n", "\r\n.\r\n", ".\r\n", "\r\n", "\r", "\n", "\x00", "..", "\xff\xfe",
	"BDAT 5\r\nSubje", "BDAT 9 LAST\r\nSubject: ", "BDAT 0 LAST\r\n", "BDAT 0\r\n", "BDAT 100\r\n", "BDAT 99999999999999999999\r\n", "BDAT -1\r\n", "BDAT 3 LAST\n",
	"RSET\r\n", "NOOP\r\n", "NOOP with arguments\r\n", "VRFY random\r\n", "EXPN random\r\n", "HELP\r\n", "QUIT\r\n",
	"XFORWARD NAME=client.example ADDR=10.0.0.1 IDENT=42\r\n", "XFORWARD ADDR=IPV6:::1 PROTO=ESMTP\r\n", "XFORWARD NAME=+0D+0A250+20ok\r\n", "XFORWARD\r\n",
	"GET / HTTP/1.1\r\n", strings.Repeat("x", 3000), strings.Repeat("long line ", 1000) + "\r\n",
}

// transactions are phrases that make sense, in a session that has begun.
var transactions = []string{
	envelope("random") + "DATA\r\nSubject: random\r\n\r\nbody\r\n.\r\n",
	envelope("random", "slow") + "DATA\r\nSubject: random\r\n\r\n..\r\n.\r\n",
	envelope("slow", "random", "random") + "DATA\r\n.\r\n",
	envelope("random") + "BDAT 17 LAST\r\nSubject: random\r\n",
	envelope("random", "slow") + "BDAT 3\r\nSubBDAT 0\r\nBDAT 14 LAST\r\nject: random\r\n",
}

// ramble makes up a session: phrases in any order, some of them damaged.
func ramble(random *rand.Rand, hello string) (parts []string) {
	if random.IntN(10) > 0 {
		parts = append(parts, hello+" client.peers.example\r\n")
	}
	for range 1 + random.IntN(20) {
		from := phrases
		if random.IntN(2) == 0 {
			from = transactions
		}
		part := []byte(from[random.IntN(len(from))])
		switch at := random.IntN(len(part)); random.IntN(20) {
		case 0:
			part = part[:at]
		case 1:
			part[at] ^= 1 << random.IntN(8)
		case 2:
			part = append(part, part[at:]...)
		}
		parts = append(parts, string(part))
	}
	return parts
}

var (
	delivered = regexp.MustCompile(`(?m)^250[ -]2\.0\.0 .*\((\w{16})\)\r$`)
	replies   = regexp.MustCompile(`^(([2345]\d\d-[^\r\n]*\r\n)*[2345]\d\d [^\r\n]*\r\n)*$`)
)

// Whatever clients say, they hear replies and nothing else, and that a
// message was delivered only if it was.
func TestRandomSessions(t *testing.T) {
	t.Parallel()
	t.Logf("to see the same again: -args -seed=%d", *seed)
	random := rand.New(rand.NewPCG(*seed, 0))
	keys := []string{"chunking = true", `xforward = ["127.0.0.0/8"]`}
	g := start(t, gatewaytest.AsTested,
		listener("any", append(keys, withTLS(t, "starttls"))...), slowly,
		listener("pass", append(keys, `bare_newlines = "pass"`, `unknown_parameters = "keep"`, "limits.bad_commands = 0")...), slowly,
		gatewaytest.LMTP, "chunking = true\nxforward = [\"unix\"]\n", gatewaytest.ToInbox, slowly,
		strings.Replace(slow, "200ms", "10ms", 1))
	positive := map[string]bool{} // IDs of transactions
	for range 200 {
		network, name, hello := "tcp", "any", "EHLO"
		switch random.IntN(3) {
		case 0:
			name = "pass"
		case 1:
			network, name, hello = "unix", "lmtp", "LHLO"
		}
		c := dial(t, network, g.Address(name))
		said := ramble(random, hello)
		leaves := random.IntN(4) == 0
		go c.ramble(said, leaves)
		got, err := c.rest()
		for _, m := range delivered.FindAllStringSubmatch(got, -1) {
			positive[m[1]] = true
		}
		// After STARTTLS there may be an alert.
		inClear, alert, _ := strings.Cut(got, "220 2.0.0 ready to start TLS\r\n")
		if !leaves && (!replies.MatchString(inClear) || alert != "" && alert[0] != 0x15) {
			t.Errorf("%q got %q, %v, which is no sequence of replies", said, got, err)
		}
		c.Close()
	}
	checkPositive(t, g, positive)
}

// ramble says all parts, and then hangs up or waits for the answers.
func (c *client) ramble(parts []string, leaves bool) {
	for _, part := range parts {
		io.WriteString(c, part) // in vain if the server has hung up
	}
	if tcp, ok := c.Conn.(*net.TCPConn); ok && leaves {
		tcp.SetLinger(0)
		c.Close()
	}
	c.closeWrite()
}

// checkPositive checks that what clients were told, what the log says and what
// has arrived are the same.
func checkPositive(t *testing.T, g *gatewaytest.Gateway, positive map[string]bool) {
	t.Helper()
	log := gatewaytest.Follow(t, g.Log)
	logged := map[string]bool{}
	inbox := 0 // recipients who have the message
	open := 0  // recipients without an answer
	// Sessions whose client has left may still be at it.
	gatewaytest.Eventually(t, "what has arrived is what the log says", func() bool {
		for _, e := range log.Events() {
			switch {
			case e.Message == "received":
				open += e.Recipients
			case e.Message == "status" && e.Backend != "": // without one it was refused
				open--
			}
			if e.Message == "status" && e.Code == 250 {
				logged[e.TX] = true
				if e.Backend == "inbox" {
					inbox++
				}
			}
		}
		arrived, err := filepath.Glob(g.Path("mail/*/new/*"))
		return err == nil && open == 0 && len(arrived) == inbox
	})
	for id := range positive {
		if !logged[id] {
			t.Errorf("transaction %s had a positive answer, and none in the log", id)
		}
	}
	if len(positive) == 0 {
		t.Error("no session had a message delivered, so that nothing was tested")
	}
	t.Logf("%d transactions had a positive answer", len(positive))
}
