package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/mailgw/mailgw/backends/users"
)

// passwdFlags are the flags of passwd.
type passwdFlags struct {
	file   string
	delete bool
	sendAs []string
}

func passwdCommand() *cobra.Command {
	var f passwdFlags
	cmd := &cobra.Command{
		Use:   "passwd USER",
		Short: "Set the password of a user in a users file",
		Long: `Passwd sets the password of a user in the file of the plugin users, and adds the
user if there is none of that name. On a terminal it asks for the password, twice;
else it reads one line of standard input. It needs no restart of the gateway.

The file is made if it is missing, for nobody but who runs passwd, who should be
the user that serve runs as. One that is there keeps its mode and owner, and all
that is in it but the user's own line; it must not be readable by everybody. A
certificate may be added to that line by hand, as cert=SHA-256 with what
"openssl x509 -fingerprint -sha256" prints. Those who run passwd at the same time
wait for each other, up to 10 seconds, by a lock on the directory.

USER may send mail as USER, if that is an address, and as --send-as says:
  user@example.org  that address
  @example.org      the domain, without its subdomains
  user@*            the user in all domains
  *                 every address
  <>                the sender of bounces and of read receipts

Exit codes:
  0   the file is changed
  64  wrong usage
  65  the password cannot be used, or there is no such user to delete
  71  the system refuses something: to write the file, for example, or another
      process keeps its lock on the directory
  78  the file has a fault, and is as it was`,
		Example: `  mailgw passwd ann@example.org
  mailgw passwd --file /etc/mailgw/users --send-as @example.org --send-as "<>" ann@example.org
  mailgw passwd relay < password
  mailgw passwd --delete ann@example.org`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("want one USER; found %d", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(args[0], cmd.InOrStdin(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.file, "file", "f", users.Defaults.File, "users file")
	flags.BoolVar(&f.delete, "delete", false, "take the user out of the file")
	flags.StringArrayVar(&f.sendAs, "send-as", nil, "what else USER may send mail as, in place of what\nthe file says; may be repeated")
	cmd.RegisterFlagCompletionFunc("file", cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault))
	return cmd
}

// run does what the flags say. An error that is no exitError is one of usage.
func (f *passwdFlags) run(user string, stdin io.Reader, stderr io.Writer) error {
	if f.delete && f.sendAs != nil {
		return errors.New("want --delete or --send-as, not both")
	}
	if err := users.CheckUser(user, f.sendAs); err != nil {
		return err
	}
	waits := func(dir string) {
		fmt.Fprintf(stderr, "mailgw passwd: waiting for another process that has a lock on %s\n", dir)
	}
	if f.delete {
		return f.outcome(users.Delete(f.file, user, waits))
	}
	password, err := readPassword(user, stdin, stderr)
	if err == nil {
		err = users.CheckPassword(password)
	}
	if err != nil {
		return exitError{exitData, err}
	}
	return f.outcome(users.Set(f.file, user, password, f.sendAs, waits))
}

// outcome gives an error of the file its exit code.
func (f *passwdFlags) outcome(err error) error {
	_, faults := errors.AsType[users.Faults](err)
	switch {
	case err == nil:
		return nil
	case faults:
		return exitError{exitConfig, err}
	case errors.Is(err, users.ErrNoUser):
		return exitError{exitData, err}
	}
	return exitError{exitSystem, err}
}

// readPassword returns a line of standard input, or what is typed twice at a
// terminal.
func readPassword(user string, stdin io.Reader, stderr io.Writer) (string, error) {
	if tty, ok := stdin.(*os.File); ok && term.IsTerminal(int(tty.Fd())) {
		return askPassword(user, int(tty.Fd()), stderr)
	}
	line, err := bufio.NewReader(stdin).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", err
	}
	return strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"), nil
}

func askPassword(user string, tty int, stderr io.Writer) (string, error) {
	before, err := term.GetState(tty)
	if err != nil {
		return "", err
	}
	// A signal would leave the terminal without its echo.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer close(signals)
	defer signal.Stop(signals)
	go func() {
		if s, ok := <-signals; ok {
			term.Restore(tty, before)
			fmt.Fprintln(stderr)
			os.Exit(128 + int(s.(syscall.Signal)))
		}
	}()
	var typed [2]string
	for i, prompt := range []string{"New password for " + user, "The same again"} {
		fmt.Fprintf(stderr, "%s: ", prompt)
		password, err := term.ReadPassword(tty)
		fmt.Fprintln(stderr)
		if err != nil {
			return "", err
		}
		typed[i] = string(password)
	}
	if typed[0] != typed[1] {
		return "", errors.New("these are two different passwords")
	}
	return typed[0], nil
}
