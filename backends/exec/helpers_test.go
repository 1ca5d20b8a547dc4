package exec

import (
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

const message = "From: <ann@example.net>\r\nSubject: test\r\n\r\nHello\r\n"

// newBackend returns a backend that runs a shell script.
func newBackend(t *testing.T, script string, changes ...func(*Settings)) backends.Backend {
	t.Helper()
	s := Defaults
	s.Command = []string{"/bin/sh", "-c", script}
	for _, change := range changes {
		change(&s)
	}
	b, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func final(s *Settings) { s.Final = true }

func transaction(message string, recipients ...string) *backends.DataContext {
	tx := &backends.DataContext{ID: "TX1", Size: int64(len(message)), Body: strings.NewReader(message)}
	tx.Envelope.Sender = "sender@example.net"
	for _, r := range recipients {
		tx.Envelope.Recipients = append(tx.Envelope.Recipients, backends.Recipient{Address: r})
	}
	return tx
}

// deliver returns what the recipients get, "" if they go on.
func deliver(t *testing.T, b backends.Backend, tx *backends.DataContext) string {
	t.Helper()
	undecided, err := backends.Run(t.Context(), b, tx, backends.Hooks{})
	s := tx.Status(0)
	switch {
	case err != nil:
		s = backends.StatusOf(err)
	case len(undecided) > 0:
		return ""
	}
	for i := range tx.Envelope.Recipients {
		if got := tx.Status(i); err == nil && got != s {
			t.Errorf("recipient %d: got %v, want %v", i, got, s)
		}
	}
	return s.Error()
}
