package plugins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"google.golang.org/grpc/mem"

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
	result, err := c.receive()
	switch {
	case err != nil:
		c.fail(err)
		h.done(c)
		return h.crash(c.plugin, err)
	case len(c.pending) == 0:
		c.stream.end()
		h.done(c)
	default:
		h.calls.Go(func() {
			defer h.done(c)
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

// done notes that a call has ended.
func (h *Host) done(c *call) {
	c.stream.release()
	c.plugin.done()
	h.leave()
}

// A call is a transaction on its way through the plugin.
type call struct {
	tx     *backends.DataContext
	caller context.Context // of Deliver
	began  time.Time
	plugin *running
	first  mem.BufferSlice // the beginning of the message, until it has left
	stream stream
	lane   laneStream // that is stream, if not the one of gRPC is

	// What the goroutine that receives knows.
	pending  map[int]bool // recipients that are started and have no status
	decided  int          // recipients that have one
	returned bool
	ignored  int
	held     *answer // was received too early
	failed   bool
}

// A stream carries one transaction to the plugin, and the answers back: that of
// Deliver, and those for the deliveries that are under way when Deliver returns.
// There are two kinds, which carry the same messages: that of gRPC, which all
// plugins have, and the lane.
type stream interface {
	// receive returns the next answer, which holds until the next call.
	receive() (*answer, error)

	// end ends the stream, and returns when nobody reads tx.Body any more. It
	// may be called again.
	end()

	// release gives back what the stream has, after its end. No answer holds
	// any more.
	release()
}

// An answer is a message from the plugin.
type answer struct {
	*pb.ToGateway
	chunk mem.BufferSlice
}

// pack reads the beginning of the message.
func (c *call) pack() (err error) {
	if c.tx.Size > 0 {
		c.first, err = readChunk(c.tx.Body, int(min(c.tx.Size, maxChunk)))
	}
	if err != nil {
		c.free()
		return fmt.Errorf("read the message: %w", err)
	}
	return nil
}

// rest is how much of the message follows the beginning.
func (c *call) rest() int64 { return c.tx.Size - int64(c.first.Len()) }

// free gives the beginning back.
func (c *call) free() {
	c.first.Free()
	c.first = nil
}

// open sends the beginning of tx to the plugin that runs, or to the next one
// if that has not taken any of it.
func (h *Host) open(ctx context.Context, tx *backends.DataContext) (*call, error) {
	c := &call{tx: tx, caller: ctx, began: time.Now()}
	r := h.idlest(nil)
	if r == nil {
		var err error
		if r, err = h.await(c, nil); err != nil {
			return nil, err
		}
	}
	err := c.pack()
	if err != nil {
		r.done()
		return nil, err
	}
	defer c.free()
	for {
		c.plugin = r
		if c.stream, err = r.begin(c); err == nil {
			return c, nil
		}
		r.done()
		if _, gone := errors.AsType[errVanished](err); !gone {
			return nil, err
		}
		r.doubt()
		if r, err = h.await(c, r); err != nil {
			return nil, err
		}
	}
}

// await waits for a plugin that runs, but for the one that has failed c.
func (h *Host) await(c *call, failed *running) (*running, error) {
	ctx, cancel := context.WithDeadlineCause(c.caller, c.began.Add(h.times.patience), errNotRunning)
	defer cancel()
	r, err := h.plugin(ctx, failed)
	if err != nil {
		return nil, ended(c.caller, c.began, err)
	}
	return r, nil
}

// begin sends the beginning of a transaction. If the error is errVanished,
// nothing of it has left.
func (r *running) begin(c *call) (stream, error) {
	if r.lane != nil {
		if s, err := r.lane.begin(c); s != nil || err != nil {
			return s, err
		}
	}
	return r.beginStream(c)
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
		return context.Cause(ctx)
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
	defer c.stream.end() // the end of the plugin is not known before
	for len(c.pending) > 0 {
		a, err := c.next()
		if err == nil && (a.hasMessage() || a.Returned != nil) {
			err = errors.New("protocol: more than statuses after returned")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *answer) hasMessage() bool { return a.First || a.Last || len(a.chunk) > 0 }

// next receives an answer and applies what it says of recipients.
func (c *call) next() (*answer, error) {
	if a := c.held; a != nil {
		c.held = nil
		return a, nil
	}
	a, err := c.stream.receive()
	if err != nil {
		return nil, err
	}
	if a.Returned != nil && a.hasMessage() {
		return nil, errors.New("protocol: returned together with a chunk")
	}
	return a, c.recipients(a.ToGateway)
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
	// The last status may be told at once.
	if m.SmtpResponse != nil {
		s, err := statusFromWire(m.SmtpResponse)
		if err != nil {
			return err
		}
		c.tx.SetSMTPResponse(s)
	}
	return c.decideAll(m.Statuses)
}

// decideAll decides the recipients of one message together.
func (c *call) decideAll(statuses []*pb.RecipientStatus) error {
	switch len(statuses) {
	case 0:
		return nil
	case 1: // most have one, for which nothing is to be allocated
		return c.decide(int(statuses[0].GetRecipient()), statuses[0].GetStatus())
	}
	if c.same(statuses) {
		s, err := statusFromWire(statuses[0].GetStatus())
		if err == nil {
			c.decided += len(statuses)
			c.tx.SetAll(s)
		}
		return err
	}
	return c.decideTogether(statuses)
}

// same reports whether statuses say the same of all recipients that are undecided,
// and of nobody else, and whether there is nothing more to be done about that.
func (c *call) same(statuses []*pb.RecipientStatus) bool {
	if len(c.pending) > 0 || len(statuses) != len(c.tx.Envelope.Recipients)-c.decided {
		return false
	}
	first, last := statuses[0].GetStatus(), -1
	for _, r := range statuses {
		i, s := int(r.GetRecipient()), r.GetStatus()
		if i <= last || s.GetText() != first.GetText() || s.GetEnhanced() != first.GetEnhanced() || s.GetCode() != first.GetCode() || !c.tx.Undecided(i) {
			return false
		}
		last = i
	}
	return true
}

func (c *call) decideTogether(statuses []*pb.RecipientStatus) (wrong error) {
	c.tx.Together(func() {
		for _, s := range statuses {
			if wrong = c.decide(int(s.GetRecipient()), s.GetStatus()); wrong != nil {
				return
			}
		}
	})
	return wrong
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
		if c.pending == nil {
			c.pending = map[int]bool{}
		}
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
	counts := c.tx.Undecided(i)
	if err := c.heed(counts); err != nil {
		return err
	}
	if counts {
		c.decided++
	}
	delete(c.pending, i)
	if c.returned && len(c.pending) == 0 {
		c.stream.end() // the last status gives tx.Body away
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

// fail ends the stream and decides the recipients that were started.
func (c *call) fail(err error) {
	c.failed = true
	c.stream.end()
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

// unread is the error of a message that lacks some octets.
func unread(octets int64, err error) error {
	return fmt.Errorf("read the message, %d octets before its end: %w", octets, err)
}

var errNoAnswer = errors.New("protocol: the call has ended without an answer")

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
	case <-r.ended:
	case <-patience.C: // it lives, without its socket
		return err
	}
	patience.Reset(crashTime)
	select {
	case <-r.stopped: // its last words are known
	case <-patience.C: // another process holds its output
	}
	if h.ctx.Err() != nil {
		return err
	}
	return &backends.CrashError{Err: fmt.Errorf("%v has ended: %s", r, r.how()), Output: r.words.all()}
}

// crashTime is how long the end of a plugin may take to be noticed.
const crashTime = time.Second
