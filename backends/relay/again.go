package relay

import (
	"context"
	"io"
	"log/slog"
	"os"

	"github.com/mailgw/mailgw/internal/smtpclient"
)

// A target may take only so many recipients in one transaction, by RFC 9422 or by
// 452 at one of them. The others follow at once in further transactions, over the
// same connection: RFC 5321, section 4.5.3.1.10. If they got 452, a client that
// hears one answer for all would send the message to all again, and again to too
// many.

// isTooMany reports whether the target takes a recipient in another transaction, if
// it has accepted others in this one. Package smtpclient has made one answer of
// several.
func isTooMany(e *smtpclient.Error) bool {
	return e.Stage == smtpclient.RCPT && e.Reply.Code == 452 && e.Reply.Enhanced == "4.5.3"
}

// again begins another transaction, for those who were too many for the one before.
// It reports false if there can be none.
func (d *delivery) again(ctx context.Context) bool {
	if len(d.tooMany) == 0 || d.c.Err() != nil || d.c.full() {
		return false
	}
	err := d.message.rewind()
	if err == nil {
		err = d.c.Reset(ctx)
	}
	if err == nil {
		err = d.forward(ctx)
	}
	if err != nil {
		slog.WarnContext(ctx, "those who were too many for a transaction come again", "target", d.url, "error", err)
		return false
	}
	d.c.sent++
	d.answered = true
	d.to = nil
	for _, r := range d.tooMany {
		d.to = append(d.to, r.recipient)
	}
	return true
}

// A source is a message that can be read again, if keep says so when it is read
// first. Then it is kept meanwhile, in a file without a name.
type source struct {
	message io.Reader
	keep    func() bool
	begun   bool
	kept    copied
}

func (s *source) Read(p []byte) (int, error) {
	if !s.begun {
		s.begun = true
		if s.keep() {
			s.kept.begin()
			s.message = io.TeeReader(s.message, &s.kept)
		}
	}
	return s.message.Read(p)
}

// rewind has the message begin anew, if any of it was read. It was read to its end,
// or the connection would be of no more use.
func (s *source) rewind() error {
	if s.begun {
		s.message = io.NewSectionReader(s.kept.file, 0, s.kept.size)
	}
	return s.kept.err
}

func (s *source) close() { s.kept.file.Close() } // without a file it does nothing

// What is copied is no more if there is an error: it goes on its way all the same.
type copied struct {
	file *os.File
	size int64
	err  error
}

func (c *copied) begin() {
	if c.file, c.err = os.CreateTemp("", "mailgw-relay-"); c.err == nil {
		c.err = os.Remove(c.file.Name())
	}
}

func (c *copied) Write(p []byte) (int, error) {
	if c.err == nil {
		_, c.err = c.file.Write(p)
		c.size += int64(len(p))
	}
	return len(p), nil
}
