package plugins

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// mostProgram is the size of the largest program that can have a checksum.
const mostProgram = 1 << 30

// verified returns a copy of a program in memory, which nobody can change, or an
// error unless it has the checksum. The file itself could be written to between
// the look at it and its start.
func verified(path string, want []byte) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would wait for a writer
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no file", path)
	case info.Mode()&0o111 == 0: // all copies can be executed
		return nil, &fs.PathError{Op: "run", Path: path, Err: fs.ErrPermission}
	}
	program, err := memoryFile(filepath.Base(path))
	if err != nil {
		return nil, fmt.Errorf("checksum: %w", err)
	}
	if err = fill(program, f, want); err != nil {
		program.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return program, nil
}

// fill copies a program with that checksum, and seals the copy.
func fill(program, f *os.File, want []byte) error {
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(program, hash), io.LimitReader(f, mostProgram+1))
	if err != nil {
		return err
	}
	if n > mostProgram {
		return fmt.Errorf("a program of more than %d octets cannot have a checksum", mostProgram)
	}
	if got := hash.Sum(nil); !bytes.Equal(got, want) {
		return fmt.Errorf("is not the program of checksum: its own is sha256:%x", got)
	}
	_, err = unix.FcntlInt(program.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	return err
}

// memoryFile returns a file that is nowhere but in memory, and can be executed.
func memoryFile(name string) (*os.File, error) {
	const flags, longest = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING, 200
	name = name[:min(len(name), longest)]
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 all could be
		fd, err = unix.MemfdCreate(name, flags)
	}
	if errors.Is(err, unix.EACCES) {
		return nil, errors.New("the kernel runs no programs from memory, by its setting vm.memfd_noexec")
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
