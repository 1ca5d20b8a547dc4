package plugins

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// A socketDirectory holds the sockets of one Host: go-plugin makes another
// directory in it for each process. It is locked while its Host lives, so
// that those that a killed gateway left behind can be told and removed.
type socketDirectory struct {
	path string
	lock *os.File
}

// longestSocket is what go-plugin and the plugin append to the directory.
const longestSocket = len("/plugin-dir4294967295/plugin4294967295")

// newSocketDirectory makes a directory below parent, and removes those that
// earlier Hosts of that name have left there.
func newSocketDirectory(parent, name string) (*socketDirectory, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	prefix := "mailgw-" + strings.Map(plain, name) + "-"
	removeAbandoned(parent, prefix)
	for {
		path, err := os.MkdirTemp(parent, prefix)
		if err != nil {
			return nil, fmt.Errorf("socket directory: %w", err)
		}
		if most := len(unix.RawSockaddrUnix{}.Path) - 1; len(path)+longestSocket > most {
			os.Remove(path)
			return nil, fmt.Errorf("socket directory %s: a socket in it would have a path of more than %d octets", path, most)
		}
		lock, err := lockDirectory(path)
		if err == nil {
			return &socketDirectory{path, lock}, nil
		}
		// Another Host that starts may have removed it before it was locked.
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EWOULDBLOCK) {
			os.Remove(path)
			return nil, fmt.Errorf("socket directory: %w", err)
		}
	}
}

// plain replaces what is special in a file name.
func plain(r rune) rune {
	if r < 0x80 && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9') {
		return r
	}
	return '_'
}

// lockDirectory locks a directory of our own. The lock ends with this
// process.
func lockDirectory(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		var opened, there fs.FileInfo
		opened, err = f.Stat()
		if err == nil {
			there, err = os.Lstat(path)
		}
		switch {
		case err != nil:
		case !os.SameFile(opened, there):
			err = fs.ErrNotExist
		case there.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()):
			err = fs.ErrPermission
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// removeAbandoned removes the directories that no living Host has locked.
// What cannot be removed stays: it is in nobody's way.
func removeAbandoned(parent, prefix string) {
	entries, _ := os.ReadDir(parent)
	for _, entry := range entries {
		number, ok := strings.CutPrefix(entry.Name(), prefix)
		if !ok || strings.Trim(number, "0123456789") != "" {
			continue
		}
		path := filepath.Join(parent, entry.Name())
		if lock, err := lockDirectory(path); err == nil {
			removeSockets(path)
			lock.Close()
		}
	}
}

func (d *socketDirectory) remove() error {
	if d.path == "" {
		return nil
	}
	defer d.lock.Close()
	return removeSockets(d.path)
}

// open lets other users reach directories in it of which they know the name.
func (d *socketDirectory) open() error { return os.Chmod(d.path, 0o711) }

// onlyUser are transport credentials that take peers on a unix socket whose
// process runs as that user, or as root.
type onlyUser struct {
	credentials.TransportCredentials
	uid uint32
}

func newOnlyUser(uid uint32) onlyUser { return onlyUser{insecure.NewCredentials(), uid} }

func newSameUser() onlyUser { return newOnlyUser(uint32(os.Geteuid())) }

func (c onlyUser) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if err := checkUser(conn, c.uid); err != nil {
		return nil, nil, err
	}
	return c.TransportCredentials.ClientHandshake(ctx, authority, conn)
}

func (c onlyUser) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if err := checkUser(conn, c.uid); err != nil {
		return nil, nil, err
	}
	return c.TransportCredentials.ServerHandshake(&frameConn{Conn: conn})
}

// A frameConn writes HTTP/2 frames in one piece. A gRPC server without a
// write buffer writes the header of a frame and its payload apart.
type frameConn struct {
	net.Conn
	frame []byte
}

func (c *frameConn) Write(p []byte) (int, error) {
	const header = 9 // RFC 9113, section 4.1: the first three octets are the length of the payload
	c.frame = append(c.frame, p...)
	if f := c.frame; len(f) < header || len(f)-header < int(f[0])<<16|int(f[1])<<8|int(f[2]) {
		return len(p), nil
	}
	_, err := c.Conn.Write(c.frame)
	c.frame = c.frame[:0]
	return len(p), err
}

func (c onlyUser) Clone() credentials.TransportCredentials { return c }

func checkUser(conn net.Conn, uid uint32) error {
	peer, err := peerOf(conn)
	if err != nil {
		return err
	}
	if peer.Uid != uid && peer.Uid != 0 {
		return fmt.Errorf("peer on the plugin's socket has the uid %d", peer.Uid)
	}
	return nil
}

// peerOf tells the process at the other end of a unix socket.
func peerOf(conn net.Conn) (peer *unix.Ucred, err error) {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("peer %s is not on a unix socket", conn.RemoteAddr())
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	if e := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); e != nil {
		return nil, e
	}
	return peer, err
}
