package backends

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// A backend that implements one of the interfaces below is asked before there
// is a message, while the client waits for the reply to a command. Questions
// go to the backends that a listener names in ask, in order; those about a
// recipient to these and then to the backends of its route. They come from
// several goroutines at once.
//
// The first opinion decides. A zero Status is no opinion; a 2yz accepts, and
// nobody else is asked; a 4yz or 5yz refuses. An error that is a Status is an
// opinion, too; any other error is a failure to answer, and gives TryLater.
// So does a ctx that ends. If nobody has an opinion, the gateway goes on by
// its own rules.

// A ConnectionChecker is asked before the greeting.
type ConnectionChecker interface {
	CheckConnection(ctx context.Context, s *Session) (Status, error)
}

// A HELOChecker is asked after HELO, EHLO and LHLO. s has the argument.
type HELOChecker interface {
	CheckHELO(ctx context.Context, s *Session) (Status, error)
}

// A SenderChecker is asked after MAIL. e has no recipients yet.
type SenderChecker interface {
	CheckSender(ctx context.Context, s *Session, e *Envelope) (Status, error)
}

// A RecipientChecker is asked after RCPT, once for each. e has the sender and
// its parameters; the recipients that were accepted before are not in it.
type RecipientChecker interface {
	CheckRecipient(ctx context.Context, s *Session, e *Envelope, to Recipient) (Opinion, error)
}

// An Authenticator is asked after AUTH (RFC 4954).
type Authenticator interface {
	// Authenticate returns the user whose credentials c are, "" if it has no
	// opinion, or an error: a Status such as BadCredentials refuses them.
	Authenticate(ctx context.Context, s *Session, c Credentials) (user string, err error)
}

// A SCRAMAuthenticator can do without the password: it gives what verifies
// that the client knows it (RFC 5802, RFC 7677).
type SCRAMAuthenticator interface {
	Authenticator

	// SCRAMVerifier returns the verifier of a user for SCRAM-SHA-256. For an
	// unknown user it should return one that fits no password, and the same
	// one each time, so that nobody learns who exists. The zero
	// SCRAMVerifier is no opinion.
	SCRAMVerifier(ctx context.Context, s *Session, user string) (SCRAMVerifier, error)
}

// A Verifier is asked after VRFY (RFC 5321, section 3.5).
type Verifier interface {
	// Verify says whether text, which is an address or a name, is that of a
	// user: 250 with "<user@example.org>" in its text, 252 if that cannot be
	// said, 550, or 553 if it is ambiguous.
	Verify(ctx context.Context, s *Session, text string) (Status, error)
}

// An Expander is asked after EXPN (RFC 5321, section 3.5). EXPN is offered if
// there is one.
type Expander interface {
	// Expand returns the members of a mailing list, each in the form
	// "<user@example.org>" or "Name <user@example.org>"; nil is no opinion.
	Expand(ctx context.Context, s *Session, list string) (members []string, err error)
}

// BadCredentials refuses a user or a password: RFC 4954, section 6.
var BadCredentials = Status{535, "5.7.8", "authentication credentials invalid"}

// An Opinion is what a RecipientChecker says. Its Status is as in all
// answers.
type Opinion struct {
	Status Status

	// For is how long the gateway may answer the same without asking again,
	// whoever the client and the sender are. Zero is not at all.
	For time.Duration

	// Key says for which recipients. It is a pattern as in the routes of
	// gateway.toml: "user@example.org", "@example.org", "user@*" or "*",
	// in which upper and lower case are the same. The empty Key is the
	// recipient's own address.
	Key string
}

// Credentials are what a client shows in AUTH.
type Credentials struct {
	// Mechanism is "PLAIN", "LOGIN" or "EXTERNAL".
	Mechanism string

	// Identity is the authorization identity: the user that the client wants
	// to act as, if that is not User; often empty. An Authenticator that
	// ignores it returns User as if it were empty, which is a fault: it
	// refuses what it does not allow.
	Identity string

	// User and Password are empty with EXTERNAL: there the certificate of the
	// client, in the Session's TLS, says who it is.
	User     string
	Password string
}

// String hides the password.
func (c Credentials) String() string {
	return fmt.Sprintf("%s of %q as %q", c.Mechanism, c.User, c.Identity)
}

// LogValue hides the password.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// A SCRAMVerifier is what a server keeps of a password (RFC 5802, section 3).
type SCRAMVerifier struct {
	// User is whose it is, in the form that Authenticate returns. If it is
	// empty, that is the name that the client has given.
	User string

	Salt       []byte
	Iterations int
	StoredKey  []byte
	ServerKey  []byte
}

// IsZero reports whether v is no verifier at all.
func (v SCRAMVerifier) IsZero() bool { return v.Iterations == 0 }
