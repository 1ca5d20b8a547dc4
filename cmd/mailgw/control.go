package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mailgw/mailgw/gateway"
)

// Other commands speak to the running gateway over a unix socket. They send one
// line, the request; the rest is told at what answers it. Who may is the user of
// the gateway, and root.

// controlTimeout is how long a request, and an answer of few octets, may take.
const controlTimeout = 5 * time.Second

// maxRequest bounds the line of a request.
const maxRequest = 1 << 10

// controlAddress is where the gateway of a configuration file is found: a unix
// socket that has no place in the file system.
func controlAddress(file string) (*net.UnixAddr, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(path))
	return &net.UnixAddr{Net: "unix", Name: "@mailgw-" + hex.EncodeToString(sum[:16])}, nil
}

func listenForControl(file string) (*net.UnixListener, error) {
	address, err := controlAddress(file)
	if err != nil {
		return nil, err
	}
	return net.ListenUnix("unix", address)
}

// A request is what another command asks of the running gateway.
type request struct {
	*net.UnixConn
	words []string // one or more
}

// acceptControl has answer answer each request, in a goroutine of its own, until
// the socket is closed, and waits for them. The connections end with ctx.
func acceptControl(ctx context.Context, socket *net.UnixListener, answer func(context.Context, request)) {
	var answering sync.WaitGroup
	defer answering.Wait()
	for {
		c, err := socket.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		answering.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			if r, err := readRequest(c); err == nil {
				answer(ctx, r)
			}
		})
	}
}

// readRequest reads the request of somebody who may ask.
func readRequest(c *net.UnixConn) (request, error) {
	if uid, err := userOf(c); err != nil || uid != 0 && int(uid) != os.Geteuid() {
		return request{}, fmt.Errorf("user %d may not ask", uid)
	}
	c.SetDeadline(time.Now().Add(controlTimeout))
	line, err := bufio.NewReader(io.LimitReader(c, maxRequest)).ReadString('\n')
	c.SetDeadline(time.Time{})
	words := strings.Fields(line)
	if err == nil && len(words) == 0 {
		err = errors.New("an empty request")
	}
	return request{c, words}, err
}

// A control answers requests.
type control struct {
	server  *gateway.Server
	reloads chan<- chan<- error // each gets what came of it
}

func (c control) answer(ctx context.Context, r request) {
	switch verb := r.words[0]; verb {
	case "reload":
		r.tell(c.reload(ctx))
	case "record":
		c.record(ctx, r)
	default:
		r.tell(fmt.Errorf("this gateway cannot %q", verb))
	}
}

// reload returns what came of a reload.
func (c control) reload(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case c.reloads <- done:
		return <-done
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tell tells whether a request is granted, or what is wrong.
func (r request) tell(err error) error {
	answer := okLine
	if err != nil {
		answer = err.Error() + "\n"
	}
	r.SetWriteDeadline(time.Now().Add(controlTimeout))
	_, err = io.WriteString(r, answer)
	return err
}

// userOf returns who is at the other end of a unix socket.
func userOf(c *net.UnixConn) (uid uint32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	if controlErr := raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); controlErr != nil {
		return 0, controlErr
	}
	if err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// okLine is what answers a request that is granted. Any other answer says what
// is wrong.
const okLine = "ok\n"

// ask sends a request to the gateway of a configuration file. Its answer can be
// read from the connection.
func ask(file string, words ...string) (net.Conn, error) {
	address, err := controlAddress(file)
	if err != nil {
		return nil, err
	}
	c, err := net.DialUnix("unix", nil, address)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("no gateway runs that was started with --config %s", file)
	}
	if err != nil {
		return nil, err
	}
	if uid, err := userOf(c); err != nil || os.Geteuid() != 0 && int(uid) != os.Geteuid() {
		c.Close()
		return nil, fmt.Errorf("the gateway runs as another user, with uid %d", uid)
	}
	if _, err := io.WriteString(c, strings.Join(words, " ")+"\n"); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

var errNoAnswer = errors.New("the gateway ends, or may not be told by this user")
