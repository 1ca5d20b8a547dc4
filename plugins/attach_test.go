package plugins

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/mailgw/mailgw/backends"
)

// byHand is the plugin with that name, started by hand at a socket.
type byHand struct {
	*exec.Cmd
	stderr *signalled
}

// A signalled writer tells when the plugin has said that it waits.
type signalled struct {
	text  strings.Builder
	waits chan struct{}
}

func (w *signalled) Write(p []byte) (int, error) {
	said := strings.Contains(w.text.String(), "gateway.toml")
	w.text.Write(p)
	if !said && strings.Contains(w.text.String(), "gateway.toml") {
		close(w.waits)
	}
	return len(p), nil
}

func startByHand(t *testing.T, name, socket string) *byHand {
	t.Helper()
	p := &byHand{program(t, command(t, name, newGatewayLog())), &signalled{waits: make(chan struct{})}}
	p.Env = []string{"MAILGW_ATTACH=" + socket, "GORACE=atexit_sleep_ms=0"}
	p.Stderr = p.stderr
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end(syscall.SIGKILL) })
	within(t, "the plugin", func() { <-p.stderr.waits })
	return p
}

// end sends a signal and returns how the plugin has ended.
func (p *byHand) end(signal syscall.Signal) error {
	p.Process.Signal(signal)
	return p.Wait()
}

// socketPath is where a plugin that is started by hand listens.
func socketPath(t testing.TB) string { return filepath.Join(t.TempDir(), "s") }

// attachment is the gateway's side of it.
func attachment(socket string) (Command, *gatewayLog) {
	log := newGatewayLog()
	return Command{Name: "b", Attach: socket, Log: log.logger()}, log
}

// runAttached starts a plugin by hand and attaches to it.
func runAttached(t *testing.T, name string, times times) (*byHand, *Host, *gatewayLog) {
	t.Helper()
	socket := socketPath(t)
	p := startByHand(t, name, socket)
	c, log := attachment(socket)
	h := runCommand(t, c, times)
	t.Cleanup(func() { p.end(syscall.SIGKILL) }) // before runCommand looks for children
	return p, h, log
}

// What the plugin tells to write into gateway.toml is right wherever that is.
func TestStartedByHandAtARelativePath(t *testing.T) {
	t.Chdir(t.TempDir())
	p := startByHand(t, "answers", "s")
	directory, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("plugin = %q\n", "unix:"+filepath.Join(directory, "s")); !strings.Contains(p.stderr.text.String(), want) {
		t.Errorf("it says\n%s\nwant %s", p.stderr.text.String(), want)
	}
}

func TestAttachedPluginThatIsStartedAgain(t *testing.T) {
	socket := socketPath(t)
	p := startByHand(t, "answers", socket)
	c, log := attachment(socket)
	h := runCommand(t, c, defaultTimes)
	for n := range 3 {
		if s := deliver(t.Context(), h, message("hello", "delivered")).status(t, 0); s != backends.Delivered {
			t.Errorf("got %v", s)
		}
		p.end(syscall.SIGKILL)
		log.wait(t, n+1, "exited", "")
		if o := deliver(withTimeout(t, 50*time.Millisecond), h, message("hello", "delivered")); o.err == nil {
			t.Error("a plugin that is gone has taken a message")
		}
		p = startByHand(t, "answers", socket) // in the place of the socket that is left
		log.wait(t, n+2, "started", "")
	}
	if got := log.wait(t, 1, "started", "")[0]["attached"]; got != socket {
		t.Errorf("attached to %v, want %s", got, socket)
	}
}

// While it is away, each attempt is one line of the log.
func TestAttachedPluginThatIsAway(t *testing.T) {
	p, _, log := runAttached(t, "answers", defaultTimes)
	p.end(syscall.SIGKILL)
	log.wait(t, 4, "exited", "") // its end, and three attempts
	var got []any
	log.mu.Lock()
	defer log.mu.Unlock()
	for _, r := range log.records {
		got = append(got, r["event"])
	}
	want := []any{"starting", "started", "exited", "restarting", "starting", "exited", "exited", "exited"}
	if !slices.Equal(got, want) {
		t.Errorf("got the events %v, want %v", got, want)
	}
}

func withTimeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// The crash of a plugin that somebody debugs is no fault of the message: it
// comes again and again as he likes.
func TestAttachedPluginsCrashIsNone(t *testing.T) {
	_, h, _ := runAttached(t, "set, then exit", defaultTimes)
	o := deliver(t.Context(), h, message("hello", "one", "two"))
	o.wantUndecided(t, 1)
	o.wantError(t, "attached plugin has ended")
	var crash *backends.CrashError
	if errors.As(o.err, &crash) {
		t.Errorf("%v is a crash", o.err)
	}
}

func TestStoppedDebuggeeStaysAttached(t *testing.T) {
	times := defaultTimes
	times.checkEvery, times.checkTimeout = time.Millisecond, 10*time.Millisecond
	p, h, log := runAttached(t, "drain", times)
	p.Process.Signal(syscall.SIGSTOP)
	log.wait(t, 1, "unhealthy", "")
	o := deliver(withTimeout(t, 50*time.Millisecond), h, message("hello", "one"))
	o.wantUndecided(t, 0)
	if !errors.Is(o.err, context.DeadlineExceeded) {
		t.Errorf("got the error %v", o.err)
	}
	p.Process.Signal(syscall.SIGCONT)
	if s := deliver(t.Context(), h, message("hello", "one")).status(t, 0); s != backends.Delivered {
		t.Errorf("got %v", s)
	}
	if n := len(log.wait(t, 1, "started", "")); n != 1 {
		t.Errorf("it was attached %d times", n)
	}
}

// Each gateway has a backend of its own, and leaves the plugin as it is.
func TestPluginOutlivesItsGateways(t *testing.T) {
	socket := socketPath(t)
	p := startByHand(t, "answers", socket)
	c, _ := attachment(socket)
	first, second := runCommand(t, c, defaultTimes), runCommand(t, c, defaultTimes)
	for _, h := range []*Host{first, second} {
		if s := deliver(t.Context(), h, message("hello", "nobody")).status(t, 0); s != backends.NoSuchUser {
			t.Errorf("got %v", s)
		}
		if err := closeHost(t, t.Context(), h); err != nil {
			t.Error(err)
		}
	}
	runCommand(t, c, defaultTimes)
	if err := p.end(syscall.SIGTERM); err != nil {
		t.Errorf("it has ended by SIGTERM with %v: %s", err, p.stderr.text.String())
	}
}

func TestAttachingToNothing(t *testing.T) {
	socket := socketPath(t)
	c, _ := attachment(socket)
	_, err := startHost(t, t.Context(), c, defaultTimes)
	for _, want := range []string{"no such file", "start the plugin with MAILGW_ATTACH=" + socket} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got the error %v, want one with %q", err, want)
		}
	}
}

// A server that is strict about names gets one, and not the path of its socket.
func TestAuthorityIsAName(t *testing.T) {
	socket := socketPath(t)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan []string, 1)
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		m, _ := metadata.FromIncomingContext(stream.Context())
		got <- m[":authority"]
		return errors.New("no plugin")
	}))
	go s.Serve(l)
	defer s.Stop()
	c, _ := attachment(socket)
	if _, err := startHost(t, t.Context(), c, defaultTimes); err == nil || !strings.Contains(err.Error(), "no plugin") {
		t.Fatalf("got the error %v", err)
	}
	if authority := <-got; !slices.Equal(authority, []string{"localhost"}) {
		t.Errorf("got the authority %q", authority)
	}
}

// Nobody's socket is taken.
func TestSocketOfAnotherPlugin(t *testing.T) {
	socket := socketPath(t)
	startByHand(t, "answers", socket)
	p := program(t, command(t, "answers", newGatewayLog()))
	p.Env = []string{"MAILGW_ATTACH=" + socket, "GORACE=atexit_sleep_ms=0"}
	output, _ := p.CombinedOutput()
	if code := p.ProcessState.ExitCode(); code != 71 || !strings.Contains(string(output), "a plugin that was started before listens there") {
		t.Errorf("exit code %d: %s", code, output)
	}
}
