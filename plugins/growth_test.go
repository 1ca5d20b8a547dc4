package plugins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

var leaked struct {
	sync.Mutex
	memory [][]byte
	files  []*os.File
}

// leak keeps what the first recipient says of each message, and reads it to its
// end. The status is the process that has read it.
func leak(_ context.Context, tx *backends.DataContext) error {
	var memory []byte
	var file *os.File
	switch tx.Envelope.Recipients[0].Address {
	case "memory":
		memory = slices.Repeat([]byte{1}, 8<<20)
	case "files":
		file, _ = os.Open("/dev/null")
	}
	leaked.Lock()
	leaked.memory, leaked.files = append(leaked.memory, memory), append(leaked.files, file)
	leaked.Unlock()
	if _, err := io.Copy(io.Discard, tx.Body); err != nil {
		return err
	}
	tx.SetAll(backends.NewStatus(250, "2.0.0", fmt.Sprint(os.Getpid())))
	return nil
}

// quickChecks look at plugins all the time.
func quickChecks() times {
	t := defaultTimes
	t.checkEvery = 5 * time.Millisecond
	return t
}

// What leaks is replaced again and again, and no transaction notices.
func TestLeakingPluginIsReplaced(t *testing.T) {
	for what, limit := range map[string]func(*Command){
		"memory": func(c *Command) { c.ReplaceMemory = 300 << 20 },
		"files":  func(c *Command) { c.ReplaceOpenFiles = 60 },
	} {
		t.Run(what, func(t *testing.T) {
			log := newGatewayLog()
			c := command(t, "leaks", log)
			c.Instances = 2
			limit(&c)
			h := runCommand(t, c, quickChecks())

			// One transaction lasts until its process drains.
			body, end := io.Pipe()
			slow := message("", what)
			slow.Size, slow.Body = 5, body
			first := make(chan *outcome)
			go func() { first <- deliver(t.Context(), h, slow) }()
			io.WriteString(end, "be")

			var stop atomic.Bool
			var clients sync.WaitGroup
			for range 4 {
				clients.Go(func() {
					for !stop.Load() {
						if o := deliver(t.Context(), h, message(long[:1000], what)); o.err != nil || o.statuses[0].Code != 250 {
							t.Errorf("got %v, %v", o.statuses, o.err)
						}
					}
				})
			}
			log.wait(t, 3, "draining", "")
			stop.Store(true)
			clients.Wait()
			io.WriteString(end, "gin")
			if o := <-first; o.err != nil || o.statuses[0].Code != 250 {
				t.Errorf("the transaction that lasts: got %v, %v", o.statuses, o.err)
			}
			log.wait(t, 3, "stopped", "")
			r := log.wait(t, 1, "leaking", "")[0]
			if reason := map[string]any{"memory": "replace_memory", "files": "replace_open_files"}[what]; r["reason"] != reason {
				t.Errorf("got the record %v, want the reason %v", r, reason)
			}
			if r["memory"].(float64) < 1<<20 || r["open_files"].(float64) < 5 {
				t.Errorf("got the record %v without figures", r)
			}
			for _, event := range []string{"exited", "unhealthy", "restarting"} {
				if n := log.count(event); n > 0 {
					t.Errorf("%d times %s", n, event)
				}
			}
		})
	}
}

// A limit that the program is above from the beginning would have it replaced for
// ever.
func TestLimitBelowWhatPluginStartsWith(t *testing.T) {
	for key, limit := range map[string]func(*Command){
		"replace_memory":     func(c *Command) { c.ReplaceMemory = 1 << 20 },
		"replace_open_files": func(c *Command) { c.ReplaceOpenFiles = 3 },
	} {
		checkLeaks(t)
		c := command(t, "leaks", newGatewayLog())
		limit(&c)
		_, err := startHost(t, t.Context(), c, defaultTimes)
		if of, ok := errors.AsType[KeyError](err); !ok || of.Key != key || !strings.Contains(err.Error(), "when it has just started") {
			t.Errorf("%s: got the error %v", key, err)
		}
	}
}

// While the next one does not start, the old one goes on.
func TestLeakingPluginWithoutSuccessor(t *testing.T) {
	log := newGatewayLog()
	c := command(t, "leaks", log)
	c.Path = filepath.Join(t.TempDir(), "plugin")
	copyOfSelf(t, c.Path)
	c.ReplaceOpenFiles = 40
	h := runCommand(t, c, quickChecks())
	if err := os.Rename(c.Path, c.Path+".away"); err != nil {
		t.Fatal(err)
	}
	tryUntil := func(n int, event string) {
		t.Helper()
		eventually(t, fmt.Sprint(n, event), func() bool {
			if o := deliver(t.Context(), h, message("", "files")); o.err != nil {
				t.Error(o.err)
			}
			return log.count(event) >= n
		})
	}
	tryUntil(2, "exited")
	if err := os.Rename(c.Path+".away", c.Path); err != nil {
		t.Fatal(err)
	}
	tryUntil(1, "stopped")
	if n := log.count("restarting"); n > 0 {
		t.Errorf("it was started again %d times", n)
	}
}

// One that ends while its successor starts is replaced by that, and by no other.
func TestLeakingPluginThatEnds(t *testing.T) {
	log := newGatewayLog()
	c := command(t, "leaks", log)
	c.ReplaceOpenFiles = 40
	h := runCommand(t, c, quickChecks())
	pid := log.pid(t, 1)
	eventually(t, "it leaks", func() bool {
		deliver(t.Context(), h, message("", "files"))
		return log.count("leaking") > 0
	})
	syscall.Kill(pid, syscall.SIGKILL)
	log.wait(t, 2, "started", "")
	if o := deliver(t.Context(), h, message("", "one")); o.err != nil || o.statuses[0].Text == fmt.Sprint(pid) {
		t.Errorf("got %v, %v", o.statuses, o.err)
	}
	log.wait(t, 1, "exited", "")
	if n := log.count("started"); n != 2 {
		t.Errorf("%d were started", n)
	}
}
