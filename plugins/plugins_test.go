package plugins

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mailgw/mailgw/backends"
)

// The test binary is the gateway, and run as "plugin NAME" it is a plugin.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == LaunchArgument {
		if err := Launch(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "launch:", err)
		}
		os.Exit(71)
	}
	laneless = os.Getenv(lanelessEnv) != ""
	if len(os.Args) > 2 && os.Args[1] == "plugin" {
		if b, ok := testBackends[os.Args[2]]; ok {
			Serve(struct{}{}, func(struct{}) (backends.Backend, error) { return b, nil })
		}
		testPrograms[os.Args[2]]()
		os.Exit(0)
	}
	AdoptStrays() // its goroutine is no leak of a test
	os.Exit(m.Run())
}

// lanelessEnv has a plugin of the tests announce no lane.
const lanelessEnv = "LANELESS"

// overGRPC has transactions go over gRPC although there is the lane.
func overGRPC(c *Command) { c.Env[lanelessEnv] = "1" }

// A gatewayLog is the log of the gateway, for tests to wait for records.
type gatewayLog struct {
	mu      sync.Mutex
	records []map[string]any
	changed chan struct{}
}

func newGatewayLog() *gatewayLog { return &gatewayLog{changed: make(chan struct{})} }

func (l *gatewayLog) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (l *gatewayLog) Write(line []byte) (int, error) {
	var record map[string]any
	if err := json.Unmarshal(line, &record); err != nil {
		panic(fmt.Sprintf("%v in the log: %q", err, line))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, record)
	close(l.changed)
	l.changed = make(chan struct{})
	return len(line), nil
}

// wait returns the first n records with that event whose text contains text.
func (l *gatewayLog) wait(t testing.TB, n int, event, text string) []map[string]any {
	t.Helper()
	timeout := time.After(patience)
	for {
		l.mu.Lock()
		changed := l.changed
		var found []map[string]any
		for _, r := range l.records {
			if r["event"] == event && strings.Contains(fmt.Sprint(r["text"]), text) {
				found = append(found, r)
			}
		}
		l.mu.Unlock()
		if len(found) >= n {
			return found[:n]
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("got %d records %s %q, want %d; the log is %v", len(found), event, text, n, l.records)
		}
	}
}

// count returns how many records there are with that event.
func (l *gatewayLog) count(event string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records {
		if r["event"] == event {
			n++
		}
	}
	return n
}

// pid returns the number of the nth process that was started.
func (l *gatewayLog) pid(t testing.TB, nth int) int {
	t.Helper()
	return int(l.wait(t, nth, "started", "")[nth-1]["pid"].(float64))
}

// command is the test binary as the plugin with that name.
func command(t testing.TB, name string, log *gatewayLog) Command {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := Command{
		Name:      name,
		Path:      path,
		Args:      []string{"plugin", name},
		Env:       map[string]string{"GORACE": "atexit_sleep_ms=0"}, // by default a second at each exit
		Directory: socketParent(t),
		Log:       log.logger(),
	}
	if allOverGRPC {
		overGRPC(&c)
	}
	return c
}

// allOverGRPC is set while the tests of the lane are made without it.
var allOverGRPC bool

// socketParent is a directory with a short path. Nothing may be left in it.
func socketParent(t testing.TB) string {
	t.Helper()
	directory, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, _ := filepath.Glob(directory + "/*"); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		os.RemoveAll(directory)
	})
	return directory
}

// run starts a plugin and stops it at the end of the test, when nothing of it
// may be left.
func run(t testing.TB, name string) (*Host, *gatewayLog) {
	t.Helper()
	log := newGatewayLog()
	return runCommand(t, command(t, name, log), defaultTimes), log
}

func runCommand(t testing.TB, c Command, times times) *Host {
	t.Helper()
	checkLeaks(t)
	h, err := startHost(t, t.Context(), c, times)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := closeHost(t, context.Background(), h); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return h
}

func startHost(t testing.TB, ctx context.Context, c Command, times times) (h *Host, err error) {
	t.Helper()
	within(t, "Start", func() { h, err = start(ctx, c, times) })
	return h, err
}

func closeHost(t testing.TB, ctx context.Context, h *Host) (err error) {
	t.Helper()
	within(t, "Close", func() { err = h.Close(ctx) })
	return err
}

// program is the program of a command, and killed if the test hangs.
func program(t testing.TB, c Command) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, c.Path, c.Args...)
}

// patience is how long a test waits for what is to end at once, or within the
// seconds that the gateway gives it.
const patience = 20 * time.Second

