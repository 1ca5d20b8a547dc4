package users

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/xdg-go/scram"
	"golang.org/x/crypto/bcrypt"

	"github.com/mailgw/mailgw/backends"
)

// ErrNoUser says that there is nobody to delete.
var ErrNoUser = errors.New("no such user")

// CheckUser finds out whether the file may have a user of that name, with these
// patterns of senders.
func CheckUser(name string, sendAs []string) error {
	u, err := newUser(name)
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if err := u.setSendAs(sendAs); err != nil {
		return fmt.Errorf("send-as: %w", err)
	}
	return nil
}

// CheckPassword finds out whether a password can be stored.
func CheckPassword(password string) error {
	_, err := preparePassword(password)
	return err
}

// Set gives a user of a users file a password, and makes both if they are
// missing. If sendAs is not nil, it takes the place of what the user may send
// as besides the name. All else in the file stays as it is. Others see the file
// as it was or as it is. If the file has faults, they are the error, and nothing
// changes.
//
// Calls at the same time wait for each other by a lock of the directory. Anybody who
// may read that can hold the lock, so that it is an error if it takes too long.
// waits, unless it is nil, is called with the directory before there is a wait.
func Set(path, name, password string, sendAs []string, waits func(dir string)) error {
	hash, verifier, err := hashes(password)
	if err != nil {
		return err
	}
	return edit(path, waits, func(l *list) error {
		u := l.find(name)
		if u == nil {
			if u, err = newUser(name); err != nil {
				return err
			}
		}
		u.bcrypt, u.scram = hash, verifier
		if sendAs != nil {
			if err := u.setSendAs(sendAs); err != nil {
				return err
			}
		}
		l.appendHead()
		if l.secret == nil {
			l.append("!secret " + base64.StdEncoding.EncodeToString(random(secretSize)))
		}
		l.set(u)
		return nil
	})
}

// Delete takes a user out of a users file, in the same way.
func Delete(path, name string, waits func(dir string)) error {
	return edit(path, waits, func(l *list) error {
		u := l.find(name)
		if u == nil {
			return fmt.Errorf("%s: %w: %s", path, ErrNoUser, name)
		}
		l.remove(u)
		l.appendHead()
		return nil
	})
}

// appendHead puts a comment into an empty list.
func (l *list) appendHead() {
	if len(l.lines) == 0 {
		l.append("# Users of mailgw. Use \"mailgw passwd\", or edit a copy and rename it.")
	}
}

func (u *user) setSendAs(patterns []string) error {
	u.sendAs = nil
	for _, p := range patterns {
		if err := u.addSendAs(p); err != nil {
			return fmt.Errorf("%q: %w", p, err)
		}
	}
	return nil
}

// maxPassword is what bcrypt looks at. It would take a longer password for
// any other one that begins like it.
const maxPassword = 72

// preparePassword returns the form in which a password is hashed.
func preparePassword(password string) (string, error) {
	prepared, err := prepare(password)
	switch {
	case err != nil:
		return "", fmt.Errorf("the password has %w", err)
	case prepared == "":
		return "", errors.New("the password is empty")
	case len(prepared) > maxPassword:
		return "", fmt.Errorf("the password has %d octets; bcrypt takes %d at most", len(prepared), maxPassword)
	}
	return prepared, nil
}

const (
	// scramIterations are as many as clients put up with that use Cyrus SASL.
	// They cost the client a few hundredths of a second, and the server
	// nothing; they are for those who steal the file. bcrypt at its default
	// cost is about as slow to guess at, so that more there would not help.
	scramIterations = 65536

	saltSize   = 16
	secretSize = 32
)

// hashes returns what the file has of a password.
func hashes(password string) (string, backends.SCRAMVerifier, error) {
	none := backends.SCRAMVerifier{}
	password, err := preparePassword(password)
	if err != nil {
		return "", none, err
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.DefaultCost)
	if err != nil {
		return "", none, err
	}
	client, err := scram.SHA256.NewClientUnprepped("", password, "")
	if err != nil {
		return "", none, err
	}
	kept, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: string(random(saltSize)), Iters: scramIterations})
	return string(hash), backends.SCRAMVerifier{
		Salt:       []byte(kept.Salt),
		Iterations: kept.Iters,
		StoredKey:  kept.StoredKey,
		ServerKey:  kept.ServerKey,
	}, err
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// edit replaces the file by what change makes of it, unless that is an error.
func edit(path string, waits func(dir string), change func(*list) error) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	dir, err := lock(filepath.Dir(path), waits)
	if err != nil {
		return err
	}
	defer dir.Close()
	text, _, err := read(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := parse(path, text)
	if err != nil {
		return err
	}
	if err := change(l); err != nil {
		return err
	}
	if err := replace(path, l.String()); err != nil {
		return err
	}
	return dir.Sync()
}

// An edit takes some milliseconds. lockPatience is enough for those of many
// others, and lockPause is between two looks at the lock.
const (
	lockPatience = 10 * time.Second
	lockPause    = 20 * time.Millisecond
)

// lock locks a directory until it is closed. The file itself would not do:
// others would wait for one that has been replaced.
func lock(path string, waits func(dir string)) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockPatience); ; time.Sleep(lockPause) {
		err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return dir, nil
		}
		if err == syscall.EWOULDBLOCK && time.Now().Before(end) {
			if waits != nil {
				waits(path)
				waits = nil
			}
			continue
		}
		if err == syscall.EWOULDBLOCK {
			err = fmt.Errorf("another process has held the lock for %v", lockPatience)
		}
		dir.Close()
		return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
}

// replace puts a new file in the place of path, with the mode and owner of the
// one that is there.
func replace(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it has another name if all went well
	defer f.Close()
	if err := makeLike(f, path); err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	// It is whole, so that it counts at once.
	if err := os.Chtimes(f.Name(), time.Time{}, time.Now().Add(-settling)); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// makeLike gives f the mode and owner of the file at path. If there is none,
// they stay those of a temporary file, 0600 and the user's.
func makeLike(f *os.File, path string) error {
	old, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	want, is := old.Sys().(*syscall.Stat_t), info.Sys().(*syscall.Stat_t)
	if want.Uid != is.Uid || want.Gid != is.Gid {
		if err := f.Chown(int(want.Uid), int(want.Gid)); err != nil {
			return err
		}
	}
	return f.Chmod(old.Mode().Perm())
}
