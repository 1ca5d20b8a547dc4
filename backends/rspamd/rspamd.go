// Package rspamd is a filter that asks rspamd what to do with a message:
//
//	[backend.rspamd.settings]
//	address = "unix:/run/rspamd/normal.sock"
//
// It speaks HTTP with a normal worker of rspamd, POST /checkv2, and tells it the
// envelope, with as many recipients as fit into 64 KiB, and what is known of the
// client, by XFORWARD in the first place. The settings say what becomes of a message
// by the action that rspamd recommends. What goes on has the edits of the answer, as
// rspamd's own milter makes them: header fields removed and added, DKIM signatures,
// another sender, recipients added and deleted. A deleted one gets 250. Bodies are
// never changed.
//
// Header fields that a sender could have made up are removed from all messages, also
// from those that are too large for a scan. If rspamd has no good answer, that is a
// failure, for which on_failure of the backend is.
//
// If the recipients of a message have several routes, rspamd is asked for each.
package rspamd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/settings"
)

// Settings say where rspamd is, and what is done with what it says.
type Settings struct {
	// Address is "tcp:HOST:PORT" or "unix:PATH" of a normal worker.
	Address string `toml:"address"`

	// PasswordFile has a password in its first line, if rspamd wants one.
	PasswordFile string `toml:"password_file"`

	// Timeout is how long an answer may take.
	Timeout time.Duration `toml:"timeout"`

	// MaxSize is the largest message that rspamd is asked about. Larger ones
	// go on. Zero is no limit.
	MaxSize settings.Size `toml:"max_size"`

	// Strip names the header fields that are removed from every message,
	// since a sender could have forged them.
	Strip []string `toml:"strip"`

	// Hostname is what rspamd calls this host in Authentication-Results. If
	// it is empty, it is the system's.
	Hostname string `toml:"hostname"`

	// SettingsID names settings of rspamd's that it is to apply.
	SettingsID string `toml:"settings_id"`

	// Actions say what is done by the action that rspamd recommends. Those
	// that are missing are done as in Defaults, "other" stands for all that
	// have no row.
	Actions map[string]string `toml:"actions"`
}

// Defaults are the Settings that hold for keys that are not given.
var Defaults = Settings{
	Address: "tcp:127.0.0.1:11333",
	Timeout: 30 * time.Second,
	MaxSize: 50 << 20, // as max_message of rspamd
	Strip:   []string{spamField, actionField},
	Actions: map[string]string{
		"no action": "pass",
		// This is about a score: the greylisting module of rspamd says "soft
		// reject" when a message is to come again.
		"greylist":        "pass",
		"add header":      "header",
		"rewrite subject": "subject",
		"soft reject":     "tempfail",
		"reject":          "reject",
		"quarantine":      "tempfail",
		"discard":         "discard",
		"other":           "tempfail",
	},
}

// New returns a backend that asks rspamd.
func New(s Settings) (backends.Backend, error) {
	b := &backend{Settings: s, effects: map[string]effect{}}
	var faults []error
	fault := func(key, format string, args ...any) {
		faults = append(faults, backends.SettingError{Key: key, Err: fmt.Errorf(format, args...)})
	}
	network, address, _ := strings.Cut(s.Address, ":")
	host := "localhost"
	switch _, _, err := net.SplitHostPort(address); {
	case network == "tcp" && err == nil:
		host = address
	case network != "unix" || address == "":
		fault("address", `%q is neither "tcp:HOST:PORT" nor "unix:PATH"`, s.Address)
	}
	b.url = "http://" + host + "/checkv2"
	b.transport = newTransport(network, address)
	var err error
	if b.password, err = readPassword(s.PasswordFile); err != nil {
		fault("password_file", "%w", err)
	}
	if s.Timeout <= 0 {
		fault("timeout", "%v is no time", s.Timeout)
	}
	for i, name := range s.Strip {
		if !isFieldName(name) {
			fault(fmt.Sprintf("strip[%d]", i), "%q is no name of a header field", name)
		}
	}
	if s.Hostname == "" {
		if b.Hostname, err = backends.Hostname(); err != nil {
			fault("hostname", "%w", err)
		}
	}
	for key, value := range map[string]string{"hostname": s.Hostname, "settings_id": s.SettingsID} {
		if oneLine(value) != value {
			fault(key, "%q has a control character", value)
		}
	}
	for action, text := range Defaults.Actions {
		b.effects[action], _ = parseEffect(text)
	}
	for _, action := range slices.Sorted(maps.Keys(s.Actions)) {
		if b.effects[action], err = parseEffect(s.Actions[action]); err != nil {
			fault(settings.Join("actions", action), "%w", err)
		}
	}
	return b, errors.Join(faults...)
}

// readPassword returns the first line of a file, or nothing if there is no
// path.
func readPassword(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	line = strings.TrimSpace(line)
	if line == "" || oneLine(line) != line {
		return "", fmt.Errorf("%s: there is no password in the first line", path)
	}
	return line, nil
}

type backend struct {
	Settings
	url       string
	transport *http.Transport
	password  string
	effects   map[string]effect // by action
}

// MayEdit has the envelope because rspamd may change it, and for quarantines.
func (b *backend) MayEdit() backends.EditKinds {
	return backends.EditHeader | backends.EditEnvelope
}

// DivertsTo has the routes of the actions.
func (b *backend) DivertsTo() (routes []string) {
	for _, e := range b.effects {
		if e.kind == divert && !slices.Contains(routes, e.route) {
			routes = append(routes, e.route)
		}
	}
	slices.Sort(routes)
	return routes
}

// Needs is rspamd.
func (b *backend) Needs() []string { return []string{"connects to " + b.Address} }

// Deliver has rspamd look at the message, and does as the settings say.
func (b *backend) Deliver(ctx context.Context, tx *backends.DataContext) error {
	body := bufio.NewReaderSize(tx.Body, 32<<10)
	fields, err := backends.ReadHeader(body)
	if err != nil {
		return err
	}
	h := newHeader(tx, fields)
	for _, name := range b.Strip {
		h.remove(name, 0)
	}
	if b.MaxSize > 0 && tx.Size > int64(b.MaxSize) {
		slog.WarnContext(ctx, "passed without a scan: the message is larger than max_size", "size", tx.Size)
		return h.err
	}
	m := newMessage(fields, body)
	a, err := b.scan(ctx, tx, m)
	switch {
	case m.err != nil:
		return m.err
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("rspamd at %s: %w", b.Address, err)
	}
	return b.follow(ctx, tx, h, a)
}
