package plugins

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/settings"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

const (
	configureTimeout = 30 * time.Second

	// stopTimeout is how long a plugin has to exit, go-plugin's own 2
	// seconds included.
	stopTimeout = 3 * time.Second

	// maxFaults is how many faults of its settings a plugin can tell.
	maxFaults = 100
)

// A running plugin is a process and the connection to it, or nothing but a
// connection if it was started by hand.
type running struct {
	log     *slog.Logger
	client  *plugin.Client
	process *process // nil if there is only socket
	socket  net.Conn
	conn    *grpc.ClientConn
	plugin  pb.PluginClient
	lane    *lane // nil if it has none

	busy            atomic.Int32    // transactions and questions that it has
	launched, began time.Time       // when its process started, and when it was ready
	draining        atomic.Bool     // it gets no more of them
	idle            chan struct{}   // gets something when it has none and draining
	suspect         chan struct{}   // gets something when it is to be checked at once
	ended           <-chan struct{} // closed when it has ended
	stopped         chan struct{}   // closed when nothing of it is left

	chunk        int // size of the chunks that it gets
	capabilities backends.Capabilities
	answers      map[backends.Topic]bool // what it can be asked about
	mayEdit      backends.EditKinds
	changing     bool // the capabilities
	effectFree   bool
	needs        []string
	divertsTo    []string

	outputs []*lines
	words   *words
	rate    *rate
}

// launch starts the plugin, or attaches to it, and configures it. It is to be
// called on a thread that lives as long as the plugin shall. sockets is the
// directory for its socket.
func launch(ctx context.Context, c Command, t times, sockets string, request *pb.ConfigureRequest) (*running, error) {
	r := &running{log: c.Log, launched: time.Now(), idle: make(chan struct{}, 1), suspect: make(chan struct{}, 1), stopped: make(chan struct{}), words: &words{}, rate: &rate{}}
	var err error
	patience := t.configure
	if c.Attach != "" {
		patience = attachTimeout
		err = r.attach(ctx, c.Attach, t.handshake)
	} else {
		err = r.connect(ctx, c, t.handshake, sockets)
	}
	var answer *pb.ConfigureResponse
	if err == nil {
		answer, err = r.configure(ctx, request, patience)
	}
	if err != nil {
		r.stop()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, r.explain(err)
	}
	if err := refusal(answer); err != nil {
		r.stop()
		return nil, err
	}
	r.capabilities = capabilitiesFromWire(answer.GetCapabilities())
	r.answers = announcementFromWire(answer.GetAnswers())
	r.mayEdit, r.changing = mayEditFromWire(answer.GetMayEdit()), answer.GetWatch()
	r.effectFree, r.needs = answer.GetEffectFree(), toldFromWire(answer.GetNeeds())
	r.divertsTo = toldFromWire(answer.GetDivertsTo())
	r.openLane(ctx, c.Log, answer.GetFeatures())
	r.chunk = smallChunk
	if announced := answer.GetMaxChunk(); announced > 0 {
		r.chunk = int(min(announced, maxChunk))
	}
	if r.process != nil {
		r.ended = r.process.exited
	} else {
		r.ended = r.awaitLoss()
	}
	return r, nil
}

// connect starts the process, waits for its handshake and connects to it.
func (r *running) connect(ctx context.Context, c Command, timeout time.Duration, sockets string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no handshake within %v", timeout))
	defer cancel()
	config := r.clientConfig(c, sockets)
	config.StartTimeout = timeout + time.Second // ctx ends before
	connected := func() bool { return true }
	config.RunnerFunc = func(_ hclog.Logger, cmd *exec.Cmd, directory string) (runner.Runner, error) {
		user := c.Sandbox.User
		if user != nil {
			os.Remove(directory)
			var err error
			if directory, err = giveSockets(sockets, user); err != nil {
				return nil, err
			}
		}
		r.process = newProcess(c, cmd.Env, directory, r.output(c.Log, slog.LevelInfo))
		if user != nil {
			config.GRPCDialOptions = append(dialOptions(user.Uid), grpc.WithContextDialer(dialerAs(user.Uid, r.process)))
		}
		// go-plugin knows no ctx, and waits for a stopped process.
		connected = context.AfterFunc(ctx, r.process.kill)
		return r.process, nil
	}
	r.client = plugin.NewClient(config)
	protocol, err := r.client.Client()
	if err == nil {
		var conn any
		conn, err = protocol.Dispense(pluginName)
		r.conn, _ = conn.(*grpc.ClientConn)
	}
	if !connected() {
		return context.Cause(ctx)
	}
	if err != nil && r.process != nil && r.process.pid != 0 {
		err = fmt.Errorf("handshake: %.300q", err) // quotes what the plugin has written
	}
	if err != nil {
		return err
	}
	r.plugin = pb.NewPluginClient(r.conn)
	return nil
}

func (r *running) clientConfig(c Command, sockets string) *plugin.ClientConfig {
	return &plugin.ClientConfig{
		HandshakeConfig:     handshake,
		Plugins:             plugin.PluginSet{pluginName: service{}},
		AllowedProtocols:    []plugin.Protocol{plugin.ProtocolGRPC},
		SkipHostEnv:         true,
		UnixSocketConfig:    &plugin.UnixSocketConfig{TempDir: sockets},
		Logger:              silent(),
		PluginLogBufferSize: maxLine,
		// The descriptor stderr, and the variables os.Stdout and os.Stderr of
		// Go plugins, which come over go-plugin's own stream.
		Stderr:          r.output(c.Log, slog.LevelWarn),
		SyncStdout:      r.output(c.Log, slog.LevelInfo),
		SyncStderr:      r.output(c.Log, slog.LevelWarn),
		GRPCDialOptions: dialOptions(uint32(os.Geteuid())),
	}
}

