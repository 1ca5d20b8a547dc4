package milter

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/mailgw/mailgw/backends"
)

// A conversation replays one transaction for a milter.
type conversation struct {
	*session
	tx      *backends.DataContext
	client  client
	message *bufio.Reader // what was not told yet
	changes changes
}

func newConversation(b *backend, tx *backends.DataContext) *conversation {
	return &conversation{
		tx:      tx,
		client:  clientOf(&tx.Session),
		message: bufio.NewReader(tx.Body),
		changes: newChanges(b, tx),
	}
}

// run tells the milter of all steps, until it decides. The verdict is one on all
// recipients that are undecided.
func (c *conversation) run() (verdict answer, err error) {
	for _, tell := range []func() (answer, error){
		c.tellConnection, c.tellHELO, c.tellSender, c.tellRecipients, c.tellDATA, c.tellHeader, c.tellBody, c.tellEnd,
	} {
		if verdict, err = tell(); err != nil || verdict.code != answerContinue {
			break
		}
	}
	return verdict, err
}

func (c *conversation) tellConnection() (answer, error) {
	return c.tell(stepConnect, c.client.connection())
}

func (c *conversation) tellHELO() (answer, error) {
	if c.client.helo == "" {
		return answer{code: answerContinue}, nil
	}
	return c.tell(stepHELO, appendStrings(nil, c.client.helo))
}

func (c *conversation) tellSender() (answer, error) {
	c.begun = true
	e := &c.tx.Envelope
	c.macros["{mail_addr}"] = e.Sender
	return c.tell(stepMAIL, appendCommand(e.Sender, e.Params))
}

// tellRecipients tells of all recipients. A refusal is that of one of them.
func (c *conversation) tellRecipients() (answer, error) {
	left := 0
	for i, to := range c.tx.Envelope.Recipients {
		c.macros["{rcpt_addr}"] = to.Address
		a, err := c.tell(stepRCPT, appendCommand(to.Address, to.Params))
		switch {
		case err != nil:
			return a, err
		case a.code == answerReject, a.code == answerTempfail, a.code == answerReply:
			c.tx.SetStatus(i, a.status)
		case a.code != answerContinue:
			return a, nil
		default:
			left++
		}
	}
	delete(c.macros, "{rcpt_addr}")
	if left == 0 {
		return answer{code: answerAccept}, nil // There is no DATA without a recipient.
	}
	return answer{code: answerContinue}, nil
}

// appendCommand returns what MAIL and RCPT tell: the address in angle brackets,
// and the parameters.
func appendCommand(address string, params backends.Params) []byte {
	return appendStrings(appendStrings(nil, "<"+address+">"), params...)
}

func (c *conversation) tellDATA() (answer, error) { return c.tell(stepDATA, nil) }

// tellHeader reads the header, and tells of its fields one by one.
func (c *conversation) tellHeader() (answer, error) {
	fields, err := backends.ReadHeader(c.message)
	if err != nil {
		return answer{}, fmt.Errorf("read message: %w", err)
	}
	c.changes.header = newHeader(fields, c.steps&leadingSpace != 0)
	for _, field := range fields {
		name, value := c.changes.header.split(field)
		a, err := c.tell(stepHeader, appendStrings(nil, name, value))
		if err != nil {
			return a, fmt.Errorf("%.80s: %w", name, err)
		}
		if a.code != answerContinue {
			return a, nil
		}
	}
	return c.tell(stepEOH, nil)
}

// tellBody tells of what follows the empty line, in pieces.
func (c *conversation) tellBody() (answer, error) {
	switch empty, err := c.message.Peek(2); {
	case err != nil && err != io.EOF:
		return answer{}, fmt.Errorf("read message: %w", err)
	case string(empty) == "\r\n":
		c.message.Discard(2)
	}
	if c.steps&stepBody.unwanted != 0 {
		return answer{code: answerContinue}, nil
	}
	for piece := make([]byte, maxData); ; {
		n, err := io.ReadFull(c.message, piece)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return answer{}, fmt.Errorf("read message: %w", err)
		}
		if n == 0 {
			return answer{code: answerContinue}, nil
		}
		a, err := c.tell(stepBody, piece[:n])
		if err == nil && a.code == answerSkip {
			return answer{code: answerContinue}, nil
		}
		if err != nil || a.code != answerContinue {
			return a, err
		}
	}
}

// tellEnd ends the message, and gathers what the milter changes before its verdict.
func (c *conversation) tellEnd() (answer, error) {
	a, err := c.tell(stepEOM, nil)
	for err == nil && strings.IndexByte(edits, a.code) >= 0 {
		if err = c.changes.note(a); err == nil {
			a, err = c.listen(stepEOM)
		}
	}
	c.begun = err != nil
	return a, err
}

// readRest reads the message to its end: nobody may be told of a success before it
// is known that there is one.
func (c *conversation) readRest(ctx context.Context) error {
	if _, err := io.Copy(io.Discard, c.message); err != nil {
		return err
	}
	return ctx.Err()
}
