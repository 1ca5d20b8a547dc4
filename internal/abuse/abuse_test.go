// Package abuse has tests that treat mailgw, as it is built, as a hostile or
// broken client would. After each of them it works as before, and nothing of
// the abuse is left in it.
package abuse

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.Main(m) }

// start starts a gateway with the listener "smtp", which has the limits that
// a gateway has by default, and those of config. At the end of the test
// nothing may be left in it of what the test did.
func start(t *testing.T, program gatewaytest.Program, config ...string) *gatewaytest.Gateway {
	t.Helper()
	config = append([]string{gatewaytest.SMTP, gatewaytest.ToInbox, gatewaytest.Inbox}, config...)
	g := gatewaytest.Start(t, program, config...)
	before := descriptors(t, g)
	t.Cleanup(func() {
		checkDescriptors(t, g, before)
		checkWorks(t, g)
		checkDescriptors(t, g, before)
		fresh := gatewaytest.Start(t, program, config...)
		checkGoroutines(t, g.Goroutines(), fresh.Goroutines())
	})
	return g
}

// listener is one more listener, on TCP, with more keys.
func listener(name string, keys ...string) string {
	return fmt.Sprintf("\n[[listener]]\nname = %q\naddress = \"tcp:127.0.0.1:0\"\nprotocol = \"smtp\"\n%s\n%s",
		name, strings.Join(keys, "\n"), gatewaytest.ToInbox)
}

// checkWorks sends a message that nobody could object to.
func checkWorks(t *testing.T, g *gatewaytest.Gateway) {
	t.Helper()
	c := dial(t, "tcp", g.Address("smtp"))
	c.send("EHLO client.peers.example\r\n" + envelope("well") + "DATA\r\nSubject: well\r\n\r\n.\r\nQUIT\r\n")
	if got, err := c.rest(); err != nil || codes(got) != "220 250 250 250 354 250 221" {
		t.Errorf("an ordinary message got %q, %v", got, err)
	}
	c.Close()
}

// descriptors returns how many files and sockets of a kind each process of a
// gateway has open.
func descriptors(t *testing.T, g *gatewaytest.Gateway) map[string]int {
	t.Helper()
	count := map[string]int{}
	for _, p := range g.Running() {
		directory := fmt.Sprintf("/proc/%d/fd/", p.PID)
		open, err := os.ReadDir(directory)
		if err != nil {
			t.Fatal(err)
		}
		for _, descriptor := range open {
			if path, err := os.Readlink(directory + descriptor.Name()); err == nil {
				kind, _, _ := strings.Cut(path, "[") // the rest is a number
				count[fmt.Sprintf("process %d: %s", p.PID, kind)]++
			}
		}
	}
	return count
}

// checkDescriptors waits until a gateway has no more processes, files and
// sockets than before. It may have less: the runtime closes what is garbage.
func checkDescriptors(t *testing.T, g *gatewaytest.Gateway, before map[string]int) {
	t.Helper()
	now := before
	more := func() bool {
		for kind, n := range now {
			if n > before[kind] {
				return true
			}
		}
		return false
	}
	defer func() {
		if more() {
			t.Errorf("open are %v, want %v", now, before)
		}
	}()
	gatewaytest.Eventually(t, "no more files and sockets are open than before", func() bool {
		now = descriptors(t, g)
		return !more()
	})
}

// checkGoroutines compares what a gateway has with what a fresh one has.
func checkGoroutines(t *testing.T, got, fresh map[string][]string) {
	t.Helper()
	for by, stacks := range got {
		if n := len(stacks); n > len(fresh[by]) {
			t.Errorf("%d goroutines that %s started, want %d; one is\n%s", n, by, len(fresh[by]), stacks[n-1])
		}
	}
}

// A client says what it likes. Whatever it waits for, it gives up some time.
type client struct {
	net.Conn
	t *testing.T
	r *bufio.Reader
}

// dial connects, and hangs up at the end of the test at the latest.
func dial(t *testing.T, network, address string) *client {
	t.Helper()
	socket, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, socket)
}

func newClient(t *testing.T, socket net.Conn) *client {
	t.Cleanup(func() { socket.Close() })
	socket.SetDeadline(time.Now().Add(gatewaytest.Patience))
	return &client{socket, t, bufio.NewReader(socket)}
}

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
}

// closeWrite says that no more follows, and leaves the other way open.
func (c *client) closeWrite() {
	c.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// hear reads one reply.
func (c *client) hear() (reply string) {
	c.t.Helper()
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			c.t.Fatalf("%v after %q", err, reply+line)
		}
		if reply += line; len(line) < 4 || line[3] != '-' {
			return reply
		}
	}
}

// expect reads as many replies as it wants codes.
func (c *client) expect(want string) {
	c.t.Helper()
	var got strings.Builder
	for range strings.Fields(want) {
		got.WriteString(c.hear())
	}
	if codes(got.String()) != want {
		c.t.Fatalf("got %q, want %s", got.String(), want)
	}
}

// rest reads all replies until the connection ends.
func (c *client) rest() (string, error) {
	text, err := io.ReadAll(c.r)
	return string(text), err
}

// codes returns the codes of replies. What is no reply stands among them in
// quotes.
func codes(replies string) string {
	var all []string
	for line := range strings.SplitAfterSeq(replies, "\r\n") {
		switch {
		case line == "" || len(line) > 3 && line[3] == '-':
		case len(line) > 3 && line[3] == ' ' && strings.HasSuffix(line, "\r\n"):
			all = append(all, line[:3])
		default:
			all = append(all, fmt.Sprintf("%q", line))
		}
	}
	return strings.Join(all, " ")
}

// envelope are the commands that begin a transaction.
func envelope(users ...string) string {
	commands := "MAIL FROM:<sender@peers.example>\r\n"
	for _, user := range users {
		commands += "RCPT TO:<" + user + "@peers.example>\r\n"
	}
	return commands
}

// checkMail checks which messages are in the inbox of a user, in any order.
func checkMail(t *testing.T, g *gatewaytest.Gateway, user string, want ...string) {
	t.Helper()
	got := g.Mail(user)
	slices.Sort(got)
	if want = slices.Sorted(slices.Values(want)); !slices.Equal(got, want) {
		t.Errorf("%s has %d messages %.2000q, want %d: %.2000q", user, len(got), got, len(want), want)
	}
}

// received returns how many messages a gateway says it has received, besides
// those of checkWorks.
func received(t *testing.T, g *gatewaytest.Gateway) (n int) {
	t.Helper()
	for _, e := range gatewaytest.Follow(t, g.Log).Events() {
		if e.Message == "received" {
			n++
		}
	}
	return n - len(g.MailFiles("well"))
}
