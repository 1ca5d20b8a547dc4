package plugins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// Deliver delivers tx in the plugin, once fewer than Transactions are under way.
// If none runs, it waits two seconds for one. Once anything of tx may have left for a plugin, it is never sent again.
//
// An error that is no Status means that the plugin has failed, that it broke
// the protocol, or that its backend has returned such an error.
func (h *Host) Deliver(ctx context.Context, tx *backends.DataContext) error {
	if err := h.enter(); err != nil {
		return err
	}
	defer h.calls.Done()
	if err := h.take(ctx); err != nil {
		return err
	}
	c, err := h.open(ctx, tx)
	if err != nil {
		h.leave()
		return err
	}
	leave := func() {
		c.plugin.done()
		h.leave()
	}
	result, err := c.receive()
	switch {
	case err != nil:
		c.fail(err)
		leave()
		return h.crash(c.plugin, err)
	case len(c.pending) == 0:
		c.end()
		leave()
	default:
		h.calls.Go(func() {
			defer leave()
			if err := c.receiveLate(); err != nil {
				err = h.crash(c.plugin, err)
				c.fail(err)
				h.command.Log.LogAttrs(ctx, slog.LevelError, "backend", append(idsOf(&tx.Session, tx.ID).attrs(),
					slog.String("event", "failure"), slog.String("error", err.Error()))...)
			}
		})
	}
	return result
}

// A call is a transaction on its way through the plugin. One goroutine sends
// the message. Another receives the answers: that of Deliver, and a new one
// for the deliveries that are under way when Deliver returns.
type call struct {
	tx     *backends.DataContext
	caller context.Context // of Deliver
	began  time.Time
	ctx    context.Context // of the stream
	cancel context.CancelCauseFunc
	plugin *running
	stream grpc.BidiStreamingClient[pb.ToPlugin, pb.ToGateway]
	sent   chan struct{} // closed when nobody reads tx.Body any more

	// What the goroutine that receives knows.
	pending  map[int]bool // recipients that are started and have no status
	returned bool
	ignored  int
	held     *answer // was received too early
}

// An answer is a message from the plugin.
type answer struct {
	*pb.ToGateway
	chunk mem.BufferSlice
}

// open sends the beginning of tx to the plugin that runs, or to the next one
// if that has not taken any of it.
func (h *Host) open(ctx context.Context, tx *backends.DataContext) (*call, error) {
	began := time.Now()
	waiting, cancel := context.WithTimeoutCause(ctx, h.times.patience, errNotRunning)
	defer cancel()
	r, err := h.plugin(waiting, nil)
	if err != nil {
		return nil, ended(ctx, began, err)
	}
	first := frame{message: &pb.ToPlugin{Transaction: transactionToWire(tx), Last: tx.Size <= int64(r.chunk)}}
	defer func() { first.chunk.Free() }()
	if tx.Size > 0 {
		if first.chunk, err = readChunk(tx.Body, int(min(tx.Size, int64(r.chunk)))); err != nil {
			r.done()
			return nil, fmt.Errorf("read the message: %w", err)
		}
	}
	for {
		c := &call{tx: tx, caller: ctx, began: began, plugin: r, sent: make(chan struct{}), pending: map[int]bool{}}
		c.ctx, c.cancel = context.WithCancelCause(ctx)
		if err = c.begin(r, &first); err == nil {
			go c.send(tx.Size-int64(first.chunk.Len()), r.chunk)
			return c, nil
		}
		explained := c.explain(err)
		c.cancel(nil)
		r.done()
		if !vanished(ctx, err) {
			return nil, explained
		}
		r.doubt()
		if r, err = h.plugin(waiting, r); err != nil {
			return nil, ended(ctx, began, err)
		}
	}
}

// ended returns the error of ctx if it has ended, else err.
func ended(ctx context.Context, began time.Time, err error) error {
	if ctx.Err() != nil {
		return endOf(ctx, began)
	}
	return err
}

