package plugins

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
	"github.com/mailgw/mailgw/xforward"
)

func TestStatusForEachRecipient(t *testing.T) {
	h, _ := run(t, "answers")
	o := deliver(t.Context(), h, message("hello", "nobody", "delivered", "undecided", "delivered", "latin1"))
	want := map[int]backends.Status{
		0: backends.NoSuchUser,
		1: backends.Delivered,
		3: backends.Delivered,
		4: backends.NewStatus(450, "4.2.0", "na?ve"),
	}
	if o.err != nil || !maps.Equal(o.statuses, want) {
		t.Errorf("got %v and the error %v, want %v", o.statuses, o.err, want)
	}
	if !slices.Equal(o.order, []int{0, 1, 3, 4}) {
		t.Errorf("got the statuses in the order %v", o.order)
	}
	o.wantUndecided(t, 2)
}

func TestErrorOfBackend(t *testing.T) {
	for _, test := range []struct {
		plugin, text string
		want         backends.Status
	}{
		{"fails", "disk on fire at /secret", backends.TryLater},
		{"panics", "panic: a bug", backends.TryLater},
		{"refuses", "no such user", backends.NoSuchUser},
	} {
		t.Run(test.plugin, func(t *testing.T) {
			h, log := run(t, test.plugin)
			for range 2 { // a panic harms one transaction only
				o := deliver(t.Context(), h, message("hello", "one", "two"))
				if o.err == nil || !strings.Contains(o.err.Error(), test.text) || backends.StatusOf(o.err) != test.want {
					t.Errorf("got the error %v, want %q, which means %v", o.err, test.text, test.want)
				}
				o.wantUndecided(t, 0, 1)
			}
			if test.plugin == "panics" {
				record := log.wait(t, 2, "log", "panic")[1]
				if record["tx"] != "T1" || !strings.Contains(fmt.Sprint(record["stack"]), "backends_test.go") {
					t.Errorf("got the record %v, want the stack", record)
				}
			}
		})
	}
}

// long is a message of many chunks, the last of them short.
var long = strings.Repeat("0123456789abcdef", 40<<10) + "end"

func TestReplacedMessage(t *testing.T) {
	h, _ := run(t, "replaces")
	for _, test := range []struct {
		name string
		want string // "-" is none
	}{
		{"while reading", "new " + long},
		{"empty", ""},
		{"twice", "second"},
		{"broken", "-"},
		{"broken, then whole", "second"},
		{"whole, then broken", "first"},
	} {
		tx := message(long, test.name)
		o := deliver(t.Context(), h, tx)
		edits := tx.Edits()
		switch {
		case o.err != nil:
			t.Errorf("%s: %v", test.name, o.err)
		case test.want == "-":
			if !edits.IsZero() {
				t.Errorf("%s: there are edits", test.name)
			}
		default:
			if got := readAll(t, edits.Message); got != test.want {
				t.Errorf("%s: got %d octets, want %d", test.name, len(got), len(test.want))
			}
		}
	}
	deliver(t.Context(), h, message(long, "broken, then an error")).wantError(t, "unexpected EOF")
}

func TestReplacedMessageThatCannotBeStored(t *testing.T) {
	h, _ := run(t, "replaces")
	_, err := backends.Run(t.Context(), h, message(long, "while reading"), backends.Hooks{
		Replace: func(r io.Reader) (backends.Message, error) {
			_, err := io.CopyN(io.Discard, r, 100000)
			return nil, errors.Join(err, backends.StorageFull)
		},
	})
	if backends.StatusOf(err) != backends.StorageFull {
		t.Errorf("got the error %v, want %v", err, backends.StorageFull)
	}
}

