package webhook

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"

	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/gatewaytest"
	"github.com/mailgw/mailgw/xforward"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	gatewaytest.Main(m)
}

const secret = "a secret of 32 octets, at random"

// newBackend returns a backend for a hook.
func newBackend(t *testing.T, url string, changes ...func(*Settings)) backends.Backend {
	t.Helper()
	s := Defaults
	s.URL = url
	for _, change := range changes {
		change(&s)
	}
	b, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// serve starts a hook, which ends with the test.
func serve(t *testing.T, hook http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(hook)
	t.Cleanup(s.Close)
	return s
}

// says is a hook that reads the request and answers.
func says(status int, answer string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		io.WriteString(w, answer)
	}
}

// file makes a file with a mode, and returns its path.
func file(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func withSecret(t *testing.T) func(*Settings) {
	path := file(t, secret+"\n", 0o600)
	return func(s *Settings) { s.SecretFile = path }
}

// hello is the message of the package comment.
const hello = "From: bob@example.net\r\nSubject: hello\r\n\r\nHello, Ann.\r\n"

// transaction returns the transaction of the package comment, with another
// message.
func transaction(message string) *backends.DataContext {
	return &backends.DataContext{
		ID: "06gztyg6qak7z5b6",
		Session: backends.Session{
			ID: "06gztyg6q151rdby", Listener: "lmtp", Protocol: "LMTP", Peer: backends.Peer{UID: 104}, HELO: "mx.example.org",
			TLS: &backends.TLS{Version: "TLS 1.3", Cipher: "TLS_AES_128_GCM_SHA256", ServerName: "mx.example.org"},
			XForward: &xforward.Attrs{
				Forwarded: true, Addr: "192.0.2.1", Name: "mail.example.net", HELO: "mail.example.net", Proto: "ESMTP",
				Ident: "4c2Xw31zVKzF2Bp",
			},
		},
		Envelope: backends.Envelope{
			Sender: "bob@example.net",
			Params: backends.Params{"BODY=8BITMIME"},
			Recipients: []backends.Recipient{
				{Address: "ann@example.org"},
				{Address: "carol@example.org", Params: backends.Params{"NOTIFY=NEVER"}},
			},
		},
		Size: int64(len(message)),
		Body: strings.NewReader(message),
	}
}

// An outcome is what became of a transaction.
type outcome struct {
	statuses []string // of each recipient; empty if it went on
	err      error
}

// run delivers, and gives those that are undecided after an error its status.
func run(t *testing.T, b backends.Backend, tx *backends.DataContext) outcome {
	t.Helper()
	var o outcome
	undecided, err := backends.Run(t.Context(), b, tx, backends.Hooks{})
	for i := range tx.Envelope.Recipients {
		switch s := tx.Status(i); {
		case slices.Contains(undecided, i) && err != nil:
			o.statuses = append(o.statuses, backends.StatusOf(err).Error())
		case slices.Contains(undecided, i):
			o.statuses = append(o.statuses, "")
		default:
			o.statuses = append(o.statuses, s.Error())
		}
	}
	o.err = err
	return o
}

// wants fails if a transaction of two recipients did not end so. reason is part
// of the error; if it is empty there was none.
func (o outcome) wants(t *testing.T, name, reason string, statuses ...string) {
	t.Helper()
	if !slices.Equal(o.statuses, statuses) {
		t.Errorf("%s: got %q, want %q", name, o.statuses, statuses)
	}
	if (o.err == nil) != (reason == "") || o.err != nil && !strings.Contains(o.err.Error(), reason) {
		t.Errorf("%s: got error %v, want %q", name, o.err, reason)
	}
}

const later = "451 4.3.0 try again later"

// missing skips a test for which something is missing. In CI nothing may be.
func missing(t *testing.T, what string) {
	t.Helper()
	gatewaytest.Without(t, "%s", what)
}
