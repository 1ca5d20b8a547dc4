package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/mailgw/mailgw/backends"
)

// What becomes of those whom a backend has not decided when it fails is what
// the operator says. An answer is no failure, whatever its form.
func TestFailurePolicy(t *testing.T) {
	const temporary, answered = "451 4.3.0 <b@x.example> try again later (ID)", "552 5.2.2 <b@x.example> full (ID)"
	const passed, refused = "250 2.0.0 <b@x.example> one field (ID)", "554 5.3.0 <b@x.example> message refused: it could not be processed (ID)"
	failures := map[string]func(ctx context.Context, tx *backends.DataContext) error{
		"error": func(context.Context, *backends.DataContext) error { return errors.New("no such table") },
		"panic": func(context.Context, *backends.DataContext) error { panic("a bug") },
		"deadline": func(ctx context.Context, _ *backends.DataContext) error {
			<-ctx.Done()
			return ctx.Err()
		},
		"success that failed": func(context.Context, *backends.DataContext) error {
			return fmt.Errorf("after %w", backends.Delivered)
		},
		"bad edit": func(_ context.Context, tx *backends.DataContext) error { return tx.RemoveField(7) },
		"bad addition": func(_ context.Context, tx *backends.DataContext) error {
			return tx.AddRecipient(backends.Recipient{Address: "a@b..example"})
		},
		"answer": func(context.Context, *backends.DataContext) error { return backends.NewStatus(552, "5.2.2", "full") },
		"wrapped": func(context.Context, *backends.DataContext) error {
			return fmt.Errorf("quota: %w", backends.NewStatus(552, "5.2.2", "full"))
		},
	}
	delivered := false
	last := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		delivered = true
		if tx.Size != int64(len("A: 1\r\n\r\nbody\r\n")) {
			return fmt.Errorf("%d octets", tx.Size)
		}
		tx.SetAll(backends.NewStatus(250, "2.0.0", "one field"))
		return nil
	})
	for name, fail := range failures {
		for policy, want := range map[string]string{"tempfail": temporary, "pass": passed, "reject": refused} {
			switch {
			case name == "answer" || name == "wrapped":
				want = answered
			case name == "bad addition" && policy == "pass":
				want = temporary // the added one is told of nobody, so that nobody is told a success
			case name == "deadline" && policy == "tempfail":
				want = "451 4.4.7 <b@x.example> not delivered in time, try again later (ID)"
			}
			synctest.Test(t, func(t *testing.T) {
				var log lockedBuffer
				s := chainServer(t, backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
					tx.SetStatus(0, backends.NoSuchUser)
					if err := tx.AddField(0, "X: 1"); err != nil {
						return err
					}
					return fail(ctx, tx)
				}), last)
				s.log = slog.New(slog.NewTextHandler(&log, nil))
				s.backends["backend0"].OnFailure = policy
				s.backends["backend0"].Timeout = 1e9
				delivered = false
				got := deliver(t, s, "to:a@x.example", "to:b@x.example")
				if delivered != (want == passed) {
					t.Errorf("%s, %s: delivered: %t, though the answer is %q", name, policy, delivered, want)
				}
				if decided := "550 5.1.1 <a@x.example> no such user (ID)"; got[0] != decided {
					t.Errorf("%s, %s: %q, want %q", name, policy, got[0], decided)
				}
				if got[1] != want {
					t.Errorf("%s, %s: %q, want %q", name, policy, got[1], want)
				}
				if failed := strings.Count(log.String(), "event=failure"); (failed == 1) != (name != "answer") {
					t.Errorf("%s, %s: logged as a failure %d times", name, policy, failed)
				}
				effect := map[string]string{passed: `effect="they go on to the next backend"`, refused: `effect="they are refused"`}[want]
				if !strings.Contains(log.String(), effect) || strings.Contains(log.String(), "effect=") != (effect != "") {
					t.Errorf("%s, %s: want %q in the log\n%s", name, policy, effect, log.String())
				}
			})
		}
	}
}

// That a spooled message cannot be read is no failure of the backend that wanted
// to: nobody is refused for it, and no backend is left out.
func TestSpoolThatCannotBeReadIsNoFailure(t *testing.T) {
	read := func(_ context.Context, tx *backends.DataContext) error {
		if _, err := io.Copy(io.Discard, tx.Body); err != nil {
			return fmt.Errorf("read the message: %w", err)
		}
		return nil
	}
	edit := func(_ context.Context, tx *backends.DataContext) error { return tx.AddField(0, "X: 1") }
	for name, needs := range map[string]func(context.Context, *backends.DataContext) error{"read": read, "edit": edit} {
		for _, policy := range []string{"tempfail", "pass", "reject"} {
			broken := make(chan struct{})
			s := chainServer(t, backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
				<-broken
				return needs(ctx, tx)
			}), backends.Func(byLocalPart))
			var log lockedBuffer
			s.log = slog.New(slog.NewTextHandler(&log, nil))
			s.spool.threshold, s.spool.directory = 0, t.TempDir()
			s.backends["backend0"].OnFailure = policy
			d := begin(t, s, "to:ok@x.example")
			d.message.file.Close()
			close(broken)
			if got := d.all()[0]; got != backends.TryLater {
				t.Errorf("%s, %s: got %v", name, policy, got)
			}
			if !strings.Contains(log.String(), "event=failure error=") || !strings.Contains(log.String(), "spool: read ") {
				t.Errorf("%s, %s: the log has\n%s", name, policy, log.String())
			}
		}
	}
}

// At the deadline of the transaction nothing is passed on any more.
func TestNothingIsPassedOnTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		called := false
		s := chainServer(t, backends.Func(func(ctx context.Context, _ *backends.DataContext) error {
			<-ctx.Done()
			return ctx.Err()
		}), backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			called = true
			tx.SetAll(backends.Delivered)
			return nil
		}))
		s.backends["backend0"].OnFailure = "pass"
		s.backends["backend0"].Timeout = 24 * 60 * 60 * 1e9
		wantReplies(t, deliver(t, s, "to:a@x.example"), "451 4.4.7 <a@x.example> not delivered in time, try again later (ID)")
		synctest.Wait()
		if called {
			t.Error("the next backend was called")
		}
	})
}

func TestNobodyIsLeftToPassOnTo(t *testing.T) {
	const text = `
[[listener]]
name = "in"
address = "tcp:127.0.0.1:0"
protocol = "lmtp"
routes = { "*" = ["filter", "store"], "x.example" = ["store", "filter"] }
[backend.filter]
plugin = "test"
on_failure = "pass"
[backend.store]
plugin = "test"
on_failure = "retry"
`
	_, err := parseConfig("test.toml", text, []string{"test"})
	if err == nil {
		t.Fatal("the configuration is taken")
	}
	for _, want := range []string{
		`test.toml:9: backend.filter.on_failure: "pass", but it is the last one in the route of "x.example"`,
		`test.toml:12: backend.store.on_failure: want tempfail, pass or reject, found "retry"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in\n%v", want, err)
		}
	}
}
