package smtpclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"github.com/mailgw/mailgw/internal/smtp"
)

// A Transaction is a message and its envelope.
type Transaction struct {
	Sender     string   // without angle brackets
	Params     []string // of MAIL, as on the wire: "SIZE=1000"
	Recipients []Recipient

	// Message is read once, if the server wants it and accepts a recipient. Its lines end in CRLF; with
	// a CR or LF that stands alone only BDAT carries it. If it cannot be read
	// to its end, the server does not get a whole message.
	Message io.Reader

	// Chunking uses BDAT (RFC 3030) where the server announces it. Size is that
	// of Message in octets then.
	Chunking bool
	Size     int64
}

// A Recipient is one of a transaction.
type Recipient struct {
	Address string   // without angle brackets
	Params  []string // of RCPT, as on the wire: "NOTIFY=NEVER"
}

// Check tells what is wrong with the commands that tx makes. Send refuses it,
// so that no address adds a parameter or a command.
func (tx *Transaction) Check() error {
	errs := []error{check("FROM:", tx.Sender, tx.Params)}
	for _, r := range tx.Recipients {
		errs = append(errs, check("TO:", r.Address, r.Params))
	}
	return errors.Join(errs...)
}

// check reads what a server will read.
func check(prefix, path string, params []string) error {
	args := arguments(prefix, path, params)
	if strings.ContainsFunc(args, unicode.IsControl) {
		return fmt.Errorf("control character in %+q", args)
	}
	gotPath, gotParams, err := smtp.CutPath(args, prefix)
	if err == nil && (gotPath != path || !slices.Equal(gotParams, params)) {
		err = errors.New("not one address and parameters")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", args, err)
	}
	return nil
}

func arguments(prefix, path string, params []string) string {
	return strings.Join(append([]string{prefix + "<" + path + ">"}, params...), " ")
}

// Send sends one message. Before it returns it has called answer once for
// each recipient of tx, i counting from 0, with the reply to the end of the
// message if that was a 2yz, or with an *Error. In LMTP it does so as soon as
// each reply is there.
//
// What the server has taken stays taken if the connection is lost later: the
// error of one recipient says nothing of others.
func (c *Conn) Send(ctx context.Context, tx *Transaction, answer func(i int, reply smtp.Reply, err error)) {
	defer c.during(ctx)()
	d := delivery{Conn: c, tx: tx, answer: answer}
	d.chunking = tx.Chunking && c.announces("CHUNKING")
	if err := d.impossible(); err != nil {
		for i := range tx.Recipients {
			answer(i, smtp.Reply{}, err)
		}
		return
	}
	d.envelope()
	if len(d.accepted) == 0 {
		d.withoutRecipient()
		return
	}
	if err := d.message(); err != nil {
		for _, i := range d.accepted {
			answer(i, smtp.Reply{}, err)
		}
		return
	}
	d.end()
}

func (c *Conn) announces(keyword string) bool {
	_, ok := c.extensions[keyword]
	return ok
}

// A delivery is a transaction under way.
type delivery struct {
	*Conn
	tx       *Transaction
	answer   func(i int, reply smtp.Reply, err error)
	chunking bool  // BDAT in place of DATA
	accepted []int // recipients that have no answer yet

	mail      error // why MAIL was refused
	dataSaid  bool  // DATA went out with the envelope
	dataReply error // to that; nil is 354
}

// impossible tells why there can be no such transaction.
func (d *delivery) impossible() error {
	if err := d.tx.Check(); err != nil {
		return &Error{Stage: MAIL, Err: err}
	}
	binary := func(param string) bool { return strings.EqualFold(param, "BODY=BINARYMIME") }
	if !d.chunking && slices.ContainsFunc(d.tx.Params, binary) { // RFC 3030, section 3
		return &Error{Stage: MAIL, Err: MessageError{errors.New("BODY=BINARYMIME without BDAT")}}
	}
	return nil
}

