package plugintest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/mailgw/mailgw/plugins"
	"github.com/mailgw/mailgw/plugins/internal/pb"
	"github.com/mailgw/mailgw/plugins/internal/probe"
)

// An instance is the program as a process that this package speaks to itself:
// a Host says nothing that is odd.
type instance struct {
	probe.Process
	plugin pb.PluginClient
}

// with starts the program as the gateway does, in its sandbox, and calls f.
func (t *tester) with(f func(context.Context, *instance) error) error {
	return t.withHost(func(h *plugins.Host, _ int) error {
		ctx, cancel := context.WithTimeout(t.ctx, 2*t.Patience) // for f and for its waits
		defer cancel()
		p := &instance{}
		if h.Probe(&p.Process); p.Conn == nil {
			return errors.New("it has ended at once")
		}
		p.plugin = pb.NewPluginClient(p.Conn)
		err := f(ctx, p)
		if err != nil && p.exits() {
			err = fmt.Errorf("%w; it has ended: %s", err, p.How())
		}
		return err
	})
}

func (p *instance) healthy(ctx context.Context) error {
	answer, err := grpc_health_v1.NewHealthClient(p.Conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "plugin"})
	if err == nil && answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		err = errors.New(answer.GetStatus().String())
	}
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	return nil
}

// exits reports whether the program has ended. That is told a moment after the
// end of its socket.
func (p *instance) exits() bool {
	select {
	case <-p.Exited:
		return true
	case <-time.After(time.Second):
		return false
	}
}
