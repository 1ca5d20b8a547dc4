package backendtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// take is a backend without fault: it reads the message and takes it for all
// recipients.
func take(ctx context.Context, tx *backends.DataContext) error {
	n, err := io.Copy(io.Discard, tx.Body)
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case n != tx.Size:
		return io.ErrUnexpectedEOF
	}
	tx.SetAll(backends.Delivered)
	return nil
}

// Backends that keep the promises, in different ways.
func TestGoodBackendsPass(t *testing.T) {
	tests := []struct {
		name    string
		options Options
		backend backends.Func
	}{
		{"decides all", Options{Final: true}, take},
		{"decides without the message", Options{Final: true, IgnoresMessage: true},
			func(ctx context.Context, tx *backends.DataContext) error {
				if ctx.Err() == nil {
					tx.SetAll(backends.NewStatus(250, "", "the enhanced code is left out"))
				}
				return ctx.Err()
			}},
		{"passes all on", Options{},
			func(context.Context, *backends.DataContext) error { return nil }},
		{"decides one and passes the others on", Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				_, err := io.Copy(io.Discard, tx.Body)
				if err = errors.Join(err, ctx.Err()); err == nil {
					tx.SetStatus(0, backends.Delivered)
				}
				return err
			}},
		{"delivers beyond the return of Deliver", Options{Final: true},
			func(ctx context.Context, tx *backends.DataContext) error {
				for i := range tx.Envelope.Recipients {
					tx.StartDelivery(ctx, i)
				}
				go func() {
					if err := take(ctx, tx); err != nil && ctx.Err() == nil {
						tx.SetAll(backends.StatusOf(err))
					}
				}()
				return nil
			}},
		{"says 2yz in the form of an error", Options{Final: true},
			func(ctx context.Context, tx *backends.DataContext) error {
				_, err := io.Copy(io.Discard, tx.Body)
				if err = errors.Join(err, ctx.Err()); err == nil {
					err = backends.Delivered
				}
				return err
			}},
		{"edits header and envelope", Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				tx.SetSMTPResponse(backends.Delivered)
				return errors.Join(
					tx.SetSender(""),
					tx.SetSenderParams(append(tx.Envelope.Params, "RET=HDRS")),
					tx.Redirect(0, "other@example.org", `"a b"@[192.0.2.1]`, "postmaster"),
					tx.AddRecipient(backends.Recipient{Address: "archive@example.org"}),
					tx.Divert(0, "quarantine"),
					tx.AddField(1000, "X-Last: yes"),
					tx.AddField(0, "X-First: yes"))
			}},
		{"redirects UTF-8 as it came", Options{Recipients: []string{"\u00fc@example.org"}},
			func(ctx context.Context, tx *backends.DataContext) error {
				return tx.Redirect(0, tx.Envelope.Recipients[0].Address)
			}},
		{"diverts, the last of a route", Options{Final: true},
			func(ctx context.Context, tx *backends.DataContext) error {
				var err error
				for i := range tx.Envelope.Recipients {
					err = errors.Join(err, tx.Divert(i, "quarantine"))
				}
				return err
			}},
		{"replaces the message", Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				return tx.ReplaceMessage(io.MultiReader(strings.NewReader("X-Copy: yes\r\n"), tx.Body))
			}},
	}
	for _, tt := range tests {
		if err := Test(tt.backend, tt.options); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// Every check is reported, with its own faults.
func TestReport(t *testing.T) {
	var failed []string
	checks := 0
	refusesLarge := backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
		if tx.Size > 1<<20 {
			return backends.NewStatus(552, "5.3.4", "too large")
		}
		return take(ctx, tx)
	})
	err := Test(refusesLarge, Options{Report: func(check string, err error) {
		if checks++; err != nil {
			failed = append(failed, check)
		}
	}})
	want := []string{"large message", "large message that breaks off", "context over while a read waits", "context over half-way in a large message"}
	if err == nil || checks != len(transactions)+1 || !slices.Equal(failed, want) {
		t.Errorf("%d checks, failed %q, want %q; %v", checks, failed, want, err)
	}
}

