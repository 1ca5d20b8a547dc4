package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/mailgw/mailgw/internal/smtp"
)

const (
	// pipelined is how many commands go out before their replies are read.
	// It is small enough for commands and replies to fit into the buffers of
	// any socket, so that neither side waits for the other (RFC 2920,
	// section 3.1).
	pipelined = 50

	maxReplyLine = 2048 // octets
)

// A client speaks SMTP or LMTP to one server.
type client struct {
	lmtp       bool
	r          *bufio.Reader
	w          *bufio.Writer
	trace      io.Writer         // gets the dialogue, but no message
	extensions map[string]string // announced: keyword, in upper case, to what follows it
	broken     error             // why no more replies are read
}

// An answer is what the server said of a recipient, or why it said nothing.
// Only the answer to the end of a message delivers it.
type answer struct {
	reply  smtp.Reply
	err    error
	shared int // recipients that the reply is for, if it is one for all
}

func (a answer) positive() bool { return a.err == nil && a.reply.Code/100 == 2 }

// String returns a as one line.
func (a answer) String() string {
	if a.err != nil {
		return "no answer: " + a.err.Error()
	}
	words := strings.Fields(fmt.Sprint(a.reply.Code, " ", a.reply.Enhanced, " ", a.reply.Text))
	text := printable(strings.Join(words, " "))
	if a.shared > 1 {
		text += fmt.Sprintf(" (one reply for %d recipients)", a.shared)
	}
	return text
}

// printable keeps a server from telling the terminal what to do.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
}

// refused returns a as the answer to a recipient that is not served any
// further. A reply that makes no sense then must not look like a success.
func (a answer) refused() answer {
	if a.err == nil && a.reply.Code/100 != 4 && a.reply.Code/100 != 5 {
		return answer{err: fmt.Errorf("unexpected reply %d", a.reply.Code)}
	}
	return a
}

// final returns a as the answer to the end of a message.
func (a answer) final() answer {
	if a.positive() {
		return a
	}
	return a.refused()
}

// newClient returns a client on conn. No read and no write waits for longer
// than timeout.
func newClient(conn net.Conn, lmtp bool, timeout time.Duration, trace io.Writer) *client {
	patient := impatientConn{conn, timeout}
	return &client{lmtp: lmtp, r: bufio.NewReader(patient), w: bufio.NewWriter(patient), trace: trace}
}

// An impatientConn gives every read and every write a deadline of its own.
type impatientConn struct {
	net.Conn
	timeout time.Duration
}

