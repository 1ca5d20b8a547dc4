// Package probe lets package plugintest do to a plugin what its Host never does.
package probe

import (
	"io"

	"google.golang.org/grpc"
)

// A Process is that of a plugin that runs.
type Process struct {
	PID      int
	Conn     *grpc.ClientConn
	Lifeline io.Closer
	Exited   <-chan struct{}
	How      func() string // it has ended, once Exited is closed
}
