package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/mailgw/mailgw/gateway"
	"github.com/mailgw/mailgw/internal/settings"
)

const defaultConfig = "gateway.toml"

// configFlag adds --config to the flags of a command.
func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVarP(path, "config", "c", defaultConfig, "configuration file")
	cmd.MarkFlagFilename("config", "toml")
}

// configByFlag takes no arguments, which are files, as a rule, that belong elsewhere.
func configByFlag(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("takes no argument %q; give the configuration file with --config", args[0])
	}
	return nil
}

// loadConfig reads the configuration file as readConfig does, and prints its
// warnings.
func loadConfig(path string, stderr io.Writer) (*gateway.Config, gateway.Problems, error) {
	c, problems, err := readConfig(path)
	if err == nil {
		for _, w := range warnings(c, problems) {
			fmt.Fprintf(stderr, "warning: %s\n", w)
		}
	}
	return c, problems, err
}

// warnings returns what is odd in a configuration. With problems it is nothing,
// as some would only be the consequence.
func warnings(c *gateway.Config, problems gateway.Problems) gateway.Problems {
	if len(problems) > 0 {
		return nil
	}
	return slices.Concat(c.Warnings(), endsInFilter(c))
}

// logWarnings logs them, where a log is all that stands on standard error.
func logWarnings(log *slog.Logger, c *gateway.Config, problems gateway.Problems) {
	for _, w := range warnings(c, problems) {
		log.Warn("configuration", "warning", w.String())
	}
}

// readConfig reads the configuration file and makes its directory the working
// directory, so that a relative path in the settings of a plugin begins where all
// those in the file do. Problems of the file are no error yet: startBackends adds
// those that the plugins find.
func readConfig(path string) (*gateway.Config, gateway.Problems, error) {
	c, err := gateway.Load(path, shippedNames())
	problems, ok := errors.AsType[gateway.Problems](err)
	if err == nil || ok {
		if err := becomeUser(c); err != nil {
			return nil, nil, err
		}
		err = os.Chdir(c.Dir)
	}
	if path == defaultConfig && errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w; give the file with --config", err)
	}
	if err != nil {
		return nil, nil, exitError{exitConfig, err}
	}
	return c, problems, nil
}

// filters are the plugins that ship and decide nobody whom they do not refuse.
var filters = []string{"clamav", "dkim", "milter", "rspamd", "users"}

// endsInFilter finds routes in which nobody takes what a filter passes on.
func endsInFilter(c *gateway.Config) (warnings gateway.Problems) {
	warn := func(routes map[string][]string) {
		for pattern, route := range routes {
			last := route[len(route)-1]
			b := c.Backends[last]
			if slices.Contains(filters, b.Plugin) || b.Plugin == "exec" && b.Settings["final"] != true {
				warnings = append(warnings, c.Problem(settings.Join("backend", last),
					fmt.Sprintf("a filter, but the last one in the route of %q: whom it passes on gets 451", pattern)))
			}
		}
	}
	warn(c.NamedRoutes)
	for _, l := range c.Listeners {
		warn(l.Routes)
	}
	c.Sort(warnings)
	return warnings
}
