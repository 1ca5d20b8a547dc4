package plugins

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// as calls f on a thread whose effective user is another one. So f may do what
// that user may, and the kernel tells those whom it connects to that it is that
// user.
func as(uid uint32, f func()) (err error) {
	if int(uid) == os.Geteuid() {
		f()
		return nil
	}
	onThread(func() {
		// syscall.Setresuid would change the user of all threads.
		const unchanged = ^uintptr(0)
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, unchanged, uintptr(uid), unchanged); errno != 0 {
			err = fmt.Errorf("become the user %d: %w", uid, errno)
			return
		}
		f()
	})
	return err
}

// onThread calls f on a thread of its own, which ends with it. It is not the first
// thread of the process, which cannot end, and whose user and privileges are
// taken for those of the process.
func onThread(f func()) {
	done := make(chan struct{})
	spawn(f, done)
	<-done
}

// spawn begins to run f on a thread that is not the first one of the process, and
// ends with it. It returns when f has its thread.
func spawn(f func(), done chan<- struct{}) {
	has := make(chan struct{})
	go func() {
		runtime.LockOSThread() // and never unlocked where f has run: the thread ends with the goroutine
		if unix.Gettid() == os.Getpid() {
			spawn(f, done) // on another one, since this one is held
			runtime.UnlockOSThread()
			close(has)
			return
		}
		close(has)
		defer close(done)
		f()
	}()
	<-has
}

// dialerAs returns a dialer for the socket of a plugin of another user. Only that
// user may enter the directory of the socket, and the plugin takes no other.
func dialerAs(uid uint32, p *process) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, _ string) (conn net.Conn, err error) {
		failed := as(uid, func() { conn, err = new(net.Dialer).DialContext(ctx, "unix", p.address) })
		if failed != nil {
			return nil, failed
		}
		return conn, err
	}
}

// removeSockets removes the directory of a Host, and those in it of its plugins.
func removeSockets(path string) error {
	entries, _ := os.ReadDir(path)
	for _, entry := range entries {
		if in := filepath.Join(path, entry.Name()); os.Remove(in) != nil {
			removeOwned(in)
		}
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// mostSockets is how many files are removed of a plugin of another user.
const mostSockets = 1000

// removeOwned removes the directory of a plugin. What is in it only its owner may
// remove. Another user may have made more there than can be removed in a moment,
// and directories so deep that it would take a descriptor for each of thousands:
// all but some files stays then, and so does the directory.
func removeOwned(directory string) {
	info, err := os.Lstat(directory)
	if err != nil || !info.IsDir() {
		return
	}
	uid := info.Sys().(*syscall.Stat_t).Uid
	if int(uid) == os.Geteuid() {
		os.RemoveAll(directory)
		return
	}
	as(uid, func() {
		d, err := os.Open(directory)
		if err != nil {
			return
		}
		defer d.Close()
		names, _ := d.Readdirnames(mostSockets)
		for _, name := range names {
			os.Remove(filepath.Join(directory, name))
		}
	})
	os.Remove(directory)
}

// giveSockets makes a directory below parent for the socket of a plugin of another
// user. go-plugin's own would be removed by it, whatever that user has made there.
func giveSockets(parent string, user *syscall.Credential) (string, error) {
	directory, err := os.MkdirTemp(parent, "user")
	if err == nil {
		err = os.Chown(directory, int(user.Uid), int(user.Gid))
	}
	if err != nil {
		return "", fmt.Errorf("socket directory: %w", err)
	}
	return directory, nil
}