// envelope says MAIL, each RCPT and DATA, many of them at once if the server
// announces PIPELINING, and answers the recipients that it refuses. If it
// refuses MAIL, nothing follows what has gone out by then.
func (d *delivery) envelope() {
	next := 0 // recipient
	for _, group := range d.groups() {
		d.say(group...)
		for _, l := range group {
			switch l.stage {
			case MAIL:
				_, d.mail = d.expect(MAIL, positive)
			case RCPT:
				_, err := d.expect(RCPT, positive)
				d.recipient(next, err)
				next++
			case DATA:
				_, d.dataReply = d.expect(DATA, goAhead)
				d.dataSaid = true
			}
		}
		if d.mail != nil {
			break
		}
	}
	for ; next < len(d.tx.Recipients); next++ {
		d.answer(next, smtp.Reply{}, d.mail)
	}
}

// recipient takes the reply to a RCPT.
func (d *delivery) recipient(i int, err error) {
	switch {
	case d.mail != nil:
		d.answer(i, smtp.Reply{}, d.mail)
	case err != nil:
		d.answer(i, smtp.Reply{}, d.tooMany(err.(*Error)))
	default:
		d.accepted = append(d.accepted, i)
	}
}

// tooMany takes 552 for 452 where it says that there are too many recipients: RFC
// 5321, section 4.5.3.1.10. Without an enhanced code both say so after one that was
// accepted, for the first recipient cannot have been too many.
func (d *delivery) tooMany(e *Error) *Error {
	r := e.Reply
	switch {
	case r.Code != 452 && r.Code != 552:
		return e
	case r.Enhanced == "5.5.3" || r.Enhanced == "4.5.3":
	case r.Enhanced == "" && len(d.accepted) > 0:
	default:
		return e
	}
	r.Code, r.Enhanced = 452, "4.5.3"
	return &Error{Stage: e.Stage, Reply: r}
}

const (
	// These bound the commands that go out before their replies are read, so
	// that commands and replies fit into the buffers of any socket and neither
	// side waits for the other (RFC 2920, section 3.1).
	pipelined       = 50
	pipelinedOctets = 8 << 10
)

// groups returns the commands of the envelope as they go out together.
func (d *delivery) groups() (groups [][]line) {
	lines := []line{{stage: MAIL, text: "MAIL " + arguments("FROM:", d.tx.Sender, d.tx.Params)}}
	for _, r := range d.tx.Recipients {
		lines = append(lines, line{stage: RCPT, text: "RCPT " + arguments("TO:", r.Address, r.Params)})
	}
	pipelining := d.announces("PIPELINING")
	if pipelining && !d.chunking {
		lines = append(lines, line{stage: DATA, text: "DATA"})
	}
	octets := 0
	for _, l := range lines {
		last := len(groups) - 1
		octets += len(l.text)
		if last < 0 || !pipelining || len(groups[last]) == pipelined || octets > pipelinedOctets {
			groups, octets = append(groups, []line{l}), len(l.text)
		} else {
			groups[last] = append(groups[last], l)
		}
	}
	return groups
}

// withoutRecipient ends the message that a server may want although it has
// accepted nobody: RFC 2920, section 3.1.
func (d *delivery) withoutRecipient() {
	switch {
	case !d.dataSaid || d.dataReply != nil:
	case d.LMTP || d.mail != nil:
		// No reply would follow in LMTP; and without MAIL nobody knows who
		// would get the empty message.
		d.fail(DATA, errors.New("unexpected reply 354"))
	default:
		d.w.WriteString(".\r\n")
		if err := d.w.Flush(); err != nil {
			d.lastWords(DATA, err)
		}
		d.hear(EndOfMessage)
	}
}

// end reads what became of the message: one reply for all, or in LMTP one for
// each recipient (RFC 2033, section 4.2).
func (d *delivery) end() {
	if d.LMTP {
		for _, i := range d.accepted {
			reply, err := d.expect(EndOfMessage, positive)
			d.answer(i, reply, err)
		}
		return
	}
	reply, err := d.expect(EndOfMessage, positive)
	for _, i := range d.accepted {
		d.answer(i, reply, err)
	}
}
