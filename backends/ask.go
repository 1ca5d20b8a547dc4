package backends

import (
	"context"
	"fmt"
	"runtime/debug"
)

// What puts a question to a backend, or passes it on. Authors of backends need
// nothing of this.

// A Topic is what a question is about. For each there is an interface that a
// backend may implement.
type Topic int

const (
	AboutConnection Topic = iota + 1 // ConnectionChecker
	AboutHELO                        // HELOChecker
	AboutSender                      // SenderChecker
	AboutRecipient                   // RecipientChecker
	AboutAUTH                        // Authenticator
	AboutSCRAM                       // SCRAMAuthenticator
	AboutVRFY                        // Verifier
	AboutEXPN                        // Expander
)

// Topics returns all of them.
func Topics() []Topic {
	var all []Topic
	for t := AboutConnection; t <= AboutEXPN; t++ {
		all = append(all, t)
	}
	return all
}

var topics = []string{"nothing", "connection", "HELO", "sender", "recipient", "AUTH", "SCRAM", "VRFY", "EXPN"}

func (t Topic) String() string {
	if t < 0 || int(t) >= len(topics) {
		return fmt.Sprintf("topic %d", int(t))
	}
	return topics[t]
}

// A Question is the call of a method of one of those interfaces, in a form
// that can be passed on.
type Question struct {
	About       Topic
	Session     *Session
	Envelope    *Envelope   // AboutSender, AboutRecipient; without recipients
	Recipient   Recipient   // AboutRecipient
	Credentials Credentials // AboutAUTH
	Text        string      // AboutSCRAM: the user; AboutVRFY, AboutEXPN: the argument
}

// An Answer is what a method returned, but for its error.
type Answer struct {
	Opinion Opinion       // AboutConnection to AboutRecipient, AboutVRFY
	User    string        // AboutAUTH
	SCRAM   SCRAMVerifier // AboutSCRAM
	Members []string      // AboutEXPN
}

// IsZero reports whether a is no opinion.
func (a *Answer) IsZero() bool {
	return a.Opinion.Status.IsZero() && a.User == "" && a.SCRAM.IsZero() && a.Members == nil
}

// An Asker passes questions on to a backend elsewhere. Backends implement the
// interfaces of the topics instead.
type Asker interface {
	Answers(t Topic) bool
	Ask(ctx context.Context, q Question) (Answer, error)
}

// Answers reports whether b can be asked about t.
func Answers(b Backend, t Topic) (can bool) {
	if a, ok := b.(Asker); ok {
		return a.Answers(t)
	}
	switch t {
	case AboutConnection:
		_, can = b.(ConnectionChecker)
	case AboutHELO:
		_, can = b.(HELOChecker)
	case AboutSender:
		_, can = b.(SenderChecker)
	case AboutRecipient:
		_, can = b.(RecipientChecker)
	case AboutAUTH:
		_, can = b.(Authenticator)
	case AboutSCRAM:
		_, can = b.(SCRAMAuthenticator)
	case AboutVRFY:
		_, can = b.(Verifier)
	case AboutEXPN:
		_, can = b.(Expander)
	}
	return can
}

// Ask is the one way to ask a backend. It must be one that Answers. A panic
// becomes an error.
func Ask(ctx context.Context, b Backend, q Question) (a Answer, err error) {
	defer func() {
		if r := recover(); r != nil {
			a, err = Answer{}, &PanicError{r, debug.Stack()}
		}
	}()
	if asker, ok := b.(Asker); ok {
		return asker.Ask(ctx, q)
	}
	switch q.About {
	case AboutConnection:
		a.Opinion.Status, err = b.(ConnectionChecker).CheckConnection(ctx, q.Session)
	case AboutHELO:
		a.Opinion.Status, err = b.(HELOChecker).CheckHELO(ctx, q.Session)
	case AboutSender:
		a.Opinion.Status, err = b.(SenderChecker).CheckSender(ctx, q.Session, q.Envelope)
	case AboutRecipient:
		a.Opinion, err = b.(RecipientChecker).CheckRecipient(ctx, q.Session, q.Envelope, q.Recipient)
	case AboutAUTH:
		a.User, err = b.(Authenticator).Authenticate(ctx, q.Session, q.Credentials)
	case AboutSCRAM:
		a.SCRAM, err = b.(SCRAMAuthenticator).SCRAMVerifier(ctx, q.Session, q.Text)
	case AboutVRFY:
		a.Opinion.Status, err = b.(Verifier).Verify(ctx, q.Session, q.Text)
	case AboutEXPN:
		a.Members, err = b.(Expander).Expand(ctx, q.Session, q.Text)
	default:
		err = fmt.Errorf("no backend can be asked about %v", q.About)
	}
	return a, err
}
