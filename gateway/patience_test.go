package gateway

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// converseInBubble holds a session with a client at 192.0.2.1 over a pipe. In
// the bubble of synctest time passes when all wait, and exactly.
func converseInBubble(t *testing.T, config string, talk func(t *testing.T, s *Server, c client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := testServer(t, testBackends, "protocol = 'smtp'\n"+config)
		defer s.cancel()
		mine, its := net.Pipe()
		peer := backends.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:1024")}
		c := newConn(s.listeners[0].dialog(peer, "test"), its)
		s.add(c)
		go func() {
			defer s.remove(c)
			c.serve(s.ctx)
		}()
		talk(t, s, client{mine, bufio.NewReader(mine)})
		mine.Close()
		synctest.Wait()
		if len(s.conns) > 0 {
			t.Error("the session has not ended")
		}
	})
}

func TestGreetDelay(t *testing.T) {
	const config = "[listener.limits]\ngreet_delay = '3s'\n"
	converseInBubble(t, config, func(t *testing.T, _ *Server, c client) {
		began := time.Now()
		if got := c.hear(t); got != "220 mx.example.org ESMTP mailgw" || time.Since(began) != 3*time.Second {
			t.Errorf("one who waits hears %q after %v", got, time.Since(began))
		}
		if got := c.ask(t, "EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA", "."); got != "250 2.0.0 delivered (ID)" {
			t.Errorf("mail gets %q", got)
		}
	})
	converseInBubble(t, config, func(t *testing.T, _ *Server, c client) {
		began := time.Now()
		time.Sleep(time.Second)
		if got := c.ask(t, "EHLO x"); got != "554 5.5.1 mx.example.org you spoke before the greeting" || time.Since(began) != time.Second {
			t.Errorf("one who speaks early hears %q after %v", got, time.Since(began))
		}
		if got := c.hear(t); got != "503 5.7.0 no service for you, good bye" {
			t.Errorf("EHLO gets %q", got)
		}
		if got := c.ask(t, "MAIL FROM:<>"); got != "503 5.7.0 no service for you, good bye" {
			t.Errorf("MAIL gets %q", got)
		}
		if got := c.ask(t, "QUIT"); got != "221 2.0.0 mx.example.org good bye" {
			t.Errorf("QUIT gets %q", got)
		}
	})
	for _, proxy := range []string{"xforward", "xclient"} {
		converseInBubble(t, proxy+" = ['192.0.2.1']\n"+config, func(t *testing.T, _ *Server, c client) {
			began := time.Now()
			if c.hear(t); time.Since(began) != 0 {
				t.Errorf("one who may send what %s says waits %v", proxy, time.Since(began))
			}
		})
	}
}

// A client may leave while it is made to wait, and the server may stop.
func TestNobodyHasToWaitForAnotherWhoWaits(t *testing.T) {
	const greet = "[listener.limits]\ngreet_delay = '3s'\n"
	shutDown := func(t *testing.T, s *Server, c client) {
		began := time.Now()
		synctest.Wait() // until the session waits
		go s.Shutdown(t.Context())
		rest, err := io.ReadAll(c)
		if !strings.HasSuffix(string(rest), "421 4.3.2 mx.example.org shutting down\r\n") || err != nil || time.Since(began) != 0 {
			t.Errorf("hears %q, %v after %v", rest, err, time.Since(began))
		}
	}
	converseInBubble(t, greet, shutDown)
	converseInBubble(t, "[listener.limits]\nerror_delay = '3s'\nbad_commands = 0\n", func(t *testing.T, s *Server, c client) {
		c.hear(t)
		for range freeErrors {
			c.ask(t, "FOO")
		}
		io.WriteString(c, "FOO\r\n")
		shutDown(t, s, c)
	})
	converseInBubble(t, greet, func(*testing.T, *Server, client) { synctest.Wait() })
}

func TestErrorDelayGrows(t *testing.T) {
	wants := []time.Duration{0, 0, 0, 0, 0, 1, 2, 4, 8, 10, 10}
	check := func(t *testing.T, c client, wants []time.Duration, lines ...string) {
		t.Helper()
		for i, want := range wants {
			began := time.Now()
			if c.ask(t, lines...); time.Since(began) != want*time.Second {
				t.Errorf("%q %d waits %v, want %v", lines, i, time.Since(began), want*time.Second)
			}
		}
	}
	const config = "[listener.limits]\nbad_commands = 0\nerror_delay = '1s'\n[listener.recipients]\ndeny = ['nobody@example.org']\n"
	converseInBubble(t, config, func(t *testing.T, _ *Server, c client) {
		c.hear(t)
		check(t, c, wants, "FOO")
		check(t, c, []time.Duration{0}, "NOOP")
		// A message makes up for them.
		c.ask(t, "EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA", ".", "MAIL FROM:<>")
		check(t, c, wants, "RCPT TO:<nobody@example.org>")
	})
	// So do messages that nobody gets: the next one waits, and the next chunk.
	converseInBubble(t, config, func(t *testing.T, _ *Server, c client) {
		c.hear(t)
		c.ask(t, "EHLO x")
		check(t, c, slices.Concat([]time.Duration{0}, wants), "MAIL FROM:<>", "RCPT TO:<perm@example.org>", "DATA", ".")
		check(t, c, []time.Duration{10, 0}, "NOOP")
	})
	converseInBubble(t, "chunking = true\n"+strings.Replace(config, "[listener.limits]", "[listener.limits]\nmessage_size = 10", 1), func(t *testing.T, _ *Server, c client) {
		c.hear(t)
		c.ask(t, "EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>")
		check(t, c, wants, "BDAT 12\r\n0123456789")
	})
	for _, proxy := range []string{"xforward", "xclient"} {
		converseInBubble(t, proxy+" = ['192.0.2.1']\n"+config, func(t *testing.T, _ *Server, c client) {
			c.hear(t)
			check(t, c, make([]time.Duration, 20), "FOO")
		})
	}
	converseInBubble(t, "[listener.limits]\nbad_commands = 0\n", func(t *testing.T, _ *Server, c client) {
		c.hear(t)
		check(t, c, make([]time.Duration, 20), "FOO")
	})
	// The session ends when it has to.
	converseInBubble(t, strings.Replace(config, "[listener.limits]", "[listener.limits]\nsession_timeout = '10s'", 1), func(t *testing.T, _ *Server, c client) {
		began := time.Now()
		c.hear(t)
		io.WriteString(c, strings.Repeat("FOO\r\n", 12))
		rest, err := io.ReadAll(c)
		if !strings.HasSuffix(string(rest), "421 4.4.2 mx.example.org timeout\r\n") || err != nil || time.Since(began) != 10*time.Second {
			t.Errorf("hears %q, %v after %v", rest, err, time.Since(began))
		}
	})
}

