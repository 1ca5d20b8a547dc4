package smtpclient

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/smtp"
)

// A server that says more than it was asked is a reply ahead from then on. Here its
// yes to RCPT comes after BDAT, and would be taken for that to the message, which it
// refuses.
func TestReplyToNothingIsNoAnswer(t *testing.T) {
	server, client := certificates(t)
	for _, over := range []string{"TCP", "TLS"} {
		more, said := make(chan bool), make(chan bool)
		conn := serve(t, func(conn net.Conn) error {
			defer conn.Close()
			if over == "TLS" {
				conn = tls.Server(conn, server)
			}
			r := bufio.NewReader(conn)
			ahead := script{server: strings.Split("S: 220 mx|C: EHLO me|S: 250-mx|S: 250 CHUNKING|C: RSET|S: 250 ok", "|")}
			if err := ahead.say(conn, r); err != nil {
				return err
			}
			<-more
			io.WriteString(conn, "250 and ok\r\n")
			said <- true
			for _, turn := range [][2]string{{"RSET", "250 ok\r\n"}, {"MAIL", "250 ok\r\n"}, {"RCPT", ""}, {"BDAT", "250 ok\r\n554 not wanted\r\n"}} {
				if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, turn[0]) {
					return nil // the client has hung up
				}
				io.WriteString(conn, turn[1])
			}
			io.Copy(io.Discard, r)
			return nil
		})
		if over == "TLS" {
			conn = tls.Client(conn, client)
		}
		c := New(conn, Settings{Name: "me"})
		if err := c.Hello(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.Reset(t.Context()); err != nil {
			t.Fatal(err)
		}
		more <- true
		<-said
		err := c.Reset(t.Context())
		if err == nil || err.Error() != "RSET: reply 250 to nothing" {
			t.Errorf("over %s: got %v", over, err)
		}
		tx := Transaction{Recipients: []Recipient{{Address: "a@x"}}, Message: strings.NewReader("x"), Size: 1, Chunking: true}
		c.Send(t.Context(), &tx, func(_ int, r smtp.Reply, err error) {
			if err == nil {
				t.Errorf("over %s: a refused message was answered with %s", over, Line(r))
			}
		})
		c.Close()
	}
}

// Over TLS, too, a yes that came with the 354 is none, though it is in a record of its
// own that nobody has decrypted yet.
func TestEarlyYesOverTLS(t *testing.T) {
	server, client := certificates(t)
	c := New(tls.Client(serve(t, func(conn net.Conn) error {
		defer conn.Close()
		held := &heldConn{Conn: conn}
		secure := tls.Server(held, server)
		r := bufio.NewReader(secure)
		before := script{server: strings.Split("S: 220 mx|C: EHLO me|S: 250 mx|C: MAIL FROM:<>|S: 250 ok|C: RCPT TO:<a@x>|S: 250 ok|C: DATA", "|")}
		if err := before.say(secure, r); err != nil {
			return err
		}
		held.hold = true
		io.WriteString(secure, "354 go on\r\n")
		io.WriteString(secure, "250 2.0.0 delivered\r\n")
		conn.Write(held.written.Bytes())
		io.Copy(io.Discard, conn)
		return nil
	}), client), Settings{Name: "me"})
	defer c.Close()
	if err := c.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	tx := Transaction{Recipients: []Recipient{{Address: "a@x"}}, Message: strings.NewReader("Subject: hi\r\n\r\n")}
	c.Send(t.Context(), &tx, func(_ int, r smtp.Reply, err error) {
		if err == nil || err.Error() != "DATA: reply 250 to nothing" {
			t.Errorf("got %s, %v", Line(r), err)
		}
	})
}

// A heldConn keeps what is written when it is told to.
type heldConn struct {
	net.Conn
	hold    bool
	written bytes.Buffer
}

func (h *heldConn) Write(p []byte) (int, error) {
	if h.hold {
		return h.written.Write(p)
	}
	return h.Conn.Write(p)
}
