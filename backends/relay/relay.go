// Package relay is a backend that passes mail on to other servers, over SMTP or
// LMTP: back into Postfix behind a content filter, say.
//
//	[backend.relay.settings]
//	targets = ["smtp://127.0.0.1:10026"]
//
// A target is one of
//
//	smtp://HOST:PORT           in the clear; port 25 by default
//	smtp+starttls://HOST:PORT  with STARTTLS, or not at all; 587
//	smtps://HOST:PORT          with TLS from the first octet; 465
//	lmtp://HOST:PORT           in the clear; 24
//	smtp+unix:///PATH, lmtp+unix:///PATH, or :@NAME in place of :///PATH
//
// Each of several targets must be as good as the others. The first that works is
// taken, or in balanced order the one with the least to do. One that does not
// answer, does not let us in or says 421 is rested, for a second first and for a
// minute at most. Another one is tried as long as none has answered for a
// recipient. After the end of a message none is ever tried: if the target then does
// not answer, recipients get 451 4.4.2, and the log says that the message may have
// been delivered.
//
// A recipient's status is what the target says of it, in its own words: in LMTP
// each has one of its own, in SMTP those that are refused at RCPT. What comes of
// trouble between us and the target is 4yz, with a text that does not name it. The
// log does, and the stage of the session.
//
// A target that does not take all recipients at once, by RCPTMAX (RFC 9422) or 452,
// gets the message for the others in further transactions. Meanwhile it is in a file
// without a name, in the directory for temporary files; without that, they get 452.
//
// The message leaves octet by octet as it came. With CHUNKING it goes by BDAT;
// by DATA it gets a CRLF at its end if there is none, and one with a CR or LF that
// stands alone is refused.
//
// Parameters of MAIL and RCPT go on if the target announces their extension; SIZE
// is that of the message at hand. Nothing is converted. What the target cannot
// take is refused, as the RFCs demand:
//
//   - a message larger than SIZE says: 552 5.3.4
//   - an octet beyond US-ASCII without 8BITMIME, as a target without EHLO is: 554
//     5.6.3, though many others would just send it. SMTPUTF8 without need is no reason; an address beyond US-ASCII gets 553 5.6.7, a header 554 5.6.9
//   - BODY=BINARYMIME without BINARYMIME and CHUNKING: 554 5.6.3
//   - REQUIRETLS without it, or without a verified certificate: 550 5.7.30
//   - NOTIFY=SUCCESS without DSN: 451 4.3.3. RFC 3461, section 5.2.2, has a relay
//     notify the sender itself, which this one cannot. The other parameters of DSN are
//     left out, as that section says; NEVER is, too, for which it recommends a null
//     sender, since that would be an edit
//
// An octet that cannot pass shows up in mid-message. The connection is then given
// up before the end of the message, so that the target delivers nothing.
//
// A target that announces XFORWARD hears who the client is: all of it from the
// proxy that has told us, or all from our connection with the client, never both.
// With XCLIENT, if that is wanted, the client is put in our place, and the
// connection is not used for another one.
//
// The relay can do what all its targets can, but those that were never reached: a
// message that one of these cannot take when it comes is refused. They are asked when
// the relay starts, and again when none of their sessions has told for five minutes.
package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// Settings say where mail goes to, and how.
type Settings struct {
	// Targets are the URLs of servers that are each as good as another.
	Targets []string `toml:"targets"`

	// Order is "ordered", the first target that works, or "balanced", the one
	// that has least to do.
	Order string `toml:"order"`

	// Hello is the name that EHLO and LHLO say; by default that of the machine.
	Hello string `toml:"hello"`

	// CredentialsFile is a file with user and password, one on a line.
	CredentialsFile string `toml:"credentials_file"`

	TLSVerify     bool   `toml:"tls_verify"`
	TLSCA         string `toml:"tls_ca"`          // instead of those of the system
	TLSServerName string `toml:"tls_server_name"` // instead of the host in the URL

	// Connections is how many a target has at once. One that is idle is kept
	// for Idle, and none is used for longer than MaxAge.
	Connections int           `toml:"connections"`
	Idle        time.Duration `toml:"idle"`
	MaxAge      time.Duration `toml:"max_age"`

	// XForward and XClient tell a target that announces it who the client is.
	XForward       bool   `toml:"xforward"`
	XForwardErrors string `toml:"xforward_errors"` // "continue" or "fail"
	XClient        bool   `toml:"xclient"`
}

// Defaults are the Settings that hold for keys that are not given.
var Defaults = Settings{
	Order:          "ordered",
	TLSVerify:      true,
	Connections:    20,
	Idle:           30 * time.Second,
	MaxAge:         5 * time.Minute,
	XForward:       true,
	XForwardErrors: "continue",
}

