//go:build race

package nowait

import "syscall"

// The race detector hears from package syscall, and from it alone, that what is read
// was written before.

func Read(fd uintptr, p []byte) (int, error) { return again(syscall.Read, fd, p) }

func Write(fd uintptr, p []byte) (int, error) { return again(syscall.Write, fd, p) }

func Writev(fd uintptr, parts *[2][]byte) (wrote int, err error) {
	for i := range parts {
		for len(parts[i]) > 0 {
			n, err := Write(fd, parts[i])
			if err != nil && wrote > 0 {
				return wrote, nil
			}
			if err != nil {
				return 0, err
			}
			parts[i] = parts[i][n:]
			wrote += n
		}
	}
	return wrote, nil
}

func again(call func(int, []byte) (int, error), fd uintptr, p []byte) (int, error) {
	for {
		if n, err := call(int(fd), p); err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}
