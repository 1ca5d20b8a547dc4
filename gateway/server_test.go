package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// ask sends lines and returns the last line of the reply to each.
func (c client) ask(t testing.TB, lines ...string) (last string) {
	t.Helper()
	for _, line := range lines {
		if _, err := io.WriteString(c, line+"\r\n"); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		last = c.hear(t)
	}
	return last
}

// hear returns the last line of one reply.
func (c client) hear(t testing.TB) string {
	t.Helper()
	for {
		line, err := c.ReadString('\n')
		if err != nil {
			t.Fatalf("after %q: %v", line, err)
		}
		if len(line) < 4 || line[3] != '-' {
			return masked(strings.TrimSuffix(line, "\r\n"))
		}
	}
}

// hearEnd checks that the server says want and hangs up.
func (c client) hearEnd(t testing.TB, want string) {
	t.Helper()
	rest, err := io.ReadAll(c)
	if masked(string(rest)) != want || err != nil {
		t.Errorf("got %q, %v, want %q and the end", rest, err, want)
	}
}

// Timeouts are of the whole command, not of each octet, and of the session.
func TestTimeouts(t *testing.T) {
	for _, test := range []struct{ limits, say, want string }{
		{"command_timeout = '50ms'", "NOO", "421 4.4.2 mx.example.org timeout\r\n"},
		{"session_timeout = '50ms'", "", "421 4.4.2 mx.example.org timeout\r\n"},
		{"command_timeout = '50ms'", "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<ok@example.org>\r\nDATA\r\nhalf a mess", "421 4.4.2 mx.example.org timeout\r\n"},
		{"message_timeout = '50ms'", "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<ok@example.org>\r\nDATA\r\nhalf a mess", "421 4.4.2 mx.example.org timeout\r\n"},
	} {
		s := testServer(t, testBackends, "protocol = 'smtp'\n[listener.limits]\n"+test.limits+"\n")
		c := dialServer(t, s)
		io.WriteString(c, test.say)
		all, err := io.ReadAll(c)
		if err != nil || !strings.HasSuffix(string(all), test.want) || strings.Contains(string(all), "delivered") {
			t.Errorf("%s: got %q, %v", test.limits, all, err)
		}
	}
}

// Nor does a shutdown wait longer for a client in the middle of its message.
func TestShutdownDeadlineInDATA(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'smtp'\n")
	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA")
	io.WriteString(c, "half a mess")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: %v", err)
	}
	// What the client has sent may be left unread, which is a reset.
	if rest, _ := io.ReadAll(c); string(rest) != "421 4.3.2 mx.example.org shutting down\r\n" {
		t.Errorf("the client hears %q", rest)
	}
}

// Refusals that are no bad commands have an end too: each is a line in the log.
func TestEndlessRefusalsEndTheSession(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'smtp'\n[listener.limits]\nrecipients = 20\n[listener.recipients]\ndeny = ['*']\n")
	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "EHLO x", "MAIL FROM:<>")
	for i := range 120 {
		if got := c.ask(t, "RCPT TO:<denied@example.org>"); got != "550 5.7.1 recipient refused" {
			t.Fatalf("recipient %d: %q", i, got)
		}
	}
	io.WriteString(c, "RCPT TO:<denied@example.org>\r\n")
	c.hearEnd(t, "421 4.7.0 mx.example.org too many bad commands, good bye\r\n")
}