func TestEdits(t *testing.T) {
	h, _ := run(t, "edits")
	tx := message("hello", "one", "two")
	o := deliver(t.Context(), h, tx)
	if o.err != nil {
		t.Fatal(o.err)
	}
	sender := "new@example.org"
	want := backends.Edits{
		Fields: []backends.FieldEdit{
			{Op: backends.AddField, At: 0, Field: "X-First: one"},
			{Op: backends.ReplaceField, At: 2, Field: "Subject: gr\xfc\xdfe,\r\n folded"},
			{Op: backends.RemoveField, At: 3},
		},
		Sender: &sender, SenderParams: backends.Params{"RET=HDRS", "ENVID=new"},
		Redirects:  map[int][]string{1: {"a@example.org", "b@example.org"}},
		Added:      []backends.Recipient{{Address: "archive@example.org", Params: backends.Params{"NOTIFY=NEVER"}}},
		Diversions: map[int]string{0: "quarantine"},
	}
	if got := tx.Edits(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	o.wantUndecided(t, 0, 1)
}

func TestEditsThatAreTooLarge(t *testing.T) {
	h, _ := run(t, "large edits")
	deliver(t.Context(), h, message("", "octets")).wantError(t, "the edits have 2")
	deliver(t.Context(), h, message("", "parts")).wantError(t, "5002 parts, more than")
}

func TestMessageArrivesExactly(t *testing.T) {
	h, _ := run(t, "echo")
	octets := make([]byte, 6<<20) // more than gRPC lets through in one message
	for i := range octets {
		octets[i] = byte(i * i >> 7)
	}
	for _, size := range []int{0, 1, 1000, maxChunk/4 + 1, maxChunk - 1, maxChunk, maxChunk + 1, 2 * maxChunk, len(octets)} {
		o := deliver(t.Context(), h, message(string(octets[:size]), "one"))
		want := fmt.Sprintf("%d %x", size, hash(octets[:size]))
		if got := o.statuses[0].Text; got != want {
			t.Errorf("got %q and the error %v, want %q", got, o.err, want)
		}
	}
}

// The envelope comes in one message, whatever gRPC's limit is.
func TestLargeEnvelopeArrives(t *testing.T) {
	h, _ := run(t, "answers")
	deliver(t.Context(), h, message(long, "delivered")) // whose buffers are too small
	tx := message("hello", slices.Repeat([]string{"delivered"}, 100)...)
	for i := range tx.Envelope.Recipients {
		tx.Envelope.Recipients[i].Params = backends.Params{"X=" + strings.Repeat("x", 60_000)}
	}
	if o := deliver(t.Context(), h, tx); o.err != nil || len(o.statuses) != 100 {
		t.Errorf("got %d statuses and the error %v", len(o.statuses), o.err)
	}
}

func hash(b []byte) [sha256.Size]byte { return sha256.Sum256(b) }

func TestTransactionsAtTheSameTime(t *testing.T) {
	h, _ := run(t, "echo")
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			octets := bytes.Repeat([]byte{byte(i)}, 10_000*i)
			o := deliver(t.Context(), h, message(string(octets), "one"))
			want := fmt.Sprintf("%d %x", len(octets), hash(octets))
			if got := o.statuses[0].Text; got != want {
				t.Errorf("got %q and the error %v, want %q", got, o.err, want)
			}
		})
	}
	wg.Wait()
}

func TestMessageThatCannotBeRead(t *testing.T) {
	h, _ := run(t, "echo")
	for _, size := range []int64{10, maxChunk + 10} { // in the first message, and in a later one
		tx := message("", "one")
		tx.Size = size
		tx.Body = io.MultiReader(strings.NewReader(long[:size-5]), iotest.ErrReader(errors.New("bad disk")))
		deliver(t.Context(), h, tx).wantError(t, "bad disk")

		tx = message(long[:size-5], "one")
		tx.Size = size
		deliver(t.Context(), h, tx).wantError(t, "EOF")
	}
}

func TestDeadlineCrossesTheBorder(t *testing.T) {
	h, _ := run(t, "deadline")
	ctx, cancel := context.WithTimeout(t.Context(), 7*time.Minute)
	defer cancel()
	if got := deliver(ctx, h, message("", "one")).statuses[0].Text; got != "7m0s" {
		t.Errorf("the plugin has %s, want 7m0s", got)
	}
}

func TestDeadlineEndsDeliver(t *testing.T) {
	h, _ := run(t, "hangs")
	// A deadline that is over when the first recipient has its status.
	ctx, cancel := context.WithCancelCause(t.Context())
	tx := message("hello", "one", "two")
	done := make(chan *outcome)
	go func() { done <- deliver(deadline{ctx}, h, tx) }()
	eventually(t, "the first recipient has its status", func() bool { return !tx.Status(0).IsZero() })
	cancel(context.DeadlineExceeded)
	o := <-done
	if backends.StatusOf(o.err) != backends.TimedOut {
		t.Errorf("got the error %v, want %v", o.err, backends.TimedOut)
	}
	if o.status(t, 0) != backends.Delivered {
		t.Errorf("got %v", o.statuses)
	}
	o.wantUndecided(t, 1)
}

// An operator is told why nobody waits for an answer any more.
func TestCauseOfTheEnd(t *testing.T) {
	h, _ := run(t, "hangs")
	ctx, cancel := context.WithCancelCause(t.Context())
	tx := message("hello", "one", "two")
	done := make(chan *outcome)
	go func() { done <- deliver(ctx, h, tx) }()
	eventually(t, "the first recipient has its status", func() bool { return !tx.Status(0).IsZero() })
	cancel(errors.New("the gateway has no more time"))
	(<-done).wantError(t, "the gateway has no more time")
}

// A deadline is a ctx whose end is that of its deadline.
type deadline struct{ context.Context }

