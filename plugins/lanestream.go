package plugins

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// A laneStream carries one transaction over a connection of the lane, which is
// used again if all is well with it in the end.
type laneStream struct {
	*call
	link *laneLink
	stop func() bool // of what closes the connection at the end of the caller's ctx

	rest  int64 // of the mail message, which the plugin has to ask for
	asked bool
	ended bool // the plugin has sent its last answer
	over  bool // end was called
	free  bool // after end: the connection can be used again

	// Of the goroutine that sends what would not go at once.
	sending chan struct{} // closed when it has ended; nil if there was none
	unsent  bool          // something is lacking of what the plugin waits for
	cause   error         // why, if it is not the connection
}

// begin sends the beginning of a transaction. Where there is no connection for it,
// it returns neither stream nor error.
func (l *lane) begin(c *call) (stream, error) {
	for {
		if c.caller.Err() != nil {
			return nil, endOf(c.caller, c.began) // nobody waits for what would come of it
		}
		link := l.take(c.caller)
		if link == nil {
			return nil, nil
		}
		c.lane = laneStream{call: c, link: link, rest: c.rest()}
		err := c.lane.begin()
		if err == nil {
			return &c.lane, nil
		}
		// The plugin has closed the connection before, or has ended.
		c.lane.end()
		c.lane.release()
		if link.since.IsZero() && c.caller.Err() == nil {
			// It was a new one, and the next one would be no better.
			l.failed(err)
			return nil, nil
		}
	}
}

// begin returns an error if nothing has left.
func (s *laneStream) begin() error {
	link := s.link
	s.stop = context.AfterFunc(s.caller, link.abort)
	link.number++
	link.call, link.head = s.call, chunks.Get(smallBuffer)
	head := appendTransaction((*link.head)[:laneHeader], s.tx)
	laneFrame{laneTransaction, link.number, uint32(len(head) - laneHeader), laneTime(s.caller)}.appendTo(head[:0])
	var first []byte
	if s.first != nil {
		first = s.first[0].ReadOnlyData()
	}
	all := int64(len(head) + len(first))
	n, err := link.exchange(head, first, link.sent)
	if err != nil {
		return err // the beginning goes by another connection
	}
	if int64(n) < all {
		unsent := slices.Concat(head, first)[n:]
		s.send(bytes.NewReader(unsent), int64(len(unsent)))
		link.free()
	}
	return nil
}

// laneTime is what is left until the deadline of ctx, in milliseconds. Zero is no
// deadline.
func laneTime(ctx context.Context) uint32 {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	left := (time.Until(deadline) + time.Millisecond - 1) / time.Millisecond
	return uint32(min(max(left, 1), math.MaxUint32))
}

// send sends what r has, in a goroutine of its own: the gateway has to read
// answers while the plugin does not read.
func (s *laneStream) send(r io.Reader, left int64) {
	if s.sending != nil {
		<-s.sending
	}
	s.sending = make(chan struct{})
	s.unsent = true
	go func() {
		defer close(s.sending)
		for left > 0 {
			data, err := readChunk(r, int(min(left, maxChunk)))
			left -= int64(data.Len())
			if err != nil {
				s.cause = unread(left, err)
				s.link.Close()
			} else {
				_, err = s.link.Write(data[0].ReadOnlyData())
			}
			data.Free()
			if err != nil {
				return
			}
		}
		s.unsent = false
	}()
}

// receive returns the next answer.
func (s *laneStream) receive() (*answer, error) {
	for !s.ended {
		f, err := s.link.frame(maxMessage)
		switch {
		case err != nil:
			return nil, s.explain(err)
		case f.number != s.link.number || f.kind == laneTransaction || f.kind == laneMore && (s.asked || s.rest == 0):
			return nil, fmt.Errorf("protocol: a frame of kind %d for transaction %d, which is not expected", f.kind, f.number)
		case f.kind == laneMore:
			s.asked = true
			s.send(s.tx.Body, s.rest)
		default:
			return s.answer(f)
		}
	}
	return nil, errNoAnswer
}

// answer reads what follows the header of an answer.
func (s *laneStream) answer(f laneFrame) (*answer, error) {
	octets, err := s.link.message(f.length)
	if err != nil {
		return nil, s.explain(err)
	}
	s.ended = f.kind == laneEnd
	a := &s.link.answer
	a.chunk = nil
	var ok bool
	if a.ToGateway, ok = s.link.room.decode(octets); !ok {
		a.ToGateway = &pb.ToGateway{}
		if err := newCodec(maxParts).decode(octets, a.ToGateway); err != nil {
			return nil, fmt.Errorf("protocol: %s", cut(err.Error()))
		}
		if a.Chunk != nil {
			return nil, errors.New("protocol: a chunk within a message")
		}
	}
	if a.chunk, err = s.link.chunk(f.extra); err != nil {
		return nil, s.explain(err)
	}
	return a, nil
}

// end closes the connection unless the plugin has nothing more to say, and has all
// that it waits for.
func (s *laneStream) end() {
	if s.over {
		return
	}
	s.over = true
	s.free = s.stop() && s.ended && !s.failed && len(s.link.in) == 0
	if !s.free {
		s.link.Close()
	}
	if s.sending != nil {
		s.link.SetWriteDeadline(time.Unix(1, 0))
		<-s.sending
		s.link.SetWriteDeadline(time.Time{})
		s.free = s.free && !s.unsent
	}
}

// release gives the connection back.
func (s *laneStream) release() {
	if s.free {
		s.link.lane.put(s.link)
	} else {
		s.link.lane.drop(s.link)
	}
}

// explain says why nothing can be read. Nothing will be: who waits for that need not
// wait until all that came of it is done.
func (s *laneStream) explain(err error) error {
	s.link.lane.forget(s.link)
	if s.caller.Err() != nil {
		return endOf(s.caller, s.began)
	}
	if s.sending != nil && errors.Is(err, net.ErrClosed) {
		<-s.sending
		if s.cause != nil {
			return s.cause
		}
	}
	if _, lost := errors.AsType[unix.Errno](err); lost || errors.Is(err, net.ErrClosed) || err == io.EOF || err == io.ErrUnexpectedEOF {
		// The plugin gives the transaction up at the same deadline, and its timer
		// may be the first.
		if deadline, ok := s.caller.Deadline(); ok && !time.Now().Before(deadline) {
			return noAnswer(deadline.Sub(s.began))
		}
		return errVanished{s.plugin}
	}
	return err
}
