package users

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"
)

// A file is a users file that is read again when it has changed.
type file struct {
	path string
	now  func() time.Time

	mu    sync.Mutex
	last  stamp  // of the contents that were parsed last, good or bad
	fault string // that the log has
	good  *list
}

// open reads the users file for the first time. It does not wait for the file to
// settle, since there is nothing else to go by.
func open(path string) (*file, error) {
	text, last, err := read(path)
	if err != nil {
		return nil, err
	}
	l, err := parseWhole(path, text)
	return &file{path: path, now: time.Now, last: last, good: l}, err
}

// settling is for how long nobody must have written into the file before it is
// read again: a writer may not have come to its end.
const settling = 2 * time.Second

// current returns what the file says, or said when it was good.
func (f *file) current(ctx context.Context) *list {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := stampOf(f.path)
	if err == nil && (now == f.last || !now.settled(f.now())) {
		return f.good
	}
	switch err := f.readAgain(now); {
	case err == nil:
		f.fault = ""
		slog.InfoContext(ctx, "the users file was read again", "file", f.path, "users", len(f.good.users))
	case errors.Is(err, errChanging): // the next question finds out
	case err.Error() != f.fault:
		f.fault = err.Error()
		slog.ErrorContext(ctx, "the users stay as they were", "error", err)
	}
	return f.good
}

// readAgain takes over the file, if it is still the one of that stamp.
func (f *file) readAgain(want stamp) error {
	text, now, err := read(f.path)
	if err != nil {
		return err
	}
	if now != want {
		return errChanging
	}
	f.last = now
	l, err := parseWhole(f.path, text)
	if err != nil {
		return err
	}
	f.good = l
	return nil
}

// parseWhole parses what a gateway goes by. An empty file is what cp begins with,
// and what is left of one when the disk is full: it stands for no users only with
// a comment, which "mailgw passwd" leaves in it.
func parseWhole(path, text string) (*list, error) {
	if text == "" {
		return nil, Faults{fmt.Errorf("%s: the file is empty; want a comment in it, or users", path)}
	}
	return parse(path, text)
}

// errChanging says that there is no telling what a file has.
var errChanging = errors.New("changed while it was read")

// read returns what is in a file that is not readable by everybody.
func read(path string) (string, stamp, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", stamp{}, err
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return "", stamp{}, err
	}
	if before.Mode()&0o006 != 0 {
		return "", stamp{}, fmt.Errorf("%s: mode %04o lets everybody at the hashes; want chmod o= %[1]s", path, before.Mode().Perm())
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return "", stamp{}, err
	}
	after, err := f.Stat()
	if err == nil && stampIn(before) != stampIn(after) {
		err = fmt.Errorf("%s: %w", path, errChanging)
	}
	return string(text), stampIn(before), err
}

// A stamp is another one after every change of a file, of its mode, too.
type stamp struct {
	device, inode uint64
	size          int64
	written       syscall.Timespec
	changed       syscall.Timespec // the time of the inode, which nobody can set
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
	return stamp{uint64(s.Dev), s.Ino, s.Size, s.Mtim, s.Ctim}
}

// settled reports whether nobody has written into the file of late. A time in
// the future, of another machine's clock, does not hold it up for longer.
func (s stamp) settled(now time.Time) bool {
	return now.Sub(time.Unix(s.written.Unix())).Abs() >= settling
}
