package plugins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"

	"google.golang.org/grpc/mem"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// handle handles one transaction in the plugin. Its answers go out by o, and it
// returns when none will follow.
func handle(ctx context.Context, backend backends.Backend, tx *backends.DataContext, o outlet) {
	n := len(tx.Envelope.Recipients)
	a := &answers{outlet: o, ctx: ctx, undecided: n, unsent: n}
	a.changed.L = &a.mu
	undecided, err := backends.Run(ctx, backend, tx, backends.Hooks{
		Status:       a.status,
		StatusAll:    a.statusAll,
		Started:      a.start,
		SMTPResponse: a.respond,
		Wrote:        a.wrote,
		Replace:      a.replace,
		Ignored: func(i int, s backends.Status, why string) {
			slog.WarnContext(ctx, "ignored", "recipient", i, "status", s.Error(), "reason", why)
		},
	})
	if err != nil {
		a.returned(len(undecided), errorToWire(withoutStack(ctx, err)))
	} else {
		a.returned(len(undecided), editsToWire(tx.Edits()))
	}
	a.finish()
}

// An outlet carries the answers to one transaction to the gateway. There are two
// kinds of them, as there are of streams. Its methods are called one at a time, and
// keep nothing of what they are given.
type outlet interface {
	// statuses sends the same status for several recipients, which may be the
	// last answer. The channel is closed when it is in the socket; nil says that it
	// is there. After an error the gateway is gone or does not want to know, and
	// the ctx of the transaction ends.
	statuses(recipients []int, s backends.Status, last bool) (written <-chan struct{}, err error)

	// send sends any other answer. Nobody waits until it is in the socket.
	send(m *pb.ToGateway, chunk mem.BufferSlice, last bool) error
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

// answers are what goes back to the gateway for one transaction.
type answers struct {
	outlet    outlet
	ctx       context.Context // of the transaction
	replacing sync.Mutex

	mu          sync.Mutex
	undecided   int       // recipients of whom an answer may tell something yet
	unsent      int       // recipients whose status is not in the socket yet
	changed     sync.Cond // unsent has changed
	hasReturned bool
	closed      bool
}

var errAnswered = errors.New("the transaction has ended")

// next reports whether the next answer is the last one. There is none after that.
// The caller holds a.mu.
func (a *answers) next() (last bool, err error) {
	if a.closed {
		return false, errAnswered
	}
	a.closed = a.hasReturned && a.undecided == 0
	return a.closed, nil
}

// send sends an answer that is no status. The caller holds a.mu.
func (a *answers) send(m *pb.ToGateway, chunk mem.BufferSlice) error {
	last, err := a.next()
	if err != nil {
		return err
	}
	return a.outlet.send(m, chunk, last)
}

// status returns when the status is in the socket, so that it survives
// whatever becomes of the plugin then.
func (a *answers) status(i int, s backends.Status) { a.statusAll([]int{i}, s) }

func (a *answers) statusAll(recipients []int, s backends.Status) {
	s.Enhanced, s.Text = toUTF8(s.Enhanced), toUTF8(s.Text)
	for part := range slices.Chunk(recipients, statusesFor(s)) {
		if written, err := a.statuses(part, s); err == nil && written != nil {
			select {
			case <-written:
			case <-a.ctx.Done():
			}
		}
		a.mu.Lock()
		a.unsent -= len(part)
		a.changed.Broadcast()
		a.mu.Unlock()
	}
}

func (a *answers) statuses(recipients []int, s backends.Status) (written <-chan struct{}, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.undecided -= len(recipients)
	last, err := a.next()
	if err != nil {
		return nil, err
	}
	return a.outlet.statuses(recipients, s, last)
}

// statusesFor is how many times the same status fits into a message.
func statusesFor(s backends.Status) int {
	const most = maxParts / 4 // each is two parts
	return min(most, maxMessage/2/(len(s.Enhanced)+len(s.Text)+32))
}

func (a *answers) start(i int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.send(&pb.ToGateway{Started: []uint32{uint32(i)}}, nil)
}

func (a *answers) respond(s backends.Status) {
	if s.IsZero() {
		return // it would be no response
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.send(&pb.ToGateway{SmtpResponse: statusToWire(s)}, nil)
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
	a.send(&pb.ToGateway{Digest: digestToWire(d)}, nil)
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
			err = a.send(&pb.ToGateway{First: first, Last: last}, chunk)
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
func (a *answers) returned(undecided int, r *pb.Returned) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.undecided -= undecided
	a.unsent -= undecided
	a.hasReturned = true
	if r == noEdits {
		a.send(withoutEdits, nil)
	} else {
		a.send(&pb.ToGateway{Returned: r}, nil)
	}
}

// finish waits for the deliveries that were started, or the end of the ctx, and
// sends nothing more.
func (a *answers) finish() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.unsent > 0 {
		defer context.AfterFunc(a.ctx, func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.changed.Broadcast()
		})()
	}
	for a.unsent > 0 && a.ctx.Err() == nil {
		a.changed.Wait()
	}
	a.closed = true
}
