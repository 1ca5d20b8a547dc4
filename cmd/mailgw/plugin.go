package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/clamav"
	"github.com/mailgw/mailgw/backends/discard"
	"github.com/mailgw/mailgw/backends/dkim"
	"github.com/mailgw/mailgw/backends/exec"
	"github.com/mailgw/mailgw/backends/maildir"
	"github.com/mailgw/mailgw/backends/milter"
	"github.com/mailgw/mailgw/backends/relay"
	"github.com/mailgw/mailgw/backends/rspamd"
	"github.com/mailgw/mailgw/backends/static"
	"github.com/mailgw/mailgw/backends/users"
	"github.com/mailgw/mailgw/backends/webhook"
	"github.com/mailgw/mailgw/gateway"
	"github.com/mailgw/mailgw/internal/settings"
	"github.com/mailgw/mailgw/plugins"
)

// shipped are the plugins that come with the program, in alphabetical order.
var shipped = []struct {
	name, about string
	serve       func()
}{
	{"clamav", "have clamd look for viruses", func() { plugins.Serve(clamav.Defaults, clamav.New) }},
	{"dkim", "sign mail, and tell whether DKIM, SPF and DMARC speak for it", func() { plugins.Serve(dkim.Defaults, dkim.New) }},
	{"discard", "take every message and throw it away", func() { plugins.Serve(discard.Defaults, discard.New) }},
	{"exec", "run a program for each message", func() { plugins.Serve(exec.Defaults, exec.New) }},
	{"maildir", "deliver into Maildirs", func() { plugins.Serve(maildir.Defaults, maildir.New) }},
	{"milter", "ask a milter, such as opendkim", func() { plugins.Serve(milter.Defaults, milter.New) }},
	{"relay", "pass mail on to other servers, over SMTP or LMTP", func() { plugins.Serve(relay.Defaults, relay.New) }},
	{"rspamd", "ask rspamd what to do with a message", func() { plugins.Serve(rspamd.Defaults, rspamd.New) }},
	{"static", "answer by recipient pattern, for tests and demonstrations", func() { plugins.Serve(static.Defaults, static.New) }},
	{"users", "tell users by their passwords, and who may send as whom", func() { plugins.Serve(users.Defaults, users.New) }},
	{"webhook", "ask an HTTP server about each message", func() { plugins.Serve(webhook.Defaults, webhook.New) }},
}

func shippedNames() (names []string) {
	for _, p := range shipped {
		names = append(names, p.name)
	}
	return names
}

func pluginCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "plugin [NAME]",
		Short: "Run a plugin that ships with mailgw, or list them",
		Long: `Plugin runs one of the plugins that ship with mailgw. The gateway starts them that
way itself: nobody else needs to. Without NAME it lists them.

In gateway.toml a plugin is named by a backend:

  [backend.inbox]
  plugin = "maildir"`,
		Example:   "  mailgw plugin",
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: shippedNames(),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, p := range shipped {
				if len(args) == 0 {
					fmt.Fprintf(cmd.OutOrStdout(), "%-8s  %s\n", p.name, p.about)
				} else if p.name == args[0] {
					nameProcess(p.name)
					p.serve()
					return nil
				}
			}
			if len(args) > 0 {
				return fmt.Errorf("no plugin %q ships with mailgw; want %s", args[0], strings.Join(shippedNames(), ", "))
			}
			return nil
		},
	}
}

// nameProcess lets ps and top tell the plugins apart: all were started as
// /proc/self/exe. They can do without.
func nameProcess(plugin string) {
	os.WriteFile("/proc/self/comm", []byte("mailgw-"+plugin), 0)
}

// hosts are the running plugins of a configuration, by the name of the
// backend.
type hosts map[string]*host

// A host is a running plugin, and what it was started from.
type host struct {
	*plugins.Host
	command plugins.Command
	program os.FileInfo
}

// startHost starts a plugin, or attaches to it.
func startHost(ctx context.Context, command plugins.Command) (*host, error) {
	var program os.FileInfo
	if command.Attach == "" {
		var err error
		if program, err = os.Stat(command.Path); err != nil {
			return nil, err
		}
	}
	h, err := plugins.Start(ctx, command)
	if err != nil {
		return nil, err
	}
	return &host{h, command, program}, nil
}

