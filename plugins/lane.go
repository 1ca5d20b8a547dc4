package plugins

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/mem"

	"github.com/mailgw/mailgw/internal/nowait"
)

// The lane carries transactions beside gRPC, at a fraction of the cost: over
// connections to a second socket of the plugin, one transaction at a time on
// each. What goes over it is the messages of plugin.proto in frames of our own,
// and the mail message as it is. docs/protocol.md has the layout.
//
// Connections are kept. What is wrong with one ends it, and with it the
// transaction that it has; the stream of gRPC is there for all that the lane
// cannot take.

// laneFeature and the name of a file, the socket, are the feature of a plugin
// that has a lane.
const laneFeature = "lane.v1="

// laneSocket returns the path of the socket that a plugin with its sockets in that
// directory announces, or "".
func laneSocket(directory string, features []string) string {
	for _, feature := range features {
		name, ok := strings.CutPrefix(feature, laneFeature)
		if ok && name != "" && name != "." && name != ".." && !strings.Contains(name, "/") {
			return filepath.Join(directory, name)
		}
	}
	return ""
}

// A laneFrame is the header of a frame. After it comes a message, and then a chunk
// or the beginning of the mail message.
type laneFrame struct {
	kind   laneKind
	number uint32 // of the transaction on this connection, from 1
	length uint32 // of the message
	extra  uint32 // of laneTransaction: milliseconds to its deadline, or zero; of answers: length of the chunk
}

type laneKind byte

const (
	laneTransaction laneKind = 1 + iota // to the plugin: a Transaction, and the first laneFirst octets of the mail message
	laneMore                            // to the gateway: send the rest of the mail message
	laneAnswer                          // to the gateway: a ToGateway, and its chunk
	laneEnd                             // to the gateway: likewise, the last one; the connection is free
)

const (
	laneHeader = 16

	// laneFirst is how much of the mail message a plugin gets unasked.
	laneFirst = maxChunk
)

// appendTo appends the header: the kind and three zeros, and the numbers in the
// order of networks.
func (f laneFrame) appendTo(b []byte) []byte {
	b = append(b, byte(f.kind), 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, f.number)
	b = binary.BigEndian.AppendUint32(b, f.length)
	return binary.BigEndian.AppendUint32(b, f.extra)
}

// parseLaneFrame parses a header. most bounds what follows it.
func parseLaneFrame(b []byte, most int) (f laneFrame, err error) {
	f = laneFrame{
		kind:   laneKind(b[0]),
		number: binary.BigEndian.Uint32(b[4:]),
		length: binary.BigEndian.Uint32(b[8:]),
		extra:  binary.BigEndian.Uint32(b[12:]),
	}
	follows := uint64(f.length)
	if f.kind != laneTransaction {
		follows += uint64(f.extra)
	}
	switch {
	case f.kind < laneTransaction || f.kind > laneEnd || b[1]|b[2]|b[3] != 0:
		return f, fmt.Errorf("protocol: unknown frame %x", b[:4])
	case f.kind == laneMore && follows != 0:
		return f, errors.New("protocol: a frame that is to be empty is not")
	case follows > uint64(most):
		return f, fmt.Errorf("protocol: a frame of %d octets, larger than max %d", follows, most)
	}
	return f, nil
}

// A laneConn reads and writes frames. One goroutine reads at a time.
type laneConn struct {
	*quietSocket
	buffer *[]byte // nil if nothing that was read is left
	in     []byte  // the part of it that was read and not taken

	// Of exchange and write, kept so that they allocate nothing.
	parts [2][]byte // that were not written
	sent  func()
	did   bool // write
	awake bool // it stays awake for a moment while it waits
	slow  bool // that was in vain
	wrote int
	err   error
	steps struct{ exchange, write func(fd uintptr) bool }
}

// newLaneConn takes the socket of conn, which it closes.
func newLaneConn(conn *net.UnixConn) (c laneConn, err error) {
	c.quietSocket, err = newQuietSocket(conn)
	return c, err
}

// write writes head and body. Nothing of another goroutine comes between them.
func (c *laneConn) write(head, body []byte) error {
	c.parts, c.err = [...][]byte{head, body}, nil
	if c.steps.write == nil {
		c.steps.write = c.writeParts
	}
	over := c.writable.Read(c.steps.write)
	c.parts = [2][]byte{}
	return c.lost(c.err, over)
}

func (c *laneConn) writeParts(epoll uintptr) (done bool) {
	done, c.err = c.writeNow(epoll, &c.parts)
	return done
}

