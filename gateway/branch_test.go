package gateway

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/mailgw/mailgw/backends"
)

// Nobody hears of a success before the recipients that are added have theirs:
// not while a backend may still add one, nor while one has no answer.
func TestAddedRecipientComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := func(d begun) (n int) {
			for i := range 2 {
				if !d.poll(i).IsZero() {
					n++
				}
			}
			return n
		}
		returns, delivers := make(chan bool), make(chan bool)
		adds := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			tx.SetStatus(0, backends.Delivered)
			<-returns
			return tx.AddRecipient(backends.Recipient{Address: "archive@x.example"})
		})
		archive := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			for i, r := range tx.Envelope.Recipients {
				if r.Address == "archive@x.example" {
					<-delivers
				}
				tx.SetStatus(i, backends.Delivered)
			}
			return nil
		})
		s := chainServer(t, adds, archive)
		d := begin(t, s, "to:a@x.example", "to:b@x.example")
		synctest.Wait()
		if n := told(d); n != 0 {
			t.Errorf("%d successes before the backend that adds has returned", n)
		}
		close(returns)
		synctest.Wait()
		if n := told(d); n != 0 {
			t.Errorf("%d successes before the added recipient has one", n)
		}
		close(delivers)
		synctest.Wait()
		if n := told(d); n != 2 {
			t.Errorf("%d successes at the end, want 2", n)
		}
	})
}

// An added recipient that has no answer in time leaves none of the others
// with a success.
func TestAddedRecipientInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			for i, r := range tx.Envelope.Recipients {
				if r.Address == "archive@x.example" {
					<-ctx.Done()
					return ctx.Err()
				}
				tx.SetStatus(i, backends.Delivered)
			}
			return nil
		})
		s := chainServer(t, backends.Func(addRecipients), hangs)
		wantReplies(t, deliver(t, s, "to:with-archive@x.example"),
			"451 4.4.7 <with-archive@x.example> not delivered in time, try again later (ID)")
	})
}

// A refusal is told at once, whoever may be added.
func TestRefusalDoesNotWaitForAdded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		returns := make(chan bool)
		refuses := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			tx.SetAll(backends.NoSuchUser)
			<-returns
			return nil
		})
		d := begin(t, chainServer(t, refuses, refuses), "to:a@x.example")
		synctest.Wait()
		if s := d.poll(0); s != backends.NoSuchUser {
			t.Errorf("got %v, want the refusal", s)
		}
		close(returns)
	})
}

// Whoever is diverted from the last backend may be followed by one that is
// added: the others wait for that, too.
func TestAddedByNamedRoute(t *testing.T) {
	last := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		tx.SetStatus(0, backends.Delivered)
		return tx.Divert(1, "named")
	})
	end := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		for i, r := range tx.Envelope.Recipients {
			if r.Address == "archive@x.example" {
				tx.SetStatus(i, backends.StorageFull)
			}
		}
		tx.SetAll(backends.Delivered)
		return nil
	})
	s := testServer(t, map[string]backends.Backend{"last": last, "add": backends.Func(addRecipients), "end": end},
		"protocol = 'lmtp'\n[listener.routes]\n'*' = ['last']\n[named_routes]\nnamed = ['add', 'end']\n")
	wantReplies(t, deliver(t, s, "to:a@x.example", "to:with-archive@x.example"),
		"452 4.3.1 <a@x.example> insufficient system storage, try again later (ID)",
		"452 4.3.1 <with-archive@x.example> insufficient system storage, try again later (ID)")
}

// Branches and parts begin one after the other; the first ones that end know
// of those to come.
func TestAddedByTheLastToBegin(t *testing.T) {
	all := map[string]backends.Backend{
		"ok":      backends.Func(byLocalPart),
		"refuses": backends.Func(func(_ context.Context, tx *backends.DataContext) error { tx.SetAll(backends.NoSuchUser); return nil }),
		"few": backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			for i, r := range tx.Envelope.Recipients {
				if r.Address == "last@x.example" {
					return tx.AddRecipient(backends.Recipient{Address: "archive@x.example"})
				}
				tx.SetStatus(i, backends.Delivered)
			}
			return nil
		}),
	}
	s := testServer(t, all, "protocol = 'lmtp'\n[listener.routes]\n'*' = ['few', 'refuses']\n'@y.example' = ['ok']\n")
	to := []string{"to:ok@y.example"}
	for i := range 40 {
		to = append(to, fmt.Sprintf("to:%d@x.example", i))
	}
	for range 50 {
		for _, r := range deliver(t, s, append(to, "to:last@x.example")...) {
			if strings.HasPrefix(r, "250") {
				t.Fatalf("%s, though the added one was refused", r)
			}
		}
	}
}

