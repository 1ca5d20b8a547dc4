package plugins

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// Answers reports whether the plugin announced topic t when it started first.
func (h *Host) Answers(t backends.Topic) bool { return h.answers[t] }

// Ask asks the backend in the plugin. If none runs, it waits two seconds for
// one. If the plugin ends while it is asked, the next one is asked, once: a
// question changes nothing.
//
// An error that is no Status means what it does in Deliver. The error of a
// backend that means a Status is that Status.
func (h *Host) Ask(ctx context.Context, q backends.Question) (backends.Answer, error) {
	if err := h.enter(); err != nil {
		return backends.Answer{}, err
	}
	defer h.calls.Done()
	began := time.Now()
	waiting, cancel := context.WithTimeoutCause(ctx, h.times.patience, errNotRunning)
	defer cancel()
	r, err := h.plugin(waiting, nil)
	if err != nil {
		return backends.Answer{}, ended(ctx, began, err)
	}
	question := questionToWire(q)
	answer, err := r.plugin.Ask(ctx, question)
	r.done()
	if vanished(ctx, err) {
		r.doubt()
		if next, none := h.plugin(waiting, r); none == nil {
			r = next
			answer, err = r.plugin.Ask(ctx, question)
			r.done()
		}
	}
	if err != nil {
		return backends.Answer{}, h.crash(r, lost(ctx, began, r, err))
	}
	return answerFromWire(answer, q.About)
}

// Ask answers one question in the plugin.
func (s *server) Ask(ctx context.Context, question *pb.Question) (*pb.Answer, error) {
	backend, err := s.enter()
	if err != nil {
		return nil, err
	}
	defer s.calls.Done()
	q := questionFromWire(question)
	if !backends.Answers(backend, q.About) {
		return nil, status.Errorf(codes.Unimplemented, "the plugin cannot be asked about %v", question.GetTopic())
	}
	ctx = context.WithValue(ctx, idsKey{}, idsOf(q.Session, ""))
	a, err := backends.Ask(ctx, backend, q)
	if err != nil {
		return unansweredToWire(withoutStack(ctx, err)), nil
	}
	return answerToWire(a), nil
}
