package backends_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// recording is what the hooks of one transaction were told.
type recording struct {
	mu       sync.Mutex
	statuses map[int]backends.Status
	started  []int
	ignored  []string
	response backends.Status
}

func (r *recording) hooks() backends.Hooks {
	r.statuses = map[int]backends.Status{}
	return backends.Hooks{
		Status: func(i int, s backends.Status) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if _, twice := r.statuses[i]; twice {
				s = backends.NewStatus(999, "", "told twice")
			}
			r.statuses[i] = s
		},
		Started: func(i int) { r.started = append(r.started, i) },
		SMTPResponse: func(s backends.Status) {
			r.response = s
		},
		Ignored: func(_ int, _ backends.Status, why string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.ignored = append(r.ignored, why)
		},
	}
}

// transaction returns one with n recipients.
func transaction(n int) *backends.DataContext {
	tx := &backends.DataContext{ID: "test", Body: strings.NewReader("")}
	for range n {
		tx.Envelope.Recipients = append(tx.Envelope.Recipients, backends.Recipient{Address: "bob@example.org"})
	}
	return tx
}

var busy = backends.NewStatus(450, "4.2.1", "mailbox busy")

func TestUndecidedRecipientsComeBackInOrder(t *testing.T) {
	oops := errors.New("oops")
	tests := []struct {
		name    string
		deliver backends.Func
		want    []int
		err     error
	}{
		{"none decided", func(context.Context, *backends.DataContext) error { return nil }, []int{0, 1, 2, 3}, nil},
		{"some decided", func(_ context.Context, tx *backends.DataContext) error {
			tx.SetStatus(2, backends.Delivered)
			tx.SetStatus(0, busy)
			return nil
		}, []int{1, 3}, nil},
		{"some decided, then an error", func(_ context.Context, tx *backends.DataContext) error {
			tx.SetStatus(1, backends.Delivered)
			return oops
		}, []int{0, 2, 3}, oops},
		{"all decided, nevertheless an error", func(_ context.Context, tx *backends.DataContext) error {
			tx.SetAll(backends.Delivered)
			return oops
		}, nil, oops},
		{"one started", func(ctx context.Context, tx *backends.DataContext) error {
			tx.StartDelivery(ctx, 3)
			return nil
		}, []int{0, 1, 2}, nil},
		{"envelope cut short", func(_ context.Context, tx *backends.DataContext) error {
			tx.Envelope.Recipients = nil
			return nil
		}, []int{0, 1, 2, 3}, nil},
	}
	for _, tt := range tests {
		undecided, err := backends.Run(t.Context(), tt.deliver, transaction(4), backends.Hooks{})
		if !slices.Equal(undecided, tt.want) || err != tt.err {
			t.Errorf("%s: got %v and %v, want %v and %v", tt.name, undecided, err, tt.want, tt.err)
		}
	}
}

// A panic is the backend's error: what was set before it counts, the others
// try again, and the operator gets the place.
func TestPanicIsAnError(t *testing.T) {
	tx := transaction(2)
	undecided, err := backends.Run(t.Context(), backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		tx.SetStatus(0, backends.Delivered)
		panic("oops")
	}), tx, backends.Hooks{})
	if !slices.Equal(undecided, []int{1}) {
		t.Errorf("got undecided %v, want [1]", undecided)
	}
	if err == nil || !strings.Contains(err.Error(), "panic: oops") || !strings.Contains(err.Error(), "backend_test.go") {
		t.Errorf("got %v, want the panic and its stack", err)
	}
	if s := backends.StatusOf(err); s != backends.TryLater {
		t.Errorf("got %v, want %v", s, backends.TryLater)
	}
}