// endOf returns the error of a ctx that has ended.
func endOf(ctx context.Context, began time.Time) error {
	if ctx.Err() != context.DeadlineExceeded {
		return ctx.Err()
	}
	if deadline, ok := ctx.Deadline(); ok {
		return noAnswer(deadline.Sub(began))
	}
	return noAnswer(time.Since(began))
}

// noAnswer is a context.DeadlineExceeded that tells how long the wait was.
type noAnswer time.Duration

func (e noAnswer) Error() string {
	return fmt.Sprintf("no answer within %v", time.Duration(e).Round(10*time.Millisecond))
}

func (e noAnswer) Unwrap() error { return context.DeadlineExceeded }

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

// begin sends the first message. If its error says that the plugin vanished,
// none of it has left.
func (c *call) begin(r *running, first *frame) (err error) {
	if c.stream, err = r.plugin.Deliver(c.ctx); err != nil {
		return err
	}
	if err = c.stream.SendMsg(first); err == io.EOF {
		// The stream was at its end before. Why, is there to be received.
		if _, e := c.stream.Recv(); e != nil {
			err = e
		}
	}
	return err
}

// send sends the rest of the message.
func (c *call) send(rest int64, chunk int) {
	defer close(c.sent)
	for message := (&pb.ToPlugin{}); rest > 0; {
		data, err := readChunk(c.tx.Body, int(min(rest, int64(chunk))))
		rest -= int64(data.Len())
		if err != nil {
			data.Free()
			c.cancel(fmt.Errorf("read the message, %d octets before its end: %w", rest, err))
			return
		}
		message.Last = rest == 0
		err = c.stream.SendMsg(&frame{message: message, chunk: data})
		data.Free()
		if err != nil {
			return // it is received, too
		}
	}
	c.stream.CloseSend()
}

// receive handles answers until the backend has returned, and returns what it
// has returned. The other error is of the plugin or the protocol.
func (c *call) receive() (result, err error) {
	for {
		a, err := c.next()
		switch {
		case err != nil:
			return nil, err
		case a.First:
			if err := c.replace(a); err != nil {
				return nil, err
			}
		case a.hasMessage():
			return nil, errors.New("protocol: a chunk without a first one")
		case a.Returned != nil:
			c.returned = true
			return returnedFromWire(a.Returned, c.tx)
		}
	}
}

// receiveLate handles answers until every recipient that was started has its
// status.
func (c *call) receiveLate() error {
	for len(c.pending) > 0 {
		a, err := c.next()
		if err == nil && (a.hasMessage() || a.Returned != nil) {
			err = errors.New("protocol: more than statuses after returned")
		}
		if err != nil {
			return err
		}
	}
	c.end()
	return nil
}

func (a *answer) hasMessage() bool { return a.First || a.Last || len(a.chunk) > 0 }

// next receives an answer and applies what it says of recipients.
func (c *call) next() (*answer, error) {
	if a := c.held; a != nil {
		c.held = nil
		return a, nil
	}
	message := &pb.ToGateway{}
	f := frame{message: message}
	if err := c.stream.RecvMsg(&f); err != nil {
		return nil, c.explain(err)
	}
	a := &answer{message, f.chunk}
	if a.Returned != nil && a.hasMessage() {
		return nil, errors.New("protocol: returned together with a chunk")
	}
	return a, c.recipients(message)
}

func (c *call) recipients(m *pb.ToGateway) error {
	for _, i := range m.Started {
		if err := c.start(int(i)); err != nil {
			return err
		}
	}
	if m.Digest != nil {
		d, err := digestFromWire(m.Digest)
		if err != nil {
			return err
		}
		c.tx.Wrote(d)
	}
	for _, s := range m.Statuses {
		if err := c.decide(int(s.GetRecipient()), s.GetStatus()); err != nil {
			return err
		}
	}
	if m.SmtpResponse != nil {
		s, err := statusFromWire(m.SmtpResponse)
		if err != nil {
			return err
		}
		c.tx.SetSMTPResponse(s)
	}
	return nil
}