func (r *running) output(log *slog.Logger, level slog.Level) *lines {
	l := &lines{log: log, level: level, last: r.words, rate: r.rate}
	r.outputs = append(r.outputs, l)
	return l
}

// dialOptions bound what the gateway holds of one transaction: gRPC takes
// 64 KiB and one more chunk before it makes the sender wait, and lets the
// plugin send 64 KiB before somebody reads them. The plugin runs as that user.
func dialOptions(uid uint32) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(newOnlyUser(uid)),
		grpc.WithAuthority("localhost"), // the path of a socket is none: RFC 9113, section 8.3.1
		grpc.WithStaticStreamWindowSize(64 << 10),
		grpc.WithStaticConnWindowSize(1 << 20),
		grpc.WithMaxHeaderListSize(64 << 10),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(newCodec(maxParts)),
			grpc.MaxCallRecvMsgSize(maxMessage),
			// What was sent is not kept to be sent again.
			grpc.MaxRetryRPCBufferSize(0),
		),
	}
}

// configure also makes sure that the plugin answers health checks, without
// which it would be taken for sick later.
func (r *running) configure(ctx context.Context, request *pb.ConfigureRequest, timeout time.Duration) (*pb.ConfigureResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := r.plugin.Configure(ctx, request)
	if status.Code(err) == codes.DeadlineExceeded {
		return nil, fmt.Errorf("it has not taken its settings within %v", timeout)
	}
	if err != nil {
		return nil, fmt.Errorf("configure: %w", err)
	}
	if err := r.check(ctx); err != nil {
		return nil, err
	}
	return answer, nil
}

// refusal is the error that a plugin has answered with.
func refusal(answer *pb.ConfigureResponse) error {
	var faults []settings.Fault
	for _, f := range answer.GetFaults()[:min(len(answer.GetFaults()), maxFaults)] {
		faults = append(faults, settings.Fault{Key: cut(f.GetKey()), Text: cut(f.GetText())})
	}
	if faults != nil {
		return SettingsError{faults}
	}
	if text := answer.GetError(); text != "" {
		return errors.New(cut(text))
	}
	return nil
}

// check returns an error unless the plugin says that it is well before ctx
// ends. Ping of go-plugin would wait for ever.
func (r *running) check(ctx context.Context) error {
	answer, err := grpc_health_v1.NewHealthClient(r.conn).Check(ctx,
		&grpc_health_v1.HealthCheckRequest{Service: plugin.GRPCServiceName})
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	if s := answer.GetStatus(); s != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("health check: %v", s)
	}
	return nil
}

// doubt has the plugin checked at once: it may live, but without its socket.
func (r *running) doubt() {
	select {
	case r.suspect <- struct{}{}:
	default:
	}
}

// drain waits until what a plugin that has ended wrote to its socket is read.
func (r *running) drain() {
	// Another process may hold the socket for ever.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	r.conn.WaitForStateChange(ctx, connectivity.Ready)
	if r.lane != nil {
		r.lane.drain(ctx)
	}
}

// stop ends the plugin, unless it has ended, and waits until nothing of it is
// left. It aborts the transactions that are with it.
func (r *running) stop() {
	defer close(r.stopped)
	if r.lane != nil {
		r.lane.close()
	}
	if r.client == nil {
		r.detach()
		return
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		r.client.Kill() // leaks goroutines if it is not called
	}()
	if r.process != nil {
		defer time.AfterFunc(stopTimeout, r.process.kill).Stop()
	}
	<-gone
	for _, output := range r.outputs {
		output.Flush()
	}
	r.rate.flush(r.log)
	if r.process != nil {
		removeOwned(r.process.sockets) // go-plugin leaves it if there was no process, or it is another user's
	}
}

// id names the process, or the socket, in the log.
func (r *running) id() slog.Attr {
	if r.process == nil {
		return slog.String("attached", r.socket.RemoteAddr().String())
	}
	return slog.Int("pid", r.process.pid)
}

// how says how the process ended, if there is one.
func (r *running) how() string {
	if r.process == nil {
		return "detached"
	}
	return r.process.how()
}

// String names the plugin in errors.
func (r *running) String() string {
	if r.process == nil {
		return "attached plugin"
	}
	return fmt.Sprintf("plugin with pid %d", r.process.pid)
}

// explain adds to an error of the start what is known after stop.
func (r *running) explain(err error) error {
	if r.process == nil || r.process.pid == 0 {
		return err
	}
	if r.process.reason != nil {
		return r.process.reason
	}
	how := r.process.how()
	if how != "signal: killed" {
		err = fmt.Errorf("ended at its start: %s", how)
	}
	if words := r.words.few(); len(words) > 0 {
		err = fmt.Errorf("%w; it wrote: %q", err, words)
	}
	if !r.process.shookHands() && (how == "signal: killed" || r.process.err == nil) {
		err = fmt.Errorf("%w; is it a mailgw plugin? it must call plugins.Serve", err)
	}
	return err
}

// done notes that a transaction or question has ended.
func (r *running) done() {
	r.busy.Add(-1)
	r.wakeIfIdle()
}

// wakeIfIdle wakes the supervisor if there is nothing left to wait for.
func (r *running) wakeIfIdle() {
	if !r.draining.Load() || r.busy.Load() > 0 {
		return
	}
	select {
	case r.idle <- struct{}{}:
	default:
	}
}
