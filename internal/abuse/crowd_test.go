package abuse

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// Those who are too many are told so, and those who are there are served.
// There is room again as soon as somebody leaves.
func TestConnectionFlood(t *testing.T) {
	t.Parallel()
	const most, mostOfPeer = 20, 5
	limits := fmt.Sprintf("limits.connections = %d\nlimits.connections_per_peer = %d\n", most, mostOfPeer)
	g := start(t, gatewaytest.AsTested, listener("few", limits), gatewaytest.LMTP, limits, gatewaytest.ToInbox)
	from := func(peer int) *client {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(peer))}}
		socket, err := dialer.DialContext(t.Context(), "tcp", g.Address("few"))
		if err != nil {
			t.Fatal(err)
		}
		return newClient(t, socket)
	}
	refused := func(c *client) {
		t.Helper()
		if got, err := c.rest(); err != nil || got != "421 4.7.0 gw.peers.example too many connections, try again later\r\n" {
			t.Errorf("one too many got %q, %v", got, err)
		}
		c.Close()
	}
	comeBack := func(connect func() *client) *client {
		t.Helper()
		var c *client
		gatewaytest.Eventually(t, "there is room", func() bool {
			c = connect()
			return strings.HasPrefix(c.hear(), "220 ")
		})
		return c
	}

	for round := range 2 {
		var inside []*client
		for n := range most {
			inside = append(inside, comeBack(func() *client { return from(n / mostOfPeer) }))
			if n == mostOfPeer-1 {
				refused(from(0)) // though there is room for others
			}
		}
		for n := range 300 {
			refused(from(n % 100))
		}
		checkWorks(t, g)
		inside[7].send("EHLO client.peers.example\r\n" + envelope("inside") + "DATA\r\n.\r\nQUIT\r\n")
		if got, err := inside[7].rest(); err != nil || codes(got) != "250 250 250 354 250 221" {
			t.Errorf("round %d: somebody inside got %q, %v", round, got, err)
		}
		another := comeBack(func() *client { return from(50) })
		refused(from(51))
		for _, c := range append(inside, another) {
			c.Close()
		}
	}

	var inside []*client
	for range mostOfPeer {
		inside = append(inside, dial(t, "unix", g.Address("lmtp")))
		inside[len(inside)-1].expect("220")
	}
	refused(dial(t, "unix", g.Address("lmtp")))
	inside[0].send("QUIT\r\n")
	inside[0].rest()
	comeBack(func() *client { return dial(t, "unix", g.Address("lmtp")) })
}

// A session that is idle costs memory, but little.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	const crowd = 10_000
	const most = 64 << 10 // for each
	allowFiles(t, crowd+1000)
	g := start(t, gatewaytest.Plain, listener("idle", "limits.connections = 0"))
	before := gatewaytest.Memory(t, g.PID(), "VmRSS")
	for range crowd {
		c := dial(t, "tcp", g.Address("idle"))
		c.send("EHLO client.peers.example\r\n")
		c.expect("220 250")
		c.Conn.(*net.TCPConn).SetLinger(0) // so that the port is free after the test
	}
	each := (gatewaytest.Memory(t, g.PID(), "VmRSS") - before) / crowd
	t.Logf("%d idle connections have %d octets of memory each", crowd, each)
	if each > most {
		t.Errorf("that is more than %d", most)
	}
	checkWorks(t, g)
}

// allowFiles lets this process, and those that it starts, have so many files
// and sockets.
func allowFiles(t *testing.T, want uint64) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur >= want {
		return
	}
	limit.Cur = want
	limit.Max = max(limit.Max, want)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		gatewaytest.Without(t, "%d open files: %v", want, err)
	}
}

func TestManyPipelinedNoops(t *testing.T) {
	t.Parallel()
	g := start(t, gatewaytest.Plain)
	const many = 100_000
	c := dial(t, "tcp", g.Address("smtp"))
	c.expect("220")
	go io.WriteString(c, strings.Repeat("NOOP\r\n", many)+"QUIT\r\n")
	got, err := c.rest()
	if n := strings.Count(got, "250 2.0.0 ok\r\n"); err != nil || n != many || !strings.HasSuffix(got, "\r\n221 2.0.0 gw.peers.example good bye\r\n") {
		t.Errorf("%d answers, %v, and the end is %q", n, err, got[max(0, len(got)-100):])
	}
}

// A line is a line, however long it is, and costs no memory. One in a message
// goes through as it is.
func TestLineOfMegabyte(t *testing.T) {
	t.Parallel()
	g := start(t, gatewaytest.AsTested)
	before := gatewaytest.Memory(t, g.PID(), "VmRSS")
	long := strings.Repeat("x", 1<<20)
	for _, test := range []struct{ said, heard string }{
		{long, "500 250 221"},
		{"NOOP " + long, "500 250 221"},
		{"EHLO " + long, "500 250 221"},
		{"MAIL FROM:<" + long, "500 250 221"},
		{"BDAT " + long, "421"}, // what follows could be a chunk
		{"EHLO x\r\n" + envelope("long") + "DATA\r\n" + long + "\r\n.", "250 250 250 354 250 250 221"},
	} {
		c := dial(t, "tcp", g.Address("smtp"))
		c.expect("220")
		c.send(test.said)
		io.WriteString(c, "\r\nNOOP\r\nQUIT\r\n") // in vain, where it has hung up
		if got, _ := c.rest(); codes(got) != test.heard {
			t.Errorf("%.20q: got %q, want %s", test.said, got, test.heard)
		}
	}
	checkMail(t, g, "long", long+"\r\n")
	if more := gatewaytest.Memory(t, g.PID(), "VmRSS") - before; more > 32<<20 {
		t.Errorf("the gateway has %d octets more", more)
	}
}
