package abuse

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// slowly goes behind the routes of a listener, and makes mail for slow take a
// while.
const slowly = `
"slow@peers.example" = ["slow"]
`

const slow = `
[backend.slow]
plugin = "static"
[[backend.slow.settings.rule]]
to = "*"
status = "250 2.0.0 taken at last"
delay = "200ms"
`

// A state is one that a session can be in.
type state struct {
	said, heard string // since the greeting
	open        string // codes of what is still to be answered
	mail        []string
}

// states returns the states of a session in which user and slow get a message.
func states(hello, user, answers string) []state {
	const message = "Subject: whole\r\n\r\nThe body.\r\n"
	begin := hello + " client.peers.example\r\n" + envelope("slow", user)
	data := begin + "DATA\r\n"
	bdat := begin + fmt.Sprintf("BDAT %d LAST\r\n", len(message))
	half := begin + "BDAT 4\r\nhalf"
	const begun = "250 250 250 250"
	whole := []string{message}
	return []state{
		{},
		{said: hello + " cli"},
		{said: hello + " client.peers.example\r\n", heard: "250"},
		{said: hello + " client.peers.example\r\nMAIL FROM:<sender@peers.example>\r\n", heard: "250 250"},
		{said: begin, heard: begun},
		{said: begin + "DAT", heard: begun},
		{said: data, heard: begun + " 354"},
		{said: data + message[:5], heard: begun + " 354"},
		{said: data + message, heard: begun + " 354"},
		{said: data + message + ".", heard: begun + " 354"},
		{said: data + message + ".\r", heard: begun + " 354"},
		{said: bdat, heard: begun},
		{said: bdat + message[:5], heard: begun},
		{said: half, heard: begun + " 250"},
		{said: half + "BDAT 10", heard: begun + " 250"},
		{said: half + "BDAT 10 LAST\r\nno more", heard: begun + " 250"},
		{said: half + "RSET\r\n", heard: begun + " 250 250"},
		{said: data + message + ".\r\n", heard: begun + " 354", open: answers, mail: whole},
		{said: data + message + ".\r\nMAIL FROM", heard: begun + " 354", open: answers, mail: whole},
		{said: bdat + message, heard: begun, open: answers, mail: whole},
		{said: data + message + ".\r\n" + hello + " again\r\n", heard: begun + " 354 " + answers, open: "250", mail: whole},
	}
}

func slowListeners(t *testing.T) string {
	return listener("few", "chunking = true", "limits.connections = 3", withTLS(t, "starttls")) + slowly +
		gatewaytest.LMTP + "chunking = true\nlimits.connections = 3\n" + gatewaytest.ToInbox + slowly +
		slow
}

var slowTargets = []struct{ listener, network, hello, answers string }{
	{"few", "tcp", "EHLO", "250"},
	{"lmtp", "unix", "LHLO", "250 250"},
}

// A client that has said all it had to say may still listen, and gets every
// answer that is due.
func TestHalfClosedInEveryState(t *testing.T) {
	t.Parallel()
	g := start(t, gatewaytest.AsTested, slowListeners(t))
	for _, to := range slowTargets {
		for n := range states("", "", "") {
			user := fmt.Sprintf("%s-%d", to.listener, n)
			s := states(to.hello, user, to.answers)[n]
			c := admitted(t, to.network, g.Address(to.listener))
			c.send(s.said)
			c.closeWrite()
			want := strings.TrimSpace(s.heard + " " + s.open)
			if got, err := c.rest(); err != nil || codes(got) != want {
				t.Errorf("%s: %q got %q, %v, want %s", to.listener, s.said, got, err, want)
			}
			c.Close()
			checkMail(t, g, user, s.mail...)
		}
	}
}

// admitted connects as soon as there are not too many connections.
func admitted(t *testing.T, network, address string) (c *client) {
	t.Helper()
	gatewaytest.Eventually(t, "there is room for a connection", func() bool {
		c = dial(t, network, address)
		greeting := c.hear()
		if strings.HasPrefix(greeting, "421 4.7.0 ") {
			c.Close()
		}
		return strings.HasPrefix(greeting, "220 ")
	})
	return c
}

// Only few clients may be there at once, so that those that vanish have to
// make room.
func TestClientVanishesInEveryState(t *testing.T) {
	t.Parallel()
	g := start(t, gatewaytest.AsTested, slowListeners(t))
	left := map[string]state{} // by user
	for _, to := range slowTargets {
		for n := range states("", "", "") {
			for _, how := range []string{"close", "reset", "unread"} {
				user := fmt.Sprintf("%s-%d-%s", to.listener, n, how)
				s := states(to.hello, user, to.answers)[n]
				c := admitted(t, to.network, g.Address(to.listener))
				c.send(s.said)
				if how != "unread" {
					c.expect(s.heard)
				}
				if tcp, ok := c.Conn.(*net.TCPConn); ok && how == "reset" {
					tcp.SetLinger(0)
				}
				c.Close()
				left[user] = s
			}
		}
	}
	hello := clientHello(t)
	for _, said := range []string{"STARTTLS\r\n", "STARTTLS\r\n" + hello[:len(hello)/2], "STARTTLS\r\n" + hello} {
		c := admitted(t, "tcp", g.Address("few"))
		c.send(said)
		c.expect("220")
		c.Close()
	}

	// The room that they had is free again, all of it at once.
	for _, to := range slowTargets {
		for range 3 {
			defer admitted(t, to.network, g.Address(to.listener)).Close()
		}
	}
	for user, s := range left {
		// Without a look at the answers it may have left before the end.
		if strings.HasSuffix(user, "-unread") && len(g.MailFiles(user)) == 0 {
			continue
		}
		checkMail(t, g, user, s.mail...)
	}
}
