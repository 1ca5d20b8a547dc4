package gateway

import (
	"bufio"
	"crypto/tls"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// How a session waits for its client. A deadline of a socket costs a timer, so
// that it is not set for every line, but moved when it comes and the client has
// been heard since. A session that waits for long has no buffers.

const (
	// readSize is what is read at once: a small message as a whole.
	readSize = 16 << 10

	// mostSaid is how many octets of replies wait to be sent together.
	mostSaid = 4 << 10

	// firstSaid is room for the replies to a small message.
	firstSaid = 512

	// restAfter is for how long a session that waits has buffers.
	restAfter = 50 * time.Millisecond
)

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readSize) }}

// takeBuffers gives the session buffers for what it reads and says. That of the
// reader is put back by giveBuffers.
func (c *conn) takeBuffers() {
	c.said = make([]byte, 0, firstSaid)
	if longest := int(c.Limits.CommandLine); longest > readSize {
		c.r = bufio.NewReaderSize(c, longest)
		return
	}
	c.r = readers.Get().(*bufio.Reader)
	c.r.Reset(c)
}

func (c *conn) giveBuffers() {
	if c.r.Size() == readSize {
		c.r.Reset(nil)
		readers.Put(c.r)
	}
	c.r, c.said = nil, nil
}

// Read is what the buffered reader calls when it has nothing left. The
// client may be waiting for what was said, so that goes out first.
func (c *conn) Read(p []byte) (n int, err error) {
	if err := c.flush(); err != nil {
		return 0, err
	}
	err = c.patient(func() (err error) {
		n, err = c.stream.Read(p)
		return err
	})
	return n, err
}

// patient calls read, which reads from the socket or waits until it can be read,
// until the deadline. It sets that of the socket before.
func (c *conn) patient(read func() error) error {
	for {
		if err := c.arm(); err != nil {
			return err
		}
		err := read()
		if err == nil {
			return nil
		}
		if err = c.disarm(err); err != nil {
			return err
		}
	}
}

// arm sees to it that the socket has a deadline, and that it does not come too
// late.
func (c *conn) arm() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leaves() {
		return errClosing
	}
	if until := c.until(); c.armed.IsZero() || until.Before(c.armed) {
		c.armed = until
		c.socket.SetReadDeadline(until)
	}
	if _, ok := c.stream.(*tls.Conn); ok {
		// It writes while it reads, when the client asks for new keys.
		c.writable = c.deadline.Add(c.Limits.CommandTimeout)
		c.socket.SetWriteDeadline(c.writable)
	}
	return nil
}

// until returns when a wait is over. The caller holds c.mu.
func (c *conn) until() time.Time {
	if !c.rests.IsZero() && c.rests.Before(c.deadline) {
		return c.rests
	}
	return c.deadline
}

// errRest says that a session waits for long.
var errRest = errors.New("the client says nothing")

// disarm returns the error of a read, or nil if it only came too early to the
// deadline of the socket.
func (c *conn) disarm(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.leaves():
		return errClosing
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return err
	}
	c.armed = time.Time{}
	switch now := time.Now(); {
	case now.Before(c.until()):
		return nil
	case now.Before(c.deadline):
		return errRest
	}
	return err
}

// expect sets until when the client may take for what is read next.
func (c *conn) expect(deadline time.Time, waiting bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = deadline
	c.waiting = waiting
}

// await waits until there is something to read: without buffers from the time
// rests on.
func (c *conn) await(rests time.Time) error {
	c.rests = rests
	_, err := c.r.Peek(1)
	c.rests = time.Time{}
	if err == errRest {
		err = c.rest()
	}
	return err
}

// rest waits, without buffers, until there is something to read.
func (c *conn) rest() error {
	s, ok := c.socket.(*socket)
	if !ok {
		return nil
	}
	c.giveBuffers()
	defer c.takeBuffers()
	return c.patient(func() error { return s.raw.Read(isReadable) })
}

// isReadable reports whether a read would not block.
func isReadable(fd uintptr) bool { return isReady(fd, unix.POLLIN) }

// isReady reports whether one of the events has come, or none will.
func isReady(fd uintptr, events int16) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, 0)
	return n > 0 || err != nil && err != unix.EINTR
}

// takesMore reports whether the client takes what was said without being waited
// for: a socket that can be written has room for several times mostSaid.
func (c *conn) takesMore() bool {
	s, ok := c.socket.(*socket)
	if len(c.said) == 0 || !ok {
		return len(c.said) == 0
	}
	takes := true
	s.raw.Control(func(fd uintptr) { takes = isReady(fd, unix.POLLOUT) })
	return takes
}

// flush sends what was said. After an error nothing more is sent.
func (c *conn) flush() error {
	if !c.flushNow() {
		_, c.lost = c.write(c.said)
		c.said = c.said[:0]
	}
	return c.lost
}

// flushNow sends what goes without waiting for the client, which is nothing over TLS,
// and reports whether nothing is left. What became of a message is in the log before
// the client knows it.
func (c *conn) flushNow() bool {
	if len(c.said) > 0 && c.lost == nil {
		if c.tells {
			flushLog(c.log())
			c.tells = false
		}
		if s, ok := c.stream.(*socket); ok {
			var n int
			n, c.lost = s.writeNow(c.said)
			c.said = c.said[:copy(c.said, c.said[n:])]
		}
	}
	if c.lost != nil {
		c.said = c.said[:0]
	}
	return len(c.said) == 0
}

// write gives a client that does not read CommandTimeout, or half of it more.
func (c *conn) write(p []byte) (int, error) {
	if until := time.Now().Add(c.Limits.CommandTimeout); c.writable.Before(until) {
		c.writable = until.Add(c.Limits.CommandTimeout / 2)
		c.socket.SetWriteDeadline(c.writable)
	}
	return c.stream.Write(p)
}
