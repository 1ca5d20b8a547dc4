// Package clamav is a filter that has clamd, the daemon of ClamAV, look for
// viruses in each message:
//
//	[backend.clamav.settings]
//	address = "unix:/run/clamav/clamd.ctl"
//
// The message goes to clamd as it is, over a connection of its own (INSTREAM,
// clamd(8)). So clamd needs no rights over our files, and may be on another
// machine. What is clean goes on to the next backend, unchanged but for the
// header field that the settings may want.
//
// A virus is refused with 550 5.7.1 and its name, or as on_virus says. A message
// counts as clean only if clamd has got all of it and then says so: everything
// else is a failure, for which on_failure of the backend is.
//
// A failure edits nothing: where on_failure lets mail pass, a field passes, too,
// that the sender has put there in the name of header. And what clamd does not
// look at, it calls clean: whatever is beyond MaxFileSize, MaxScanSize and others
// of its limits, unless AlertExceedsMax is set in clamd.conf(5).
package clamav

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/settings"
)

// Settings say where clamd is, and what becomes of the messages.
type Settings struct {
	// Address is "unix:PATH" or "tcp:HOST:PORT".
	Address string `toml:"address"`

	// MaxSize is the largest message that is sent to clamd. It should not be
	// more than its StreamMaxLength.
	MaxSize settings.Size `toml:"max_size"`

	// OnVirus is what becomes of a message with a virus: "reject", "divert"
	// it to the route DivertTo, or let it "pass".
	OnVirus  string `toml:"on_virus"`
	DivertTo string `toml:"divert_to"`

	// OnTooLarge is what becomes of one that is larger than MaxSize, or than
	// clamd takes: "pass", "tempfail" or "reject".
	OnTooLarge string `toml:"on_too_large"`

	// Header is the name of a field that tells of the scan. It takes the place
	// of all fields of that name. If it is empty, there is none.
	Header string `toml:"header"`
}

// Defaults are the Settings that hold for keys that are not given. Address is
// that of Debian's clamd, and MaxSize the StreamMaxLength of its clamd.conf.
var Defaults = Settings{
	Address:    "unix:/run/clamav/clamd.ctl",
	MaxSize:    25 << 20,
	OnVirus:    "reject",
	OnTooLarge: "pass",
}

// New returns a filter that asks clamd. Nothing is asked before the first
// message.
func New(s Settings) (backends.Backend, error) {
	b := &backend{Settings: s}
	var faults []error
	fault := func(key, format string, args ...any) {
		faults = append(faults, backends.SettingError{Key: key, Err: fmt.Errorf(format, args...)})
	}
	oneOf := func(key, value string, values ...string) {
		if !slices.Contains(values, value) {
			fault(key, "%q is none of %s", value, strings.Join(values, ", "))
		}
	}
	var err error
	if b.network, b.address, err = parseAddress(s.Address); err != nil {
		fault("address", "%q: %w", s.Address, err)
	}
	if s.MaxSize <= 0 {
		fault("max_size", "%v is not positive", s.MaxSize)
	}
	oneOf("on_virus", s.OnVirus, "reject", "divert", "pass")
	oneOf("on_too_large", s.OnTooLarge, "pass", "tempfail", "reject")
	switch {
	case s.OnVirus == "divert" && s.DivertTo == "":
		fault("divert_to", "is missing; want a route of [named_routes]")
	case s.OnVirus != "divert" && s.DivertTo != "":
		fault("divert_to", `is for on_virus = "divert" only`)
	case s.OnVirus == "pass" && s.Header == "":
		fault("header", `is missing; without it nothing would come of on_virus = "pass"`)
	}
	// What an edit takes is asked of the edits themselves.
	trial := backends.DataContext{Envelope: backends.Envelope{Recipients: make([]backends.Recipient, 1)}}
	if s.DivertTo != "" {
		if err := trial.Divert(0, s.DivertTo); err != nil {
			fault("divert_to", "%w", err)
		}
	}
	if s.Header != "" {
		if err := trial.AddField(0, s.Header+": Clean"); err != nil || strings.Contains(s.Header, ":") {
			fault("header", "%q is no name of a header field", s.Header)
		}
	}
	return b, errors.Join(faults...)
}

