package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime"
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
	c := testConfig(t, all, "protocol = 'lmtp'\nunknown_parameters = 'keep'\n[listener.routes]\n'*' = ['filter', 'store']\n")
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
			`to=a@x.example shadow_of=filter same=false says="next backend" original="550 5.1.1 no such user"`,
			`to=b@x.example shadow_of=filter same=false says="550 5.1.1 no such user" original="next backend"`,
			`to=c@x.example shadow_of=filter same=true says="next backend" original="next backend"`,
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
		if text := log.String(); !strings.Contains(text, "event=shadow dropped=5") || !strings.Contains(text, "failure: panic: a bug") {
			t.Errorf("the log has not what was dropped, or failed:\n%s", text)
		}
		if s.shadowing.copies.number != 0 || s.shadowing.copies.octets != 0 {
			t.Errorf("%d copies of %d octets are left", s.shadowing.copies.number, s.shadowing.copies.octets)
		}
	})
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
