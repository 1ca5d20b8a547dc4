// Package plugins carries a [backends.Backend] across the process border.
//
// A plugin is a program whose main function calls [Serve]. The gateway calls
// [Start], which starts the program and returns a [Host]. The Host is a
// Backend itself: what is delivered to it is delivered in the plugin. It is a
// [backends.Asker], too, for the questions that the plugin announces.
//
// A transaction goes over the lane, connections of our own, or over a stream of
// gRPC if the plugin has no lane, or none that is free. All else goes over gRPC.
// docs/protocol.md describes the protocol for plugins in other languages.
//
// The Host keeps the plugin alive: one that ends or does not answer is killed
// and started again. Transactions that were with it keep the statuses that
// they have, and the rest fails with an error that is no Status. No transaction
// is ever sent twice. Whatever a plugin does, it harms only its own transactions.
package plugins

import (
	"context"
	"io"

	"google.golang.org/grpc"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
)

//go:generate sh -c "protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --plugin=protoc-gen-go-grpc=$(go tool -n protoc-gen-go-grpc) --go_out=internal/pb --go_opt=paths=source_relative --go-grpc_out=internal/pb --go-grpc_opt=paths=source_relative --python_out=python plugin.proto"

var handshake = plugin.HandshakeConfig{
	ProtocolVersion:  1,
	MagicCookieKey:   "MAILGW_PLUGIN",
	MagicCookieValue: "mailgw.plugin.v1",
}

const (
	// lifelineEnv names the file descriptor that is at its end once the
	// gateway is gone.
	lifelineEnv = "MAILGW_LIFELINE"

	// pluginName is go-plugin's name for the one service of a plugin.
	pluginName = "backend"
)

// service is the go-plugin side of both ends: the plugin registers its
// service, and the gateway gets at the connection.
type service struct {
	plugin.NetRPCUnsupportedPlugin
	register func(*grpc.Server)
}

func (s service) GRPCServer(_ *plugin.GRPCBroker, server *grpc.Server) error {
	s.register(server)
	return nil
}

func (s service) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

// silent keeps go-plugin from logging. Its parser of log lines panics at
// {"@message":5}, and is not called at all if the level is Off.
func silent() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Off, Output: io.Discard})
}
