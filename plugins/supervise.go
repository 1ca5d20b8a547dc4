package plugins

import (
	"context"
	"log/slog"
	"slices"
	"time"
)

// A state is what an instance of a plugin is in. It is the event, in the log, of
// the record that tells that the instance has come to it.
type state string

const (
	starting   state = "starting"   // a process of it starts, and has to take its settings
	started    state = "started"    // it gets transactions and questions
	unhealthy  state = "unhealthy"  // it is killed, but for one that was started by hand
	healthy    state = "healthy"    // as started, after unhealthy
	leaking    state = "leaking"    // as started, while another process starts in its place
	draining   state = "draining"   // that one has taken its place, and it ends what it has
	exited     state = "exited"     // it has ended by itself, or has not started
	restarting state = "restarting" // there is a delay before the next start
	resting    state = "resting"    // the same, as long as can be: it has ended too often
	stopped    state = "stopped"    // it was to end
)

// levels are those of the records of states, but for slog.LevelInfo.
var levels = map[state]slog.Level{
	unhealthy: slog.LevelError, exited: slog.LevelError, resting: slog.LevelWarn, leaking: slog.LevelWarn,
}

const (
	firstDelay = 100 * time.Millisecond
	maxDelay   = 30 * time.Second

	// crashBudget is how many times within budgetTime a plugin may end before
	// it waits for maxDelay each time, however long it lived.
	crashBudget = 10
	budgetTime  = 10 * time.Minute
)

// A backoff says how long to wait before a plugin is started again: not at
// all the first time, and then longer and longer until one lives for a while.
// One that ends too often waits for long even so.
type backoff struct {
	stableAfter time.Duration // a plugin that has lived that long is no failure
	failures    int
	ends        []time.Time // within budgetTime, not more than crashBudget+1
}

// spent reports whether the plugin has ended too often.
func (b *backoff) spent() bool { return len(b.ends) > crashBudget }

// next returns the delay after a plugin that lived so long and has ended now.
func (b *backoff) next(lived time.Duration, now time.Time) time.Duration {
	if lived >= b.stableAfter {
		b.failures = 0
	}
	b.failures++
	b.ends = append(b.ends, now)
	b.ends = slices.DeleteFunc(b.ends, func(end time.Time) bool { return now.Sub(end) >= budgetTime })
	b.ends = b.ends[max(0, len(b.ends)-crashBudget-1):]
	if b.spent() {
		return maxDelay
	}
	if b.failures == 1 {
		return 0
	}
	delay := firstDelay
	for range b.failures - 2 {
		if delay *= 2; delay >= maxDelay {
			return maxDelay
		}
	}
	return delay
}

// exitTime is how long the end of a process may take to be noticed that has
// closed its socket. Transactions that wait for the next process wait for it, too.
const exitTime = 200 * time.Millisecond

// A supervisor keeps an instance alive: a process, and after its end the next
// one.
type supervisor struct {
	h        *Host
	instance int
	again    *backoff
	began    chan error // gets the error of the first start, nil if there was none
	away     bool       // was started by hand, and is not there: each attempt is one record

	next     <-chan error // began of the supervisor that is to take over, while that starts
	replaced bool         // that has taken over
}

// run starts the instance and keeps it alive until h.cancel is called, or another
// supervisor has taken over. If it does not start at first, run returns. It has a
// thread of its own: the kernel kills the plugin when the thread ends that has
// started it, and what keeps the plugin from privileges is done to that thread.
func (s *supervisor) run(ctx context.Context) {
	r, err := s.launch(ctx)
	s.began <- err
	for r != nil {
		followed := s.h.follow(r)
		wanted := s.watch(r)
		lived := time.Since(r.began)
		s.h.unset(s.instance, r)
		r.stop()
		<-followed
		s.report(r, wanted, lived)
		if s.next != nil {
			s.settle(r, <-s.next)
		}
		if s.replaced {
			return
		}
		r = s.restart(lived)
	}
}

// enter is where the state of an instance changes, and nowhere else. The state of
// one that was replaced is told only.
func (s *supervisor) enter(to state, attrs ...any) {
	if !s.replaced {
		s.h.mu.Lock()
		s.h.states[s.instance] = to
		s.h.mu.Unlock()
	}
	if s.away && to != exited && to != started {
		return
	}
	attrs = append([]any{"event", string(to), "instance", s.instance + 1}, attrs...)
	s.h.command.Log.Log(context.Background(), levels[to], "backend", attrs...)
}