// Envelopes are paid from the budget that messages share, and whatever a
// session comes to, all is given back.
func TestBudgetIsGivenBack(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'lmtp'\nchunking = true\n[listener.limits]\nmessage_size = 100000\n")
	const memory = 64 << 10
	s.spool.free.Store(memory)
	s.spool.reserve = memory / 4
	s.spool.threshold = 2 * chunkSize
	serve(t, s)
	begin := func() client {
		c := dial(t, s)
		c.hear(t)
		c.ask(t, "LHLO x", "MAIL FROM:<>")
		return c
	}
	for name, message := range map[string]string{
		"delivered":    "A: 1\r\n\r\n.\r\n",
		"in a file":    strings.Repeat("x\r\n", 30_000) + ".\r\n",
		"too large":    strings.Repeat("x\r\n", 60_000) + ".\r\n",
		"bare newline": "a\nb\r\n.\r\n",
		"incomplete":   "half a mess",
	} {
		c := begin()
		c.ask(t, "RCPT TO:<ok@example.org>", "DATA")
		io.WriteString(c, message)
		if name == "incomplete" {
			c.Close()
			continue
		}
		c.hear(t)
		c.ask(t, "QUIT")
	}
	chunks := begin()
	if got := chunks.ask(t, "RCPT TO:<ok@example.org>", "BDAT 3\r\na", "RSET"); got != "250 2.0.0 ok" {
		t.Errorf("RSET in the middle of chunks: %q", got)
	}
	chunks.ask(t, "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "BDAT 3\r\na")
	io.WriteString(chunks, "BDAT 30000 LAST\r\nhalf")
	chunks.Close()
	greedy := begin()
	long := strings.Repeat("x", 1500)
	accepted := 0
	for ; accepted < 1000; accepted++ {
		if got := greedy.ask(t, "RCPT TO:<ok-"+long+"@example.org>"); got != "250 2.1.5 recipient ok" {
			if got != "452 4.3.1 insufficient system storage, try again later" {
				t.Errorf("recipient %d: %q", accepted, got)
			}
			break
		}
	}
	if octets := accepted * len(long); octets < memory/2 || octets > memory {
		t.Errorf("%d recipients fit into %d octets", accepted, memory)
	}
	greedy.ask(t, "RSET", "MAIL FROM:<>")
	if got := greedy.ask(t, "RCPT TO:<ok-"+long+"@example.org>"); got != "250 2.1.5 recipient ok" {
		t.Errorf("after RSET: %q", got)
	}
	greedy.Close()
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if free := s.spool.free.Load(); free != memory {
		t.Errorf("%d of %d octets are free at the end", free, memory)
	}
}

// A client that sends and never reads is left after the command timeout.
func TestClientThatNeverReads(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'smtp'\n[listener.limits]\ncommand_timeout = '200ms'\n")
	c := dialServer(t, s)
	var err error
	for err == nil {
		_, err = io.WriteString(c, strings.Repeat("HELP\r\n", 1000))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the server still takes commands")
	}
}

// A shutdown ends idle sessions with 421, lets transactions finish, and
// refuses who comes too late.
func TestShutdownWaitsForTransactions(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	all := map[string]backends.Backend{"slow": backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		close(entered)
		<-release
		tx.SetAll(backends.Delivered)
		return nil
	})}
	all["verdict"] = testBackends["verdict"]
	s := testServer(t, all, "protocol = 'smtp'\n[listener.routes]\n'*' = ['slow']\n'@elsewhere.example' = ['verdict']\n")
	busy := dialServer(t, s)
	idle, mailing, sending := dial(t, s), dial(t, s), dial(t, s)
	for _, c := range []client{busy, idle, mailing, sending} {
		c.hear(t)
		c.ask(t, "EHLO x")
	}
	mailing.ask(t, "MAIL FROM:<>")
	busy.ask(t, "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA")
	io.WriteString(busy, ".\r\n")
	<-entered
	sending.ask(t, "MAIL FROM:<>", "RCPT TO:<perm@elsewhere.example>", "DATA")
	io.WriteString(sending, "half a mess")

	done := make(chan error)
	go func() { done <- s.Shutdown(t.Context()) }()
	idle.hearEnd(t, "421 4.3.2 mx.example.org shutting down\r\n")
	if c, err := net.Dial("tcp", s.listeners[0].socket.Addr().String()); err == nil {
		c.Close()
		t.Error("a new connection is accepted during the shutdown")
	}
	// The one that is in a transaction ends it, and then is told.
	if got := mailing.ask(t, "RSET"); got != "250 2.0.0 ok" {
		t.Errorf("in the transaction: %q", got)
	}
	mailing.hearEnd(t, "421 4.3.2 mx.example.org shutting down\r\n")
	io.WriteString(sending, "age\r\n.\r\n")
	sending.hearEnd(t, "550 5.1.1 no such user (ID)\r\n421 4.3.2 mx.example.org shutting down\r\n")
	select {
	case err := <-done:
		t.Fatalf("shutdown ended before the transaction: %v", err)
	default:
	}
	close(release)
	busy.hearEnd(t, "250 2.0.0 delivered (ID)\r\n421 4.3.2 mx.example.org shutting down\r\n")
	if err := <-done; err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

