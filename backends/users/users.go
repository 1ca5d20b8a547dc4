// Package users is a backend that knows users and their passwords from a
// file. A listener names it in ask, for AUTH and for who may send as whom:
//
//	[listener]
//	ask = ["users"]
//
//	[backend.users.settings]
//	file = "users"
//
// "mailgw passwd" puts users into the file, which has one on a line and may be
// edited by hand, too:
//
//	# A comment.
//	!secret BASE64
//	ann@example.org bcrypt=HASH scram=VERIFIER cert=SHA-256 send-as=PATTERN
//
// All fields may be left out, and those two that are lists may be repeated:
//
//   - bcrypt lets the user in by PLAIN and LOGIN. It is of the form
//     $2b$10$..., at a cost of 16 at most.
//   - scram lets the user in by SCRAM-SHA-256. It has the form that PostgreSQL
//     uses, too: SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY.
//   - cert lets in by EXTERNAL who has the certificate of that SHA-256, as
//     "openssl x509 -fingerprint -sha256" prints it. A certificate that is on no
//     line lets in the user whose name it has, if the listener's client_ca
//     issued it.
//   - send-as is an address that the user may send as, besides the name if that
//     is one: a pattern as in routes, or <>, the sender of bounces and of
//     read receipts.
//
// Names are compared in the form of SASLprep (RFC 4013), and upper and lower
// case are the same in them, as in addresses. They have no =, $ and :, so that
// lines of htpasswd and of /etc/shadow are no users. Nobody may act as another
// user: an authorization identity has to be the user's own.
//
// What a stranger hears of a name in AUTH does not tell whether there is such a
// user, but for the last case of these:
//
//   - A wrong password takes as long for all names as for the user with the
//     highest cost of bcrypt.
//   - A user without a verifier gets one that is made of the name and of the
//     !secret, and so does everybody who is no user. Its iterations and the length
//     of its salt are those that most verifiers of the file have.
//   - A verifier that has others, from another program perhaps, shows that there
//     is its user. Those that "mailgw passwd" makes are all alike.
//
// So the backend has an opinion on all names, and is to be the last of those in
// ask that know users. What it says of senders, if they are protected, tells which
// addresses are users'.
//
// Passwords are compared on half of the processors. Clients take turns there: one
// that guesses on many connections holds up others by one guess at a time, and
// itself. A client is an address, a network of IPv6 (/64), or a local user.
//
// The file is read again when it has changed. It is to be replaced by another one
// of its name (rename), as passwd and most editors do, and not to be written into,
// as cp does: who is not in the half that is there would be refused for good. So
// a file into which somebody has written less than 2 seconds ago does not count
// yet, and one that is empty, or ends within a line, has a fault. For a file
// without users put a comment into it.
//
// If the new file has a fault, or is gone, the log says so, and what was read
// before stays in force. It must not be readable by everybody. At the start a
// fault is an error.
//
// A refused sender gets 553 5.7.1, a login 535 5.7.8. It decides no recipient.
// VRFY gets no answer, since it would tell strangers who exists.
package users

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/crypto/bcrypt"

	"github.com/mailgw/mailgw/backends"
)

// Settings say where the users are, and what holds for senders.
type Settings struct {
	// File is the path of the users file.
	File string `toml:"file"`

	// Senders says who may send as whom: "any" is no opinion; "own" keeps an
	// authenticated client to the addresses of its user; with "protected",
	// besides, a client that is not authenticated may not use what belongs to
	// a user: a name that is an address, or an address or a domain of send-as.
	Senders string `toml:"senders"`
}

// Defaults are the Settings that hold for keys that are not given.
var Defaults = Settings{File: "users", Senders: "own"}

var sendersValues = []string{"any", "own", "protected"}