type backend struct {
	Settings
	network, address string
}

// MayEdit follows from the settings.
func (b *backend) MayEdit() (kinds backends.EditKinds) {
	if b.Header != "" {
		kinds |= backends.EditHeader
	}
	if b.OnVirus == "divert" {
		kinds |= backends.EditEnvelope
	}
	return kinds
}

// DivertsTo has the route of messages with a virus, if there is one.
func (b *backend) DivertsTo() []string {
	if b.DivertTo == "" {
		return nil
	}
	return []string{b.DivertTo}
}

// Needs is clamd.
func (b *backend) Needs() []string { return []string{"connects to " + b.Address} }

// Deliver decides all recipients alike.
func (b *backend) Deliver(ctx context.Context, tx *backends.DataContext) error {
	body := &body{r: tx.Body, size: tx.Size}
	message, stale, err := b.message(body)
	if err != nil {
		return err
	}
	verdict, err := b.look(ctx, message, tx.Size)
	switch {
	case body.err != nil:
		return body.err
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("clamd: %w", err)
	case verdict.tooLarge:
		slog.WarnContext(ctx, "message not scanned: too large", "size", tx.Size, "by", verdict.by)
		return b.act(tx, stale, b.OnTooLarge, tooLarge[b.OnTooLarge], "Not scanned (too large)")
	case verdict.virus != "":
		slog.InfoContext(ctx, "virus found", "virus", verdict.virus)
		refusal := backends.NewStatus(550, "5.7.1", "the message has a virus: "+verdict.virus)
		return b.act(tx, stale, b.OnVirus, refusal, "Infected ("+verdict.virus+")")
	}
	return b.act(tx, stale, "pass", backends.Status{}, "Clean")
}

var tooLarge = map[string]backends.Status{
	"tempfail": backends.NewStatus(451, "4.7.1", "the message is too large for the virus scanner, try again later"),
	"reject":   backends.NewStatus(552, "5.3.4", "the message is too large for the virus scanner"),
}

// message returns the whole of a message, and the positions of the fields that
// the header field of the settings is to replace.
func (b *backend) message(body io.Reader) (whole io.Reader, stale []int, err error) {
	if b.Header == "" {
		return body, nil, nil
	}
	r := bufio.NewReader(body)
	fields, err := backends.ReadHeader(r)
	for i, field := range fields {
		name, _, _ := bytes.Cut(field, []byte(":"))
		if strings.EqualFold(strings.TrimRight(string(name), " \t"), b.Header) {
			stale = append(stale, i)
		}
	}
	return io.MultiReader(bytes.NewReader(bytes.Join(fields, nil)), r), stale, err
}

// look has clamd look at a message, unless that is too large.
func (b *backend) look(ctx context.Context, message io.Reader, size int64) (verdict, error) {
	if size > int64(b.MaxSize) {
		return verdict{tooLarge: true, by: "max_size"}, nil
	}
	return scan(ctx, b.network, b.address, message)
}

// act does what the settings say: "tempfail" and "reject" answer with s, the
// others let the message go on, with a header field that tells of it.
func (b *backend) act(tx *backends.DataContext, stale []int, action string, s backends.Status, told string) error {
	switch action {
	case "tempfail", "reject":
		return s
	case "divert":
		for i := range tx.Envelope.Recipients {
			if err := tx.Divert(i, b.DivertTo); err != nil {
				return err
			}
		}
	}
	if b.Header == "" {
		return nil
	}
	for _, at := range stale {
		if err := tx.RemoveField(at); err != nil {
			return err
		}
	}
	return tx.AddField(0, b.Header+": "+told)
}

// A body is the message of a transaction as it is read, once and to its end.
type body struct {
	r    io.Reader
	size int64
	read int64
	err  error // the message cannot be had
}

func (b *body) Read(p []byte) (n int, err error) {
	n, err = b.r.Read(p)
	switch b.read += int64(n); {
	case err == io.EOF && b.read == b.size:
		return n, io.EOF
	case err == io.EOF || b.read > b.size:
		b.err = fmt.Errorf("read message: got %d octets of %d", b.read, b.size)
	case err != nil:
		b.err = fmt.Errorf("read message: %w", err)
	}
	return n, b.err
}
