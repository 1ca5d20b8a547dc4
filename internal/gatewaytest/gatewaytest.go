// Package gatewaytest runs mailgw as it is built, each time in a directory of
// its own, for tests that look at it from outside. Main is to be called by
// TestMain.
package gatewaytest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Patience is how long anything may take that a test waits for.
const Patience = 2 * time.Minute

// programs is the directory of what the tests build.
var programs string

// Main runs the tests of a package, and removes what they have built.
func Main(m *testing.M) {
	var err error
	if programs, err = os.MkdirTemp("/var/tmp", "mailgw-programs-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(programs)
	os.Exit(code)
}

// A Program is mailgw, built when it is wanted first. It returns the path of
// its file.
type Program func() (string, error)

// Plain and AsTested build mailgw, the latter with the race detector if the
// tests have it.
var (
	Plain    Program = sync.OnceValues(func() (string, error) { return build("mailgw") })
	AsTested Program = sync.OnceValues(func() (string, error) {
		if !raceDetector() {
			return Plain()
		}
		return build("mailgw-race", "-race")
	})
)

func build(name string, flags ...string) (string, error) {
	path := filepath.Join(programs, name)
	args := slices.Concat([]string{"build", "-buildvcs=false", "-o", path}, flags, []string{"github.com/mailgw/mailgw/cmd/mailgw"})
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return path, nil
}

// raceDetector reports whether the tests were built with it.
func raceDetector() bool {
	info, _ := debug.ReadBuildInfo()
	return slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// Without skips a test for want of something. In CI nothing may be wanting.
func Without(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// Directory makes a directory that others can enter, as they cannot those of
// t.TempDir, and whose path is short enough for sockets. It is on a disk,
// where /tmp may be in memory.
func Directory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "mailgw-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Eventually waits until done reports true.
func Eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	if !Becomes(done) {
		t.Fatalf("not within %v: %s", Patience, what)
	}
}

// Becomes waits until done reports true, and reports whether it has.
func Becomes(done func() bool) bool {
	for deadline := time.Now().Add(Patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}
