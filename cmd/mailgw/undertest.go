package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"github.com/mailgw/mailgw/gateway"
	"github.com/mailgw/mailgw/internal/settings"
	"github.com/mailgw/mailgw/plugins"
)

// underTest says what a plugin is tested with: settings in a file of their own, or
// all that a backend of a configuration has.
type underTest struct{ settings, config, backend string }

func (u *underTest) flags(cmd *cobra.Command) {
	configFlag(cmd, &u.config)
	cmd.Flags().StringVar(&u.backend, "backend", "", "test this backend of the configuration file")
	cmd.Flags().StringVar(&u.settings, "settings", "", "file with the settings: what would be in [backend.NAME.settings]")
	cmd.MarkFlagFilename("settings", "toml")
}

// command says how the plugin is started: program, with its arguments, if it is
// not that of a backend.
func (u underTest) command(program []string, log *slog.Logger, stderr io.Writer) (plugins.Command, error) {
	if u.backend != "" {
		return u.ofBackend(log, stderr)
	}
	values := map[string]any{}
	if u.settings != "" {
		if _, err := toml.DecodeFile(u.settings, &values); err != nil {
			return plugins.Command{}, fmt.Errorf("%s: %w", u.settings, err)
		}
	}
	if !strings.Contains(program[0], "/") && !slices.Contains(shippedNames(), program[0]) {
		return plugins.Command{}, fmt.Errorf("no plugin %q ships; want %s, or the path, with a slash, of a program", program[0], strings.Join(shippedNames(), ", "))
	}
	var b gateway.BackendConfig
	b.SetDefaults()
	b.Plugin, b.Args, b.Settings = program[0], program[1:], values
	name := filepath.Base(program[0])
	return pluginOf(&gateway.Config{Backends: map[string]gateway.BackendConfig{name: b}}, name, log), nil
}

// placed gives the faults that a plugin found in a file of settings their places
// there.
func (u underTest) placed(err error) error {
	found, ok := errors.AsType[plugins.SettingsError](err)
	if !ok || u.settings == "" {
		return err
	}
	text, unread := os.ReadFile(u.settings)
	if unread != nil {
		return err
	}
	lines := settings.FindLines(string(text))
	var faults []error
	for _, f := range found.Faults {
		faults = append(faults, fmt.Errorf("%s:%d: %s: %s", u.settings, lines.Of(f.Key), f.Key, f.Text))
	}
	return errors.Join(faults...)
}

// ofBackend says it of a backend of the configuration.
func (u underTest) ofBackend(log *slog.Logger, stderr io.Writer) (plugins.Command, error) {
	c, problems, err := loadConfig(u.config, stderr)
	if err != nil {
		return plugins.Command{}, err
	}
	key := settings.Join("backend", u.backend)
	problems = slices.DeleteFunc(problems, func(p gateway.Problem) bool { return !gateway.Problems{p}.In(key) })
	_, there := c.Backends[u.backend]
	switch {
	case len(problems) > 0:
		return plugins.Command{}, problems
	case !there:
		return plugins.Command{}, fmt.Errorf("%s has no [%s]", u.config, key)
	}
	return pluginOf(c, u.backend, log), nil
}