func TestFirstStatusCounts(t *testing.T) {
	var r recording
	tx := transaction(2)
	_, err := backends.Run(t.Context(), backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		tx.SetStatus(0, busy)
		tx.SetStatus(0, backends.Delivered)
		tx.SetStatus(1, backends.Status{})
		tx.SetAll(backends.NoSuchUser)
		tx.SetStatus(2, backends.Delivered)
		tx.SetStatus(-1, backends.Delivered)
		return nil
	}), tx, r.hooks())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []backends.Status{busy, backends.NoSuchUser} {
		if got := tx.Status(i); got != want || r.statuses[i] != want {
			t.Errorf("recipient %d: got %v, hook told %v, want %v", i, got, r.statuses[i], want)
		}
	}
	wantIgnored := []string{
		"the recipient has its status already",
		"the status is empty",
		"there is no such recipient",
		"there is no such recipient",
	}
	if !slices.Equal(r.ignored, wantIgnored) {
		t.Errorf("got ignored %q, want %q", r.ignored, wantIgnored)
	}
}

func TestEachRecipientIsDecidedOnceByManyGoroutines(t *testing.T) {
	const recipients, voices = 20, 20
	var r recording
	tx := transaction(recipients)
	_, err := backends.Run(t.Context(), backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		var wg sync.WaitGroup
		for voice := range voices {
			wg.Go(func() {
				for i := range recipients {
					tx.SetStatus((i+voice)%recipients, busy)
				}
			})
		}
		wg.Wait()
		return nil
	}), tx, r.hooks())
	if err != nil {
		t.Fatal(err)
	}
	for i := range recipients {
		if r.statuses[i] != busy {
			t.Errorf("recipient %d: got %v, want %v", i, r.statuses[i], busy)
		}
	}
	if got, want := len(r.ignored), recipients*(voices-1); got != want {
		t.Errorf("%d statuses ignored, want %d", got, want)
	}
}

// Whoever went on to the next backend is no longer the first one's.
func TestStatusAfterReturnIsIgnored(t *testing.T) {
	var r recording
	tx := transaction(1)
	undecided, err := backends.Run(t.Context(), backends.Func(func(context.Context, *backends.DataContext) error {
		return nil
	}), tx, r.hooks())
	if err != nil || len(undecided) != 1 {
		t.Fatalf("got %v and %v, want one undecided", undecided, err)
	}
	tx.SetStatus(0, backends.Delivered)
	tx.StartDelivery(t.Context(), 0)
	if s := tx.Status(0); !s.IsZero() || len(r.statuses) > 0 || tx.Undecided(0) {
		t.Errorf("got status %v, hook told %v, undecided %v; want none", s, r.statuses, tx.Undecided(0))
	}
	if want := []string{"Deliver had returned", "Deliver had returned"}; !slices.Equal(r.ignored, want) {
		t.Errorf("got ignored %q, want %q", r.ignored, want)
	}
}

func TestSMTPResponseDecidesNobody(t *testing.T) {
	var r recording
	undecided, err := backends.Run(t.Context(), backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		tx.SetSMTPResponse(backends.NewStatus(250, "2.6.0", "queued as 1"))
		return nil
	}), transaction(1), r.hooks())
	if err != nil || len(undecided) != 1 || r.response.Text != "queued as 1" {
		t.Errorf("got %v, %v and response %v", undecided, err, r.response)
	}
}

// What is decided by one call, or in one go, may be told at once.
func TestStatusesTogether(t *testing.T) {
	var log []string
	together := 0
	hooks := backends.Hooks{
		Status: func(i int, s backends.Status) { log = append(log, fmt.Sprintf("%d: %s (%d)", i, s.Text, together)) },
		Together: func(f func()) {
			together++
			f()
			together = 0
		},
	}
	backends.Run(t.Context(), backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		tx.SetStatus(0, busy)
		tx.Together(func() {
			tx.SetStatus(1, busy)
			tx.SetStatus(2, backends.Delivered)
		})
		tx.SetAll(backends.NoSuchUser)
		return nil
	}), transaction(5), hooks)
	want := []string{"0: mailbox busy (0)", "1: mailbox busy (1)", "2: delivered (1)", "3: no such user (1)", "4: no such user (1)"}
	if !slices.Equal(log, want) {
		t.Errorf("got %q, want %q", log, want)
	}
}
