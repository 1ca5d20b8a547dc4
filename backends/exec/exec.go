// Package exec is a backend that runs a program for each message, as pipe(8) of
// Postfix does:
//
//	[backend.exec.settings]
//	command = ["/usr/local/bin/check-mail", "--strict"]
//
// No shell is involved, and nothing that comes from outside is in the arguments.
// The program gets the message on its standard input, and in its environment, as
// far as it is known:
//
//	SENDER           reverse-path, empty for bounces
//	RECIPIENT        forward-path, empty if there are several
//	RECIPIENTS       all of them, one on a line; no more than 128 KiB
//	SIZE             octets of the message, with CRLF
//	CLIENT_ADDRESS   IP address of the client: by XFORWARD, by a proxy, or the peer's
//	CLIENT_HOSTNAME  its name, if one that is trusted told it
//	CLIENT_HELO      argument of HELO, EHLO or LHLO
//	CLIENT_PROTOCOL  SMTP, ESMTP, LMTP, ...
//	SASL_USERNAME    who it has logged in as
//	SASL_METHOD      and by which mechanism
//	QUEUE_ID         IDENT of XFORWARD: Postfix's queue id
//	MAILGW_TX        ID of the transaction in the log
//
// Besides it has PATH and what the settings say, and nothing else. It need not read
// all of the message. It decides all recipients alike, by its exit status
// (sysexits.h):
//
//	0                   the message goes on or, with final, is delivered
//	EX_DATAERR (65)     554 5.6.0
//	EX_NOUSER (67)      550 5.1.1
//	EX_NOHOST (68)      550 5.1.2
//	EX_UNAVAILABLE (69) 554 5.3.0
//	EX_TEMPFAIL (75)    451 4.3.0
//	EX_NOPERM (77)      550 5.7.1
//
// Any other status is a failure, for which on_failure of the backend is, and so
// is a signal that ends it: others of sysexits.h speak of local trouble, for which
// no mail is bounced. If the status is not 0, and the first line of its standard
// output is "5.7.1 text" or the like, with an enhanced status code of class 4 or
// 5, then that is the answer, whatever the status.
//
// What it prints before it ends with 0 are header fields, which are put on top of
// the header as they are. What it prints to standard error is for the log, the last
// 4 KiB of it.
//
// Linux lets no variable have more than 128 KiB. If the recipients have more, that is a
// failure each time; recipients_per_transaction = 500 of the backend has them fit.
//
// At the end of the transaction's time it is killed, and all processes of its
// process group are; so are those that it leaves behind when it ends. One that has
// left the group lives on; if it holds the standard output, header fields may be
// missing, which is a failure. If the
// message breaks off it is killed as well, and does not see an end of it. A
// program that stores the message cannot rely on that if mailgw itself is
// killed: it should compare what it got with SIZE.
package exec

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	osexec "os/exec"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/settings"
)

// Settings say which program is run, and how.
type Settings struct {
	// Command is the path of the program, which has a slash, and its arguments.
	Command []string `toml:"command"`

	// Env is put into its environment.
	Env map[string]string `toml:"env"`

	// LineEnds are those of the message as the program gets it: "crlf", as it
	// is, or "lf".
	LineEnds string `toml:"line_ends"`

	// Final says that the program delivers the message: exit status 0 is
	// success, and its standard output is of no interest then.
	Final bool `toml:"final"`

	// Headers says that it prints header fields. If not, its standard output is
	// of no interest when it ends with 0.
	Headers bool `toml:"headers"`

	// Processes is how many may run at once. Other messages wait.
	Processes int `toml:"processes"`
}

// Defaults are the Settings that hold for keys that are not given. Command has
// to be given.
var Defaults = Settings{LineEnds: "crlf", Headers: true, Processes: 10}

// New returns a backend that runs a program. Nothing is run before the first
// message.
func New(s Settings) (backends.Backend, error) {
	var faults []error
	fault := func(key, format string, args ...any) {
		faults = append(faults, backends.SettingError{Key: key, Err: fmt.Errorf(format, args...)})
	}
	if err := checkCommand(s.Command); err != nil {
		fault("command", "%w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		if err := checkVariable(name, s.Env[name]); err != nil {
			fault(settings.Join("env", name), "%w", err)
		}
	}
	if s.LineEnds != "crlf" && s.LineEnds != "lf" {
		fault("line_ends", "%q is neither crlf nor lf", s.LineEnds)
	}
	if s.Processes <= 0 {
		fault("processes", "%d is not above zero", s.Processes)
	}
	return &backend{Settings: s, running: make(chan struct{}, max(0, s.Processes))}, errors.Join(faults...)
}

func checkCommand(command []string) error {
	switch {
	case len(command) == 0:
		return errors.New("is missing; want the path of a program and its arguments")
	case !strings.Contains(command[0], "/"):
		return fmt.Errorf("%q has no slash; want the path of a program", command[0])
	case slices.ContainsFunc(command, func(arg string) bool { return strings.Contains(arg, "\x00") }):
		return errors.New("an argument has a NUL")
	}
	_, err := osexec.LookPath(command[0])
	return err
}

type backend struct {
	Settings
	running chan struct{} // has one for each process
}

// MayEdit follows from the settings.
func (b *backend) MayEdit() backends.EditKinds {
	if b.Headers && !b.Final {
		return backends.EditHeader
	}
	return 0
}

// Needs is the program.
func (b *backend) Needs() []string { return []string{"runs " + b.Command[0]} }

// Deliver runs the program when it is its turn.
func (b *backend) Deliver(ctx context.Context, tx *backends.DataContext) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case b.running <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-b.running }()

	p, err := b.start(tx)
	if err != nil {
		return err
	}
	err = p.wait(ctx)
	if p.stderr.size > 0 {
		slog.InfoContext(ctx, strings.TrimSpace(p.stderr.String()), "how", p.state.String())
	}
	switch s := p.answer(); {
	case err != nil:
		return err
	case !s.IsZero():
		tx.SetAll(s)
	case !p.state.Success():
		return fmt.Errorf("%s: %v", b.Command[0], p.state)
	case b.Final:
		tx.SetAll(backends.Delivered)
	case b.Headers && p.held:
		return errHeld
	case b.Headers:
		return addFields(tx, &p.stdout)
	}
	return nil
}

// errHeld says that header fields may be missing.
var errHeld = errors.New("a process that the program has left behind holds its output")

// addFields puts what a program printed on top of the header.
func addFields(tx *backends.DataContext, printed *output) error {
	if printed.cut() {
		return fmt.Errorf("standard output: %d octets, want header fields, at most %d", printed.size, printed.most)
	}
	for _, field := range fieldsOf(printed.String()) {
		if err := tx.AddField(0, field); err != nil {
			return fmt.Errorf("standard output: %w", err)
		}
	}
	return nil
}

// fieldsOf returns header fields as edits want them. It does not look whether
// they are any. Empty lines at the end do not count.
func fieldsOf(text string) (fields []string) {
	text = strings.TrimRight(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	if text == "" {
		return nil
	}
	for line := range strings.SplitSeq(text, "\n") {
		if fields != nil && (strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t")) {
			fields[len(fields)-1] += "\r\n" + line
		} else {
			fields = append(fields, line)
		}
	}
	return fields
}
