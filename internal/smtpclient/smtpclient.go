// Package smtpclient speaks SMTP (RFC 5321) or LMTP (RFC 2033) to one server
// over one connection, which the caller has opened:
//
//	c := smtpclient.New(conn, smtpclient.Settings{Name: "mx.example.org"})
//	defer c.Close()
//	err := c.Hello(ctx)    // then StartTLS, Auth, XClient, as wanted
//	err = c.XForward(ctx, attrs.Commands(c.Words("XFORWARD")))
//	c.Send(ctx, &tx, func(i int, r smtp.Reply, err error) { ... })
//	err = c.Reset(ctx)     // before each further transaction
//	c.Quit(ctx)
//
// Every error of a method with a context is an [*Error]. It tells at which stage the
// trouble was, and has the server's words if it was refused. Anything but a
// refusal is temporary trouble. Only a 2yz to the end of the message is
// success.
//
// A context that ends interrupts what waits for the server, at once, and the
// connection with it. The connection is closed, too, once nobody can tell
// what the next reply of the server would answer; Err tells.
package smtpclient

import (
	"bufio"
	"context"
	"crypto/tls"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/mailgw/mailgw/internal/smtp"
)

// Settings are those of a connection.
type Settings struct {
	LMTP bool

	// Name is what EHLO, LHLO or HELO says.
	Name string

	// Timeouts that are zero are those of DefaultTimeouts.
	Timeouts Timeouts

	// Trace, if it is not nil, is called with each line of the dialogue, "C: "
	// or "S: " before it, without passwords and without messages.
	Trace func(line string)
}

// Timeouts bound the wait for the server at each stage. The contexts of the
// methods bound the whole.
type Timeouts struct {
	Greeting  time.Duration
	Command   time.Duration // what is not below
	Mail      time.Duration
	Recipient time.Duration
	Data      time.Duration // the reply to DATA
	Block     time.Duration // each write of a part of the message
	End       time.Duration // each reply to the end of the message
}

// DefaultTimeouts are those of RFC 5321, section 4.5.3.2.
var DefaultTimeouts = Timeouts{
	Greeting:  5 * time.Minute,
	Command:   5 * time.Minute,
	Mail:      5 * time.Minute,
	Recipient: 5 * time.Minute,
	Data:      2 * time.Minute,
	Block:     3 * time.Minute,
	End:       10 * time.Minute,
}

// Each returns Timeouts that give each stage the same time.
func Each(d time.Duration) Timeouts {
	return Timeouts{Greeting: d, Command: d, Mail: d, Recipient: d, Data: d, Block: d, End: d}
}

// A Conn is a connection to a server. It is used by one goroutine at a time.
type Conn struct {
	Settings
	raw  net.Conn // without TLS: for deadlines, and to hang up
	conn net.Conn // raw, or TLS over it
	r    *bufio.Reader
	w    *bufio.Writer

	ctx        context.Context   // of the method that runs
	extensions map[string]string // announced: keyword, in upper case, to what follows it
	broken     *Error            // why the connection is of no more use
	inMessage  bool              // what is written is part of one
	buffer     []byte            // for messages on their way, once there was one
}

// New returns a Conn on conn, which is a *tls.Conn for implicit TLS. Conn owns
// conn from now on.
func New(conn net.Conn, settings Settings) *Conn {
	c := &Conn{Settings: settings, raw: conn}
	if t, ok := conn.(*tls.Conn); ok {
		c.raw = t.NetConn()
	}
	c.use(conn)
	return c
}

// bufferSize is that of what is written. A message of a megabyte makes few
// system calls.
const bufferSize = 64 << 10

// use begins to speak over conn, and forgets what was said before.
func (c *Conn) use(conn net.Conn) {
	c.conn = conn
	c.r = bufio.NewReader(conn)
	c.w = bufio.NewWriterSize(blockWriter{c}, bufferSize)
	c.extensions = nil
}

