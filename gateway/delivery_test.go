package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// deliver runs one transaction in LMTP through a route of the given backends
// and returns the replies, without the ID.
func deliver(t *testing.T, s *Server, to ...string) []string {
	t.Helper()
	var replies []string
	for r := range begin(t, s, to...).told("lmtp") {
		replies = append(replies, masked(r.String()))
	}
	return replies
}

// begun is a delivery that is carried by another goroutine.
type begun struct {
	*delivery
	news chan struct{} // has an element after answers were given
	back chan struct{} // closed when that goroutine has done its part
}

func carry(t *testing.T, d *delivery) begun {
	t.Helper()
	b := begun{d, make(chan struct{}, 1), make(chan struct{})}
	d.tell = func() {
		select {
		case b.news <- struct{}{}:
		default:
		}
	}
	go func() {
		defer close(b.back)
		d.carry(t.Context())
	}()
	return b
}

// told gives the replies, for which it waits.
func (b begun) told(protocol string) iter.Seq[smtp.Reply] {
	return func(yield func(smtp.Reply) bool) {
		for r := (replies{delivery: b.delivery, protocol: protocol}); !r.over; {
			if reply, known := r.next(); !known {
				<-b.news
			} else if !yield(reply) {
				return
			}
		}
	}
}

// wait waits for the status of recipient i.
func (b begun) wait(i int) backends.Status {
	for {
		if s := b.poll(i); !s.IsZero() {
			return s
		}
		<-b.news
	}
}

// all waits for all statuses.
func (b begun) all() []backends.Status {
	for !b.isAnswered() {
		<-b.news
	}
	return b.answers()
}

// begin begins the delivery of one transaction.
func begin(t *testing.T, s *Server, to ...string) begun {
	t.Helper()
	d := s.listeners[0].dialog(backends.Peer{}, "test")
	for _, line := range append([]string{"LHLO client", "MAIL FROM:<sender@example.net>"}, to...) {
		if address, ok := strings.CutPrefix(line, "to:"); ok {
			line = "RCPT TO:<" + address + ">"
		}
		if r, _ := d.command(line); r.Code != 250 {
			t.Fatalf("%s: %v", line, r)
		}
	}
	delivery, err := s.receive(t.Context(), d, strings.NewReader("A: 1\r\n\r\nbody\r\n"), func() bool { return false }, s.log)
	if err != nil {
		t.Fatal(err)
	}
	return carry(t, delivery)
}

func chainServer(t *testing.T, chain ...backends.Backend) *Server {
	t.Helper()
	all := map[string]backends.Backend{}
	var names []string
	for i, b := range chain {
		name := fmt.Sprintf("backend%d", i)
		all[name] = b
		names = append(names, "'"+name+"'")
	}
	return testServer(t, all, "protocol = 'lmtp'\nunknown_parameters = 'keep'\n[listener.routes]\n'*' = ["+strings.Join(names, ", ")+"]\n")
}

func wantReplies(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("replies:\n got %q\nwant %q", got, want)
	}
}

// A hung backend costs its own recipients a 451, when the listener's budget
// ends, and those that it had decided keep their answer.
func TestDeadlineAnswersTheUndecided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := chainServer(t, backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			tx.SetStatus(1, backends.Delivered)
			<-release // deaf to ctx
			tx.SetStatus(0, backends.Delivered)
			return nil
		}))
		began := time.Now()
		got := deliver(t, s, "to:a@x.example", "to:b@x.example")
		wantReplies(t, got, "451 4.4.7 <a@x.example> not delivered in time, try again later (ID)", "250 2.0.0 <b@x.example> delivered (ID)")
		if waited := time.Since(began); waited != s.listeners[0].Limits.AnswerTimeout {
			t.Errorf("waited %v", waited)
		}
		close(release)
	})
}

// A backend's own timeout ends before the listener's budget, and its error
// is for the undecided.
func TestBackendTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := chainServer(t, backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			<-ctx.Done()
			return ctx.Err()
		}))
		s.backends["backend0"].Timeout = 3 * time.Second
		began := time.Now()
		wantReplies(t, deliver(t, s, "to:a@x.example"), "451 4.4.7 <a@x.example> not delivered in time, try again later (ID)")
		if waited := time.Since(began); waited != 3*time.Second {
			t.Errorf("waited %v", waited)
		}
	})
}

