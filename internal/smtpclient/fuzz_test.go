package smtpclient

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/internal/smtp"
)

// A fakeConn is a server that says its next turn when the client waits for it.
// In the end it hangs up.
type fakeConn struct {
	net.Conn
	turns   []string
	written strings.Builder
	told    []int // octets that the client had written at each turn
	unread  string
}

func (c *fakeConn) Read(p []byte) (int, error) {
	if c.unread == "" {
		if len(c.turns) == 0 {
			return 0, io.EOF
		}
		c.unread, c.turns = c.turns[0], c.turns[1:]
		c.told = append(c.told, c.written.Len())
	}
	n := copy(p, c.unread)
	c.unread = c.unread[n:]
	return n, nil
}

func (c *fakeConn) Write(p []byte) (int, error)   { return c.written.Write(p) }
func (c *fakeConn) Close() error                  { return nil }
func (c *fakeConn) SetDeadline(t time.Time) error { return nil }
func (c *fakeConn) LocalAddr() net.Addr           { return &net.UnixAddr{Net: "unix"} }

// Whatever a server says, each recipient has one answer, and it is a success
// only if the server has said so after the end of the message.
func FuzzServer(f *testing.F) {
	for _, seed := range []string{
		"220 mx|250 mx|250|250|250|354|250 ok",
		"220 mx|250-mx\r\n250-PIPELINING\r\n250 XFORWARD NAME|250|250\r\n250\r\n550\r\n354|250 ok",
		"220 mx|250-mx\r\n250 CHUNKING|250|250|250|250 ok\r\n250 ok",
		"220 mx|250-mx\r\n250 PIPELINING|250\r\n550\r\n550\r\n354|250",
		"220|500|250|250|250|552|354|421",
		"220-a\r\n220 b|250-\r\n250|250|251|450|354|354",
		"220|250|250|250|250|354\r\n250 ok|250",
		"421", "250|250-AUTH=PLAIN\r\n250|334|235",
	} {
		f.Add(seed, false, true)
		f.Add(seed, true, false)
	}
	f.Fuzz(func(t *testing.T, server string, lmtp, chunking bool) {
		var turns []string
		for turn := range strings.SplitSeq(server, "|") {
			turns = append(turns, strings.TrimSuffix(turn, "\r\n")+"\r\n")
		}
		conn := &fakeConn{turns: turns}
		c := New(conn, Settings{LMTP: lmtp, Name: "me"})
		ctx := context.Background()
		c.Hello(ctx)
		if len(c.Words("AUTH")) > 0 {
			c.Auth(ctx, Credentials{User: "user", Password: "secret"})
		}
		tx := Transaction{
			Recipients: []Recipient{{Address: "a@x"}, {Address: "b@x"}},
			Message:    strings.NewReader("the message\r\n"),
			Size:       13,
			Chunking:   chunking,
		}
		answers, successes := map[int]int{}, 0
		c.Send(ctx, &tx, func(i int, r smtp.Reply, err error) {
			answers[i]++
			if err == nil {
				successes++
				if r.Code/100 != 2 {
					t.Errorf("success of %v", r)
				}
			}
		})
		if answers[0] != 1 || answers[1] != 1 {
			t.Errorf("answers %v", answers)
		}
		if yes := yesAfterMessage(conn, turns); successes > yes && lmtp || successes > 0 && yes == 0 {
			t.Errorf("%d successes, but the server said yes %d times after the message; the client said %q", successes, yes, conn.written.String())
		}
		c.Reset(ctx)
		c.Quit(ctx)
	})
}

// yesAfterMessage counts the lines of a server that end a 2yz reply and came
// after the end of the message.
func yesAfterMessage(conn *fakeConn, turns []string) (n int) {
	all := conn.written.String()
	end := -1
	for _, message := range []string{"the message\r\n.\r\n", "BDAT 13 LAST\r\nthe message\r\n"} {
		if i := strings.Index(all, message); i >= 0 {
			end = i + len(message)
		}
	}
	if end < 0 {
		return 0
	}
	for i, told := range conn.told {
		if told < end {
			continue
		}
		for line := range strings.SplitSeq(turns[i], "\r\n") {
			if strings.HasPrefix(line, "2") && (len(line) < 4 || line[3] == ' ') {
				n++
			}
		}
	}
	return n
}
