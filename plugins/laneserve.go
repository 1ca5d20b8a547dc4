package plugins

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/mem"
	protobuf "google.golang.org/protobuf/proto"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// laneName is the socket of the plugins of this package.
const laneName = "lane"

// A laneServer is the plugin's end of the lane.
type laneServer struct {
	server   *server
	listener *net.UnixListener
	hangups  *hangups
	gateway  int // its pid
	most     int64
	open     atomic.Int64
}

// laneless is set in tests of the stream of gRPC.
var laneless bool

// listenLane makes the socket of the lane beside that of gRPC, and serves it.
func listenLane(s *server) error {
	path := filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), laneName)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	h, err := newHangups()
	if err != nil {
		listener.Close()
		return err
	}
	l := &laneServer{server: s, listener: listener, hangups: h, gateway: os.Getppid(), most: lanesOfPlugin()}
	go h.watch()
	go l.accept()
	go wakeMonitor()
	return nil
}

// lanesOfPlugin is how many connections leave the most of its descriptors to the
// backend.
func lanesOfPlugin() int64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return maxLanes
	}
	return int64(min(limit.Cur/12, maxLanes)) // each takes three
}

func (l *laneServer) accept() {
	for {
		conn, err := l.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// No descriptors are left. The gateway does not wait for long.
			slog.Warn("lane", "error", err)
			time.Sleep(laneOpening)
			continue
		}
		if l.open.Add(1) > l.most {
			err = errors.New("too many connections")
		} else {
			err = l.checkPeer(conn)
		}
		if err != nil {
			l.open.Add(-1)
			conn.Close()
			continue
		}
		go l.serve(conn)
	}
}

// checkPeer makes sure that the gateway itself is at the other end.
func (l *laneServer) checkPeer(conn *net.UnixConn) error {
	if err := checkUser(conn, uint32(os.Geteuid())); err != nil {
		return err
	}
	peer, err := peerOf(conn)
	if err == nil && int(peer.Pid) != l.gateway {
		err = fmt.Errorf("peer on the lane has the pid %d", peer.Pid)
	}
	return err
}

// A laneServed is a connection in the plugin. It takes one transaction after the
// other.
type laneServed struct {
	laneConn
	number uint32          // of the transaction at hand
	id     int32           // in hangups
	end    []byte          // the last frame of a transaction, to be written before the next one is waited for
	under  *sync.WaitGroup // of the server, while a transaction is under way
	ctx    atomic.Pointer[laneContext]
	gone   atomic.Bool // the gateway has closed it
}

// serve serves a connection until the gateway closes it, or until something is
// wrong with it.
func (l *laneServer) serve(conn *net.UnixConn) {
	defer l.open.Add(-1)
	err := l.serveAll(conn)
	if !slices.ContainsFunc(laneEnds, func(end error) bool { return errors.Is(err, end) }) {
		slog.Warn("lane", "error", err)
	}
}

// laneEnds are the errors of a connection that the gateway has closed: hungUp may
// be the first to see it.
var laneEnds = []error{io.EOF, errGone, net.ErrClosed, unix.EPIPE, unix.ECONNRESET}

func (l *laneServer) serveAll(conn *net.UnixConn) (err error) {
	c := &laneServed{}
	if c.laneConn, err = newLaneConn(conn); err != nil {
		return err
	}
	defer c.Close()
	defer c.release()
	defer l.hangups.remove(c)
	if err := l.hangups.add(c); err != nil {
		return err
	}
	defer c.leave()
	c.end, c.sent = laneFrame{kind: laneEnd}.appendTo(nil), c.leave
	for {
		if c.buffer != nil && cap(*c.buffer) > maxChunk && len(c.in) == 0 {
			c.release() // few envelopes are that large
		}
		if len(c.end) > 0 {
			n, err := c.exchange(c.end, nil, c.sent)
			if err == nil && n < len(c.end) {
				_, err = c.Write(c.end[n:])
			}
			if err != nil {
				return err
			}
			if c.end = c.end[:0]; cap(c.end) > smallBuffer {
				c.end = nil
			}
		}
		c.leave()
		if err := l.next(c); err != nil {
			return err
		}
	}
}

// errGone is the error of a connection that is not used again, without anything
// being wrong.
var errGone = errors.New("the transaction was given up")

// next handles the next transaction.
func (l *laneServer) next(c *laneServed) error {
	f, err := c.frame(maxTransaction)
	if err != nil {
		return err
	}
	if c.number++; f.kind != laneTransaction || f.number != c.number {
		return fmt.Errorf("protocol: a frame of kind %d for transaction %d, want %d", f.kind, f.number, c.number)
	}
	octets, err := c.message(f.length)
	if err != nil {
		return err
	}
	tx, ok := decodeTransaction(octets)
	if !ok {
		wire := &pb.Transaction{}
		if err := protobuf.Unmarshal(octets, wire); err != nil {
			return err
		}
		tx = transactionFromWire(wire)
	}
	if tx.Size < 0 {
		return fmt.Errorf("protocol: a message of %d octets", tx.Size)
	}
	backend, err := l.server.enter()
	if err != nil {
		return err
	}
	c.under = &l.server.calls
	t := &struct { // in one piece
		ctx    laneContext
		body   laneBody
		outlet laneOutlet
	}{}
	ctx, body, o := &t.ctx, &t.body, &t.outlet
	ctx.begin(tx, f.extra)
	defer ctx.end()
	c.ctx.Store(ctx)
	if c.gone.Load() {
		return errGone
	}
	body.conn, body.left, body.here = c, tx.Size, min(tx.Size, laneFirst)
	tx.Body = body
	o.conn, o.body = c, body
	handle(ctx, backend, tx, o)
	if !o.ended {
		c.Close() // who still reads the message is not to wait
		body.discard()
		return errGone
	}
	return body.discard()
}