// A started delivery goes on after Deliver returned, beside the next
// backend, and may read the message until it has its status.
func TestStartedDeliveryOutlivesDeliver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			tx.StartDelivery(ctx, 0)
			go func() {
				time.Sleep(time.Second)
				b, err := io.ReadAll(tx.Body)
				tx.SetStatus(0, backends.NewStatus(250, "2.0.0", fmt.Sprintf("read %d octets, %v", len(b), err)))
			}()
			return nil
		})
		var seen atomic.Value
		second := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			seen.Store(fmt.Sprint(tx.Envelope.Recipients))
			tx.SetAll(backends.NoSuchUser)
			return nil
		})
		got := deliver(t, chainServer(t, first, second), "to:a@x.example", "to:b@x.example")
		wantReplies(t, got, "250 2.0.0 <a@x.example> read 14 octets, <nil> (ID)", "550 5.1.1 <b@x.example> no such user (ID)")
		if want := "[{b@x.example []}]"; seen.Load() != want {
			t.Errorf("the second backend saw %v, want %v", seen.Load(), want)
		}
	})
}

// The end of a started delivery's own ctx is a 451, and what comes after it
// does not count.
func TestStartedDeliveryTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := make(chan struct{})
		s := chainServer(t, backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			own, cancel := context.WithTimeout(ctx, time.Second)
			tx.StartDelivery(own, 0)
			go func() {
				defer close(late)
				defer cancel()
				time.Sleep(2 * time.Second)
				tx.SetStatus(0, backends.Delivered)
			}()
			return nil
		}))
		wantReplies(t, deliver(t, s, "to:a@x.example"), "451 4.4.7 <a@x.example> not delivered in time, try again later (ID)")
		<-late
	})
}

// A started delivery without an end of its own ends with the listener's
// budget, and then nothing is kept any more.
func TestForgottenDeliveryEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := chainServer(t, backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			tx.StartDelivery(context.Background(), 0)
			return nil
		}))
		before := s.spool.free.Load()
		wantReplies(t, deliver(t, s, "to:a@x.example"), "451 4.4.7 <a@x.example> not delivered in time, try again later (ID)")
		synctest.Wait()
		if after := s.spool.free.Load(); after != before {
			t.Errorf("the message is still kept: %d of %d octets are free", after, before)
		}
	})
}

// Recipients of one route share a transaction to its first backend, and the
// routes run side by side: each waits here until the other is under way.
func TestRoutesRunSideBySide(t *testing.T) {
	var meeting sync.WaitGroup
	meeting.Add(2)
	var calls atomic.Int32
	meet := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		calls.Add(1)
		meeting.Done()
		meeting.Wait()
		tx.SetAll(backends.NewStatus(250, "2.0.0", fmt.Sprint(len(tx.Envelope.Recipients), " recipients")))
		return nil
	})
	s := testServer(t, map[string]backends.Backend{"meet": meet, "pass": testBackends["pass"]},
		"protocol = 'lmtp'\n[listener.routes]\n'@x.example' = ['meet']\n'user@x.example' = ['meet']\n'@y.example' = ['pass', 'meet']\n")
	got := deliver(t, s, "to:a@x.example", "to:b@y.example", "to:user@x.example")
	wantReplies(t, got, "250 2.0.0 <a@x.example> 2 recipients (ID)", "250 2.0.0 <b@y.example> 1 recipients (ID)", "250 2.0.0 <user@x.example> 2 recipients (ID)")
	if n := calls.Load(); n != 2 {
		t.Errorf("%d transactions, want 2", n)
	}
}

