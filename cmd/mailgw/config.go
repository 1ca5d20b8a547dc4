package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/mailgw/mailgw/gateway"
	"github.com/spf13/cobra"
)

// configFlag adds --config to the flags of a command.
func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVarP(path, "config", "c", "gateway.toml", "configuration file")
	cmd.MarkFlagFilename("config", "toml")
}

// loadConfig reads the configuration file, prints its warnings, and makes its
// directory the working directory, so that a relative path in the settings of
// a plugin begins where all those in the file do.
func loadConfig(path string, stderr io.Writer) (*gateway.Config, error) {
	c, err := gateway.Load(path, shippedNames())
	if err == nil {
		err = os.Chdir(c.Dir)
	}
	if err != nil {
		return nil, exitError{exitConfig, err}
	}
	for _, w := range c.Warnings() {
		fmt.Fprintf(stderr, "warning: %s\n", w)
	}
	return c, nil
}

// newLogger returns the log that the configuration asks for.
func newLogger(c gateway.LogConfig, w io.Writer) *slog.Logger {
	var options slog.HandlerOptions
	var level slog.Level
	level.UnmarshalText([]byte(c.Level)) // Load has checked it
	options.Level = level
	if c.Format == "json" {
		// A number of nanoseconds is nothing for people.
		options.ReplaceAttr = func(_ []string, a slog.Attr) slog.Attr {
			if a.Value.Kind() == slog.KindDuration {
				a.Value = slog.Float64Value(a.Value.Duration().Seconds())
			}
			return a
		}
		return slog.New(slog.NewJSONHandler(w, &options))
	}
	return slog.New(slog.NewTextHandler(w, &options))
}
