package relay

import (
	"context"

	"github.com/mailgw/mailgw/internal/smtpclient"
)

// Session begins a session with the target s.Targets[i] as deliveries do, for a
// test of the target. The caller closes it.
func Session(ctx context.Context, s Settings, i int) (*smtpclient.Conn, error) {
	b, err := open(s)
	if err != nil {
		return nil, err
	}
	c, err := b.targets[i].open(ctx)
	if err != nil {
		return nil, err
	}
	return c.Conn, nil
}
