package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// harmless is a backend that is free of effects.
type harmless struct{ backends.Func }

func (harmless) IsEffectFree() bool { return true }

// shadowServer has a filter with a shadow, and a backend that takes the rest.
func shadowServer(t *testing.T, filter, shadow backends.Func) (*Server, *lockedBuffer) {
	t.Helper()
	all := map[string]backends.Backend{"filter": filter, "shade": harmless{shadow}, "store": backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		tx.SetAll(backends.Delivered)
		return nil
	})}
	c := testConfig(t, all, "protocol = 'lmtp'\nunknown_parameters = 'keep'\n[listener.routes]\n'*' = ['filter', 'store']\n[named_routes]\njail = ['store']\n")
	shade := c.Backends["shade"]
	shade.ShadowOf = "filter"
	c.Backends["shade"] = shade
	var log lockedBuffer
	s, err := New(c, all, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s, &log
}

// byName refuses whom the names say.
func byName(name string) backends.Func {
	return func(_ context.Context, tx *backends.DataContext) error {
		for i, r := range tx.Envelope.Recipients {
			if strings.HasPrefix(r.Address, name) {
				tx.SetStatus(i, backends.NoSuchUser)
			}
		}
		return tx.AddField(0, "X-Seen-By: "+name)
	}
}

// A shadow sees what the backend sees. What it says is compared and has no
// effect.
func TestShadow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := shadowServer(t, byName("a"), byName("b"))
		wantReplies(t, deliver(t, s, "to:a@x.example", "to:b@x.example", "to:c@x.example"),
			"550 5.1.1 <a@x.example> no such user (ID)", "250 2.0.0 <b@x.example> delivered (ID)", "250 2.0.0 <c@x.example> delivered (ID)")
		synctest.Wait()
		for _, want := range []string{
			`shadow_of=filter to=a@x.example same=false says="next backend" original="550 5.1.1 no such user"`,
			`shadow_of=filter to=b@x.example same=false says="550 5.1.1 no such user" original="next backend"`,
			`shadow_of=filter to=c@x.example same=true says="next backend" original="next backend"`,
		} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("%s is not in\n%s", want, log.String())
			}
		}
	})
}

// A shadow that hangs, fails or panics delays nothing and harms nobody. What it
// cannot take any more is counted.
func TestShadowThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s, log := shadowServer(t, byName("a"), func(ctx context.Context, tx *backends.DataContext) error {
			<-release
			if strings.HasPrefix(tx.Envelope.Recipients[0].Address, "panic") {
				panic("a bug")
			}
			return errors.New("no such table")
		})
		for range maxCopies + 5 {
			wantReplies(t, deliver(t, s, "to:b@x.example"), "250 2.0.0 <b@x.example> delivered (ID)")
		}
		close(release)
		synctest.Wait()
		if got := strings.Count(log.String(), `says="failure: no such table" original="next backend"`); got != maxCopies {
			t.Errorf("%d copies, want %d", got, maxCopies)
		}
		wantReplies(t, deliver(t, s, "to:panic@x.example"), "250 2.0.0 <panic@x.example> delivered (ID)")
		synctest.Wait()
		time.Sleep(tellDropped) // nobody has a copy meanwhile
		synctest.Wait()
		if text := log.String(); !strings.Contains(text, "backend=shade event=shadow shadow_of=filter dropped=5") || !strings.Contains(text, "failure: panic: a bug") {
			t.Errorf("the log has not what was dropped, or failed:\n%s", text)
		}
		if s.shadowing.copies.number != 0 || s.shadowing.copies.octets != 0 {
			t.Errorf("%d copies of %d octets are left", s.shadowing.copies.number, s.shadowing.copies.octets)
		}
	})
}

// Nobody waits for who takes notes, not even where recipients may be added.
func TestMailDoesNotWaitForRecording(t *testing.T) {
	s, _ := shadowServer(t, byName("a"), byName("a"))
	r, err := s.Record("filter", 1)
	if err != nil {
		t.Fatal(err)
	}
	s.listeners[0].Limits.AnswerTimeout = 10 * time.Second
	r.mu.Lock()
	defer r.mu.Unlock()
	began := time.Now()
	wantReplies(t, deliver(t, s, "to:b@x.example"), "250 2.0.0 <b@x.example> delivered (ID)")
	if waited := time.Since(began); waited >= s.listeners[0].Limits.AnswerTimeout {
		t.Errorf("it took %v", waited)
	}
}

