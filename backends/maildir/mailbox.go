package maildir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/mailgw/mailgw/backends"
)

// subdirectories are what makes a directory a Maildir.
var subdirectories = []string{"tmp", "new", "cur"}

// open opens the mailbox at a path below the base, and makes it if it is not
// there. Symbolic links that lead out of the base, or out of the mailbox, are
// not followed. All the directories are on the disk when it returns.
func (b *backend) open(name string) (*os.Root, error) {
	base, err := b.openBase()
	if err != nil {
		return nil, err
	}
	defer base.Close()
	box, made, err := b.openOrMake(base, name)
	if err != nil {
		return nil, err
	}
	for _, sub := range subdirectories {
		madeSub, subErr := b.makeDir(box, sub)
		made, err = made || madeSub, errors.Join(err, subErr)
	}
	if err == nil {
		err = b.persist(base, name, made)
	}
	if err != nil {
		box.Close()
		return nil, err
	}
	return box, nil
}

func (b *backend) openOrMake(base *os.Root, name string) (box *os.Root, made bool, err error) {
	box, err = base.OpenRoot(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return box, false, whole(base, err)
	}
	if !b.Create {
		return nil, false, b.absence(base, name, err)
	}
	if err := b.makeDirs(base, name); err != nil {
		return nil, false, err
	}
	box, err = base.OpenRoot(name)
	return box, true, whole(base, err)
}

// absence returns why there is no mailbox at a path. Nobody has decided that
// there is no such user where a directory above the user's is missing, or has
// nothing in it: a disk may not be mounted.
func (b *backend) absence(base *os.Root, name string, cause error) error {
	above := "."
	for i, component := range strings.Split(name, "/") {
		here := path.Join(above, component)
		_, err := base.Lstat(here)
		if err == nil {
			above = here
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) || i < b.template.firstOfUser() {
			return whole(base, err)
		}
		switch empty, emptyErr := isEmpty(base, above); {
		case emptyErr != nil:
			return emptyErr
		case empty:
			return fmt.Errorf("%w, and nothing else is there either", whole(base, err))
		}
		return backends.NoSuchUser
	}
	return whole(base, cause) // a link to nowhere
}

func isEmpty(root *os.Root, name string) (bool, error) {
	d, err := root.Open(name)
	if err != nil {
		return false, whole(root, err)
	}
	defer d.Close()
	_, err = d.ReadDir(1)
	if err == io.EOF {
		return true, nil
	}
	return false, err
}

// openBase opens the directory that all mailboxes are in. With create it is
// made; without, its absence is the trouble of a disk that is not mounted,
// not of a user that does not exist.
func (b *backend) openBase() (*os.Root, error) {
	b.mu.Lock() // nobody goes on before the base is on the disk
	defer b.mu.Unlock()
	base, err := os.OpenRoot(b.template.base)
	if !b.Create || !errors.Is(err, fs.ErrNotExist) {
		return base, err
	}
	ancestor := b.template.base
	var parent *os.Root
	for errors.Is(err, fs.ErrNotExist) {
		ancestor = filepath.Dir(ancestor)
		parent, err = os.OpenRoot(ancestor)
	}
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	rest, err := filepath.Rel(ancestor, b.template.base)
	if err != nil {
		return nil, err
	}
	if err := b.makeDirs(parent, rest); err != nil {
		return nil, err
	}
	if err := syncUp(parent, path.Dir(rest)); err != nil {
		return nil, err
	}
	base, err = parent.OpenRoot(rest)
	return base, whole(parent, err)
}

// makeDirs makes the directories of a path below root.
func (b *backend) makeDirs(root *os.Root, name string) error {
	for i := range name {
		if name[i] == '/' {
			if _, err := b.makeDir(root, name[:i]); err != nil {
				return err
			}
		}
	}
	_, err := b.makeDir(root, name)
	return err
}

// makeDir makes one directory, unless it is there.
func (b *backend) makeDir(root *os.Root, name string) (made bool, err error) {
	if err := root.Mkdir(name, b.DirMode); errors.Is(err, fs.ErrExist) {
		return false, nil
	} else if err != nil {
		return false, whole(root, err)
	}
	err = root.Chmod(name, b.DirMode) // whatever the umask is
	if err == nil && (b.uid >= 0 || b.gid >= 0) {
		err = root.Chown(name, b.uid, b.gid)
	}
	if err != nil {
		root.Remove(name)
	}
	return true, whole(root, err)
}

// persist sees to it that the directories from the base to the mailbox are on
// the disk: when they were made, and the first time in any case, because
// whoever made them may have ended before they were.
func (b *backend) persist(base *os.Root, name string, made bool) error {
	const enough = 10000 // so that memory is bounded
	b.mu.Lock()
	known := b.durable[name]
	b.mu.Unlock()
	if known && !made {
		return nil
	}
	if err := syncUp(base, name); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.durable) >= enough {
		clear(b.durable)
	}
	b.durable[name] = true
	return nil
}

// syncUp syncs a directory and those above it up to root, so that the names
// in them are on the disk.
func syncUp(root *os.Root, name string) error {
	for ; ; name = path.Dir(name) {
		if err := syncDir(root, name); err != nil || name == "." {
			return err
		}
	}
}

func syncDir(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return whole(root, err)
	}
	defer d.Close()
	return d.Sync()
}

// whole completes the paths in an error of one of root's methods, which begin
// at root.
func whole(root *os.Root, err error) error {
	complete := func(name string) string {
		if filepath.IsAbs(name) {
			return name
		}
		return filepath.Join(root.Name(), name)
	}
	switch err := err.(type) {
	case *fs.PathError:
		return &fs.PathError{Op: err.Op, Path: complete(err.Path), Err: err.Err}
	case *os.LinkError:
		return &os.LinkError{Op: err.Op, Old: complete(err.Old), New: complete(err.New), Err: err.Err}
	}
	return err
}
