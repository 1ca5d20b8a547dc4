package peers

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// A client sends messages as they are, octet for octet. It speaks LMTP on
// unix sockets and SMTP over TCP.
type client struct {
	*textproto.Conn
	lmtp bool
}

func connect(network, address string) (*client, error) {
	return connectWithin(network, address, 0)
}

// connectWithin connects for a while, and for ever without one.
func connectWithin(network, address string, d time.Duration) (*client, error) {
	socket, err := net.DialTimeout(network, address, d)
	if err != nil {
		return nil, err
	}
	if d > 0 {
		socket.SetDeadline(time.Now().Add(d))
	}
	c := &client{textproto.NewConn(socket), network == "unix"}
	if err := c.greet(); err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	return c, nil
}

// A terminal is what is typed into a program, and what it prints.
type terminal struct {
	io.Reader
	io.WriteCloser
}

// typeInto starts a program that carries a session over its standard input and
// output.
func typeInto(cmd *exec.Cmd) (*client, error) {
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &client{Conn: textproto.NewConn(terminal{output, input})}, cmd.Start()
}

// greet waits for the greeting of the server, and greets it.
func (c *client) greet() error {
	if _, _, err := c.ReadResponse(220); err != nil {
		return err
	}
	return c.hello()
}

func (c *client) hello() error {
	if c.lmtp {
		return c.say(250, "LHLO client.peers.example")
	}
	return c.say(250, "EHLO client.peers.example")
}

// say sends a command and reads its reply.
func (c *client) say(code int, command string) error {
	if err := c.PrintfLine("%s", command); err != nil {
		return err
	}
	if _, _, err := c.ReadResponse(code); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

// begin begins a transaction, up to where the message is sent. Parameters
// may follow an address: "ann@peers.example> NOTIFY=NEVER".
func (c *client) begin(from string, to ...string) error {
	if err := c.envelope(from, to...); err != nil {
		return err
	}
	return c.say(354, "DATA")
}

// envelope says who sends to whom.
func (c *client) envelope(from string, to ...string) error {
	if err := c.say(250, "MAIL FROM:"+path(from)); err != nil {
		return err
	}
	for _, r := range to {
		if err := c.say(250, "RCPT TO:"+path(r)); err != nil {
			return err
		}
	}
	return nil
}

// path puts an address into angle brackets.
func path(address string) string {
	if strings.Contains(address, ">") {
		return "<" + address
	}
	return "<" + address + ">"
}

// end ends the message and reads the answers for n recipients, which are to
// be positive.
func (c *client) end(n int) error {
	if err := c.PrintfLine("."); err != nil {
		return err
	}
	if !c.lmtp {
		n = 1
	}
	for range n {
		if _, _, err := c.ReadResponse(250); err != nil {
			return fmt.Errorf("message: %w", err)
		}
	}
	return nil
}

// send sends a message, which ends with a line.
func (c *client) send(message []byte, from string, to ...string) error {
	if err := c.begin(from, to...); err != nil {
		return err
	}
	if err := c.message(message); err != nil {
		return err
	}
	return c.end(len(to))
}

// message sends a message without its end.
func (c *client) message(message []byte) error {
	stuffed := bytes.ReplaceAll(append([]byte("\r\n"), message...), []byte("\r\n."), []byte("\r\n.."))
	_, err := c.W.Write(stuffed[2:])
	return err
}

func (c *client) quit() error {
	defer c.Close()
	return c.say(221, "QUIT")
}

// port returns the port of HOST:PORT.
func port(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// lines makes a message of lines.
func lines(all ...string) []byte {
	return []byte(strings.Join(all, "\r\n") + "\r\n")
}

// sendOne sends one message on a connection of its own.
func sendOne(t *testing.T, network, address string, message []byte, from string, to ...string) {
	t.Helper()
	c, err := connect(network, address)
	if err == nil {
		defer c.Close()
		err = c.send(message, from, to...)
	}
	if err == nil {
		err = c.quit()
	}
	if err != nil {
		t.Fatal(err)
	}
}
