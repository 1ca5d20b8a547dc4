package plugins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// testPrograms are programs that are no good plugins.
var testPrograms = map[string]func(){
	"changing": func() { Serve(struct{}{}, func(struct{}) (backends.Backend, error) { return nextHop, nil }) },
	"exits": func() {
		fmt.Fprintln(os.Stderr, "no licence\x1b")
		os.Exit(7)
	},
	"stray":    stray,
	"mute":     hang,
	"babbles":  func() { fmt.Println("Welcome!"); hang() },
	"succeeds": func() {},
	"twenty":   func() { fmt.Fprint(os.Stderr, strings.Repeat("word\n", 19)+"last\n"); os.Exit(7) },
	"greets":   greets,
	"flood":    func() { io.Copy(os.Stdout, endless{}) },
	"tcp":      func() { fmt.Println("1|1|tcp|127.0.0.1:1|grpc"); hang() },
	"nothing":  func() { fmt.Println("1|1|unix|/nonexistent|grpc"); hang() },
	"gateway":  gateway,
	"stranger": lookAtLane,
	"fragile":  fragile,
	"raw":      serveRaw,
	"player":   servePlayer,
	"settings": serveSettings,
	"asked":    serveAsked,
}

// hang never returns. The runtime takes select {} for a deadlock where nothing
// else goes on, as in a program without cgo.
func hang() { time.Sleep(math.MaxInt64) }

func TestFaultyProgramAtStart(t *testing.T) {
	for name, want := range map[string][]string{
		"exits":    {"exit status 7", `"no licence\x1b"`},
		"succeeds": {"ended at its start: exit status 0; is it a mailgw plugin? it must call plugins.Serve"},
		"twenty":   {`it wrote: ["word" "word" "last"]`},
		"mute":     {"no handshake within 100ms"},
		"babbles":  {"no handshake within 3s", "Welcome!", "it must call plugins.Serve"},
		"flood":    {"handshake"},
		"tcp":      {"not on a unix socket"},
		"nothing":  {"/nonexistent"},
		"missing":  {"no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			c := command(t, name, newGatewayLog())
			times := defaultTimes
			switch name {
			case "missing":
				c.Path = "/nonexistent"
			case "mute":
				times.handshake = 100 * time.Millisecond
			case "babbles":
				times.handshake = 3 * time.Second
			}
			_, err := startHost(t, t.Context(), c, times)
			for _, text := range append(want, "backend "+name) {
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("got the error %v, want one with %q", err, text)
				}
			}
			if err != nil && (len(err.Error()) > 2500 || strings.ContainsAny(err.Error(), "\n\x00")) {
				t.Errorf("the error is too long, or not one line: %q", err)
			}
		})
	}
}

func greets() {
	fmt.Println("Welcome!")
	fmt.Println(strings.Repeat("x", 3*maxLine) + "1|1|unix|x|grpc")
	log.Println("before")
	Serve(struct{}{}, func(struct{}) (backends.Backend, error) {
		log.Println("after")
		slog.Info("read", "z", 1500*time.Millisecond, "a", 1)
		return testBackends["answers"], nil
	})
}

// Many a library prints something before Serve is called.
func TestOutputBeforeHandshake(t *testing.T) {
	h, log := run(t, "greets")
	if o := deliver(t.Context(), h, message("hello", "delivered")); o.statuses[0] != backends.Delivered {
		t.Errorf("got %v and the error %v", o.statuses, o.err)
	}
	log.wait(t, 1, "log", "Welcome!")
	for _, text := range []string{"before", "after"} {
		if level := log.wait(t, 1, "log", text)[0]["level"]; level != "WARN" {
			t.Errorf("%s: got the level %v", text, level)
		}
	}
	if z := log.wait(t, 1, "log", "read")[0]["z"]; z != "1.5s" {
		t.Errorf("got the duration %v", z)
	}
}

func TestShippedPluginHasTitle(t *testing.T) {
	log := newGatewayLog()
	c := command(t, "answers", log)
	c.Path = "/proc/self/exe"
	runCommand(t, c, defaultTimes)
	title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", log.pid(t, 1)))
	if !strings.HasPrefix(string(title), "mailgw: answers\x00") {
		t.Errorf("got the title %q, %v", title, err)
	}
}

