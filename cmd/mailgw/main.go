// Command mailgw is an LMTP and SMTP gateway whose backends run in processes
// of their own.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/mailgw/mailgw/gateway"
)

// Exit codes. They are those of sysexits.h as far as that has one that fits.
const (
	exitDiffers   = 1
	exitUsage     = 64
	exitData      = 65
	exitRefused   = 69
	exitSoftware  = 70
	exitSystem    = 71
	exitTemporary = 75
	exitSplits    = 76
	exitConfig    = 78
)

const exitCodes = `Exit codes:
  0   done; send: every recipient was accepted
  1   replay: the plugin says something else than before
  64  wrong usage
  65  send: the message cannot be read, or has a CR without LF;
      passwd: the password cannot be used, or there is no such user;
      replay: a file is no record
  69  send: a recipient was refused for good
  70  test-plugin: the plugin breaks a promise
  71  the system refuses something: an address in use, for example
  75  send: a recipient is to be tried again later, no matter what the others got;
      serve: ended at once by a second signal;
      record: the gateway has ended before;
      check: the target of a relay could not be tested
  76  check: the target of a relay splits messages
  78  gateway.toml or the users file has a problem, or a backend does not start`

// An exitError is an error with the exit code that it means.
type exitError struct {
	code int
	error
}

func (e exitError) Unwrap() error { return e.error }

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run runs one command line and returns its exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:   "mailgw",
		Short: "An LMTP and SMTP gateway whose backends run in processes of their own",
		Long: `mailgw takes mail over LMTP and SMTP, hands it to backends that run in processes
of their own, and tells the client what became of it, for each recipient.

` + exitCodes,
		Example: `  mailgw serve --config gateway.toml
  mailgw check --config gateway.toml
  mailgw send --to you@example.org tcp:127.0.0.1:2525`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetVersionTemplate(versionLine())
	// Files are offered where a flag names one, and nowhere else.
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.AddCommand(serveCommand(), reloadCommand(), checkCommand(), pluginCommand(), newPluginCommand(), testPluginCommand(),
		recordCommand(), replayCommand(), sendCommand(), passwdCommand(), postfixCommand(), versionCommand(), launchCommand())
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)

	cmd, err := root.ExecuteC()
	if err == nil {
		return 0
	}
	exit, ok := errors.AsType[exitError](err)
	if !ok {
		// Commands return an exitError unless the command line is wrong.
		fmt.Fprintf(stderr, "%s: %v\nSee '%[1]s --help'.\n", cmd.CommandPath(), err)
		return exitUsage
	}
	switch _, places := errors.AsType[gateway.Problems](exit.error); {
	case exit.error == nil: // all is said
	case places: // each line tells its own
		fmt.Fprintln(stderr, exit.error)
	default:
		fmt.Fprintf(stderr, "%s: %v\n", cmd.CommandPath(), exit.error)
	}
	return exit.code
}
