package backends

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// opinionated implements every question, and tells what it was asked.
type opinionated struct {
	Func
	err error
}

func said(text string) Status { return Status{250, "2.0.0", text} }

func (o opinionated) CheckConnection(_ context.Context, s *Session) (Status, error) {
	return said("connection " + s.ID), o.err
}

func (o opinionated) CheckHELO(_ context.Context, s *Session) (Status, error) {
	return said("helo " + s.HELO), o.err
}

func (o opinionated) CheckSender(_ context.Context, _ *Session, e *Envelope) (Status, error) {
	return said("sender " + e.Sender), o.err
}

func (o opinionated) CheckRecipient(_ context.Context, _ *Session, e *Envelope, to Recipient) (Opinion, error) {
	return Opinion{Status: said("recipient " + e.Sender + " " + to.Address), For: 1, Key: "*"}, o.err
}

func (o opinionated) Authenticate(_ context.Context, _ *Session, c Credentials) (string, error) {
	return c.User, o.err
}

func (o opinionated) SCRAMVerifier(_ context.Context, _ *Session, user string) (SCRAMVerifier, error) {
	return SCRAMVerifier{Salt: []byte(user), Iterations: 1}, o.err
}

func (o opinionated) Verify(_ context.Context, _ *Session, text string) (Status, error) {
	return said("verify " + text), o.err
}

func (o opinionated) Expand(_ context.Context, _ *Session, list string) ([]string, error) {
	return []string{list}, o.err
}

func TestAskReachesTheMethod(t *testing.T) {
	q := Question{
		Session:     &Session{ID: "S1", HELO: "client.example"},
		Envelope:    &Envelope{Sender: "from@example.org"},
		Recipient:   Recipient{Address: "to@example.org"},
		Credentials: Credentials{User: "user"},
		Text:        "text",
	}
	for topic, want := range map[Topic]Answer{
		AboutConnection: {Opinion: Opinion{Status: said("connection S1")}},
		AboutHELO:       {Opinion: Opinion{Status: said("helo client.example")}},
		AboutSender:     {Opinion: Opinion{Status: said("sender from@example.org")}},
		AboutRecipient:  {Opinion: Opinion{Status: said("recipient from@example.org to@example.org"), For: 1, Key: "*"}},
		AboutAUTH:       {User: "user"},
		AboutSCRAM:      {SCRAM: SCRAMVerifier{Salt: []byte("text"), Iterations: 1}},
		AboutVRFY:       {Opinion: Opinion{Status: said("verify text")}},
		AboutEXPN:       {Members: []string{"text"}},
	} {
		b := opinionated{}
		if !Answers(b, topic) || Answers(Func(nil), topic) {
			t.Errorf("%v: answers %t, a Func %t, want true and false", topic, Answers(b, topic), Answers(Func(nil), topic))
		}
		q.About = topic
		if got, err := Ask(t.Context(), b, q); err != nil || !reflect.DeepEqual(got, want) || got.IsZero() {
			t.Errorf("%v: got %+v, %v, want %+v", topic, got, err, want)
		}
		broken := errors.New("broken")
		if _, err := Ask(t.Context(), opinionated{err: broken}, q); err != broken {
			t.Errorf("%v: got error %v, want %v", topic, err, broken)
		}
	}
}

// verifierOnly has a Verifier's method and no Expander's.
type verifierOnly struct {
	Func
	Verifier
}

// Who answers VRFY need not answer EXPN.
func TestVerifierIsNoExpander(t *testing.T) {
	if b := (verifierOnly{}); !Answers(b, AboutVRFY) || Answers(b, AboutEXPN) {
		t.Errorf("VRFY %t, EXPN %t, want true and false", Answers(b, AboutVRFY), Answers(b, AboutEXPN))
	}
}

func TestAskSurvivesPanic(t *testing.T) {
	q := Question{About: AboutSender} // without an envelope
	if a, err := Ask(t.Context(), opinionated{}, q); err == nil || !strings.HasPrefix(err.Error(), "panic: ") || !a.IsZero() {
		t.Errorf("got %+v, %v, want the panic and no opinion", a, err)
	}
}
