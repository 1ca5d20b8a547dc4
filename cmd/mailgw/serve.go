package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mailgw/mailgw/gateway"
	"github.com/mailgw/mailgw/plugins"
)

func serveCommand() *cobra.Command {
	var config, profiles string
	var hints bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the gateway",
		Long: `Serve runs the gateway until SIGTERM or SIGINT. Then it stops listening, ends idle
sessions with 421, waits for the transactions under way as long as
shutdown_timeout says, and stops the plugins. A second signal ends it at once:
clients without an answer try again.

SIGHUP, or mailgw reload, has it read the configuration again.

Before it listens it starts the plugin of every backend that stands in a route
or is asked. If one does not start, or the configuration has a problem, all
problems are printed, as check does, and nothing runs.

The log goes to standard error. On a terminal, standard output tells what to
type next.

With --pprof it can be asked where its time and memory go, over a unix socket that
only its own user and root can open. Who can open it can slow the gateway down.

Exit codes:
  0   ended by a signal
  64  wrong usage
  71  the system refuses something: an address in use, for example
  75  ended at once by a second signal
  78  the configuration has a problem, or a backend does not start`,
		Example: `  mailgw serve
  mailgw serve --config /etc/mailgw/gateway.toml
  mailgw serve --pprof unix:/run/mailgw/pprof.sock`,
		Args: configByFlag,
		RunE: func(cmd *cobra.Command, args []string) error {
			stdout := cmd.OutOrStdout()
			if !hints && !isTerminal(stdout) {
				stdout = io.Discard
			}
			if err := checkProfiles(profiles); err != nil {
				return err
			}
			return serve(config, strings.TrimPrefix(profiles, "unix:"), stdout, cmd.ErrOrStderr())
		},
	}
	configFlag(cmd, &config)
	cmd.Flags().StringVar(&profiles, "pprof", "", "give profiles, as Go's net/http/pprof does, at this `address`, unix:PATH")
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

// serve runs the gateway of a configuration file until a signal comes. It gives
// profiles if there is a socket for them.
func serve(config, profiles string, stdout, stderr io.Writer) error {
	ctx := untilSignal()
	config, err := filepath.Abs(config) // the working directory changes
	if err != nil {
		return exitError{exitSystem, err}
	}
	if profiles != "" {
		if profiles, err = filepath.Abs(profiles); err != nil {
			return exitError{exitSystem, err}
		}
	}
	c, problems, err := readConfig(config)
	if err != nil {
		return err
	}
	log := gateway.NewLogger(c.Log, stderr)
	log.Info("starting", "version", version(), "config", config)
	logWarnings(log, c, problems)
	if profiles != "" {
		end, err := profiling(profiles)
		if err != nil {
			return exitError{exitSystem, fmt.Errorf("--pprof: %w", err)}
		}
		defer end()
	}

	plugins.AdoptStrays()
	hosts, err := startBackends(ctx, c, c.Routed(), problems, log)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil // the signal came first
	case err != nil:
		return exitError{exitConfig, err}
	}
	defer runtime.KeepAlive(ballast())
	s := &service{file: config, stderr: stderr, config: c, hosts: hosts, log: log}
	err = s.serve(ctx, stdout)
	s.close()
	if err == nil {
		s.log.Info("stopped")
	}
	return err
}

// ballast lets the heap grow by as much before garbage is collected, and as much
// again. Without it that would be at every few MiB, which a gateway has many times
// a second. Nobody touches it, so that it takes no memory; a heap that is large by
// itself hardly notices.
func ballast() []byte { return make([]byte, 32<<20) }

// untilSignal returns a context that ends with the first SIGTERM or SIGINT. A
// second one ends the process. It is not left to what signals do by default:
// a shell lets a program in the background ignore SIGINT.
func untilSignal() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		cancel()
		<-signals
		os.Exit(exitTemporary) // plugins end when their gateway does
	}()
	return ctx
}

// serve takes mail until ctx ends, and reads the configuration again when it
// is asked to.
func (s *service) serve(ctx context.Context, stdout io.Writer) (err error) {
	if s.server, err = gateway.New(s.config, s.hosts.backends(), s.log); err != nil {
		return exitError{exitConfig, err}
	}
	if err := s.server.Listen(); err != nil {
		return exitError{exitSystem, explainListen(err)}
	}
	go s.server.Serve()
	s.logListening()
	printHints(stdout, s.config, s.server.Addrs())

	s.reloadUntil(ctx)
	log := s.log
	log.Info("stopping", "timeout", s.config.ShutdownTimeout, "hint", "a second signal ends it at once")
	deadline, cancel := context.WithTimeout(context.Background(), s.config.ShutdownTimeout)
	defer cancel()
	if err := s.server.Shutdown(deadline); err != nil {
		log.Warn("not all transactions ended in time")
	}
	return nil
}

func (s *service) logListening() {
	for i := range s.config.Listeners {
		l := &s.config.Listeners[i]
		s.log.Info("listening", "listener", l.Name, "protocol", l.Protocol, "address", boundTo(l, s.server.Addrs()))
	}
}

// explainListen adds what to do where the system only says no.
func explainListen(err error) error {
	op, ok := errors.AsType[*net.OpError](err)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w; is mailgw running already? else choose another address", err)
	case ok && strings.HasPrefix(op.Net, "tcp") && errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; a port below 1024 takes root or CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities)", err)
	}
	return err
}
