// Package backends says what a backend is: something that decides the fate
// of the recipients of a mail transaction.
//
// A backend implements [Backend]; [Func] makes one of a function. It gets a
// [DataContext] for each mail transaction and sets a [Status] for each
// recipient that it decides. Those it leaves undecided go on to the next
// backend of their route, with the edits that it made. So a filter and a
// destination are the same thing.
//
// The package is the same on both sides of the process border: a backend
// that runs in a plugin cannot tell, and need not.
package backends

import (
	"cmp"
	"context"
	"fmt"
	"runtime/debug"
	"strings"
)

// A Backend decides the fate of the recipients of mail transactions. It is
// called from several goroutines at once.
type Backend interface {
	// Deliver handles one transaction. Recipients it leaves unset get the
	// status of err or, when err is nil, go on to the next backend of their
	// route. After the last one they get TryLater.
	//
	// ctx ends at the deadline of the transaction. It stays alive after
	// Deliver returned while a delivery begun with tx.StartDelivery is under
	// way.
	//
	// It returns or panics: the goroutine is the session's, which runtime.Goexit
	// would end.
	Deliver(ctx context.Context, tx *DataContext) error
}

// Func is a Backend made of a function.
type Func func(ctx context.Context, tx *DataContext) error

func (f Func) Deliver(ctx context.Context, tx *DataContext) error { return f(ctx, tx) }

// Hooks let the caller of a backend follow a transaction while it runs. Any
// of them may be nil. They may be called from several goroutines at once, and
// after Run returned for the deliveries that are still under way by then.
type Hooks struct {
	// Status is called once for each recipient that the backend decides.
	Status func(i int, s Status)

	// StatusAll is called instead of Status for the recipients, in order, that
	// one call of SetAll decides. Without it, Status is called for each.
	StatusAll func(recipients []int, s Status)

	// Together calls f, which decides several recipients: what becomes of them
	// may be told at once. Without it f is called as it is.
	Together func(f func())

	// Started is called when recipient i is to be delivered beyond the
	// return of Deliver. A call of Status for i follows. It must not call
	// methods of the DataContext.
	Started func(i int)

	// SMTPResponse is called by SetSMTPResponse.
	SMTPResponse func(s Status)

	// Wrote is called by DataContext.Wrote.
	Wrote func(d Digest)

	// Crashed is called by DataContext.Crashed.
	Crashed func(i int, crash *CrashError)

	// Ignored is called for a status or a started delivery that does not
	// count, with the reason.
	Ignored func(i int, s Status, why string)

	// Replace stores a message that replaces the one at hand. It reads the
	// message to its end. Without it the message is kept in memory.
	Replace MessageStore
}

// Run is the one way to call a backend. It returns the recipients that b
// neither decided nor started, in order, and what Deliver returned; a panic
// becomes an error. Statuses that b sets for the undecided recipients later
// are ignored. The edits of tx count only if the error is nil.
func Run(ctx context.Context, b Backend, tx *DataContext, hooks Hooks) (undecided []int, err error) {
	tx.begin(hooks)
	defer func() {
		if r := recover(); r != nil {
			err = &PanicError{r, debug.Stack()}
		}
		undecided = tx.end()
	}()
	return nil, b.Deliver(ctx, tx)
}

// A *PanicError is the error of Run and Ask if the backend has panicked.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.Value, e.Stack) }

// A *CrashError is the error of a backend whose process has ended while it had
// the transaction, or a delivery of it that was under way after Deliver returned.
type CrashError struct {
	Err    error
	Output []string // the last lines that it wrote
}

func (e *CrashError) Error() string { return e.Err.Error() }
func (e *CrashError) Unwrap() error { return e.Err }

// An Isolator can have an instance of itself that serves one caller alone, so
// that nobody else is harmed if it crashes.
type Isolator interface {
	// Isolated returns such an instance, which is to be closed by end.
	Isolated(ctx context.Context) (b Backend, end func(), err error)
}

// An EffectFree backend changes nothing outside itself, so that mail may be shown
// to it for a try: it stores nothing, sends nothing, and counts nothing that
// matters.
type EffectFree interface {
	IsEffectFree() bool
}

// IsEffectFree reports whether b declares that it is.
func IsEffectFree(b Backend) bool {
	free, ok := b.(EffectFree)
	return ok && free.IsEffectFree()
}

