package record

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/mailgw/mailgw/backends"
)

// A Witness notes what a backend says of one transaction. Its methods are to be
// called by the hooks of the same names of backends.Run. A nil Witness notes
// nothing.
type Witness struct {
	done func(Said)

	mu      sync.Mutex
	said    Said
	started []bool
	open    int // the call itself, and started deliveries
}

// NewWitness returns a Witness of a transaction with that many recipients. done
// is called once all is said, which may be after Deliver returned.
func NewWitness(recipients int, done func(Said)) *Witness {
	return &Witness{done: done, said: Said{Answers: make([]Answer, recipients)}, started: make([]bool, recipients), open: 1}
}

// Status notes the status of recipient i, as a client would be told of it.
func (w *Witness) Status(i int, s backends.Status) {
	if w == nil {
		return
	}
	w.mu.Lock()
	w.said.Answers[i] = Answer{Status: s.Sanitized()}
	late := w.started[i]
	w.mu.Unlock()
	if late {
		w.finish()
	}
}

// Started notes a delivery that may go on after Deliver returned.
func (w *Witness) Started(i int) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.started[i] = true
	w.open++
}

// SMTPResponse notes the first response.
func (w *Witness) SMTPResponse(s backends.Status) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.said.Response.IsZero() && !s.IsZero() {
		w.said.Response = s.Sanitized()
	}
}

// Returned notes what Run has returned. The edits are those of a Deliver without
// an error, as others do not count.
func (w *Witness) Returned(undecided []int, err error, edits backends.Edits) {
	if w == nil {
		return
	}
	w.mu.Lock()
	for _, i := range undecided {
		w.said.Answers[i] = answerOf(err)
	}
	if err == nil {
		w.said.Edits = edits
	}
	w.mu.Unlock()
	w.finish()
}

// answerOf returns what err means for the recipients that are undecided.
func answerOf(err error) Answer {
	switch {
	case err == nil:
		return Answer{Next: true}
	case backends.IsFailure(err):
		return Answer{Failure: cmp.Or(err.Error(), "an error without a text")}
	}
	return Answer{Status: backends.StatusOf(err).Sanitized()}
}

func (w *Witness) finish() {
	w.mu.Lock()
	w.open--
	over, said := w.open == 0, w.said
	w.mu.Unlock()
	if over {
		w.done(said)
	}
}

// Hear has b deliver tx, and returns what it says. It waits for started
// deliveries, too, until ctx ends. store keeps a message that replaces that of tx.
func Hear(ctx context.Context, b backends.Backend, tx *backends.DataContext, store backends.MessageStore) Said {
	heard := make(chan Said, 1)
	w := NewWitness(len(tx.Envelope.Recipients), func(s Said) { heard <- s })
	undecided, err := backends.Run(ctx, b, tx, backends.Hooks{Status: w.Status, Started: w.Started, SMTPResponse: w.SMTPResponse, Replace: store})
	w.Returned(undecided, err, tx.Edits())
	select {
	case s := <-heard:
		return s
	case <-ctx.Done():
		tx.SetAll(backends.TimedOut)
		return <-heard
	}
}

// Store keeps a message in memory, if it is not larger than one that Read takes.
func Store(r io.Reader) (backends.Message, error) {
	const most = maxText / 4
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && len(b) > most {
		err = fmt.Errorf("more than %d octets", most)
	}
	return bytes.NewReader(b), err
}
