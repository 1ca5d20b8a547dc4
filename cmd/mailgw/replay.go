package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/mailgw/mailgw/gateway"
	"github.com/mailgw/mailgw/internal/record"
)

// replayFlags are the flags of replay.
type replayFlags struct {
	underTest
	plugin  string
	timeout time.Duration
	exact   bool
	update  bool
}

func replayCommand() *cobra.Command {
	var f replayFlags
	cmd := &cobra.Command{
		Use:   "replay FILE... --plugin PROGRAM",
		Short: "Give recorded transactions to a plugin, and compare what it says",
		Long: `Replay starts a plugin, gives it the transactions of files that record has written,
one after the other, and prints a line for each recipient, and for each edit: "same",
or "differs", with what was and what is. So real mail becomes the tests of a plugin.

The plugin is a program, or one that ships, with the settings of a file; or that of a
backend of a configuration, with all that it has there, also one that was started by
hand, under a debugger. The transactions are real to the plugin: what it does with mail,
it does.

Of an answer the code and the enhanced code decide. What else it says may be another
queue ID each time: where it differs that is shown, and is the same all the same,
unless --exact wants the same text. What fails is the same whatever it says of it.
Edits are compared to the letter. Of a file that was redacted codes and kinds of edits
are compared, and no texts, until --update has written new answers. A file that was
written by hand may leave out what was answered; --update adds it.

Exit codes:
  0   all is the same, or --update has written what is not
  1   something differs
  64  wrong usage
  65  a file is no record
  71  a file cannot be read or written
  78  the plugin does not start, or the configuration has a problem`,
		Example: `  mailgw replay testdata/*.record --plugin ./roster --settings roster.toml
  mailgw replay 06gztyg6q151rdby.record --config gateway.toml --backend roster
  mailgw replay --update testdata/*.record --plugin ./roster`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f.underTest.flags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.plugin, "plugin", "", "path of a program, or the name of a plugin that ships")
	flags.DurationVar(&f.timeout, "timeout", time.Minute, "what a transaction may take")
	flags.BoolVar(&f.exact, "exact", false, "compare the texts of answers, too")
	flags.BoolVar(&f.update, "update", false, "write what the plugin says now into files that differ")
	cmd.MarkFlagsOneRequired("plugin", "backend")
	cmd.MarkFlagsMutuallyExclusive("plugin", "backend")
	cmd.MarkFlagsMutuallyExclusive("plugin", "config")
	cmd.MarkFlagsMutuallyExclusive("settings", "backend")
	cmd.MarkFlagFilename("plugin")
	cmd.ValidArgsFunction = cobra.FixedCompletions([]cobra.Completion{"record"}, cobra.ShellCompDirectiveFilterFileExt)
	return cmd
}

// A recorded is a file with its record.
type recorded struct {
	name string // as it was given
	path string // absolute, as the working directory may change
	*record.Record
}

func (f *replayFlags) run(ctx context.Context, names []string, stdout, stderr io.Writer) error {
	files, err := readRecords(names)
	if err != nil {
		return err
	}
	log := gateway.NewLogger(gateway.LogConfig{Level: "warn"}, stderr)
	command, err := f.command([]string{f.plugin}, log, stderr)
	if err != nil {
		return exitError{exitConfig, err}
	}
	plugin, err := startHost(ctx, command)
	if err != nil {
		return exitError{exitConfig, f.placed(err)}
	}
	defer hosts{"": plugin}.close(log)
	differs := false
	for _, file := range files {
		same, err := f.replay(ctx, plugin, file, stdout)
		if err != nil {
			return exitError{exitSystem, err}
		}
		differs = differs || !same
	}
	if differs && !f.update {
		return exitError{exitDiffers, nil}
	}
	return nil
}

// readRecords reads all files before anything is done with one. The error has all
// that are no records.
func readRecords(names []string) (files []recorded, err error) {
	var faults []error
	for _, name := range names {
		r, err := readRecord(name)
		if _, system := errors.AsType[*os.PathError](err); system {
			return nil, exitError{exitSystem, err}
		}
		path, absErr := filepath.Abs(name)
		if err = errors.Join(err, absErr); err != nil {
			faults = append(faults, err)
		}
		files = append(files, recorded{name, path, r})
	}
	if faults != nil {
		return nil, exitError{exitData, errors.Join(faults...)}
	}
	return files, nil
}

func readRecord(name string) (*record.Record, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return record.Read(bufio.NewReader(file), name)
}

// replay prints what the plugin says of a file, and reports whether that is the
// same as before.
func (f *replayFlags) replay(ctx context.Context, plugin *host, file recorded, stdout io.Writer) (same bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	said := record.Hear(ctx, plugin, file.Transaction(), record.Store)
	same = true
	for _, finding := range file.Compare(said, f.exact) {
		fmt.Fprintf(stdout, "%s: %v\n", file.name, finding)
		same = same && finding.Same
	}
	if same || !f.update {
		return same, nil
	}
	file.Said, file.Redacted = said, false
	fmt.Fprintf(stdout, "%s: updated\n", file.name)
	return false, file.rewrite()
}

// rewrite puts the record in the place of the file.
func (r recorded) rewrite() error {
	info, err := os.Stat(r.path)
	if err != nil {
		return err
	}
	next, err := os.CreateTemp(filepath.Dir(r.path), ".mailgw-")
	if err != nil {
		return err
	}
	defer os.Remove(next.Name()) // unless it has its new name
	if err := errors.Join(record.Write(next, r.Record), next.Chmod(info.Mode().Perm()), next.Close()); err != nil {
		return err
	}
	return os.Rename(next.Name(), r.path)
}
