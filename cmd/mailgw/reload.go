package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

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
they are. Transactions under way end where they have begun; sessions go on, with
the new configuration from their next transaction on. Listeners are added, changed
and removed; a session of one that is gone, or would not let it in now (another
protocol, no TLS or certificate, a proxy that is not trusted any more), ends as it was
when its client leaves. A configuration with a problem changes nothing.

It has to run as the user of the gateway or as root, and, like serve, find the
file under the same path.

Exit codes:
  0   the new configuration is in force
  64  wrong usage
  71  no gateway was found that runs with this file
  78  the configuration has a problem, or a backend does not start`,
		Example: `  mailgw reload
  mailgw reload --config /etc/mailgw/gateway.toml`,
		Args: cobra.NoArgs,
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
// one after the other, until ctx ends.
func (s *service) reloadUntil(ctx context.Context) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	requests := make(chan net.Conn)
	socket, err := listenForReload(s.file)
	if err != nil {
		s.log.Warn("reloading by SIGHUP only", "error", err)
	} else {
		defer socket.Close()
		go acceptReloads(ctx, socket, requests)
	}
	for {
		select {
		case <-hangups:
			s.reload(ctx)
		case c := <-requests:
			answerReload(c, s.reload(ctx))
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
	c, problems, err := loadConfig(s.file, s.stderr)
	if err != nil {
		return err
	}
	log := newLogger(c.Log, s.stderr)
	next := hosts{}
	if c.Log == s.config.Log { // of which plugins are told at their start
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

// controlAddress is where the gateway of a configuration file is found: a unix
// socket that has no place in the file system.
func controlAddress(file string) (*net.UnixAddr, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(path))
	return &net.UnixAddr{Net: "unix", Name: "@mailgw-" + hex.EncodeToString(sum[:16])}, nil
}

func listenForReload(file string) (*net.UnixListener, error) {
	address, err := controlAddress(file)
	if err != nil {
		return nil, err
	}
	return net.ListenUnix("unix", address)
}

// acceptReloads gives on who asks for a reload, and may.
func acceptReloads(ctx context.Context, socket *net.UnixListener, requests chan<- net.Conn) {
	for {
		c, err := socket.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		if uid, err := userOf(c); err != nil || uid != 0 && int(uid) != os.Geteuid() {
			c.Close()
			continue
		}
		select {
		case requests <- c:
		case <-ctx.Done():
			c.Close()
			return
		}
	}
}

// userOf returns who is at the other end of a unix socket.
func userOf(c *net.UnixConn) (uid uint32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	if controlErr := raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); controlErr != nil {
		return 0, controlErr
	}
	if err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// answerReload tells what came of a reload: nothing but a line "ok", or what is
// wrong.
func answerReload(c net.Conn, err error) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if err == nil {
		io.WriteString(c, reloadedWord)
		return
	}
	io.WriteString(c, err.Error()+"\n")
}

const reloadedWord = "ok\n"

// askToReload asks the gateway of a configuration file to read it again.
func askToReload(file string, stdout io.Writer) error {
	address, err := controlAddress(file)
	if err != nil {
		return exitError{exitSystem, err}
	}
	c, err := net.DialUnix("unix", nil, address)
	if errors.Is(err, syscall.ECONNREFUSED) {
		err = fmt.Errorf("no gateway runs that was started with --config %s", file)
	}
	if err != nil {
		return exitError{exitSystem, err}
	}
	defer c.Close()
	if uid, err := userOf(c); err != nil || os.Geteuid() != 0 && int(uid) != os.Geteuid() {
		return exitError{exitSystem, fmt.Errorf("the gateway runs as another user, with uid %d", uid)}
	}
	answer, err := io.ReadAll(c)
	switch {
	case err != nil:
		return exitError{exitSystem, fmt.Errorf("no answer: %w", err)}
	case len(answer) == 0:
		return exitError{exitSystem, errors.New("the gateway ends, or may not be told by this user")}
	case string(answer) != reloadedWord:
		return exitError{exitConfig, errors.New("nothing has changed:\n" + string(answer[:len(answer)-1]))}
	}
	fmt.Fprintln(stdout, "reloaded")
	return nil
}