func TestProgramThatIsMissingLeavesNothing(t *testing.T) {
	c := command(t, "answers", newGatewayLog())
	c.Path = "/nonexistent"
	sockets := t.TempDir()
	var err error
	onThread(func() { _, err = launch(t.Context(), c, defaultTimes, sockets, nil) })
	if err == nil {
		t.Error("it was started")
	}
	if left, _ := os.ReadDir(sockets); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// endedStream is a stream that has ended before its first message.
type endedStream struct {
	grpc.BidiStreamingClient[pb.ToPlugin, pb.ToGateway]
	pb.PluginClient
}

func (s endedStream) Deliver(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[pb.ToPlugin, pb.ToGateway], error) {
	return s, nil
}
func (endedStream) SendMsg(any) error { return io.EOF }
func (endedStream) Recv() (*pb.ToGateway, error) {
	return nil, status.Error(codes.Unavailable, "gone")
}

// Why a stream has ended decides whether the next plugin may get the message.
func TestBeginTellsWhyTheStreamHasEnded(t *testing.T) {
	err := (&grpcStream{ctx: t.Context()}).begin(&running{plugin: endedStream{}}, &frame{})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("got the error %v", err)
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	checkLeaks(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := startHost(t, ctx, command(t, "mute", newGatewayLog()), defaultTimes)
	if backends.StatusOf(err) != backends.TimedOut {
		t.Errorf("got the error %v, want the one of the context", err)
	}
}

// deaths are ways in which a plugin ends in the middle of a transaction.
var deaths = map[string]func(pid int){
	"kill -9": func(pid int) { syscall.Kill(pid, syscall.SIGKILL) },
	"abort":   func(pid int) { syscall.Kill(pid, syscall.SIGABRT) },
}

func TestStatusSurvivesCrash(t *testing.T) {
	for name, kill := range deaths {
		t.Run(name, func(t *testing.T) {
			h, log := run(t, "hangs")
			tx := message("hello", "one", "two")
			var o *outcome
			done := make(chan struct{})
			go func() {
				defer close(done)
				o = deliver(t.Context(), h, tx)
			}()
			eventually(t, "the first recipient has its status", func() bool { return !tx.Status(0).IsZero() })
			pid := log.pid(t, 1)
			kill(pid)
			<-done
			if o.statuses[0] != backends.Delivered {
				t.Errorf("got %v, want the status from before", o.statuses)
			}
			o.wantError(t, fmt.Sprintf("plugin with pid %d", pid))
			o.wantUndecided(t, 1)
		})
	}
}

// SetStatus returns when the status cannot be lost any more.
func TestStatusJustBeforeExitCounts(t *testing.T) {
	for n := range 20 {
		address := []string{"now", "late"}[n%2]
		t.Run(address, func(t *testing.T) {
			h, _ := run(t, "set, then exit")
			if o := deliver(t.Context(), h, message(long, address, "two")); o.status(t, 0) != backends.Delivered {
				t.Errorf("got %v and the error %v", o.statuses, o.err)
			}
		})
	}
}

func TestLastWordsOfPlugin(t *testing.T) {
	h, log := run(t, "late")
	deliver(t.Context(), h, message("hello", "panic"))
	record := log.wait(t, 1, "exited", "")[0]
	words := fmt.Sprint(record["output"])
	if record["how"] != "exit status 2" || !strings.HasPrefix(words, "[panic: a bug elsewhere") || !strings.Contains(words, "backends_test.go") {
		t.Errorf("got the record %v, want the panic", record)
	}
}

// One line of the log tells how a plugin has ended in the middle of a
// transaction, and that of the transaction tells it too.
func TestEndInTransactionIsToldOnce(t *testing.T) {
	h, log := run(t, "set, then exit")
	for n := range 3 {
		o := deliver(t.Context(), h, message("hello", "one", "two"))
		o.wantError(t, fmt.Sprintf("plugin with pid %d has ended: exit status 3", log.pid(t, n+1)))
		if how := log.wait(t, n+1, "exited", "")[n]["how"]; how != "exit status 3" {
			t.Errorf("it has ended by %v", how)
		}
		log.wait(t, n+2, "started", "")
	}
	if n := log.count("unhealthy"); n > 0 {
		t.Errorf("it was told to be sick %d times", n)
	}
}

// Each state that an instance comes to is a line.
func TestStatesAreLogged(t *testing.T) {
	log := newGatewayLog()
	h, err := startHost(t, t.Context(), command(t, "answers", log), defaultTimes)
	if err != nil {
		t.Fatal(err)
	}
	syscall.Kill(log.pid(t, 1), syscall.SIGKILL)
	log.wait(t, 2, "started", "")
	if err := closeHost(t, t.Context(), h); err != nil {
		t.Error(err)
	}
	var events []string
	for _, r := range log.records {
		events = append(events, fmt.Sprint(r["event"]))
		if r["instance"] != 1.0 {
			t.Errorf("%v is of no instance", r)
		}
	}
	want := []string{"starting", "started", "exited", "restarting", "starting", "started", "stopped"}
	if !slices.Equal(events, want) {
		t.Errorf("got the events %q, want %q", events, want)
	}
}

func TestRestart(t *testing.T) {
	h, log := run(t, "answers")
	for n := range 3 {
		pid := log.pid(t, n+1)
		syscall.Kill(pid, syscall.SIGKILL)
		log.wait(t, n+1, "exited", "")
		if !gone(pid) {
			t.Errorf("process %d is still there", pid)
		}
		// It waits for the new process.
		if o := deliver(t.Context(), h, message("hello", "delivered")); o.statuses[0] != backends.Delivered {
			t.Errorf("got %v and the error %v", o.statuses, o.err)
		}
	}
	var delays []string
	for n, r := range log.wait(t, 3, "restarting", "") {
		delay := time.Duration(r["delay"].(float64))
		delays = append(delays, delay.String())
		if took := timeOf(t, log.wait(t, n+2, "started", "")[n+1]).Sub(timeOf(t, r)); took < delay {
			t.Errorf("restart %d came after %v, want %v before it", n, took, delay)
		}
	}
	if want := []string{"0s", "100ms", "200ms"}; !slices.Equal(delays, want) {
		t.Errorf("got the delays %v, want %v", delays, want)
	}
}

// The end of a plugin is told as such, with its last words; its stop is not.
func TestCrashIsTold(t *testing.T) {
	h := runCommand(t, command(t, "changing", newGatewayLog()), defaultTimes)
	var crash *backends.CrashError
	if o := deliver(t.Context(), h, message("", "panic")); !errors.As(o.err, &crash) || len(crash.Output) == 0 || !strings.HasPrefix(crash.Output[0], "panic: a bug") {
		t.Errorf("got %v, %+v, want the panic", o.err, crash)
	}
}

// That of one whose Deliver has returned is told for those whose deliveries were
// under way.
func TestLateCrashIsTold(t *testing.T) {
	h, log := run(t, "late")
	body, end := io.Pipe()
	tx := message("", "crash", "never")
	tx.Size, tx.Body = maxChunk+3, io.MultiReader(strings.NewReader(long[:maxChunk]), body)
	o := deliver(t.Context(), h, tx)
	if o.err != nil {
		t.Fatal(o.err)
	}
	end.Write([]byte("end"))
	for i := range 2 {
		s := o.status(t, i)
		o.mu.Lock()
		crash := o.crashes[i]
		o.mu.Unlock()
		if s != backends.TryLater || crash == nil || crash.Error() != fmt.Sprintf("plugin with pid %d has ended: exit status 3", log.pid(t, 1)) {
			t.Errorf("recipient %d: got %v and the crash %v", i, s, crash)
		}
	}
}

// An isolated instance is another process, which takes nobody along.
func TestIsolatedInstance(t *testing.T) {
	log := newGatewayLog()
	h := runCommand(t, command(t, "changing", log), defaultTimes)
	alone, end, err := h.Isolated(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var crash *backends.CrashError
	if o := deliver(t.Context(), alone, message("", "exit")); !errors.As(o.err, &crash) {
		t.Errorf("got %v, want a crash", o.err)
	}
	end()
	if o := deliver(t.Context(), h, message("", "one")); o.statuses[0] != backends.Delivered {
		t.Errorf("got %v, %v", o.statuses, o.err)
	}
	if log.pid(t, 1) == log.pid(t, 2) {
		t.Error("both are one process")
	}
}

func timeOf(t *testing.T, record map[string]any) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, record["time"].(string))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// Whenever the plugin dies, a transaction has its true status or an error.
func TestTransactionsWhilePluginDies(t *testing.T) {
	h, log := run(t, "echo")
	var stop atomic.Bool
	var done, failed atomic.Int64
	var wg sync.WaitGroup
	defer stop.Store(true)
	for i := range 20 {
		wg.Go(func() {
			text := long[:i*10_000]
			want := fmt.Sprintf("%d %x", len(text), hash([]byte(text)))
			for !stop.Load() {
				o := deliver(t.Context(), h, message(text, "one"))
				switch {
				case o.err == nil && o.statuses[0].Text == want:
					done.Add(1)
				case o.err != nil && backends.StatusOf(o.err) == backends.TryLater:
					failed.Add(1)
				default:
					t.Errorf("got %v and the error %v", o.statuses, o.err)
				}
			}
		})
	}
	for n := range 4 {
		pid, before := log.pid(t, n+1), done.Load()
		eventually(t, "the plugin works", func() bool { return done.Load() > before+20 })
		syscall.Kill(pid, syscall.SIGKILL)
	}
	log.wait(t, 5, "started", "")
	stop.Store(true)
	wg.Wait()
	t.Logf("%d transactions, %d failed", done.Load(), failed.Load())
}

// The transaction waits for the next process, which has a socket.
func TestPluginThatLosesItsSocket(t *testing.T) {
	h, log := run(t, "deaf")
	deliver(t.Context(), h, message("hello", "closes")).wantError(t, "plugin with pid")
	if o := deliver(t.Context(), h, message("hello", "one")); o.statuses[0] != backends.Delivered {
		t.Errorf("got %v and the error %v", o.statuses, o.err)
	}
	log.wait(t, 1, "unhealthy", "")
}

// fragile is a plugin that adds a line to the file in LOG at each transaction
// and ends. It does not start while there is the file LOG.down or LOG.hangs.
func fragile() {
	log := os.Getenv("LOG")
	if _, err := os.Stat(log + ".down"); err == nil {
		os.Exit(1)
	}
	if _, err := os.Stat(log + ".hangs"); err == nil {
		hang()
	}
	Serve(struct{}{}, func(struct{}) (backends.Backend, error) {
		return backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			f, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			fmt.Fprintln(f, tx.ID)
			os.Exit(1)
			return nil
		}), nil
	})
}

