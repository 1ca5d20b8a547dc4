package plugins

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// The kernel kills a plugin when the thread ends that has started it.
func TestPluginOutlivesThreads(t *testing.T) {
	checkLeaks(t)
	const plugins = 8 // on whose threads other goroutines run is up to the scheduler
	hosts, logs := make([]*Host, plugins), make([]*gatewayLog, plugins)
	for i := range hosts {
		logs[i] = newGatewayLog()
		h, err := startHost(t, t.Context(), command(t, "answers", logs[i]), defaultTimes)
		if err != nil {
			t.Fatal(err)
		}
		defer closeHost(t, context.Background(), h)
		hosts[i] = h
	}
	endThreads()
	for i, h := range hosts {
		if o := deliver(t.Context(), h, message("hello", "delivered")); o.statuses[0] != backends.Delivered {
			t.Errorf("plugin %d: got %v and the error %v", i, o.statuses, o.err)
		}
		if now := runningPID(h); now != logs[i].pid(t, 1) {
			t.Errorf("plugin %d was killed", i)
		}
	}
}

// endThreads ends the threads that any goroutine may run on, unless a system
// call holds them.
func endThreads() {
	const most = 200 // threads that there may be
	var locked, ended sync.WaitGroup
	locked.Add(most)
	for range most {
		ended.Go(func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			locked.Done()
			locked.Wait() // each of them has a thread of its own by then
		})
	}
	ended.Wait()
}

// A backend that computes for long on the only processor leaves other transactions
// their turn.
func TestTransactionsShareAProcessor(t *testing.T) {
	c := command(t, "computes", newGatewayLog())
	c.Env["GOMAXPROCS"] = "1"
	h := runCommand(t, c, defaultTimes)
	deliver(t.Context(), h, message("", "short"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var long sync.WaitGroup
	long.Go(func() { deliver(ctx, h, message("", "long")) })
	eventually(t, "the long one is under way", func() bool { return h.running[0].busy.Load() == 1 })
	within(t, "a short one", func() {
		if o := deliver(t.Context(), h, message("", "short")); o.statuses[0] != backends.Delivered {
			t.Errorf("got %v and the error %v", o.statuses, o.err)
		}
	})
	cancel()
	long.Wait()
}

// Where the scheduler leaves the threads alone, only the lock itself is to be
// seen.
func TestSupervisorIsLockedToItsThread(t *testing.T) {
	checkLeaks(t)
	run(t, "answers")
	want := func(function string) {
		t.Helper()
		var stack string
		eventually(t, function+" is called", func() bool {
			stack = goroutine(function)
			return stack != ""
		})
		if state, _, _ := strings.Cut(stack, "\n"); !strings.Contains(state, "locked to thread") {
			t.Errorf("got %q for the goroutine that calls %s, want it locked to its thread", state, function)
		}
	}
	want(".(*supervisor).watch(")

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := Start(ctx, command(t, "mute", newGatewayLog()))
		ended <- err
	}()
	want("plugins.launch(")
	cancel()
	within(t, "Start", func() { <-ended })
}

// goroutine returns the stack of a goroutine that calls the function, with the
// state of the goroutine in the first line.
func goroutine(function string) string {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(stack, function) {
			return stack
		}
	}
	return ""
}

func runningPID(h *Host) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running[0] == nil {
		return 0
	}
	return h.running[0].process.pid
}
