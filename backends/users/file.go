package users

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
)

// A file is a users file that is read again when it has changed.
type file struct {
	path string

	mu    sync.Mutex
	last  stamp  // of the contents that were parsed last, good or bad
	fault string // that the log has
	good  *list
}

// open reads the users file for the first time.
func open(path string) (*file, error) {
	text, last, err := read(path)
	if err != nil {
		return nil, err
	}
	l, err := parse(path, text)
	return &file{path: path, last: last, good: l}, err
}

// current returns what the file says, or said when it was good.
func (f *file) current(ctx context.Context) *list {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now, err := stampOf(f.path); err == nil && now == f.last {
		return f.good
	}
	err := f.readAgain()
	if err == nil {
		f.fault = ""
		slog.InfoContext(ctx, "the users file was read again", "file", f.path, "users", len(f.good.users))
	} else if err.Error() != f.fault {
		f.fault = err.Error()
		slog.ErrorContext(ctx, "the users stay as they were", "error", err)
	}
	return f.good
}

func (f *file) readAgain() error {
	text, now, err := read(f.path)
	if err != nil {
		return err
	}
	f.last = now
	l, err := parse(f.path, text)
	if err != nil {
		return err
	}
	f.good = l
	return nil
}

// read returns what is in a file that is not readable by everybody.
func read(path string) (string, stamp, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", stamp{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", stamp{}, err
	}
	if info.Mode()&0o006 != 0 {
		return "", stamp{}, fmt.Errorf("%s: mode %04o lets everybody at the hashes; want chmod o= %[1]s", path, info.Mode().Perm())
	}
	text, err := io.ReadAll(f)
	return string(text), stampIn(info), err
}

// A stamp is another one after every change of a file, of its mode, too. Its
// time is that of the inode, which nobody can set.
type stamp struct {
	device, inode uint64
	size          int64
	changed       syscall.Timespec
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	return stampIn(info), nil
}

func stampIn(info fs.FileInfo) stamp {
	s := info.Sys().(*syscall.Stat_t)
	return stamp{uint64(s.Dev), s.Ino, s.Size, s.Ctim}
}
