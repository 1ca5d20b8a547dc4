package gateway

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// An ask is what stands between a command and its reply: it asks backends,
// and blocks until they have answered or ctx ends.
type ask func(ctx context.Context) smtp.Reply

// who returns the backends of the lists that can be asked about t, each once.
func (d *dialog) who(t backends.Topic, lists ...[]string) (asked []*namedBackend) {
	for _, names := range lists {
		for _, name := range names {
			if b := d.gen.backends[name]; backends.Answers(b.Backend, t) && !slices.Contains(asked, b) {
				asked = append(asked, b)
			}
		}
	}
	return asked
}

// question puts q to backends, one after the other. Its reply is what then
// makes of the first opinion or of an error. Without anybody to ask there is
// no need to wait, and no opinion.
func (d *dialog) question(asked []*namedBackend, q func() backends.Question, then func(backends.Answer, error) smtp.Reply) smtp.Reply {
	if asked == nil {
		return then(backends.Answer{}, nil)
	}
	d.ask = func(ctx context.Context) smtp.Reply { return then(d.firstOpinion(ctx, asked, q())) }
	return smtp.Reply{}
}

// about returns a question in the session as it is, with nothing but a text.
func (d *dialog) about(t backends.Topic, text string) backends.Question {
	session := d.session
	session.Protocol = d.withProtocol(false)
	return backends.Question{About: t, Session: &session, Text: text}
}

// answer gives the reply to a command for which backends are to be asked.
func (d *dialog) answer(ctx context.Context) (smtp.Reply, action) {
	ask := d.ask
	d.ask = nil
	ctx, cancel := context.WithTimeout(ctx, d.Limits.AskTimeout)
	defer cancel()
	return d.conclude(ask(ctx))
}

// firstOpinion asks one backend after the other. An error is a Status, which
// is what the client is told.
func (d *dialog) firstOpinion(ctx context.Context, to []*namedBackend, q backends.Question) (backends.Answer, error) {
	for _, b := range to {
		a, err := b.ask(ctx, clone(q)) // a backend may change what is its own
		if err == nil && a.IsZero() {
			continue
		}
		d.opinionOf = b.name
		if _, plain := err.(backends.Status); err != nil && !plain {
			d.logFailure(q.About, err.Error())
		}
		if err != nil {
			err = backends.StatusOf(err).Sanitized()
		}
		return a, err
	}
	return backends.Answer{}, nil
}

// logFailure logs that the backend whose opinion counts has none to be used.
func (d *dialog) logFailure(about backends.Topic, why string) {
	d.transactionLog(d.sessionLog()).Error("backend", "backend", d.opinionOf, "event", "failure", "question", about.String(), "error", cut(why))
}

// clone returns a question that shares nothing with q.
func clone(q backends.Question) backends.Question {
	session := q.Session.Clone()
	q.Session = &session
	if q.Envelope != nil {
		q.Envelope = &backends.Envelope{Sender: q.Envelope.Sender, Params: slices.Clone(q.Envelope.Params)}
	}
	q.Recipient.Params = slices.Clone(q.Recipient.Params)
	return q
}

// opinion returns the reply of the first opinion: a refusal, or what accepts
// the command. ok is the reply if nobody has an opinion.
func opinion(a backends.Answer, err error, ok smtp.Reply) (r smtp.Reply, accepted bool) {
	s, _ := err.(backends.Status)
	if err == nil {
		s = a.Opinion.Status
	}
	if s.IsZero() {
		return ok, true
	}
	s = s.Sanitized()
	return statusReply(s), s.Positive()
}

// ask asks b, unless it has given an answer that holds.
func (b *namedBackend) ask(ctx context.Context, q backends.Question) (backends.Answer, error) {
	if q.About == backends.AboutRecipient {
		if s := b.opinions.lookup(q.Recipient.Address, time.Now()); !s.IsZero() {
			return backends.Answer{Opinion: backends.Opinion{Status: s}}, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, b.Timeout)
	defer cancel()
	a, err := backends.Ask(ctx, b.Backend, q)
	if err == nil && q.About == backends.AboutRecipient {
		err = b.opinions.keep(q.Recipient.Address, a.Opinion, time.Now())
	}
	return a, err
}

// opinions are what a backend said of recipients and holds for a while.
type opinions struct {
	mu    sync.Mutex
	known patterns[heldOpinion]
}

type heldOpinion struct {
	backends.Status
	until time.Time
}

// Bounds of what is kept of one backend, some megabytes.
const (
	maxOpinions    = 10000
	maxOpinionText = 500
)

func (o *opinions) lookup(address string, now time.Time) backends.Status {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, key := range smtp.PatternsOf(address) {
		e, ok := o.known[key]
		if ok && now.Before(e.value.until) {
			return e.value.Status
		}
		if ok {
			delete(o.known, key)
		}
	}
	return backends.Status{}
}

// keep keeps the opinion on a recipient for as long as it says. When there are
// too many, any other one goes.
func (o *opinions) keep(address string, said backends.Opinion, now time.Time) error {
	if said.For <= 0 || said.Status.IsZero() || len(said.Status.Text) > maxOpinionText {
		return nil
	}
	key := smtp.PatternsOf(address)[0]
	if said.Key != "" {
		var err error
		if key, err = smtp.ParsePattern(said.Key); err != nil {
			return fmt.Errorf("key %.400q of an opinion: %w", said.Key, err)
		}
		if !key.Matches(address) {
			return fmt.Errorf("key %.400q of an opinion does not stand for %q, whom it is about", said.Key, address)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.known == nil {
		o.known = patterns[heldOpinion]{}
	}
	if _, there := o.known[key]; !there && len(o.known) >= maxOpinions {
		for other := range o.known {
			delete(o.known, other)
			break
		}
	}
	o.known[key] = entry[heldOpinion]{value: heldOpinion{said.Status.Sanitized(), now.Add(said.For)}}
	return nil
}
