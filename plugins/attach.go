package plugins

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/hashicorp/go-plugin"

	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// A plugin that somebody has started by hand, under a debugger for instance,
// listens on a socket that gateway.toml names. To the gateway a connection is
// then what a process is otherwise: it has one Configure, and a backend of its
// own, and where it ends another one is made. Nothing is killed, and a plugin
// that stands still, since somebody looks at it, is waited for.

// attachEnv has the path of the socket, of a plugin that is started by hand.
const attachEnv = "MAILGW_ATTACH"

// attachTimeout is how long somebody may look at how a plugin configures
// itself.
const attachTimeout = 10 * time.Minute

// attach connects to a plugin that was started by hand.
func (r *running) attach(ctx context.Context, path string, timeout time.Duration) (err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var d net.Dialer
	if r.socket, err = d.DialContext(ctx, "unix", path); err != nil {
		return fmt.Errorf("attach: %w; start the plugin with %s=%s in its environment", err, attachEnv, path)
	}
	// gRPC would connect again by itself, to a plugin that is not configured.
	first := make(chan net.Conn, 1)
	first <- r.socket
	r.conn, err = grpc.NewClient("passthrough:"+path, append(dialOptions(uint32(os.Geteuid())), grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
		select {
		case conn := <-first:
			return conn, nil
		default:
			return nil, errors.New("the connection was lost")
		}
	}))...)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	r.plugin = pb.NewPluginClient(r.conn)
	return nil
}

// awaitLoss returns a channel that is closed when the connection, which is
// there, is no more.
func (r *running) awaitLoss() <-chan struct{} {
	lost := make(chan struct{})
	go func() {
		defer close(lost)
		r.conn.WaitForStateChange(context.Background(), connectivity.Ready) // detach ends it
	}()
	return lost
}

// detach ends the connection to a plugin that was started by hand.
func (r *running) detach() {
	if r.conn != nil {
		r.conn.Close()
	}
	if r.socket != nil {
		r.socket.Close()
	}
}

// serveAttached serves the gateways that attach to the plugin, until it gets
// SIGINT or SIGTERM.
func serveAttached(open opener, path string) error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	path, err := filepath.Abs(path) // the gateway may have another working directory
	if err != nil {
		return err
	}
	l, err := listenAttached(path)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	level := &slog.LevelVar{}
	slog.SetDefault(slog.New(idHandler{root: slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})}))
	fmt.Fprintf(os.Stderr, "The plugin waits for the gateway. Name it in gateway.toml:\n\n    [backend.NAME]\n    plugin = %q\n\n", "unix:"+l.Addr().String())
	var serving sync.WaitGroup
	for {
		conn, err := l.Accept()
		if err != nil {
			cancel()
			serving.Wait()
			if errors.Is(err, net.ErrClosed) {
				err = nil
			}
			return err
		}
		serving.Go(func() {
			s := &server{open: open, level: level}
			s.serveConn(ctx, conn)
			s.close()
		})
	}
}

// listenAttached makes the socket in the place of one where nobody listens any
// more.
func listenAttached(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if !errors.Is(err, syscall.EADDRINUSE) {
		return l, err
	}
	if conn, e := net.Dial("unix", path); !errors.Is(e, syscall.ECONNREFUSED) {
		if e == nil {
			conn.Close()
			err = fmt.Errorf("%w: a plugin that was started before listens there", err)
		}
		return nil, err
	}
	if err := os.Remove(path); err != nil {
		return nil, err
	}
	return net.Listen("unix", path)
}

// serveConn serves one connection until that or ctx ends.
func (s *server) serveConn(ctx context.Context, conn net.Conn) {
	l := &oneConn{conn: conn, ended: make(chan struct{})}
	g := grpc.NewServer(append(serverOptions(), grpc.Creds(endingCreds{newSameUser(), l.end}))...)
	pb.RegisterPluginServer(g, s)
	well := health.NewServer()
	well.SetServingStatus(plugin.GRPCServiceName, grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(g, well)
	defer g.Stop()
	defer context.AfterFunc(ctx, g.Stop)()
	g.Serve(l)
}

// A oneConn is a listener that has one connection.
type oneConn struct {
	conn  net.Conn
	once  sync.Once
	ended chan struct{}
}

func (l *oneConn) Accept() (conn net.Conn, err error) {
	if l.conn != nil {
		conn, l.conn = l.conn, nil
		return conn, nil
	}
	<-l.ended
	return nil, net.ErrClosed
}

func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }
func (l *oneConn) Close() error   { l.end(); return nil }
func (l *oneConn) end()           { l.once.Do(func() { close(l.ended) }) }

// endingCreds are credentials of a server that tell the end of a connection,
// which gRPC keeps to itself.
type endingCreds struct {
	credentials.TransportCredentials
	end func()
}

func (c endingCreds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		c.end()
		return nil, nil, err
	}
	return endingConn{conn, c.end}, info, nil
}

func (c endingCreds) Clone() credentials.TransportCredentials { return c }

type endingConn struct {
	net.Conn
	end func()
}

func (c endingConn) Close() error {
	c.end()
	return c.Conn.Close()
}
