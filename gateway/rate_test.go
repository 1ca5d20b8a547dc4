package gateway

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// The log names the rate that is used up, and for whom. The client learns
// nothing of it.
func TestLogNamesTheRate(t *testing.T) {
	for _, test := range []struct{ rate, want string }{
		{"by = 'client'\nmessages = 1\nipv4_prefix = 24", `"client 127.0.0.0/24: 1 messages per 1h0m0s"`},
		{"by = 'sender'\nrecipients = 1\nper = '5m'", `"sender a@example.net: 1 recipients per 5m0s"`},
		{"by = 'sender_domain'\nbytes = '2KiB'", `"sender_domain example.net: bytes 2KiB per 1h0m0s"`},
		{"by = 'recipient_domain'\nat_once = 1", `"recipient_domain example.org: 1 transactions at once"`},
	} {
		var log lockedBuffer
		s := testServer(t, testBackends, "protocol = 'smtp'\n[[listener.rate]]\n"+test.rate+"\n")
		s.log = slog.New(slog.NewTextHandler(&log, nil))
		other := dialServer(t, s)
		other.hear(t)
		other.ask(t, "EHLO x", "MAIL FROM:<a@example.net>", "RCPT TO:<a@example.org>")
		c := dial(t, s)
		c.hear(t)
		c.ask(t, "EHLO x", "MAIL FROM:<a@example.net> SIZE=2048", "RCPT TO:<a@example.org>", "DATA")
		if strings.Contains(test.rate, "bytes") {
			io.WriteString(c, "x\r\n.\r\n")
			c.hear(t)
			c.ask(t, "MAIL FROM:<a@example.net> SIZE=2048")
		}
		c.ask(t, "QUIT")
		if got := log.String(); !strings.Contains(got, `reply="450 4.7.1 too m`) || !strings.Contains(got, " rate="+test.want+" ") {
			t.Errorf("%s: no %s in\n%s", test.rate, test.want, got)
		}
	}
}

// What a rate has given comes back with time.
func TestRateComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := rateDialog(t, "by = 'sender'\nmessages = 2\nper = '1m'\n")
		for _, step := range []struct {
			wait time.Duration
			want int
		}{{0, 250}, {0, 250}, {0, 450}, {29 * time.Second, 450}, {time.Second, 250}, {0, 450}, {time.Hour, 250}, {0, 250}, {0, 450}} {
			time.Sleep(step.wait) // in the bubble of synctest
			if r, _ := d.command("MAIL FROM:<a@example.net>"); r.Code != step.want {
				t.Errorf("after %v: %v, want %d", step.wait, r, step.want)
			}
			d.sent()
		}
	})
}

// sent ends the transaction, if there is one, as if its message had come.
func (d *dialog) sent() {
	if d.tx != nil {
		d.tx.message = &message{}
		d.rates.leave(d.endMessage())
	}
}

// rateDialog is a dialog after EHLO, with one rate.
func rateDialog(t *testing.T, rate string) *dialog {
	s := testServer(t, testBackends, "protocol = 'smtp'\n[[listener.rate]]\n"+rate+"\n")
	t.Cleanup(s.cancel)
	d := s.listeners[0].dialog(backends.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:1")}, "test")
	d.command("EHLO x")
	return d
}

// A rate by user is for those who are authenticated, each alone, however
// the name is spelled.
func TestRateByUser(t *testing.T) {
	d := rateDialog(t, "by = 'user'\nmessages = 1\n")
	for _, step := range []struct {
		user string
		want int
	}{{"", 250}, {"", 250}, {"a", 250}, {"A", 450}, {"b", 250}, {"", 250}} {
		d.session.User = step.user
		if r, _ := d.command("MAIL FROM:<>"); r.Code != step.want {
			t.Errorf("user %q: %v, want %d", step.user, r, step.want)
		}
		d.sent()
	}
}

// A command that a backend refuses costs nothing, nor does one that another
// rate refuses; and a backend is not asked about what is too much anyway.
func TestRefusedCommandsCostNothing(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'smtp'\nask = ['early', 'rcpt']\n[[listener.rate]]\nby = 'client'\nmessages = 2\nrecipients = 2\n[[listener.rate]]\nby = 'recipient'\nmessages = 1\n")
	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "EHLO x")
	for i, step := range []struct{ say, want string }{
		{"MAIL FROM:<perm@example.net>", "550"},
		{"MAIL FROM:<perm@example.net>", "550"},
		{"MAIL FROM:<a@example.net>", "250"},
		{"RCPT TO:<perm@example.org>", "550"},
		{"RCPT TO:<perm@example.org>", "550"},
		{"RCPT TO:<a@example.org>", "250"},
		{"DATA", "354"},
		{".", "250"},
		{"MAIL FROM:<a@example.net>", "250"},
		{"RCPT TO:<a@example.org>", "450"}, // by recipient
		{"RCPT TO:<b@example.org>", "250"},
		{"RCPT TO:<perm@example.org>", "450"}, // by client, before anybody is asked
		{"DATA", "354"},
		{".", "250"},
		{"MAIL FROM:<perm@example.net>", "450"},
	} {
		if got := c.ask(t, step.say); !strings.HasPrefix(got, step.want) {
			t.Errorf("step %d: %s gets %q, want %s", i, step.say, got, step.want)
		}
	}
}

