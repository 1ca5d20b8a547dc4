package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// descendants returns the processes that pid has started, and those that these
// have started, as far as they run.
func descendants(pid int) (all []int) {
	// Each thread lists the children that it started.
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		children, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for child := range strings.FieldsSeq(string(children)) {
			if id, err := strconv.Atoi(child); err == nil {
				all = append(append(all, id), descendants(id)...)
			}
		}
	}
	return all
}

func tree(pid int) []int { return append([]int{pid}, descendants(pid)...) }

// tick is the unit of times in /proc: USER_HZ. The kernel counts nanoseconds, so
// that nothing but the last tick of a process is lost.
const tick = time.Second / 100

// cpuTime returns the CPU time that processes have used, and those that they
// have started and that have ended.
func cpuTime(pids []int) (total time.Duration, err error) {
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended: its parent has what it used
		}
		// See proc(5): the name, in parentheses, may hold anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, i := range []int{14, 15, 16, 17} { // utime, stime, cutime, cstime
			ticks, err := strconv.ParseInt(fields[i-3], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
			}
			total += time.Duration(ticks) * tick
		}
	}
	return total, nil
}

// memory returns the sum of a size that the kernel has of each process, in
// octets: "VmHWM" of status, the most that was resident, or "Pss" of
// smaps_rollup, what is resident, shared pages in shares.
func memory(pids []int, file, key string) (total int64, err error) {
	for _, pid := range pids {
		path := fmt.Sprintf("/proc/%d/%s", pid, file)
		text, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		_, value, ok := strings.Cut("\n"+string(text), "\n"+key+":")
		fields := strings.Fields(value)
		if !ok || len(fields) == 0 {
			return 0, fmt.Errorf("%s: no %s", path, key)
		}
		kilobytes, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %s: %w", path, key, err)
		}
		total += kilobytes << 10
	}
	return total, nil
}

// forgetPeak makes VmHWM of processes begin anew with what is resident now.
func forgetPeak(pids []int) error {
	for _, pid := range pids {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
			return err
		}
	}
	return nil
}
