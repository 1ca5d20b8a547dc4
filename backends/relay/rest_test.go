package relay

import (
	"strings"
	"testing"
	"time"
)

func TestRestGrows(t *testing.T) {
	var r rest
	now := time.Now()
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		want *= time.Second
		pause, wasWell := r.failed(now, now)
		if pause != want || wasWell != (i == 0) || !r.until().Equal(now.Add(want)) {
			t.Errorf("failure %d: rest of %v, was well %t, want %v", i+1, pause, wasWell, want)
		}
		// One that was under way meanwhile tells nothing new.
		if pause, _ := r.failed(now.Add(-1), now.Add(time.Second)); pause != want {
			t.Errorf("failure %d: grows to %v by an old attempt", i+1, pause)
		}
		now = now.Add(pause)
	}
	if r.well(); !r.until().IsZero() {
		t.Errorf("rests until %v, although it is well", r.until())
	}
	if pause, _ := r.failed(now, now); pause != firstRest {
		t.Errorf("the first rest after it was well: %v", pause)
	}
}

// Targets are called a, b and c. A step takes one; what stands after + is resting,
// after * busy, after - tried already.
func TestOrder(t *testing.T) {
	for _, test := range []struct {
		order, state, want string
	}{
		{"ordered", "a b c", "a a a"},
		{"ordered", "+a b c", "b b b"},
		{"ordered", "-a b c", "b b b"},
		{"ordered", "-a +b c", "c c c"},
		{"ordered", "*a b c", "a a a"},
		// Of those that rest, one is tried if there is no other: that whose rest
		// ends first. If one was tried, that is enough.
		{"ordered", "++a +b ++c", "b b b"},
		{"ordered", "-a +b +c", "none none none"},
		{"ordered", "-a -b -c", "none none none"},

		{"balanced", "a b c", "b c a b"},
		{"balanced", "*a b *c", "b b b"},
		{"balanced", "**a *b *c", "b c b b c b"},
		{"balanced", "a +b -c", "a a a"},
		{"balanced", "+a +b ++c", "b a a b"},
	} {
		b := &backend{balanced: test.order == "balanced"}
		now := time.Now()
		var tried []*target
		for word := range strings.FieldsSeq(test.state) {
			target := &target{slots: make(chan struct{}, 5)}
			target.url = strings.TrimLeft(word, "+-*")
			for range strings.Count(word, "+") {
				target.rest.failed(now, now)
			}
			for range strings.Count(word, "*") {
				target.slots <- struct{}{}
			}
			if strings.HasPrefix(word, "-") {
				tried = append(tried, target)
			}
			b.targets = append(b.targets, target)
		}
		var got []string
		for range strings.Fields(test.want) {
			name := "none"
			if target := b.choose(tried, now); target != nil {
				name = target.url
			}
			got = append(got, name)
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s %s: got %q, want %q", test.order, test.state, got, test.want)
		}
	}
}
