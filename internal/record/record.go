// Package record keeps mail transactions, with what a backend has answered, as
// text files that people can read, compare and edit.
//
// A file has lines in the words of SMTP, the message, and END:
//
//	MAILGW RECORD 1
//	ID 06gztyg6q151rdby
//	TIME 2026-11-21T16:00:54Z
//	BACKEND roster
//	SESSION ID=06gztyg6pztd1vrm LISTENER=lmtp PROTOCOL=LMTP HELO=mx.example.org
//	PEER ADDR=192.0.2.1:52525
//	MAIL FROM:<ann@example.net> SIZE=1000
//	RCPT TO:<bob@example.org>
//	RCPT TO:<carol@example.org>
//	ANSWER 0 550 5.1.1 no such user
//	ANSWER 1 next
//	EDIT add 0 X-Roster: seen
//	MESSAGE
//	|Subject: hello
//	|
//	|A line of text
//	" has \xff in it, or blanks at its end \r\n"
//	END
//
// A line of the message begins with | and stands for its text and CRLF; one that
// is no such text is quoted as in Go, with its end. So are words and texts of
// the other lines that have anything unusual.
//
// What a file has is read to the octet as it was written. A file that was cut
// off has no END, and is an error.
package record

import (
	"bytes"
	"io"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// A Record is a transaction as a backend had it, and what it said.
type Record struct {
	ID      string // of the transaction
	Time    time.Time
	Backend string

	Session  backends.Session // but for Gateway, which is of a process
	Envelope backends.Envelope
	Message  []byte

	Said

	// Redacted says that what was said was redacted, so that less of it can be
	// compared.
	Redacted bool
}

// Said is what a backend said of a transaction.
type Said struct {
	Answers  []Answer        // of the recipients, in order
	Response backends.Status // by SetSMTPResponse; often zero
	Edits    backends.Edits
}

// An Answer is what a backend said of one recipient: one of the three. The zero
// Answer is none at all.
type Answer struct {
	Status  backends.Status
	Next    bool   // it goes on to the next backend
	Failure string // of the backend
}

// String returns "550 5.1.1 no such user", "next backend", "failure: TEXT" or
// "nothing".
func (a Answer) String() string {
	switch {
	case a.Next:
		return "next backend"
	case a.Failure != "":
		return "failure: " + a.Failure
	case a.Status.IsZero():
		return "nothing"
	}
	return a.Status.Error()
}

// Transaction returns the transaction, for a backend to have it again.
func (r *Record) Transaction() *backends.DataContext {
	return &backends.DataContext{
		ID: r.ID, Session: r.Session.Clone(), Envelope: r.Envelope,
		Size: int64(len(r.Message)), Body: bytes.NewReader(r.Message),
	}
}

// contents reads a message to its end.
func contents(m backends.Message) ([]byte, error) {
	return io.ReadAll(io.NewSectionReader(m, 0, m.Size()))
}
