package gateway

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// A session goes on although a call that has given all answers does not return,
// as often as that happens, and ends once.
func TestSessionGoesOnBesideItsCalls(t *testing.T) {
	for _, last := range []string{"QUIT", "nothing", "shutdown"} {
		t.Run(last, func(t *testing.T) {
			release := make(chan struct{})
			defer close(release)
			dawdles := noEditor{func(_ context.Context, tx *backends.DataContext) error {
				tx.SetAll(backends.Delivered)
				<-release
				return nil
			}}
			s := testServer(t, map[string]backends.Backend{"dawdles": dawdles}, "protocol = 'lmtp'\n[listener.limits]\nconnections = 1\n[listener.routes]\n'*' = ['dawdles']\n")
			c := dialServer(t, s)
			c.hear(t)
			c.ask(t, "LHLO x")
			message := "MAIL FROM:<>\r\nRCPT TO:<a@x.example>\r\nDATA\r\n"
			for range 3 {
				io.WriteString(c, message)
				for range 3 {
					c.hear(t)
				}
				// The client need not wait for the answers.
				io.WriteString(c, "A: 1\r\n.\r\n"+message)
				for _, want := range []string{"250 2.0.0 <a@x.example> delivered (ID)", "250 2.1.0 sender ok", "250 2.1.5 recipient ok", "354 end the message with CRLF.CRLF"} {
					if got := c.hear(t); got != want {
						t.Errorf("got %q, want %q", got, want)
					}
				}
				if got, want := c.ask(t, "."), "250 2.0.0 <a@x.example> delivered (ID)"; got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			}
			switch last {
			case "QUIT":
				c.ask(t, "QUIT")
				c.hearEnd(t, "")
			case "nothing":
				c.Close()
			}
			if err := s.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if n := s.listeners[0].port.all; n != 0 {
				t.Errorf("%d sessions are counted at the end", n)
			}
		})
	}
}

// A client that does not read its answers keeps nobody else from his: the call of
// the backend ends, whatever it takes to tell them.
func TestBackendDoesNotWaitForClient(t *testing.T) {
	const recipients = 9000 // whose answers no socket takes at once
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			returned := make(chan struct{})
			one := noEditor{func(_ context.Context, tx *backends.DataContext) error {
				defer close(returned)
				for i := range tx.Envelope.Recipients {
					tx.SetStatus(i, backends.Delivered)
				}
				return nil
			}}
			listener := "protocol = 'lmtp'\n"
			if network == "unix" {
				listener += "address = 'unix:" + t.TempDir() + "/socket'\n"
			}
			listener += "[listener.limits]\nrecipients = 0\n[listener.routes]\n'*' = ['one']\n"
			c := dialServer(t, testServer(t, map[string]backends.Backend{"one": one}, listener))
			c.hear(t)
			c.ask(t, "LHLO x", "MAIL FROM:<>")
			for i := range recipients {
				c.ask(t, fmt.Sprintf("RCPT TO:<%d@%sexample>", i, strings.Repeat("subdomain.", 15)))
			}
			c.ask(t, "DATA")
			io.WriteString(c, ".\r\n")
			select {
			case <-returned:
			case <-time.After(time.Minute):
				t.Fatal("the call waits for the client")
			}
			for range recipients {
				if got := c.hear(t); !strings.HasPrefix(got, "250 2.0.0 ") {
					t.Fatalf("got %q", got)
				}
			}
			c.ask(t, "QUIT")
			c.hearEnd(t, "")
		})
	}
}

// The deadline is told although the backend does not heed it, and the session
// goes on.
func TestDeadlineIsToldBesideTheCall(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	hangs := backends.Func(func(context.Context, *backends.DataContext) error {
		<-release
		return nil
	})
	for _, protocol := range []string{"smtp", "lmtp"} {
		s := testServer(t, map[string]backends.Backend{"hangs": hangs},
			"protocol = '"+protocol+"'\n[listener.limits]\nanswer_timeout = '50ms'\n[listener.routes]\n'*' = ['hangs']\n")
		c := dialServer(t, s)
		c.hear(t)
		c.ask(t, hello[protocol]+" x", "MAIL FROM:<>", "RCPT TO:<a@x.example>", "DATA")
		if got := c.ask(t, "."); !strings.HasPrefix(got, "451 4.4.7 ") {
			t.Errorf("%s: %q", protocol, got)
		}
		if got := c.ask(t, "NOOP"); got != "250 2.0.0 ok" {
			t.Errorf("%s: %q", protocol, got)
		}
	}
}

// A bug in what tells the answers ends the session, and nothing hangs.
func TestPanicWhileTelling(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'lmtp'\n")
	var log lockedBuffer
	s.log = slog.New(panicsAt{slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}), "S", "250 2.0.0 <ok@example.org>"})
	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "LHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA")
	io.WriteString(c, ".\r\n")
	c.hearEnd(t, "")
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "panic: a bug") || !strings.Contains(log.String(), "sayKnown") {
		t.Errorf("the log has not the panic:\n%s", log.String())
	}
}

// panicsAt is a log that cannot take an attribute that begins so.
type panicsAt struct {
	slog.Handler
	key, prefix string
}

func (h panicsAt) Handle(ctx context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == h.key && strings.HasPrefix(a.Value.String(), h.prefix) {
			panic("a bug")
		}
		return true
	})
	return h.Handler.Handle(ctx, r)
}

func (h panicsAt) WithAttrs(attrs []slog.Attr) slog.Handler {
	return panicsAt{h.Handler.WithAttrs(attrs), h.key, h.prefix}
}
