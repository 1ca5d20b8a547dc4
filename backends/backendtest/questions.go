package backendtest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// questions are those that the backend can be asked.
func (t *tester) questions() (all []backends.Question) {
	for _, about := range backends.Topics() {
		if !backends.Answers(t.backend, about) {
			continue
		}
		s := session
		q := backends.Question{About: about, Session: &s}
		switch about {
		case backends.AboutSender, backends.AboutRecipient:
			q.Envelope = &backends.Envelope{Sender: "sender@example.net"}
			q.Recipient.Address = t.Recipients[0]
		case backends.AboutAUTH:
			q.Credentials = backends.Credentials{Mechanism: "PLAIN", User: "user", Password: "password"}
		case backends.AboutSCRAM:
			q.Text = "user"
		case backends.AboutVRFY, backends.AboutEXPN:
			q.Text = t.Recipients[0]
		}
		all = append(all, q)
	}
	return all
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

// ask asks every question twice, and once with a context that is over.
func (t *tester) ask() {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	for _, q := range t.questions() {
		name := fmt.Sprintf("question about %v", q.About)
		first := t.answer(context.Background(), name, q)
		second := t.answer(context.Background(), name, q)
		late := t.answer(over, name+", context over", q)
		if t.gaveUp() {
			return
		}
		t.judgeAnswer(name, q, first)
		if q.About == backends.AboutSCRAM && !reflect.DeepEqual(first.SCRAM, second.SCRAM) {
			t.faultf("%s: another verifier each time tells who exists", name)
		}
		if s := late.status(); s.Permanent() && !first.status().Permanent() {
			t.faultf("%s, context over: %q for a trouble that is not the client's", name, s.Error())
		}
	}
}

// answer asks one question. It gives up if there is no answer.
func (t *tester) answer(ctx context.Context, name string, q backends.Question) answer {
	if t.gaveUp() {
		return answer{}
	}
	answered := make(chan answer, 1)
	before := q.Session.Clone()
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
		if !reflect.DeepEqual(*q.Session, before) {
			t.faultf("%s: the session was changed, which is for reading", name)
		}
		return a
	case <-time.After(t.Patience):
		t.giveUp("%s: no answer within %v", name, t.Patience)
		return answer{}
	}
}

// judgeAnswer looks at an answer that was given while nothing is wrong.
func (t *tester) judgeAnswer(name string, q backends.Question, a answer) {
	s := a.status()
	var opinion backends.Status
	switch {
	case a.err != nil && !errors.As(a.err, &opinion):
		t.faultf("%s: failure to answer: %v", name, a.err)
	case !s.IsZero() && !isSanitized(s):
		t.faultf("%s: status %q would be sent as %q", name, s.Error(), s.Sanitized().Error())
	case q.About == backends.AboutRecipient && !s.IsZero() && !s.Positive():
		t.faultf("%s: %q for %s, want 2yz or no opinion", name, s.Error(), q.Recipient.Address)
	case s.Positive() && (q.About == backends.AboutAUTH || q.About == backends.AboutSCRAM || q.About == backends.AboutEXPN):
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
