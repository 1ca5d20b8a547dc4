// Package discard is a backend that takes every message and throws it away,
// unread. It is for tests and measurements.
package discard

import (
	"context"

	"github.com/mailgw/mailgw/backends"
)

// Settings has nothing to set.
type Settings struct{}

// Defaults are the Settings that hold for keys that are not given.
var Defaults Settings

// New returns a backend that discards.
func New(Settings) (backends.Backend, error) { return backend{}, nil }

type backend struct{}

// Capabilities has REQUIRETLS because a message that is thrown away goes
// nowhere.
func (backend) Capabilities() backends.Capabilities {
	can := backends.Storing
	can.RequireTLS = true
	return can
}

// MayEdit returns that it edits nothing.
func (backend) MayEdit() backends.EditKinds { return 0 }

func (backend) Deliver(ctx context.Context, tx *backends.DataContext) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	tx.SetAll(backends.NewStatus(250, "2.0.0", "discarded"))
	return nil
}