// With implicit TLS the greeting waits after the handshake, not before it.
func TestGreetDelayAfterTheHandshake(t *testing.T) {
	ca := newIssuer(t)
	certificate := "mode = 'implicit'\ncertificates = ['" + ca.file(t, t.TempDir(), "mx.example") + "']\n"
	for delay, want := range map[string]string{
		"1m":   "554 5.5.1 mx.example.org you spoke before the greeting",
		"10ms": "220 mx.example.org ESMTP mailgw",
	} {
		s := tlsServer(t, "protocol = 'smtp'\nlimits.greet_delay = '"+delay+"'", certificate)
		c, err := dialServer(t, s).secure(t, ca.client("mx.example"))
		if err != nil {
			t.Fatal(err)
		}
		if delay == "1m" {
			io.WriteString(c, "EHLO x\r\n")
		}
		if got := c.hear(t); got != want {
			t.Errorf("greet_delay %s: hears %q, want %q", delay, got, want)
		}
		if delay == "10ms" {
			if got := c.ask(t, "EHLO x", "QUIT"); got != "221 2.0.0 mx.example.org good bye" {
				t.Errorf("then: %q", got)
			}
		}
	}
}

// Who does not wait is found out, also if what it has sent has not been looked
// at when the command comes: it is in a TLS record of its own, or comes while a
// backend is asked.
func TestUnauthorizedPipeliningIsSeenLate(t *testing.T) {
	const hasty = "554 5.5.0 mx.example.org you did not wait for the reply, good bye"
	ca := newIssuer(t)
	certificate := "mode = 'implicit'\ncertificates = ['" + ca.file(t, t.TempDir(), "mx.example") + "']\n"
	for _, test := range []struct{ first, then, want string }{
		{"DATA\r\n", "From: x\r\n.\r\n", hasty},
		{"NOOP\r\n", "NOOP\r\n", hasty},
		{"RCPT TO:<ok@example.org>\r\n", "DATA\r\n", "250 2.1.5 recipient ok"},
		{"DATA\r\n", "", "354 end the message with CRLF.CRLF"},
	} {
		s := tlsServer(t, "protocol = 'smtp'\nunauthorized_pipelining = 'refuse'", certificate)
		plain := dialServer(t, s)
		held := &heldConn{Conn: plain.Conn}
		c, err := client{held, nil}.secure(t, ca.client("mx.example"))
		if err != nil {
			t.Fatal(err)
		}
		c.hear(t)
		c.ask(t, "EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>")
		held.holds = true
		io.WriteString(c, test.first)
		io.WriteString(c, test.then)
		plain.Write(held.octets)
		if got := c.hear(t); got != test.want {
			t.Errorf("%q and %q in two records: %q, want %q", test.first, test.then, got, test.want)
		}
	}

	asked, answer := make(chan struct{}), make(chan struct{})
	all := map[string]backends.Backend{"slow": heloWaiter{backends.Func(byLocalPart), func() {
		asked <- struct{}{}
		<-answer
	}}}
	s := testServer(t, all, "protocol = 'smtp'\nunauthorized_pipelining = 'refuse'\nask = ['slow']\n[listener.routes]\n'*' = ['slow']\n")
	c := dialServer(t, s)
	c.hear(t)
	io.WriteString(c, "EHLO x\r\n")
	<-asked
	io.WriteString(c, "MAIL FROM:<>\r\n")
	answer <- struct{}{}
	if got := c.hear(t); got != hasty {
		t.Errorf("while a backend is asked: %q", got)
	}
}

// A heloWaiter is a backend that takes its time when it is asked about HELO.
type heloWaiter struct {
	backends.Func
	wait func()
}

func (w heloWaiter) CheckHELO(context.Context, *backends.Session) (backends.Status, error) {
	w.wait()
	return backends.Status{}, nil
}

// A heldConn keeps back what is written, so that it can go out at once.
type heldConn struct {
	net.Conn
	holds  bool
	octets []byte
}

func (c *heldConn) Write(p []byte) (int, error) {
	if !c.holds {
		return c.Conn.Write(p)
	}
	c.octets = append(c.octets, p...)
	return len(p), nil
}