// Edits count only when Deliver returned nil, and all of them or none.
func TestEditsAllOrNone(t *testing.T) {
	edit := func(tx *backends.DataContext) error {
		return errors.Join(tx.SetSender("new@example.net"), tx.AddField(0, "X-Tag: seen"), tx.Redirect(0, "new@x.example"))
	}
	show := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		b, err := io.ReadAll(tx.Body)
		if err != nil {
			return err
		}
		for i, r := range tx.Envelope.Recipients {
			tx.SetStatus(i, backends.NewStatus(250, "2.0.0", fmt.Sprintf("%s to %s %s: %q", tx.Envelope.Sender, r.Address, r.Params, b)))
		}
		return nil
	})
	for _, test := range []struct {
		name   string
		filter backends.Func
		want   string
	}{
		{"nothing", func(context.Context, *backends.DataContext) error { return nil },
			`250 2.0.0 <a@x.example> sender@example.net to a@x.example [NOTIFY=NEVER]: "A: 1\r\n\r\nbody\r\n" (ID)`},
		{"all", func(_ context.Context, tx *backends.DataContext) error { return edit(tx) },
			`250 2.0.0 <a@x.example> new@example.net to new@x.example [NOTIFY=NEVER]: "X-Tag: seen\r\nA: 1\r\n\r\nbody\r\n" (ID)`},
		{"null sender", func(_ context.Context, tx *backends.DataContext) error { return tx.SetSender("") },
			`250 2.0.0 <a@x.example>  to a@x.example [NOTIFY=NEVER]: "A: 1\r\n\r\nbody\r\n" (ID)`},
		{"whole message", func(_ context.Context, tx *backends.DataContext) error {
			return tx.ReplaceMessage(strings.NewReader("B: 2\r\n\r\nnew\r\n"))
		}, `250 2.0.0 <a@x.example> sender@example.net to a@x.example [NOTIFY=NEVER]: "B: 2\r\n\r\nnew\r\n" (ID)`},
		// One impossible edit, and nothing goes on.
		{"no such field", func(_ context.Context, tx *backends.DataContext) error {
			return errors.Join(edit(tx), tx.RemoveField(7))
		},
			"451 4.3.0 <a@x.example> try again later (ID)"},
		{"bad address", func(_ context.Context, tx *backends.DataContext) error {
			return errors.Join(edit(tx), tx.Redirect(0, "x@y.example> NOTIFY=NEVER"))
		}, "451 4.3.0 <a@x.example> try again later (ID)"},
		{"source route", func(_ context.Context, tx *backends.DataContext) error {
			return tx.Redirect(0, "@relay.example:b@x.example")
		},
			"451 4.3.0 <a@x.example> try again later (ID)"},
		{"UTF-8 without SMTPUTF8", func(_ context.Context, tx *backends.DataContext) error { return tx.Redirect(0, "\u00fc@x.example") },
			"451 4.3.0 <a@x.example> try again later (ID)"},
		{"postmaster", func(_ context.Context, tx *backends.DataContext) error { return tx.Redirect(0, "postmaster") },
			`250 2.0.0 <a@x.example> sender@example.net to postmaster [NOTIFY=NEVER]: "A: 1\r\n\r\nbody\r\n" (ID)`},
		{"bad sender", func(_ context.Context, tx *backends.DataContext) error { return tx.SetSender("a@b..example") },
			"451 4.3.0 <a@x.example> try again later (ID)"},
		{"bare LF", func(_ context.Context, tx *backends.DataContext) error {
			return tx.ReplaceMessage(strings.NewReader("B: 2\n\nnew\n"))
		}, "451 4.3.0 <a@x.example> try again later (ID)"},
		{"an error after the edits", func(_ context.Context, tx *backends.DataContext) error {
			return errors.Join(edit(tx), errors.New("oops"))
		},
			"451 4.3.0 <a@x.example> try again later (ID)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			wantReplies(t, deliver(t, chainServer(t, test.filter, show), "RCPT TO:<a@x.example> NOTIFY=NEVER"), test.want)
		})
	}
}

