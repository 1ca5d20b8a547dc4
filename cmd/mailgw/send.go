package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/mailgw/mailgw/internal/smtp"
	"github.com/mailgw/mailgw/internal/smtpclient"
	"github.com/mailgw/mailgw/xforward"
)

// sendFlags are the flags of send.
type sendFlags struct {
	to         []string
	from       string
	helo       string
	file       string
	xforward   []string
	mailParams []string
	rcptParams []string
	count      int
	timeout    time.Duration
	lmtp, smtp bool
	verbose    bool
}

func sendCommand() *cobra.Command {
	var f sendFlags
	cmd := &cobra.Command{
		Use:   "send --to ADDRESS... SERVER",
		Short: "Send a test message and print each recipient's answer",
		Long: `Send sends a message to a server and prints the answer that each recipient got,
one a line, in the order of --to. SMTP has one answer for all recipients of a
message, LMTP one for each.

SERVER is tcp:HOST:PORT, unix:PATH, or unix:@NAME for an abstract socket. Over
tcp it is spoken to in SMTP, over unix in LMTP, unless --smtp or --lmtp is given.

The message is a small one made for the test, or the content of --file ("-" for
standard input), with CRLF in place of each LF that has no CR before it, and at
the end if there is none. A CR without LF is refused: the connection ends before
the message does, so that the server delivers nothing. Nothing else is changed,
no header field is added, and no parameter is sent that was not asked for.

A recipient that gets no answer because the server hangs up, or says nothing for
--timeout, is to be tried again later.

Exit codes:
  0   every recipient was accepted
  64  wrong usage
  65  the message cannot be read, or has a CR without LF
  69  a recipient was refused for good, and none is to be tried again, or the
      server does not announce an attribute of --xforward
  75  a recipient is to be tried again later`,
		Example: `  mailgw send --to you@example.org tcp:127.0.0.1:2525
  mailgw send --to a@example.org --to b@example.org --file mail.eml unix:/run/mailgw/lmtp.sock
  mailgw send --to you@example.org --xforward NAME=client.example,ADDR=192.0.2.7 --verbose unix:var/lmtp.sock
  mailgw send --from "" --to you@example.org --rcpt-param NOTIFY=NEVER --smtp unix:@mailgw`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("want one SERVER, %s; found %d", serverWanted, len(args))
			}
			return nil
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return []cobra.Completion{"tcp:", "unix:", "unix:@"}, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), args[0], cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.to, "to", nil, "recipient; to be repeated for each")
	flags.StringVar(&f.from, "from", "sender@example.org", `sender; "" is the null sender`)
	flags.StringVar(&f.helo, "helo", hostname(), "name in HELO, EHLO or LHLO")
	flags.StringVarP(&f.file, "file", "f", "", `file with the message, "-" for standard input`)
	flags.StringArrayVar(&f.xforward, "xforward", nil, "attributes as on the wire, parted by commas:\nNAME=..,ADDR=IPV6:..; each flag makes one command")
	flags.StringArrayVar(&f.mailParams, "mail-param", nil, "parameter of MAIL, as on the wire: SIZE=1000; may be repeated")
	flags.StringArrayVar(&f.rcptParams, "rcpt-param", nil, "parameter of each RCPT, as on the wire: NOTIFY=NEVER; may be repeated")
	flags.IntVarP(&f.count, "count", "n", 1, "send that many messages over the connection, one after another")
	flags.DurationVar(&f.timeout, "timeout", 10*time.Minute, "wait that long for the connection and for each answer")
	flags.BoolVar(&f.lmtp, "lmtp", false, "speak LMTP")
	flags.BoolVar(&f.smtp, "smtp", false, "speak SMTP")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "print the dialogue, without messages, on standard error")
	cmd.RegisterFlagCompletionFunc("file", cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault))
	return cmd
}

func hostname() string {
	if name, err := os.Hostname(); err == nil {
		return name
	}
	return "localhost"
}