// launch starts a process.
func (s *supervisor) launch(ctx context.Context) (*running, error) {
	s.enter(starting)
	r, err := launch(ctx, s.h.command, s.h.times, s.h.sockets.path, s.h.request)
	if err != nil {
		return nil, err
	}
	s.h.announced.Do(func() {
		s.h.answers, s.h.mayEdit, s.h.effectFree = r.answers, r.mayEdit, r.effectFree
		s.h.needs, s.h.divertsTo = r.needs, r.divertsTo
		s.h.capabilities.learn(r.capabilities)
		err = s.h.command.fits(r)
	})
	if err != nil {
		r.stop()
		return nil, err
	}
	r.began = time.Now()
	s.away = false
	s.enter(started, r.id(), "delay", time.Since(r.launched).Round(time.Microsecond))
	s.h.set(s.instance, r)
	return r, nil
}

// watch returns when the plugin has ended or was found sick and killed, or when,
// as is wanted, it is to end: with the others, or since it has nothing to do any
// more and another one is in its place. One that was started by hand may be sick:
// perhaps somebody looks at it.
func (s *supervisor) watch(r *running) (wanted bool) {
	ticker := time.NewTicker(s.h.times.checkEvery)
	defer ticker.Stop()
	for sick := false; ; {
		select {
		case <-r.ended:
			r.drain()
			return false
		case <-s.h.ctx.Done():
			return true
		case err := <-s.next:
			if s.settle(r, err); s.replaced {
				s.enter(draining, r.id(), "transactions", r.busy.Load())
			}
			continue
		case <-r.idle:
			return true
		case <-ticker.C:
			if r.lane != nil {
				r.lane.closeIdle(time.Now().Add(-laneIdle))
				r.lane.look()
			}
		case <-r.suspect:
		}
		err := s.examine(r)
		switch {
		case s.h.ctx.Err() != nil || hasEnded(r):
		case err != nil && !sick:
			s.enter(unhealthy, r.id(), "error", err)
			if r.process != nil {
				r.process.kill()
				return false
			}
			sick = true
		case err == nil && sick:
			s.enter(healthy, r.id())
			sick = false
		default:
			s.replaceLeaking(r)
		}
	}
}

// examine returns an error unless the plugin says that it is well. One that has
// closed its socket is about to end, as a rule.
func (s *supervisor) examine(r *running) error {
	ctx, cancel := context.WithTimeout(s.h.ctx, s.h.times.checkTimeout)
	defer cancel()
	asked := time.Now()
	err := r.check(ctx)
	if err == nil {
		return nil
	}
	if vanished(ctx, err) {
		select {
		case <-r.ended:
		case <-time.After(exitTime):
		}
	}
	return lost(ctx, asked, r, err)
}

func hasEnded(r *running) bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// report tells how the plugin has ended.
func (s *supervisor) report(r *running, wanted bool, lived time.Duration) {
	if wanted || s.h.ctx.Err() != nil {
		s.enter(stopped, r.id(), "how", r.how())
		return
	}
	s.enter(exited, r.id(), "how", r.how(), "lived", lived.Round(time.Millisecond), "output", r.words.last(r.how()))
}

// restart starts the plugin again and again until it runs. It returns nil if
// it is to run no more.
func (s *supervisor) restart(lived time.Duration) *running {
	for ; ; lived = 0 {
		s.h.mu.Lock()
		closing := s.h.closing
		s.h.mu.Unlock()
		if closing || s.h.ctx.Err() != nil {
			return nil
		}
		delay, to := s.again.next(lived, time.Now()), restarting
		if s.again.spent() {
			to = resting
		}
		s.enter(to, "delay", delay)
		if !s.h.sleep(delay) {
			return nil
		}
		r, err := s.launch(s.h.ctx)
		if err == nil {
			return r
		}
		if s.h.ctx.Err() == nil {
			s.enter(exited, "error", err)
			s.away = s.h.command.Attach != ""
		}
	}
}

// sleep reports whether the plugin is to run on then.
func (h *Host) sleep(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-h.ctx.Done():
		return false
	}
}
