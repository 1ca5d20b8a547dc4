package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mailgw/mailgw/backends/backendtest"
	"github.com/mailgw/mailgw/gateway"
	"github.com/mailgw/mailgw/plugins"
	"github.com/mailgw/mailgw/plugins/plugintest"
)

// testPluginFlags are the flags of test-plugin.
type testPluginFlags struct {
	underTest
	verbose bool
	options backendtest.Options
}

func testPluginCommand() *cobra.Command {
	var f testPluginFlags
	cmd := &cobra.Command{
		Use:   "test-plugin [flags] PROGRAM [ARGUMENT]...",
		Short: "Test whether a plugin, in any language, keeps the promises of one",
		Long: `Test-plugin starts a plugin a dozen times, and gives it transactions of many kinds:
the same recipient twice, large messages, all octets, messages that break off,
deadlines, many at once; the questions that it announces; and what concerns a
process: signals, health checks while it is busy, garbage, being killed, its end.
It prints a line for each check. A plugin that crashes three times, or does not return
from a call, is tested no further. What goes on within it only tests in its own language
see: in Go those of package backendtest count its goroutines.

PROGRAM is its path, or the name of a plugin that ships. It runs in this directory,
with an empty environment. Instead of it, --backend names a backend of the
configuration file, with its arguments, environment, sandbox and settings.

The transactions are real to the plugin: what it does with mail, it does. They are
for the recipients that are given, and the plugin is to take them (2xx), or to
leave them to the next backend. The sender is sender@example.net.

Exit codes:
  0   all is well
  64  wrong usage
  70  a check has failed
  78  gateway.toml has a problem, or the plugin finds one in its settings`,
		Example: `  mailgw test-plugin ./my-plugin
  mailgw test-plugin --settings settings.toml --recipient ann@example.org ./my-plugin
  mailgw test-plugin --config gateway.toml --backend my-plugin`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case f.backend == "" && cmd.Flags().Changed("config"):
				return errors.New("--config is for --backend")
			case (f.backend != "") == (len(args) > 0):
				return errors.New("want a program, or --backend")
			case f.backend != "" && f.settings != "":
				return errors.New("--settings is for a program; a backend has its own")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, address := range f.options.Recipients {
				if err := checkAddress(address); err != nil {
					return fmt.Errorf("--recipient %s: %w", address, err)
				}
			}
			return testPlugin(cmd.Context(), f, args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return shippedNames(), cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveDefault
		},
	}
	cmd.Flags().SetInterspersed(false) // flags behind PROGRAM are its own
	f.underTest.flags(cmd)
	cmd.Flags().StringArrayVar(&f.options.Recipients, "recipient", nil, "address that the plugin takes; may be repeated (default one@example.org and two@example.org)")
	cmd.Flags().BoolVar(&f.options.Final, "final", false, "the plugin decides all recipients: it can be the last of a route")
	cmd.Flags().BoolVar(&f.options.IgnoresMessage, "ignores-message", false, "the plugin may answer 2xx before it has read the message")
	cmd.Flags().DurationVar(&f.options.Patience, "patience", 10*time.Second, "how long the plugin may take for anything")
	cmd.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "print the log on standard error")
	return cmd
}

// takes says what to do about a recipient that the plugin refuses.
func (f testPluginFlags) takes(e *backendtest.RefusedError) string {
	cure := "name addresses that it takes with --recipient"
	if f.backend == "" {
		cure += ", or give it settings with --settings"
	}
	return fmt.Sprintf("the plugin refuses %s with %q, and most of this may come of that: %s", e.Address, e.Status.Error(), cure)
}

func testPlugin(ctx context.Context, f testPluginFlags, args []string, stdout, stderr io.Writer) error {
	log := slog.New(slog.DiscardHandler)
	if f.verbose {
		log = gateway.NewLogger(gateway.LogConfig{Level: "info"}, stderr)
	}
	command, err := f.command(args, log, stderr)
	if err != nil {
		return exitError{exitConfig, err}
	}
	if command.Attach != "" {
		return exitError{exitConfig, fmt.Errorf("[backend.%s] is started by hand, and cannot be started again and again; name its program", f.backend)}
	}
	checks, failed := 0, 0
	f.options.Report = func(check string, err error) {
		checks++
		if err == nil {
			fmt.Fprintf(stdout, "ok      %s\n", check)
			return
		}
		failed++
		fmt.Fprintf(stdout, "FAILED  %s\n", strings.ReplaceAll(err.Error(), "\n", "\n        "))
	}
	err = plugintest.Test(ctx, command, f.options)
	if _, ok := errors.AsType[plugins.SettingsError](err); ok {
		return exitError{exitConfig, nil}
	}
	if err != nil {
		others := ""
		if errors.Is(err, backendtest.ErrGaveUp) {
			others = ", the others were not made"
		}
		fmt.Fprintf(stdout, "%d of %d checks have failed%s; --verbose tells what the plugin has logged\n", failed, checks, others)
		if refused, ok := errors.AsType[*backendtest.RefusedError](err); ok {
			fmt.Fprintln(stdout, f.takes(refused))
		}
		return exitError{exitSoftware, nil}
	}
	fmt.Fprintf(stdout, "all %d checks are ok\n", checks)
	return nil
}
