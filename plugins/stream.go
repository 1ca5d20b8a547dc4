package plugins

import (
	"context"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// A grpcStream is the stream of gRPC that all plugins have. One goroutine
// sends the rest of the message, another receives the answers.
type grpcStream struct {
	*call
	ctx    context.Context
	cancel context.CancelCauseFunc
	stream grpc.BidiStreamingClient[pb.ToPlugin, pb.ToGateway]
	sent   chan struct{} // closed when nobody reads tx.Body any more
}

// beginStream sends the beginning of a transaction over gRPC. A successor of the
// plugin for which it was read may want smaller chunks.
func (r *running) beginStream(c *call) (stream, error) {
	s := &grpcStream{call: c, sent: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancelCause(c.caller)
	size := min(c.first.Len(), r.chunk)
	first := frame{message: &pb.ToPlugin{Transaction: transactionToWire(c.tx), Last: int64(size) == c.tx.Size}}
	var more mem.BufferSlice
	if size > 0 {
		first.chunk = mem.BufferSlice{c.first[0].Slice(0, size)}
		defer first.chunk.Free()
	}
	if size < c.first.Len() {
		more = mem.BufferSlice{c.first[0].Slice(size, c.first.Len())}
	}
	if err := s.begin(r, &first); err != nil {
		more.Free()
		err = s.explain(err)
		s.cancel(nil)
		return nil, err
	}
	go s.send(more, c.rest(), r.chunk)
	return s, nil
}

// begin sends the first message. If its error says that the plugin vanished,
// none of it has left.
func (s *grpcStream) begin(r *running, first *frame) (err error) {
	if s.stream, err = r.plugin.Deliver(s.ctx); err != nil {
		return err
	}
	if err = s.stream.SendMsg(first); err == io.EOF {
		// The stream was at its end before. Why, is there to be received.
		if _, e := s.stream.Recv(); e != nil {
			err = e
		}
	}
	return err
}

// send sends the rest of the message: more, which was read, and what follows it.
func (s *grpcStream) send(more mem.BufferSlice, rest int64, chunk int) {
	defer close(s.sent)
	left := int64(more.Len()) + rest
	body := io.MultiReader(more.Reader(), s.tx.Body)
	more.Free()
	for message := (&pb.ToPlugin{}); left > 0; {
		data, err := readChunk(body, int(min(left, int64(chunk))))
		left -= int64(data.Len())
		if err != nil {
			data.Free()
			s.cancel(unread(left, err))
			return
		}
		message.Last = left == 0
		err = s.stream.SendMsg(&frame{message: message, chunk: data})
		data.Free()
		if err != nil {
			return // it is received, too
		}
	}
	s.stream.CloseSend()
}

func (s *grpcStream) receive() (*answer, error) {
	message := &pb.ToGateway{}
	f := frame{message: message}
	if err := s.stream.RecvMsg(&f); err != nil {
		return nil, s.explain(err)
	}
	return &answer{message, f.chunk}, nil
}

func (s *grpcStream) end() {
	s.cancel(nil)
	<-s.sent
}

func (s *grpcStream) release() {}

// explain says why the stream has ended.
func (s *grpcStream) explain(err error) error {
	cause := context.Cause(s.ctx)
	switch {
	case s.caller.Err() != nil: // it is the cause then
	case cause != nil:
		return cause // of send
	case err == nil || err == io.EOF:
		return errNoAnswer
	}
	return lost(s.caller, s.began, s.plugin, err)
}

// lost says why a call of a plugin has no answer. ctx is the caller's.
func lost(ctx context.Context, began time.Time, r *running, err error) error {
	switch {
	case ctx.Err() != nil:
		return endOf(ctx, began)
	case status.Code(err) == codes.DeadlineExceeded:
		return noAnswer(time.Since(began)) // by the plugin's clock
	case vanished(ctx, err):
		return errVanished{r}
	}
	return fmt.Errorf("%v: %s", r, cut(err.Error()))
}

// vanished reports whether a call has failed because its plugin is gone. ctx is
// the caller's.
func vanished(ctx context.Context, err error) bool {
	switch status.Code(err) {
	case codes.Unavailable:
		return true
	case codes.Canceled: // the connection was closed, if not by the caller
		return ctx.Err() == nil
	}
	return false
}

// Deliver handles one transaction that comes over gRPC.
func (s *server) Deliver(stream grpc.BidiStreamingServer[pb.ToPlugin, pb.ToGateway]) error {
	backend, err := s.enter()
	if err != nil {
		return err
	}
	defer s.calls.Done()
	message := &pb.ToPlugin{}
	first := frame{message: message}
	if err := stream.RecvMsg(&first); err != nil {
		return err
	}
	if message.Transaction == nil {
		return status.Error(codes.InvalidArgument, "the first message has no transaction")
	}
	tx := transactionFromWire(message.Transaction)
	tx.Body = newBody(stream, first.chunk, message.Last)
	ctx := context.WithValue(stream.Context(), idsKey{}, idsOf(&tx.Session, tx.ID))
	handle(ctx, backend, tx, grpcOutlet{stream})
	return ctx.Err()
}

// newBody reads the message from the stream. Of what nobody reads, no more
// comes than fits into gRPC's window.
func newBody(stream grpc.ServerStream, chunk mem.BufferSlice, last bool) io.Reader {
	first := true
	return &chunkReader{next: func() (mem.BufferSlice, error) {
		if first {
			first = false
			return chunk, nil
		}
		if last {
			return nil, io.EOF
		}
		message := &pb.ToPlugin{}
		f := frame{message: message}
		err := stream.RecvMsg(&f)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		last = message.Last
		return f.chunk, err
	}}
}

type grpcOutlet struct{ stream grpc.ServerStream }

// statuses has the writer tell when they were written. The last answer is as good
// as the others: the gateway knows when it has all of them.
func (o grpcOutlet) statuses(recipients []int, s backends.Status, _ bool) (<-chan struct{}, error) {
	f := &frame{message: statusesToWire(recipients, s), written: make(chan struct{})}
	return f.written, o.stream.SendMsg(f)
}

func (o grpcOutlet) send(m *pb.ToGateway, chunk mem.BufferSlice, _ bool) error {
	return o.stream.SendMsg(&frame{message: m, chunk: chunk})
}
