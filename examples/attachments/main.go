// Attachments is a plugin that adds a header field for each attachment of a
// message, so that the filters of a mail program can sort by it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins"
)

// errTooMany ends the walk through a message with more parts than anybody
// wants to see.
var errTooMany = errors.New("too many parts")

func deliver(ctx context.Context, tx *backends.DataContext) error {
	m, err := message.Read(tx.Body)
	if err != nil && !message.IsUnknownCharset(err) {
		// No MIME that we understand goes on as it is, unless what could not
		// be read is the message itself.
		_, err = io.Copy(io.Discard, tx.Body)
		return err
	}
	found := 0
	m.Walk(func(path []int, part *message.Entity, err error) error {
		if err != nil {
			return err
		}
		disposition, params, _ := part.Header.ContentDisposition()
		if disposition != "attachment" {
			return nil
		}
		if found++; found > 20 {
			return errTooMany
		}
		kind, _, _ := part.Header.ContentType()
		return tx.AddField(0, fmt.Sprintf("X-Attachment: %+.60q (%+.60q)", params["filename"], kind))
	})
	// An error of the network must not pass for a message that ends here.
	_, err = io.Copy(io.Discard, tx.Body)
	return err
}

func open(struct{}) (backends.Backend, error) { return backends.Func(deliver), nil }

func main() { plugins.Serve(struct{}{}, open) }
