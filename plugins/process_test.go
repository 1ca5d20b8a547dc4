package plugins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

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
	var got []string
	for name := range environment(t, h) {
		got = append(got, name)
	}
	slices.Sort(got)
	// What plugin.proto names, and no PLUGIN_CLIENT_CERT: TLS would double the
	// cost of messages.
	want := []string{"GIVEN", "GORACE", "MAILGW_LIFELINE", "MAILGW_PLUGIN", "PLUGIN_MAX_PORT", "PLUGIN_MIN_PORT",
		"PLUGIN_PROTOCOL_VERSIONS", "PLUGIN_UNIX_SOCKET_DIR"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// environment returns the environment of the plugin of that name.
func environment(t testing.TB, h *Host) map[string]string {
	t.Helper()
	o := deliver(t.Context(), h, message("", "one"))
	if o.err != nil {
		t.Fatal(o.err)
	}
	pairs := map[string]string{}
	for pair := range strings.SplitSeq(o.statuses[0].Text, "\n") {
		name, value, _ := strings.Cut(pair, "=")
		pairs[name] = value
	}
	return pairs
}

// gateway starts a plugin, prints its pid and its sockets' directory, and
// waits to be killed.
func gateway() {
	log := newGatewayLog()
	c := Command{
		Name: "b", Path: "/proc/self/exe", Args: []string{"plugin", os.Getenv("PLUGIN")}, Directory: os.Getenv("PARENT"), Log: log.logger(),
	}
	if os.Getenv("SANDBOX") != "" {
		c.Sandbox = Sandbox{User: stranger, Directory: "/"}
	}
	h, err := Start(context.Background(), c)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(log.records[1]["pid"], h.sockets.path)
	hang()
}

func TestKilledGatewayLeavesNoPlugin(t *testing.T) {
	for _, test := range []struct {
		name, plugin string
		stop         bool
	}{
		{"running", "answers", false},
		{"stopped", "answers", true},
		{"without lifeline", "raw", false}, // only the kernel ends it
	} {
		t.Run(test.name, func(t *testing.T) {
			self := command(t, "gateway", newGatewayLog())
			pid, sockets := killGateway(t, self, test.plugin, test.stop)
			eventually(t, "the plugin has ended", func() bool { return dead(pid) })

			// The next gateway removes what this one has left.
			if _, err := os.Stat(sockets); err != nil {
				t.Fatal(err)
			}
			runCommand(t, Command{Name: "b", Path: self.Path, Args: []string{"plugin", "answers"},
				Env: self.Env, Directory: self.Directory, Log: self.Log}, defaultTimes)
			if _, err := os.Stat(sockets); err == nil {
				t.Errorf("%s is still there", sockets)
			}
		})
	}
}

// killGateway kills a gateway, whose plugin it may stop before, and returns the
// pid and the directory of the plugin.
func killGateway(t *testing.T, self Command, plugin string, stop bool, env ...string) (pid int, sockets string) {
	t.Helper()
	g := program(t, self)
	g.Env = append(append(os.Environ(), "PARENT="+self.Directory, "PLUGIN="+plugin), env...)
	stdout, err := g.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fscan(stdout, &pid, &sockets)
	if err == nil && stop {
		err = syscall.Kill(pid, syscall.SIGSTOP)
	}
	g.Process.Kill()
	g.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return pid, sockets
}

// dead reports whether a process that is not our child has ended, even if
// nobody has waited for it.
func dead(pid int) bool {
	s := processState(pid)
	return s == "" || s == "Z"
}

// processState is the state of a process as ps shows it: S, T, Z. It is empty if there
// is no such process.
func processState(pid int) string {
	stat, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	_, after, _ := strings.Cut(string(stat), ") ")
	s, _, _ := strings.Cut(after, " ")
	return s
}

// Where the kernel does not kill it, the plugin sees that its lifeline ends.
func TestLifeline(t *testing.T) {
	self := command(t, "answers", newGatewayLog())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := program(t, self)
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

func TestHostHoldsTheLifeline(t *testing.T) {
	h, log := run(t, "answers")
	h.running[0].process.lifeline.Close()
	if how := log.wait(t, 1, "exited", "")[0]["how"]; how != "exit status 1" {
		t.Errorf("the plugin ended with %v", how)
	}
	log.wait(t, 2, "started", "")
}

func TestKilledProcessDoesNotStart(t *testing.T) {
	p := newProcess(command(t, "answers", newGatewayLog()), nil, "", io.Discard)
	p.kill()
	if err := p.Start(t.Context()); err != context.Canceled {
		t.Errorf("got the error %v", err)
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
			} else if err := closeHost(t, t.Context(), h); err != nil {
				t.Error(err)
			}
			eventually(t, "the child has ended", func() bool { return dead(child) })
		})
	}
}

// A process that has left the plugin's group, and cannot be told any more, holds its
// stdout and stderr. The end of the plugin is told even so.
func TestProcessThatOutlivesPlugin(t *testing.T) {
	h, log := run(t, "parent")
	o := deliver(t.Context(), h, message("", "hides", "crash"))
	child, err := strconv.Atoi(o.statuses[0].Text)
	if err != nil {
		t.Fatal(o.err)
	}
	defer syscall.Kill(child, syscall.SIGKILL)
	var crash *backends.CrashError
	if !errors.As(o.err, &crash) {
		t.Errorf("got %v, want a crash", o.err)
	}
	log.wait(t, 2, "started", "")
}
