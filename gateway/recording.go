package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mailgw/mailgw/internal/record"
)

// Somebody can have copies of the transactions that a backend gets, with what it
// answers. Mail does not wait for him: what he does not take in time is left out,
// and counted.

// maxRecorded is how many octets a message may have that is recorded.
const maxRecorded = 4 << 20

// recordings are those of all configurations, one after the other.
type recordings struct {
	copies copies

	mu  sync.Mutex
	all []*Recording
}

// A Recording has copies of the next transactions of a backend.
type Recording struct {
	all     *recordings
	backend string
	records chan copied // has room for all copies that there may be
	last    copied      // that Next has returned
	left    int         // that Next will return

	mu     sync.Mutex
	wanted int // that are still to come
	out    LeftOut
}

// copied is a record, and what was reserved for it.
type copied struct {
	record *record.Record
	octets int64
}

// LeftOut are how many transactions were not recorded.
type LeftOut struct {
	TooLarge int // for a record
	Dropped  int // as earlier ones were not taken in time, or could not be read
}

// Record begins to record the next n transactions of a backend, as it gets them:
// each is recorded when the backend has answered for all of its recipients. It
// goes on when the configuration is reloaded. The caller closes the Recording.
func (s *Server) Record(backend string, n int) (*Recording, error) {
	s.mu.Lock()
	g := s.generation
	s.mu.Unlock()
	if routed := g.routed(); !slices.Contains(routed, backend) {
		return nil, fmt.Errorf("no backend %.100q stands in a route; want %s", backend, strings.Join(routed, ", "))
	}
	r := &Recording{all: g.recordings, backend: backend, records: make(chan copied, maxCopies), wanted: n, left: n}
	r.all.mu.Lock()
	defer r.all.mu.Unlock()
	r.all.all = append(r.all.all, r)
	return r, nil
}

// routed returns the backends that get mail, but for shadows.
func (g *generation) routed() (names []string) {
	for _, l := range g.listeners {
		for _, route := range l.Routes {
			names = append(names, route...)
		}
	}
	for _, route := range g.routes {
		names = append(names, route.backends...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Next waits for the next record. It is io.EOF if there were enough, or the error
// of ctx. The record before is to be done with.
func (r *Recording) Next(ctx context.Context) (*record.Record, error) {
	r.release()
	if r.left == 0 {
		return nil, io.EOF
	}
	select {
	case r.last = <-r.records:
		r.left--
		return r.last.record, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// release gives back the room of the record that Next has returned.
func (r *Recording) release() {
	if r.last.record != nil {
		r.all.copies.give(r.last.octets)
	}
	r.last = copied{}
}

// Close ends the recording. It tells what was left out.
func (r *Recording) Close() LeftOut {
	r.all.mu.Lock()
	r.all.all = slices.DeleteFunc(r.all.all, func(other *Recording) bool { return other == r })
	r.all.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wanted = closed
	r.release()
	for len(r.records) > 0 {
		r.last = <-r.records
		r.release()
	}
	return r.out
}

// closed is what a Recording wants that is closed.
const closed = -1

// of returns the recordings of a backend.
func (r *recordings) of(backend string) (found []*Recording) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, recording := range r.all {
		if recording.backend == backend {
			found = append(found, recording)
		}
	}
	return found
}

// recorded returns what records a transaction once it is known what backend says
// of it, or nil.
func (d *delivery) recorded(backend *namedBackend, b *branch) func(record.Said) {
	recordings := d.recordings.of(backend.name)
	if recordings == nil {
		return nil
	}
	return func(s record.Said) {
		for _, r := range recordings {
			r.offer(d, b, s)
		}
	}
}

// offer takes a copy of a transaction, unless there are enough or it has to be
// left out.
func (r *Recording) offer(d *delivery, b *branch, s record.Said) {
	octets := b.message.Size()
	if s.Edits.Message != nil {
		octets += s.Edits.Message.Size()
	}
	if !r.want(octets) {
		return
	}
	made, err := d.record(r.backend, b, s)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.wanted == closed:
		r.all.copies.give(octets)
	case err != nil:
		r.all.copies.give(octets)
		r.wanted++
		r.out.Dropped++
	default:
		r.records <- copied{made, octets}
	}
}

// want reports whether a transaction of that many octets is to be recorded, for
// which it reserves the room.
func (r *Recording) want(octets int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.wanted <= 0:
		return false
	case octets > maxRecorded:
		r.out.TooLarge++
		return false
	case !r.all.copies.take(octets):
		r.out.Dropped++
		return false
	}
	r.wanted--
	return true
}

// record makes the record of a transaction.
func (d *delivery) record(backend string, b *branch, s record.Said) (*record.Record, error) {
	message, err := contents(b.message)
	if err != nil {
		return nil, err
	}
	if m := s.Edits.Message; m != nil {
		replacement, err := contents(m)
		if err != nil {
			return nil, err
		}
		s.Edits.Message = bytes.NewReader(replacement)
	}
	tx := d.dataContext(b, nil)
	tx.Session.Gateway = ""
	return &record.Record{
		ID: tx.ID, Time: time.Now(), Backend: backend, Session: tx.Session, Envelope: tx.Envelope, Message: message, Said: s,
	}, nil
}

// witness returns who notes what backend says of b, for those that want to know.
// It is nil if nobody does.
func (d *delivery) witness(backend *namedBackend, b *branch) *record.Witness {
	want := slices.DeleteFunc([]func(record.Said){d.shadowed(backend, b), d.recorded(backend, b)},
		func(f func(record.Said)) bool { return f == nil })
	if len(want) == 0 {
		return nil
	}
	return record.NewWitness(len(b.to), func(s record.Said) {
		for _, f := range want {
			f(s)
		}
	})
}
