package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mailgw/mailgw/gateway"
	"github.com/mailgw/mailgw/internal/record"
)

// recordFlags are the flags of record.
type recordFlags struct {
	config  string
	backend string
	count   int
	to      string
	redact  bool
}

func recordCommand() *cobra.Command {
	var f recordFlags
	cmd := &cobra.Command{
		Use:   "record --backend NAME",
		Short: "Keep what a backend of the running gateway gets and answers, in files",
		Long: `Record keeps the next transactions of a backend as text files, each named by the
transaction's ID: the session, the envelope and the message as the backend got
them, and what it answered for each recipient, with its edits. Replay gives them
to a plugin again. What a backend was asked before there was a message, at RCPT for
instance, is not in them: whom it refused then is in no transaction.

It asks the gateway that was started with this configuration file, and has to run
as the user of the gateway or as root. The gateway does not write the files: they
belong to the user who runs the command, and nobody else can read them. Mail does
not wait for it. Messages of more than 4 MiB are left out, and so is what the
command does not take in time; it tells how many. It ends after --count
transactions, or by Ctrl-C.

The files have the mail of people. With --redact this is left of it:

  names       ID and time of the transaction, backend, named routes
  addresses   user1@domain1.example, the same everywhere in a file
  hosts       host1.example; IP addresses of those for documentation
  session     listener, protocol, mechanism of AUTH, version and cipher of TLS
  parameters  SIZE, BODY, SMTPUTF8, RET, NOTIFY, REQUIRETLS, PRDR; of others the name
  header      the names of common fields, in their order; dates, addresses, types
              of content with charset; the rest is x's, of the same length
  body        x's, in lines of the same length; parts stay parts
  answers     codes and kinds of edits, without texts

Everything else is gone, so that a backend may say something else of the file than
it did of the message.

Exit codes:
  0   all were recorded
  64  wrong usage
  71  no gateway was found that runs with this file, or a file cannot be written
  75  the gateway has ended before there were enough
  78  the backend stands in no route`,
		Example: `  mailgw record --backend roster
  mailgw record --backend rspamd --count 20 --to testdata --redact`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.count < 1 {
				return fmt.Errorf("--count: want 1 or more, found %d", f.count)
			}
			return f.run(cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	configFlag(cmd, &f.config)
	flags := cmd.Flags()
	flags.StringVar(&f.backend, "backend", "", "the backend, as [backend.NAME] names it")
	flags.IntVarP(&f.count, "count", "n", 1, "record that many transactions")
	flags.StringVar(&f.to, "to", ".", "directory for the files; it is made if it is missing")
	flags.BoolVar(&f.redact, "redact", false, "leave nothing of people and of what they write")
	cmd.MarkFlagRequired("backend")
	cmd.MarkFlagDirname("to")
	return cmd
}

// run asks the gateway for records and writes them. It prints the path of each
// file.
func (f *recordFlags) run(stdout, stderr io.Writer) error {
	if err := os.MkdirAll(f.to, 0o700); err != nil {
		return exitError{exitSystem, err}
	}
	c, err := ask(f.config, "record", f.backend, strconv.Itoa(f.count))
	if err != nil {
		return exitError{exitSystem, err}
	}
	defer c.Close()
	in := bufio.NewReader(c)
	if err := granted(c, in); err != nil {
		return err
	}
	for n := range f.count {
		if next, err := in.Peek(len(leftOutWords)); err != nil || string(next) == leftOutWords {
			return exitError{exitTemporary, fmt.Errorf("the gateway has ended; %d of %d recorded", n, f.count)}
		}
		r, err := record.Read(in, "from the gateway")
		if err != nil {
			return exitError{exitTemporary, err}
		}
		if f.redact {
			r.Redact()
		}
		path, err := keepRecord(f.to, r)
		if err != nil {
			return exitError{exitSystem, err}
		}
		fmt.Fprintln(stdout, path)
	}
	var left gateway.LeftOut
	if _, err := fmt.Fscanf(in, leftOutLine, &left.TooLarge, &left.Dropped); err == nil && left != (gateway.LeftOut{}) {
		fmt.Fprintf(stderr, "left out: %d too large, %d not taken in time\n", left.TooLarge, left.Dropped)
	}
	return nil
}

// leftOutLine follows the records, as many as there were.
const (
	leftOutWords = "left out "
	leftOutLine  = leftOutWords + "%d %d\n"
)

// granted reads whether a request is granted.
func granted(c net.Conn, in *bufio.Reader) error {
	c.SetReadDeadline(time.Now().Add(controlTimeout))
	answer, err := in.ReadString('\n')
	c.SetReadDeadline(time.Time{})
	switch {
	case err != nil:
		return exitError{exitSystem, errNoAnswer}
	case answer != okLine:
		return exitError{exitConfig, errors.New(strings.TrimSpace(answer))}
	}
	return nil
}

// ids are those that the gateway gives. They become names of files, and the
// gateway may be another user's.
var ids = regexp.MustCompile(`^[0-9a-z]{1,40}$`)

// keepRecord writes a record to a new file in a directory.
func keepRecord(dir string, r *record.Record) (path string, err error) {
	if !ids.MatchString(r.ID) {
		return "", fmt.Errorf("%.40q is no ID of a transaction", r.ID)
	}
	var file *os.File
	for n := 1; ; n++ {
		path = filepath.Join(dir, r.ID+".record")
		if n > 1 { // a backend may get a transaction in parts
			path = filepath.Join(dir, fmt.Sprintf("%s-%d.record", r.ID, n))
		}
		if file, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	if err != nil {
		return "", err
	}
	return path, errors.Join(record.Write(file, r), file.Close())
}

// record answers "record NAME COUNT": by so many records, as they come, and a
// line that tells what was left out. It ends when the other side does.
func (c control) record(ctx context.Context, r request) {
	recording, count, err := c.startRecording(r.words)
	if err != nil {
		r.tell(err)
		return
	}
	defer recording.Close()
	if r.tell(nil) != nil {
		return
	}
	r.SetWriteDeadline(time.Time{})
	c.server.Log().Info("recording", "backend", r.words[1], "count", count)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		io.Copy(io.Discard, r) // until the command ends, or this does
		cancel()
	}()
	done := 0
	for {
		next, err := recording.Next(ctx)
		if err == nil {
			err = record.Write(r, next)
		}
		if err != nil {
			break
		}
		done++
	}
	left := recording.Close()
	fmt.Fprintf(r, leftOutLine, left.TooLarge, left.Dropped)
	c.server.Log().Info("recorded", "backend", r.words[1], "count", done, "too_large", left.TooLarge, "dropped", left.Dropped)
}

func (c control) startRecording(words []string) (*gateway.Recording, int, error) {
	if len(words) != 3 {
		return nil, 0, errors.New("want record NAME COUNT")
	}
	count, err := strconv.Atoi(words[2])
	if err != nil || count < 1 {
		return nil, 0, errors.New("want record NAME COUNT")
	}
	recording, err := c.server.Record(words[1], count)
	return recording, count, err
}
