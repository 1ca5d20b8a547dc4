package plugins

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSocketDirectory(t *testing.T) {
	parent := socketParent(t)
	d, err := newSocketDirectory(parent, "b/../ü")
	if err != nil {
		t.Fatal(err)
	}
	defer d.remove()
	info, err := os.Stat(d.path)
	if err != nil || info.Mode() != os.ModeDir|0o700 || filepath.Dir(d.path) != parent {
		t.Errorf("got %s with the mode %v, %v", d.path, info.Mode(), err)
	}
}

func TestOnlyAbandonedSocketsAreRemoved(t *testing.T) {
	parent := socketParent(t)
	living, err := newSocketDirectory(parent, "b")
	if err != nil {
		t.Fatal(err)
	}
	defer living.remove()
	abandoned, err := newSocketDirectory(parent, "b")
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(abandoned.path+"/socket", nil, 0o600)
	abandoned.lock.Close() // as at the end of its gateway
	foreign := parent + "/mailgw-b-x1"
	for _, path := range []string{foreign, parent + "/mailgw-c-1"} {
		os.Mkdir(path, 0o700)
		defer os.Remove(path)
	}
	os.Symlink(foreign, parent+"/mailgw-b-2")
	defer os.Remove(parent + "/mailgw-b-2")

	d, err := newSocketDirectory(parent, "b")
	if err != nil {
		t.Fatal(err)
	}
	defer d.remove()
	for path, want := range map[string]bool{living.path: true, abandoned.path: false, foreign: true, parent + "/mailgw-c-1": true} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", path, err == nil, want)
		}
	}
}

func TestSocketDirectoriesAtTheSameTime(t *testing.T) {
	parent := socketParent(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			d, err := newSocketDirectory(parent, "b")
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := os.Stat(d.path); err != nil {
				t.Error(err)
			}
			if err := d.remove(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestSocketPathThatIsTooLong(t *testing.T) {
	parent := filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	if err := os.Mkdir(parent, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := newSocketDirectory(parent, "b")
	if err == nil || !strings.Contains(err.Error(), "more than 107 octets") {
		t.Errorf("got the error %v", err)
	}
	if left, _ := os.ReadDir(parent); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

func TestPeerOfAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	l, err := net.Listen("unix", fmt.Sprintf("@mailgw-test-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for uid, want := range map[uintptr]string{0: "", 65534: "has the uid 65534"} {
		connected := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with its uid
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, uid, uid, uid); err == nil && e != 0 {
				err = e
			}
			if err == nil {
				err = unix.Connect(fd, &unix.SockaddrUnix{Name: l.Addr().String()})
			}
			connected <- err
			unix.Close(fd)
		}()
		if err := <-connected; err != nil {
			t.Fatal(err)
		}
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		err = checkUser(conn)
		conn.Close()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("uid %d: got the error %v, want %q", uid, err, want)
		}
	}
}

func TestPeerOnTCPIsRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, _, err := newSameUser().ServerHandshake(conn); err == nil {
		t.Error("the plugin takes it")
	}
	if _, _, err := newSameUser().ClientHandshake(context.Background(), "", conn); err == nil {
		t.Error("the gateway takes it")
	}
}