// New returns a backend that passes mail on to the targets. It begins to ask them
// what they can do, until it is closed.
func New(s Settings) (backends.Backend, error) {
	b, err := open(s)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	b.stop = stop
	for _, t := range b.targets {
		b.asking.Go(func() { t.keepAsking(ctx) })
	}
	return b, nil
}

// open returns a backend that does not ask.
func open(s Settings) (*backend, error) {
	o, err := s.options()
	servers, serversErr := s.servers()
	if err := errors.Join(serversErr, err); err != nil {
		return nil, err
	}
	b := &backend{
		balanced:       s.Order == "balanced",
		xforward:       s.XForward,
		xforwardErrors: s.XForwardErrors,
		xclient:        s.XClient,
		known:          knowledge{changed: make(chan struct{})},
		stop:           func() {},
	}
	o.learned = b.learned
	for _, server := range servers {
		b.targets = append(b.targets, &target{server: server, options: o, slots: make(chan struct{}, s.Connections)})
	}
	b.learned()
	return b, nil
}

type backend struct {
	targets        []*target
	balanced       bool
	xforward       bool
	xforwardErrors string
	xclient        bool

	turn   atomic.Uint32 // of the targets in balanced order
	known  knowledge
	stop   context.CancelFunc
	asking sync.WaitGroup
}

// MayEdit returns that it edits nothing.
func (b *backend) MayEdit() backends.EditKinds { return 0 }

// Needs has the targets.
func (b *backend) Needs() (needs []string) {
	for _, t := range b.targets {
		needs = append(needs, "connects to "+t.url)
	}
	return needs
}

// Close ends all connections.
func (b *backend) Close() error {
	b.stop()
	b.asking.Wait()
	for _, t := range b.targets {
		t.close()
	}
	return nil
}

// servers reads the targets.
func (s Settings) servers() (servers []server, err error) {
	var faults []error
	if len(s.Targets) == 0 {
		faults = append(faults, fault("targets", "want at least one, such as smtp://127.0.0.1:10026"))
	}
	for i, text := range s.Targets {
		server, err := parseURL(text)
		if err == nil && s.CredentialsFile != "" && !server.private() {
			err = errors.New("everybody on the way could read the credentials; want smtps or smtp+starttls")
		}
		if err != nil {
			faults = append(faults, fault(fmt.Sprintf("targets[%d]", i), "%q: %w", redacted(text), err))
		}
		servers = append(servers, server)
	}
	return servers, errors.Join(faults...)
}

// options checks what is the same for all targets.
func (s Settings) options() (options, error) {
	var faults []error
	check := func(key string, err error) {
		if err != nil {
			faults = append(faults, backends.SettingError{Key: key, Err: err})
		}
	}
	check("order", oneOf(s.Order, "ordered", "balanced"))
	check("xforward_errors", oneOf(s.XForwardErrors, "continue", "fail"))
	if s.Connections < 1 {
		check("connections", fmt.Errorf("%d is less than 1", s.Connections))
	}
	if s.Idle <= 0 {
		check("idle", fmt.Errorf("%v is not above zero", s.Idle))
	}
	if s.MaxAge <= 0 {
		check("max_age", fmt.Errorf("%v is not above zero", s.MaxAge))
	}
	o := options{hello: s.Hello, credentials: s.CredentialsFile, idleTime: s.Idle, maxAge: s.MaxAge}
	if o.hello == "" {
		name, err := backends.Hostname()
		check("hello", err)
		o.hello = name
	}
	if !isWord(o.hello) {
		check("hello", fmt.Errorf("%q is no name", o.hello))
	}
	if s.CredentialsFile != "" {
		_, _, err := readCredentials(s.CredentialsFile)
		check("credentials_file", err)
	}
	o.tls = &tls.Config{ServerName: s.TLSServerName, InsecureSkipVerify: !s.TLSVerify}
	if s.TLSCA != "" {
		pool, err := readCA(s.TLSCA)
		check("tls_ca", err)
		o.tls.RootCAs = pool
	}
	return o, errors.Join(faults...)
}

func readCA(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: no certificate in PEM form", path)
	}
	return pool, nil
}

func oneOf(value string, values ...string) error {
	if slices.Contains(values, value) {
		return nil
	}
	return fmt.Errorf("%q is none of %s", value, strings.Join(values, ", "))
}

func fault(key, format string, args ...any) error {
	return backends.SettingError{Key: key, Err: fmt.Errorf(format, args...)}
}
