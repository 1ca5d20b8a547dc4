package plugins

import (
	"context"
	"fmt"
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
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if unix.Gettid() == os.Getpid() {
			defer runtime.UnlockOSThread()
			onThread(f) // on another one, since this one is held
			return
		}
		f()
	}()
	<-done
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
		removeOwned(filepath.Join(path, entry.Name()))
	}
	return os.RemoveAll(path)
}

// removeOwned removes the directory of a plugin. What is in it only its owner may
// remove.
func removeOwned(directory string) {
	info, err := os.Lstat(directory)
	if err != nil || !info.IsDir() {
		return
	}
	as(info.Sys().(*syscall.Stat_t).Uid, func() {
		entries, _ := os.ReadDir(directory)
		for _, entry := range entries {
			os.RemoveAll(filepath.Join(directory, entry.Name()))
		}
	})
	os.Remove(directory)
}