// A Needy backend tells the operator what it needs of the system: which files it
// reads and writes, whom it connects to, what it runs. Each is a phrase such as
// "writes /var/mail" or "connects to tcp:127.0.0.1:783". Nothing holds it to that.
type Needy interface {
	Needs() []string
}

// NeedsOf returns what b tells of its needs, if anything.
func NeedsOf(b Backend) []string {
	if needy, ok := b.(Needy); ok {
		return needy.Needs()
	}
	return nil
}

// A Diverter tells to which routes it may divert recipients. If [named_routes] has
// not all of them, the gateway does not start, so that no quarantine is missed
// only when it is needed. A backend that is none may divert to any.
type Diverter interface {
	// DivertsTo returns the same each time.
	DivertsTo() []string
}

// DiversionsOf returns to which routes b tells that it may divert, if it does.
func DiversionsOf(b Backend) []string {
	if diverter, ok := b.(Diverter); ok {
		return diverter.DivertsTo()
	}
	return nil
}

// Capabilities are what a backend can do with a message. A listener that
// mirrors them announces what the last backends of its routes can do.
type Capabilities struct {
	// Size is the largest message that it takes, in octets. Zero: none is
	// known to be too large.
	Size int64

	EightBitMIME bool // RFC 6152
	SMTPUTF8     bool // RFC 6531
	BinaryMIME   bool // RFC 3030

	// DSN: it passes delivery status notification parameters (RFC 3461) on,
	// or issues the notifications itself.
	DSN bool

	// RequireTLS: a message that came with REQUIRETLS (RFC 8689) leaves it as
	// that demands, or not at all. A backend that stores it has it.
	RequireTLS bool

	// Digest: it calls DataContext.Wrote.
	Digest bool

	// Relays: the above is what a next hop can do, as far as is known. It
	// changes, and messages that the next hop cannot take are refused.
	Relays bool

	// Unknown: the next hop was not reached yet.
	Unknown bool
}

// Storing are the capabilities of a backend that tells of none: it can take
// every message.
var Storing = Capabilities{EightBitMIME: true, SMTPUTF8: true, BinaryMIME: true}

// A Capable backend tells what it can do. It is asked again and again, from
// several goroutines at once.
type Capable interface {
	Capabilities() Capabilities
}

// A Changing backend's capabilities change while it runs, as those of a relay
// do.
type Changing interface {
	Capable

	// Changed returns a channel that is closed when Capabilities returns
	// something new.
	Changed() <-chan struct{}
}

// CapabilitiesOf returns what b can do.
func CapabilitiesOf(b Backend) Capabilities {
	if capable, ok := b.(Capable); ok {
		return capable.Capabilities()
	}
	return Storing
}

// An Editor tells which edits it may make. A backend that is none may make
// them all. An edit beyond is an error of the delivery.
type Editor interface {
	// MayEdit returns the same each time. Without EditEnvelope, clients of LMTP
	// are told a success at once; with it, when Deliver has returned.
	MayEdit() EditKinds
}

// EditKinds are kinds of edits. Zero is none.
type EditKinds uint8

const (
	EditHeader   EditKinds = 1 << iota // AddField, ReplaceField, RemoveField
	EditMessage                        // ReplaceMessage
	EditEnvelope                       // SetSender, SetSenderParams, Redirect, AddRecipient, Divert

	EditAll = EditHeader | EditMessage | EditEnvelope
)

// String returns "none", or "header, envelope".
func (k EditKinds) String() string {
	var names []string
	for i, name := range []string{"header", "message", "envelope"} {
		if k&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return cmp.Or(strings.Join(names, ", "), "none")
}

// EditsOf returns which edits b may make.
func EditsOf(b Backend) EditKinds {
	if editor, ok := b.(Editor); ok {
		return editor.MayEdit()
	}
	return EditAll
}

// A SettingError says what is wrong with one setting of a backend. A function
// that makes a backend of its settings returns it, several joined by
// errors.Join, so that the operator is told the lines of the keys.
type SettingError struct {
	Key string // the path of the key in the settings: "rule[0].to"
	Err error
}

func (e SettingError) Error() string { return e.Key + ": " + e.Err.Error() }
func (e SettingError) Unwrap() error { return e.Err }
