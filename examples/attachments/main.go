// Attachments is a plugin that adds a header field for each attachment of a
// message, so that the filters of a mail program can sort by it.
package main

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/emersion/go-message"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/entity"
	"github.com/mailgw/mailgw/plugins"
)

func deliver(ctx context.Context, tx *backends.DataContext) error {
	found := 0
	return entity.Walk(tx, func(_ []int, part *message.Entity) error {
		disposition, params, _ := part.Header.ContentDisposition()
		if disposition != "attachment" {
			return nil
		}
		if found++; found > 20 {
			return fs.SkipAll // more than anybody wants to see
		}
		kind, _, _ := part.Header.ContentType()
		return tx.AddField(0, fmt.Sprintf("X-Attachment: %+.60q (%+.60q)", params["filename"], kind))
	})
}

func open(struct{}) (backends.Backend, error) { return backends.Func(deliver), nil }

func main() { plugins.Serve(struct{}{}, open) }
