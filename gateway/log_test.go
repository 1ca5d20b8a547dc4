package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// lockedBuffer is a log that is written from several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

// One grep for the transaction's ID tells the story of each recipient; what
// strangers send cannot forge a line; nothing of the message is logged.
func TestLogTellsEachRecipient(t *testing.T) {
	var log lockedBuffer
	s := testServer(t, testBackends, "protocol = 'lmtp'\nxforward = ['127.0.0.1']\n")
	s.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "LHLO x", "XFORWARD ADDR=192.0.2.9 HELO=h+0Ad IDENT=4F3A2C", "MAIL FROM:<sender@example.net>",
		"RCPT TO:<ok@example.org>", "RCPT TO:<perm@example.org>", "RCPT TO:<error@example.org>", "RCPT TO:<nobody>")
	c.ask(t, "NOOP \x1b[31m\x00 level=ERROR", "DATA")
	io.WriteString(c, "Secret: 42\r\n\r\nsecret body\r\n.\r\n")
	for range 3 {
		c.hear(t)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	text := log.String()
	var id string
	for line := range strings.Lines(text) {
		if _, rest, ok := strings.Cut(line, "msg=received"); ok {
			_, rest, _ = strings.Cut(rest, "tx=")
			id, _, _ = strings.Cut(rest, " ")
		}
	}
	for _, want := range []string{
		"msg=received session=* listener=test peer=* tx=ID ident=4F3A2C from=sender@example.net size=27 recipients=3 protocol=LMTP helo=x client_name=\"\" client_addr=192.0.2.9 client_helo=h?d",
		"msg=status session=* listener=test peer=* tx=ID ident=4F3A2C from=sender@example.net to=ok@example.org backend=verdict code=250 enhanced=2.0.0 text=delivered delay=* wait=*",
		"msg=refused session=* listener=test peer=* tx=ID ident=4F3A2C from=sender@example.net command=\"RCPT TO:<nobody>\" reply=",
		"to=perm@example.org backend=verdict code=550 enhanced=5.1.1 text=\"no such user\"",
		"to=error@example.org backend=verdict code=451 enhanced=4.3.0 text=\"try again later\"",
		"msg=backend session=* listener=test peer=* tx=ID ident=4F3A2C from=sender@example.net backend=verdict event=failure error=\"open /etc/secret: permission denied\"",
	} {
		found := false
		for line := range strings.Lines(text) {
			found = found || matches(line, strings.ReplaceAll(want, "tx=ID", "tx="+id))
		}
		if !found {
			t.Errorf("no line with %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, "secret body") || strings.Contains(text, "Secret: 42") || strings.ContainsAny(text, "\x1b\x00") {
		t.Errorf("the log has what it must not have:\n%s", text)
	}
}

// The one reply of SMTP is in the log before the client has it, where it is not what
// the recipients have.
func TestLogTellsTheReply(t *testing.T) {
	for _, test := range []struct{ protocol, to, reply, want string }{
		{"smtp", "ok temp perm", "450 4.2.1 mailbox busy", `code=450 enhanced=4.2.1 text="mailbox busy"`},
		{"smtp", "ok perm", "550 5.1.1 no such user", `code=550 enhanced=5.1.1 text="no such user"`},
		{"smtp", "custom", "250 2.6.0 queued as 12345", `code=250 enhanced=2.6.0 text="queued as 12345"`},
		{"smtp", "ok ok2", "250 2.0.0 delivered", ""},
		{"smtp", "perm", "550 5.1.1 no such user", ""},
		{"lmtp", "perm ok", "550 5.1.1 <perm@example.org> no such user", ""},
	} {
		t.Run(test.protocol+" "+test.to, func(t *testing.T) {
			var log lockedBuffer
			s := testServer(t, testBackends, "protocol = '"+test.protocol+"'\n")
			s.log = slog.New(slog.NewTextHandler(&log, nil))
			c := dialServer(t, s)
			c.hear(t)
			c.ask(t, map[string]string{"smtp": "EHLO x", "lmtp": "LHLO x"}[test.protocol], "MAIL FROM:<sender@example.net>")
			for to := range strings.FieldsSeq(test.to) {
				c.ask(t, "RCPT TO:<"+to+"@example.org>")
			}
			c.ask(t, "DATA")
			io.WriteString(c, "A: 1\r\n.\r\n")
			if got := c.hear(t); !strings.HasPrefix(got, test.reply+" (") {
				t.Errorf("got the reply %q", got)
			}
			_, line, there := strings.Cut(log.String(), "msg=reply ")
			line, _, _ = strings.Cut(line, "\n")
			if there != (test.want != "") || there && !matches(line, "tx=*from=sender@example.net "+test.want) {
				t.Errorf("want the line %q, got\n%s", test.want, log.String())
			}
		})
	}
}

// A message that the client breaks off is found by the client's name for it, and one
// that the spool cannot take is an error, since it is trouble of our own.
func TestLogOfRefusedMessages(t *testing.T) {
	var log lockedBuffer
	s := testServer(t, testBackends, "protocol = 'lmtp'\nxforward = ['127.0.0.1']\n")
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	s.spool.threshold, s.spool.directory = 0, filepath.Join(t.TempDir(), "none")
	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "LHLO x", "XFORWARD IDENT=4F3A2C", "MAIL FROM:<sender@example.net>", "RCPT TO:<ok@example.org>", "DATA")
	io.WriteString(c, "A: 1\r\n.\r\n")
	c.hear(t)
	c.ask(t, "XFORWARD IDENT=4F3A2D", "MAIL FROM:<sender@example.net>", "RCPT TO:<ok@example.org>", "DATA")
	io.WriteString(c, "A: 1\r\n")
	c.Close()
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	text := log.String()
	for _, want := range []string{
		"level=ERROR msg=refused session=* listener=test peer=* tx=* ident=4F3A2C from=sender@example.net reply=\"451 4.3.0 try again later\" reason=\"spool: open ",
		"level=INFO msg=refused session=* listener=test peer=* tx=* ident=4F3A2D from=sender@example.net reason=\"the message is incomplete\" error=",
	} {
		if !slices.ContainsFunc(slices.Collect(strings.Lines(text)), func(line string) bool { return matches(line, want) }) {
			t.Errorf("no line with %s in\n%s", want, text)
		}
	}
}

// matches reports whether line has want in it, where * stands for a value.
func matches(line, want string) bool {
	for part := range strings.SplitSeq(want, "*") {
		_, rest, ok := strings.Cut(line, part)
		if !ok {
			return false
		}
		line = rest
	}
	return true
}

// An answer that is none is 451 to the client, and the log has it as it was.
func TestLogOfNonsense(t *testing.T) {
	var log lockedBuffer
	s := chainServer(t, backends.Func(byLocalPart))
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	deliver(t, s, "to:greeting@x.example")
	if text := log.String(); !strings.Contains(text, `event=ignored to=greeting@x.example status="354  go ahead" reason="it is no answer to a message, so that it becomes 451`) {
		t.Errorf("got\n%s", text)
	}
}

// The log tells who has diverted a recipient, and where to.
func TestLogTellsDiversions(t *testing.T) {
	all := map[string]backends.Backend{
		"filter": backends.Func(func(_ context.Context, tx *backends.DataContext) error { return tx.Divert(0, "quarantine") }),
		"store":  backends.Func(func(_ context.Context, tx *backends.DataContext) error { tx.SetAll(backends.Delivered); return nil }),
	}
	c := testConfig(t, all, "protocol = 'lmtp'\n[listener.routes]\n'*' = ['filter', 'store']\n[named_routes]\nquarantine = ['store']\n")
	var log lockedBuffer
	s, err := New(c, all, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	deliver(t, s, "to:spam@x.example", "to:ham@x.example")
	for line := range strings.Lines(log.String()) {
		spam := strings.Contains(line, "to=spam@x.example")
		if strings.Contains(line, "msg=status") && strings.HasSuffix(line, " route=quarantine diverted_by=filter\n") != spam {
			t.Errorf("diverted is spam@x.example, the log has\n%s", line)
		}
	}
	if n := strings.Count(log.String(), "diverted_by"); n != 1 {
		t.Errorf("%d are told to be diverted, want 1\n%s", n, log.String())
	}
}

// The log tells of each recipient how the message that has left differs from
// the one that came.
func TestLogTellsEdits(t *testing.T) {
	relay := capable{backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		d := backends.NewDigester()
		if _, err := io.Copy(d, tx.Body); err != nil {
			return err
		}
		tx.Wrote(d.Digest())
		tx.SetAll(backends.Delivered)
		return nil
	}), backends.Capabilities{Digest: true}}
	edit := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		return errors.Join(tx.RemoveField(0), tx.AddField(0, "X: 1"), tx.AddField(9, "X: 2"))
	})
	replace := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		return tx.ReplaceMessage(strings.NewReader("A: 1\r\n\r\nanother body\r\n"))
	})
	for _, test := range []struct {
		chain []backends.Backend
		want  string
	}{
		{[]backends.Backend{relay}, "body=unchanged header=+0-0"},
		{[]backends.Backend{edit, relay}, "body=unchanged header=+2-1"},
		{[]backends.Backend{replace, edit, relay}, "body=changed header=+2-1"},
		{[]backends.Backend{replace, relay}, "body=changed header=+0-0"},
	} {
		var log lockedBuffer
		s := chainServer(t, test.chain...)
		s.log = slog.New(slog.NewTextHandler(&log, nil))
		d := begin(t, s, "to:a@example.org", "to:b@example.org")
		d.all()
		for _, to := range []string{"a", "b"} {
			if want := "to=" + to + "@example.org .* code=250 .* " + regexp.QuoteMeta(test.want); !regexp.MustCompile(want).MatchString(log.String()) {
				t.Errorf("%s is not in\n%s", want, log.String())
			}
		}
	}
}

