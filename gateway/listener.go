package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// A listener is what holds for the sessions of a socket.
type listener struct {
	*ListenerConfig
	*port
	gen      *generation
	hostname string
	place    Problem // of its address, but for the text
	log      *slog.Logger
	last     []string // backends in which its routes end
	diverted []string // and those by which somebody may be diverted
	tls      *tlsFiles
	rates    *rates
}

// A port is a listening socket. The listeners of one generation after the
// other have it.
type port struct {
	socket   net.Listener
	listener atomic.Pointer[listener] // the newest
	closed   chan struct{}
	inode    fs.FileInfo // of the unix socket that was opened, if it has a path

	mu    sync.Mutex
	all   int
	peers map[string]int // sessions by countKey
}

func newListener(g *generation, c *Config, config *ListenerConfig) *listener {
	log := g.log.With("listener", config.Name)
	l := &listener{
		ListenerConfig: config,
		port:           &port{closed: make(chan struct{}), peers: map[string]int{}},
		gen:            g,
		hostname:       c.Hostname,
		log:            log,
		last:           lastOf(config.Routes),
		diverted:       lastOf(c.NamedRoutes),
		tls:            newTLSFiles(config.TLS, log),
		rates:          newRates(config.Rates),
	}
	l.port.listener.Store(l)
	return l
}

// enter counts a session in, for which it returns what holds; nil if the
// socket was closed.
func (p *port) enter() *listener {
	for {
		l := p.listener.Load()
		if l.gen.enter() {
			return l
		}
		select {
		case <-p.closed:
			return nil
		default: // there is a newer one by now
		}
	}
}

// open binds the socket. A socket that another process left behind is taken
// over when nobody answers on it.
func (l *listener) open() (err error) {
	network, address, _ := strings.Cut(l.Address, ":")
	if network == "tcp" || strings.HasPrefix(address, "@") {
		l.socket, err = net.Listen(network, address)
		return err
	}
	if err := checkStale(address); err != nil {
		return err
	}
	// The socket gets its owner and mode under another name. Until then only
	// its maker can connect: the mode of the descriptor is that of the name.
	temporary := address + ".new"
	if err := checkStale(temporary); err != nil {
		return err
	}
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if controlErr := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); controlErr != nil {
			return controlErr
		}
		return err
	}}
	opened, err := private.Listen(context.Background(), "unix", temporary)
	if err != nil {
		return err
	}
	socket := opened.(*net.UnixListener)
	socket.SetUnlinkOnClose(false)
	if err = l.publish(temporary, address); err != nil {
		socket.Close()
		os.Remove(temporary)
		return err
	}
	l.socket = socket
	return nil
}

// checkStale returns an error unless path is free or is a socket on which
// nobody answers.
func checkStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is no socket", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s: another process answers on it", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return nil
}

// keep gives a socket that is open the mode and owner that it has now.
func (l *listener) keep() error {
	if l.inode == nil {
		return nil
	}
	_, path, _ := strings.Cut(l.Address, ":")
	now, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !os.SameFile(now, l.inode) {
		return fmt.Errorf("%s is no longer the socket of this process", path)
	}
	return l.grant(path)
}

// grant gives the socket its owner, group and mode.
func (l *listener) grant(path string) error {
	uid, gid, err := l.ids()
	if err != nil {
		return err
	}
	if err := os.Chown(path, uid, gid); err != nil {
		return err
	}
	return os.Chmod(path, l.Mode)
}

// publish gives the socket its owner, group and mode, and then its name.
func (l *listener) publish(temporary, path string) (err error) {
	if err = l.grant(temporary); err != nil {
		return err
	}
	if l.inode, err = os.Lstat(temporary); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// ids returns the owner and group of the socket, -1 for one that is not
// configured.
func (l *listener) ids() (uid, gid int, err error) {
	uid, gid = -1, -1
	if l.Owner != "" {
		u, err := user.Lookup(l.Owner)
		if err != nil {
			return 0, 0, err
		}
		if uid, err = strconv.Atoi(u.Uid); err != nil {
			return 0, 0, err
		}
	}
	if l.Group != "" {
		g, err := user.LookupGroup(l.Group)
		if err != nil {
			return 0, 0, err
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return 0, 0, err
		}
	}
	return uid, gid, nil
}

// close stops listening and removes the socket's path, if it is still ours.
// It may be called again.
func (l *listener) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
		return
	default:
		close(l.closed)
	}
	if l.socket != nil {
		l.socket.Close()
	}
	if l.inode == nil {
		return
	}
	_, path, _ := strings.Cut(l.Address, ":")
	if now, err := os.Lstat(path); err == nil && os.SameFile(now, l.inode) {
		os.Remove(path)
	}
}

// peerOf tells who is at the other end of a socket.
func peerOf(socket net.Conn) (backends.Peer, error) {
	if addr, ok := socket.RemoteAddr().(*net.TCPAddr); ok {
		ap := addr.AddrPort()
		return backends.Peer{Addr: netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}, nil
	}
	raw, err := socket.(*net.UnixConn).SyscallConn()
	if err != nil {
		return backends.Peer{}, err
	}
	var cred *syscall.Ucred
	if controlErr := raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); controlErr != nil {
		return backends.Peer{}, controlErr
	}
	if err != nil {
		return backends.Peer{}, os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	return backends.Peer{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}, nil
}

// admit counts a session in, unless there are too many.
func (l *listener) admit() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Limits.Connections > 0 && l.all >= l.Limits.Connections {
		return fmt.Errorf("%d connections, limits.connections", l.all)
	}
	l.all++
	return nil
}

const tooManyConnections = "too many connections, try again later"

// count counts the session for who it is from now, and no longer for who it
// was from before, unless there are too many from there.
func (d *dialog) count() error {
	l, key := d.listener, d.countKey()
	l.mu.Lock()
	defer l.mu.Unlock()
	if key == d.counted {
		return nil
	}
	if key != "" && l.Limits.ConnectionsPerPeer > 0 && l.peers[key] >= l.Limits.ConnectionsPerPeer {
		return fmt.Errorf("%d connections of this peer, limits.connections_per_peer", l.peers[key])
	}
	l.uncount(d.counted)
	if d.counted = key; key != "" {
		l.peers[key]++
	}
	return nil
}

// uncount counts a session out for a peer. The caller holds l.mu.
func (p *port) uncount(key string) {
	if key == "" {
		return
	}
	if p.peers[key]--; p.peers[key] == 0 {
		delete(p.peers, key)
	}
}

// leave counts a session out, which has that key.
func (p *port) leave(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	p.uncount(key)
}

// dialog begins the dialog of a session between a peer and a local address.
func (l *listener) dialog(p backends.Peer, local string) *dialog {
	d := &dialog{listener: l}
	d.session = backends.Session{ID: newID(time.Now()), Listener: l.Name, Peer: p, Local: local, Gateway: l.gen.name}
	d.judge()
	return d
}

// localOf tells which address the peer of a socket connected to. A unix
// socket does not know the name that it was given after it was bound.
func (l *listener) localOf(socket net.Conn) string {
	if addr, ok := socket.LocalAddr().(*net.TCPAddr); ok {
		return addr.String()
	}
	_, path, _ := strings.Cut(l.Address, ":")
	return path
}
