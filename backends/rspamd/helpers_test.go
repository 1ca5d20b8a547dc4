package rspamd

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/gatewaytest"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	gatewaytest.Main(m)
}

// serve starts a rspamd that answers as the handler does, and returns its
// address.
func serve(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(gatewaytest.Directory(t), "rspamd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: handler}}
	s.Start()
	t.Cleanup(s.Close)
	return "unix:" + l.Addr().String()
}

// answering reads the message and gives the answer.
func answering(answer string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, answer)
	}
}

// newBackend returns a backend that asks rspamd at address. change may change
// its settings.
func newBackend(t *testing.T, address string, change func(*Settings)) backends.Backend {
	t.Helper()
	s := Defaults
	s.Address = address
	if change != nil {
		change(&s)
	}
	b, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func transaction(message string, recipients ...string) *backends.DataContext {
	tx := &backends.DataContext{ID: "test", Size: int64(len(message)), Body: strings.NewReader(message)}
	tx.Envelope.Sender = "sender@example.org"
	for _, r := range recipients {
		tx.Envelope.Recipients = append(tx.Envelope.Recipients, backends.Recipient{Address: r})
	}
	return tx
}

// summary returns what a backend has done, one thing a line.
func summary(tx *backends.DataContext, undecided []int) string {
	var b strings.Builder
	for i, to := range tx.Envelope.Recipients {
		if s := tx.Status(i); !s.IsZero() {
			fmt.Fprintf(&b, "%s: %s\n", to.Address, s.Error())
		}
	}
	e := tx.Edits()
	for _, f := range e.Fields {
		switch f.Op {
		case backends.AddField:
			fmt.Fprintf(&b, "add %d %q\n", f.At, f.Field)
		case backends.RemoveField:
			fmt.Fprintf(&b, "remove %d\n", f.At)
		}
	}
	if e.Sender != nil {
		fmt.Fprintf(&b, "from <%s>\n", *e.Sender)
	}
	for _, r := range e.Added {
		fmt.Fprintf(&b, "to <%s>\n", r.Address)
	}
	for _, i := range undecided {
		fmt.Fprintf(&b, "on %s", tx.Envelope.Recipients[i].Address)
		if route := e.Diversions[i]; route != "" {
			fmt.Fprintf(&b, " by %s", route)
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

func toJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}