// leave notes that the transaction has ended, if one was under way.
func (c *laneServed) leave() {
	if c.under != nil {
		c.under.Done()
		c.under = nil
	}
}

// A laneOutlet writes answers to a connection. Its user calls send one at a time.
type laneOutlet struct {
	conn  *laneServed
	body  *laneBody
	ended bool // the last answer was written, or will be
}

func (o *laneOutlet) statuses(recipients []int, s backends.Status, last bool) (<-chan struct{}, error) {
	buffer := chunks.Get(laneHeader)
	defer chunks.Put(buffer)
	octets := appendStatuses(*buffer, recipients, s)
	if last {
		o.body.close()
	}
	return nil, o.write(octets, nil, last)
}

// send leaves the end to be written when the next transaction is waited for.
func (o *laneOutlet) send(m *pb.ToGateway, chunk mem.BufferSlice, last bool) error {
	buffer := chunks.Get(laneHeader)
	defer chunks.Put(buffer)
	octets, err := appendAnswer(*buffer, m)
	if err != nil {
		return err
	}
	if last && o.body.close() {
		o.head(octets, 0, last)
		o.conn.end, o.ended = append(o.conn.end, octets...), true
		return nil
	}
	var body []byte
	if chunk.Len() > 0 {
		body = chunk[0].ReadOnlyData()
	}
	return o.write(octets, body, last)
}

// write writes a message, in front of which there is room for the header, and a
// chunk.
func (o *laneOutlet) write(octets, chunk []byte, last bool) error {
	o.head(octets, len(chunk), last)
	err := o.conn.write(octets, chunk)
	if err != nil {
		o.conn.hungUp()
	}
	o.ended = last && err == nil
	return err
}

// head fills in the header of an answer.
func (o *laneOutlet) head(octets []byte, chunk int, last bool) {
	f := laneFrame{laneAnswer, o.conn.number, uint32(len(octets) - laneHeader), uint32(chunk)}
	if last {
		f.kind = laneEnd
	}
	f.appendTo(octets[:0])
}

// A laneBody is the mail message. Its first part comes with the transaction, and
// the rest if somebody wants to read it.
type laneBody struct {
	conn *laneServed

	mu   sync.Mutex // of who reads
	left int64      // octets that were not read
	here int64      // of these, octets that come unasked, or were asked for

	asking sync.Mutex
	over   bool // the transaction has ended
}

var errBodyOver = errors.New("the transaction has ended")

func (b *laneBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.hasEnded():
		return 0, errBodyOver
	case b.left == 0:
		return 0, io.EOF
	case b.here == 0:
		if err := b.ask(); err != nil {
			return 0, err
		}
		b.here = b.left
	}
	return b.read(p)
}

func (b *laneBody) hasEnded() bool {
	b.asking.Lock()
	defer b.asking.Unlock()
	return b.over
}

// ask asks for the rest, but never after the last answer.
func (b *laneBody) ask() error {
	b.asking.Lock()
	defer b.asking.Unlock()
	if b.over {
		return errBodyOver
	}
	_, err := b.conn.Write(laneFrame{kind: laneMore, number: b.conn.number}.appendTo(nil))
	return err
}

func (b *laneBody) read(p []byte) (int, error) {
	n, err := b.conn.read(p[:min(int64(len(p)), b.here)])
	b.here -= int64(n)
	b.left -= int64(n)
	return n, err
}

// WriteTo has io.Copy read large pieces.
func (b *laneBody) WriteTo(w io.Writer) (n int64, err error) {
	buffer := chunks.Get(maxChunk)
	defer chunks.Put(buffer)
	for {
		more, err := b.Read(*buffer)
		if more > 0 {
			written, e := w.Write((*buffer)[:more])
			n += int64(written)
			if e != nil {
				return n, e
			}
		}
		switch err {
		case nil:
		case io.EOF:
			return n, nil
		default:
			return n, err
		}
	}
}

// close ends reading. It reports false if there is something to discard, or may be.
func (b *laneBody) close() bool {
	b.asking.Lock()
	b.over = true
	b.asking.Unlock()
	if !b.mu.TryLock() {
		return false // somebody reads
	}
	defer b.mu.Unlock()
	return b.here == 0
}

// discard ends reading, and reads what comes and nobody has read.
func (b *laneBody) discard() error {
	b.close()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.here == 0 {
		return nil
	}
	buffer := chunks.Get(maxChunk)
	defer chunks.Put(buffer)
	for b.here > 0 {
		if _, err := b.read(*buffer); err != nil {
			return errGone // the gateway does not send the rest
		}
	}
	return nil
}
