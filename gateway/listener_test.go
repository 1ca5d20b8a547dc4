package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailgw/mailgw/backends"
)

func TestConnectionLimits(t *testing.T) {
	for _, limit := range []string{"connections", "connections_per_peer"} {
		t.Run(limit, func(t *testing.T) {
			s := testServer(t, testBackends, "protocol = 'smtp'\n[listener.limits]\n"+limit+" = 2\n")
			first := dialServer(t, s)
			first.hear(t)
			second := dial(t, s)
			second.hear(t)
			dial(t, s).hearEnd(t, "421 4.7.0 mx.example.org too many connections, try again later\r\n")
			if got := first.ask(t, "NOOP"); got != "250 2.0.0 ok" {
				t.Errorf("the first session gets %q", got)
			}
			// A session that ends makes room.
			second.ask(t, "QUIT")
			second.hearEnd(t, "")
			for {
				c := dial(t, s)
				line, err := c.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(line, "220 ") {
					break
				}
			}
		})
	}
}

// A socket that a killed process left is taken over, one on which somebody
// answers is not, and neither is what is no socket.
func TestStaleSocketIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	config := "protocol = 'lmtp'\nmode = '0600'\naddress = 'unix:" + path + "'\n"

	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	if err := testServer(t, testBackends, config).Listen(); err == nil || !strings.Contains(err.Error(), "another process answers") {
		t.Errorf("while somebody listens: %v", err)
	}
	old.Close()
	s := testServer(t, testBackends, config)
	c := dialServer(t, s)
	if got := c.hear(t); got != "220 mx.example.org LMTP mailgw" {
		t.Errorf("greeting %q", got)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := testServer(t, testBackends, config).Listen(); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("where a file is: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file has become %q", b)
	}
}

func TestSocketOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	path := filepath.Join(t.TempDir(), "socket")
	serve(t, testServer(t, testBackends, "protocol = 'lmtp'\nmode = '0620'\nowner = 'nobody'\ngroup = 'daemon'\naddress = 'unix:"+path+"'\n"))
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	daemon, err := user.LookupGroup("daemon")
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	got := fmt.Sprintf("%v %d %d", info.Mode(), stat.Uid, stat.Gid)
	if want := fmt.Sprintf("%v %s %s", fs.ModeSocket|0o620, nobody.Uid, daemon.Gid); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A second server that took the path over does not lose it to the first one.
func TestShutdownLeavesAnothersSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	config := "protocol = 'lmtp'\naddress = 'unix:" + path + "'\n"
	first := testServer(t, testBackends, config)
	if err := first.Listen(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second := dialServer(t, testServer(t, testBackends, config))
	if err := first.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	second.hear(t)
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket of the second server: %v", err)
	}
}

func TestListenAllOrNone(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	path := filepath.Join(t.TempDir(), "socket")
	s := testServer(t, testBackends, "protocol = 'lmtp'\naddress = 'unix:"+path+"'\n[listener.routes]\n'*' = ['verdict']\n"+
		"[[listener]]\nname = 'second'\nprotocol = 'smtp'\naddress = 'tcp:"+taken.Addr().String()+"'\n[listener.routes]\n'*' = ['verdict']\n"+
		"[[listener]]\nname = 'third'\nprotocol = 'smtp'\naddress = 'tcp:192.0.2.1:0'\n[listener.routes]\n'*' = ['verdict']\n")
	err = s.Listen()
	if err == nil || !strings.Contains(err.Error(), "listener[1].address: ") || !strings.Contains(err.Error(), "listener[2].address: ") || !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the first listener's socket is still there: %v", err)
	}
}

