package rspamd

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/backendtest"
)

func TestConformance(t *testing.T) {
	for _, answer := range []string{
		`{"action": "no action"}`,
		`{"action": "add header"}`,
		`{"action": "discard"}`,
		`{"action": "no action", "milter": {"change_from": "other@example.org", "add_rcpt": ["three@example.org"], "del_rcpt": ["two@example.org"]}}`,
	} {
		if err := backendtest.Test(newBackend(t, serve(t, answering(answer)), nil), backendtest.Options{}); err != nil {
			t.Errorf("%s: %v", answer, err)
		}
	}
}

const (
	someMessage = "X-Spam: No\r\nSubject: hello\r\nx-spam : forged\r\n\ttwice\r\n\r\nbody\r\n"

	// What is edited whatever rspamd says.
	stripped = "remove 0\nremove 2\n"
	passed   = stripped + "on ann@example.org\non bob@example.org\n"
)

// No trouble with rspamd refuses a message for good, and none lets one pass
// unless the operator wants that. What a sender could have forged is gone then,
// too.
func TestNoGoodAnswer(t *testing.T) {
	hangs := func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}
	drips := func(w http.ResponseWriter, r *http.Request) {
		answering(`{"action":`)(w, r)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
	breaksOff := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		answering(`{"action": "no action"}`)(w, r)
	}
	says := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Location", "/checkv2")
			w.WriteHeader(code)
			io.WriteString(w, `{"action": "no action"}`)
		}
	}
	// It has not seen the message of which it says that it is good.
	early := func(w http.ResponseWriter, r *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 23\r\n\r\n"+`{"action": "no action"}`)
			t.Cleanup(func() { c.Close() }) // not before the answer is read
		}
	}
	tests := map[string]struct {
		handler http.HandlerFunc
		large   bool // message
		want    string
	}{
		"garbage":            {handler: answering("<html>"), want: "its answer makes no sense: "},
		"nothing":            {handler: answering(""), want: "its answer makes no sense: "},
		"truncated":          {handler: answering(`{"action": "no action"`), want: "its answer makes no sense: "},
		"two answers":        {handler: answering(`{"action": "no action"}{}`), want: "its answer makes no sense: "},
		"a list":             {handler: answering(`[{"action": "no action"}]`), want: "its answer makes no sense: "},
		"no action":          {handler: answering(`{"error": "worker is overloaded"}`), want: "its answer has no action"},
		"empty action":       {handler: answering(`{"action": ""}`), want: "its answer has no action"},
		"action of no text":  {handler: answering(`{"action": 1}`), want: "its answer makes no sense: "},
		"action of a book":   {handler: answering(`{"action": "` + strings.Repeat("x", 201) + `"}`), want: "of 201 octets"},
		"name of no field":   {handler: answering(`{"action": "no action", "milter": {"add_headers": {"X Y": "z"}}}`), want: `its answer adds a header field "X Y"`},
		"field in a name":    {handler: answering(`{"action": "no action", "milter": {"spam_header": {"X\r\nY": "z"}}}`), want: `its answer has the spam header "X\r\nY"`},
		"place of no number": {handler: answering(`{"action": "no action", "milter": {"remove_headers": {"X": "all"}}}`), want: "its answer makes no sense: "},
		"no value":           {handler: answering(`{"action": "no action", "milter": {"add_headers": {"X": {"order": 1}}}}`), want: "a header field without a value"},
		"huge":               {handler: answering(`{"action": "` + strings.Repeat("x", maxAnswer) + `"}`), want: "the answer has more than 4194304 octets"},
		"error":              {handler: says(500), want: `it answers "500 Internal Server Error"`},
		"wrong password":     {handler: says(403), want: `it answers "403 Forbidden"`},
		"redirect":           {handler: says(302), want: `it answers "302 Found"`},
		"silence":            {handler: hangs, want: "context deadline exceeded"},
		"half an answer":     {handler: drips, want: "context deadline exceeded"},
		"broken connection":  {handler: breaksOff, want: "unexpected EOF"},
		"answer too early":   {handler: early, large: true, want: "it answered after "},
		"nobody":             {handler: nil, want: "connect: no such file or directory"},
	}
	for name, test := range tests {
		address := "unix:" + filepath.Join(t.TempDir(), "none")
		if test.handler != nil {
			address = serve(t, test.handler)
		}
		impatient := func(s *Settings) {
			if strings.HasSuffix(test.want, "deadline exceeded") {
				s.Timeout = 50 * time.Millisecond
			}
		}
		message := someMessage
		if test.large {
			message += strings.Repeat("more\r\n", 1<<20)
		}
		tx := transaction(message, "ann@example.org", "bob@example.org")
		undecided, err := backends.Run(t.Context(), newBackend(t, address, impatient), tx, backends.Hooks{})
		if err == nil || !strings.HasPrefix(err.Error(), "rspamd at unix:") || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got error %v, want %q", name, err, test.want)
		}
		if len(undecided) != 2 || err != nil && !backends.StatusOf(err).Temporary() {
			t.Errorf("%s: got %q, undecided %v, want no answer", name, backends.StatusOf(err), undecided)
		}
	}
}

