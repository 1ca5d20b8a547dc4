package gateway

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// tells is a backend that answers with its name.
func tells(name string) map[string]backends.Backend {
	return map[string]backends.Backend{name: backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		tx.SetAll(backends.NewStatus(250, "2.0.0", "by "+name+" of "+tx.Session.Listener))
		return nil
	})}
}

// A reloadable is a server whose listeners are on sockets in dir.
type reloadable struct {
	*Server
	dir string
}

func newReloadable(t *testing.T, backend, listeners string) *reloadable {
	t.Helper()
	s := &reloadable{dir: t.TempDir()}
	c, all := s.config(t, backend, listeners)
	var err error
	if s.Server, err = New(c, all, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	serve(t, s.Server)
	return s
}

// config is a configuration with a backend and listeners, a line each: a name
// and keys.
func (s *reloadable) config(t *testing.T, backend, listeners string) (*Config, map[string]backends.Backend) {
	t.Helper()
	text := "hostname = 'mx.example.org'\n[spool]\ndirectory = '" + s.dir + "'\n[backend." + backend + "]\nplugin = 'test'\n"
	for line := range strings.Lines(listeners) {
		name, keys, _ := strings.Cut(strings.TrimSpace(line), " ")
		address := "address = 'unix:" + s.dir + "/" + name[:1] + "'\n"
		if strings.Contains(keys, "address =") {
			address = ""
		}
		text += "[[listener]]\nname = '" + name + "'\n" + address + "routes = { '*' = ['" + backend + "'] }\n" + strings.ReplaceAll(keys, ";", "\n") + "\n"
	}
	c, err := parseConfig("test.toml", text, []string{"test"})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return c, tells(backend)
}

func (s *reloadable) reload(t *testing.T, backend, listeners string) (left <-chan struct{}) {
	t.Helper()
	c, all := s.config(t, backend, listeners)
	left, err := s.Reload(c, all, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return left
}

func (s *reloadable) dial(t *testing.T, name string) client {
	t.Helper()
	c := s.connect(t, name)
	c.hear(t)
	return c
}

func (s *reloadable) connect(t *testing.T, name string) client {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(s.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return client{c, bufio.NewReader(c)}
}

// send sends a message, or the rest of it after some commands, and returns the
// answer.
func (c client) send(t *testing.T, done int) string {
	t.Helper()
	for _, line := range []string{"LHLO x", "MAIL FROM:<>", "RCPT TO:<a@x.example>", "DATA"}[done:] {
		c.ask(t, line)
	}
	return c.ask(t, "Subject: x\r\n.")
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// A transaction ends where it has begun; the next one of the same session is
// the new configuration's.
func TestReloadBetweenTransactions(t *testing.T) {
	s := newReloadable(t, "old", "a protocol = 'lmtp'")
	idle, busy := s.dial(t, "a"), s.dial(t, "a")
	if got := idle.send(t, 0); got != "250 2.0.0 <a@x.example> by old of a (ID)" {
		t.Error(got)
	}
	busy.ask(t, "LHLO x")
	busy.ask(t, "MAIL FROM:<>")
	left := s.reload(t, "new", "a2 protocol = 'lmtp'")
	if got := idle.send(t, 1); got != "250 2.0.0 <a@x.example> by new of a2 (ID)" {
		t.Error(got)
	}
	if isClosed(left) {
		t.Error("the old backends may be closed while a transaction is theirs")
	}
	if got := busy.send(t, 2); got != "250 2.0.0 <a@x.example> by old of a (ID)" {
		t.Error(got)
	}
	busy.ask(t, "NOOP")
	<-left
	if got := busy.send(t, 1); got != "250 2.0.0 <a@x.example> by new of a2 (ID)" {
		t.Error(got)
	}
	if got := s.dial(t, "a").send(t, 0); got != "250 2.0.0 <a@x.example> by new of a2 (ID)" {
		t.Error(got)
	}
}

// Listeners come and go; a session of one that is gone, or speaks another
// protocol now, stays what it is.
func TestReloadOfListeners(t *testing.T) {
	s := newReloadable(t, "old", "a protocol = 'lmtp'\nb protocol = 'lmtp'\nc protocol = 'lmtp'")
	stays, goes, changes := s.dial(t, "a"), s.dial(t, "b"), s.dial(t, "c")
	left := s.reload(t, "new", "a protocol = 'lmtp'\nc protocol = 'smtp'\nd protocol = 'lmtp'")
	if _, err := net.Dial("unix", filepath.Join(s.dir, "b")); err == nil {
		t.Error("the listener that is gone still answers")
	}
	for _, test := range []struct {
		client client
		want   string
	}{
		{stays, "250 2.0.0 <a@x.example> by new of a (ID)"},
		{goes, "250 2.0.0 <a@x.example> by old of b (ID)"},
		{changes, "250 2.0.0 <a@x.example> by old of c (ID)"},
		{s.dial(t, "d"), "250 2.0.0 <a@x.example> by new of d (ID)"},
	} {
		if got := test.client.send(t, 0); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
	if isClosed(left) {
		t.Error("nobody is left with the old backends")
	}
	goes.ask(t, "QUIT")
	changes.Close()
	<-left
}

// What cannot be used changes nothing.
func TestReloadThatFails(t *testing.T) {
	s := newReloadable(t, "old", "a protocol = 'lmtp'")
	other, err := net.Listen("unix", filepath.Join(s.dir, "c"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for listeners, want := range map[string]string{
		"a protocol = 'lmtp'\nb protocol = 'lmtp'\nc protocol = 'lmtp'": "test.toml:18: listener[2].address: " + filepath.Join(s.dir, "c") + ": another process answers on it",
		"a protocol = 'lmtp'; dsn = true":                               `ends in backend "new"`,
	} {
		c, all := s.config(t, "new", listeners)
		if _, err := s.Reload(c, all, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if _, err := net.Dial("unix", filepath.Join(s.dir, "b")); err == nil {
		t.Error("a listener is open")
	}
	if got := s.dial(t, "a").send(t, 0); got != "250 2.0.0 <a@x.example> by old of a (ID)" {
		t.Error(got)
	}
}

// What stays the same in the configuration goes on as it was: rates, limits of
// connections, the budget of the spool. Trust is judged anew.
func TestReloadInherits(t *testing.T) {
	const keys = "a protocol = 'lmtp'; xforward = ['unix']; rate = [{ by = 'recipient', messages = 1 }]; limits.connections = 2"
	s := newReloadable(t, "old", keys)
	c := s.dial(t, "a")
	c.send(t, 0)
	spool := s.spool
	s.reload(t, "new", strings.Replace(keys, "'unix'", "", 1))
	if got := c.ask(t, "XFORWARD NAME=x.example"); got != "550 5.7.0 insufficient authorization" {
		t.Errorf("whom we trusted gets %q", got)
	}
	if got := c.ask(t, "MAIL FROM:<>", "RCPT TO:<a@x.example>"); !strings.HasPrefix(got, "450 4.7.1") {
		t.Errorf("the rate is forgotten: %q", got)
	}
	if s.spool != spool {
		t.Error("there is another spool")
	}
	s.dial(t, "a")
	if third, err := net.Dial("unix", filepath.Join(s.dir, "a")); err != nil {
		t.Error(err)
	} else if got := (client{third, bufio.NewReader(third)}).hear(t); !strings.HasPrefix(got, "421 4.7.0") {
		t.Errorf("the third connection gets %q", got)
	}
}

// What a session was told after EHLO it can rely on, until it says EHLO again: it is
// never refused for good what was offered. But nothing is taken in the name of a
// promise that nobody keeps any more.
func TestReloadKeepsOffers(t *testing.T) {
	s := newReloadable(t, "old", "a protocol = 'lmtp'; chunking = true")
	c := s.dial(t, "a")
	c.ask(t, "LHLO x")
	s.reload(t, "new", "a protocol = 'lmtp'")
	c.ask(t, "MAIL FROM:<>")
	c.ask(t, "RCPT TO:<a@x.example>")
	if got := c.ask(t, "BDAT 2 LAST\r\n"); got != "250 2.0.0 <a@x.example> by new of a (ID)" {
		t.Errorf("got %q", got)
	}
	if got := c.ask(t, "LHLO x", "BDAT 0 LAST"); got != "502 5.5.1 BDAT is not offered here" {
		t.Errorf("greeted again: got %q", got)
	}
}

func TestReloadBreaksNoPromise(t *testing.T) {
	const dsn = "a protocol = 'lmtp'; dsn = true"
	s := &reloadable{dir: t.TempDir()}
	c, all := s.config(t, "old", dsn)
	all["old"] = capable{all["old"].(backends.Func), backends.Capabilities{DSN: true}}
	var err error
	if s.Server, err = New(c, all, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	serve(t, s.Server)
	client := s.dial(t, "a")
	client.ask(t, "LHLO x")
	s.reload(t, "new", strings.Replace(dsn, "true", "false", 1))
	if got := client.ask(t, "MAIL FROM:<> RET=HDRS"); got != "455 4.3.3 this was offered before and is not any more" {
		t.Errorf("got %q", got)
	}
	if got := client.ask(t, "LHLO x", "MAIL FROM:<> RET=HDRS"); got != "555 5.5.4 parameter not supported: RET" {
		t.Errorf("greeted again: got %q", got)
	}
}

// What somebody told of a client by XFORWARD is forgotten with the trust in him.
func TestReloadForgetsXForward(t *testing.T) {
	const keys = "a protocol = 'lmtp'; xforward = ['unix']"
	s := newReloadable(t, "old", keys)
	c := s.dial(t, "a")
	if got := c.ask(t, "LHLO x", "XFORWARD ADDR=192.0.2.1"); got != "250 2.0.0 ok" {
		t.Fatal(got)
	}
	config, all := s.config(t, "new", strings.Replace(keys, "'unix'", "", 1))
	all["new"] = backends.Func(tellXForward)
	if _, err := s.Reload(config, all, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if got := c.send(t, 1); strings.Contains(got, "192.0.2.1") {
		t.Errorf("got %q", got)
	}
}

// Where the new configuration lets nobody in without TLS or a certificate, those who
// are in stay with the old one.
func TestReloadLetsNobodyIn(t *testing.T) {
	ca := newIssuer(t)
	file := ca.file(t, t.TempDir(), "mx.example")
	tls := func(mode, certificates string) string {
		return "a protocol = 'lmtp'; tls.mode = '" + mode + "'; tls.certificates = ['" + file + "']; tls.client_certificates = '" + certificates + "'"
	}
	s := newReloadable(t, "old", tls("starttls", "ignore"))
	inClear, secured := s.dial(t, "a"), s.dial(t, "a")
	secured.ask(t, "LHLO x", "STARTTLS")
	secured, err := secured.secure(t, ca.client("mx.example"))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ backend, listeners, inClear, secured string }{
		{"new", tls("starttls", "require"), "new", "old"}, // in clear is not in, if require_tls says so
		{"newer", tls("implicit", "ignore"), "new", "newer"},
		{"newest", tls("starttls", "ignore"), "newest", "newest"},
	} {
		s.reload(t, step.backend, step.listeners)
		got := []string{inClear.send(t, 0), secured.send(t, 0)}
		wantReplies(t, got, "250 2.0.0 <a@x.example> by "+step.inClear+" of a (ID)", "250 2.0.0 <a@x.example> by "+step.secured+" of a (ID)")
	}
}

// Nor does what a proxy has told of a client bring it trust, or another name, where
// the proxy is not believed.
func TestReloadBelievesNoProxy(t *testing.T) {
	const lmtp = "a protocol = 'lmtp'; "
	s := newReloadable(t, "old", lmtp+"xclient = ['unix']")
	told, plain := s.dial(t, "a"), s.dial(t, "a")
	if got := told.ask(t, "LHLO x", "XCLIENT ADDR=192.0.2.1"); got != "220 mx.example.org LMTP mailgw" {
		t.Fatal(got)
	}
	s.reload(t, "new", lmtp+"xclient = []; xforward = ['192.0.2.1']")
	if got := told.ask(t, "XFORWARD ADDR=192.0.2.2"); got != "550 5.7.0 insufficient authorization" {
		t.Errorf("got %q", got)
	}
	wantReplies(t, []string{told.send(t, 0), plain.send(t, 0)}, "250 2.0.0 <a@x.example> by old of a (ID)", "250 2.0.0 <a@x.example> by new of a (ID)")

	s.reload(t, "newer", lmtp+"proxy = ['unix']")
	proxied := s.connect(t, "a")
	io.WriteString(proxied, "PROXY TCP4 192.0.2.1 192.0.2.3 1 2\r\n")
	proxied.hear(t)
	wantReplies(t, []string{proxied.send(t, 0), plain.send(t, 0)}, "250 2.0.0 <a@x.example> by newer of a (ID)", "250 2.0.0 <a@x.example> by new of a (ID)")
	s.reload(t, "newest", lmtp+"proxy = []")
	wantReplies(t, []string{proxied.send(t, 0), plain.send(t, 0)}, "250 2.0.0 <a@x.example> by newer of a (ID)", "250 2.0.0 <a@x.example> by newest of a (ID)")
}

// Listeners whose ports the system has chosen keep them, each its own.
func TestReloadKeepsChosenPorts(t *testing.T) {
	const listeners = "a protocol = 'lmtp'; address = 'tcp:127.0.0.1:0'\nb protocol = 'lmtp'; address = 'tcp:127.0.0.1:0'"
	s := newReloadable(t, "old", listeners)
	before := s.Addrs()
	s.reload(t, "new", listeners)
	for name, addr := range s.Addrs() {
		if addr.String() != before[name].String() {
			t.Errorf("%s: %v before, %v now", name, before[name], addr)
		}
	}
}

// Reloads, sessions and a shutdown at the same time leave nothing behind.
func TestReloadUnderLoad(t *testing.T) {
	s := newReloadable(t, "old", "a protocol = 'lmtp'\nb protocol = 'lmtp'")
	var clients sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		clients.Go(func() {
			for !isClosed(stop) {
				c := s.dial(t, "a")
				for range 1 + i {
					if got := c.send(t, 0); !strings.HasPrefix(got, "250 2.0.0 <a@x.example> by ") {
						t.Errorf("got %q", got)
						return
					}
				}
				c.ask(t, "QUIT")
			}
		})
	}
	var left []<-chan struct{}
	for i := range 40 {
		left = append(left, s.reload(t, []string{"old", "new"}[i%2], []string{"a protocol = 'lmtp'\nb protocol = 'lmtp'", "a protocol = 'lmtp'"}[i%2]))
	}
	close(stop)
	clients.Wait()
	for i, l := range left {
		select {
		case <-l:
		case <-time.After(10 * time.Second):
			t.Fatalf("somebody is left with configuration %d", i)
		}
	}
}
