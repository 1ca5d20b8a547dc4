package plugins

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// testPrograms are programs that are no good plugins.
var testPrograms = map[string]func(){
	"exits": func() {
		fmt.Fprintln(os.Stderr, "no licence\x1b")
		os.Exit(7)
	},
	"mute":     func() { select {} },
	"babbles":  func() { fmt.Println("Welcome!"); select {} },
	"flood":    func() { io.Copy(os.Stdout, endless{}) },
	"tcp":      func() { fmt.Println("1|1|tcp|127.0.0.1:1|grpc"); select {} },
	"nothing":  func() { fmt.Println("1|1|unix|/nonexistent|grpc"); select {} },
	"gateway":  gateway,
	"fragile":  fragile,
	"raw":      serveRaw,
	"settings": serveSettings,
}

func TestFaultyProgramAtStart(t *testing.T) {
	times := defaultTimes
	times.handshake = time.Second
	for name, want := range map[string][]string{
		"exits":   {"exit status 7", `"no licence\x1b"`},
		"mute":    {"no handshake within 1s"},
		"babbles": {"handshake", "Welcome!"},
		"flood":   {"handshake"},
		"tcp":     {"not on a unix socket"},
		"nothing": {"/nonexistent"},
		"missing": {"no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			c := command(t, name, newGatewayLog())
			if name == "missing" {
				c.Path = "/nonexistent"
			}
			_, err := start(t.Context(), c, times)
			for _, text := range append(want, "backend "+name) {
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("got the error %v, want one with %q", err, text)
				}
			}
			if err != nil && (len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\n\x00")) {
				t.Errorf("the error is too long, or not one line: %q", err)
			}
		})
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	checkLeaks(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := Start(ctx, command(t, "mute", newGatewayLog()))
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

func TestLastWordsOfPlugin(t *testing.T) {
	h, log := run(t, "late")
	deliver(t.Context(), h, message("hello", "panic"))
	record := log.wait(t, 1, "exited", "")[0]
	words := fmt.Sprint(record["stderr"])
	if record["how"] != "exit status 2" || !strings.HasPrefix(words, "[panic: a bug elsewhere") || !strings.Contains(words, "deliver_test.go") {
		t.Errorf("got the record %v, want the panic", record)
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
	for _, r := range log.wait(t, 3, "restarting", "") {
		delays = append(delays, time.Duration(r["delay"].(float64)).String())
	}
	if want := []string{"0s", "100ms", "200ms"}; !slices.Equal(delays, want) {
		t.Errorf("got the delays %v, want %v", delays, want)
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
	} {
		var b backoff
		var got []time.Duration
		for _, lived := range test.lived {
			got = append(got, b.next(lived))
		}
		if fmt.Sprint(got) != test.want {
			t.Errorf("after %v got the delays %v, want %s", test.lived, got, test.want)
		}
	}
}

// fragile is a plugin that adds a line to the file in LOG at each transaction
// and ends. It does not start while there is the file LOG.down.
func fragile() {
	log := os.Getenv("LOG")
	if _, err := os.Stat(log + ".down"); err == nil {
		os.Exit(1)
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
	deliver(t.Context(), h, message("hello", "one")).wantError(t, "does not run")

	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if o := deliver(ctx, h, message("hello", "one")); backends.StatusOf(o.err) != backends.TimedOut {
		t.Errorf("got the error %v, want the one of the context", o.err)
	}
}

func TestGarbageOnStdoutAndStderr(t *testing.T) {
	for name, address := range map[string]string{
		"garbage": "one",
		"raw":     "garbage", // over go-plugin's own stream
	} {
		t.Run(name, func(t *testing.T) {
			h, log := run(t, name)
			for range 3 {
				o := deliver(t.Context(), h, message("hello", address))
				if o.status(t, 0) != backends.Delivered {
					t.Fatalf("got %v and the error %v", o.statuses, o.err)
				}
			}
			for _, text := range []string{`{"@message":5}`, "last of stdout", "last of stderr"} {
				log.wait(t, 3, "log", text)
			}
			if pid := log.pid(t, 1); gone(pid) {
				t.Errorf("process %d has ended", pid)
			}
		})
	}
}

// writeGarbage writes what parsers of log lines choke on.
func writeGarbage(w io.Writer, name string) {
	for _, text := range []string{
		`{"@message":5}`, `{"@level":5}`, `{"@message":"x","@timestamp":5}`, `{"level":5,"msg":"x"}`, `{"level":"INFO"}`,
		`{"level":"INFO","msg":"x"} trailing`, "null", "[[[[", "{", "\x00\xff\xfe", "1|1|unix|/tmp|grpc", "",
		"panic: no", strings.Repeat("x", 1<<20), "last of " + name,
	} {
		io.WriteString(w, text+"\n")
	}
}

func TestStoppedPluginIsKilled(t *testing.T) {
	log := newGatewayLog()
	times := defaultTimes
	times.checkEvery, times.checkTimeout = 20*time.Millisecond, 500*time.Millisecond
	h := runCommand(t, command(t, "answers", log), times)
	pid := log.pid(t, 1)
	syscall.Kill(pid, syscall.SIGSTOP)

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

func TestCloseOfStoppedPlugin(t *testing.T) {
	h, log := run(t, "answers")
	pid := log.pid(t, 1)
	syscall.Kill(pid, syscall.SIGSTOP)
	began := time.Now()
	h.Close(t.Context())
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Close took %v", took)
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
	if err := <-closed; err != nil {
		t.Error(err)
	}
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
	if err := h.Close(ctx); backends.StatusOf(err) != backends.TimedOut {
		t.Errorf("got the error %v, want the one of the context", err)
	}
	o := <-done
	o.wantError(t, "plugin with pid")
	o.wantUndecided(t, 1)
}

func TestSignalsDoNotEndPlugin(t *testing.T) {
	h, log := run(t, "late")
	tx := message("", "reads")
	body, end := io.Pipe()
	tx.Size, tx.Body = maxChunk+3, io.MultiReader(strings.NewReader(long[:maxChunk]), body)
	o := deliver(t.Context(), h, tx)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM} {
		syscall.Kill(log.pid(t, 1), signal)
	}
	end.Write([]byte("end"))
	if got, want := o.status(t, 0).Text, fmt.Sprint(maxChunk+3, nil); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestEnvironmentIsNotInherited(t *testing.T) {
	t.Setenv("SECRET", "password")
	log := newGatewayLog()
	c := command(t, "environment", log)
	c.Env["GIVEN"] = "yes"
	h := runCommand(t, c, defaultTimes)
	got := strings.Split(deliver(t.Context(), h, message("", "one")).statuses[0].Text, "\n")
	if !slices.Contains(got, "GIVEN=yes") {
		t.Errorf("got the environment %q, want GIVEN=yes in it", got)
	}
	for _, pair := range got {
		name, _, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, "PLUGIN_") && !strings.HasPrefix(name, "MAILGW_") && name != "GIVEN" && name != "GORACE" {
			t.Errorf("%s is in the environment", name)
		}
	}
}

// gateway starts a plugin, prints its pid and its sockets' directory, and
// waits to be killed.
func gateway() {
	log := newGatewayLog()
	h, err := Start(context.Background(), Command{
		Name: "answers", Path: "/proc/self/exe", Args: []string{"plugin", "answers"}, Directory: os.Getenv("PARENT"), Log: log.logger(),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(log.records[0]["pid"], h.sockets.path)
	select {}
}

func TestKilledGatewayLeavesNoPlugin(t *testing.T) {
	for _, name := range []string{"running", "stopped"} { // only the kernel can end the second
		t.Run(name, func(t *testing.T) {
			self := command(t, "gateway", newGatewayLog())
			g := exec.Command(self.Path, self.Args...)
			g.Env = append(os.Environ(), "PARENT="+self.Directory)
			stdout, err := g.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := g.Start(); err != nil {
				t.Fatal(err)
			}
			var pid int
			var sockets string
			_, err = fmt.Fscan(stdout, &pid, &sockets)
			if err == nil && name == "stopped" {
				err = syscall.Kill(pid, syscall.SIGSTOP)
			}
			g.Process.Kill()
			g.Wait()
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the plugin has ended", func() bool { return dead(pid) })

			// The next gateway removes what this one has left.
			if _, err := os.Stat(sockets); err != nil {
				t.Fatal(err)
			}
			runCommand(t, Command{Name: "answers", Path: self.Path, Args: []string{"plugin", "answers"},
				Env: self.Env, Directory: self.Directory, Log: self.Log}, defaultTimes)
			if _, err := os.Stat(sockets); err == nil {
				t.Errorf("%s is still there", sockets)
			}
		})
	}
}

// dead reports whether a process that is not our child has ended, even if
// nobody has waited for it.
func dead(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// Where the kernel does not kill it, the plugin sees that its lifeline ends.
func TestLifeline(t *testing.T) {
	self := command(t, "answers", newGatewayLog())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := exec.Command(self.Path, self.Args...)
	p.Env = []string{"MAILGW_PLUGIN=mailgw.plugin.v1", "MAILGW_LIFELINE=3", "PLUGIN_PROTOCOL_VERSIONS=1",
		"PLUGIN_UNIX_SOCKET_DIR=" + t.TempDir(), "GORACE=atexit_sleep_ms=0"}
	p.ExtraFiles = []*os.File{r}
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	var line string
	if _, err := fmt.Fscanln(stdout, &line); err != nil || !strings.HasPrefix(line, "1|1|unix|") {
		t.Errorf("got the handshake %q and %v", line, err)
	}
	w.Close()
	p.Wait()
	if code := p.ProcessState.ExitCode(); code != 1 {
		t.Errorf("the plugin ended with %v, want exit status 1", p.ProcessState)
	}
}

func TestProcessesOfPluginEndWithIt(t *testing.T) {
	for _, how := range []string{"crash", "close"} {
		t.Run(how, func(t *testing.T) {
			h, log := run(t, "parent")
			o := deliver(t.Context(), h, message("", "one"))
			child, err := strconv.Atoi(o.statuses[0].Text)
			if err != nil {
				t.Fatal(o.err)
			}
			if how == "crash" {
				syscall.Kill(log.pid(t, 1), syscall.SIGKILL)
				log.wait(t, 2, "started", "")
			} else if err := h.Close(t.Context()); err != nil {
				t.Error(err)
			}
			eventually(t, "the child has ended", func() bool { return dead(child) })
		})
	}
}

// A process that has left the plugin's group holds its stdout and stderr.
func TestProcessThatOutlivesPlugin(t *testing.T) {
	h, log := run(t, "parent")
	o := deliver(t.Context(), h, message("", "leaves"))
	child, err := strconv.Atoi(o.statuses[0].Text)
	if err != nil {
		t.Fatal(o.err)
	}
	defer syscall.Kill(child, syscall.SIGKILL)
	syscall.Kill(log.pid(t, 1), syscall.SIGKILL)
	log.wait(t, 2, "started", "")
}
