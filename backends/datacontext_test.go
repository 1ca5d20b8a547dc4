package backends_test

import (
	"context"
	"net/netip"
	"slices"
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
