package peers

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long anything may take that a test waits for.
const patience = 2 * time.Minute

// programs is the directory of what the tests build.
var programs string

func TestMain(m *testing.M) {
	var err error
	if programs, err = os.MkdirTemp("/var/tmp", "mailgw-peers-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(programs)
	os.Exit(code)
}

// without skips the test for want of something. In CI nothing may be wanting.
func without(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// peer returns the path of a program of Debian's.
func peer(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		without(t, "%v: internal/peers/install installs it", err)
	}
	return path
}

// plainProgram and program build mailgw, the latter with the race detector if
// the tests have it.
var (
	plainProgram = sync.OnceValues(func() (string, error) { return build("mailgw") })
	program      = sync.OnceValues(func() (string, error) {
		if !raceDetector() {
			return plainProgram()
		}
		return build("mailgw-race", "-race")
	})
)

func build(name string, flags ...string) (string, error) {
	path := filepath.Join(programs, name)
	args := slices.Concat([]string{"build", "-buildvcs=false", "-o", path}, flags, []string{"../../cmd/mailgw"})
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

// directory makes a directory that others can enter, as they cannot those of
// t.TempDir, and whose path is short enough for sockets. It is on a disk,
// where /tmp may be in memory.
func directory(t *testing.T) string {
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

// eventually waits until done reports true.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// A follower reads the lines of a file that grows.
type follower struct {
	t    *testing.T
	file *os.File
	rest []byte // of a line that has no end yet
}

// follow starts at the beginning of a file, which need not exist yet.
func follow(t *testing.T, path string) *follower {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return &follower{t: t, file: file}
}

// lines returns the lines that were added since the last call.
func (f *follower) lines() []string {
	added, err := io.ReadAll(f.file)
	if err != nil {
		f.t.Fatal(err)
	}
	text := append(f.rest, added...)
	end := bytes.LastIndexByte(text, '\n') + 1
	f.rest = text[end:]
	return slices.Collect(strings.Lines(string(text[:end])))
}

// showOnFailure shows the end of a log if the test fails.
func showOnFailure(t *testing.T, path string) {
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Log(err)
		}
		const most = 8 << 10
		t.Logf("the end of %s:\n%s", filepath.Base(path), text[max(0, len(text)-most):])
	})
}

// A processStatus is what the kernel says of a process.
type processStatus struct {
	pid, parent, group int
	program            string // path of its file
	zombie             bool
}

// processes returns all that run.
func processes(t *testing.T) (all []processStatus) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		// See proc(5): pid (name) state parent group. The name may hold anything.
		p := processStatus{pid: pid}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		p.zombie = fields[0] == "Z"
		p.parent, _ = strconv.Atoi(fields[1])
		p.group, _ = strconv.Atoi(fields[2])
		p.program, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		all = append(all, p)
	}
	return all
}

// peakMemory returns the most resident memory that a process ever had.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer status.Close()
	lines := bufio.NewScanner(status)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			kilobytes, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kilobytes << 10
		}
	}
	t.Fatalf("process %d has no VmHWM", pid)
	return 0
}