// New returns a backend that knows the users of a file.
func New(s Settings) (backends.Backend, error) {
	var faults []error
	fault := func(key string, err error) {
		faults = append(faults, backends.SettingError{Key: key, Err: err})
	}
	if !slices.Contains(sendersValues, s.Senders) {
		fault("senders", fmt.Errorf("%q is none of %s", s.Senders, strings.Join(sendersValues, ", ")))
	}
	f, err := open(s.File)
	inFile, ok := errors.AsType[Faults](err)
	switch {
	case ok:
		for _, err := range inFile {
			fault("file", err)
		}
	case errors.Is(err, fs.ErrNotExist):
		fault("file", fmt.Errorf("%w; \"mailgw passwd\" makes it", err))
	case err != nil:
		fault("file", err)
	}
	return &backend{
		file:    f,
		senders: s.Senders,
		compare: bcrypt.CompareHashAndPassword,
		turns:   newTurns(max(1, runtime.GOMAXPROCS(0)/2)), // half of the processors are for the mail
	}, errors.Join(faults...)
}

type backend struct {
	file    *file
	senders string
	compare func(hash, password []byte) error
	turns   *turns
}

// Needs is the file.
func (b *backend) Needs() []string { return []string{"reads " + b.file.path} }

// Deliver leaves all recipients to the next backend.
func (b *backend) Deliver(context.Context, *backends.DataContext) error { return nil }

// MayEdit returns that it edits nothing.
func (b *backend) MayEdit() backends.EditKinds { return 0 }

// Authenticate returns the name of the user as it is in the file.
func (b *backend) Authenticate(ctx context.Context, s *backends.Session, c backends.Credentials) (string, error) {
	var u *user
	switch l := b.file.current(ctx); c.Mechanism {
	case "PLAIN", "LOGIN":
		if err := b.turns.do(ctx, clientOf(s), func() { u = b.byPassword(l, c.User, c.Password) }); err != nil {
			return "", err
		}
	case "EXTERNAL":
		u = l.byCertificate(s.TLS)
	default:
		return "", nil
	}
	if u == nil {
		return "", backends.BadCredentials
	}
	if identity, err := keyOf(c.Identity); c.Identity != "" && (err != nil || identity != u.key) {
		return "", backends.BadCredentials
	}
	return u.name, nil
}

// byPassword returns the user with that password, or nil. A wrong password takes
// the same time for every name.
func (b *backend) byPassword(l *list, name, password string) *user {
	password, err := preparePassword(password)
	if err != nil {
		return nil
	}
	u := l.find(name)
	if u == nil || u.bcrypt == "" {
		b.compare(falseHash(l.cost), []byte(password))
		return nil
	}
	if b.compare([]byte(u.bcrypt), []byte(password)) == nil {
		return u
	}
	// Each cost takes twice as long as the one below, so that this is what is
	// missing of the highest: 2^5 + (2^5 + 2^6 + 2^7 + 2^8 + 2^9) = 2^10.
	for cost := u.cost; cost < l.cost; cost++ {
		b.compare(falseHash(cost), []byte(password))
	}
	return nil
}

// SCRAMVerifier returns a verifier for every name, unless the file has no
// secret to make false ones of: then it has no true ones either.
func (b *backend) SCRAMVerifier(ctx context.Context, _ *backends.Session, name string) (backends.SCRAMVerifier, error) {
	l := b.file.current(ctx)
	key, err := keyOf(name)
	switch {
	case l.secret == nil:
		return backends.SCRAMVerifier{}, nil
	case err != nil:
		return backends.SCRAMVerifier{}, backends.BadCredentials
	}
	v := l.falseVerifier(key)
	if u := l.byKey[key]; u != nil && !u.scram.IsZero() {
		v = u.scram
		v.User = u.name
	}
	return v, nil
}

// CheckSender refuses what reject_sender_login_mismatch of Postfix does, with
// the same code. A user who is not in the file, any more perhaps, owns no
// sender.
func (b *backend) CheckSender(ctx context.Context, s *backends.Session, e *backends.Envelope) (backends.Status, error) {
	if b.senders == "any" {
		return backends.Status{}, nil
	}
	why := ""
	switch l := b.file.current(ctx); {
	case s.User != "" && !l.find(s.User).owns(e.Sender):
		why = "not owned by user " + s.User
	case s.User == "" && b.senders == "protected" && l.protects(e.Sender):
		why = "not logged in"
	default:
		return backends.Status{}, nil
	}
	return backends.NewStatus(553, "5.7.1", fmt.Sprintf("<%s>: sender address rejected: %s", e.Sender, why)), nil
}