// Hello reads the greeting and says EHLO or LHLO. To an SMTP server that knows
// no EHLO it says HELO.
func (c *Conn) Hello(ctx context.Context) error {
	defer c.during(ctx)()
	if _, err := c.expect(Greeting, positive); err != nil {
		return err
	}
	return c.ehlo()
}

// ehlo begins the session, or begins it anew.
func (c *Conn) ehlo() error {
	c.extensions = nil
	verb := "EHLO "
	if c.LMTP {
		verb = "LHLO "
	}
	reply, err := c.command(EHLO, verb+c.Name)
	if err == nil {
		c.extensions = parseExtensions(reply.Text)
		return nil
	}
	if e := err.(*Error); !c.LMTP && e.Reply.Code/100 == 5 {
		_, err = c.command(EHLO, "HELO "+c.Name) // RFC 5321, section 3.2
	}
	return err
}

// parseExtensions reads the lines after the first one of the answer to EHLO,
// whose length package smtp bounds.
func parseExtensions(text string) map[string]string {
	announced := map[string]string{}
	for _, line := range strings.Split(text, "\n")[1:] {
		keyword, params := smtp.ParseCommand(line)
		if first, ok := strings.CutPrefix(keyword, "AUTH="); ok { // as before RFC 2554
			keyword, params = "AUTH", first+" "+params+" "+announced["AUTH"]
		}
		announced[keyword] = params
	}
	return announced
}

// Extension returns what the server has announced after a keyword, which is in
// upper case. There is nothing before Hello.
func (c *Conn) Extension(keyword string) (params string, ok bool) {
	params, ok = c.extensions[keyword]
	return params, ok
}

// Words returns the words that the server has announced after a keyword, in
// upper case.
func (c *Conn) Words(keyword string) []string {
	return strings.Fields(strings.ToUpper(c.extensions[keyword]))
}

// Keywords returns all keywords of the extensions that the server has
// announced, in upper case, in no order.
func (c *Conn) Keywords() []string { return slices.Collect(maps.Keys(c.extensions)) }

// TLS returns the state of TLS; nil without it.
func (c *Conn) TLS() *tls.ConnectionState {
	if t, ok := c.conn.(*tls.Conn); ok {
		state := t.ConnectionState()
		return &state
	}
	return nil
}

// Err tells why the connection is of no more use; nil if it is of use.
func (c *Conn) Err() error {
	if c.broken == nil {
		return nil
	}
	return c.broken
}

// XForward says commands that begin with XFORWARD, as xforward.Attrs.Commands
// returns them. After one that is refused it says no more.
func (c *Conn) XForward(ctx context.Context, commands []string) error {
	defer c.during(ctx)()
	for _, line := range commands {
		if _, err := c.command(XFORWARD, line); err != nil {
			return err
		}
	}
	return nil
}

// XClient says commands that begin with XCLIENT, and begins the session anew.
func (c *Conn) XClient(ctx context.Context, commands []string) error {
	defer c.during(ctx)()
	for _, line := range commands {
		if _, err := c.command(XCLIENT, line); err != nil {
			return err
		}
	}
	return c.ehlo()
}

// Reset says RSET. It shows that the server is still there.
func (c *Conn) Reset(ctx context.Context) error {
	defer c.during(ctx)()
	_, err := c.command(RSET, "RSET")
	return err
}

// Noop says NOOP.
func (c *Conn) Noop(ctx context.Context) error {
	defer c.during(ctx)()
	_, err := c.command(NOOP, "NOOP")
	return err
}

// Quit says QUIT if the connection is of use, waits for the reply, and closes
// the connection.
func (c *Conn) Quit(ctx context.Context) error {
	defer c.Close()
	defer c.during(ctx)()
	_, err := c.command(QUIT, "QUIT")
	return err
}

// Close closes the connection without a word. What was not yet sent is not.
func (c *Conn) Close() error { return c.conn.Close() }