// writes are what a log has written, write by write.
type writes chan string

func (w writes) Write(p []byte) (int, error) {
	w <- string(p)
	return len(p), nil
}

// What the log tells of a transaction goes out at once, and the client hears of
// it afterwards.
func TestLogOfTransactionIsOneWrite(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		log := make(writes, 10)
		s := testServer(t, testBackends, "protocol = 'lmtp'\n")
		s.log = NewLogger(LogConfig{Level: "info", Format: format}, log)
		s.log.Handler().(*logHandler).lines.longest = time.Hour
		c := dialServer(t, s)
		c.hear(t)
		c.ask(t, "LHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "RCPT TO:<perm@example.org>", "DATA")
		io.WriteString(c, ".\r\n")
		c.hear(t)
		if len(log) == 0 {
			t.Fatal("the client has its first answer, and the log has nothing")
		}
		text := <-log
		if n := strings.Count(text, "\n"); n != 3 || !strings.Contains(text, "received") || strings.Count(text, "status") != 2 {
			t.Errorf("%s: %d lines at once, want that received and two of status, in\n%s", format, n, text)
		}
		if c.hear(t); len(log) > 0 {
			t.Errorf("%s: more is written:\n%s", format, <-log)
		}
	}
}

// No line waits for a backend.
func TestLogOfTransactionDoesNotWait(t *testing.T) {
	log := make(writes, 10)
	received := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		if text := <-log; !strings.Contains(text, "msg=received") {
			t.Errorf("got %q, want the line received", text)
		}
		tx.SetAll(backends.Delivered)
		return nil
	})
	s := testServer(t, map[string]backends.Backend{"received": received}, "protocol = 'lmtp'\n[listener.routes]\n'*' = ['received']\n")
	s.log = NewLogger(LogConfig{Level: "info"}, log)
	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "LHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA", ".")
}