// The parameters of a sender are those of MAIL but for what tells of the message, in
// the rest of the route and in others.
func TestEditsOfSenderParams(t *testing.T) {
	show := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		tx.SetAll(backends.NewStatus(250, "2.0.0", strings.Join(tx.Envelope.Params, " ")))
		return nil
	})
	const mail = "MAIL FROM:<sender@example.net> SIZE=5 RET=FULL BODY=8BITMIME ENVID=e"
	for _, test := range []struct {
		mail   string
		params backends.Params
		want   string // "" is an edit that cannot be made
	}{
		{mail, backends.Params{"RET=HDRS", "AUTH=<>"}, "SIZE=5 BODY=8BITMIME RET=HDRS AUTH=<>"},
		{mail, nil, "SIZE=5 BODY=8BITMIME"},
		{mail, backends.Params{"SIZE=5", "RET=FULL", "BODY=8BITMIME", "ENVID=e"}, "SIZE=5 BODY=8BITMIME RET=FULL ENVID=e"},
		{mail, backends.Params{"X-NEW=1"}, "SIZE=5 BODY=8BITMIME X-NEW=1"},
		{mail + " SMTPUTF8", backends.Params{"X-NEW=\u00fc"}, "SIZE=5 BODY=8BITMIME SMTPUTF8 X-NEW=\u00fc"},
		{mail, backends.Params{"X-NEW=\u00fc"}, ""},
		{mail, backends.Params{"RET=ALL"}, ""},
		{mail, backends.Params{"RET=FULL", "ret=HDRS"}, ""},
		{mail, backends.Params{"ENVID=+0D+0A"}, ""},
		{mail, backends.Params{"AUTH=+"}, ""},
		{mail, backends.Params{"NOTIFY=NEVER"}, ""},
		{mail, backends.Params{"!"}, ""},
	} {
		edits := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			return errors.Join(tx.SetSenderParams(test.params), tx.Divert(1, "named"))
		})
		s := testServer(t, map[string]backends.Backend{"edits": edits, "show": show},
			"protocol = 'lmtp'\nunknown_parameters = 'keep'\n[listener.routes]\n'*' = ['edits', 'show']\n[named_routes]\nnamed = ['show']\n")
		want := "250 2.0.0 <a@x.example> " + backends.NewStatus(250, "2.0.0", test.want).Sanitized().Text + " (ID)"
		if test.want == "" {
			want = "451 4.3.0 <a@x.example> try again later (ID)"
		}
		got := deliver(t, s, "RSET", test.mail, "to:a@x.example", "to:b@x.example")
		wantReplies(t, got, want, strings.Replace(want, "<a@", "<b@", 1))
	}
	// A new sender has the parameters of the old one.
	renames := backends.Func(func(_ context.Context, tx *backends.DataContext) error { return tx.SetSender("new@example.net") })
	wantReplies(t, deliver(t, chainServer(t, renames, show), "RSET", mail, "to:a@x.example"),
		"250 2.0.0 <a@x.example> SIZE=5 RET=FULL BODY=8BITMIME ENVID=e (ID)")
}

// What a backend replaces is bounded, and is given back at the end.
func TestReplacedMessageIsBounded(t *testing.T) {
	s := chainServer(t, backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		return tx.ReplaceMessage(io.LimitReader(endless{}, 1<<30))
	}), backends.Func(byLocalPart))
	s.listeners[0].Limits.MessageSize = 1000
	wantReplies(t, deliver(t, s, "to:a@x.example"), "451 4.3.0 <a@x.example> try again later (ID)")
}

// endless gives lines without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	n := len(p) / 2 * 2
	for i := 0; i < n; i += 2 {
		copy(p[i:], "\r\n")
	}
	return n, nil
}

// A status for a recipient that is decided, does not exist, or went on to the
// next backend changes nothing.
func TestOnlyTheFirstStatusCounts(t *testing.T) {
	returned, late := make(chan *backends.DataContext, 1), make(chan struct{})
	first := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		tx.SetStatus(0, backends.Delivered)
		tx.SetStatus(0, backends.NoSuchUser)
		tx.SetStatus(7, backends.NoSuchUser)
		tx.SetStatus(-1, backends.NoSuchUser)
		tx.SetStatus(1, backends.Status{})
		returned <- tx
		return nil
	})
	second := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		(<-returned).SetStatus(1, backends.NoSuchUser)
		close(late)
		tx.SetAll(backends.NewStatus(450, "4.2.1", "second"))
		return nil
	})
	got := deliver(t, chainServer(t, first, second), "to:a@x.example", "to:b@x.example")
	<-late
	wantReplies(t, got, "250 2.0.0 <a@x.example> delivered (ID)", "450 4.2.1 <b@x.example> second (ID)")
}

// A bug of the gateway's own is a 451 for those that it concerns.
func TestBugIsTemporary(t *testing.T) {
	var s *Server
	s = chainServer(t, backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
		delete(s.backends, "backend1")
		return byLocalPart(ctx, tx)
	}), backends.Func(byLocalPart))
	wantReplies(t, deliver(t, s, "to:ok@x.example", "to:silent@x.example"),
		"250 2.0.0 <ok@x.example> delivered (ID)", "451 4.3.0 <silent@x.example> try again later (ID)")
}

