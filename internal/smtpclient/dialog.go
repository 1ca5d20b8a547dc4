package smtpclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/mailgw/mailgw/internal/smtp"
)

const maxReplyLine = 2048 // octets

// during lets ctx interrupt what is read and written until the function that
// it returns is called.
func (c *Conn) during(ctx context.Context) (end func()) {
	c.ctx = ctx
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.raw.SetDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	return func() {
		if !stop() {
			<-interrupted // so that it does not hit the next method
		}
	}
}

// await gives what is read or written next its time.
func (c *Conn) await(timeout time.Duration) error {
	if err := c.raw.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	// A context that ends later sets the deadline again.
	return c.ctx.Err()
}

// timeout returns how long the reply at a stage may take.
func (c *Conn) timeout(s Stage) time.Duration {
	t, d := c.Timeouts, DefaultTimeouts
	switch s {
	case Greeting:
		return cmp.Or(t.Greeting, d.Greeting)
	case MAIL:
		return cmp.Or(t.Mail, d.Mail)
	case RCPT:
		return cmp.Or(t.Recipient, d.Recipient)
	case DATA:
		return cmp.Or(t.Data, d.Data)
	case Message:
		return cmp.Or(t.Block, d.Block)
	case EndOfMessage:
		return cmp.Or(t.End, d.End)
	}
	return cmp.Or(t.Command, d.Command)
}

// A blockWriter gives each write to the connection a deadline of its own.
type blockWriter struct{ c *Conn }

func (w blockWriter) Write(p []byte) (int, error) {
	if err := w.c.await(w.c.timeout(Message)); err != nil {
		return 0, err
	}
	if w.c.inMessage && w.c.saidMore() {
		return 0, errEarly
	}
	return w.c.conn.Write(p)
}

// fail ends the connection. Whatever is asked of it from now on gets the same
// error.
func (c *Conn) fail(stage Stage, err error) *Error {
	if cause := context.Cause(c.ctx); cause != nil {
		err = cause
	}
	return c.hangUp(&Error{Stage: stage, Err: err})
}

func (c *Conn) hangUp(why *Error) *Error {
	c.broken = why
	c.raw.Close()
	return why
}

// A line is a command as it is sent, without its CRLF.
type line struct {
	stage Stage
	text  string
	trace string // in place of a text with secrets
}

// command says one command and wants a 2yz.
func (c *Conn) command(stage Stage, text string) (smtp.Reply, error) {
	c.say(line{stage: stage, text: text})
	return c.expect(stage, positive)
}

// say sends commands, all at once. The next hear tells of trouble.
func (c *Conn) say(lines ...line) {
	for _, l := range lines {
		if c.broken == nil && strings.ContainsFunc(l.text, unicode.IsControl) {
			c.fail(l.stage, fmt.Errorf("control character in %+.80q", l.text))
		}
	}
	if !c.inTurn(lines[0].stage) {
		return
	}
	for _, l := range lines {
		c.trace("C: " + cmp.Or(l.trace, l.text))
		c.w.WriteString(l.text) // an error stays until Flush
		c.w.WriteString("\r\n")
	}
	if err := c.w.Flush(); err != nil {
		c.lastWords(lines[0].stage, err)
	}
}

func (c *Conn) trace(line string) {
	if c.Trace != nil {
		c.Trace(Printable(line))
	}
}

// inTurn reports whether the client may speak. If the server has said more
// than it was asked, what it says next would answer something else.
func (c *Conn) inTurn(stage Stage) bool {
	if c.broken == nil && c.saidMore() {
		if reply, err := c.hear(stage); err == nil {
			c.fail(stage, fmt.Errorf("reply %d to nothing", reply.Code))
		}
	}
	return c.broken == nil
}

// saidMore reports whether there is a reply to read, or the end, without waiting for
// one. What the server says next would not answer what it is about to hear, then;
// and if it refuses a message in its middle, it is spared the rest.
func (c *Conn) saidMore() bool {
	if c.r.Buffered() > 0 {
		return true
	}
	readable := c.readable()
	if c.conn == c.raw {
		return readable
	}
	// Over TLS that may be a record without text, a session ticket say, and what
	// was read before may have text that was not decrypted yet.
	patience := -time.Second
	if readable {
		patience = time.Millisecond
	}
	c.raw.SetReadDeadline(time.Now().Add(patience))
	_, err := c.r.Peek(1)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// readable reports whether the socket has something to read, or its end.
func (c *Conn) readable() bool {
	socket, ok := c.raw.(syscall.Conn)
	if !ok {
		return false
	}
	control, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	var nothing error
	err = control.Control(func(fd uintptr) {
		_, _, nothing = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	return err == nil && nothing == nil
}

// lastWords ends the connection after an error of a write. If the server has
// said why it hung up, that counts, but not if it is a yes.
func (c *Conn) lastWords(stage Stage, err error) {
	var reply smtp.Reply
	if c.ctx.Err() == nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		reply, _ = c.hear(stage)
	}
	switch {
	case isRefusal(reply):
		c.hangUp(&Error{Stage: stage, Reply: reply})
	case c.inMessage && reply.Code != 0:
		c.fail(stage, errEarly)
	case err != errEarly || c.broken == nil: // else hear has told what it was
		c.fail(stage, lost(err))
	}
}

// hear reads one reply, whatever it says. 421 ends the connection: RFC 5321,
// section 3.8. With any other error there is no reply.
func (c *Conn) hear(stage Stage) (reply smtp.Reply, err error) {
	if c.broken != nil {
		return reply, c.broken
	}
	if err := c.await(c.timeout(stage)); err != nil {
		return reply, c.fail(stage, lost(err))
	}
	for more := true; more; {
		line, err := smtp.ReadLine(c.r, maxReplyLine)
		if err != nil {
			return smtp.Reply{}, c.fail(stage, lost(err))
		}
		c.trace("S: " + string(line))
		if more, err = reply.Add(string(line)); err != nil {
			return smtp.Reply{}, c.fail(stage, err)
		}
	}
	if reply.Code == 421 {
		return reply, c.hangUp(&Error{Stage: stage, Reply: reply})
	}
	return reply, nil
}

// What is wanted of a reply.
func positive(code int) bool  { return code/100 == 2 }
func goAhead(code int) bool   { return code == 354 }
func challenge(code int) bool { return code == 334 || positive(code) }

// expect reads one reply. An error says why it is not the one that is wanted.
func (c *Conn) expect(stage Stage, wanted func(code int) bool) (smtp.Reply, error) {
	reply, err := c.hear(stage)
	switch {
	case err != nil:
		return reply, err
	case wanted(reply.Code):
		return reply, nil
	case isRefusal(reply):
		return reply, &Error{Stage: stage, Reply: reply}
	}
	// Nobody knows what it answers, or what the server waits for.
	return reply, c.fail(stage, fmt.Errorf("unexpected reply %d", reply.Code))
}

func isRefusal(r smtp.Reply) bool { return r.Code/100 == 4 || r.Code/100 == 5 }
