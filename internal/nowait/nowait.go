//go:build !race

// Package nowait reads and writes sockets that do not block, by system calls of
// which the scheduler of Go is not told. It need not be: they return at once. If it
// were, a process that had nothing to do would wake its monitor each time that there
// is something to do, which then looks every 20 microseconds whether the call has
// returned. That is a fifth of what a small message costs a plugin.
//
// The functions are for the callbacks of a [syscall.RawConn], and return EAGAIN if
// they would have to wait. The monitor has other duties: see wakeMonitor in package
// plugins.
package nowait

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read reads what there is, of which p has to have room for some. It returns zero at
// the end.
func Read(fd uintptr, p []byte) (int, error) {
	return call(unix.SYS_READ, fd, unsafe.Pointer(&p[0]), len(p))
}

// Write writes as much of p, which is not empty, as there is room for.
func Write(fd uintptr, p []byte) (int, error) {
	return call(unix.SYS_WRITE, fd, unsafe.Pointer(&p[0]), len(p))
}

// Writev writes as much of parts as there is room for, and takes that away from
// them.
func Writev(fd uintptr, parts *[2][]byte) (int, error) {
	var vector [2]unix.Iovec
	for i, part := range parts {
		vector[i].Base = unsafe.SliceData(part)
		vector[i].SetLen(len(part))
	}
	n, err := call(unix.SYS_WRITEV, fd, unsafe.Pointer(&vector), len(vector))
	first := min(n, len(parts[0]))
	parts[0], parts[1] = parts[0][first:], parts[1][n-first:]
	return n, err
}

// call makes a call until no signal interrupts it.
func call(trap, fd uintptr, p unsafe.Pointer, size int) (int, error) {
	for {
		n, _, err := syscall.RawSyscall(trap, fd, uintptr(p), uintptr(size))
		switch err {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, err
	}
}
