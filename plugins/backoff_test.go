package plugins

import (
	"context"
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"
)

// The times that the tests shorten, and those that they do not wait for.
func TestTimesAreThePromisedOnes(t *testing.T) {
	checkLeaks(t)
	h, err := Start(t.Context(), command(t, "answers", newGatewayLog()))
	if err != nil {
		t.Fatal(err)
	}
	defer closeHost(t, context.Background(), h)
	for _, test := range []struct {
		name      string
		got, want time.Duration
	}{
		{"a plugin has for its handshake", h.times.handshake, 10 * time.Second},
		{"a transaction waits for a plugin", h.times.patience, 2 * time.Second},
		{"lies between health checks", h.times.checkEvery, 5 * time.Second},
		{"a plugin has for a health check", h.times.checkTimeout, 10 * time.Second},
		{"a plugin has to stop before it is killed", stopTimeout, 3 * time.Second},
		{"lies before the second restart", firstDelay, 100 * time.Millisecond},
		{"lies before a restart at most", maxDelay, 30 * time.Second},
	} {
		if test.got != test.want {
			t.Errorf("the time that %s is %v, want %v", test.name, test.got, test.want)
		}
	}
}

func TestBackoff(t *testing.T) {
	for _, test := range []struct {
		lived []time.Duration
		want  string
	}{
		{make([]time.Duration, 12), "[0s 100ms 200ms 400ms 800ms 1.6s 3.2s 6.4s 12.8s 25.6s 30s 30s]"},
		// One that has lived for a while starts over.
		{[]time.Duration{time.Hour, 0, 0, time.Hour, 0}, "[0s 100ms 200ms 0s 100ms]"},
		// One that ends again and again waits, however long it lived.
		{slices.Repeat([]time.Duration{50 * time.Second}, 12), "[0s 0s 0s 0s 0s 0s 0s 0s 0s 0s 30s 30s]"},
		{slices.Repeat([]time.Duration{90 * time.Second}, 12), "[0s 0s 0s 0s 0s 0s 0s 0s 0s 0s 0s 0s]"},
	} {
		b := backoff{stableAfter: defaultTimes.stable}
		var got []time.Duration
		now := time.Now()
		for _, lived := range test.lived {
			now = now.Add(lived)
			got = append(got, b.next(lived, now))
		}
		if fmt.Sprint(got) != test.want {
			t.Errorf("after %v got the delays %v, want %s", test.lived, got, test.want)
		}
	}
}

// The time of a start that fails is no life.
func TestBackoffOfPluginThatHangsAtItsStart(t *testing.T) {
	times := defaultTimes
	times.handshake, times.stable = time.Second, 500*time.Millisecond
	_, log, file := runFragile(t, times)
	if err := os.WriteFile(file+".hangs", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(log.pid(t, 1), syscall.SIGKILL)
	delays := log.wait(t, 3, "restarting", "")
	if first, last := delays[0]["delay"], delays[2]["delay"]; last.(float64) < first.(float64)+float64(100*time.Millisecond) {
		t.Errorf("got the delays %v and then %v, want them to grow", first, last)
	}
}
