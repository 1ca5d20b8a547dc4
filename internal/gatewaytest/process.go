package gatewaytest

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// A Process is what the kernel says of a process.
type Process struct {
	PID, Parent, Group int
	Program            string // path of its file
	Dir                string // that it works in
	Zombie             bool
}

// Processes returns all that run.
func Processes(t *testing.T) (all []Process) {
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
		p := Process{PID: pid}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		p.Zombie = fields[0] == "Z"
		p.Parent, _ = strconv.Atoi(fields[1])
		p.Group, _ = strconv.Atoi(fields[2])
		p.Program, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		p.Dir, _ = os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		all = append(all, p)
	}
	return all
}

// Memory returns a size that the kernel has of a process: "VmRSS", how much
// memory is resident, or "VmHWM", the most that ever was.
func Memory(t *testing.T, pid int, which string) int64 {
	t.Helper()
	status, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer status.Close()
	lines := bufio.NewScanner(status)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), which+":"); ok {
			kilobytes, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kilobytes << 10
		}
	}
	t.Fatalf("process %d has no %s", pid, which)
	return 0
}
