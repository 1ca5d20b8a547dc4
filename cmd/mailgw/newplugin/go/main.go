// Command example-plugin is a plugin of mailgw: it refuses recipients who have
// left, and marks the messages of the others. Change it into what you need.
package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins"
)

// settings are [backend.example-plugin.settings] in gateway.toml.
type settings struct {
	Left []string `toml:"left"` // addresses of users who have left, in lower case
	Mark string   `toml:"mark"` // the header field that a message gets
}

var defaults = settings{Mark: "X-Example: seen"}

type plugin struct{ settings }

// open is called once, when the plugin starts. An error tells the operator which
// key is wrong.
func open(s settings) (backends.Backend, error) {
	if !strings.Contains(s.Mark, ": ") {
		return nil, backends.SettingError{Key: "mark", Err: errors.New(`want a header field, "Name: value"`)}
	}
	return plugin{s}, nil
}

var hasLeft = backends.NewStatus(550, "5.1.1", "this user has left")

// CheckRecipient is asked at RCPT, before there is a message. The zero Opinion is
// no opinion. Without this method the plugin is not asked.
func (p plugin) CheckRecipient(_ context.Context, _ *backends.Session, _ *backends.Envelope, to backends.Recipient) (backends.Opinion, error) {
	if slices.Contains(p.Left, strings.ToLower(to.Address)) {
		return backends.Opinion{Status: hasLeft}, nil
	}
	return backends.Opinion{}, nil
}

// MayEdit announces which edits Deliver makes. The gateway refuses others.
func (plugin) MayEdit() backends.EditKinds { return backends.EditHeader }

// Deliver is called for each message, for many at the same time. Recipients that it
// leaves without a status go on to the next backend of their route. An error
// means that they are to be tried again later.
func (p plugin) Deliver(ctx context.Context, tx *backends.DataContext) error {
	for i, r := range tx.Envelope.Recipients {
		if slices.Contains(p.Left, strings.ToLower(r.Address)) {
			tx.SetStatus(i, hasLeft)
		}
	}
	slog.DebugContext(ctx, "marked", "size", tx.Size) // in the gateway's log, if its level is debug
	return tx.AddField(0, p.Mark)
}

func main() { plugins.Serve(defaults, open) }