// At once are as many transactions as a rate allows, and each makes room for
// another when it ends: answered, given up, or left by a client that vanished.
func TestTransactionsAtOnce(t *testing.T) {
	answer := make(chan struct{})
	all := map[string]backends.Backend{"slow": backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		<-answer
		tx.SetAll(backends.Delivered)
		return nil
	})}
	s := testServer(t, all, "protocol = 'smtp'\n[[listener.rate]]\nby = 'client'\nat_once = 1\n[listener.routes]\n'*' = ['slow']\n")
	other := dialServer(t, s)
	other.hear(t)
	other.ask(t, "EHLO x")
	full := func() {
		t.Helper()
		if got := other.ask(t, "MAIL FROM:<>"); got != "450 4.7.1 too many transactions at once, try again later" {
			t.Errorf("beside another one: %q", got)
		}
	}
	free := func(t *testing.T) {
		t.Helper()
		for patience := time.Now().Add(10 * time.Second); underway(s) > 0; { // the other session may still be ending
			if runtime.Gosched(); time.Now().After(patience) {
				t.Fatal("it is still under way")
			}
		}
		if got := other.ask(t, "MAIL FROM:<>"); got != "250 2.1.0 sender ok" {
			t.Errorf("then: %q", got)
		}
		other.ask(t, "RSET")
	}
	for _, end := range []struct {
		name string
		do   func(c client)
	}{
		{"answered", func(c client) {
			c.ask(t, "RCPT TO:<ok@example.org>", "DATA")
			fmt.Fprint(c, ".\r\n")
			full()
			answer <- struct{}{}
			c.hear(t)
		}},
		{"given up by RSET", func(c client) { full(); c.ask(t, "RSET") }},
		{"given up by EHLO", func(c client) { full(); c.ask(t, "EHLO x") }},
		{"given up by QUIT", func(c client) { full(); c.ask(t, "QUIT") }},
		{"vanished after MAIL", func(c client) { full(); c.Close() }},
		{"vanished in the message", func(c client) {
			c.ask(t, "RCPT TO:<ok@example.org>", "DATA")
			fmt.Fprint(c, "half a mess")
			full()
			c.Close()
		}},
		{"vanished before the answer", func(c client) {
			c.ask(t, "RCPT TO:<ok@example.org>", "DATA")
			fmt.Fprint(c, ".\r\n")
			full()
			c.Close()
			answer <- struct{}{}
		}},
		{"refused message", func(c client) {
			c.ask(t, "RCPT TO:<ok@example.org>", "DATA")
			full()
			fmt.Fprint(c, "bare\n\r\n.\r\n")
			c.hear(t)
		}},
	} {
		t.Run(end.name, func(t *testing.T) {
			c := dial(t, s)
			c.hear(t)
			if got := c.ask(t, "EHLO x", "MAIL FROM:<>"); got != "250 2.1.0 sender ok" {
				t.Fatalf("MAIL: %q", got)
			}
			end.do(c)
			free(t)
		})
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := underway(s); n > 0 {
		t.Errorf("%d are under way at the end", n)
	}
}

// underway is the number of keys that the first rate counts transactions of.
func underway(s *Server) int {
	rs := s.listeners[0].rates
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return len(rs.list[0].underway)
}