// runs reports whether h is what starting command would bring. What was started
// by hand may be anything.
func (h *host) runs(command plugins.Command) bool {
	if h.program == nil {
		return false
	}
	now, err := os.Stat(command.Path)
	if err != nil || !os.SameFile(now, h.program) || !now.ModTime().Equal(h.program.ModTime()) || now.Size() != h.program.Size() {
		return false
	}
	command.Log = h.command.Log
	return reflect.DeepEqual(command, h.command)
}

// startBackends starts the plugins of the named backends, side by side. If
// there are problems with the file, or a plugin does not start, it stops those
// that did and returns all Problems. Backends are not started for which there
// are some already.
func startBackends(ctx context.Context, c *gateway.Config, names []string, problems gateway.Problems, log *slog.Logger) (hosts, error) {
	var (
		mu       sync.Mutex
		started  = hosts{}
		starting sync.WaitGroup
	)
	names = slices.DeleteFunc(names, func(name string) bool {
		_, exists := c.Backends[name]
		return !exists || problems.In(settings.Join("backend", name)) || problems.In("plugin_directory")
	})
	for _, name := range names {
		starting.Go(func() {
			host, err := startHost(ctx, pluginOf(c, name, log))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				problems = append(problems, startProblems(c, name, err)...)
				return
			}
			started[name] = host
		})
	}
	starting.Wait()
	if len(problems) > 0 {
		started.close(log)
		c.Sort(problems)
		return nil, problems
	}
	return started, nil
}

// pluginOf says how the plugin of a backend is run. One that ships is this very
// program, even if its file was replaced since it started.
func pluginOf(c *gateway.Config, name string, log *slog.Logger) plugins.Command {
	b := c.Backends[name]
	path, args := b.Plugin, b.Args
	if slices.Contains(shippedNames(), b.Plugin) {
		path, args = "/proc/self/exe", append([]string{"plugin", b.Plugin}, b.Args...)
	}
	checksum, _ := b.SHA256() // Load has checked it
	env := map[string]string{backends.HostnameEnv: c.Hostname}
	maps.Copy(env, b.Env)
	return plugins.Command{
		Name: name, Path: path, Args: args, Env: env, Attach: b.Attached(), Checksum: checksum, Instances: b.Instances,
		Directory: c.PluginDirectory, Settings: b.Settings, Transactions: b.Transactions, Log: log, Sandbox: sandboxOf(b.Sandbox),
		ReplaceMemory: uint64(b.ReplaceMemory), ReplaceOpenFiles: uint64(b.ReplaceOpenFiles),
	}
}

func sandboxOf(s gateway.SandboxConfig) plugins.Sandbox {
	sandbox := plugins.Sandbox{
		User: s.Credential, Directory: s.Directory,
		Memory: uint64(s.Memory), OpenFiles: uint64(s.OpenFiles), Processes: uint64(s.Processes), CPU: s.CPU,
		NewPrivileges: !s.NoNewPrivileges, BestEffort: s.BestEffort,
	}
	if s.Confined() {
		sandbox.Files = &plugins.Files{Read: s.ReadPaths, Write: s.WritePaths}
	}
	return sandbox
}

// startProblems gives the faults that a plugin found in its settings their
// places in the file.
func startProblems(c *gateway.Config, name string, err error) (problems gateway.Problems) {
	key := "backend." + name
	if faults, ok := errors.AsType[plugins.SettingsError](err); ok {
		for _, f := range faults.Faults {
			problems = append(problems, c.Problem(key+".settings."+f.Key, f.Text))
		}
		return problems
	}
	if of, ok := errors.AsType[plugins.KeyError](err); ok {
		return gateway.Problems{c.Problem(key+"."+of.Key, of.Err.Error())}
	}
	return gateway.Problems{c.Problem(key, strings.TrimPrefix(err.Error(), "backend "+name+": "))}
}

func (h hosts) backends() map[string]backends.Backend {
	all := map[string]backends.Backend{}
	for name, host := range h {
		all[name] = host.Host
	}
	return all
}

// close stops all plugins, side by side. No session is left by then, so that
// few of them have anything to finish.
func (h hosts) close(log *slog.Logger) {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var closing sync.WaitGroup
	for name, host := range h {
		closing.Go(func() {
			if err := host.Close(ctx); err != nil {
				log.Warn("backend", "backend", name, "event", "stopped", "error", err)
			}
		})
	}
	closing.Wait()
}