// Backends that break one promise each, and a part of the fault that tells.
func TestBrokenPromisesAreFound(t *testing.T) {
	tests := []struct {
		name    string
		fault   string
		options Options
		backend backends.Func
	}{
		{"always later", `one recipient: recipient 0: "451 4.3.0 try again later", want 2yz`, Options{},
			func(context.Context, *backends.DataContext) error { return backends.TryLater }},
		{"refuses good recipients", `one recipient: recipient 0: "550 5.1.1 no such user", want 2yz`, Options{},
			func(context.Context, *backends.DataContext) error { return backends.NoSuchUser }},
		{"panics", "one recipient: panic: oops", Options{},
			func(context.Context, *backends.DataContext) error { panic("oops") }},
		{"hangs", "one recipient: Deliver did not return within 50ms", Options{Patience: 50 * time.Millisecond},
			func(context.Context, *backends.DataContext) error { <-t.Context().Done(); return nil }},
		{"never ends a delivery", "one recipient: a started delivery did not end within 50ms", Options{Patience: 50 * time.Millisecond},
			func(ctx context.Context, tx *backends.DataContext) error {
				tx.StartDelivery(context.WithoutCancel(ctx), 0)
				return nil
			}},
		{"leaks", "goroutines: ", Options{Patience: time.Second},
			func(ctx context.Context, tx *backends.DataContext) error {
				go func() { <-t.Context().Done() }()
				return take(ctx, tx)
			}},
		{"bears one transaction at a time", `all at once: `, Options{}, oneAtATime()},

		// Statuses.
		{"leaves some out", "many recipients: recipient 1 was left undecided", Options{Final: true},
			func(ctx context.Context, tx *backends.DataContext) error {
				_, err := io.Copy(io.Discard, tx.Body)
				tx.SetStatus(0, backends.StatusOf(errors.Join(err, ctx.Err(), backends.Delivered)))
				return err
			}},
		{"decides one of two that are the same", "the same recipient twice: recipient 0 was left undecided", Options{Final: true},
			func(ctx context.Context, tx *backends.DataContext) error {
				byAddress := map[string]int{}
				for i, r := range tx.Envelope.Recipients {
					byAddress[r.Address] = i
				}
				_, err := io.Copy(io.Discard, tx.Body)
				for _, i := range byAddress {
					tx.SetStatus(i, backends.StatusOf(errors.Join(err, ctx.Err(), backends.Delivered)))
				}
				return err
			}},
		{"decides twice", "is ignored: the recipient has its status already", Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				err := take(ctx, tx)
				tx.SetStatus(0, backends.Delivered)
				return err
			}},
		{"decides one too many", "is ignored: there is no such recipient", Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				err := take(ctx, tx)
				tx.SetStatus(len(tx.Envelope.Recipients), backends.Delivered)
				return err
			}},
		{"gives an empty status", "is ignored: the status is empty", Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				tx.SetStatus(0, backends.Status{})
				return take(ctx, tx)
			}},
		{"starts a delivery twice", "is ignored: the delivery was started already", Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				tx.StartDelivery(ctx, 0)
				tx.StartDelivery(ctx, 0)
				err := take(ctx, tx)
				tx.SetAll(backends.TryLater)
				return err
			}},
		{"decides after the return", "is ignored: Deliver had returned", Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				go func() {
					for tx.Undecided(0) {
						// Deliver is about to return.
					}
					tx.SetStatus(0, backends.Delivered)
				}()
				return nil
			}},
		{"smuggles a line", `status "250 2.0.0 ok\r 250 more" would be sent as`, Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				tx.SetStatus(0, backends.NewStatus(250, "2.0.0", "ok\r\n250 more"))
				return take(ctx, tx)
			}},
		{"returns what is no answer", `status "354 2.0.0 go on" would be sent as "451 4.3.0`, Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				return backends.NewStatus(354, "2.0.0", "go on")
			}},
		{"thanks with a refusal", `SMTP response "550 5.0.0 no" cannot stand for a success`, Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				tx.SetSMTPResponse(backends.NewStatus(550, "5.0.0", "no"))
				return take(ctx, tx)
			}},

		// Trouble.
		{"does not wait for the end of the message", `one recipient: recipient 0: "250 2.0.0 delivered" before the message was read`, Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				tx.SetAll(backends.Delivered)
				return nil
			}},
		{"takes half a message", `message that breaks off: recipient 0: "250 2.0.0 delivered", want no 2yz`, Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				io.Copy(io.Discard, tx.Body)
				if err := ctx.Err(); err != nil {
					return err
				}
				return backends.Delivered
			}},
		{"blames the sender for a broken read", `message that breaks off: recipient 0: "554 5.6.0 broken" for a trouble that is not the message's`, Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				err := take(ctx, tx)
				if errors.Is(err, errUnreadable) {
					err = backends.NewStatus(554, "5.6.0", "broken")
				}
				return err
			}},
		{"passes half a message on", "message that breaks off: edit: a new message in the place of one that could not be read", Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				io.Copy(io.Discard, tx.Body)
				return tx.ReplaceMessage(strings.NewReader("X-Read: yes\r\n"))
			}},
		{"does not look at its context", `context over half-way: recipient 0: "250 2.0.0 delivered", want no 2yz`, Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				return take(context.WithoutCancel(ctx), tx)
			}},
		{"begins when the context is over", `context over at the start: recipient 0: "250 2.0.0 delivered", want no 2yz`, Options{IgnoresMessage: true},
			func(ctx context.Context, tx *backends.DataContext) error {
				tx.SetAll(backends.Delivered)
				return nil
			}},
		{"reads on", "the message was read after the transaction had ended", Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				go func() {
					for readable := true; readable; {
						_, err := tx.Body.Read(make([]byte, 1))
						readable = err == nil || err == io.EOF
					}
				}()
				return nil
			}},

		// Edits.
		{"changes the envelope", "one recipient: the envelope was changed", Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				tx.Envelope.Recipients[0].Address = "changed@example.org"
				return take(ctx, tx)
			}},
		{"removes a field that is not there", "one recipient: edit: there is no header field 3, only 3", Options{},
			func(ctx context.Context, tx *backends.DataContext) error { return tx.RemoveField(3) }},
		{"makes a bad sender", `one recipient: edit: sender: "a@b..example": empty label`, Options{},
			func(ctx context.Context, tx *backends.DataContext) error { return tx.SetSender("a@b..example") }},
		{"makes bad parameters of the sender", "one recipient: edit: parameters of the sender: RET is FULL or HDRS", Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				return tx.SetSenderParams(backends.Params{"RET=ALL"})
			}},
		{"redirects to a bad address", `one recipient: edit: redirect of recipient 0: "a@-b": hyphen`, Options{},
			func(ctx context.Context, tx *backends.DataContext) error { return tx.Redirect(0, "a@-b") }},
		{"redirects ASCII to UTF-8", "one recipient: edit: redirect of recipient 0: \"\u00fc@example.org\": not US-ASCII", Options{},
			func(ctx context.Context, tx *backends.DataContext) error { return tx.Redirect(0, "\u00fc@example.org") }},
		{"adds a bad address", `one recipient: edit: added recipient: "a@b..example"`, Options{}, adds("a@b..example")},
		{"adds bad parameters", `one recipient: edit: parameters of added recipient "a@example.org": bad parameter "!"`, Options{},
			adds("a@example.org", "!")},
		{"adds parameters of UTF-8", `one recipient: edit: parameters of added recipient "a@example.org": not US-ASCII`, Options{},
			adds("a@example.org", "X=\u00fc")},
		{"adds a recipient for nobody", "one recipient: edit: a recipient is added, and no backend follows", Options{Final: true},
			adds("a@example.org")},
		{"diverts one alone", "many recipients: recipient 1 was left undecided", Options{Final: true},
			func(ctx context.Context, tx *backends.DataContext) error { return tx.Divert(0, "quarantine") }},
		{"replaces by bare newlines", "one recipient: edit: new message: bare CR or LF", Options{},
			func(ctx context.Context, tx *backends.DataContext) error {
				return tx.ReplaceMessage(strings.NewReader("Subject: unix\n\n"))
			}},
	}
	for _, tt := range tests {
		err := Test(tt.backend, tt.options)
		if err == nil || !strings.Contains(err.Error(), tt.fault) {
			t.Errorf("%s: got %v\nwant %s", tt.name, err, tt.fault)
		}
	}
}

