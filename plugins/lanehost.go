package plugins

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxLanes is how many connections a plugin has at most. Transactions
	// beyond take the stream of gRPC.
	maxLanes = 512

	// laneIdle is after how long without a transaction a connection is closed.
	laneIdle = 30 * time.Second

	// laneOpening is how long a plugin has to take a new connection, and
	// laneRetry how long none is tried after it did not.
	laneOpening = time.Second
	laneRetry   = 10 * time.Second
)

// A lane is the gateway's end of the connections to one process.
type lane struct {
	log  *slog.Logger
	path string
	uid  uint32 // of the process
	pid  int

	mu     sync.Mutex
	idle   []*laneLink        // the one that was used last is the last
	open   map[*laneLink]bool // whether the connection is made
	retry  time.Time          // there is no new connection before
	closed bool               // there is no new transaction
	vigil  vigil
	left   chan struct{} // closed when closed is set and open is empty
}

// A laneLink is one of the connections.
type laneLink struct {
	laneConn
	lane   *lane
	number uint32    // of the last transaction
	since  time.Time // it was free; zero until it has been
	abort  func()    // closes it

	// Of the transaction at hand.
	call   *call
	head   *[]byte // with the envelope, until it has left
	sent   func()  // free
	answer answer
	room   answerRoom
}

// openLane connects to the lane that the plugin announces, if it does. A plugin
// whose lane does not work still has gRPC.
func (r *running) openLane(ctx context.Context, log *slog.Logger, features []string) {
	if r.process == nil {
		return // it was started by hand, and has no directory
	}
	path := laneSocket(r.process.sockets, features)
	if path == "" {
		return
	}
	uid := uint32(os.Geteuid())
	if user := r.process.command.Sandbox.User; user != nil {
		uid = user.Uid
	}
	l := newLane(log.With(r.id()), path, uid, r.process.pid)
	if link := l.take(ctx); link != nil {
		l.put(link)
		r.lane = l
	}
}

func newLane(log *slog.Logger, path string, uid uint32, pid int) *lane {
	return &lane{log: log, path: path, uid: uid, pid: pid, open: map[*laneLink]bool{}, left: make(chan struct{})}
}

// take returns a connection that is free, or a new one, or nil if there can be
// none.
func (l *lane) take(ctx context.Context) *laneLink {
	l.mu.Lock()
	if n := len(l.idle); n > 0 {
		link := l.idle[n-1]
		l.idle = l.idle[:n-1]
		link.awake = l.vigil.next(len(l.open) - n)
		l.mu.Unlock()
		return link
	}
	link := &laneLink{lane: l}
	may := !l.closed && len(l.open) < maxLanes && (l.retry.IsZero() || time.Now().After(l.retry))
	if may {
		l.open[link] = false
	}
	l.mu.Unlock()
	if !may {
		return nil
	}
	if err := link.connect(ctx); err != nil {
		l.forget(link)
		if ctx.Err() == nil {
			l.failed(err)
		}
		return nil
	}
	if !l.made(link) {
		l.drop(link)
		return nil
	}
	return link
}

// made notes that the connection is there for close to end it. It reports false if
// nobody may use it.
func (l *lane) made(link *laneLink) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[link] = true
	return !l.closed
}

// failed notes that there was no new connection.
func (l *lane) failed(err error) {
	if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT) { // it has ended
		l.log.Info("backend", "event", "lane", "error", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retry = time.Now().Add(laneRetry)
}

// connect waits until the plugin says that it has taken the connection: one that
// has no descriptors left would leave it in the queue of its socket.
func (k *laneLink) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, laneOpening)
	defer cancel()
	var conn net.Conn
	var err error
	other := as(k.lane.uid, func() { conn, err = new(net.Dialer).DialContext(ctx, "unix", k.lane.path) })
	if err = cmp.Or(other, err); err != nil {
		return err
	}
	if err := k.lane.checkPeer(conn.(*net.UnixConn)); err != nil {
		conn.Close()
		return err
	}
	if k.laneConn, err = newLaneConn(conn.(*net.UnixConn)); err != nil {
		return err
	}
	k.abort, k.sent = func() { k.Close() }, k.free
	stop := context.AfterFunc(ctx, k.abort)
	f, err := k.frame(0)
	if err == nil && f != (laneFrame{kind: laneEnd}) {
		err = fmt.Errorf("protocol: a connection begins with the frame %v", f)
	}
	if !stop() && err == nil {
		err = ctx.Err() // abort closes it, if it has not yet
	}
	if err != nil {
		k.Close()
		k.release()
	}
	return err
}

// checkPeer makes sure that the plugin itself is at the other end.
func (l *lane) checkPeer(conn *net.UnixConn) error {
	peer, err := peerOf(conn)
	if err != nil {
		return err
	}
	if int(peer.Pid) != l.pid || peer.Uid != l.uid {
		return fmt.Errorf("%s is of pid %d and uid %d, want %d and %d", l.path, peer.Pid, peer.Uid, l.pid, l.uid)
	}
	return nil
}

// free gives back what has left.
func (k *laneLink) free() {
	if k.head != nil {
		chunks.Put(k.head)
		k.head = nil
	}
	k.call.free()
}

// put takes a connection back that is free.
func (l *lane) put(link *laneLink) {
	link.release()
	link.call, link.answer = nil, answer{}
	link.room.clear()
	link.since = time.Now()
	l.mu.Lock()
	closed := l.closed
	if link.awake {
		l.vigil.was(link.slow)
		link.slow = false
	}
	if !closed {
		l.idle = append(l.idle, link)
	}
	l.mu.Unlock()
	if closed {
		l.drop(link)
	}
}

// drop closes a connection that nobody uses.
func (l *lane) drop(link *laneLink) {
	link.Close()
	link.release()
	l.forget(link)
}

func (l *lane) forget(link *laneLink) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, link)
	l.noteLeft()
}

// noteLeft tells drain when no connection is left. The caller holds l.mu.
func (l *lane) noteLeft() {
	if l.closed && len(l.open) == 0 && l.left != nil {
		close(l.left)
		l.left = nil
	}
}

// closeIdle closes the connections that have had nothing to do since then.
func (l *lane) closeIdle(since time.Time) {
	l.mu.Lock()
	n := 0
	for n < len(l.idle) && l.idle[n].since.Before(since) {
		n++
	}
	old := slices.Clone(l.idle[:n])
	l.idle = slices.Delete(l.idle, 0, n)
	l.mu.Unlock()
	for _, link := range old {
		l.drop(link)
	}
}

// look has those who wait for an answer look once more. A plugin may have shut down its
// direction of a connection while that was free, which exchange overlooks.
func (l *lane) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for link, made := range l.open {
		if made {
			link.look()
		}
	}
}

// drain waits until what a plugin that has ended wrote to its connections is
// read, or until ctx ends. There are no new transactions.
func (l *lane) drain(ctx context.Context) {
	left := l.left
	l.mu.Lock()
	l.closed = true
	l.noteLeft()
	l.mu.Unlock()
	l.closeIdle(time.Now())
	select {
	case <-left:
	case <-ctx.Done():
	}
}

// close ends all connections, and the transactions that they have.
func (l *lane) close() {
	l.mu.Lock()
	l.closed = true
	for link, made := range l.open {
		if made {
			link.Close()
		}
	}
	l.mu.Unlock()
	l.closeIdle(time.Now())
}
