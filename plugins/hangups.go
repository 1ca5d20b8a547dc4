package plugins

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// hangups tell that the gateway has closed a connection, even if what came before
// is not read yet.
type hangups struct {
	epoll int
	file  *os.File

	mu    sync.Mutex
	conns map[int32]*laneServed
	last  int32
}

func newHangups() (*hangups, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	unix.SetNonblock(fd, true) // a goroutine that waits for it needs no thread then
	return &hangups{epoll: fd, file: os.NewFile(uintptr(fd), "epoll"), conns: map[int32]*laneServed{}}, nil
}

// add watches c until it is closed.
func (h *hangups) add(c *laneServed) error {
	h.mu.Lock()
	h.last++
	c.id = h.last
	h.conns[c.id] = c
	h.mu.Unlock()
	var err error
	closed := c.control(func(fd int) {
		err = unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLET, Fd: c.id})
	})
	return errors.Join(closed, err)
}

func (h *hangups) remove(c *laneServed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.conns, c.id)
}

// watch returns when h.file is closed.
func (h *hangups) watch() {
	raw, err := h.file.SyscallConn()
	for events := make([]unix.EpollEvent, 64); err == nil; {
		n := 0
		err = raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events, 0)
			return n > 0
		})
		for _, e := range events[:max(n, 0)] {
			h.mu.Lock()
			c := h.conns[e.Fd]
			h.mu.Unlock()
			if c != nil {
				c.hungUp()
			}
		}
	}
}

// hungUp ends the transaction at hand: the gateway has closed the connection.
func (c *laneServed) hungUp() {
	c.gone.Store(true)
	c.Close() // somebody may wait to read or to write
	if ctx := c.ctx.Load(); ctx != nil {
		ctx.end()
	}
}
