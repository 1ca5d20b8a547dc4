package webhook

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/backendtest"
)

func TestConformance(t *testing.T) {
	for _, test := range []struct {
		name    string
		hook    http.HandlerFunc
		options backendtest.Options
		change  func(*Settings)
	}{
		{"filter", says(204, ""), backendtest.Options{}, func(*Settings) {}},
		{"editor", says(200, `{"add_headers": ["X-Spam: yes"], "remove_headers": ["Subject"]}`), backendtest.Options{}, func(*Settings) {}},
		{"destination", says(200, `{"default": {"code": 250}}`), backendtest.Options{Final: true}, func(*Settings) {}},
		{"quarantine", says(200, `{"default": {"divert": "quarantine"}}`), backendtest.Options{Final: true}, func(*Settings) {}},
	} {
		hook := serve(t, test.hook)
		if err := backendtest.Test(newBackend(t, hook.URL, withSecret(t), test.change), test.options); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		hook.Close()
	}
}

// Only a clear word of the hook decides; whatever else it says is 451.
func TestAnswers(t *testing.T) {
	for _, test := range []struct {
		status int
		answer string
		reason string // part of the error
		want   string // answers of both recipients, parted by |
	}{
		// No objection.
		{status: 204, want: "|"},
		{status: 200, answer: `{}`, want: "|"},
		{status: 200, answer: " \n{\"recipients\": [], \"add_headers\": []}\n", want: "|"},
		// Verdicts.
		{status: 200, answer: `{"default": {"code": 250}}`, want: "250 2.0.0 delivered|250 2.0.0 delivered"},
		{status: 200, answer: `{"default": {"code": 250, "text": "id 7"}, "recipients": [{"index": 1, "code": 550, "enhanced": "5.1.1", "text": "no such user"}]}`,
			want: "250 2.0.0 id 7|550 5.1.1 no such user"},
		{status: 200, answer: `{"default": {"code": 554}, "recipients": [{"index": 0, "continue": true}]}`, want: "|554 5.0.0 refused"},
		{status: 200, answer: `{"recipients": [{"index": 0, "code": 450, "text": "a\r\nb\u00e4"}]}`, want: "450 4.0.0 a b?|"},
		// The hook cannot do it at present.
		{status: 500, reason: "500 Internal", want: later + "|" + later},
		{status: 503, answer: `{"default": {"code": 550}}`, reason: "503", want: later + "|" + later},
		{status: 408, reason: "408", want: later + "|" + later},
		{status: 425, reason: "425", want: later + "|" + later},
		{status: 429, reason: "429", want: later + "|" + later},
		// It is none, or says nothing that counts.
		{status: 400, reason: "400", want: later + "|" + later},
		{status: 401, reason: "401", want: later + "|" + later},
		{status: 404, answer: "<html>", reason: "404", want: later + "|" + later},
		{status: 550, reason: "550", want: later + "|" + later},
		{status: 202, answer: `{}`, reason: "202", want: later + "|" + later},
		{status: 301, reason: "301", want: later + "|" + later},
		{status: 307, reason: "redirects is 0", want: later + "|" + later},
		{status: 200, reason: "want a JSON object", want: later + "|" + later},
		{status: 200, answer: "OK", reason: "want a JSON object", want: later + "|" + later},
		{status: 200, answer: `{"add_headers": ["no field"]}`, reason: "field name", want: later + "|" + later},
		{status: 200, answer: `{"default": {"divert": "no route"}}`, reason: "is no name", want: later + "|" + later},
		{status: 200, answer: `{"default": {"code": 250}, "add_headers": ["X: a\nb"]}`, reason: "bare", want: later + "|" + later},
		{status: 200, answer: `{}` + strings.Repeat(" ", maxAnswer), reason: "more than 1048576", want: later + "|" + later},
	} {
		name := fmt.Sprintf("%d %.60q", test.status, test.answer)
		hook := serve(t, says(test.status, test.answer))
		run(t, newBackend(t, hook.URL), transaction(hello)).wants(t, name, test.reason, strings.Split(test.want, "|")...)
	}
}

func TestEdits(t *testing.T) {
	hook := serve(t, says(200, `{
		"remove_headers": ["x-spam", "X-Other"],
		"add_headers": ["X-Spam: yes", "X-Score: 7\r\n high"],
		"recipients": [{"index": 1, "divert": "quarantine"}]
	}`))
	tx := transaction("X-Spam: no\r\nFrom: bob@example.net\r\nX-SPAM : no\r\n more\r\n\r\nX-Spam: body\r\n")
	run(t, newBackend(t, hook.URL), tx).wants(t, "edits", "", "", "")
	e := tx.Edits()
	want := []backends.FieldEdit{
		{Op: backends.RemoveField, At: 0},
		{Op: backends.RemoveField, At: 2},
		{Op: backends.AddField, At: 0, Field: "X-Spam: yes"},
		{Op: backends.AddField, At: 0, Field: "X-Score: 7\r\n high"},
	}
	if !slices.Equal(e.Fields, want) || len(e.Diversions) != 1 || e.Diversions[1] != "quarantine" {
		t.Errorf("got %+v", e)
	}
	if beyond := e.Kinds() &^ backends.EditsOf(newBackend(t, hook.URL)); beyond != 0 {
		t.Errorf("unannounced edits: %v", beyond)
	}
}