// Lines stay in order, and are not held without bound.
func TestLogLines(t *testing.T) {
	log := make(writes, 100)
	logger := NewLogger(LogConfig{Level: "info"}, log).With("listener", "lmtp")
	logger.Handler().(*logHandler).lines.longest = time.Hour
	logTogether(logger, time.Now(), "received", slog.String("to", "a"))
	logger.Debug("nothing")
	logger.Warn("backend", "to", "b")
	logTogether(logger, time.Now(), "status", slog.String("to", "c"))
	flushLog(logger)
	flushLog(logger)
	var lines []string
	for range 2 {
		for line := range strings.Lines(<-log) {
			_, line, _ = strings.Cut(line, " ")
			lines = append(lines, line)
		}
	}
	if got, want := strings.Join(lines, ""), "level=INFO msg=received listener=lmtp to=a\nlevel=WARN msg=backend listener=lmtp to=b\nlevel=INFO msg=status listener=lmtp to=c\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for range mostHeld / 100 {
		logTogether(logger, time.Now(), "received", slog.String("to", strings.Repeat("x", 100)))
	}
	if n := len(<-log); n < mostHeld || n > mostHeld+1000 {
		t.Errorf("%d octets waited, want about %d", n, mostHeld)
	}
}

// Whoever has flushed the log finds all of his lines written, in order, even if
// somebody else writes at that moment.
func TestLogIsFlushedByMany(t *testing.T) {
	written := lastNumbers{last: map[int]int{}}
	logger := NewLogger(LogConfig{Level: "info"}, &written)
	var all sync.WaitGroup
	for writer := range 8 {
		all.Go(func() {
			for n := 1; n <= 300; n += 3 {
				for i := n; i < n+3; i++ {
					logTogether(logger, time.Now(), "status", slog.Int("writer", writer), slog.Int("n", i))
				}
				if flushLog(logger); written.of(writer) != n+2 {
					t.Errorf("writer %d has flushed line %d, written is %d", writer, n+2, written.of(writer))
				}
			}
		})
	}
	all.Wait()
	if len(written.disorder) > 0 {
		t.Errorf("out of order: %q", written.disorder)
	}
}

// lastNumbers takes lines that end in writer=N n=N, and knows the last number of each.
type lastNumbers struct {
	mu       sync.Mutex
	last     map[int]int
	disorder []string
}

func (l *lastNumbers) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(string(p)) {
		var writer, n int
		_, numbers, _ := strings.Cut(line, "writer=")
		if _, err := fmt.Sscanf(numbers, "%d n=%d\n", &writer, &n); err != nil || n != l.last[writer]+1 {
			l.disorder = append(l.disorder, line)
		}
		l.last[writer] = n
	}
	return len(p), nil
}

func (l *lastNumbers) of(writer int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last[writer]
}
