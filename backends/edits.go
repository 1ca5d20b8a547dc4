package backends

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Edits are what a backend changes for the backends that follow. They are
// applied when Deliver returned nil, all or none, the same for all
// recipients that go on. What was not edited stays byte for byte.
type Edits struct {
	// Fields are changes of the header, in the order in which they were
	// made.
	Fields []FieldEdit

	// Message replaces the whole message, header too, if it is not nil.
	Message Message

	// Sender replaces the reverse-path, if it is not nil.
	Sender *string

	// SenderParams replace those parameters of MAIL that are OfSender, if they
	// are not nil. None of them is OfMessage.
	SenderParams Params

	// Redirects has the new addresses of each recipient that is redirected.
	Redirects map[int][]string

	// Added are new recipients.
	Added []Recipient

	// Diversions has the named route of each recipient that is diverted.
	Diversions map[int]string
}

// IsZero reports whether nothing is changed.
func (e *Edits) IsZero() bool {
	return e.Fields == nil && e.Message == nil && e.Sender == nil && e.SenderParams == nil &&
		e.Redirects == nil && e.Added == nil && e.Diversions == nil
}

// Kinds returns the kinds of edits that there are.
func (e *Edits) Kinds() (k EditKinds) {
	if e.Fields != nil {
		k |= EditHeader
	}
	if e.Message != nil {
		k |= EditMessage
	}
	if e.Sender != nil || e.SenderParams != nil || e.Redirects != nil || e.Added != nil || e.Diversions != nil {
		k |= EditEnvelope
	}
	return k
}

// A FieldEdit changes the header at one raw position. Positions count the
// fields of the message at hand from 0, as they came: an edit does not shift
// the positions of the edits after it.
type FieldEdit struct {
	Op    FieldOp
	At    int
	Field string // "Name: value", folded lines parted by CRLF; not for RemoveField
}

// A FieldOp says what a FieldEdit does.
type FieldOp int

const (
	AddField     FieldOp = iota // before the field at the position, or after the last field
	ReplaceField                // the field at the position
	RemoveField                 // the field at the position
)

// A Message is a message that replaces another one. It is read any number of
// times, from the start.
type Message interface {
	io.ReaderAt
	Size() int64
}

// A MessageStore reads a message to its end and keeps it. A Message that is an
// io.Closer is closed when another one takes its place.
type MessageStore func(r io.Reader) (Message, error)

// AddField adds a header field before the one at position at, or after the
// last one if there are not that many. field is "Name: value"; a folded
// field has CRLF before each line that continues it.
func (tx *DataContext) AddField(at int, field string) error {
	return tx.editField(FieldEdit{AddField, at, field})
}

// ReplaceField puts another header field in the place of the one at position
// at.
func (tx *DataContext) ReplaceField(at int, field string) error {
	return tx.editField(FieldEdit{ReplaceField, at, field})
}

// RemoveField removes the header field at position at.
func (tx *DataContext) RemoveField(at int) error {
	return tx.editField(FieldEdit{RemoveField, at, ""})
}

var errReplaced = errors.New("edit: header fields and whole message cannot both be edited")

func (tx *DataContext) editField(e FieldEdit) error {
	if err := e.check(); err != nil {
		return err
	}
	tx.mu.Lock()
	defer tx.mu.Unlock()
	switch {
	case tx.ended:
		return errEnded
	case tx.edits.Message != nil:
		return errReplaced
	}
	tx.edits.Fields = append(tx.edits.Fields, e)
	return nil
}

// check returns an error if e would damage a header: RFC 5322, section 2.2.
func (e FieldEdit) check() error {
	if e.At < 0 {
		return fmt.Errorf("edit: header position %d is negative", e.At)
	}
	if e.Op == RemoveField {
		return nil
	}
	name, _, ok := strings.Cut(e.Field, ":")
	if !ok || name == "" || strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
		return fmt.Errorf("edit: %q does not begin with a field name and a colon", e.Field)
	}
	for i, line := range strings.Split(e.Field, "\r\n") {
		switch {
		case strings.ContainsAny(line, "\r\n\x00"):
			return fmt.Errorf("edit: field %s: bare CR, bare LF or NUL", name)
		case len(line) > 998: // RFC 5322, section 2.1.1
			return fmt.Errorf("edit: field %s: a line of more than 998 octets", name)
		case i > 0 && (strings.Trim(line, " \t") == "" || line[0] != ' ' && line[0] != '\t'):
			return fmt.Errorf("edit: field %s: a folded line does not begin with white space, or has nothing else", name)
		}
	}
	return nil
}

// ReplaceMessage puts the message that r gives, header and all, in the place
// of the one at hand. It reads r to its end. Lines end in CRLF. The last call
// counts. With edits of single fields beside it, it is an error of the delivery.
func (tx *DataContext) ReplaceMessage(r io.Reader) error {
	tx.mu.Lock()
	store, err := tx.hooks.Replace, tx.mayReplace()
	tx.mu.Unlock()
	if err != nil {
		return err
	}
	if store == nil {
		store = storeInMemory
	}
	m, err := store(r)
	if err != nil {
		return fmt.Errorf("edit: replace message: %w", err)
	}
	tx.mu.Lock()
	defer tx.mu.Unlock()
	old := tx.edits.Message
	if err = tx.mayReplace(); err != nil { // as of now
		old = m
	} else {
		tx.edits.Message = m
	}
	if c, ok := old.(io.Closer); ok {
		c.Close()
	}
	return err
}