// A hook that does not answer costs its timeout, and one transaction.
func TestHookThatHangs(t *testing.T) {
	end := make(chan struct{})
	hook := serve(t, func(http.ResponseWriter, *http.Request) { <-end })
	t.Cleanup(func() { close(end) })
	timeout := func(s *Settings) { s.Timeout = 50 * time.Millisecond }
	const timedOut = "451 4.4.7 not delivered in time, try again later"
	run(t, newBackend(t, hook.URL, timeout), transaction(hello)).wants(t, "tempfail", "deadline exceeded", timedOut, timedOut)

	// The transaction's own deadline is no trouble of the hook's.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := newBackend(t, hook.URL).Deliver(ctx, transaction(hello)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
}

// A script is a hook that speaks for itself, one function for each connection.
func script(t *testing.T, connections ...func(*bufio.Reader, net.Conn)) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for _, speak := range connections {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			speak(bufio.NewReader(conn), conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return "http://" + l.Addr().String()
}

func readRequest(r *bufio.Reader) {
	if request, err := http.ReadRequest(r); err == nil {
		io.Copy(io.Discard, request.Body)
	}
}

// A request that may have arrived is not sent again, although net/http does so
// with requests that have an Idempotency-Key, on a connection that was used
// before.
func TestNothingIsPostedTwice(t *testing.T) {
	const ok = "HTTP/1.1 204 No Content\r\n\r\n"
	again := false
	url := script(t, func(r *bufio.Reader, w net.Conn) {
		readRequest(r)
		io.WriteString(w, ok)
		readRequest(r) // and close without an answer
	}, func(r *bufio.Reader, w net.Conn) {
		again = true
		io.WriteString(w, ok)
	})
	b := newBackend(t, url).(*backend)
	b.hook.own.IdleConnTimeout = 0 // however slow this machine is
	run(t, b, transaction(hello)).wants(t, "first", "", "", "")
	run(t, b, transaction(hello)).wants(t, "second", "EOF", later, later)
	if again {
		t.Error("the second request was sent again")
	}
}

func TestAnswerThatBreaksOff(t *testing.T) {
	for _, test := range []struct{ answer, reason string }{
		{"", "EOF"},
		{"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", "unexpected EOF"},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", "unexpected EOF"},
		{"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{", "unexpected EOF"},
		{"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n{", "unexpected EOF"},
		{"220 mail.example.net ESMTP\r\n", "malformed HTTP"},
		{"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n{}", "headers exceeded"},
		{"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n{}", "answered 101"},
	} {
		url := script(t, func(r *bufio.Reader, w net.Conn) {
			readRequest(r)
			io.WriteString(w, test.answer)
		})
		run(t, newBackend(t, url), transaction(hello)).wants(t, test.answer[:min(len(test.answer), 60)], test.reason, later, later)
	}
}

// Who has not been sent a message has not stored it. A refusal needs less.
func TestAnswerBeforeTheMessageIsSent(t *testing.T) {
	const large = 16 << 20 // more than sockets hold
	for answer, want := range map[string]string{
		`{"default": {"code": 250}}`: later,
		`{"default": {"code": 550}}`: "550 5.0.0 refused",
		`{}`:                         "",
	} {
		done := make(chan struct{})
		url := script(t, func(r *bufio.Reader, w net.Conn) {
			http.ReadRequest(r) // the header
			fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer)
			<-done
		})
		reason := map[bool]string{true: "before the whole message was sent"}[want == later]
		run(t, newBackend(t, url), transaction(strings.Repeat("x", large))).wants(t, answer, reason, want, want)
		close(done)
	}
}

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	l.Close()
	run(t, newBackend(t, url), transaction(hello)).wants(t, "tempfail", "refused", later, later)
}

func TestUnixSocket(t *testing.T) {
	hook := httptest.NewUnstartedServer(says(204, ""))
	socket := filepath.Join(t.TempDir(), "hook.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	hook.Listener.Close()
	hook.Listener = l
	hook.Start()
	defer hook.Close()
	run(t, newBackend(t, "http://hook/", func(s *Settings) { s.Socket = socket }), transaction(hello)).wants(t, "socket", "", "", "")
}

func TestTLS(t *testing.T) {
	hook := httptest.NewTLSServer(says(204, ""))
	defer hook.Close()
	ca := certificateOf(t, hook)
	trusting := func(s *Settings) { s.CA = ca }
	run(t, newBackend(t, hook.URL, trusting), transaction(hello)).wants(t, "trusted", "", "", "")
	run(t, newBackend(t, hook.URL), transaction(hello)).wants(t, "not trusted", "certificate", later, later)
	elsewhere := strings.Replace(hook.URL, "127.0.0.1", "localhost", 1)
	run(t, newBackend(t, elsewhere, trusting), transaction(hello)).wants(t, "another name", "certificate", later, later)
}

// certificateOf returns the path of a hook's certificate.
func certificateOf(t *testing.T, hook *httptest.Server) string {
	return file(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hook.Certificate().Raw})), 0o644)
}

