package plugintest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// An instance is the program as a process that this package speaks to itself:
// plugins.Host says nothing that is odd. plugin.proto tells how it is started.
type instance struct {
	cmd      *exec.Cmd
	stderr   tail
	lifeline *os.File
	sockets  string
	first    chan string   // the first line on stdout
	exited   chan struct{} // closed when cmd.ProcessState is set

	conn   *grpc.ClientConn
	plugin pb.PluginClient
}

// with starts the program, configures it, calls f and kills it.
func (t *tester) with(f func(context.Context, *instance) error) error {
	ctx, cancel := context.WithTimeout(t.ctx, 2*t.Patience) // for f and for its waits
	defer cancel()
	p, err := t.start()
	if err != nil {
		return err
	}
	defer p.kill()
	if err = p.connect(ctx, t.Patience); err == nil {
		err = p.configure(ctx, t.command.Settings)
	}
	if err == nil {
		err = f(ctx, p)
	}
	if err != nil && p.exits() {
		err = fmt.Errorf("%w; it ended: %v; it wrote: %q", err, p.cmd.ProcessState, p.stderr.String())
	}
	return err
}

func (t *tester) start() (_ *instance, err error) {
	p := &instance{exited: make(chan struct{})}
	if p.sockets, err = os.MkdirTemp(t.command.Directory, "mailgw-test-"); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		os.Remove(p.sockets)
		return nil, err
	}
	defer r.Close()
	p.lifeline = w
	p.cmd = exec.Command(t.command.Path, t.command.Args...)
	p.cmd.Env = []string{
		"MAILGW_PLUGIN=mailgw.plugin.v1", "PLUGIN_PROTOCOL_VERSIONS=1", "PLUGIN_MIN_PORT=0", "PLUGIN_MAX_PORT=0",
		"PLUGIN_UNIX_SOCKET_DIR=" + p.sockets, "MAILGW_LIFELINE=3",
	}
	for name, value := range t.command.Env {
		p.cmd.Env = append(p.cmd.Env, name+"="+value)
	}
	p.cmd.ExtraFiles = []*os.File{r}
	p.cmd.Stderr = &p.stderr
	p.cmd.WaitDelay = time.Second // others may hold stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdout, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		w.Close()
		os.Remove(p.sockets)
		return nil, err
	}
	p.first = make(chan string, 1)
	go p.read(stdout)
	go func() {
		defer close(p.exited)
		p.cmd.Wait()
	}()
	return p, nil
}

// read reads stdout to its end, and sends its first line.
func (p *instance) read(stdout io.Reader) {
	r := bufio.NewReader(stdout)
	line, _, _ := r.ReadLine()
	p.first <- string(line)
	io.Copy(io.Discard, r)
}

// connect waits for the handshake, which is the first line that the program
// prints, and connects to the socket that it tells.
func (p *instance) connect(ctx context.Context, patience time.Duration) error {
	var line string
	select {
	case line = <-p.first:
	case <-time.After(patience):
		return fmt.Errorf("no handshake within %v", patience)
	case <-ctx.Done():
		return ctx.Err()
	}
	fields := strings.Split(line, "|")
	if len(fields) < 5 || fields[0] != "1" || fields[1] != "1" || fields[2] != "unix" || fields[4] != "grpc" {
		return fmt.Errorf("the first line on stdout is %.100q, want the handshake 1|1|unix|PATH|grpc", line)
	}
	if within, err := filepath.Rel(p.sockets, fields[3]); err != nil || !filepath.IsLocal(within) {
		return fmt.Errorf("its socket is %s, want one in PLUGIN_UNIX_SOCKET_DIR", fields[3])
	}
	var err error
	p.conn, err = grpc.NewClient("unix:"+fields[3], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	p.plugin = pb.NewPluginClient(p.conn)
	return nil
}

func (p *instance) configure(ctx context.Context, settings map[string]any) error {
	if settings == nil {
		settings = map[string]any{}
	}
	text, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	answer, err := p.plugin.Configure(ctx, &pb.ConfigureRequest{SettingsJson: string(text), LogLevel: "INFO"})
	if err != nil {
		return fmt.Errorf("Configure: %w", err)
	}
	if answer.Error != "" || answer.Faults != nil {
		return fmt.Errorf("Configure: %s%v", answer.Error, answer.Faults)
	}
	return p.healthy(ctx)
}

func (p *instance) healthy(ctx context.Context) error {
	answer, err := grpc_health_v1.NewHealthClient(p.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "plugin"})
	if err == nil && answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		err = errors.New(answer.GetStatus().String())
	}
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	return nil
}

// shutDown wishes that the program exits, as the gateway does.
func (p *instance) shutDown(ctx context.Context) error {
	p.conn.Invoke(ctx, "/plugin.GRPCController/Shutdown", &emptypb.Empty{}, &emptypb.Empty{}) // its end may be faster than its answer
	const patience = 2 * time.Second
	select {
	case <-p.exited:
	case <-time.After(patience):
		return fmt.Errorf("it does not exit within %v after Shutdown of plugin.GRPCController", patience)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("after Shutdown it ends with %v", p.cmd.ProcessState)
	}
	return nil
}

// exits reports whether the program has ended. That is told a moment after the
// end of its socket.
func (p *instance) exits() bool {
	select {
	case <-p.exited:
		return true
	case <-time.After(100 * time.Millisecond):
		return false
	}
}

// kill ends the program and all that is in its group.
func (p *instance) kill() {
	if p.conn != nil {
		p.conn.Close()
	}
	select {
	case <-p.exited:
	default:
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.exited
	}
	p.lifeline.Close()
	os.RemoveAll(p.sockets)
}

// A tail keeps the last words of a program.
type tail struct {
	mu   sync.Mutex
	text []byte
}

const lastWords = 1000

func (w *tail) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, p...)
	w.text = bytes.Clone(w.text[max(0, len(w.text)-lastWords):])
	return len(p), nil
}

func (w *tail) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.text)
}
