package gateway

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mailgw/mailgw/internal/nowait"
)

// A socket is the connection to a client. What goes without waiting is nowait's, and
// what does not waits in Go's poller, with the deadlines that Conn has. Only one Read
// or Write is under way at a time.
type socket struct {
	net.Conn
	raw syscall.RawConn

	// Of the call under way, kept so that it allocates nothing.
	p     []byte // to read into, or what is not written yet
	n     int    // read
	err   error
	steps struct {
		read, write func(fd uintptr) (done bool)
		writeNow    func(fd uintptr)
	}
}

// newSocket returns a *socket, or c itself if the system does not know of it.
func newSocket(c net.Conn) net.Conn {
	known, ok := c.(syscall.Conn)
	if !ok {
		return c
	}
	raw, err := known.SyscallConn()
	if err != nil {
		return c
	}
	s := &socket{Conn: c, raw: raw}
	s.steps.read, s.steps.write = s.read, s.write
	s.steps.writeNow = func(fd uintptr) { s.write(fd) }
	return s
}

func (s *socket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.p, s.n, s.err = p, 0, nil
	err := s.raw.Read(s.steps.read)
	s.p = nil
	switch {
	case err != nil:
		return 0, err
	case s.err != nil:
		return 0, os.NewSyscallError("read", s.err)
	case s.n == 0:
		return 0, io.EOF
	}
	return s.n, nil
}

func (s *socket) read(fd uintptr) (done bool) {
	s.n, s.err = nowait.Read(fd, s.p)
	return s.err != unix.EAGAIN
}

func (s *socket) Write(p []byte) (int, error) {
	s.p, s.err = p, nil
	return s.wrote(p, s.raw.Write(s.steps.write))
}

// writeNow writes what goes without waiting, whatever the deadline.
func (s *socket) writeNow(p []byte) (int, error) {
	s.p, s.err = p, nil
	return s.wrote(p, s.raw.Control(s.steps.writeNow))
}

func (s *socket) write(fd uintptr) (done bool) {
	for len(s.p) > 0 {
		n, err := nowait.Write(fd, s.p)
		if err != nil {
			s.err = err
			return err != unix.EAGAIN
		}
		s.p = s.p[n:]
	}
	return true
}

// wrote returns what came of writing p.
func (s *socket) wrote(p []byte, err error) (int, error) {
	n := len(p) - len(s.p)
	s.p = nil
	if n < len(p) && err == nil && s.err != unix.EAGAIN {
		err = os.NewSyscallError("write", s.err)
	}
	return n, err
}
