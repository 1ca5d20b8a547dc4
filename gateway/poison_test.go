package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/mailgw/mailgw/backends"
)

// A fragile backend crashes at some recipients, and tells who had them.
type fragile struct {
	alone    bool
	started  *atomic.Int32 // instances that serve one transaction alone
	innocent *atomic.Bool  // nothing crashes it any more
}

func newFragile() fragile { return fragile{started: new(atomic.Int32), innocent: new(atomic.Bool)} }

func (f fragile) Deliver(_ context.Context, tx *backends.DataContext) error {
	for i, r := range tx.Envelope.Recipients {
		switch {
		case strings.HasPrefix(r.Address, "ok"):
			tx.SetStatus(i, backends.NewStatus(250, "2.0.0", fmt.Sprintf("alone %t", f.alone)))
		case !f.innocent.Load():
			return &backends.CrashError{Err: errors.New("it has ended"), Output: []string{"panic: boom"}}
		default:
			tx.SetStatus(i, backends.NewStatus(250, "2.0.0", fmt.Sprintf("alone %t", f.alone)))
		}
	}
	return nil
}

func (f fragile) Isolated(context.Context) (backends.Backend, func(), error) {
	f.started.Add(1)
	alone := f
	alone.alone = true
	return alone, func() { f.started.Add(-100) }, nil
}

const tryLater = "451 4.3.0 <poison@x.example> try again later (ID)"

// A message that was with a backend when it crashed comes alone next, and after
// some more crashes not at all.
func TestPoisonIsGivenToNobody(t *testing.T) {
	f := newFragile()
	var log lockedBuffer
	s := chainServer(t, f)
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	wantReplies(t, deliver(t, s, "to:ok@x.example", "to:poison@x.example"), "250 2.0.0 <ok@x.example> alone false (ID)", tryLater)
	if f.started.Load() != 0 {
		t.Error("the first time it was alone")
	}
	// The client sends it again to those who got 451.
	wantReplies(t, deliver(t, s, "to:poison@x.example"), tryLater)
	wantReplies(t, deliver(t, s, "to:poison@x.example"), tryLater)
	if got := f.started.Load(); got != 2-200 {
		t.Errorf("%d, want two instances of its own, both closed", got)
	}
	wantReplies(t, deliver(t, s, "to:poison@x.example"), tryLater)
	if got := f.started.Load(); got != 2-200 {
		t.Error("it was given to the backend once more")
	}
	if want := `event=poison error="the message has crashed it 3 times" output="[panic: boom]" effect=451`; !strings.Contains(log.String(), want) {
		t.Errorf("%q is not in\n%s", want, log.String())
	}
	// Others go on as ever: other recipients, another message.
	wantReplies(t, deliver(t, s, "to:ok@x.example"), "250 2.0.0 <ok@x.example> alone false (ID)")
}

func TestPoisonIsQuarantined(t *testing.T) {
	s := testServer(t, map[string]backends.Backend{"backend0": newFragile(), "jail": backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		tx.SetAll(backends.NewStatus(250, "2.0.0", "jailed"))
		return nil
	})}, "protocol = 'lmtp'\n[listener.routes]\n'*' = ['backend0']\n[named_routes]\njail = ['jail']\n")
	s.backends["backend0"].PoisonCrashes, s.backends["backend0"].PoisonRoute = 1, "jail"
	wantReplies(t, deliver(t, s, "to:poison@x.example"), tryLater)
	wantReplies(t, deliver(t, s, "to:poison@x.example"), "250 2.0.0 <poison@x.example> jailed (ID)")
}

// Whoever was there by chance when the backend crashed is a suspect no more
// once it has gone well.
func TestInnocentSuspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFragile()
		s := chainServer(t, f)
		wantReplies(t, deliver(t, s, "to:poison@x.example"), tryLater)
		f.innocent.Store(true)
		wantReplies(t, deliver(t, s, "to:poison@x.example"), "250 2.0.0 <poison@x.example> alone true (ID)")
		synctest.Wait()
		wantReplies(t, deliver(t, s, "to:poison@x.example"), "250 2.0.0 <poison@x.example> alone false (ID)")
		if known := s.backends["backend0"].suspects; len(known.known) != 0 || len(known.order) != 0 {
			t.Errorf("suspects are left: %v", known.known)
		}
	})
}

// A message is known again whoever is with its recipients: the client sends it to
// all again if it had one answer for all, or a part of them, in another order.
func TestSuspectsAmongOthers(t *testing.T) {
	for _, again := range [][]string{
		{"to:ok@x.example", "to:poison@x.example", "to:poison2@x.example"},
		{"to:poison2@x.example", "to:poison@x.example"},
		{"to:poison2@x.example", "to:new@x.example"},
	} {
		f := newFragile()
		s := chainServer(t, f)
		deliver(t, s, "to:ok@x.example", "to:poison@x.example", "to:poison2@x.example")
		deliver(t, s, again...)
		if f.started.Load() != 1-100 {
			t.Errorf("%q: it was not alone", again)
		}
	}
}

