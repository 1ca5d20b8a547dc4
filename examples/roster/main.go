// Roster is a plugin that knows who has a mailbox. It refuses strangers,
// puts off mail for those who are away, and leaves the others to the next
// backend.
package main

import (
	"context"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins"
)

type settings struct {
	Users []string `toml:"users"` // addresses in lower case
	Away  []string `toml:"away"`
}

func open(s settings) (backends.Backend, error) {
	return backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
		for i, r := range tx.Envelope.Recipients {
			switch address := strings.ToLower(r.Address); {
			case slices.Contains(s.Away, address):
				tx.SetStatus(i, backends.NewStatus(450, "4.2.1", "away, try again later"))
			case !slices.Contains(s.Users, address):
				tx.SetStatus(i, backends.NoSuchUser)
			}
		}
		return nil // those without a status go on
	}), nil
}

func main() { plugins.Serve(settings{}, open) }