// A backend that has users of its own is told apart from a broken one.
func TestRefusalOfRecipients(t *testing.T) {
	for _, tt := range []struct {
		name    string
		backend backends.Func
		want    RefusedError
	}{
		{"takes all", take, RefusedError{}},
		{"knows nobody", func(context.Context, *backends.DataContext) error { return backends.NoSuchUser },
			RefusedError{"one@example.org", backends.NoSuchUser}},
		{"knows the first one", func(ctx context.Context, tx *backends.DataContext) error {
			for i, r := range tx.Envelope.Recipients {
				if r.Address != "one@example.org" {
					tx.SetStatus(i, backends.NewStatus(550, "", "who?"))
				}
			}
			return take(ctx, tx)
		}, RefusedError{"two@example.org", backends.NewStatus(550, "", "who?")}},
		{"does not like the message", func(context.Context, *backends.DataContext) error {
			return backends.NewStatus(554, "5.6.0", "bad content")
		}, RefusedError{}},
		{"does not like the null sender", func(ctx context.Context, tx *backends.DataContext) error {
			if tx.Envelope.Sender == "" {
				return backends.NewStatus(550, "5.7.1", "no")
			}
			return take(ctx, tx)
		}, RefusedError{}},
		{"is out of order", func(context.Context, *backends.DataContext) error { return backends.TryLater }, RefusedError{}},
	} {
		var got RefusedError
		if e, ok := errors.AsType[*RefusedError](Test(tt.backend, Options{})); ok {
			got = *e
		}
		if got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// adds returns a backend that takes every message and adds a recipient.
func adds(address string, params ...string) backends.Func {
	return func(ctx context.Context, tx *backends.DataContext) error {
		if err := take(ctx, tx); err != nil {
			return err
		}
		return tx.AddRecipient(backends.Recipient{Address: address, Params: params})
	}
}

// oneAtATime returns a backend that fails while it is busy. It is slow, so that
// it is busy when another transaction comes.
func oneAtATime() backends.Func {
	var busy atomic.Bool
	return func(ctx context.Context, tx *backends.DataContext) error {
		if !busy.CompareAndSwap(false, true) {
			return errors.New("busy")
		}
		defer busy.Store(false)
		time.Sleep(time.Millisecond)
		return take(ctx, tx)
	}
}

// editor announces that it edits the header.
type editor struct{ backends.Func }

func (editor) MayEdit() backends.EditKinds { return backends.EditHeader }

func TestEditsBeyondThoseAnnounced(t *testing.T) {
	edits := editor{func(_ context.Context, tx *backends.DataContext) error {
		return errors.Join(tx.AddField(0, "X: 1"), tx.SetSender(""))
	}}
	err := Test(edits, Options{})
	if want := "one recipient: edit: envelope, but MayEdit announces header"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

// diverter announces that it diverts to a quarantine.
type diverter struct{ backends.Func }

func (diverter) DivertsTo() []string { return []string{"quarantine"} }

func TestDiversionsBeyondThoseAnnounced(t *testing.T) {
	for route, want := range map[string]string{"quarantine": "<nil>", "spam": `one recipient: edit: diversion to "spam", but DivertsTo announces ["quarantine"]`} {
		diverts := diverter{func(_ context.Context, tx *backends.DataContext) error { return tx.Divert(0, route) }}
		if err := Test(diverts, Options{}); !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// All faults come at once, each of them once, whoever else it concerns.
func TestFaultsAreGathered(t *testing.T) {
	err := Test(backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		tx.SetStatus(99, backends.Delivered)
		return backends.NoSuchUser
	}), Options{})
	if err == nil {
		t.Fatal("no fault found")
	}
	for _, want := range []string{
		"\none recipient: recipient 99: ", "\none recipient: recipient 0: ",
		"\nnull sender: recipient 99: ", "\nmessage that breaks off: recipient 0: ",
		"; so 24 more",
	} {
		if got := strings.Count("\n"+err.Error(), want); got != 1 {
			t.Errorf("%d faults %q, want 1, in:\n%v", got, want, err)
		}
	}
}