func runFragile(t *testing.T, times times) (h *Host, log *gatewayLog, file string) {
	log = newGatewayLog()
	c := command(t, "fragile", log)
	file = filepath.Join(t.TempDir(), "log")
	c.Env["LOG"] = file
	return runCommand(t, c, times), log, file
}

func TestNothingIsSentTwice(t *testing.T) {
	h, log, file := runFragile(t, defaultTimes)
	deliver(t.Context(), h, message("hello", "one")).wantError(t, "plugin with pid")
	log.wait(t, 2, "started", "")
	deliver(t.Context(), h, message("hello", "one")).wantError(t, "plugin with pid")
	log.wait(t, 3, "started", "")
	if got, err := os.ReadFile(file); string(got) != "T1\nT1\n" {
		t.Errorf("the plugin has got %q (%v), want each transaction once", got, err)
	}
}

func TestTransactionWithoutPlugin(t *testing.T) {
	times := defaultTimes
	times.patience = 100 * time.Millisecond
	h, log, file := runFragile(t, times)
	if err := os.WriteFile(file+".down", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(log.pid(t, 1), syscall.SIGKILL)
	log.wait(t, 2, "exited", "")
	deliver(t.Context(), h, message("hello", "one")).wantError(t, "the plugin does not run: it is ")

	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	o := deliver(ctx, h, message("hello", "one"))
	if backends.StatusOf(o.err) != backends.TimedOut || !strings.HasPrefix(o.err.Error(), "no answer within ") {
		t.Errorf("got the error %v, want the one of the context", o.err)
	}
}

func TestStoppedPluginIsKilled(t *testing.T) {
	log := newGatewayLog()
	times := defaultTimes
	times.checkEvery, times.checkTimeout = 20*time.Millisecond, 3*time.Second
	h := runCommand(t, command(t, "answers", log), times)
	pid := log.pid(t, 1)
	syscall.Kill(pid, syscall.SIGSTOP)
	eventually(t, "the plugin is stopped", func() bool { return processState(pid) == "T" })

	// A transaction that it has, and one that comes later, both end.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if o := deliver(ctx, h, message("hello", "delivered")); backends.StatusOf(o.err) != backends.TimedOut {
		t.Errorf("got the error %v, want the one of the deadline", o.err)
	}
	deliver(t.Context(), h, message(long, "delivered")).wantError(t, "plugin with pid")

	log.wait(t, 1, "unhealthy", "")
	log.wait(t, 2, "started", "")
	if !gone(pid) {
		t.Errorf("process %d is still there", pid)
	}
	if o := deliver(t.Context(), h, message("hello", "delivered")); o.statuses[0] != backends.Delivered {
		t.Errorf("got %v and the error %v", o.statuses, o.err)
	}
}
