package plugins

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mailgw/mailgw/internal/nowait"
)

// A quietSocket is a unix socket that does not stand in the poller of Go's runtime.
// That one asks of every socket whether it can be written, too, so that a process
// would be woken each time that the other end has read what it sent. In its place
// stand two epolls: one that can be read when the socket can, and one that can be
// read when there is room to write, once somebody had to wait for that.
type quietSocket struct {
	fd                 int // used only in callbacks of the waits, for which Close waits
	readable, writable socketWait
	closing            sync.Once

	// Of Read, kept so that it allocates nothing.
	p    []byte
	n    int
	err  error
	step func(uintptr) bool
}

// A socketWait is an epoll with a socket in it. The callbacks of its RawConn are called
// again when one of the events has come.
type socketWait struct {
	syscall.RawConn
	file *os.File
}

// newQuietSocket takes the socket of conn, which it closes.
func newQuietSocket(conn *net.UnixConn) (_ *quietSocket, err error) {
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &quietSocket{fd: -1}
	closed := raw.Control(func(fd uintptr) {
		s.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(closed, err); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if s.readable, err = newSocketWait(s.fd, readEvents); err == nil {
		if s.writable, err = newSocketWait(s.fd, 0); err != nil {
			s.readable.file.Close()
		}
	}
	if err != nil {
		unix.Close(s.fd)
		return nil, err
	}
	s.step = s.readNow
	return s, nil
}

const readEvents = unix.EPOLLIN | unix.EPOLLRDHUP

func newSocketWait(fd int, events uint32) (w socketWait, err error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return w, os.NewSyscallError("epoll_create1", err)
	}
	unix.SetNonblock(epoll, true) // so that Go's poller takes it
	w.file = os.NewFile(uintptr(epoll), "epoll")
	err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events})
	if err == nil {
		w.RawConn, err = w.file.SyscallConn()
	}
	if err != nil {
		w.file.Close()
		return w, os.NewSyscallError("epoll_ctl", err)
	}
	return w, nil
}

// Read reads what there is, for which it waits. One goroutine does so at a time.
func (s *quietSocket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.p = p
	closed := s.readable.Read(s.step)
	s.p = nil
	switch {
	case closed != nil:
		return 0, net.ErrClosed
	case s.err != nil:
		return 0, os.NewSyscallError("read", s.err)
	case s.n == 0:
		return 0, io.EOF
	}
	return s.n, nil
}

func (s *quietSocket) readNow(uintptr) bool {
	s.n, s.err = nowait.Read(uintptr(s.fd), s.p)
	return s.err != unix.EAGAIN
}

// look has whoever waits to read look once more, if there is something. He is woken
// by events that are new, as all are of a socket that is new in its epoll.
func (s *quietSocket) look() {
	var err error
	s.readable.Control(func(epoll uintptr) {
		unix.EpollCtl(int(epoll), unix.EPOLL_CTL_DEL, s.fd, nil)
		err = unix.EpollCtl(int(epoll), unix.EPOLL_CTL_ADD, s.fd, &unix.EpollEvent{Events: readEvents})
	})
	if err != nil {
		s.Close() // nobody would be woken any more
	}
}

// Write writes p, and nothing of another goroutine comes between.
func (s *quietSocket) Write(p []byte) (int, error) {
	parts := [2][]byte{p}
	var err error
	over := s.writable.Read(func(epoll uintptr) (done bool) {
		done, err = s.writeNow(epoll, &parts)
		return done
	})
	return len(p) - len(parts[0]), s.lost(err, over)
}

// writeNow writes as much of parts as there is room for. It reports false if it is to
// be called again when there is more. It is for callbacks of writable.
func (s *quietSocket) writeNow(epoll uintptr, parts *[2][]byte) (done bool, err error) {
	for len(parts[0])+len(parts[1]) > 0 {
		_, err = nowait.Writev(uintptr(s.fd), parts)
		if err == unix.EAGAIN {
			// It looks for room from now on. To stop that with another
			// EPOLL_CTL_MOD would lose wake-ups: an event from before stays in the
			// epoll, out of which nobody takes it, and hides the next one.
			err = unix.EpollCtl(int(epoll), unix.EPOLL_CTL_MOD, s.fd, &unix.EpollEvent{Events: unix.EPOLLOUT})
			return err != nil, err
		}
		if err != nil {
			return true, err
		}
	}
	return true, nil
}

// lost returns the error of a write: its own, or that its callback was not called any
// more.
func (s *quietSocket) lost(err, over error) error {
	switch {
	case err != nil:
		return os.NewSyscallError("write", err)
	case errors.Is(over, os.ErrDeadlineExceeded):
		return over
	case over != nil:
		return net.ErrClosed
	}
	return nil
}

// SetWriteDeadline has writes end that wait then.
func (s *quietSocket) SetWriteDeadline(t time.Time) error { return s.writable.file.SetReadDeadline(t) }

// control calls f with the descriptor.
func (s *quietSocket) control(f func(fd int)) error {
	return s.readable.Control(func(uintptr) { f(s.fd) })
}

// Close may be called at any time, and again.
func (s *quietSocket) Close() error {
	s.closing.Do(func() {
		s.readable.file.Close()
		s.writable.file.Close()
		unix.Close(s.fd)
	})
	return nil
}
