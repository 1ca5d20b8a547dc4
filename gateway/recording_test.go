package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/record"
)

// recordingOf begins a recording.
func recordingOf(t *testing.T, s *Server, backend string, n int) *Recording {
	t.Helper()
	r, err := s.Record(backend, n)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// wantNoRecordings reports what recordings have left behind.
func wantNoRecordings(t *testing.T, s *Server) {
	t.Helper()
	if c := &s.recordings.copies; c.number != 0 || c.octets != 0 || len(s.recordings.all) != 0 {
		t.Errorf("%d copies of %d octets, %d recordings are left", c.number, c.octets, len(s.recordings.all))
	}
}

// answersOf returns the next record, and what it has of the recipients.
func answersOf(t *testing.T, r *Recording) (*record.Record, string) {
	t.Helper()
	got, err := r.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, a := range got.Answers {
		all = append(all, a.String())
	}
	return got, strings.Join(all, "; ")
}

// A record has what a backend got and said, not what came in or what the client
// was told.
func TestRecord(t *testing.T) {
	var release chan struct{}
	filter := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		tx.SetStatus(0, backends.NoSuchUser)
		tx.SetSMTPResponse(backends.Delivered)
		if err := tx.ReplaceMessage(strings.NewReader("A: 2\r\n\r\nnew\r\n")); err != nil {
			return err
		}
		return tx.Redirect(1, "c@x.example")
	})
	store := backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
		tx.StartDelivery(ctx, 0)
		go func() {
			<-release
			tx.SetStatus(0, backends.Delivered)
		}()
		return nil
	})
	synctest.Test(t, func(t *testing.T) {
		release = make(chan struct{})
		s := chainServer(t, filter, store)
		first, second := recordingOf(t, s, "backend0", 1), recordingOf(t, s, "backend1", 2)
		d := begin(t, s, "to:a@x.example", "to:b@x.example")

		got, answers := answersOf(t, first)
		if want := "550 5.1.1 no such user; next backend"; answers != want || got.Response != backends.Delivered {
			t.Errorf("answers %q, response %v; want %q", answers, got.Response, want)
		}
		if got.ID != d.id || got.Backend != "backend0" || got.Session.HELO != "client" || got.Session.Gateway != "" || got.Envelope.Sender != "sender@example.net" ||
			len(got.Envelope.Recipients) != 2 || string(got.Message) != "A: 1\r\n\r\nbody\r\n" {
			t.Errorf("got %+v", got)
		}
		var text bytes.Buffer
		if err := record.Write(&text, got); err != nil || !strings.Contains(text.String(), "EDIT redirect 1 <c@x.example>\nEDIT message\n|A: 2\n|\n|new\nMESSAGE\n|A: 1\n") {
			t.Errorf("%v\n%s", err, text.String())
		}
		if _, err := first.Next(t.Context()); err != io.EOF {
			t.Errorf("after the last record: %v", err)
		}

		synctest.Wait()
		if len(second.records) != 0 {
			t.Error("it is recorded before it has its answers")
		}
		close(release)
		got, answers = answersOf(t, second)
		if want := "250 2.0.0 delivered"; answers != want || got.Envelope.Recipients[0].Address != "c@x.example" || string(got.Message) != "A: 2\r\n\r\nnew\r\n" {
			t.Errorf("answers %q, %+v; want %q", answers, got, want)
		}
		d.all()
		first.Close()
		second.Close()
		wantNoRecordings(t, s)
	})
}

// A failure is recorded as one, with no edits.
func TestRecordOfFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := chainServer(t, backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			tx.AddField(0, "A: b")
			if tx.Envelope.Recipients[0].Address == "status@x.example" {
				return backends.StorageFull
			}
			return errors.New("no table")
		}))
		r := recordingOf(t, s, "backend0", 2)
		wantReplies(t, deliver(t, s, "to:a@x.example"), "451 4.3.0 <a@x.example> try again later (ID)")
		if got, answers := answersOf(t, r); answers != "failure: no table" || !got.Edits.IsZero() {
			t.Errorf("answers %q, edits %+v", answers, got.Edits)
		}
		deliver(t, s, "to:status@x.example")
		if _, answers := answersOf(t, r); answers != backends.StorageFull.Error() {
			t.Errorf("answers %q", answers)
		}
		r.Close()
		wantNoRecordings(t, s)
	})
}

// Mail does not wait for who records. It is counted what he misses.
func TestRecordDelaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := chainServer(t, backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			tx.SetAll(backends.Delivered)
			return nil
		}))
		r := recordingOf(t, s, "backend0", 1000)
		for range maxCopies + 5 {
			wantReplies(t, deliver(t, s, "to:b@x.example"), "250 2.0.0 <b@x.example> delivered (ID)")
		}
		answersOf(t, r)
		answersOf(t, r) // which gives the first one back
		deliver(t, s, "to:b@x.example")
		large := s.listeners[0].dialog(backends.Peer{}, "test")
		for _, line := range []string{"LHLO client", "MAIL FROM:<>", "RCPT TO:<b@x.example>"} {
			large.command(line)
		}
		d, err := s.receive(t.Context(), large, strings.NewReader(strings.Repeat("0123456789012345\r\n", maxRecorded/18+1)), func() bool { return false }, s.log)
		if err != nil {
			t.Fatal(err)
		}
		carry(t, d).all()
		if got, want := r.Close(), (LeftOut{TooLarge: 1, Dropped: 5}); got != want {
			t.Errorf("left out %+v, want %+v", got, want)
		}
		deliver(t, s, "to:b@x.example")
		wantNoRecordings(t, s)
	})
}

// A recording ends with its ctx, goes on when the configuration is reloaded, and
// is of a backend that gets mail.
func TestRecordingGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := map[string]backends.Backend{"verdict": backends.Func(byLocalPart), "other": backends.Func(byLocalPart)}
		c := testConfig(t, all, "protocol = 'lmtp'\n")
		s, err := New(c, all, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Record("other", 1); err == nil || err.Error() != `no backend "other" stands in a route; want verdict` {
			t.Errorf("a backend without a route: %v", err)
		}
		r := recordingOf(t, s, "verdict", 1)
		next, err := newGeneration(c, all, slog.New(slog.DiscardHandler), "")
		if err != nil {
			t.Fatal(err)
		}
		next.inherit(s.generation)
		s.generation = next
		deliver(t, s, "to:ok@x.example")
		answersOf(t, r)

		forever := recordingOf(t, s, "verdict", 1)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := forever.Next(ctx); err != context.Canceled {
			t.Errorf("at the end of ctx: %v", err)
		}
		r.Close()
		forever.Close()
		wantNoRecordings(t, s)
	})
}

// A bug in who takes notes has nobody get a message twice.
func TestPanicWhileNotesAreTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := shadowServer(t, func(ctx context.Context, tx *backends.DataContext) error {
			time.Sleep(time.Second) // the shadow has spoken, so that the lines are the filter's
			return nil
		}, byName("a"))
		s.log = slog.New(panicsAt{slog.NewTextHandler(log, nil), "same", ""})
		deliveries := 0
		s.backends["store"].Backend = backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			deliveries++
			tx.SetAll(backends.Delivered)
			return nil
		})
		d := begin(t, s, "to:b@x.example")
		<-d.back
		synctest.Wait()
		if !strings.Contains(log.String(), "event=panic") || deliveries != 1 {
			t.Errorf("%d deliveries, want 1, and a panic in\n%s", deliveries, log.String())
		}
	})
}
