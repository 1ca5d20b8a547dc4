package backendtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// asked is a backend that answers questions about senders, recipients and
// logins.
type asked struct {
	backends.Func
	sender    func(context.Context, *backends.Session) (backends.Status, error)
	recipient backends.Opinion
	user      error
}

func (a asked) CheckSender(ctx context.Context, s *backends.Session, _ *backends.Envelope) (backends.Status, error) {
	if a.sender == nil {
		return backends.Status{}, nil
	}
	return a.sender(ctx, s)
}

func (a asked) CheckRecipient(context.Context, *backends.Session, *backends.Envelope, backends.Recipient) (backends.Opinion, error) {
	return a.recipient, nil
}

func (a asked) Authenticate(context.Context, *backends.Session, backends.Credentials) (string, error) {
	return "", a.user
}

// verifies is a backend that gives verifiers.
type verifies struct {
	asked
	salt func() []byte
}

func (v verifies) SCRAMVerifier(context.Context, *backends.Session, string) (backends.SCRAMVerifier, error) {
	return backends.SCRAMVerifier{Salt: v.salt(), Iterations: 4096}, nil
}

// changes is a backend that changes what it is asked about.
type changes struct {
	backends.Func
	change func(e *backends.Envelope, to backends.Recipient)
}

func (c changes) CheckRecipient(_ context.Context, _ *backends.Session, e *backends.Envelope, to backends.Recipient) (backends.Opinion, error) {
	c.change(e, to)
	return backends.Opinion{}, nil
}

func TestGoodAnswersPass(t *testing.T) {
	tests := map[string]backends.Backend{
		"no opinion": asked{Func: take},
		"opinions": asked{
			Func: take,
			sender: func(ctx context.Context, _ *backends.Session) (backends.Status, error) {
				return backends.NewStatus(550, "", "the enhanced code is left out"), ctx.Err()
			},
			recipient: backends.Opinion{Status: backends.Delivered, For: time.Hour, Key: "@example.org"},
			user:      backends.BadCredentials,
		},
		"a verifier": verifies{asked{Func: take}, func() []byte { return []byte("salt") }},
	}
	for name, b := range tests {
		if err := Test(b, Options{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Backends that are asked and break one promise each, and a part of the fault
// that tells.
func TestBrokenAnswersAreFound(t *testing.T) {
	// sender is a backend that is asked about senders.
	sender := func(f func(ctx context.Context, s *backends.Session) (backends.Status, error)) asked {
		return asked{Func: take, sender: f}
	}
	tests := []struct {
		name     string
		fault    string
		patience time.Duration
		backend  backends.Backend
	}{
		{"cannot answer", "question about sender: failure to answer: no route to host", 0,
			sender(func(context.Context, *backends.Session) (backends.Status, error) {
				return backends.Status{}, errors.New("no route to host")
			})},
		{"panics", "question about sender: panic: oops", 0,
			sender(func(context.Context, *backends.Session) (backends.Status, error) { panic("oops") })},
		{"hangs", "question about sender: no answer within 1s", time.Second,
			sender(func(context.Context, *backends.Session) (backends.Status, error) {
				<-t.Context().Done()
				return backends.Status{}, nil
			})},
		{"hangs when its context is over", "question about sender, context over: no answer within 1s", time.Second,
			sender(func(ctx context.Context, _ *backends.Session) (backends.Status, error) {
				if ctx.Err() != nil {
					<-t.Context().Done()
				}
				return backends.Status{}, nil
			})},
		{"refuses when its context is over", `context over: "550 5.1.1 no such user" for a trouble`, 0,
			sender(func(ctx context.Context, _ *backends.Session) (backends.Status, error) {
				if ctx.Err() != nil {
					return backends.NoSuchUser, nil
				}
				return backends.Status{}, nil
			})},
		{"changes the session", "question about sender: the session was changed", 0,
			sender(func(_ context.Context, s *backends.Session) (backends.Status, error) {
				s.HELO += "."
				return backends.Status{}, nil
			})},
		{"changes the sender", "question about recipient: the envelope was changed", 0,
			changes{take, func(e *backends.Envelope, _ backends.Recipient) { e.Sender = "" }}},
		{"changes parameters of the sender", "question about recipient: the envelope was changed", 0,
			changes{take, func(e *backends.Envelope, _ backends.Recipient) { e.Params[0] = "" }}},
		{"changes parameters of the recipient", "question about recipient: the envelope was changed", 0,
			changes{take, func(_ *backends.Envelope, to backends.Recipient) { to.Params[0] = "" }}},
		{"says what is no answer", `status "354 2.0.0 go on" would be sent as`, 0,
			sender(func(context.Context, *backends.Session) (backends.Status, error) {
				return backends.NewStatus(354, "2.0.0", "go on"), nil
			})},

		{"refuses good recipients", `question about recipient: "550 5.1.1 no such user" for one@example.org`, 0,
			asked{Func: take, recipient: backends.Opinion{Status: backends.NoSuchUser}}},
		{"has an opinion for no time", "question about recipient: an opinion for -1s", 0,
			asked{Func: take, recipient: backends.Opinion{For: -time.Second}}},
		{"has an opinion for no pattern", `question about recipient: key "example.org": no domain`, 0,
			asked{Func: take, recipient: backends.Opinion{Key: "example.org"}}},

		{"accepts nobody", `question about AUTH: "250 2.0.0 delivered" without an answer`, 0,
			asked{Func: take, user: backends.Delivered}},
		{"tells who exists", "question about SCRAM: another verifier each time", 0,
			verifies{asked{Func: take}, func() []byte { return fmt.Append(nil, rand.Uint64()) }}},
	}
	for _, tt := range tests {
		err := Test(tt.backend, Options{Patience: tt.patience})
		if err == nil || !strings.Contains(err.Error(), tt.fault) {
			t.Errorf("%s: got %v\nwant %s", tt.name, err, tt.fault)
		}
	}
}
