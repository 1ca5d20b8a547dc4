// Package milter is a filter that asks a milter, a mail filter of Sendmail and
// Postfix such as opendkim:
//
//	[backend.opendkim.settings]
//	address = "unix:/run/opendkim/opendkim.sock"
//
// It speaks the milter protocol as the MTA does, versions 2 to 6. Each
// transaction is replayed on a connection of its own, from the client's connection
// to the end of the message, with macros. What the milter answers counts:
//
//   - accept, continue: the recipients go on to the next backend, with what the
//     milter changed: header fields, body, sender and recipients.
//   - reject is 550 5.7.1, tempfail 451 4.7.1, and a reply of the milter's own is
//     that, for one recipient after RCPT, for all of them else. Shutdown and the
//     failure of the connection are 451 4.7.1.
//   - discard is 250, and the message goes nowhere. A recipient that the milter
//     deletes has 250, too, but if it adds others, one of those who are deleted
//     has their answer.
//   - quarantine diverts to the route that the settings name. Without one it is
//     not offered to the milter.
//
// Fields are changed as they are in Sendmail: the nth of a name, where those that
// are deleted still count. In insertions field 0 is the Received that an MTA adds
// and milters never see, as they are in Postfix: 0 and 1 are the top of the
// message as it came. A field that is not there to be changed is added.
//
// ESMTP parameters that come with a new sender take the place of all those of the
// old one, as they do in Sendmail; without any these stay. SIZE, BODY, SMTPUTF8 and
// REQUIRETLS tell of the message, and are ignored.
//
// Everything else is a failure, for which on_failure of the backend is: a milter
// that cannot be asked, answers nonsense or takes longer than the timeout of the
// backend, whatever progress it reports, and a change that the gateway refuses,
// such as a recipient that is no address.
//
// It begins when the whole message is here, so that it does not tell milters of
// unknown commands or of recipients that were refused before. Nor does it tell of
// white space before the colon of a field: a milter would not know "Subject " for
// what it is. Postfix and Sendmail do the same, but take it out of the message,
// too, which stays here as it came. So signatures over such a field are good if
// their canonicalization of the header is relaxed, and not if it is simple.
//
// The client side of github.com/emersion/go-milter v0.5.0 is not used. It has no
// DATA, drops the macros that a milter asks for, fails on answers that it does not
// know (skip, a recipient with parameters, shutdown) and on milters of version 2
// to 5 that are offered what is new in 6, and keeps a new body of any size in
// memory. What would be left of it is the framing, which it does not export.
package milter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/backends"
)

// Settings say where the milter is, and what it is told.
type Settings struct {
	// Address is "unix:PATH" or "tcp:HOST:PORT".
	Address string `toml:"address"`

	// Quarantine is the named route that messages are diverted to which the
	// milter quarantines.
	Quarantine string `toml:"quarantine"`

	// Macros are values of macros, instead of or besides those that are known:
	// "j", "daemon_name". Names of several letters need no braces.
	Macros map[string]string `toml:"macros"`

	// Directory is for temporary files. If it is empty, it is the system's.
	Directory string `toml:"directory"`
}

// Defaults are the Settings that hold for keys that are not given. Address has
// none.
var Defaults Settings

// New returns a backend that asks the milter of s. It does not connect to it yet.
func New(s Settings) (backends.Backend, error) {
	b := &backend{Settings: s, macros: map[string]string{}}
	var faults []error
	fault := func(key string, err error) {
		if err != nil {
			faults = append(faults, backends.SettingError{Key: key, Err: err})
		}
	}
	var err error
	b.network, b.path, err = parseAddress(s.Address)
	fault("address", err)
	fault("directory", probe(s.Directory))
	for name, value := range s.Macros {
		if strings.Trim(name, "{}") == "" {
			fault("macros", fmt.Errorf("%q is no name of a macro", name))
		}
		b.macros[bracedMacro(name)] = value
	}
	b.extra = slices.DeleteFunc(slices.Sorted(maps.Keys(b.macros)), func(name string) bool {
		return slices.Contains(stepConnect.macros, name)
	})
	if b.macros["j"] == "" {
		b.macros["j"], err = backends.Hostname()
		fault("macros", err)
	}
	return b, errors.Join(faults...)
}

func parseAddress(address string) (network, path string, err error) {
	network, path, _ = strings.Cut(address, ":")
	if address == "" {
		return "", "", errors.New(`is missing; want "unix:PATH" or "tcp:HOST:PORT"`)
	}
	if network == "tcp" {
		_, _, err = net.SplitHostPort(path)
	}
	if network != "unix" && network != "tcp" || path == "" || err != nil {
		return "", "", fmt.Errorf(`%q: want "unix:PATH" or "tcp:HOST:PORT"`, address)
	}
	return network, path, nil
}

type backend struct {
	Settings
	network, path string
	macros        map[string]string // of the settings, and j
	extra         []string          // those of them that are not usual
}

// MayEdit tells that a milter may change everything.
func (b *backend) MayEdit() backends.EditKinds { return backends.EditAll }

// DivertsTo has the quarantine, if there is one.
func (b *backend) DivertsTo() []string {
	if b.Quarantine == "" {
		return nil
	}
	return []string{b.Quarantine}
}

// Needs is the milter.
func (b *backend) Needs() []string { return []string{"connects to " + b.Address} }

func (b *backend) Deliver(ctx context.Context, tx *backends.DataContext) error {
	c := newConversation(b, tx)
	defer c.changes.close()
	verdict, err := b.ask(ctx, c)
	switch {
	case ctx.Err() != nil:
		return errors.Join(ctx.Err(), err)
	case err != nil:
		return fmt.Errorf("milter %s: %w", b.Address, err)
	case !verdict.status.IsZero():
		tx.SetAll(verdict.status)
		return nil
	}
	discards := verdict.code == answerDiscard
	if discards || len(c.changes.deleted) > 0 {
		if err := c.readRest(ctx); err != nil {
			return err
		}
	}
	if discards {
		tx.SetAll(discarded)
		return nil
	}
	return c.changes.carryOut(ctx)
}

// ask has the conversation with the milter.
func (b *backend) ask(ctx context.Context, c *conversation) (verdict answer, err error) {
	if c.session, err = open(ctx, b.network, b.path, b.actions()); err != nil {
		return answer{}, err
	}
	defer c.close()
	c.macros, c.extra = b.knownMacros(c.tx, &c.client), b.extra
	return c.run()
}

// actions returns the changes that the milter is offered.
func (b *backend) actions() uint32 {
	if b.Quarantine == "" {
		return offeredActions &^ actionQuarantine
	}
	return offeredActions
}

// discarded is the answer for those whom a milter takes the message away from.
var discarded = backends.NewStatus(250, "2.0.0", "discarded")
