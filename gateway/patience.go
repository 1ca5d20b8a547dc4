package gateway

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/mailgw/mailgw/internal/smtp"
)

// begin says the greeting, or that the client has spoken before it.
func (c *conn) begin(ctx context.Context) error {
	early, err := c.spokeEarly()
	if err != nil {
		return err
	}
	greeting := c.greeting
	if early {
		greeting = c.tooEarly
	}
	r, next := greeting()
	return c.follow(ctx, "", r, next)
}

// spokeEarly waits for GreetDelay, and reports whether the client has said
// anything by then.
func (c *conn) spokeEarly() (bool, error) {
	if c.Limits.GreetDelay == 0 || c.isProxy() {
		return false, nil
	}
	c.expect(c.soonest(time.Now(), c.Limits.GreetDelay), true)
	_, err := c.r.Peek(1)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false, nil
	}
	return err == nil, err
}

// isProxy reports whether the client speaks for others, who are not to wait
// for one another.
func (d *dialog) isProxy() bool { return d.trusted || d.mayXClient }

// tooEarly is the greeting of a client that did not wait for it: RFC 5321,
// section 4.3.1.
func (d *dialog) tooEarly() (smtp.Reply, action) {
	d.rejected = true
	return d.refuse(reply(554, "5.5.1", d.hostname+" you spoke before the greeting"))
}

// outOfTurn reports whether the client has sent more than a command where it
// had to wait for the reply.
func (d *dialog) outOfTurn(v verb) bool { return d.hasty && d.mustWait(v) }

// mustWait reports whether the client has to wait for the reply to a command:
// it may send a group of commands at once after EHLO or LHLO has told it so,
// and some commands only at the end of a group (RFC 2920, section 3.1).
func (d *dialog) mustWait(v verb) bool {
	return d.UnauthorizedPipelining == "refuse" && (v.last || !d.extended)
}

// spokeOn reports whether the client has sent more without waiting for the
// reply that is about to go out. It may have come while backends were asked, and
// over TLS it may be in a record that nobody has looked at.
func (c *conn) spokeOn() bool {
	if !c.mustWait(c.verb) {
		return false
	}
	// With a deadline in the past nothing would be read.
	c.expect(time.Now().Add(time.Millisecond), false)
	_, err := c.r.Peek(1)
	return err == nil
}

// tooHasty ends the session, as Postfix does: what was sent may be a message
// that would be taken for commands.
func (d *dialog) tooHasty() (smtp.Reply, action) {
	return reply(554, "5.5.0", d.hostname+" you did not wait for the reply, good bye"), hangUp
}

const (
	freeErrors        = 5 // for people who mistype
	longestErrorDelay = 10 * time.Second
)

// errorDelay returns how long the client waits for the reply to the last
// refused command: twice as long each time.
func (d *dialog) errorDelay() time.Duration {
	if d.isProxy() || d.refused <= freeErrors {
		return 0
	}
	delay := d.Limits.ErrorDelay
	for range d.refused - freeErrors - 1 {
		if delay *= 2; delay == 0 || delay >= longestErrorDelay {
			break
		}
	}
	return min(delay, longestErrorDelay)
}

// pause waits before the reply to a refused command. A shutdown does not wait
// for it, nor does the end of the session.
func (c *conn) pause(ctx context.Context) error {
	delay := min(c.errorDelay(), time.Until(c.ends))
	if delay <= 0 {
		return nil
	}
	if err := c.flush(); err != nil {
		return err
	}
	if c.tx != nil {
		c.tx.ends = c.tx.ends.Add(delay) // it is not the client that takes this time
	}
	select {
	case <-time.After(delay):
	case <-c.closed:
	case <-ctx.Done():
	}
	return nil
}

// messageReader lets the client take CommandTimeout for each part of the
// message, but no longer than until ends.
type messageReader struct {
	io.Reader
	c    *conn
	ends time.Time
}

// patiently reads a part of the transaction's message from r, or a chunk that
// belongs to no transaction.
func (c *conn) patiently(r io.Reader) messageReader {
	if c.tx == nil {
		return messageReader{r, c, c.soonest(time.Now(), c.Limits.MessageTimeout)}
	}
	return messageReader{r, c, c.tx.ends}
}

func (r messageReader) Read(p []byte) (int, error) {
	deadline := r.c.soonest(time.Now(), r.c.Limits.CommandTimeout)
	if r.ends.Before(deadline) {
		deadline = r.ends
	}
	r.c.expect(deadline, false)
	return r.Reader.Read(p)
}