// maxIgnored is how many answers that do not count a plugin may give for one
// transaction. Each of them is logged.
const maxIgnored = 10

// heed keeps book of answers that do not count: second ones, and those for
// recipients that do not exist.
func (c *call) heed(counts bool) error {
	if counts {
		return nil
	}
	if c.ignored++; c.ignored > maxIgnored {
		return fmt.Errorf("protocol: more than %d answers that do not count", maxIgnored)
	}
	return nil
}

func (c *call) start(i int) error {
	if c.returned {
		return errors.New("protocol: a delivery was started after returned")
	}
	if err := c.heed(c.tx.Undecided(i) && !c.pending[i]); err != nil {
		return err
	}
	if c.tx.Undecided(i) {
		c.pending[i] = true
	}
	// fail decides what is pending at the end of the caller's ctx.
	c.tx.StartDelivery(context.WithoutCancel(c.caller), i)
	return nil
}

func (c *call) decide(i int, wire *pb.Status) error {
	s, err := statusFromWire(wire)
	if err != nil {
		return err
	}
	if err := c.heed(c.tx.Undecided(i)); err != nil {
		return err
	}
	delete(c.pending, i)
	if c.returned && len(c.pending) == 0 {
		c.end() // the last status gives tx.Body away
	}
	c.tx.SetStatus(i, s)
	return nil
}

// replace hands a message, which begins with a, to tx. One that is not
// finished is forgotten.
func (c *call) replace(a *answer) error {
	var failed error
	var last bool
	message := chunkReader{next: func() (_ mem.BufferSlice, err error) {
		if last {
			return nil, io.EOF
		}
		if a == nil {
			if a, err = c.next(); err != nil {
				failed = err
				return nil, err
			}
			if a.First || a.Returned != nil {
				c.held = a
				return nil, errors.New("the plugin has given up the message")
			}
		}
		chunk := a.chunk
		last, a = a.Last, nil
		return chunk, nil
	}}
	defer message.chunk.Close()
	err := c.tx.ReplaceMessage(&message)
	if failed != nil {
		return failed
	}
	if c.held != nil {
		return nil
	}
	return err
}

// end ends the stream, and waits until nobody reads tx.Body.
func (c *call) end() {
	c.cancel(nil)
	<-c.sent
}

// fail ends the stream and decides the recipients that were started.
func (c *call) fail(err error) {
	c.end()
	crash, crashed := errors.AsType[*backends.CrashError](err)
	for i := range c.pending {
		if c.tx.Undecided(i) {
			if crashed {
				c.tx.Crashed(i, crash)
			}
			c.tx.SetStatus(i, backends.StatusOf(err))
		}
	}
}

// explain says why the stream has ended.
func (c *call) explain(err error) error {
	cause := context.Cause(c.ctx)
	switch {
	case c.caller.Err() != nil: // it is the cause then
	case cause != nil:
		return cause // of send
	case err == nil || err == io.EOF:
		return errors.New("protocol: the call has ended without an answer")
	}
	return lost(c.caller, c.began, c.plugin, err)
}

// errVanished is the error of a call whose plugin is gone.
type errVanished struct{ plugin *running }

func (e errVanished) Error() string {
	return fmt.Sprintf("%v has ended, or has closed its socket", e.plugin)
}

// crash makes an error a CrashError if it came of the end of the plugin, which
// nobody wanted.
func (h *Host) crash(r *running, err error) error {
	if _, ok := errors.AsType[errVanished](err); !ok || r.process == nil {
		return err
	}
	r.doubt()
	patience := time.NewTimer(crashTime)
	defer patience.Stop()
	select {
	case <-r.stopped:
	case <-patience.C: // it lives, without its socket
		return err
	}
	if h.ctx.Err() != nil {
		return err
	}
	return &backends.CrashError{Err: fmt.Errorf("%v has ended: %s", r, r.how()), Output: r.words.all()}
}

// crashTime is how long the end of a plugin may take to be noticed.
const crashTime = time.Second

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
