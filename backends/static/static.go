// Package static is a backend that answers each recipient as its rules say,
// without reading the message. It is for tests and demonstrations:
//
//	[[backend.demo.settings.rule]]
//	to = "busy@example.org"
//	status = "450 4.2.1 mailbox busy"
//	delay = "2s"
//
// The first rule that matches a recipient decides it, even if a later one is
// more exact. A recipient that no rule matches goes on to the next backend.
package static

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// Settings are the rules.
type Settings struct {
	Rules []Rule `toml:"rule"`
}

// A Rule gives a status to the recipients that match a pattern.
type Rule struct {
	// To is the pattern, as in the routes of a listener: "user@example.org",
	// "postmaster", "@example.org", "user@*" or "*".
	To string `toml:"to"`

	// Status is the answer: "450 4.2.1 mailbox busy". The enhanced code may
	// be left out.
	Status string `toml:"status"`

	// Delay is how long the answer takes. Those of several recipients pass
	// side by side.
	Delay time.Duration `toml:"delay"`
}

// Defaults are the Settings that hold for keys that are not given: no rules,
// so that every recipient goes on.
var Defaults Settings

// New returns a backend that follows the rules of s.
func New(s Settings) (backends.Backend, error) {
	rules := make([]rule, len(s.Rules))
	var faults []error
	for i, r := range s.Rules {
		fault := func(key, format string, args ...any) {
			faults = append(faults, backends.SettingError{Key: fmt.Sprintf("rule[%d].%s", i, key), Err: fmt.Errorf(format, args...)})
		}
		var err error
		if rules[i].to, err = smtp.ParsePattern(r.To); err != nil {
			fault("to", "%q: %w", r.To, err)
		}
		if rules[i].status, err = parseStatus(r.Status); err != nil {
			fault("status", "%q: %w", r.Status, err)
		}
		if r.Delay < 0 {
			fault("delay", "%v is negative", r.Delay)
		}
		rules[i].delay = r.Delay
	}
	return backend(rules), errors.Join(faults...)
}

type rule struct {
	to     smtp.Pattern
	status backends.Status
	delay  time.Duration
}

type backend []rule

// Capabilities has REQUIRETLS because no message goes anywhere.
func (b backend) Capabilities() backends.Capabilities {
	can := backends.Storing
	can.RequireTLS = true
	return can
}

// MayEdit returns that it edits nothing.
func (b backend) MayEdit() backends.EditKinds { return 0 }

// IsEffectFree is true of what only answers.
func (b backend) IsEffectFree() bool { return true }

func (b backend) Deliver(ctx context.Context, tx *backends.DataContext) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for i, to := range tx.Envelope.Recipients {
		for _, r := range b {
			if r.to.Matches(to.Address) {
				r.decide(ctx, tx, i)
				break
			}
		}
	}
	return nil
}

// decide gives recipient i the status of r, at once or later.
func (r rule) decide(ctx context.Context, tx *backends.DataContext, i int) {
	if r.delay == 0 {
		tx.SetStatus(i, r.status)
		return
	}
	tx.StartDelivery(ctx, i)
	go func() {
		select {
		case <-time.After(r.delay):
			tx.SetStatus(i, r.status)
		case <-ctx.Done(): // StartDelivery sees to the status.
		}
	}()
}

func parseStatus(text string) (backends.Status, error) {
	var r smtp.Reply
	if more, err := r.Add(text); err != nil || more {
		return backends.Status{}, fmt.Errorf("want a reply such as 450 4.2.1 mailbox busy")
	}
	s := backends.NewStatus(r.Code, r.Enhanced, r.Text)
	if s.Enhanced == "" {
		s.Enhanced = fmt.Sprintf("%d.0.0", s.Code/100)
	}
	if sanitized := s.Sanitized(); sanitized != s {
		return backends.Status{}, fmt.Errorf("the client would get %q", sanitized.Error())
	}
	return s, nil
}
