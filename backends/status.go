package backends

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// A Status is the answer for one recipient, or for a whole transaction, in
// the form of an SMTP reply (RFC 5321, section 4.2; RFC 3463). It is a value
// and an error. The zero Status is no answer at all.
type Status struct {
	Code     int    // 2yz, 4yz or 5yz
	Enhanced string // "5.1.1"; if empty, the class of Code and ".0.0"
	Text     string // one line or several, parted by "\n"
}

// What backends answer most.
var (
	// Delivered says that the backend has taken responsibility for the
	// message (RFC 5321, section 6.1).
	Delivered = Status{250, "2.0.0", "delivered"}

	// TryLater is the answer of every trouble that is our own. Silence,
	// crashes and errors that are no Status become it.
	TryLater = Status{451, "4.3.0", "try again later"}

	// TimedOut is the answer for a recipient whose deadline passed.
	TimedOut = Status{451, "4.4.7", "not delivered in time, try again later"}

	// NoSuchUser refuses an address that does not exist.
	NoSuchUser = Status{550, "5.1.1", "no such user"}

	// StorageFull is the answer of a full disk, which is no fault of the
	// mailbox's owner.
	StorageFull = Status{452, "4.3.1", "insufficient system storage, try again later"}
)

// NewStatus returns a Status. It spares other packages a composite literal
// without keys.
func NewStatus(code int, enhanced, text string) Status {
	return Status{code, enhanced, text}
}

// IsZero reports whether s is no answer at all.
func (s Status) IsZero() bool { return s == Status{} }

// Positive reports whether s says that the message was taken (2yz).
func (s Status) Positive() bool { return s.Code/100 == 2 }

// Temporary reports whether s invites the client to try again (4yz).
func (s Status) Temporary() bool { return s.Code/100 == 4 }

// Permanent reports whether s refuses for good (5yz).
func (s Status) Permanent() bool { return s.Code/100 == 5 }

// Error returns s as one line: "550 5.1.1 no such user".
func (s Status) Error() string {
	return fmt.Sprintf("%d %s %s", s.Code, s.Enhanced, strings.ReplaceAll(s.Text, "\n", " "))
}

// StatusOf returns the Status that err means to a client. An error that is
// a Status means that Status, and so does one that wraps a refusal; a deadline that passed means TimedOut;
// any other error means TryLater, so that no client sees a path, a host or a
// stack.
func StatusOf(err error) Status {
	var s Status
	switch {
	case errors.As(err, &s) && !s.IsZero():
		// What is an error and speaks of a success besides is no success.
		if _, bare := err.(Status); s.Positive() && !bare {
			return TryLater
		}
		return s
	case errors.Is(err, context.DeadlineExceeded):
		return TimedOut
	}
	return TryLater
}

// IsFailure reports whether err is an error that does not answer for the backend
// that has returned it, so that what StatusOf makes of it is the caller's word.
func IsFailure(err error) bool {
	var s Status
	return err != nil && (!errors.As(err, &s) || s != StatusOf(err))
}

const (
	maxStatusLines = 10
	maxStatusText  = 400 // octets of a line: RFC 5321, section 4.5.3.1.5 allows 512 for the whole of it
)

// Sanitized returns s in a form that may stand in a reply: the code is 250
// to 252, 4yz or 5yz, the enhanced code is of the same class, and the text is
// printable US-ASCII of bounded length. What cannot be an answer to the end
// of a message becomes TryLater, so that nothing but a clear yes is a yes.
func (s Status) Sanitized() Status {
	switch {
	case s.Code >= 250 && s.Code <= 252, s.Code >= 500 && s.Code <= 559:
	case s.Code == 421:
		// It would announce the end of the connection (RFC 5321, section 3.8).
		s.Code = 451
	case s.Code >= 400 && s.Code <= 459:
	default:
		return TryLater
	}
	if !enhancedOfClass(s.Enhanced, s.Code/100) {
		s.Enhanced = fmt.Sprintf("%d.0.0", s.Code/100)
	}
	s.Text = sanitizedText(s.Text)
	return s
}

// enhancedOfClass reports whether e is an enhanced status code of the given
// class: RFC 3463, section 2.
func enhancedOfClass(e string, class int) bool {
	first, rest, _ := strings.Cut(e, ".")
	subject, detail, _ := strings.Cut(rest, ".")
	return len(first) == 1 && int(first[0]-'0') == class && isUpTo999(subject) && isUpTo999(detail)
}

// isUpTo999 reports whether s is such a number, without leading zeros.
func isUpTo999(s string) bool {
	if s == "" || len(s) > 3 || len(s) > 1 && s[0] == '0' {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

func sanitizedText(text string) string {
	if len(text) <= maxStatusText && isPrintable(text) {
		return text
	}
	lines := strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	lines = lines[:min(len(lines), maxStatusLines)]
	for i, line := range lines {
		line = strings.Map(func(r rune) rune {
			switch {
			case r == '\t' || r == '\r':
				return ' '
			case r < ' ' || r > '~':
				return '?'
			}
			return r
		}, line)
		lines[i] = line[:min(len(line), maxStatusText)]
	}
	return strings.TrimRight(strings.Join(lines, "\n"), "\n")
}

// isPrintable reports whether s is one line of printable US-ASCII.
func isPrintable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
