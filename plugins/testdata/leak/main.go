// Leak is a plugin that takes memory without end for the recipient "leak".
package main

import (
	"context"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins"
)

var leaked [][]byte

func main() {
	plugins.Serve(struct{}{}, func(struct{}) (backends.Backend, error) {
		return backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			for tx.Envelope.Recipients[0].Address == "leak" {
				piece := make([]byte, 1<<20)
				for i := range piece {
					piece[i] = 1
				}
				leaked = append(leaked, piece)
			}
			tx.SetAll(backends.Delivered)
			return nil
		}), nil
	})
}