// Once nobody waits for the answer, no backend is called any more.
func TestNoBackendIsCalledAfterTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			<-ctx.Done()
			return nil // it passes its recipients on
		})
		var called atomic.Bool
		s := chainServer(t, slow, backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			called.Store(true)
			tx.SetAll(backends.Delivered)
			return nil
		}))
		s.backends["backend0"].Timeout = 24 * time.Hour
		wantReplies(t, deliver(t, s, "to:a@x.example"), "451 4.4.7 <a@x.example> not delivered in time, try again later (ID)")
		synctest.Wait()
		if called.Load() {
			t.Error("the second backend was called")
		}
	})
}

// The log names the backend that hung, and tells a late answer; it does not
// tell the deadline twice.
func TestLogOfTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := chainServer(t, backends.Func(byLocalPart), backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			<-ctx.Done()
			tx.SetStatus(0, backends.TimedOut)
			<-release
			tx.SetStatus(1, backends.Delivered)
			return ctx.Err()
		}))
		var log lockedBuffer
		s.log = slog.New(slog.NewTextHandler(&log, nil))
		deliver(t, s, "to:silent-1@x.example", "to:silent-2@x.example")
		close(release)
		synctest.Wait()
		text := log.String()
		for _, want := range []string{
			"to=silent-1@x.example backend=backend1 code=451 enhanced=4.4.7",
			"to=silent-2@x.example backend=backend1 code=451 enhanced=4.4.7",
			`backend=backend1 event=ignored to=silent-2@x.example status="250 2.0.0 delivered" reason="the recipient was answered already"`,
		} {
			if strings.Count(text, want) != 1 {
				t.Errorf("not once: %s in\n%s", want, text)
			}
		}
		if n := strings.Count(text, "event=ignored"); n != 1 {
			t.Errorf("%d ignored answers in\n%s", n, text)
		}
	})
}

// What a client is not told of a failure, the log has, even if the error has
// a Status for the client in it.
func TestLogHasTheCause(t *testing.T) {
	for name, test := range map[string]struct {
		deliver backends.Func
		want    string
	}{
		"an error around a status": {func(context.Context, *backends.DataContext) error {
			return fmt.Errorf("ldap at 192.0.2.1: %w", backends.NewStatus(450, "4.2.0", "busy"))
		}, "error=\"ldap at 192.0.2.1: 450 4.2.0 busy\""},
		"the spool, when a message is replaced": {func(_ context.Context, tx *backends.DataContext) error {
			return tx.ReplaceMessage(strings.NewReader(strings.Repeat("x\r\n", 100_000)))
		}, "no such file or directory"},
	} {
		s := chainServer(t, test.deliver)
		s.spool.directory += "/missing"
		s.spool.threshold = chunkSize
		var log lockedBuffer
		s.log = slog.New(slog.NewTextHandler(&log, nil))
		deliver(t, s, "to:a@x.example")
		if !strings.Contains(log.String(), test.want) {
			t.Errorf("%s: no %s in\n%s", name, test.want, log.String())
		}
	}
}

// Answers that are there together are one write, and one wakes nobody before the
// others are there.
func TestAnswersGoOutTogether(t *testing.T) {
	const recipients = 50
	synctest.Test(t, func(t *testing.T) {
		all := map[string]backends.Backend{"all": noEditor{backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			tx.Together(func() {
				for i := range recipients {
					time.Sleep(time.Millisecond) // until somebody waits for the answers
					tx.SetStatus(i, backends.NewStatus(250, "", "ok"))
				}
			})
			return nil
		})}}
		s := testServer(t, all, "protocol = 'lmtp'\n[listener.routes]\n'*' = ['all']\n")
		c := pipe(t, s)
		c.hear(t)
		c.ask(t, "LHLO x", "MAIL FROM:<>")
		for range recipients {
			c.ask(t, "RCPT TO:<a@example.org>")
		}
		c.ask(t, "DATA")
		if _, err := io.WriteString(c, ".\r\n"); err != nil {
			t.Fatal(err)
		}
		first := make([]byte, mostSaid) // a read of a pipe has one write at most
		n, err := c.Conn.Read(first)
		if err != nil || bytes.Count(first[:n], []byte("250 2.0.0 <a@example.org> ok ")) != recipients {
			t.Errorf("got %q, %v, want %d answers", first[:n], err, recipients)
		}
		c.Close()
	})
}
