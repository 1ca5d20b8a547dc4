package plugins

import (
	"context"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

func TestCloseOfStoppedPlugin(t *testing.T) {
	h, log := run(t, "answers")
	pid := log.pid(t, 1)
	syscall.Kill(pid, syscall.SIGSTOP)
	eventually(t, "the plugin is stopped", func() bool { return processState(pid) == "T" })
	if err := closeHost(t, t.Context(), h); err != nil {
		t.Error(err)
	}
	if !gone(pid) {
		t.Errorf("process %d is still there", pid)
	}
	if how := log.wait(t, 1, "stopped", "")[0]["how"]; how != "signal: killed" {
		t.Errorf("the plugin ended with %v", how)
	}
}

func TestCloseWaitsForTransactions(t *testing.T) {
	h, log := run(t, "late")
	tx := message("", "reads")
	body, end := io.Pipe()
	tx.Size, tx.Body = maxChunk+3, io.MultiReader(strings.NewReader(long[:maxChunk]), body)
	o := deliver(t.Context(), h, tx)

	closed := make(chan error)
	go func() { closed <- h.Close(context.Background()) }()
	eventually(t, "there are no new transactions", func() bool {
		return h.Deliver(t.Context(), message("", "one")) == errStopped
	})
	end.Write([]byte("end"))
	if got, want := o.status(t, 0).Text, fmt.Sprint(maxChunk+3, nil); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	within(t, "Close", func() {
		if err := <-closed; err != nil {
			t.Error(err)
		}
	})
	if how := log.wait(t, 1, "stopped", "")[0]["how"]; how != "exit status 0" {
		t.Errorf("the plugin ended with %v", how)
	}
}

func TestCloseAbortsWhatIsLeft(t *testing.T) {
	h, _ := run(t, "hangs")
	tx := message("hello", "one", "two")
	done := make(chan *outcome)
	go func() { done <- deliver(t.Context(), h, tx) }()
	eventually(t, "the first recipient has its status", func() bool { return !tx.Status(0).IsZero() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := closeHost(t, ctx, h); backends.StatusOf(err) != backends.TimedOut {
		t.Errorf("got the error %v, want the one of the context", err)
	}
	o := <-done
	o.wantError(t, "plugin with pid")
	o.wantUndecided(t, 1)
}
