package gateway

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
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