func (d deadline) Err() error {
	if d.Context.Err() == nil {
		return nil
	}
	return context.DeadlineExceeded
}

// The timer of the plugin may be earlier than that of the gateway. The plugin has
// not ended then.
func TestDeadlineEndsInThePluginFirst(t *testing.T) {
	h, _ := run(t, "late")
	o := deliver(lateTimer{t.Context(), time.Now().Add(50 * time.Millisecond)}, h, message("", "never"))
	if got := o.status(t, 0); got != backends.TimedOut {
		t.Errorf("got %v, want %v", got, backends.TimedOut)
	}
}

// A lateTimer is a ctx that does not end at its deadline.
type lateTimer struct {
	context.Context
	deadline time.Time
}

func (l lateTimer) Deadline() (time.Time, bool) { return l.deadline, true }

// A recipient that has a status must not go on to the next backend.
func TestStatusSetByAnotherGoroutine(t *testing.T) {
	h, _ := run(t, "races")
	const n = 50
	for range 20 {
		o := deliver(t.Context(), h, message("", make([]string, n)...))
		if len(o.statuses) != n || len(o.undecided) > 0 {
			t.Fatalf("got %d statuses, the undecided recipients %v and the error %v", len(o.statuses), o.undecided, o.err)
		}
	}
}

func TestSecondStatusIsLogged(t *testing.T) {
	h, log := run(t, "twice")
	o := deliver(t.Context(), h, message("hello", "one"))
	if o.statuses[0] != backends.Delivered {
		t.Errorf("got %v", o.statuses)
	}
	if record := log.wait(t, 1, "log", "ignored")[0]; record["level"] != "WARN" || record["tx"] != "T1" {
		t.Errorf("got the record %v", record)
	}
}

func TestLateDeliveries(t *testing.T) {
	h, _ := run(t, "late")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := deliver(ctx, h, message(long, "done", "reads", "undecided", "never"))
	if o.err != nil {
		t.Fatal(o.err)
	}
	o.wantUndecided(t, 2)
	if !slices.Equal(o.started, []int{0, 1, 3}) || o.response.Text != "taken" {
		t.Errorf("got the started recipients %v and the response %v", o.started, o.response)
	}
	if got := o.status(t, 0); got != backends.Delivered {
		t.Errorf("got %v", got)
	}
	// The message is there after the return.
	if got, want := o.status(t, 1).Text, fmt.Sprint(len(long), nil); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	cancel()
	if got := o.status(t, 3); got != backends.TryLater {
		t.Errorf("got %v, want %v", got, backends.TryLater)
	}
}

func TestLateDeliveryAndCrash(t *testing.T) {
	h, log := run(t, "late")
	tx := message("", "never", "done", "crash")
	body, end := io.Pipe()
	tx.Size, tx.Body = maxChunk+3, io.MultiReader(strings.NewReader(long[:maxChunk]), body)
	o := deliver(t.Context(), h, tx)
	o.status(t, 1)
	end.Write([]byte("end"))
	if o.status(t, 0) != backends.TryLater || o.status(t, 2) != backends.TryLater {
		t.Errorf("got %v, want %v for those that were under way", o.statuses, backends.TryLater)
	}
	if how := log.wait(t, 1, "exited", "")[0]["how"]; how != "exit status 3" {
		t.Errorf("the plugin ended with %v", how)
	}
}

// The gateway takes the message back with the last status.
func TestNobodyReadsTheMessageAfterTheLastStatus(t *testing.T) {
	h, log := run(t, "late")
	reads, release, decided := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var reading, done atomic.Bool
	slow := readerFunc(func(p []byte) (int, error) {
		reading.Store(true)
		defer reading.Store(false)
		if done.Load() {
			t.Error("the message is read after the last status")
		}
		select {
		case reads <- struct{}{}:
		case <-release:
		}
		<-release
		return len(p), nil
	})
	tx := message("", "waits")
	tx.Size, tx.Body = 1<<40, io.MultiReader(strings.NewReader(long[:maxChunk]), slow)
	if _, err := backends.Run(t.Context(), h, tx, backends.Hooks{Status: func(int, backends.Status) {
		done.Store(true)
		if reading.Load() {
			t.Error("the message is read while the last status comes")
		}
		close(decided)
	}}); err != nil {
		t.Fatal(err)
	}
	within(t, "Read", func() { <-reads })
	deliver(t.Context(), h, message("", "tells"))
	log.wait(t, 1, "log", "told")
	for range 5 { // the status has arrived, and long ago
		deliver(t.Context(), h, message("", "done")).status(t, 0)
	}
	close(release)
	within(t, "SetStatus", func() { <-decided })
}