func (c impatientConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c impatientConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// hello reads the greeting and says LHLO or EHLO, or HELO to a server that
// knows nothing better. If the session can not go on, ok is false.
func (c *client) hello(name string) (a answer, ok bool) {
	if a = c.readReply(); !a.positive() {
		return a, false
	}
	verb := "EHLO "
	if c.lmtp {
		verb = "LHLO "
	}
	if a = c.command(verb + name); a.positive() {
		c.extensions = extensions(a.reply.Text)
		return a, true
	}
	if !c.lmtp && a.err == nil && a.reply.Code/100 == 5 {
		a = c.command("HELO " + name) // RFC 5321, section 3.2
	}
	return a, a.positive()
}

// extensions reads the lines after the first one of the answer to EHLO.
func extensions(text string) map[string]string {
	announced := map[string]string{}
	for _, line := range strings.Split(text, "\n")[1:] {
		keyword, params := smtp.ParseCommand(line)
		announced[keyword] = params
	}
	return announced
}

// An envelope is what one transaction says before the message.
type envelope struct {
	xforward []string // the arguments of each XFORWARD
	mail     string
	rcpt     []string
}

// send sends one message and returns an answer for each recipient. message
// is not read if the server wants none of them.
func (c *client) send(e envelope, message io.Reader) []answer {
	for _, args := range e.xforward {
		if err := c.announces(args); err != nil {
			return repeat(answer{err: err}, len(e.rcpt))
		}
		if a := c.command("XFORWARD " + args); !a.positive() {
			return repeat(a.refused(), len(e.rcpt))
		}
	}

	replies := c.commands(append([]string{e.mail}, e.rcpt...))
	if !replies[0].positive() {
		return repeat(replies[0].refused(), len(e.rcpt))
	}
	answers := replies[1:]
	var accepted []*answer
	for i := range answers {
		if answers[i].positive() {
			accepted = append(accepted, &answers[i])
		} else {
			answers[i] = answers[i].refused()
		}
	}
	if len(accepted) > 0 {
		c.data(message, accepted)
	}
	return answers
}

// repeat returns n answers that are all a.
func repeat(a answer, n int) []answer {
	answers := make([]answer, n)
	for i := range answers {
		answers[i] = a
	}
	return answers
}

// announces returns an error if the server does not take an attribute of
// args. A message that says less than it was asked to would prove nothing.
func (c *client) announces(args string) error {
	announced := strings.Fields(strings.ToUpper(c.extensions["XFORWARD"]))
	for pair := range strings.FieldsSeq(args) {
		name, _, _ := strings.Cut(strings.ToUpper(pair), "=")
		if !slices.Contains(announced, name) {
			return exitError{exitRefused, fmt.Errorf("the server does not announce XFORWARD %s (mailgw does so to those in the xforward of its listener)", name)}
		}
	}
	return nil
}

// data sends the message and replaces the answers of the accepted recipients
// by what became of them.
func (c *client) data(message io.Reader, accepted []*answer) {
	settle := func(a answer) {
		for _, p := range accepted {
			*p = a
		}
	}
	if a := c.command("DATA"); a.err != nil || a.reply.Code != 354 {
		settle(a.refused())
		return
	}

	body := smtp.NewDotWriter(c.w)
	octets, err := copyMessage(body, message)
	if _, ours := errors.AsType[messageError](err); ours {
		// Without the end of the message the server throws it away.
		c.broken = exitError{exitData, err}
		settle(answer{err: c.broken})
		return
	}
	if err == nil {
		body.Close()
		err = c.w.Flush()
	}
	fmt.Fprintf(c.trace, "C: (%d octets of message)\n", octets)
	if err != nil {
		settle(c.lastWords(err))
		return
	}

	if !c.lmtp {
		a := c.readReply().final()
		a.shared = len(accepted)
		settle(a)
		return
	}
	for _, p := range accepted { // RFC 2033, section 4.2
		*p = c.readReply().final()
	}
}

// command sends one command and reads its reply.
func (c *client) command(line string) answer { return c.commands([]string{line})[0] }

// commands sends commands, many at once if the server announced PIPELINING,
// and returns the answer to each. When the first is refused it sends no
// more than it has sent by then: the others get that answer too.
func (c *client) commands(lines []string) []answer {
	size := 1
	if _, ok := c.extensions["PIPELINING"]; ok {
		size = pipelined
	}
	answers := make([]answer, 0, len(lines))
	for len(answers) < len(lines) {
		group := lines[len(answers):min(len(answers)+size, len(lines))]
		for _, line := range group {
			fmt.Fprintf(c.trace, "C: %s\n", line)
			c.w.WriteString(line + "\r\n") // an error stays until Flush
		}
		if err := c.w.Flush(); err != nil {
			return append(answers, repeat(c.lastWords(err), len(lines)-len(answers))...)
		}
		for range group {
			answers = append(answers, c.readReply())
		}
		if !answers[0].positive() {
			return append(answers, repeat(answers[0], len(lines)-len(answers))...)
		}
	}
	return answers
}

// readReply reads one reply. After an error nothing more is read: what comes
// then may answer something else.
func (c *client) readReply() answer {
	var reply smtp.Reply
	for more := true; more && c.broken == nil; {
		more, c.broken = c.readLine(&reply)
	}
	return answer{reply: reply, err: c.broken}
}

// lastWords returns why the server hung up, so that err came of a write, if
// it said so before it did.
func (c *client) lastWords(err error) answer {
	a := c.readReply()
	c.broken = lost(err)
	if a.err != nil || a.positive() {
		return answer{err: c.broken}
	}
	return a.refused()
}

func (c *client) readLine(reply *smtp.Reply) (more bool, err error) {
	line, err := smtp.ReadLine(c.r, maxReplyLine)
	if err != nil {
		return false, lost(err)
	}
	fmt.Fprintf(c.trace, "S: %s\n", printable(string(line)))
	return reply.Add(string(line))
}

// lost tells in plain words why a connection is of no more use.
func lost(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("timed out")
	case errors.Is(err, io.EOF):
		return errors.New("connection lost")
	case errors.Is(err, smtp.ErrLineTooLong), errors.Is(err, smtp.ErrBareNewline):
		return fmt.Errorf("not a reply: %w", err)
	}
	return fmt.Errorf("connection lost: %w", err)
}
