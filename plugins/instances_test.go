package plugins

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// Each transaction takes the instance that has the least to do. If one ends, the
// others go on.
func TestInstances(t *testing.T) {
	log := newGatewayLog()
	c := command(t, "late", log)
	c.Instances = 3
	h := runCommand(t, c, defaultTimes)
	pids := []int{log.pid(t, 1), log.pid(t, 2), log.pid(t, 3)}
	slices.Sort(pids)
	if len(slices.Compact(pids)) != 3 {
		t.Fatalf("the processes are %v, want three", pids)
	}
	busy := func() (all []int32) {
		for _, r := range h.running {
			all = append(all, r.busy.Load())
		}
		return all
	}
	waiting, end := context.WithCancel(t.Context())
	defer end()
	for range 6 {
		deliver(waiting, h, message("", "never"))
	}
	if got := busy(); !slices.Equal(got, []int32{2, 2, 2}) {
		t.Errorf("the instances have %v, want two each", got)
	}
	end()
	eventually(t, "they have nothing to do", func() bool { return slices.Equal(busy(), []int32{0, 0, 0}) })
}

func TestInstanceThatEnds(t *testing.T) {
	log := newGatewayLog()
	c := command(t, "changing", log)
	c.Instances = 2
	slow := defaultTimes
	slow.patience = time.Nanosecond // nobody waits for the one that ends
	h := runCommand(t, c, slow)
	deliver(t.Context(), h, message("", "exit")).wantError(t, "plugin with pid")
	for range 10 {
		if o := deliver(t.Context(), h, message("", "one")); o.statuses[0] != backends.Delivered {
			t.Errorf("got %v, %v while another instance ends", o.statuses, o.err)
		}
	}
	log.wait(t, 3, "started", "")
}

// One that does not start stops them all.
func TestInstancesThatDoNotStart(t *testing.T) {
	checkLeaks(t)
	c := command(t, "settings", newGatewayLog())
	c.Instances = 3
	c.Settings = map[string]any{"path": "bad"}
	if _, err := startHost(t, t.Context(), c, defaultTimes); err == nil {
		t.Error("the plugin starts")
	}
}

// endsOnce ends the start of a plugin once an instance has started.
type endsOnce struct {
	*gatewayLog
	end func()
}

func (e endsOnce) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte(`"event":"started"`)) {
		e.end()
	}
	return e.gatewayLog.Write(line)
}

// Those that did start are stopped then, and not started again.
func TestInstancesOfWhichOneDoesNotStart(t *testing.T) {
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		log := newGatewayLog()
		c := command(t, "answers", log)
		c.Instances = 2
		c.Log = slog.New(slog.NewJSONHandler(endsOnce{log, cancel}, nil))
		if _, err := startHost(t, ctx, c, defaultTimes); err == nil {
			t.Fatal("the plugin starts")
		}
		if started, stopped, again := log.count("started"), log.count("stopped"), log.count("restarting"); started != 1 || stopped != 1 || again != 0 {
			t.Errorf("%d were started, %d stopped, %d started again", started, stopped, again)
		}
	}
}
