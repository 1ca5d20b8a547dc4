package smtpclient

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"

	"github.com/mailgw/mailgw/internal/smtp"
)

// A Stage is how far a session has come.
type Stage string

// The stages.
const (
	Greeting     Stage = "greeting"
	EHLO         Stage = "EHLO" // and LHLO, HELO
	STARTTLS     Stage = "STARTTLS"
	AUTH         Stage = "AUTH"
	XCLIENT      Stage = "XCLIENT"
	XFORWARD     Stage = "XFORWARD"
	RSET         Stage = "RSET"
	NOOP         Stage = "NOOP"
	MAIL         Stage = "MAIL"
	RCPT         Stage = "RCPT"
	DATA         Stage = "DATA"
	Message      Stage = "message"
	EndOfMessage Stage = "end of message"
	QUIT         Stage = "QUIT"
)

// An Error tells why there was no success.
type Error struct {
	Stage Stage

	// Reply is what the server said, 4yz or 5yz. If it is zero, the server gave
	// no answer that makes sense, or was not asked, and the trouble is
	// temporary unless Err is a MessageError.
	Reply smtp.Reply

	// Err is why there is no Reply: a MessageError, what ended the context, or
	// the trouble with the server.
	Err error
}

// Error returns one line without control characters.
func (e *Error) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("%s: server said %s", e.Stage, Line(e.Reply))
	}
	text := fmt.Sprintf("%s: %v", e.Stage, e.Err)
	if e.Stage == EndOfMessage {
		text += "; the message may have been delivered"
	}
	return Printable(text)
}

func (e *Error) Unwrap() error { return e.Err }

// Permanent reports whether the server has refused for good.
func (e *Error) Permanent() bool { return e.Reply.Code/100 == 5 }

// A MessageError is trouble with the message itself: it could not be read, or
// it cannot be sent as it is. The server got no whole message.
type MessageError struct{ Err error }

func (e MessageError) Error() string { return e.Err.Error() }
func (e MessageError) Unwrap() error { return e.Err }

// Line returns a reply as one line without control characters.
func Line(r smtp.Reply) string {
	return Printable(strings.Join(strings.Fields(fmt.Sprint(r.Code, " ", r.Enhanced, " ", r.Text)), " "))
}

// Printable keeps a server from telling the terminal what to do.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
}

// lost tells in plain words why a connection is of no more use.
func lost(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("timed out")
	case errors.Is(err, io.EOF):
		return errors.New("connection lost")
	case errors.Is(err, smtp.ErrLineTooLong), errors.Is(err, smtp.ErrBareNewline), errors.Is(err, smtp.ErrLostChunk):
		return fmt.Errorf("not a reply: %w", err)
	}
	return fmt.Errorf("connection lost: %w", err)
}
