package plugins

import (
	"context"
	"slices"
	"time"
)

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

// next returns the delay after a plugin that lived so long and has ended now.
func (b *backoff) next(lived time.Duration, now time.Time) time.Duration {
	if lived >= b.stableAfter {
		b.failures = 0
	}
	b.failures++
	b.ends = append(b.ends, now)
	b.ends = slices.DeleteFunc(b.ends, func(end time.Time) bool { return now.Sub(end) >= budgetTime })
	b.ends = b.ends[max(0, len(b.ends)-crashBudget-1):]
	if len(b.ends) > crashBudget {
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

// supervise starts an instance and keeps it alive until h.cancel is called.
// It sends the error of the first start; if there was one, it ends. It has a
// thread of its own: the kernel kills the plugin when the thread ends that has
// started it, and what keeps the plugin from privileges is done to that thread.
func (h *Host) supervise(ctx context.Context, instance int, started chan<- error) {
	r, err := launch(ctx, h.command, h.times, h.sockets.path, h.request)
	if err != nil {
		started <- err
		return
	}
	if instance == 0 {
		h.answers, h.mayEdit, h.effectFree, h.needs = r.answers, r.mayEdit, r.effectFree, r.needs
		h.capabilities.learn(r.capabilities)
	}
	h.began(instance, r)
	started <- nil
	for again := (&backoff{stableAfter: h.times.stable}); r != nil; {
		followed := h.follow(r)
		h.watch(r)
		lived := time.Since(r.began)
		h.set(instance, nil)
		r.stop()
		<-followed
		h.report(r, lived)
		r = h.restart(instance, again, lived)
	}
}

func (h *Host) began(instance int, r *running) {
	h.command.Log.Info("backend", "event", "started", r.id(),
		"delay", time.Since(r.launched).Round(time.Microsecond))
	r.began = time.Now()
	h.set(instance, r)
}

// watch returns when the plugin has ended, is to end, or was found sick and
// killed. One that was started by hand may be sick: perhaps somebody looks at it.
func (h *Host) watch(r *running) {
	ticker := time.NewTicker(h.times.checkEvery)
	defer ticker.Stop()
	for sick := false; ; {
		select {
		case <-r.ended:
			r.drain()
			return
		case <-h.ctx.Done():
			return
		case <-ticker.C:
		case <-r.suspect:
		}
		ctx, cancel := context.WithTimeout(h.ctx, h.times.checkTimeout)
		err := r.check(ctx)
		cancel()
		if err != nil && h.ctx.Err() == nil && !sick {
			h.command.Log.Error("backend", "event", "unhealthy", r.id(), "error", err)
			if r.process != nil {
				r.process.kill()
				return
			}
		}
		sick = err != nil
	}
}

// report logs how the plugin has ended.
func (h *Host) report(r *running, lived time.Duration) {
	log := h.command.Log.With(r.id(), "how", r.how())
	if h.ctx.Err() != nil {
		log.Info("backend", "event", "stopped")
		return
	}
	log.Error("backend", "event", "exited", "lived", lived.Round(time.Millisecond), "output", r.words.last(r.how()))
}

// restart starts the plugin again and again until it runs. It returns nil if
// it is to run no more.
func (h *Host) restart(instance int, again *backoff, lived time.Duration) *running {
	for ; ; lived = 0 {
		delay := again.next(lived, time.Now())
		h.mu.Lock()
		closing := h.closing
		h.mu.Unlock()
		if closing {
			return nil
		}
		h.command.Log.Info("backend", "event", "restarting", "delay", delay)
		select {
		case <-time.After(delay):
		case <-h.ctx.Done():
			return nil
		}
		r, err := launch(h.ctx, h.command, h.times, h.sockets.path, h.request)
		if err == nil {
			h.began(instance, r)
			return r
		}
		if h.ctx.Err() == nil {
			h.command.Log.Error("backend", "event", "exited", "error", err)
		}
	}
}
