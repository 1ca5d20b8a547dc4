package main

import (
	"context"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/mailgw/mailgw/gateway"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func serveCommand() *cobra.Command {
	var config string
	var hints bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the gateway",
		Long: `Serve runs the gateway until SIGTERM or SIGINT. Then it stops listening, ends idle
sessions with 421, waits for the transactions under way as long as
shutdown_timeout says, and stops the plugins. A second signal ends it at once.

Before it listens it starts the plugin of every backend that stands in a route.
If one does not start, or the configuration has a problem, all problems are
printed and nothing runs.

The log goes to standard error. On a terminal, standard output tells what to
type next.

Exit codes:
  0   ended by a signal
  64  wrong usage
  71  the system refuses something: an address in use, for example
  78  the configuration has a problem, or a backend does not start`,
		Example: `  mailgw serve
  mailgw serve --config /etc/mailgw/gateway.toml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			stdout := cmd.OutOrStdout()
			if !hints && !isTerminal(stdout) {
				stdout = io.Discard
			}
			return serve(config, stdout, cmd.ErrOrStderr())
		},
	}
	configFlag(cmd, &config)
	cmd.Flags().BoolVar(&hints, "hints", false, "tell what to type next even if standard output is no terminal")
	return cmd
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// serve runs the gateway of a configuration file until a signal comes.
func serve(config string, stdout, stderr io.Writer) error {
	ctx, restore := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer restore()
	c, err := loadConfig(config, stderr)
	if err != nil {
		return err
	}
	log := newLogger(c.Log, stderr)

	hosts, err := startBackends(ctx, c, routed(c), log)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil // the signal came first
	case err != nil:
		return exitError{exitConfig, err}
	}
	defer hosts.close(log)

	server, err := gateway.New(c, hosts.backends(), log)
	if err != nil {
		return exitError{exitConfig, err}
	}
	if err := server.Listen(); err != nil {
		return exitError{exitSystem, err}
	}
	go server.Serve()
	for i := range c.Listeners {
		l := &c.Listeners[i]
		log.Info("listening", "listener", l.Name, "protocol", l.Protocol, "address", boundTo(l, server.Addrs()))
	}
	printHints(stdout, c, server.Addrs())

	<-ctx.Done()
	restore() // a second signal ends the process
	log.Info("stopping", "timeout", c.ShutdownTimeout)
	deadline, cancel := context.WithTimeout(context.Background(), c.ShutdownTimeout)
	defer cancel()
	if err := server.Shutdown(deadline); err != nil {
		log.Warn("not all transactions ended in time", "error", err)
	}
	return nil
}

// routed returns the backends that stand in a route.
func routed(c *gateway.Config) []string {
	names := map[string]bool{}
	for _, l := range c.Listeners {
		for _, route := range l.Routes {
			for _, name := range route {
				names[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}