// Edits are compared by what comes of them: for each recipient where it goes, for
// all together the envelope and the message. What cannot be done is a failure.
func TestShadowComparesEdits(t *testing.T) {
	edit := func(edits ...func(tx *backends.DataContext) error) backends.Func {
		return func(_ context.Context, tx *backends.DataContext) error {
			for _, edit := range edits {
				if err := edit(tx); err != nil {
					return err
				}
			}
			return nil
		}
	}
	add := func(field string) func(*backends.DataContext) error {
		return func(tx *backends.DataContext) error { return tx.AddField(0, field) }
	}
	replace := func(text string) func(*backends.DataContext) error {
		return func(tx *backends.DataContext) error { return tx.ReplaceMessage(strings.NewReader(text)) }
	}
	divert := func(route string) func(*backends.DataContext) error {
		return func(tx *backends.DataContext) error { return tx.Divert(0, route) }
	}
	redirect := func(to ...string) func(*backends.DataContext) error {
		return func(tx *backends.DataContext) error { return tx.Redirect(0, to...) }
	}
	archive := func(tx *backends.DataContext) error {
		return tx.AddRecipient(backends.Recipient{Address: "archive@x.example", Params: backends.Params{"NOTIFY=NEVER"}})
	}
	sender := func(address string) func(*backends.DataContext) error {
		return func(tx *backends.DataContext) error { return tx.SetSender(address) }
	}
	params := func(params ...string) func(*backends.DataContext) error {
		return func(tx *backends.DataContext) error { return tx.SetSenderParams(params) }
	}
	refuse := func(tx *backends.DataContext) error { tx.SetAll(backends.NoSuchUser); return nil }
	const to = "to=a@x.example same="
	for _, test := range []struct {
		filter, shadow backends.Func
		want           []string
	}{
		{edit(), edit(), []string{to + `true says="next backend" original="next backend"`}},
		{edit(add("X: 1")), edit(add("X: 1")), []string{
			to + `true says="next backend" original="next backend"`,
			`same=true says="header +1-0" original="header +1-0"`,
		}},
		{edit(add("X: 1")), edit(add("X: 2")), []string{
			to + `true says="next backend" original="next backend"`,
			`same=false says="header +1-0" original="header +1-0" differs=header`,
		}},
		{edit(add("X: 1")), edit(), []string{
			to + `true says="next backend" original="next backend"`,
			`same=false says="no edits" original="header +1-0" differs=header`,
		}},
		{edit(), edit(replace("Subject: x\r\n\r\nanother\r\n")), []string{
			to + `true says="next backend" original="next backend"`,
			`same=false says="header +1-1, body changed" original="no edits" differs="header, body"`,
		}},
		// The one in another way than the other.
		{edit(add("X: 1")), edit(replace("X: 1\r\nA: 1\r\n\r\nbody\r\n")), []string{
			to + `true says="next backend" original="next backend"`,
			`same=true says="header +1-0" original="header +1-0"`,
		}},
		{edit(divert("jail")), edit(), []string{to + `false says="next backend" original="named route jail"`}},
		{edit(divert("jail")), edit(divert("jail")), []string{to + `true says="named route jail" original="named route jail"`}},
		{edit(divert("jail")), edit(divert("nowhere")), []string{
			to + `false says="failure: edit: divert \"a@x.example\": there is no \"nowhere\" in [named_routes]" original="named route jail"`,
		}},
		{edit(redirect("b@x.example", "c@x.example")), edit(redirect("b@x.example")), []string{
			to + `false says="next backend, redirected to b@x.example" original="next backend, redirected to b@x.example c@x.example"`,
		}},
		{edit(sender(""), archive), edit(sender("x@x.example")), []string{
			to + `true says="next backend" original="next backend"`,
			`same=false says="sender <x@x.example>" original="sender <>, recipient <archive@x.example> NOTIFY=NEVER"`,
		}},
		{edit(params("RET=HDRS")), edit(params("RET=FULL")), []string{
			to + `true says="next backend" original="next backend"`,
			`same=false says="sender <sender@example.net> RET=FULL" original="sender <sender@example.net> RET=HDRS"`,
		}},
		{edit(), edit(replace("bare\nLF\r\n")), []string{
			to + `false says="failure: edit: replace message: bare CR or LF in the message" original="next backend"`,
		}},
		// Edits for nobody.
		{edit(refuse), edit(refuse, add("X: 1")), []string{to + `true says="550 5.1.1 no such user" original="550 5.1.1 no such user"`}},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, log := shadowServer(t, test.filter, test.shadow)
			deliver(t, s, "to:a@x.example")
			synctest.Wait()
			var got []string
			for line := range strings.Lines(log.String()) {
				if _, comparison, ok := strings.Cut(line, "event=shadow shadow_of=filter "); ok {
					got = append(got, strings.TrimSuffix(comparison, "\n"))
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}

// Copies that were not made are in the log when the server has ended.
func TestShadowToldAtTheEnd(t *testing.T) {
	s, log := shadowServer(t, byName("a"), byName("a"))
	for s.shadowing.copies.take(1) { // until there is no room
	}
	deliver(t, s, "to:b@x.example")
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "dropped=1") {
		t.Errorf("the log has not what was dropped:\n%s", log.String())
	}
}

// What a shadow puts in the place of its copy costs no memory.
func TestShadowThatReplaces(t *testing.T) {
	s, log := shadowServer(t, byName("a"), func(_ context.Context, tx *backends.DataContext) error {
		return tx.ReplaceMessage(io.LimitReader(lettersX{}, 64<<20))
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	wantReplies(t, deliver(t, s, "to:b@x.example"), "250 2.0.0 <b@x.example> delivered (ID)")
	s.shadowing.running.Wait()
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 8<<20 {
		t.Errorf("took %d octets of memory", used)
	}
	if want := `same=true says="next backend"`; !strings.Contains(log.String(), want) {
		t.Errorf("%s is not in\n%s", want, log.String())
	}
}

// lettersX is endless.
type lettersX struct{}

func (lettersX) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// A status that comes after Deliver has returned is compared as well.
func TestShadowOfLateDeliveries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := shadowServer(t, func(ctx context.Context, tx *backends.DataContext) error {
			tx.StartDelivery(ctx, 0)
			go func() {
				time.Sleep(time.Second)
				tx.SetStatus(0, backends.NoSuchUser)
			}()
			return nil
		}, byName("b"))
		wantReplies(t, deliver(t, s, "to:b@x.example"), "550 5.1.1 <b@x.example> no such user (ID)")
		synctest.Wait()
		if want := `same=true says="550 5.1.1 no such user" original="550 5.1.1 no such user"`; !strings.Contains(log.String(), want) {
			t.Errorf("%s is not in\n%s", want, log.String())
		}
	})
}

func TestShadowIsFreeOfEffects(t *testing.T) {
	all := map[string]backends.Backend{"filter": byName("a"), "shade": byName("b")}
	c := testConfig(t, all, "protocol = 'lmtp'\n[listener.routes]\n'*' = ['filter']\n")
	shade := c.Backends["shade"]
	shade.ShadowOf = "filter"
	c.Backends["shade"] = shade
	if _, err := New(c, all, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "backend.shade.shadow_of: it does not declare that it is free of effects") {
		t.Errorf("got %v", err)
	}
	const text = `
[[listener]]
name = "in"
address = "tcp:127.0.0.1:0"
protocol = "lmtp"
routes = { "*" = ["one", "two"] }
[backend.one]
plugin = "test"
shadow_of = "two"
[backend.two]
plugin = "test"
[backend.three]
plugin = "test"
shadow_of = "one"
[backend.two2]
plugin = "test"
shadow_of = "too"
shadow_share = 101
`
	_, err := parseConfig("test.toml", text, []string{"test"})
	for _, want := range []string{
		`backend.one.shadow_of: a shadow decides nothing, but this one stands in a route`,
		`backend.three.shadow_of: "one" is a shadow itself`,
		`backend.two2.shadow_of: there is no [backend.too]; did you mean two?`,
		`backend.two2.shadow_share: 101 is no share in percent`,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in\n%v", want, err)
		}
	}
}