// run sends what the flags say. An error that is no exitError is one of
// usage.
func (f *sendFlags) run(ctx context.Context, server string, stdin io.Reader, stdout, stderr io.Writer) error {
	network, address, err := parseServer(server)
	if err != nil {
		return err
	}
	if err := f.check(); err != nil {
		return err
	}
	tx, err := f.transaction()
	if err != nil {
		return err
	}
	source, err := f.source(stdin)
	if err != nil {
		return exitError{exitData, err}
	}

	conn, err := net.DialTimeout(network, address, f.timeout)
	if err != nil {
		return exitError{exitTemporary, err}
	}
	settings := smtpclient.Settings{
		LMTP:     f.lmtp || network == "unix" && !f.smtp,
		Name:     f.helo,
		Timeouts: smtpclient.Each(f.timeout),
	}
	if f.verbose {
		settings.Trace = func(line string) { fmt.Fprintln(stderr, line) }
	}
	c := smtpclient.New(conn, settings)
	defer c.Close()
	code, err := f.sendAll(ctx, c, tx, source, stdout)
	if code != 0 {
		return exitError{code, err}
	}
	return nil
}

// sendAll sends all messages over one connection, prints the answers, and
// returns the exit code that they mean. An error is what they do not tell.
func (f *sendFlags) sendAll(ctx context.Context, c *smtpclient.Conn, tx smtpclient.Transaction, source messageSource, stdout io.Writer) (code int, err error) {
	if err := c.Hello(ctx); err != nil {
		return f.report(stdout, f.all(err)), nil
	}
	for n := range f.count {
		if n > 0 {
			c.Reset(ctx) // as Postfix does before it uses a connection again
		}
		if err := c.Err(); err != nil {
			return worse(code, exitTemporary), fmt.Errorf("%d of %d messages not sent: %w", f.count-n, f.count, err)
		}
		if tx.Message, err = source(n); err != nil {
			return exitData, err
		}
		code = worse(code, f.report(stdout, f.send(ctx, c, &tx)))
	}
	c.Quit(ctx)
	return code, nil
}

// send sends one message and returns an answer for each recipient.
func (f *sendFlags) send(ctx context.Context, c *smtpclient.Conn, tx *smtpclient.Transaction) []answer {
	if err := f.tellXForward(ctx, c); err != nil {
		return f.all(err)
	}
	answers := make([]answer, len(f.to))
	shared := 0 // recipients that one reply to the end of the message is for
	c.Send(ctx, tx, func(i int, reply smtp.Reply, err error) {
		answers[i] = answer{reply: reply, err: err}
		if !c.LMTP && answers[i].toMessage() {
			shared++
		}
	})
	for i := range answers {
		if answers[i].toMessage() {
			answers[i].shared = shared
		}
	}
	return answers
}

// tellXForward sends the attributes of --xforward. A message that says less
// than it was asked to would prove nothing.
func (f *sendFlags) tellXForward(ctx context.Context, c *smtpclient.Conn) error {
	announced := c.Words("XFORWARD")
	var commands []string
	for _, attrs := range f.xforward {
		for pair := range strings.SplitSeq(attrs, ",") {
			name, _, _ := strings.Cut(strings.ToUpper(pair), "=")
			if !slices.Contains(announced, name) {
				return exitError{exitRefused, fmt.Errorf("the server does not announce XFORWARD %s (mailgw does so to those in the xforward of its listener)", name)}
			}
		}
		commands = append(commands, "XFORWARD "+strings.ReplaceAll(attrs, ",", " "))
	}
	return c.XForward(ctx, commands)
}

// An answer is what the server said of a recipient, or why it said nothing.
type answer struct {
	reply  smtp.Reply
	err    error
	shared int // recipients that the reply is for, if it is one for all
}

// all returns the same error for all recipients.
func (f *sendFlags) all(err error) []answer {
	return slices.Repeat([]answer{{err: err}}, len(f.to))
}

// toMessage reports whether a is the server's answer to the end of the
// message.
func (a answer) toMessage() bool {
	e, refused := errors.AsType[*smtpclient.Error](a.err)
	return a.err == nil || refused && e.Stage == smtpclient.EndOfMessage
}

// String returns a as one line.
func (a answer) String() string {
	text, err := smtpclient.Line(a.reply), a.err
	if e, ok := errors.AsType[*smtpclient.Error](err); ok {
		text, err = smtpclient.Line(e.Reply), e.Err
	}
	if err != nil {
		return smtpclient.Printable("no answer: " + err.Error())
	}
	if a.shared > 1 {
		text += fmt.Sprintf(" (one reply for %d recipients)", a.shared)
	}
	return text
}

