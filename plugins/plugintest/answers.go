package plugintest

import (
	"errors"
	"fmt"
	"io"

	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// heard is what a plugin has answered in a call, to its end.
type heard struct {
	recipients int
	statuses   map[int]*pb.Status
	started    map[int]bool
	returned   *pb.Returned
}

func newHeard(recipients int) *heard {
	return &heard{recipients: recipients, statuses: map[int]*pb.Status{}, started: map[int]bool{}}
}

// A brokenPromise is an answer that no plugin gives. The gateway ignores most of
// them, or has left before it could hear them.
type brokenPromise struct{ error }

func broken(format string, args ...any) error { return brokenPromise{fmt.Errorf(format, args...)} }

// hear reads the answers until the call ends.
func (tx *transaction) hear() (*heard, error) {
	h := newHeard(tx.recipients)
	for {
		answer, err := tx.stream.Recv()
		if err == io.EOF {
			return h, h.end()
		}
		if err == nil {
			err = h.take(answer)
		}
		if err != nil {
			return h, err
		}
	}
}

func (h *heard) take(m *pb.ToGateway) error {
	if h.returned != nil && (m.Returned != nil || m.First || m.Last || len(m.Chunk) > 0) {
		return broken("more than statuses after returned")
	}
	for _, i := range m.Started {
		if err := h.start(int(i)); err != nil {
			return err
		}
	}
	for _, s := range m.Statuses {
		if err := h.decide(int(s.Recipient), s.GetStatus()); err != nil {
			return err
		}
	}
	if m.Returned != nil {
		h.returned = m.Returned
	}
	return nil
}

func (h *heard) start(i int) error {
	switch {
	case i >= h.recipients:
		return broken("started: there is no recipient %d", i)
	case h.statuses[i] != nil || h.started[i]:
		return broken("recipient %d is started, but was decided or started before", i)
	case h.returned != nil:
		return broken("recipient %d is started after returned", i)
	}
	h.started[i] = true
	return nil
}

func (h *heard) decide(i int, s *pb.Status) error {
	switch {
	case i >= h.recipients:
		return broken("a status for recipient %d, whom there is not", i)
	case h.statuses[i] != nil:
		return broken("a second status for recipient %d", i)
	case h.returned != nil && !h.started[i]:
		return broken("a status after returned for recipient %d, who was not started", i)
	}
	h.statuses[i] = s
	return nil
}

// end judges a call that was not broken off.
func (h *heard) end() error {
	if h.returned == nil {
		return errors.New("the call has ended without returned")
	}
	for i := range h.started {
		if h.statuses[i] == nil {
			return broken("recipient %d was started, and has no status at the end of the call", i)
		}
	}
	return nil
}

// all are the statuses, the returned one too; nil for recipients that have none.
func (h *heard) all() []*pb.Status {
	all := make([]*pb.Status, h.recipients)
	for i := range all {
		if all[i] = h.returned.GetStatus(); h.statuses[i] != nil {
			all[i] = h.statuses[i]
		}
	}
	return all
}