// left is how much of the parts was not written.
func (c *laneConn) left() int { return len(c.parts[0]) + len(c.parts[1]) }

// exchange writes what goes without waiting. If that was all, it calls sent,
// waits until there is something to read, and reads it. So no attempt to read is
// in vain, and so the other end must have nothing to say before it has read what is
// written: that could have come unseen, until look. An error of reading comes again
// with the next read. It returns how much was written.
func (c *laneConn) exchange(head, body []byte, sent func()) (int, error) {
	c.parts = [...][]byte{head, body}
	c.sent, c.did, c.wrote, c.err = sent, false, 0, nil
	if c.steps.exchange == nil {
		c.steps.exchange = c.writeThenRead
	}
	over := c.readable.Read(c.steps.exchange)
	if !c.did {
		return 0, c.lost(nil, over)
	}
	return c.wrote, c.err
}

// writeThenRead is called, and again, after it has returned false, when there is
// something to read. What comes between its calls is not missed, because the poller
// was made ready before the first one.
func (c *laneConn) writeThenRead(uintptr) (done bool) {
	fd := uintptr(c.fd)
	if !c.did {
		c.did = true
		if c.wrote, c.err = nowait.Writev(fd, &c.parts); c.err == unix.EAGAIN {
			c.err = nil
		}
		all := c.left() == 0 && c.err == nil
		if all {
			c.sent()
		}
		c.parts = [2][]byte{}
		return !all || len(c.in) > 0 || c.awake && c.readSoon(fd)
	}
	return c.readNow(fd)
}

// readNow reports false if there is nothing to read.
func (c *laneConn) readNow(fd uintptr) bool {
	c.makeRoom(1)
	n, err := nowait.Read(fd, (*c.buffer)[:cap(*c.buffer)])
	c.in = (*c.buffer)[:n]
	return err != unix.EAGAIN
}

// readSoon is readNow, again and again for a moment.
func (c *laneConn) readSoon(fd uintptr) bool {
	for end := time.Now().Add(awakeFor); !c.readNow(fd); {
		if time.Now().After(end) {
			c.slow = true
			return false
		}
	}
	return true
}

// fill reads until there are n octets to take.
func (c *laneConn) fill(n int) error {
	if len(c.in) >= n {
		return nil
	}
	c.makeRoom(n)
	for len(c.in) < n {
		have := len(c.in)
		more, err := c.Read(c.in[have:cap(c.in)])
		c.in = c.in[:have+more]
		if err != nil {
			if have+more > 0 {
				err = unexpected(err)
			}
			return err
		}
	}
	return nil
}

// makeRoom moves what there is to the front of a buffer that n octets fit into.
func (c *laneConn) makeRoom(n int) {
	old := c.buffer
	if old == nil || cap(*old) < n {
		c.buffer = chunks.Get(n)
	}
	room := (*c.buffer)[:cap(*c.buffer)]
	c.in = room[:copy(room, c.in)]
	if old != nil && old != c.buffer {
		chunks.Put(old)
	}
}

// take takes n octets that are there. They hold until the next call of any method.
func (c *laneConn) take(n int) (octets []byte) {
	octets, c.in = c.in[:n], c.in[n:]
	return octets
}

// release gives the buffer back, of which nothing is left to take.
func (c *laneConn) release() {
	if c.buffer != nil {
		chunks.Put(c.buffer)
		c.buffer, c.in = nil, nil
	}
}

// frame reads a header.
func (c *laneConn) frame(most int) (laneFrame, error) {
	if err := c.fill(laneHeader); err != nil {
		return laneFrame{}, err
	}
	return parseLaneFrame(c.take(laneHeader), most)
}

// message reads n octets, which hold until the next call of any method.
func (c *laneConn) message(n uint32) ([]byte, error) {
	if err := c.fill(int(n)); err != nil {
		return nil, unexpected(err)
	}
	return c.take(int(n)), nil
}

// read reads like Read what has come first.
func (c *laneConn) read(p []byte) (int, error) {
	if len(c.in) > 0 {
		n := copy(p, c.in)
		c.in = c.in[n:]
		return n, nil
	}
	n, err := c.Read(p)
	return n, unexpected(err)
}

// chunk reads n octets into a buffer of their own.
func (c *laneConn) chunk(n uint32) (mem.BufferSlice, error) {
	if n == 0 {
		return nil, nil
	}
	chunk, err := readChunk(readerFunc(c.read), int(n))
	if err != nil {
		chunk.Free()
		return nil, err
	}
	return chunk, nil
}

// unexpected makes the end of the connection an error, where more was to come.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A readerFunc is an io.Reader.
type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