func TestClientCertificate(t *testing.T) {
	hook := httptest.NewUnstartedServer(says(204, ""))
	hook.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12} // in which it is wanted before the request
	hook.StartTLS()
	defer hook.Close()
	pair := hook.TLS.Certificates[0] // serves for both
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certificate := certificateOf(t, hook)
	private := file(t, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})), 0o600)
	trusting := func(s *Settings) { s.CA = certificate }
	shown := func(s *Settings) { s.Certificate, s.Key = certificate, private }
	run(t, newBackend(t, hook.URL, trusting, shown), transaction(hello)).wants(t, "shown", "", "", "")
	run(t, newBackend(t, hook.URL, trusting), transaction(hello)).wants(t, "not shown", "remote error: tls", later, later)
}

func TestFaultsInSettings(t *testing.T) {
	short := file(t, "short\n", 0o600)
	open := file(t, secret, 0o604)
	if err := os.Chmod(open, 0o604); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		change func(*Settings)
		want   string
	}{
		{func(s *Settings) { s.URL = "" }, "url: is missing"},
		{func(s *Settings) { s.URL = "ftp://example.org" }, `url: has the scheme "ftp", want http or https`},
		{func(s *Settings) { s.URL = "http:///path" }, "url: has no host"},
		{func(s *Settings) { s.URL = "http://user:password@example.org" }, "url: has a user"},
		{func(s *Settings) { s.URL = "http://example.org#x" }, "url: has a fragment"},
		{func(s *Settings) { s.URL = "http://[" }, "url: "},
		{func(s *Settings) { s.SecretFile = short }, "a secret of 5 octets, want 16 or more"},
		{func(s *Settings) { s.SecretFile = open }, "secret_file: " + open + ": mode 0604 lets everybody"},
		{func(s *Settings) { s.SecretFile = "no such file" }, "secret_file: "},
		{func(s *Settings) { s.BearerFile = file(t, "\n", 0o600) }, "the file is empty"},
		{func(s *Settings) { s.BearerFile = file(t, "two words\n", 0o600) }, "bearer_file: "},
		{func(s *Settings) { s.CA = short }, "ca: " + short + ": no certificate"},
		{func(s *Settings) { s.CA = "no such file" }, "ca: "},
		{func(s *Settings) { s.Certificate = short }, "certificate and key go together"},
		{func(s *Settings) { s.Certificate, s.Key = short, short }, "certificate: "},
		{func(s *Settings) { s.Timeout = 0 }, "timeout: 0s, want more than 0s"},
		{func(s *Settings) { s.Redirects = 11 }, "redirects: 11, want 0 to 10"},
		{func(s *Settings) { s.Redirects = -1 }, "redirects: -1"},
		{func(s *Settings) { s.Socket, s.Redirects = "hook.sock", 1 }, "socket: with it"},
		{func(s *Settings) { s.Addresses = []string{"10.0.0.0/8", "example.org"} }, `addresses: "example.org" is neither`},
		{func(s *Settings) { s.Addresses = []string{"10.0.0.1/8"} }, "addresses: "},
		{func(s *Settings) { s.Addresses = []string{"::ffff:10.0.0.1"} }, "addresses: "},
		{func(s *Settings) { s.Addresses = []string{"fe80::1%eth0"} }, "addresses: "},
		{func(s *Settings) { s.Directory = "no such directory" }, "directory: "},
	} {
		s := Defaults
		s.URL = "http://example.org"
		test.change(&s)
		if _, err := New(s); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v, want %q", err, test.want)
		} else if _, ok := errors.AsType[backends.SettingError](err); !ok {
			t.Errorf("%v is no SettingError", err)
		}
	}
}

// A message that does not fit on the disk is told so, and nothing of it is left.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=128k"); err != nil {
		missing(t, "cannot mount a file system: "+err.Error())
	}
	t.Cleanup(func() { syscall.Unmount(dir, 0) })
	hook := serve(t, says(204, ""))
	b := newBackend(t, hook.URL, func(s *Settings) { s.Directory = dir })
	full := backends.StorageFull.Error()
	for range 2 {
		run(t, b, transaction(strings.Repeat("x", 1<<20))).wants(t, "large", "no space left", full, full)
		run(t, b, transaction(strings.Repeat("x", 100<<10))).wants(t, "small", "", "", "")
	}
}

// What is told of a message's size is not believed.
func TestSizeThatIsWrong(t *testing.T) {
	hook := serve(t, says(204, ""))
	for _, size := range []int64{0, 1, 100, maxInMemory + 1} {
		tx := transaction(hello)
		tx.Size = size
		run(t, newBackend(t, hook.URL), tx).wants(t, fmt.Sprint(size), "not of the", later, later)
	}
}