// Abstract and IPv6 sockets serve like the others, and the backend learns who
// is at the other end.
func TestPeers(t *testing.T) {
	name := fmt.Sprintf("@mailgw-test-%d", os.Getpid())
	for address, want := range map[string]string{
		"unix:" + name:    fmt.Sprintf("unix:uid=%d to %s", os.Getuid(), name),
		"tcp:127.0.0.1:0": "127.0.0.1:",
		"tcp:[::1]:0":     "[::1]:",
	} {
		if c, err := net.Listen("tcp", "[::1]:0"); err == nil {
			c.Close()
		} else if strings.Contains(address, "::1") {
			t.Logf("%s: not tested, this machine has no IPv6: %v", address, err)
			continue
		}
		all := map[string]backends.Backend{"peer": backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			tx.SetAll(backends.NewStatus(250, "2.0.0", tx.Session.Peer.String()+" to "+tx.Session.Local))
			return nil
		})}
		c := dialServer(t, testServer(t, all, "protocol = 'smtp'\naddress = '"+address+"'\n[listener.routes]\n'*' = ['peer']\n"))
		c.hear(t)
		c.ask(t, "EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA")
		if got := c.ask(t, "."); !strings.HasPrefix(got, "250 2.0.0 "+want) {
			t.Errorf("%s: got %q, want %q", address, got, want)
		}
	}
}

// Whatever stands in the way under the temporary name is not removed unless
// it is a socket that nobody answers on.
func TestTemporaryNameOfTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	config := "protocol = 'lmtp'\naddress = 'unix:" + path + "'\n"
	if err := os.WriteFile(path+".new", []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := testServer(t, testBackends, config).Listen(); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("where a file is: %v", err)
	}
	if b, _ := os.ReadFile(path + ".new"); string(b) != "precious" {
		t.Errorf("the file has become %q", b)
	}
}

// An error of accept, such as too many open files, does not end the listener.
func TestAcceptGoesOnAfterAnError(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'smtp'\n")
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	s.listeners[0].socket = &failingListener{Listener: s.listeners[0].socket, errors: 3}
	go s.Serve()
	c := dial(t, s)
	if got := c.hear(t); got != "220 mx.example.org ESMTP mailgw" {
		t.Errorf("greeting %q", got)
	}
	c.ask(t, "QUIT")
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// A failingListener fails some times before it accepts.
type failingListener struct {
	net.Listener
	errors int
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.errors > 0 {
		l.errors--
		return nil, syscall.EMFILE
	}
	return l.Listener.Accept()
}

// The waits between errors of accept grow from 5 ms to 1 s, begin anew after a
// session, and do not hold up a shutdown.
func TestAcceptBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testServer(t, testBackends, "protocol = 'smtp'\n")
		l := &brokenListener{success: 10}
		s.listeners[0].socket = l
		var want []time.Duration
		var sum time.Duration
		for _, ms := range []time.Duration{5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000, 0, 5, 10} {
			want = append(want, ms*time.Millisecond)
			sum += ms * time.Millisecond
		}
		served := make(chan struct{})
		go func() {
			s.Serve()
			close(served)
		}()
		time.Sleep(sum + time.Millisecond)
		began := time.Now()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		<-served
		if waited := time.Since(began); waited != 0 {
			t.Errorf("the shutdown took %v", waited)
		}
		var got []time.Duration
		for i, at := range l.calls[1:] {
			got = append(got, at.Sub(l.calls[i]))
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// A brokenListener accepts one session, by a client that is gone.
type brokenListener struct {
	calls   []time.Time
	success int // index of that call
}

func (l *brokenListener) Accept() (net.Conn, error) {
	l.calls = append(l.calls, time.Now())
	if len(l.calls)-1 != l.success {
		return nil, syscall.EMFILE
	}
	client, server := net.Pipe()
	client.Close()
	return tcpPipe{server}, nil
}

func (l *brokenListener) Addr() net.Addr { return nil }
func (l *brokenListener) Close() error   { return nil }

// A tcpPipe is a connection in memory that passes for one over TCP.
type tcpPipe struct{ net.Conn }

func (tcpPipe) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1024} }
func (tcpPipe) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 25} }

func TestShutdownWithoutListen(t *testing.T) {
	if err := testServer(t, testBackends, "protocol = 'smtp'\n").Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}