// mayReplace returns why the message cannot be replaced.
func (tx *DataContext) mayReplace() error {
	switch {
	case tx.ended:
		return errEnded
	case tx.edits.Fields != nil:
		return errReplaced
	}
	return nil
}

var errEnded = errors.New("edit: Deliver had returned")

func storeInMemory(r io.Reader) (Message, error) {
	b, err := io.ReadAll(r)
	return bytes.NewReader(b), err
}

// SetSender changes the reverse-path; "" is the null reverse-path. Its
// parameters stay, unless SetSenderParams changes them. The last call counts.
func (tx *DataContext) SetSender(address string) error {
	if address != "" {
		if err := checkAddress(address); err != nil {
			return fmt.Errorf("edit: sender: %w", err)
		}
	}
	tx.mu.Lock()
	defer tx.mu.Unlock()
	if tx.ended {
		return errEnded
	}
	tx.edits.Sender = &address
	return nil
}

// SetSenderParams changes the parameters of MAIL, whether the sender stays or
// not: of those that are OfSender, such as RET and ENVID, there are just those
// in params from now on. Those that are OfMessage are not for a backend to
// change. They stay, in params or not, and one in params that did not come so
// is an error. The last call counts.
func (tx *DataContext) SetSenderParams(params Params) error {
	for _, p := range params {
		if err := checkParam(p); err != nil {
			return fmt.Errorf("edit: sender: %w", err)
		}
	}
	for _, p := range params.OfMessage() {
		if !slices.Contains(tx.Envelope.Params, p) {
			return fmt.Errorf("edit: sender: parameter %q is of the message, and it did not come with it", p)
		}
	}
	tx.mu.Lock()
	defer tx.mu.Unlock()
	if tx.ended {
		return errEnded
	}
	tx.edits.SenderParams = append(Params{}, params.OfSender()...)
	return nil
}

// Redirect sends recipient i on to other addresses, with its parameters. It
// gets the worst of their answers. The route and the address in the client's
// reply stay. The last call counts.
func (tx *DataContext) Redirect(i int, addresses ...string) error {
	if len(addresses) == 0 {
		return fmt.Errorf("edit: redirect recipient %d: no address", i)
	}
	for _, a := range addresses {
		if err := checkRecipient(a); err != nil {
			return fmt.Errorf("edit: redirect recipient %d: %w", i, err)
		}
	}
	return editRecipient(tx, "redirect", i, &tx.edits.Redirects, slices.Clone(addresses))
}

// AddRecipient adds a recipient, who takes the rest of the route even if
// nobody else goes on. In the last backend of a route, where nothing is left
// of it, that is an error of the delivery.
//
// No recipient of the transaction gets a 2yz before the added one has it; if
// that is refused, they get its status. So as long as a backend may add
// somebody, successes wait: one that does not should say so (Editor). The client is told of nobody whom it
// did not name. An error or a panic of Deliver drops the addition, as it does
// all edits; and when the transaction reaches its deadline, the successes of
// others are told although a backend that has not returned might have added
// somebody.
func (tx *DataContext) AddRecipient(to Recipient) error {
	if err := checkRecipient(to.Address); err != nil {
		return fmt.Errorf("edit: add recipient: %w", err)
	}
	for _, p := range to.Params {
		if err := checkParam(p); err != nil {
			return fmt.Errorf("edit: add recipient %q: %w", to.Address, err)
		}
	}
	tx.mu.Lock()
	defer tx.mu.Unlock()
	if tx.ended {
		return errEnded
	}
	tx.edits.Added = append(tx.edits.Added, Recipient{to.Address, slices.Clone(to.Params)})
	return nil
}

// Divert sends recipient i by a route of [named_routes] in gateway.toml,
// instead of what is left of its own: to a quarantine, for example. A
// recipient is diverted once; after that it is an error of the delivery. The
// last call counts.
func (tx *DataContext) Divert(i int, route string) error {
	if err := checkRoute(route); err != nil {
		return fmt.Errorf("edit: divert recipient %d: %w", i, err)
	}
	return editRecipient(tx, "divert", i, &tx.edits.Diversions, route)
}

// editRecipient notes an edit of recipient i. what names it.
func editRecipient[E any](tx *DataContext, what string, i int, edits *map[int]E, edit E) error {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	if tx.ended {
		return errEnded
	}
	if _, why := tx.fate(i); why != "" {
		return fmt.Errorf("edit: %s recipient %d: %s", what, i, why)
	}
	if *edits == nil {
		*edits = map[int]E{}
	}
	(*edits)[i] = edit
	return nil
}

// Edits returns what was edited so far. Later edits do not change it.
func (tx *DataContext) Edits() Edits {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	e := tx.edits
	e.Fields = slices.Clone(e.Fields)
	e.Redirects = maps.Clone(e.Redirects)
	e.Added = slices.Clone(e.Added)
	e.Diversions = maps.Clone(e.Diversions)
	return e
}
