package gateway

import (
	"math/rand/v2"
	"testing"
	"time"
)

// taken takes n tokens if there are so many.
func taken(b *buckets, key uint64, n int64, now time.Time) bool {
	ok := b.has(key, n, now)
	if ok {
		b.take(key, n, now)
	}
	return ok
}

func TestBucketFillsEvenly(t *testing.T) {
	began := time.Now()
	b := newBuckets(6, time.Minute)
	for i, step := range []struct {
		at   time.Duration
		n    int64
		want bool
	}{
		// A bucket is full at first, and every key has its own.
		{0, 4, true},
		{0, 3, false},
		{0, 2, true},
		{0, 1, false},

		// A token comes back in ten seconds, no sooner.
		{10*time.Second - 1, 1, false},
		{10 * time.Second, 1, true},
		{10 * time.Second, 1, false},

		// What was refused has cost nothing.
		{30 * time.Second, 3, false},
		{30 * time.Second, 2, true},

		// It never holds more than it can; nothing takes more than that.
		{time.Hour, 100, true},
		{time.Hour, 1, false},
		{time.Hour + 59*time.Second, 100, false},
		{time.Hour + 60*time.Second, 100, true},

		// Time that goes backwards gives nothing.
		{time.Hour, 1, false},
	} {
		if got := taken(b, 1, step.n, began.Add(step.at)); got != step.want {
			t.Errorf("step %d: %d tokens after %v: got %v, want %v", i, step.n, step.at, got, step.want)
		}
	}
	if !taken(b, 2, 6, began) {
		t.Error("the bucket of another key is not full")
	}
}

// A bucket that is overdrawn fills first, but owes ten fillings at most.
func TestBucketOwesTenFillings(t *testing.T) {
	now := time.Now()
	b := newBuckets(100, time.Minute)
	for range 50 {
		b.take(1, 90, now)
	}
	if b.has(1, 1, now.Add(10*time.Minute)) {
		t.Error("has a token before it has paid what it owes")
	}
	if now = now.Add(11 * time.Minute); !b.has(1, 100, now) {
		t.Error("is not full after eleven fillings")
	}
}

// What is given back is there again, and no more than a full bucket.
func TestBucketTakesBack(t *testing.T) {
	now := time.Now()
	b := newBuckets(100, time.Minute)
	b.take(1, 60, now)
	b.take(2, 50, now)
	b.give(1, 40, 0)
	b.give(3, 40, 0) // which is full
	for key, has := range map[uint64]int64{1: 80, 2: 50, 3: 100} {
		if !b.has(key, has, now) || has < 100 && b.has(key, has+1, now) {
			t.Errorf("bucket %d does not have %d tokens", key, has)
		}
	}
	b.give(1, 40, 0)
	b.take(1, 100, now)
	if b.has(1, 1, now) {
		t.Error("has more than a full bucket")
	}
}

// Whatever is asked when, no more is taken in any time than a full bucket and
// what comes back in that time.
func TestBucketHoldsTheRate(t *testing.T) {
	for _, amount := range []int64{1, 3, 7, 100, 50 << 20} {
		random := rand.New(rand.NewPCG(1, uint64(amount)))
		b := newBuckets(amount, time.Hour)
		began := time.Now()
		now, sum := began, int64(0)
		for range 10_000 {
			now = now.Add(time.Duration(random.Int64N(int64(time.Hour) / 5)))
			if n := 1 + random.Int64N(amount); taken(b, 1, n, now) {
				sum += n
			}
			most := float64(amount) * (1 + float64(now.Sub(began))/float64(time.Hour))
			if float64(sum) > most+1 {
				t.Fatalf("%d of %d per hour in %v", sum, amount, now.Sub(began))
			}
		}
		if hours := now.Sub(began).Hours(); float64(sum) < hours*float64(amount)/4 {
			t.Errorf("%d of %d per hour in %v: far too few", sum, amount, now.Sub(began))
		}
	}
}

// Keys are bounded. Those that are full again go, then those that have used
// the least, so that nobody gets a full bucket by coming with other keys.
func TestNewKeysPushOutTheFullest(t *testing.T) {
	now := time.Now()
	b := newBuckets(100, time.Hour)
	b.most = 1000
	b.take(0, 100, now)
	for key := range uint64(10_000) {
		b.take(1+key, 1, now)
		if len(b.byKey) > b.most || len(b.queue) != len(b.byKey) {
			t.Fatalf("%d keys, %d in the queue", len(b.byKey), len(b.queue))
		}
	}
	if b.has(0, 1, now) {
		t.Error("the empty bucket was forgotten")
	}
	b.take(0, 1, now.Add(3*time.Hour))
	if len(b.byKey) != 1 {
		t.Errorf("%d keys after all are full again", len(b.byKey))
	}
}

// What all buckets of a rate cost: the comment on maxBuckets.
func BenchmarkBucketOfNewKey(b *testing.B) {
	b.ReportAllocs()
	all := newBuckets(100, time.Hour)
	now, key := time.Now(), uint64(0)
	for b.Loop() {
		key++
		all.take(key*0x9e3779b97f4a7c15, 1, now)
	}
}

// What has come back by itself is not given back once more: whoever holds many
// tokens for a long time does not get more of them than there are.
func TestGivingBackLate(t *testing.T) {
	now := time.Unix(1e9, 0)
	b := newBuckets(10, time.Minute)
	for range 10 {
		b.take(1, 1, now)
	}
	now = now.Add(time.Minute)
	given := 0
	for range 10 {
		if b.has(1, 1, now) {
			b.take(1, 1, now)
			given++
		}
		b.give(1, 1, time.Minute)
	}
	if given != 10 || b.has(1, 1, now) {
		t.Errorf("%d tokens were to be had, and one more: %t, want 10 and no more", given, b.has(1, 1, now))
	}
}
