package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Profiles are for the user of the gateway alone, from before anybody can
// connect, and the socket of one that was killed is no obstacle.
func TestProfilesOverPrivateSocket(t *testing.T) {
	t.Parallel() // it waits for processes
	g := startGatewayIn(t, mainTOML, func(dir string) {
		left, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, "pprof.sock")})
		if err != nil {
			t.Fatal(err)
		}
		left.SetUnlinkOnClose(false)
		left.Close()
	}, "--pprof", "unix:pprof.sock")
	path := filepath.Join(g.dir, "pprof.sock")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v, want mode 0600", info, err)
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) },
	}}
	for what, want := range map[string]string{
		"goroutine?debug=1": "gateway.(*Server).accept",
		"heap?debug=1":      "heap profile",
	} {
		answer, err := client.Get("http://mailgw/debug/pprof/" + what)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != http.StatusOK || !strings.Contains(string(text), want) {
			t.Errorf("%s: %s, %v, no %q in\n%.500s", what, answer.Status, err, want, text)
		}
	}
	g.cmd.Process.Signal(syscall.SIGTERM)
	g.wait(t) // which finds that no socket is left
}

// A socket that somebody answers on, and a file that is none, stay.
func TestProfilesTakeNobodysPlace(t *testing.T) {
	for _, name := range []string{"alive.sock", "file"} {
		dir, file := configure(t, mainTOML)
		alive, err := net.Listen("unix", filepath.Join(dir, "alive.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer alive.Close()
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, stderr, code := runToEnd(t, "serve", "--config", file, "--pprof", "unix:"+filepath.Join(dir, name))
		if code != exitSystem || !strings.Contains(stderr, name) {
			t.Errorf("%s: exit code %d\n%s", name, code, stderr)
		}
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Errorf("%s is gone: %v", name, err)
		}
	}
}

func TestProfilesOverUnixSocketsOnly(t *testing.T) {
	_, file := configure(t, mainTOML)
	for _, address := range []string{"tcp:127.0.0.1:0", "pprof.sock", "unix:", "unix:@pprof"} {
		_, stderr, code := runToEnd(t, "serve", "--config", file, "--pprof", address)
		if want := fmt.Sprintf("--pprof: want unix:PATH, found %q", address); code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d\n%s", address, code, stderr)
		}
	}
}
