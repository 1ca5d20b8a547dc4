package plugins

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
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

func TestSocketsAreInDirectoryOfHost(t *testing.T) {
	h, log := run(t, "environment")
	for n := range 2 { // nothing of the first process is left when there is a second
		directory := environment(t, h)["PLUGIN_UNIX_SOCKET_DIR"]
		left, err := filepath.Glob(h.sockets.path + "/*")
		if !slices.Equal(left, []string{directory}) {
			t.Fatalf("got %q, %v, want the socket directory %s alone", left, err, directory)
		}
		if info, err := os.Stat(directory); err != nil || info.Mode() != os.ModeDir|0o700 {
			t.Errorf("%s has the mode %v, %v", directory, info.Mode(), err)
		}
		sockets, err := filepath.Glob(directory + "/*")
		if len(sockets) != 2 { // of gRPC and of the lane
			t.Fatalf("got the sockets %q, %v", sockets, err)
		}
		for _, socket := range sockets {
			if name := strings.TrimPrefix(socket, h.sockets.path); len(name) > longestSocket {
				t.Errorf("the name %s is longer than %d", name, longestSocket)
			}
		}
		syscall.Kill(log.pid(t, n+1), syscall.SIGKILL)
		log.wait(t, n+2, "started", "")
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
	l := listenAs(t, 0)
	for uid, want := range map[int]string{0: "", 65534: "has the uid 65534"} {
		client := dialAs(t, uid, l)
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		err = checkUser(conn, uint32(os.Geteuid()))
		conn.Close()
		client.Close()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("uid %d: got the error %v, want %q", uid, err, want)
		}
	}
}

func TestPluginRefusesGatewayOfAnotherUser(t *testing.T) {
	l := listenAs(t, 0)
	server := newServer(nil)
	go server.Serve(l)
	defer server.Stop()
	for uid, want := range map[int]bool{0: true, 65534: false} {
		client := dialAs(t, uid, l)
		client.SetReadDeadline(time.Now().Add(patience))
		n, err := client.Read(make([]byte, 1)) // HTTP/2 begins with the server's settings
		client.Close()
		if (n == 1) != want || n == 0 && err != io.EOF {
			t.Errorf("uid %d: got %d octets and the error %v, want some: %v", uid, n, err, want)
		}
	}
}

func TestGatewayRefusesPluginOfAnotherUser(t *testing.T) {
	l := listenAs(t, 65534)
	conn, err := grpc.NewClient("passthrough:plugin", append(dialOptions(0),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return net.Dial("unix", l.Addr().String()) }))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := (&running{conn: conn}).check(ctx); err == nil || !strings.Contains(err.Error(), "has the uid 65534") {
		t.Errorf("got the error %v", err)
	}
}

// listenAs opens a socket of a user that any other may connect to.
func listenAs(t *testing.T, uid int) (l net.Listener) {
	t.Helper()
	var err error
	asUser(t, uid, func() { l, err = net.Listen("unix", fmt.Sprintf("@mailgw-test-%d", os.Getpid())) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dialAs(t *testing.T, uid int, l net.Listener) (conn net.Conn) {
	t.Helper()
	var err error
	asUser(t, uid, func() { conn, err = net.Dial("unix", l.Addr().String()) })
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// asUser runs f as another user.
func asUser(t *testing.T, uid int, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	if err := as(uint32(uid), f); err != nil {
		t.Fatal(err)
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
