package relay

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// A target that cannot be talked to is rested, for longer each time.
const (
	firstRest   = time.Second
	longestRest = time.Minute
)

// rest is what is known of a target's health. The zero rest is that of one that
// is well.
type rest struct {
	mu    sync.Mutex
	pause time.Duration // 0: it is well
	began time.Time
}

// until returns when the target is to be tried again, the zero Time if it is
// well.
func (r *rest) until() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pause == 0 {
		return time.Time{}
	}
	return r.began.Add(r.pause)
}

// failed begins a rest, and returns how long it is and whether the target was
// well before. An attempt that was begun before the last rest tells nothing new.
func (r *rest) failed(attempt, now time.Time) (pause time.Duration, wasWell bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wasWell = r.pause == 0
	if wasWell || !attempt.Before(r.began) {
		r.pause = min(max(firstRest, 2*r.pause), longestRest)
		r.began = now
	}
	return r.pause, wasWell
}

// well ends it.
func (r *rest) well() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pause = 0
}

// choose returns the target to be tried next of those that were not tried yet:
// the first that is not resting, in balanced order the least busy; or nil. If all
// rest and none was tried, it is the one whose rest ends first.
func (b *backend) choose(tried []*target, now time.Time) *target {
	targets := slices.DeleteFunc(b.inOrder(), func(t *target) bool { return slices.Contains(tried, t) })
	for _, t := range targets {
		if !now.Before(t.rest.until()) {
			return t
		}
	}
	if len(tried) > 0 || len(targets) == 0 {
		return nil
	}
	return slices.MinFunc(targets, func(x, y *target) int { return x.rest.until().Compare(y.rest.until()) })
}

// inOrder returns the targets as the settings have them or, in balanced order,
// those first that have least to do. Of several that have the same it is each
// one's turn.
func (b *backend) inOrder() []*target {
	targets := slices.Clone(b.targets)
	if !b.balanced || len(targets) < 2 {
		return targets
	}
	turn := int(b.turn.Add(1) % uint32(len(targets)))
	targets = append(targets[turn:], targets[:turn]...)
	busy := map[*target]int{}
	for _, t := range targets {
		busy[t] = t.busy()
	}
	slices.SortStableFunc(targets, func(x, y *target) int { return cmp.Compare(busy[x], busy[y]) })
	return targets
}