// A crash is one crash, however many equal messages were under way.
func TestOneCrashOfManyEqual(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		crash := make(chan struct{})
		s := chainServer(t, backends.Func(func(context.Context, *backends.DataContext) error {
			<-crash
			return &backends.CrashError{Err: errors.New("it has ended")}
		}))
		for range 5 {
			begin(t, s, "to:poison@x.example")
		}
		synctest.Wait()
		close(crash)
		synctest.Wait()
		for _, known := range s.backends["backend0"].suspects.known {
			if known.crashes != 1 {
				t.Errorf("%d crashes", known.crashes)
			}
		}
	})
}

// unisolated is a fragile backend of which no instance of its own can be had.
type unisolated struct {
	fragile
	why error
}

func (u unisolated) Isolated(context.Context) (backends.Backend, func(), error) {
	return nil, nil, u.why
}

// A suspect that could not be tried is not innocent.
func TestFailureIsNoInnocence(t *testing.T) {
	for _, why := range []error{errors.New("no more processes"), context.DeadlineExceeded} {
		s := chainServer(t, unisolated{newFragile(), why})
		wantReplies(t, deliver(t, s, "to:poison@x.example"), tryLater)
		if got := deliver(t, s, "to:poison@x.example"); !strings.HasPrefix(got[0], "451 ") {
			t.Errorf("%v: got %q", why, got)
		}
		if known := s.backends["backend0"].suspects.known; len(known) != 1 {
			t.Errorf("%v: it is forgotten", why)
		}
	}
}

// A crash while a delivery is under way makes a suspect of its recipient, too.
func TestStartedDeliveryIsSuspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := chainServer(t, backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			tx.StartDelivery(ctx, 0)
			tx.SetStatus(0, backends.TryLater) // as the border does when the process has ended
			return &backends.CrashError{Err: errors.New("it has ended")}
		}))
		wantReplies(t, deliver(t, s, "to:poison@x.example"), tryLater)
		synctest.Wait()
		if known := s.backends["backend0"].suspects.known; len(known) != 1 {
			t.Error("it is no suspect")
		}
	})
}

// A crash after Deliver has returned counts like any other.
func TestLateCrashIsPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := late{crashes: new(atomic.Bool)}
		f.crashes.Store(true)
		s := chainServer(t, f)
		known := s.backends["backend0"].suspects
		for n := range 3 {
			wantReplies(t, deliver(t, s, "to:poison@x.example", "to:ok@x.example"), tryLater, "250 2.0.0 <ok@x.example> delivered (ID)")
			synctest.Wait()
			for _, suspect := range known.known {
				if suspect.crashes != n+1 || fmt.Sprint(suspect.output) != "[panic: late]" {
					t.Errorf("after %d crashes %+v is known", n+1, suspect)
				}
			}
			if len(known.known) != 1 {
				t.Errorf("after %d crashes %d suspects are known", n+1, len(known.known))
			}
		}
		f.crashes.Store(false)
		wantReplies(t, deliver(t, s, "to:poison@x.example"), tryLater) // it is not given to the backend
	})
}

// A delivery that goes well in the end makes an innocent of a suspect.
func TestLateInnocent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := late{crashes: new(atomic.Bool)}
		f.crashes.Store(true)
		s := chainServer(t, f)
		wantReplies(t, deliver(t, s, "to:poison@x.example"), tryLater)
		f.crashes.Store(false)
		wantReplies(t, deliver(t, s, "to:poison@x.example"), "250 2.0.0 <poison@x.example> delivered (ID)")
		synctest.Wait()
		if known := s.backends["backend0"].suspects.known; len(known) != 0 {
			t.Errorf("suspects are left: %v", known)
		}
	})
}

// A late backend crashes at poison when it has returned.
type late struct{ crashes *atomic.Bool }

func (l late) Deliver(ctx context.Context, tx *backends.DataContext) error {
	for i, r := range tx.Envelope.Recipients {
		tx.StartDelivery(ctx, i)
		go func() {
			if strings.HasPrefix(r.Address, "poison") && l.crashes.Load() {
				tx.Crashed(i, &backends.CrashError{Err: errors.New("it has ended"), Output: []string{"panic: late"}})
				tx.SetStatus(i, backends.TryLater)
			} else {
				tx.SetStatus(i, backends.Delivered)
			}
		}()
	}
	return nil
}

func (l late) Isolated(context.Context) (backends.Backend, func(), error) {
	return l, func() {}, nil
}

func TestSuspectsAreBounded(t *testing.T) {
	s := newSuspects()
	for i := range 2*maxSuspects + 1 {
		f := []fingerprint{{byte(i), byte(i >> 8)}}
		s.note(f, f, false, nil)
	}
	if len(s.known) != maxSuspects || len(s.order) != maxSuspects {
		t.Errorf("%d suspects, %d in order", len(s.known), len(s.order))
	}
}
