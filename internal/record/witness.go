package record

import (
	"cmp"
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