// What a client announces is taken until it comes, so that messages that come
// side by side are no more than the rate, and given back if they do not come.
func TestBytesSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // no time passes
		s := testServer(t, testBackends, "protocol = 'smtp'\n[[listener.rate]]\nby = 'client'\nbytes = 100\n")
		t.Cleanup(s.cancel)
		var d [2]*dialog
		for i := range d {
			d[i] = s.listeners[0].dialog(backends.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:1")}, "test")
			d[i].command("EHLO x")
		}
		for i, step := range []struct {
			d    *dialog
			say  string
			want int
		}{
			{d[0], "MAIL FROM:<> SIZE=70", 250},
			{d[1], "MAIL FROM:<> SIZE=31", 450},
			{d[1], "MAIL FROM:<> SIZE=30", 250},
			{d[0], "RSET", 250},
			{d[0], "MAIL FROM:<> SIZE=71", 450},
			{d[0], "MAIL FROM:<> SIZE=70", 250},
			{d[1], "EHLO x", 250},
			{d[1], "MAIL FROM:<> SIZE=31", 450},
			{d[1], "MAIL FROM:<> SIZE=30", 250},
		} {
			if r, _ := step.d.command(step.say); r.Code != step.want {
				t.Errorf("step %d: %s gets %v, want %d", i, step.say, r, step.want)
			}
		}
		// What comes is all that counts in the end.
		d[0].tx.message = &message{size: 50}
		d[0].rates.leave(d[0].endMessage())
		for size, want := range map[int]int{21: 450, 20: 250} {
			if r, _ := d[0].command(fmt.Sprintf("MAIL FROM:<> SIZE=%d", size)); r.Code != want {
				t.Errorf("SIZE=%d: %v, want %d", size, r, want)
			}
			d[0].command("RSET")
		}
	})
}

// A message counts with the octets that came, also when it came to no end.
func TestBytesOfHalfAMessage(t *testing.T) {
	d := rateDialog(t, "by = 'client'\nbytes = 10\n")
	server := testServer(t, testBackends, "protocol = 'smtp'\n")
	for _, line := range []string{"MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA"} {
		d.command(line)
	}
	if err := server.take(d, io.MultiReader(strings.NewReader("half a message"), lostReader{}), server.log); err != io.ErrUnexpectedEOF {
		t.Fatal(err)
	}
	if r, _ := d.command("MAIL FROM:<>"); r.Code != 450 {
		t.Errorf("the next one: %v", r)
	}
}

type lostReader struct{}

func (lostReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestClientNetworks(t *testing.T) {
	for client, want := range map[string]string{
		"192.0.2.77":        "192.0.0.0/16",
		"::ffff:192.0.2.77": "192.0.0.0/16",
		"2001:db8:1:2:3::1": "2001:db8:1::/48",
		"fe80::1%eth0":      "fe80::/48",
	} {
		r := rate{RateConfig: RateConfig{IPv4Prefix: 16, IPv6Prefix: 48}}
		if got := r.network(netip.MustParseAddr(client)); got != want {
			t.Errorf("%s: got %s, want %s", client, got, want)
		}
	}
	if got := (&rate{}).network(netip.Addr{}); got != "" {
		t.Errorf("no address: %q", got)
	}
}

// A client that has all answers goes on, also while a backend is still at work
// on the message.
func TestAtOnceEndsWithTheAnswers(t *testing.T) {
	ended := make(chan struct{})
	all := map[string]backends.Backend{"slow": noEditor{func(_ context.Context, tx *backends.DataContext) error {
		tx.SetAll(backends.Delivered)
		<-ended
		return nil
	}}}
	for _, protocol := range []string{"smtp", "lmtp"} {
		t.Run(protocol, func(t *testing.T) {
			s := testServer(t, all, "protocol = '"+protocol+"'\n[[listener.rate]]\nby = 'client'\nat_once = 1\n[listener.routes]\n'*' = ['slow']\n")
			c := dialServer(t, s)
			defer func() { ended <- struct{}{} }()
			c.hear(t)
			c.ask(t, hello[protocol]+" x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA")
			io.WriteString(c, ".\r\n")
			c.hear(t)
			if got := c.ask(t, "MAIL FROM:<>"); got != "250 2.1.0 sender ok" {
				t.Errorf("after the answers: %q", got)
			}
		})
	}
}
