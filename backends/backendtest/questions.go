package backendtest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// question is what the backend is asked about a topic, in memory of its own.
func (t *tester) question(about backends.Topic) backends.Question {
	s := session
	q := backends.Question{About: about, Session: &s}
	switch about {
	case backends.AboutSender, backends.AboutRecipient:
		q.Envelope = &backends.Envelope{Sender: "sender@example.net", Params: t.params()}
		q.Recipient = backends.Recipient{Address: t.Recipients[0], Params: backends.Params{"NOTIFY=FAILURE"}}
	case backends.AboutAUTH:
		q.Credentials = backends.Credentials{Mechanism: "PLAIN", User: "user", Password: "password"}
	case backends.AboutSCRAM:
		q.Text = "user"
	case backends.AboutVRFY, backends.AboutEXPN:
		q.Text = t.Recipients[0]
	}
	return q
}

// An answer is what Ask returned.
type answer struct {
	backends.Answer
	err error
}

// status is the opinion, if it is a Status.
func (a answer) status() backends.Status {
	if a.err != nil {
		return backends.StatusOf(a.err)
	}
	return a.Opinion.Status
}

// topics are what the backend can be asked about.
func (t *tester) topics() []backends.Topic {
	return slices.DeleteFunc(backends.Topics(), func(about backends.Topic) bool { return !backends.Answers(t.backend, about) })
}

func (t *tester) askAll() {
	for _, about := range t.topics() {
		t.ask(about)
	}
}

func nameOf(about backends.Topic) string { return fmt.Sprintf("question about %v", about) }

// ask asks a question twice, and once with a context that is over.
func (t *tester) ask(about backends.Topic) {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	name := nameOf(about)
	first := t.answer(context.Background(), name, about)
	second := t.answer(context.Background(), name, about)
	late := t.answer(over, name+", context over", about)
	if t.gaveUp() {
		return
	}
	t.judgeAnswer(name, about, first)
	if about == backends.AboutSCRAM && !reflect.DeepEqual(first.SCRAM, second.SCRAM) {
		t.faultf("%s: another verifier each time tells who exists", name)
	}
	if s := late.status(); s.Permanent() && !first.status().Permanent() {
		t.faultf("%s, context over: %q for a trouble that is not the client's", name, s.Error())
	}
}

// answer asks one question. It gives up if there is no answer.
func (t *tester) answer(ctx context.Context, name string, about backends.Topic) answer {
	if t.gaveUp() {
		return answer{}
	}
	answered := make(chan answer, 1)
	q, same := t.question(about), t.question(about)
	go func() {
		a, err := backends.Ask(ctx, t.backend, q)
		answered <- answer{a, err}
	}()
	select {
	case a := <-answered:
		if p, ok := a.err.(*backends.PanicError); ok {
			t.faultf("%s: panic: %v", name, p.Value)
			return answer{}
		}
		if t.crashed(name, a.err) {
			return answer{}
		}
		if !reflect.DeepEqual(q.Session, same.Session) {
			t.faultf("%s: the session was changed, which is for reading", name)
		}
		if !reflect.DeepEqual(q.Envelope, same.Envelope) || !reflect.DeepEqual(q.Recipient, same.Recipient) {
			t.faultf("%s: the envelope was changed, which is for reading", name)
		}
		return a
	case <-time.After(t.Patience):
		t.giveUp("%s: no answer within %v", name, t.Patience)
		return answer{}
	}
}

// judgeAnswer looks at an answer that was given while nothing is wrong.
func (t *tester) judgeAnswer(name string, about backends.Topic, a answer) {
	s := a.status()
	var opinion backends.Status
	switch {
	case a.err != nil && !errors.As(a.err, &opinion):
		t.faultf("%s: failure to answer: %v", name, a.err)
	case !s.IsZero() && !isSanitized(s):
		t.faultf("%s: status %q would be sent as %q", name, s.Error(), s.Sanitized().Error())
	case about == backends.AboutRecipient && !s.IsZero() && !s.Positive():
		t.noteRefusal(t.Recipients[0], s)
		t.faultf("%s: %q for %s, want 2yz or no opinion", name, s.Error(), t.Recipients[0])
	case s.Positive() && (about == backends.AboutAUTH || about == backends.AboutSCRAM || about == backends.AboutEXPN):
		t.faultf("%s: %q without an answer", name, s.Error())
	}
	if a.Opinion.For < 0 {
		t.faultf("%s: an opinion for %v", name, a.Opinion.For)
	}
	if key := a.Opinion.Key; key != "" {
		if _, err := smtp.ParsePattern(key); err != nil {
			t.faultf("%s: key %q: %v", name, key, err)
		}
	}
}