func TestLogOfPlugin(t *testing.T) {
	h, log := run(t, "logs")
	tx := message("hello", "one")
	tx.Session = backends.Session{ID: "S1", XForward: &xforward.Attrs{Ident: "4F3A2C"}}
	deliver(t.Context(), h, tx)
	for _, test := range []struct {
		text string
		want map[string]any
	}{
		{"stored", map[string]any{"level": "INFO", "session": "S1", "tx": "T1", "ident": "4F3A2C", "path": "/var/mail", "plugin.event": "forged"}},
		{"grouped", map[string]any{"level": "DEBUG", "ident": "4F3A2C", "g": map[string]any{"k": 1.0}}},
		{"to stdout", map[string]any{"level": "INFO"}},
		{"to stderr\x1b[31m", map[string]any{"level": "WARN"}},
	} {
		got := log.wait(t, 1, "log", test.text)[0]
		for key, want := range test.want {
			if !reflect.DeepEqual(got[key], want) {
				t.Errorf("%s: got %s=%v, want %v", test.text, key, got[key], want)
			}
		}
		if got["msg"] != "backend" || got["backend"] != "logs" {
			t.Errorf("got the record %v", got)
		}
	}
}

// What one frame says of all who are undecided is said to the gateway at once, and
// nothing else is.
func TestSameStatusIsToldAtOnce(t *testing.T) {
	no := &pb.Status{Code: 550, Text: "no"}
	refused := func(i uint32) []*pb.RecipientStatus { return []*pb.RecipientStatus{{Recipient: i, Status: no}} }
	for name, test := range map[string]struct {
		frames    [][]*pb.RecipientStatus
		atOnce    [][]int
		codes     [3]int
		ignored   int
		undecided int
	}{
		"all":           {[][]*pb.RecipientStatus{slices.Concat(status250(0), status250(1), status250(2))}, [][]int{{0, 1, 2}}, [3]int{250, 250, 250}, 0, 0},
		"the rest":      {[][]*pb.RecipientStatus{refused(1), slices.Concat(status250(0), status250(2))}, [][]int{{0, 2}}, [3]int{250, 550, 250}, 0, 0},
		"some":          {[][]*pb.RecipientStatus{slices.Concat(status250(0), status250(2))}, nil, [3]int{250, 0, 250}, 0, 1},
		"not the same":  {[][]*pb.RecipientStatus{slices.Concat(status250(0), refused(1), status250(2))}, nil, [3]int{250, 550, 250}, 0, 0},
		"one twice":     {[][]*pb.RecipientStatus{slices.Concat(status250(0), status250(1), status250(1))}, nil, [3]int{250, 250, 0}, 1, 1},
		"nobody":        {[][]*pb.RecipientStatus{slices.Concat(status250(0), status250(1), status250(7))}, nil, [3]int{250, 250, 0}, 1, 1},
		"decided again": {[][]*pb.RecipientStatus{refused(1), slices.Concat(status250(0), status250(1))}, nil, [3]int{250, 550, 0}, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var atOnce [][]int
			ignored := 0
			tx := message("", "one", "two", "three")
			undecided, err := backends.Run(t.Context(), backends.Func(func(_ context.Context, tx *backends.DataContext) error {
				c := &call{tx: tx}
				for _, frame := range test.frames {
					if err := c.decideAll(frame); err != nil {
						return err
					}
				}
				return nil
			}), tx, backends.Hooks{
				StatusAll: func(recipients []int, _ backends.Status) { atOnce = append(atOnce, recipients) },
				Ignored:   func(int, backends.Status, string) { ignored++ },
			})
			codes := [...]int{tx.Status(0).Code, tx.Status(1).Code, tx.Status(2).Code}
			if err != nil || !reflect.DeepEqual(atOnce, test.atOnce) || codes != test.codes || ignored != test.ignored || len(undecided) != test.undecided {
				t.Errorf("got %v at once, %v, %d ignored, %d undecided and the error %v", atOnce, codes, ignored, len(undecided), err)
			}
		})
	}
}

// What one frame says in the place of statuses comes before them: a client may be
// told as soon as it has the last one.
func TestResponseBeforeItsStatuses(t *testing.T) {
	var order []string
	_, err := backends.Run(t.Context(), backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		c := &call{tx: tx}
		return c.recipients(&pb.ToGateway{Statuses: status250(0), SmtpResponse: &pb.Status{Code: 250, Text: "queued"}})
	}), message("", "one"), backends.Hooks{
		Status:       func(int, backends.Status) { order = append(order, "status") },
		SMTPResponse: func(backends.Status) { order = append(order, "response") },
	})
	if want := []string{"response", "status"}; err != nil || !slices.Equal(order, want) {
		t.Errorf("got %q and the error %v, want %q", order, err, want)
	}
}