// What was to be added and cannot be is no success of anybody, whatever the
// failure policy is.
func TestAddInVain(t *testing.T) {
	adds := func(edit func(*backends.DataContext)) backends.Backend {
		return backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			tx.SetAll(backends.Delivered)
			edit(tx)
			return tx.AddRecipient(backends.Recipient{Address: "archive@x.example"})
		})
	}
	last := backends.Func(byLocalPart)
	chains := map[string][]backends.Backend{
		"an edit that cannot be": {adds(func(tx *backends.DataContext) { tx.RemoveField(9) }), last},
		"parameters": {adds(func(tx *backends.DataContext) {
			tx.AddRecipient(backends.Recipient{Address: "b@x.example", Params: backends.Params{"NOTIFY=NEVER,\u00fc"}})
		}), last},
		"parameters of MAIL": {adds(func(tx *backends.DataContext) {
			tx.AddRecipient(backends.Recipient{Address: "b@x.example", Params: backends.Params{"RET=FULL"}})
		}), last},
		"a value that is none": {adds(func(tx *backends.DataContext) {
			tx.AddRecipient(backends.Recipient{Address: "b@x.example", Params: backends.Params{"NOTIFY=SOMETIMES"}})
		}), last},
		"an address":   {adds(func(tx *backends.DataContext) { tx.AddRecipient(backends.Recipient{Address: "b@x..example"}) }), last},
		"nobody after": {adds(func(*backends.DataContext) {})},
	}
	for name, chain := range chains {
		for _, policy := range []string{"tempfail", "pass", "reject"} {
			s := chainServer(t, chain...)
			s.backends["backend0"].OnFailure = policy
			wantReplies(t, deliver(t, s, "to:a@x.example"), "451 4.3.0 <a@x.example> try again later (ID)")
			if t.Failed() {
				t.Fatalf("%s, %s", name, policy)
			}
		}
	}
}

// noEditor is a backend that edits nothing.
type noEditor struct{ backends.Func }

func (noEditor) MayEdit() backends.EditKinds { return 0 }

// Successes wait only where somebody may be added.
func TestSuccessWaitsForThoseWhoMayAdd(t *testing.T) {
	for _, test := range []struct {
		chain func(early, passes backends.Func) []backends.Backend
		waits bool
	}{
		{func(early, _ backends.Func) []backends.Backend { return []backends.Backend{early} }, true},
		{func(early, _ backends.Func) []backends.Backend { return []backends.Backend{noEditor{early}} }, false},
		{func(early, last backends.Func) []backends.Backend { return []backends.Backend{noEditor{early}, last} }, true},
		{func(early, last backends.Func) []backends.Backend {
			return []backends.Backend{noEditor{early}, noEditor{last}}
		}, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			returns := make(chan bool)
			s := chainServer(t, test.chain(func(_ context.Context, tx *backends.DataContext) error {
				tx.SetStatus(0, backends.Delivered)
				<-returns
				tx.SetStatus(1, backends.Delivered)
				return nil
			}, byLocalPart)...)
			d := begin(t, s, "to:a@x.example", "to:b@x.example")
			synctest.Wait()
			if told := !d.poll(0).IsZero(); told == test.waits {
				t.Errorf("%d backends: told at once: %t", len(s.backends), told)
			}
			close(returns)
			synctest.Wait()
			if d.poll(0).IsZero() {
				t.Error("not told at the end")
			}
		})
	}
}

// A backend that wants few recipients at once has few parts at once, too.
func TestFewPartsAtOnce(t *testing.T) {
	var mu sync.Mutex
	var now, most int
	enough, goOn := make(chan bool), make(chan bool)
	few := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		mu.Lock()
		if now++; now > most {
			if most = now; most == maxParts {
				close(enough)
			}
		}
		mu.Unlock()
		<-goOn
		mu.Lock()
		now--
		mu.Unlock()
		tx.SetAll(backends.Delivered)
		return nil
	})
	s := testServer(t, map[string]backends.Backend{"few": few}, "protocol = 'lmtp'\n[listener.routes]\n'*' = ['few']\n")
	var to []string
	for i := range 100 {
		to = append(to, fmt.Sprintf("to:%d@x.example", i))
	}
	d := begin(t, s, to...)
	<-enough
	close(goOn)
	for i := range to {
		d.wait(i)
	}
	if most != maxParts {
		t.Errorf("%d parts at once, want %d", most, maxParts)
	}
}

// Of several messages that replace one the last is kept, in memory too.
func TestReplacedMessageIsGivenBack(t *testing.T) {
	var s *Server
	replaces := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		before := s.spool.free.Load()
		for range 100 {
			if err := tx.ReplaceMessage(strings.NewReader("A: 1\r\n\r\nreplaced\r\n")); err != nil {
				return err
			}
		}
		if took := before - s.spool.free.Load(); took > chunkSize {
			t.Errorf("100 replacements take %d octets", took)
		}
		return nil
	})
	s = chainServer(t, replaces, backends.Func(tellMessage))
	before := s.spool.free.Load()
	d := begin(t, s, "to:a@x.example")
	if got := d.wait(0).Text; got != `"A: 1\r\n\r\nreplaced\r\n"` {
		t.Errorf("got %q", got)
	}
	<-d.back // at the end of the transaction
	if n := len(d.messages); n != 0 || s.spool.free.Load() != before {
		t.Errorf("%d messages and %d octets are left", n, before-s.spool.free.Load())
	}
}

// Who replaces the message while Deliver returns may be too late, but closes
// nothing that serves another one.
func TestReplaceAtTheEnd(t *testing.T) {
	var late sync.WaitGroup
	s := chainServer(t, backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		late.Go(func() { tx.ReplaceMessage(strings.NewReader("A: 1\r\n\r\nreplaced\r\n")) })
		tx.SetAll(backends.Delivered)
		return nil
	}))
	before := s.spool.free.Load()
	for range 2000 {
		d := begin(t, s, "to:a@x.example")
		<-d.back
	}
	late.Wait()
	if after := s.spool.free.Load(); after != before {
		t.Errorf("the budget is %d after, %d before", after, before)
	}
}
