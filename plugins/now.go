package plugins

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What goes over the lane is read and written by system calls of which the
// scheduler of Go is not told. It need not be: the sockets do not block. If it were,
// a process that had nothing to do would wake its monitor each time that there is
// something to do, which then looks every 20 microseconds whether the call has
// returned. That is a fifth of what a small message costs a plugin. The monitor
// has other duties, for which there is wakeMonitor.

// readNow reads what there is, and returns EAGAIN if that is nothing.
func readNow(fd uintptr, p []byte) (int, error) {
	for {
		n, _, err := syscall.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		switch err {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, err
	}
}

// writeNow writes as much of parts as there is room for, takes that away from them,
// and returns EAGAIN if there is none.
func writeNow(fd uintptr, parts *[2][]byte) (int, error) {
	var vector [2]unix.Iovec
	for i, part := range parts {
		vector[i].Base = unsafe.SliceData(part)
		vector[i].SetLen(len(part))
	}
	for {
		n, _, err := syscall.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&vector)), uintptr(len(vector)))
		switch err {
		case 0:
			first := min(int(n), len(parts[0]))
			parts[0], parts[1] = parts[0][first:], parts[1][int(n)-first:]
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, err
	}
}

// wakeMonitor has the monitor of Go's scheduler wake up each second, as it does for
// every timer. Without it, backends that compute without a pause on all processors
// could keep everything else from its turn for a minute.
func wakeMonitor() {
	for range time.Tick(time.Second) {
	}
}
