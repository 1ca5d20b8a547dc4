package gateway

import (
	"context"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// A BDAT whose line cannot be read is followed by octets that nobody knows
// the number of. None of them may become a command.
func TestLostChunkEndsTheSession(t *testing.T) {
	for _, line := range []string{"BDAT 20 LAST\n", "bdat 20 LAST\r\r\n", " BDAT 20 LAST" + strings.Repeat(" ", 9000) + "\r\n"} {
		c := dialServer(t, testServer(t, testBackends, "protocol = 'smtp'\nchunking = true\n"))
		c.hear(t)
		c.ask(t, "EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>")
		io.WriteString(c, line+"RSET\r\nVRFY smuggled\r\n")
		if got := c.hear(t); got != "421 4.7.0 mx.example.org no telling where the chunk of BDAT ends" {
			t.Errorf("%.20q: %q", line, got)
		}
	}
}

// A chunk that is refused is in the log, and counts as a refusal.
func TestRefusedChunks(t *testing.T) {
	var log lockedBuffer
	s := testServer(t, testBackends, "protocol = 'smtp'\nchunking = true\n[listener.limits]\nmessage_size = 10\nrecipients = 5\n")
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "EHLO x")
	for range 105 {
		if got := c.ask(t, "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "BDAT 20\r\n123456789012345678"); got != "552 5.3.4 message too large" {
			t.Fatalf("got %q", got)
		}
		c.ask(t, "RSET")
	}
	if got := c.ask(t, "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "BDAT 20\r\n123456789012345678"); !strings.HasPrefix(got, "421 ") {
		t.Errorf("one more: %q", got)
	}
	c.hearEnd(t, "")
	if n := strings.Count(log.String(), `command=BDAT reply="552 5.3.4 message too large"`); n != 105 {
		t.Errorf("%d lines in the log", n)
	}
}

// message_timeout is of the whole message, the time between its chunks too.
func TestMessageTimeoutBetweenChunks(t *testing.T) {
	c := dialServer(t, testServer(t, testBackends, "protocol = 'smtp'\nchunking = true\n[listener.limits]\nmessage_timeout = '100ms'\n"))
	c.hear(t)
	c.ask(t, "EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "BDAT 2\r\n")
	c.hearEnd(t, "421 4.4.2 mx.example.org timeout\r\n")
}

// A message that is long in coming leaves memory for the envelopes of others.
func TestMessagesLeaveRoomForEnvelopes(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'smtp'\n")
	const memory = 16 * chunkSize
	s.spool.free.Store(memory)
	s.spool.reserve, s.spool.threshold = memory/4, 1<<20
	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA")
	// As much as is kept in memory, and no more: then it would go to a file.
	io.WriteString(c, strings.Repeat("12345678901234\r\n", 11*chunkSize/16-1))
	for s.spool.free.Load() > 5*chunkSize && t.Context().Err() == nil {
		runtime.Gosched()
	}
	other := dial(t, s)
	other.hear(t)
	if got := other.ask(t, "EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA", "."); got != "250 2.0.0 delivered (ID)" {
		t.Errorf("another client: %q", got)
	}
	if got := c.ask(t, "."); got != "250 2.0.0 delivered (ID)" {
		t.Errorf("the first one: %q", got)
	}
}

// A filter may put a binary message in the place of a binary one.
func TestBinaryMessageIsReplaced(t *testing.T) {
	all := map[string]backends.Backend{
		"copy":    backends.Func(func(_ context.Context, tx *backends.DataContext) error { return tx.ReplaceMessage(tx.Body) }),
		"message": backends.Func(tellMessage),
	}
	c := dialServer(t, testServer(t, all, "protocol = 'smtp'\nchunking = true\n[listener.routes]\n'*' = ['copy', 'message']\n"))
	c.hear(t)
	got := c.ask(t, "EHLO x", "MAIL FROM:<> BODY=BINARYMIME", "RCPT TO:<ok@example.org>", "BDAT 13 LAST\r\nA: 1\r\n\r\na\nb")
	if got != `250 2.0.0 "A: 1\r\n\r\na\nb\r\n" (ID)` {
		t.Errorf("got %q", got)
	}
}
