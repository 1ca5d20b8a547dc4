package plugins

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

func TestMostTransactionsUnderWay(t *testing.T) {
	c := command(t, "late", newGatewayLog())
	c.Transactions = 2
	h := runCommand(t, c, defaultTimes)

	// A delivery after the return has its place until it has a status.
	waiting := deliver(t.Context(), h, message("", "waits"))
	late, end := context.WithCancel(t.Context())
	defer end()
	deliver(late, h, message("", "never"))

	full, cancel := context.WithTimeout(t.Context(), 1)
	defer cancel()
	if o := deliver(full, h, message("", "done")); !errors.Is(o.err, context.DeadlineExceeded) || backends.StatusOf(o.err) != backends.TimedOut {
		t.Errorf("got %v, want the error of the deadline", o.err)
	} else if !strings.HasPrefix(o.err.Error(), "all 2 transactions are under way: ") {
		t.Errorf("got %v, want what it has waited for", o.err)
	}

	// The next one waits for the first place that becomes free.
	next := make(chan *outcome, 1)
	go func() { next <- deliver(t.Context(), h, message("", "tells")) }()
	select {
	case <-next:
		t.Error("a third transaction is under way")
	default:
	}
	end()
	within(t, "Deliver", func() {
		if got := (<-next).status(t, 0); got != backends.Delivered {
			t.Errorf("got %v", got)
		}
	})
	if got := waiting.status(t, 0); got != backends.Delivered {
		t.Errorf("got %v", got)
	}
}

func TestCloseEndsWhoWaitsForPlace(t *testing.T) {
	c := command(t, "silent", newGatewayLog())
	c.Transactions = 1
	checkLeaks(t)
	h, err := startHost(t, t.Context(), c, defaultTimes)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan *outcome, 2)
	for range cap(ended) {
		go func() { ended <- deliver(t.Context(), h, message("", "one")) }()
	}
	eventually(t, "one is under way", func() bool { return len(h.places) == 1 })
	now, cancel := context.WithCancel(t.Context())
	cancel()
	if err := closeHost(t, now, h); err == nil {
		t.Error("Close tells nothing of the transactions")
	}
	for range cap(ended) {
		(<-ended).wantError(t, "")
	}
}
