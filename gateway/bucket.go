package gateway

import (
	"container/heap"
	"time"
)

// buckets are token buckets, one for each key. A full bucket holds amount
// tokens, and an empty one fills evenly in the time per.
//
// A bucket is nothing but the time at which it is full again (the generic cell
// rate algorithm, ITU-T I.371). One that is full tells nothing and is
// forgotten. If there are too many, the one that is full soonest is forgotten
// first, so that a client with ever new keys pushes out those keys, and not
// the empty buckets of others or its own.
type buckets struct {
	amount int64
	per    time.Duration
	most   int // buckets
	byKey  map[uint64]*bucket
	queue  fillingUp
}

// maxBuckets bounds the buckets of one kind, to some 10 MiB.
const maxBuckets = 100_000

type bucket struct {
	key  uint64
	full time.Time
	at   int // place in the queue
}

// newBuckets returns nil, which is not asked, if there is no limit.
func newBuckets(amount int64, per time.Duration) *buckets {
	if amount == 0 {
		return nil
	}
	return &buckets{amount: amount, per: per, most: maxBuckets, byKey: map[uint64]*bucket{}}
}

// fills returns how long n tokens take to come back. Nothing can take more
// than a full bucket.
func (b *buckets) fills(n int64) time.Duration {
	return time.Duration(float64(min(n, b.amount)) / float64(b.amount) * float64(b.per))
}

// full returns when the bucket of key is full: now, if it is.
func (b *buckets) full(key uint64, now time.Time) time.Time {
	if known, ok := b.byKey[key]; ok && known.full.After(now) {
		return known.full
	}
	return now
}

// has reports whether the bucket of key has n tokens.
func (b *buckets) has(key uint64, n int64, now time.Time) bool {
	return b.full(key, now).Add(b.fills(n)).Sub(now) <= b.per
}

// mostOwed is how many fillings a bucket owes at most.
const mostOwed = 10

// take takes n tokens from the bucket of key, also those that it does not
// have.
func (b *buckets) take(key uint64, n int64, now time.Time) {
	full := b.full(key, now).Add(b.fills(n))
	if latest := now.Add((1 + mostOwed) * b.per); full.After(latest) {
		full = latest
	}
	for len(b.queue) > 0 && !b.queue[0].full.After(now) {
		b.forget(b.queue[0])
	}
	if known, ok := b.byKey[key]; ok {
		known.full = full
		heap.Fix(&b.queue, known.at)
		return
	}
	if len(b.queue) >= b.most {
		b.forget(b.queue[0])
	}
	added := &bucket{key: key, full: full}
	b.byKey[key] = added
	heap.Push(&b.queue, added)
}

// give gives back n tokens that were taken a while ago, as far as they have
// not come back since: those would be somebody else's.
func (b *buckets) give(key uint64, n int64, ago time.Duration) {
	if known, ok := b.byKey[key]; ok {
		known.full = known.full.Add(-max(0, b.fills(n)-ago))
		heap.Fix(&b.queue, known.at)
	}
}

func (b *buckets) forget(old *bucket) {
	heap.Remove(&b.queue, old.at)
	delete(b.byKey, old.key)
}

// fillingUp is a heap of buckets. The first one is full soonest.
type fillingUp []*bucket

func (q fillingUp) Len() int           { return len(q) }
func (q fillingUp) Less(i, j int) bool { return q[i].full.Before(q[j].full) }

func (q fillingUp) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

func (q *fillingUp) Push(x any) {
	added := x.(*bucket)
	added.at = len(*q)
	*q = append(*q, added)
}

func (q *fillingUp) Pop() any {
	last := len(*q) - 1
	old := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return old
}