// within fails the test unless f returns in time.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s has not returned within %v", what, patience)
	}
}

// checkLeaks fails the test if it ends with more goroutines, descriptors or
// children than there are now.
func checkLeaks(t testing.TB) {
	t.Helper()
	goroutines, descriptors := runtime.NumGoroutine(), countDescriptors(t)
	t.Cleanup(func() {
		t.Helper()
		eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines })
		eventually(t, "no descriptor is left", func() bool { return countDescriptors(t) <= descriptors })
		// What a test has ended of what a plugin left behind is reaped by adoptStrays.
		eventually(t, "no child process is left", func() bool {
			return unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) == unix.ECHILD
		})
	})
}

func countDescriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// eventually waits until a condition holds that nobody announces.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for end := time.Now().Add(patience); !condition(); <-ticker.C {
		if time.Now().After(end) {
			t.Fatalf("after %v it is not true that %s", patience, what)
		}
	}
}

// gone reports whether there is no such process, not even a zombie.
func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

// message is a transaction with that message and those recipients.
func message(text string, to ...string) *backends.DataContext {
	tx := &backends.DataContext{ID: "T1", Size: int64(len(text)), Body: strings.NewReader(text)}
	for _, address := range to {
		tx.Envelope.Recipients = append(tx.Envelope.Recipients, backends.Recipient{Address: address})
	}
	return tx
}

// An outcome is what a caller of a backend sees.
type outcome struct {
	mu       sync.Mutex
	statuses map[int]backends.Status
	order    []int
	started  []int
	ignored  []string
	crashes  map[int]*backends.CrashError
	response backends.Status
	digest   backends.Digest
	changed  chan struct{}

	undecided []int
	err       error
}

// deliver calls a backend as the gateway does. The outcome of a call that hangs
// is an error that no test wants.
func deliver(ctx context.Context, b backends.Backend, tx *backends.DataContext) *outcome {
	done := make(chan *outcome, 1)
	go func() { done <- deliverAtLeisure(ctx, b, tx) }()
	select {
	case o := <-done:
		return o
	case <-time.After(patience):
		return &outcome{err: fmt.Errorf("Deliver has not returned within %v", patience)}
	}
}

func deliverAtLeisure(ctx context.Context, b backends.Backend, tx *backends.DataContext) *outcome {
	o := &outcome{statuses: map[int]backends.Status{}, crashes: map[int]*backends.CrashError{}, changed: make(chan struct{}, 100)}
	o.undecided, o.err = backends.Run(ctx, b, tx, backends.Hooks{
		Status: func(i int, s backends.Status) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.statuses[i] = s
			o.order = append(o.order, i)
			o.changed <- struct{}{}
		},
		Started: func(i int) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.started = append(o.started, i)
		},
		Ignored: func(i int, s backends.Status, why string) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.ignored = append(o.ignored, why)
		},
		Crashed: func(i int, crash *backends.CrashError) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.crashes[i] = crash
		},
		SMTPResponse: func(s backends.Status) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.response = s
		},
		Wrote: func(d backends.Digest) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.digest = d
		},
	})
	return o
}

// status returns the status of recipient i once it has one.
func (o *outcome) status(t testing.TB, i int) backends.Status {
	t.Helper()
	timeout := time.After(patience)
	for {
		o.mu.Lock()
		s, ok := o.statuses[i]
		o.mu.Unlock()
		if ok {
			return s
		}
		select {
		case <-o.changed:
		case <-timeout:
			t.Fatalf("recipient %d has no status", i)
		}
	}
}

// wantError checks that the transaction has failed in a way that leaves the
// recipients to the gateway's 451.
func (o *outcome) wantError(t testing.TB, text string) {
	t.Helper()
	if o.err == nil || backends.StatusOf(o.err) != backends.TryLater || !strings.Contains(o.err.Error(), text) {
		t.Errorf("got the error %v, want one with %q that means %v", o.err, text, backends.TryLater)
	}
}

func (o *outcome) wantUndecided(t testing.TB, want ...int) {
	t.Helper()
	if !slices.Equal(o.undecided, want) {
		t.Errorf("got the undecided recipients %v, want %v", o.undecided, want)
	}
}

// readAll returns the message of an edit.
func readAll(t testing.TB, m backends.Message) string {
	t.Helper()
	if m == nil {
		t.Fatal("there is no message")
	}
	var b bytes.Buffer
	if _, err := io.Copy(&b, io.NewSectionReader(m, 0, m.Size())); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