// A shutdown may be asked for several times at once. All wait for the end.
func TestShutdownsAtTheSameTime(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'smtp'\n")
	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "EHLO x", "MAIL FROM:<>")
	var shutdowns sync.WaitGroup
	var left atomic.Bool // by the client
	for range 5 {
		shutdowns.Go(func() {
			if err := s.Shutdown(t.Context()); err != nil || !left.Load() {
				t.Errorf("a shutdown ended, %v, before the session: %v", err, !left.Load())
			}
		})
	}
	if got := c.ask(t, "RCPT TO:<ok@example.org>"); got != "250 2.1.5 recipient ok" {
		t.Errorf("in the transaction: %q", got)
	}
	left.Store(true)
	c.ask(t, "RSET")
	c.hearEnd(t, "421 4.3.2 mx.example.org shutting down\r\n")
	shutdowns.Wait()
}

// At the end of its patience a shutdown answers what is under way with 451.
func TestShutdownDeadline(t *testing.T) {
	entered := make(chan struct{})
	all := map[string]backends.Backend{"slow": backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	})}
	s := testServer(t, all, "protocol = 'smtp'\n[listener.routes]\n'*' = ['slow']\n")
	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA")
	io.WriteString(c, ".\r\n")
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: %v", err)
	}
	c.hearEnd(t, "451 4.3.0 try again later (ID)\r\n421 4.3.2 mx.example.org shutting down\r\n")
	if want := `the server has shut down before the answer`; context.Cause(s.ctx).Error() != want {
		t.Errorf("the delivery ended since %v, want %s", context.Cause(s.ctx), want)
	}
}

// A listener that promises DSN needs backends that see to it.
func TestDSNNeedsACapableBackend(t *testing.T) {
	for routes, want := range map[string]string{
		"'*' = ['dsn']": "",
		"'*' = ['pass', 'dsn']\n'a@x.example' = ['dsn', 'pass']": `test.toml:*: listener[0].dsn: the route of "a@x.example" ends in backend "pass"*`,
	} {
		c := testConfig(t, testBackends, "protocol = 'smtp'\ndsn = true\n[listener.routes]\n"+routes)
		_, err := New(c, testBackends, slog.New(slog.DiscardHandler))
		if (err == nil) != (want == "") || err != nil && !matches(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", routes, err, want)
		}
	}
}

// A diverter tells where it diverts to.
type diverter struct {
	backends.Backend
	to []string
}

func (d diverter) DivertsTo() []string { return d.to }

// A route that is not there is found at the start and at a reload, and not when a
// quarantine is needed.
func TestDiversionsAreAnnounced(t *testing.T) {
	const text = `hostname = 'mx.example.org'
[[listener]]
name = 'in'
protocol = 'lmtp'
address = 'tcp:127.0.0.1:0'
routes = { '*' = ['one', 'two', 'last'] }
[named_routes]
quarantine = ['last']
[backend.one]
plugin = 'test'
[backend.two]
plugin = 'test'
[backend.last]
plugin = 'test'
`
	c, err := parseConfig("test.toml", text, []string{"test"})
	if err != nil {
		t.Fatal(err)
	}
	all := func(one, two []string) map[string]backends.Backend {
		plain := backends.Func(byLocalPart)
		return map[string]backends.Backend{"one": diverter{plain, one}, "two": diverter{plain, two}, "last": plain}
	}
	s, err := New(c, all([]string{"quarantine"}, nil), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	bad := all([]string{"quarantin", "quarantine"}, []string{"audit"})
	want := `test.toml:9: backend.one: it diverts to "quarantin", and there is no such route in [named_routes]; did you mean quarantine?` + "\n" +
		`test.toml:11: backend.two: it diverts to "audit", and there is no such route in [named_routes]`
	if _, err := New(c, bad, slog.New(slog.DiscardHandler)); err == nil || err.Error() != want {
		t.Errorf("got\n%v, want\n%s", err, want)
	}
	if _, err := s.Reload(c, bad, slog.New(slog.DiscardHandler)); err == nil || err.Error() != want {
		t.Errorf("reload: got\n%v, want\n%s", err, want)
	}
}
