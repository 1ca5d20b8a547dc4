package smtpclient

import (
	"errors"
	"fmt"
	"io"

	"github.com/mailgw/mailgw/internal/smtp"
)

// message sends the message to its end. An error says that the server did not
// get a whole one.
func (d *delivery) message() error {
	if d.chunking {
		return d.chunk()
	}
	if err := d.data(); err != nil {
		return err
	}
	body := smtp.NewDotWriter(d.w)
	return d.write(body, d.tx.Message, body.Close)
}

// data says DATA, if that has not been said, and wants 354.
func (d *delivery) data() error {
	if !d.dataSaid {
		d.say(line{stage: DATA, text: "DATA"})
		_, d.dataReply = d.expect(DATA, goAhead)
	}
	if d.dataReply == nil && !d.inTurn(DATA) {
		return d.broken
	}
	return d.dataReply
}

// chunk sends the message in one chunk: RFC 3030, section 2.
func (d *delivery) chunk() error {
	if !d.inTurn(Message) {
		return d.broken
	}
	bdat := fmt.Sprintf("BDAT %d LAST", d.tx.Size)
	d.trace("C: " + bdat)
	d.w.WriteString(bdat + "\r\n") // an error stays until the next write
	return d.write(d.w, &sizedReader{d.tx.Message, d.tx.Size}, func() error { return nil })
}

// write copies the message to w and ends it. If it cannot, it hangs up, so
// that the server throws the message away.
func (d *delivery) write(w io.Writer, message io.Reader, end func() error) error {
	d.inMessage = true
	defer func() { d.inMessage = false }()
	octets, err := d.copy(w, message)
	if err == nil {
		err = messageError(end())
	}
	if err == nil {
		err = d.w.Flush()
	}
	d.trace(fmt.Sprintf("C: (%d octets of message)", octets))
	if err == nil {
		return nil
	}
	if _, ours := errors.AsType[MessageError](err); ours {
		return d.hangUp(&Error{Stage: Message, Err: err})
	}
	d.lastWords(Message, err)
	return d.broken
}

// copy copies the message. Errors of the message are a MessageError, others
// are of w.
func (c *Conn) copy(w io.Writer, message io.Reader) (octets int64, err error) {
	if c.buffer == nil {
		c.buffer = make([]byte, bufferSize)
	}
	for {
		n, readErr := message.Read(c.buffer)
		octets += int64(n)
		if _, err := w.Write(c.buffer[:n]); err != nil {
			return octets, messageError(err)
		}
		switch {
		case readErr == io.EOF:
			return octets, nil
		case readErr != nil:
			return octets, MessageError{readErr}
		}
	}
}

var errEarly = errors.New("reply before the end of the message")

// messageError makes a MessageError of the one error of a DotWriter that the
// message is to blame for.
func messageError(err error) error {
	if errors.Is(err, smtp.ErrBareNewline) {
		return MessageError{err}
	}
	return err
}

// A sizedReader is of the size that BDAT has announced, or fails.
type sizedReader struct {
	r    io.Reader
	left int64
}

func (s *sizedReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.left -= int64(n)
	if s.left < 0 || s.left > 0 && err == io.EOF {
		return 0, errors.New("the message is not of the size that was announced")
	}
	return n, err
}
