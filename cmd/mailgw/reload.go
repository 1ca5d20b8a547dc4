package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mailgw/mailgw/gateway"
)

func reloadCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Let the running gateway read its configuration again",
		Long: `Reload asks the gateway that was started with this configuration file to read it
again, and tells what came of it. SIGHUP does the same, without an answer but that
in the log.

Plugins that are new or were changed, in the file or by another program at their
path, start and take their settings before the old ones go. The others go on as
they are. All are changed by another hostname or [log], since they are told of these
when they start; the old ones log as before until they have ended. Transactions
under way end where they have begun; sessions go on, with the new configuration from
their next transaction on. Listeners are added, changed and removed; a session of
one that is gone, or would not let it in now (another protocol, no TLS or
certificate, a proxy that is not trusted any more), ends as it was when its client
leaves. A configuration with a problem changes nothing.

It has to run as the user of the gateway or as root, and, like serve, find the
file under the same path.

Exit codes:
  0   the new configuration is in force
  64  wrong usage
  71  no gateway was found that runs with this file
  78  the configuration has a problem, or a backend does not start`,
		Example: `  mailgw reload
  mailgw reload --config /etc/mailgw/gateway.toml`,
		Args: configByFlag,
		RunE: func(cmd *cobra.Command, args []string) error {
			return askToReload(config, cmd.OutOrStdout())
		},
	}
	configFlag(cmd, &config)
	return cmd
}

// A service is the gateway that serve runs.
type service struct {
	file   string // of the configuration
	stderr io.Writer
	server *gateway.Server

	// What is in force.
	config *gateway.Config
	hosts  hosts
	log    *slog.Logger

	leaving sync.WaitGroup // plugins that are in force no more
}

// reloadUntil reads the configuration again at each SIGHUP and for each reload,
// one after the other, until ctx ends. It answers other requests, too.
func (s *service) reloadUntil(ctx context.Context) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	reloads := make(chan chan<- error)
	socket, err := listenForControl(s.file)
	if err != nil {
		s.log.Warn("reloading by SIGHUP only", "error", err)
	} else {
		var answering sync.WaitGroup
		defer answering.Wait()
		defer socket.Close()
		answering.Go(func() { acceptControl(ctx, socket, control{s.server, reloads}.answer) })
	}
	for {
		select {
		case <-hangups:
			s.reload(ctx)
		case done := <-reloads:
			done <- s.reload(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// reload puts what the file says now in the place of what is in force. After
// an error nothing has changed.
func (s *service) reload(ctx context.Context) error {
	s.log.Info("reloading", "config", s.file)
	err := s.replace(ctx)
	if err != nil {
		s.log.Error("not reloaded", "error", err.Error())
		return err
	}
	s.log.Info("reloaded")
	return nil
}

func (s *service) replace(ctx context.Context) error {
	c, problems, err := readConfig(s.file)
	if err != nil {
		return err
	}
	log, same := s.log, c.Log == s.config.Log // a second log would not keep the order of lines
	if !same {
		log = gateway.NewLogger(c.Log, s.stderr)
	}
	logWarnings(log, c, problems)
	next := hosts{}
	if same { // of which plugins are told at their start
		maps.Copy(next, s.hosts)
		maps.DeleteFunc(next, func(name string, h *host) bool {
			_, there := c.Backends[name]
			return !there || !slices.Contains(c.Routed(), name) || !h.runs(pluginOf(c, name, log))
		})
	}
	missing := slices.DeleteFunc(c.Routed(), func(name string) bool { return next[name] != nil })
	started, err := startBackends(ctx, c, missing, problems, log)
	if err != nil {
		return err
	}
	maps.Copy(next, started)
	left, err := s.server.Reload(c, next.backends(), log)
	if err != nil {
		started.close(log)
		return explainListen(err)
	}
	gone := maps.Clone(s.hosts)
	maps.DeleteFunc(gone, func(name string, h *host) bool { return next[name] == h })
	s.config, s.hosts, s.log = c, next, log
	s.logListening()
	s.leaving.Go(func() {
		<-left
		gone.close(log)
	})
	return nil
}

// close stops all plugins, after the last session.
func (s *service) close() {
	s.hosts.close(s.log)
	s.leaving.Wait()
}

// askToReload asks the gateway of a configuration file to read it again.
func askToReload(file string, stdout io.Writer) error {
	c, err := ask(file, "reload")
	if err != nil {
		return exitError{exitSystem, err}
	}
	defer c.Close()
	answer, err := io.ReadAll(c)
	switch {
	case err != nil:
		return exitError{exitSystem, fmt.Errorf("no answer: %w", err)}
	case len(answer) == 0:
		return exitError{exitSystem, errNoAnswer}
	case string(answer) != okLine:
		return exitError{exitConfig, errors.New("nothing has changed:\n" + string(answer[:len(answer)-1]))}
	}
	fmt.Fprintln(stdout, "reloaded")
	return nil
}
