package backends_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// start is a backend that starts the delivery of recipient 0 under ctx.
func start(ctx context.Context) backends.Func {
	return func(_ context.Context, tx *backends.DataContext) error {
		tx.StartDelivery(ctx, 0)
		return nil
	}
}

func TestStartedDeliveryTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var r recording
		tx := transaction(1)
		undecided, err := backends.Run(ctx, start(ctx), tx, r.hooks())
		if err != nil || len(undecided) > 0 || !slices.Equal(r.started, []int{0}) {
			t.Fatalf("got %v and %v, started %v; want it started", undecided, err, r.started)
		}
		if !tx.Undecided(0) {
			t.Error("a status for the started recipient would not count")
		}
		<-ctx.Done()
		synctest.Wait()
		if got := tx.Status(0); got != backends.TimedOut || r.statuses[0] != got {
			t.Errorf("got %v, hook told %v, want %v", got, r.statuses[0], backends.TimedOut)
		}
		tx.SetStatus(0, backends.Delivered)
		if got := tx.Status(0); got != backends.TimedOut {
			t.Errorf("a late answer changed the status to %v", got)
		}
	})
}

func TestStartedDeliveryEndsWithItsStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var r recording
		tx := transaction(1)
		if _, err := backends.Run(ctx, start(ctx), tx, r.hooks()); err != nil {
			t.Fatal(err)
		}
		tx.SetStatus(0, busy)
		cancel()
		synctest.Wait()
		if got := tx.Status(0); got != busy || r.statuses[0] != busy || r.ignored != nil {
			t.Errorf("got %v, hook told %v, ignored %q; want %v", got, r.statuses[0], r.ignored, busy)
		}
	})
}

func TestDeliveryStartedTooLateTimesOutAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over, cancel := context.WithCancel(t.Context())
		cancel()
		tx := transaction(1)
		if undecided, err := backends.Run(t.Context(), start(over), tx, backends.Hooks{}); err != nil || undecided != nil {
			t.Fatalf("got %v and %v", undecided, err)
		}
		synctest.Wait()
		if got := tx.Status(0); got != backends.TimedOut {
			t.Errorf("got %v, want %v", got, backends.TimedOut)
		}
	})
}

func TestOnlyUndecidedDeliveriesStart(t *testing.T) {
	var r recording
	_, err := backends.Run(t.Context(), backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
		tx.SetStatus(0, busy)
		tx.StartDelivery(ctx, 0)
		tx.StartDelivery(ctx, 1)
		tx.StartDelivery(ctx, 1)
		tx.StartDelivery(ctx, 2)
		tx.SetAll(busy)
		return nil
	}), transaction(2), r.hooks())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"the recipient has its status already",
		"the delivery was started already",
		"there is no such recipient",
	}
	if !slices.Equal(r.ignored, want) || !slices.Equal(r.started, []int{1}) {
		t.Errorf("got started %v, ignored %q; want [1], %q", r.started, r.ignored, want)
	}
}

func TestParamsLookup(t *testing.T) {
	params := backends.Params{"SIZE=1000", "body=8BITMIME", "SMTPUTF8", "AUTH=<>", "ENVID=a=b"}
	tests := []struct {
		keyword, value string
		ok             bool
	}{
		{"SIZE", "1000", true},
		{"size", "1000", true},
		{"BODY", "8BITMIME", true},
		{"SMTPUTF8", "", true},
		{"ENVID", "a=b", true},
		{"SIZ", "", false},
		{"RET", "", false},
		{"", "", false},
	}
	for _, tt := range tests {
		if value, ok := params.Lookup(tt.keyword); value != tt.value || ok != tt.ok {
			t.Errorf("Lookup(%q): got %q, %v, want %q, %v", tt.keyword, value, ok, tt.value, tt.ok)
		}
	}
}

func TestPeerString(t *testing.T) {
	tests := []struct {
		peer backends.Peer
		want string
	}{
		{backends.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:1234")}, "192.0.2.1:1234"},
		{backends.Peer{Addr: netip.MustParseAddrPort("[2001:db8::1]:1234")}, "[2001:db8::1]:1234"},
		{backends.Peer{UID: 1000, GID: 100, PID: 42}, "unix:uid=1000"},
		{backends.Peer{}, "unix:uid=0"},
	}
	for _, tt := range tests {
		if got := tt.peer.String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// A status that another goroutine sets while Deliver returns counts, and its
// hook has been called when Run returns.
func TestStatusDuringTheReturnCounts(t *testing.T) {
	for range 2000 {
		tx := &backends.DataContext{Envelope: backends.Envelope{Recipients: make([]backends.Recipient, 1)}}
		var told atomic.Int32
		undecided, err := backends.Run(t.Context(), backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			go tx.SetAll(backends.Delivered)
			for tx.Undecided(0) {
				runtime.Gosched()
			}
			return nil
		}), tx, backends.Hooks{Status: func(int, backends.Status) { runtime.Gosched(); told.Add(1) }})
		if len(undecided) > 0 || err != nil || told.Load() != 1 {
			t.Fatalf("undecided %v, %v, the hook was called %d times", undecided, err, told.Load())
		}
	}
}

// After the end nothing can be edited, and a message that came too late or
// was replaced again is closed.
func TestNothingIsEditedAfterTheEnd(t *testing.T) {
	var closed []string
	store := func(r io.Reader) (backends.Message, error) {
		b, err := io.ReadAll(r)
		return closingMessage{strings.NewReader(string(b)), func() { closed = append(closed, string(b)) }}, err
	}
	tx := &backends.DataContext{Envelope: backends.Envelope{Recipients: make([]backends.Recipient, 1)}}
	_, err := backends.Run(t.Context(), backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		return errors.Join(tx.ReplaceMessage(strings.NewReader("first")), tx.ReplaceMessage(strings.NewReader("second")))
	}), tx, backends.Hooks{Replace: store})
	if err != nil {
		t.Fatal(err)
	}
	for i, err := range []error{tx.SetSender("late@example.net"), tx.ReplaceMessage(strings.NewReader("late")), tx.AddField(0, "X: late"), tx.Redirect(0, "late@example.org")} {
		if err == nil {
			t.Errorf("edit %d after the end: no error", i)
		}
	}
	e := tx.Edits()
	b, _ := io.ReadAll(io.NewSectionReader(e.Message, 0, e.Message.Size()))
	if string(b) != "second" || e.Sender != nil || e.Fields != nil || e.Redirects != nil {
		t.Errorf("edits %+v, message %q", e, b)
	}
	if !slices.Equal(closed, []string{"first"}) {
		t.Errorf("closed %q, want the first alone", closed)
	}
}

type closingMessage struct {
	*strings.Reader
	close func()
}

func (m closingMessage) Close() error { m.close(); return nil }
