package gateway

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// A bug in what is made of a client's words ends its session with 421, and
// the log has the stack. The other sessions go on, and all that the session
// held is given back.
func TestPanicEndsItsSessionAlone(t *testing.T) {
	for _, test := range []struct {
		name string
		bug  verb
		said string // before
	}{
		{"in a command", verb{handle: func(*dialog, string) smtp.Reply { panic("a bug") }}, ""},
		{"in a question", verb{handle: func(d *dialog, _ string) smtp.Reply {
			d.ask = func(context.Context) smtp.Reply { panic("a bug") }
			return smtp.Reply{}
		}}, ""},
		{"in a message", verb{then: readMessage, handle: func(d *dialog, _ string) smtp.Reply {
			d.reset() // there is no transaction for it
			return reply(354, "", "go ahead")
		}}, "354 go ahead\r\n"},
		{"in a chunk", verb{then: readChunk, handle: func(d *dialog, _ string) smtp.Reply {
			d.reset()
			return smtp.Reply{}
		}}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			verbs["BUG"] = test.bug
			t.Cleanup(func() { delete(verbs, "BUG") })
			s := testServer(t, testBackends, "protocol = 'smtp'\n")
			var log lockedBuffer
			s.log = slog.New(slog.NewTextHandler(&log, nil))
			free := s.spool.free.Load()

			other := dialServer(t, s)
			other.hear(t)
			other.ask(t, "EHLO other", "MAIL FROM:<>")
			c := dial(t, s)
			c.hear(t)
			c.ask(t, "EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>")
			io.WriteString(c, "NOOP\r\nBUG\r\nNOOP\r\n")
			c.hearEnd(t, "250 2.0.0 ok\r\n"+test.said+"421 4.3.0 mx.example.org internal error\r\n")

			if got := other.ask(t, "RCPT TO:<ok@example.org>"); got != "250 2.1.5 recipient ok" {
				t.Errorf("the other session: %q", got)
			}
			other.ask(t, "QUIT")
			if err := s.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			if text := log.String(); strings.Count(text, "error=\"panic: ") != 1 || !strings.Contains(text, "conn.go:") {
				t.Errorf("no panic and its stack in the log:\n%s", text)
			}
			if l := s.listeners[0]; l.all != 0 || len(l.peers) != 0 {
				t.Errorf("%d sessions are still counted", l.all)
			}
			if now := s.spool.free.Load(); now != free {
				t.Errorf("%d of %d octets are free", now, free)
			}
		})
	}
}

// A bug that shows when the whole message has come leaves it to the session to
// give back what the transaction holds.
func TestPanicAtTheEndOfAMessage(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'smtp'\n[[listener.rate]]\nby = 'client'\nat_once = 1\n")
	free := s.spool.free.Load()
	d := s.listeners[0].dialog(backends.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:1")}, "test")
	for _, line := range []string{"EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>"} {
		d.command(line)
	}
	tx := d.tx
	var lost []*[chunkSize]byte
	func() {
		defer func() { recover() }()
		s.receive(t.Context(), d, strings.NewReader("Subject: x\r\n"), func() bool {
			lost, tx.message.chunks = tx.message.chunks, nil // so that nobody can read it
			return false
		}, s.log)
		t.Error("no panic")
	}()
	tx.message.chunks = lost
	d.reset()
	if now := s.spool.free.Load(); now != free || underway(s) != 0 {
		t.Errorf("%d of %d octets are free, %d transactions under way", now, free, underway(s))
	}
}

// A bug in what becomes of a message, in what logs it say, is told to nobody, and
// leaves nobody without an answer: the session goes on, and is counted once.
func TestPanicInADelivery(t *testing.T) {
	const delivered, later = "250 2.0.0 <a@x.example> delivered (ID)", "451 4.3.0 <a@x.example> try again later (ID)"
	for _, test := range []struct {
		name, at string // lines of the log that panic
		silent   bool   // the backend gives no answer
		message  string
		want     string
	}{
		{"before the calls", "received", false, "A: 1\r\n.\r\n", later},
		{"when there is an answer", "status", false, "A: 1\r\n.\r\n", delivered},
		{"in what answers", "status", true, "A: 1\r\n.\r\n", later},
		{"in what recovers", "status backend", false, "A: 1\r\n.\r\n", delivered},
		{"when a message is refused", "refused", false, "A: 1\n\r\n.\r\n", "550 5.6.0 <a@x.example> message refused: it has a bare CR or LF, see RFC 5321, section 2.3.8 (ID)"},
	} {
		for _, editor := range []bool{false, true} {
			t.Run(test.name, func(t *testing.T) {
				var b backends.Backend = backends.Func(func(_ context.Context, tx *backends.DataContext) error {
					if !test.silent {
						tx.SetAll(backends.Delivered)
					}
					return nil
				})
				if !editor {
					b = noEditor{b.(backends.Func)}
				}
				s := testServer(t, map[string]backends.Backend{"b": b},
					"protocol = 'lmtp'\n[[listener.rate]]\nby = 'sender'\nat_once = 1\n[listener.routes]\n'*' = ['b']\n")
				free := s.spool.free.Load()
				var log lockedBuffer
				s.log = slog.New(panicsOften{slog.NewTextHandler(&log, nil), strings.Fields(test.at)})
				c := dialServer(t, s)
				c.hear(t)
				c.ask(t, "LHLO x", "MAIL FROM:<s@x.example>", "RCPT TO:<a@x.example>", "RCPT TO:<a@x.example>", "DATA")
				io.WriteString(c, test.message)
				for range 2 {
					if got := c.hear(t); got != test.want {
						t.Errorf("got %q, want %q", got, test.want)
					}
				}
				c.ask(t, "QUIT")
				c.hearEnd(t, "")
				if err := s.Shutdown(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n := s.listeners[0].all; n != 0 || underway(s) != 0 || s.spool.free.Load() != free {
					t.Errorf("%d sessions, %d transactions, %d of %d octets", n, underway(s), s.spool.free.Load(), free)
				}
			})
		}
	}
}

// panicsOften is a log that cannot take lines with some messages, but for those of
// the bug itself.
type panicsOften struct {
	slog.Handler
	at []string
}

func (h panicsOften) Handle(ctx context.Context, r slog.Record) error {
	bug := false
	r.Attrs(func(a slog.Attr) bool {
		bug = bug || a.Key == "stack"
		return true
	})
	if !bug && slices.Contains(h.at, r.Message) {
		panic("a bug")
	}
	return h.Handler.Handle(ctx, r)
}

func (h panicsOften) WithAttrs(attrs []slog.Attr) slog.Handler {
	return panicsOften{h.Handler.WithAttrs(attrs), h.at}
}
