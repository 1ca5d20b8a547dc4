package smtpclient

import (
	"context"

	"github.com/mailgw/mailgw/internal/smtp"
)

// maxProvoked bounds the replies of Provoke.
const maxProvoked = 100

// Provoke tests where a server sees the end of a message. It sends octets after
// DATA as they are, without dot-stuffing, and QUIT after the first reply. They
// end in CRLF.CRLF. It returns the replies before the one to QUIT, which ends
// the session: more than one if the server has seen an end before that, and taken
// what follows for commands. tx has one recipient; its message is not read.
func (c *Conn) Provoke(ctx context.Context, tx *Transaction, octets string) (replies []smtp.Reply, err error) {
	defer c.Close()
	defer c.during(ctx)()
	if err := tx.Check(); err != nil {
		return nil, &Error{Stage: MAIL, Err: err}
	}
	d := delivery{Conn: c, tx: tx, answer: func(_ int, _ smtp.Reply, refused error) { err = refused }}
	if d.envelope(); err != nil {
		d.withoutRecipient()
		return nil, err
	}
	if err := d.data(); err != nil {
		return nil, err
	}
	d.w.WriteString(octets)
	if err := d.w.Flush(); err != nil {
		d.lastWords(Message, err)
		return nil, d.broken
	}
	reply, err := d.hear(EndOfMessage)
	if err != nil && reply.Code == 0 {
		return nil, err
	}
	for len(replies) == 0 || reply.Code != 221 && reply.Code != 421 && len(replies) < maxProvoked {
		if replies = append(replies, reply); len(replies) == 1 {
			// The server may have said more by now, which inTurn would mind.
			d.trace("C: QUIT")
			d.w.WriteString("QUIT\r\n")
			d.w.Flush() // one that has hung up tells hear
		}
		if reply, err = d.hear(QUIT); err != nil && reply.Code == 0 {
			break
		}
	}
	return replies, nil
}