// exitCode returns what a means for a recipient. Unknown means temporary.
func (a answer) exitCode() int {
	if a.err == nil {
		return 0
	}
	if exit, ok := errors.AsType[exitError](a.err); ok {
		return exit.code
	}
	if _, ok := errors.AsType[smtpclient.MessageError](a.err); ok {
		return exitData
	}
	if e, ok := errors.AsType[*smtpclient.Error](a.err); ok && e.Permanent() {
		return exitRefused
	}
	return exitTemporary
}

// report prints one answer for each recipient and returns the exit code that
// they mean together.
func (f *sendFlags) report(stdout io.Writer, answers []answer) (code int) {
	width := 0
	for _, to := range f.to {
		width = max(width, len(to))
	}
	for i, a := range answers {
		fmt.Fprintf(stdout, "%-*s  %s\n", width, f.to[i], a)
		code = worse(code, a.exitCode())
	}
	return code
}

// worse returns the one of two exit codes that tells more about what is left
// to do.
func worse(a, b int) int {
	order := []int{0, exitRefused, exitTemporary, exitData}
	return order[max(slices.Index(order, a), slices.Index(order, b))]
}

const serverWanted = "tcp:HOST:PORT, unix:PATH or unix:@NAME"

// parseServer reads an address in the form that gateway.toml has too.
func parseServer(s string) (network, address string, err error) {
	network, address, _ = strings.Cut(s, ":")
	switch network {
	case "tcp":
		_, _, err = net.SplitHostPort(address)
	case "unix":
		if address == "" || address == "@" {
			err = errors.New("no path")
		}
	default:
		err = errors.New("want " + serverWanted)
		if _, _, notTCP := net.SplitHostPort(s); notTCP == nil {
			err = fmt.Errorf("%w; did you mean tcp:%s?", err, s)
		} else if strings.ContainsAny(s, "/@") {
			err = fmt.Errorf("%w; did you mean unix:%s?", err, s)
		}
	}
	if err != nil {
		return "", "", fmt.Errorf("server %q: %w", s, err)
	}
	return network, address, nil
}

// check finds flags that make no sense.
func (f *sendFlags) check() error {
	switch {
	case len(f.to) == 0:
		return errors.New("want a recipient, --to ADDRESS")
	case f.lmtp && f.smtp:
		return errors.New("want --lmtp or --smtp, not both")
	case f.count < 1:
		return errors.New("--count is less than 1")
	case f.count > 1 && f.file == "-":
		return errors.New("standard input can be read once only; give --count a --file with a name")
	case f.timeout <= 0:
		return fmt.Errorf("--timeout %v is not above zero", f.timeout)
	}
	for _, attrs := range f.xforward {
		if err := new(xforward.Attrs).Parse(strings.ReplaceAll(attrs, ",", " ")); err != nil {
			return fmt.Errorf("--xforward %q: %w", attrs, err)
		}
	}
	for _, to := range f.to {
		// A comma may stand in a local part that is quoted, and in a route.
		if strings.ContainsAny(to, ",; ") && strings.Count(to, "@") > 1 && !strings.ContainsAny(to, `":`) {
			return fmt.Errorf("--to %q has several addresses; give each a --to of its own", to)
		}
	}
	return nil
}

// transaction returns what each message has in common.
func (f *sendFlags) transaction() (smtpclient.Transaction, error) {
	tx := smtpclient.Transaction{Sender: f.from, Params: f.mailParams}
	for _, to := range f.to {
		tx.Recipients = append(tx.Recipients, smtpclient.Recipient{Address: to, Params: f.rcptParams})
	}
	if strings.ContainsFunc(f.helo, unicode.IsControl) {
		return tx, fmt.Errorf("control character in --helo %q", f.helo)
	}
	return tx, tx.Check()
}

func (f *sendFlags) source(stdin io.Reader) (messageSource, error) {
	switch f.file {
	case "":
		return testMessage(f.from, f.helo, f.to), nil
	case "-":
		return givenMessage(stdin), nil
	}
	file, err := os.Open(f.file)
	if err != nil {
		return nil, err
	}
	return givenMessage(file), nil
}
