package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"syscall"
	"time"
)

// profiling lets the user of the gateway, and root, have profiles of it over a
// unix socket, by HTTP, as net/http/pprof has them. It ends with the function
// that it returns.
//
// There is no such thing over TCP: a profile tells strangers of the program's
// inside, costs what they like to spend, and a port of loopback is open to every
// user of the machine.
func profiling(path string) (end func(), err error) {
	socket, err := listenPrivately(path)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: controlTimeout, IdleTimeout: time.Minute}
	go server.Serve(socket)
	return func() { server.Close() }, nil
}

// checkProfiles checks the address of --pprof. An abstract socket has no mode, so that
// everybody could connect to it.
func checkProfiles(address string) error {
	path, ok := strings.CutPrefix(address, "unix:")
	if address != "" && (!ok || path == "" || path[0] == '@') {
		return fmt.Errorf("--pprof: want unix:PATH, found %q", address)
	}
	return nil
}

// listenPrivately opens a unix socket that nobody but its maker, and root, can
// connect to. It takes the place of a socket on which nobody answers.
func listenPrivately(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		c, err := net.Dial("unix", path)
		if err == nil {
			c.Close()
			return nil, fmt.Errorf("%s: another process answers on it", path)
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			os.Remove(path)
		}
	}
	// The mode of the descriptor is that of the name.
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if controlErr := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); controlErr != nil {
			return controlErr
		}
		return err
	}}
	return private.Listen(context.Background(), "unix", path)
}