// That a message cannot be read is no trouble with rspamd.
func TestUnreadableMessageNeverPasses(t *testing.T) {
	broken := errors.New("broken")
	b := newBackend(t, serve(t, answering(`{"action": "no action"}`)), func(*Settings) {})
	for _, readable := range []string{"", "Subject: x\r\n", someMessage} {
		tx := transaction(someMessage+strings.Repeat("x\r\n", 1<<16), "ann@example.org")
		tx.Body = io.MultiReader(strings.NewReader(readable), failing{broken})
		if _, err := backends.Run(t.Context(), b, tx, backends.Hooks{}); !errors.Is(err, broken) {
			t.Errorf("%q can be read: got error %v, want %v", readable, err, broken)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestLargeMessagePassesUnscanned(t *testing.T) {
	asked := 0
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked++
		answering(`{"action": "reject"}`)(w, r)
	})
	for _, test := range []struct {
		maxSize int
		asked   int
		want    string
	}{
		{len(someMessage) - 1, 0, passed},
		{len(someMessage), 1, "ann@example.org: 550 5.7.1 message rejected as spam\nbob@example.org: 550 5.7.1 message rejected as spam\n" + stripped},
		{0, 2, "ann@example.org: 550 5.7.1 message rejected as spam\nbob@example.org: 550 5.7.1 message rejected as spam\n" + stripped},
	} {
		b := newBackend(t, address, func(s *Settings) { s.MaxSize.UnmarshalText([]byte(toJSON(test.maxSize))) })
		tx := transaction(someMessage, "ann@example.org", "bob@example.org")
		undecided, err := backends.Run(t.Context(), b, tx, backends.Hooks{})
		if got := summary(tx, undecided); err != nil || got != test.want || asked != test.asked {
			t.Errorf("max_size %d: got %q, %v, asked %d times, want %q, %d", test.maxSize, got, err, asked, test.want, test.asked)
		}
	}
}

func TestBadSettingsNameTheirKey(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\nsecond line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		change func(*Settings)
		want   string
	}{
		{func(s *Settings) { s.Address = "http://127.0.0.1:11333" }, `address: "http://127.0.0.1:11333" is neither`},
		{func(s *Settings) { s.Address = "tcp:127.0.0.1" }, `address: "tcp:127.0.0.1" is neither`},
		{func(s *Settings) { s.Address = "unix:" }, `address: "unix:" is neither`},
		{func(s *Settings) { s.PasswordFile = "/nonexistent" }, "password_file: open /nonexistent"},
		{func(s *Settings) { s.PasswordFile = empty }, "password_file: " + empty + ": there is no password"},
		{func(s *Settings) { s.Timeout = 0 }, "timeout: 0s is no time"},
		{func(s *Settings) { s.Strip = []string{"X-Spam", "X-Spam:"} }, `strip[1]: "X-Spam:" is no name`},
		{func(s *Settings) { s.Hostname = "mx\r\nIP: 127.0.0.1" }, `hostname: "mx\r\nIP: 127.0.0.1" has a control character`},
		{func(s *Settings) { s.SettingsID = "x\n" }, `settings_id: "x\n" has a control character`},
		{func(s *Settings) { s.Actions = map[string]string{"reject": "bounce"} }, `actions.reject: "bounce" is none of`},
		{func(s *Settings) { s.Actions = map[string]string{"add header": "divert:"} }, `actions."add header": edit: divert recipient 0: route "" is no name`},
	}
	for _, tt := range tests {
		s := Defaults
		tt.change(&s)
		if _, err := New(s); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("got error %v, want %s...", err, tt.want)
		}
	}
}

// The routes of all actions are announced, each once.
func TestDiversionsAreAnnounced(t *testing.T) {
	b := newBackend(t, "unix:x", func(*Settings) {})
	if got := backends.DiversionsOf(b); got != nil {
		t.Errorf("got %q without a route", got)
	}
	b = newBackend(t, "unix:x", func(s *Settings) {
		s.Actions = map[string]string{"reject": "divert:spam", "quarantine": "divert:hold", "other": "divert:spam", "greylist": "pass"}
	})
	if got := backends.DiversionsOf(b); !slices.Equal(got, []string{"hold", "spam"}) {
		t.Errorf("got %q", got)
	}
}
