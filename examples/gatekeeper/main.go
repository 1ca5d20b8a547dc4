// Gatekeeper is a plugin that refuses strangers as soon as they are named,
// adds an archive to the recipients of each message, and diverts spam to the
// named route quarantine.
package main

import (
	"bufio"
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins"
)

type settings struct {
	Users   []string      `toml:"users"`   // addresses in lower case
	Hold    time.Duration `toml:"hold"`    // how long a refusal holds
	Archive string        `toml:"archive"` // an address; there is none if it is empty
	Spam    string        `toml:"spam"`    // the header field that marks spam
}

type gatekeeper struct{ settings }

// CheckRecipient is asked at RCPT, before there is a message.
func (g gatekeeper) CheckRecipient(_ context.Context, _ *backends.Session, _ *backends.Envelope, to backends.Recipient) (backends.Opinion, error) {
	if slices.Contains(g.Users, strings.ToLower(to.Address)) {
		return backends.Opinion{}, nil // the backends after this one are asked, too
	}
	return backends.Opinion{Status: backends.NoSuchUser, For: g.Hold}, nil
}

// MayEdit tells the gateway to let nothing but the envelope be edited.
func (gatekeeper) MayEdit() backends.EditKinds { return backends.EditEnvelope }

// Deliver decides nobody: all go on, by their own route or by quarantine.
func (g gatekeeper) Deliver(_ context.Context, tx *backends.DataContext) error {
	spam, err := g.isSpam(tx.Body)
	switch {
	case err != nil:
		return err
	case spam:
		for i := range tx.Envelope.Recipients {
			if err := tx.Divert(i, "quarantine"); err != nil {
				return err
			}
		}
	case g.Archive != "":
		return tx.AddRecipient(backends.Recipient{Address: g.Archive})
	}
	return nil
}

// isSpam reports whether the header has the field that marks spam.
func (g gatekeeper) isSpam(message io.Reader) (bool, error) {
	lines := bufio.NewScanner(message)
	lines.Buffer(nil, 1<<20) // as large as the whole header may be
	for lines.Scan() && lines.Text() != "" {
		if strings.EqualFold(lines.Text(), g.Spam) {
			return true, nil
		}
	}
	return false, lines.Err()
}

func open(s settings) (backends.Backend, error) { return gatekeeper{s}, nil }

func main() {
	plugins.Serve(settings{Hold: time.Minute, Spam: "X-Spam-Flag: YES"}, open)
}
