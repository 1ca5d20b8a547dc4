package plugins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// Deliver handles one transaction in the plugin.
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

	n := len(tx.Envelope.Recipients)
	a := &answers{stream: stream, answered: make([]bool, n)}
	a.changed.L = &a.mu
	undecided, err := backends.Run(ctx, backend, tx, backends.Hooks{
		Status:       a.status,
		Started:      a.start,
		SMTPResponse: a.respond,
		Wrote:        a.wrote,
		Replace:      a.replace,
		Ignored: func(i int, s backends.Status, why string) {
			slog.WarnContext(ctx, "ignored", "recipient", i, "status", s.Error(), "reason", why)
		},
	})
	if err != nil {
		a.returned(undecided, errorToWire(withoutStack(ctx, err)))
	} else {
		a.returned(undecided, editsToWire(tx.Edits()))
	}
	a.finish(ctx)
	return ctx.Err()
}

// withoutStack logs the stack of a panic, which is of no use to the gateway.
func withoutStack(ctx context.Context, err error) error {
	p, ok := err.(*backends.PanicError)
	if !ok {
		return err
	}
	slog.ErrorContext(ctx, "panic", "error", fmt.Sprint(p.Value), "stack", brief(p.Stack))
	return fmt.Errorf("panic: %v", p.Value)
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

// answers are what goes back to the gateway for one transaction.
type answers struct {
	stream    grpc.ServerStream
	replacing sync.Mutex

	mu       sync.Mutex
	changed  sync.Cond // answered has changed
	answered []bool    // the status was sent, or there is none to send
	closed   bool
}

// send sends a message. If it cannot, the gateway is gone or does not want to
// know, and the ctx of the transaction ends. The caller holds a.mu.
func (a *answers) send(f *frame) error {
	if a.closed {
		return errors.New("the transaction has ended")
	}
	return a.stream.SendMsg(f)
}

// status returns when the status is in the socket, so that it survives
// whatever becomes of the plugin then.
func (a *answers) status(i int, s backends.Status) {
	written := make(chan struct{})
	status := &pb.RecipientStatus{Recipient: uint32(i), Status: statusToWire(s)}
	a.mu.Lock()
	err := a.send(&frame{message: &pb.ToGateway{Statuses: []*pb.RecipientStatus{status}}, written: written})
	a.mu.Unlock()
	if err == nil {
		select {
		case <-written:
		case <-a.stream.Context().Done():
		}
	}
	a.mu.Lock()
	a.answered[i] = true
	a.changed.Broadcast()
	a.mu.Unlock()
}

func (a *answers) start(i int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.send(&frame{message: &pb.ToGateway{Started: []uint32{uint32(i)}}})
}

func (a *answers) respond(s backends.Status) {
	if s.IsZero() {
		return // it would be no response
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.send(&frame{message: &pb.ToGateway{SmtpResponse: statusToWire(s)}})
}

// wrote leaves out a digest that the gateway would not take: without it, all
// is told to have changed.
func (a *answers) wrote(d backends.Digest) {
	const most = maxMessage / 2 / 8
	if len(d.Fields) > most {
		d.Fields = nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.send(&frame{message: &pb.ToGateway{Digest: digestToWire(d)}})
}

// replace sends a message that replaces the one at hand. The gateway keeps
// it.
func (a *answers) replace(r io.Reader) (backends.Message, error) {
	a.replacing.Lock()
	defer a.replacing.Unlock()
	size := int64(0)
	for first, last := true, false; !last; first = false {
		chunk, err := readChunk(r, maxChunk)
		last = err == io.EOF
		if err == nil || last {
			size += int64(chunk.Len())
			a.mu.Lock()
			err = a.send(&frame{message: &pb.ToGateway{First: first, Last: last}, chunk: chunk})
			a.mu.Unlock()
		}
		chunk.Free()
		if err != nil {
			return nil, err
		}
	}
	return sentMessage(size), nil
}

// A sentMessage is in the gateway, and its size is all that is known here.
type sentMessage int64

func (m sentMessage) Size() int64 { return int64(m) }

func (m sentMessage) ReadAt([]byte, int64) (int, error) {
	return 0, errors.New("the message was sent to the gateway")
}

// returned sends what the backend has returned. By then the statuses of all
// recipients that are neither undecided nor started were sent.
func (a *answers) returned(undecided []int, r *pb.Returned) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, i := range undecided {
		a.answered[i] = true
	}
	a.send(&frame{message: &pb.ToGateway{Returned: r}})
}

// finish waits for the deliveries that were started, or the end of ctx, and
// sends nothing more.
func (a *answers) finish(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.changed.Broadcast()
	})()
	for i := range a.answered {
		for !a.answered[i] && ctx.Err() == nil {
			a.changed.Wait()
		}
	}
	a.closed = true
}
