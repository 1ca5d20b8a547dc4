package relay

import (
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// known writes down capabilities.
func known(c backends.Capabilities) string {
	var words []string
	for _, w := range []struct {
		name string
		can  bool
	}{{"8BITMIME", c.EightBitMIME}, {"SMTPUTF8", c.SMTPUTF8}, {"BINARYMIME", c.BinaryMIME}, {"DSN", c.DSN}, {"REQUIRETLS", c.RequireTLS}, {"unknown", c.Unknown}} {
		if w.can {
			words = append(words, w.name)
		}
	}
	if c.Size > 0 {
		words = append(words, "SIZE")
	}
	if !c.Relays || !c.Digest {
		words = append(words, "no relay")
	}
	return strings.Join(words, " ")
}

// A target that is asked in vain, and says nothing at all, keeps no other one from
// being asked again after its rest.
func TestSilentTargetIsAskedAlone(t *testing.T) {
	logTo(t, &witness{})
	silent := fake(t, answers(map[string]string{"connect": ""}))
	asked := make(chan bool, 10)
	sick := fake(t, func(verb string) string {
		if verb == "connect" {
			asked <- true
			return "421 busy"
		}
		return ""
	})
	b, err := New(to(silent, sick))
	if err != nil {
		t.Fatal(err)
	}
	<-asked
	<-asked
	b.(*backend).Close()
}

// The relay can do what all targets can. It learns that without a message, and
// then from every EHLO.
func TestCapabilities(t *testing.T) {
	logTo(t, &witness{})
	var mu sync.Mutex
	hello := "250-mx.example.org\r\n250-8BITMIME\r\n250-DSN\r\n250-BINARYMIME\r\n250-REQUIRETLS\r\n250 SIZE 1000"
	reached := make(chan bool)
	url := fake(t, func(verb string) string {
		if verb == "connect" {
			<-reached
		}
		if verb == "EHLO" {
			mu.Lock()
			defer mu.Unlock()
			return hello
		}
		return answers(nil)(verb)
	})
	other := fake(t, answers(map[string]string{"EHLO": "250-mx.example.org\r\n250-CHUNKING\r\n250-BINARYMIME\r\n250-SMTPUTF8\r\n250-SIZE 0\r\n250 8bitmime"}))
	before := runtime.NumGoroutine()
	s := to(url, other)
	s.MaxAge = 1 // so that each message has a connection of its own
	made, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	b := made.(*backend)
	if got := known(b.Capabilities()); got != "unknown" {
		t.Errorf("before the first answer: %s", got)
	}
	changed := b.Changed()
	close(reached)
	for b.Capabilities().Unknown {
		<-changed
		changed = b.Changed()
	}
	if got := known(b.Capabilities()); got != "8BITMIME SIZE" || b.Capabilities().Size != 1000 {
		t.Errorf("of both: %s", got)
	}

	mu.Lock()
	hello = "250-mx.example.org\r\n250-8BITMIME\r\n250-CHUNKING\r\n250-SMTPUTF8\r\n250 BINARYMIME"
	mu.Unlock()
	deliver(t, b)
	<-changed
	if got := known(b.Capabilities()); got != "8BITMIME SMTPUTF8 BINARYMIME" {
		t.Errorf("after another EHLO: %s", got)
	}
	changed = b.Changed()
	deliver(t, b)
	select {
	case <-changed:
		t.Error("the same is a change")
	default:
	}

	b.Close()
	gatewaytest.Eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
}

// Two targets can do what each of them can.
func TestBoth(t *testing.T) {
	all := offer{extensions: map[string]string{
		"8BITMIME": "", "SMTPUTF8": "", "BINARYMIME": "", "CHUNKING": "", "DSN": "", "REQUIRETLS": "",
	}, secure: true}
	if got := both(all.capabilities(), all.capabilities()); got != all.capabilities() || known(got) != "8BITMIME SMTPUTF8 BINARYMIME DSN REQUIRETLS" {
		t.Errorf("of two that can do all: %s", known(got))
	}
	for keyword := range all.extensions {
		less := offer{extensions: maps.Clone(all.extensions), secure: true}
		delete(less.extensions, keyword)
		x, y := both(all.capabilities(), less.capabilities()), both(less.capabilities(), all.capabilities())
		if want := less.capabilities(); x != want || y != want {
			t.Errorf("of one without %s: %s, %s, want %s", keyword, known(x), known(y), known(want))
		}
	}
}

// Zero is no limit.
func TestSmallerSize(t *testing.T) {
	for _, test := range [][3]int64{{0, 0, 0}, {0, 5, 5}, {5, 0, 5}, {5, 3, 3}, {3, 5, 3}} {
		if got := both(backends.Capabilities{Size: test[0]}, backends.Capabilities{Size: test[1]}).Size; got != test[2] {
			t.Errorf("of %d and %d: got %d, want %d", test[0], test[1], got, test[2])
		}
	}
}

// A target that was never reached does not count, as soon as it is known to be away.
func TestCapabilitiesWithoutATarget(t *testing.T) {
	logTo(t, &witness{})
	there := fake(t, answers(map[string]string{"EHLO": "250-mx.example.org\r\n250-8BITMIME\r\n250 DSN"}))
	silent := fake(t, answers(map[string]string{"connect": ""}))
	for _, test := range []struct {
		targets []string
		want    string
	}{
		{[]string{nobody(t), there}, "8BITMIME DSN"},
		{[]string{there, nobody(t), nobody(t)}, "8BITMIME DSN"},
		{[]string{nobody(t)}, "unknown"},
		{[]string{there, silent}, "unknown"},
	} {
		made, err := New(to(test.targets...))
		if err != nil {
			t.Fatal(err)
		}
		b := made.(*backend)
		gatewaytest.Eventually(t, "all were asked that answer", func() bool {
			return !slices.ContainsFunc(b.targets, func(target *target) bool {
				_, asked := target.capabilities()
				return !asked && target.url != silent
			})
		})
		if got := known(b.together()); got != test.want {
			t.Errorf("%q: got %q, want %q", test.targets, got, test.want)
		}
		gatewaytest.Eventually(t, "it tells", func() bool { return b.Capabilities() == b.together() })
		b.Close()
	}
}

// The relay can be closed while it waits for a target, and leaves nothing behind.
func TestCloseWhileAsking(t *testing.T) {
	logTo(t, &witness{})
	waits := make(chan bool, 1)
	url := fake(t, func(verb string) string {
		waits <- true
		return ""
	})
	before := runtime.NumGoroutine()
	b, err := New(to(url))
	if err != nil {
		t.Fatal(err)
	}
	<-waits
	b.(*backend).Close()
	gatewaytest.Eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
	if b.(*backend).targets[0].rest.pause != 0 {
		t.Error("the target is at fault")
	}
}

// A target that answers rests no more.
func TestAnswerEndsRest(t *testing.T) {
	b := newRelay(t, to(fake(t, answers(nil))))
	b.targets[0].rest.failed(time.Now(), time.Now())
	b.targets[0].ask(t.Context())
	if end := b.targets[0].rest.until(); !end.IsZero() {
		t.Errorf("it rests until %v", end)
	}
}

// A target is asked when what is known of it is old, and its rest is over.
func TestAskedNext(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		heard  time.Time
		failed bool
		want   time.Time
	}{
		{time.Time{}, false, time.Time{}.Add(askAgain)}, // at once
		{time.Time{}, true, now.Add(firstRest)},
		{now, false, now.Add(askAgain)},
		{now.Add(-askAgain), true, now.Add(firstRest)},
	} {
		x := &target{heard: test.heard}
		if test.failed {
			x.rest.failed(now, now)
		}
		if got := x.askedNext(); !got.Equal(test.want) {
			t.Errorf("heard %v, failed %t: %v, want %v", test.heard, test.failed, got, test.want)
		}
	}
}
