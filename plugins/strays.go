package plugins

import (
	"cmp"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
)

// A plugin may start processes that leave its group, or trace it, which keeps
// its end from us. They do not outlive it: when a process ends, those that it has
// started become children of this process. Whose they are tells their user, of a
// plugin with a user of its own; two plugins with one user share their lot. Else
// their environment tells, as long as they keep it.

// children are those of this process that are plugins.
var children struct {
	sync.Mutex
	adopt   sync.Once
	plugins map[int]bool // by their pids, until they are reaped
}

// otherUser returns the user of the process, if it is not that of this one.
func (p *process) otherUser() (uid uint32, ok bool) {
	user := p.command.Sandbox.User
	if user == nil || int(user.Uid) == os.Geteuid() {
		return 0, false
	}
	return user.Uid, true
}

// startChild starts a plugin.
func (p *process) startChild() error {
	if _, ok := p.otherUser(); ok {
		AdoptStrays()
	}
	children.Lock()
	defer children.Unlock()
	if err := noInterpreter(p.cmd.Start(), p.cmd.Path, cmp.Or(p.cmd.Dir, ".")); err != nil {
		return err
	}
	p.pid = p.cmd.Process.Pid
	if children.plugins == nil {
		children.plugins = map[int]bool{}
	}
	children.plugins[p.pid] = true
	return nil
}

// forgetChild is called when the process was reaped.
func (p *process) forgetChild() {
	children.Lock()
	defer children.Unlock()
	delete(children.plugins, p.pid)
}

// AdoptStrays has this process adopt what plugins leave behind, so that it can be
// ended with them. It is for programs of which all children in other process groups
// are plugins, or of plugins. Where plugins have users of their own, Start does it.
func AdoptStrays() { children.adopt.Do(adoptStrays) }

// adoptStrays makes what plugins leave behind children of this process, instead of
// those of the first one, and reaps them as that would. Children of the group of
// this process are its own.
func adoptStrays() {
	if unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != nil {
		return // they are ended with the group of their plugin, or not at all
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	group := unix.Getpgrp()
	go func() {
		for range ended {
			children.Lock()
			for _, pid := range strays() {
				if of, err := unix.Getpgid(pid); err == nil && of != group {
					unix.Wait4(pid, nil, unix.WNOHANG, nil)
				}
			}
			children.Unlock()
		}
	}()
}

// endStrays ends what the plugin has left behind. Once it returns, nothing is left
// but what a second is too short for, or cannot be told.
func (p *process) endStrays() {
	known := map[int]bool{}
	for end := time.Now().Add(time.Second); p.killStrays(known) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// killStrays reports whether there were any. Those that they have started are
// found the next time. known are those that were found: what has ended, and is
// there until it was waited for, tells no more whose it is.
func (p *process) killStrays(known map[int]bool) (found bool) {
	children.Lock()
	defer children.Unlock()
	for _, pid := range strays() {
		if known[pid] || p.hasStarted(pid) {
			known[pid] = true
			syscall.Kill(pid, syscall.SIGKILL)
			unix.Wait4(pid, nil, unix.WNOHANG, nil)
			found = true
		}
	}
	return found
}

// hasStarted reports whether a stray is known to be of the plugin.
func (p *process) hasStarted(pid int) bool {
	if uid, ok := p.otherUser(); ok {
		return realUser(pid) == strconv.Itoa(int(uid))
	}
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return false
	}
	defer f.Close()
	const most = 1 << 20
	environment, _ := io.ReadAll(io.LimitReader(f, most))
	// No other process of a plugin has that directory.
	return slices.Contains(strings.Split(string(environment), "\x00"), plugin.EnvUnixSocketDir+"="+p.sockets)
}

// strays are the children of this process that are no plugins. The caller holds
// children.
func strays() (pids []int) {
	files, _ := filepath.Glob("/proc/self/task/*/children")
	for _, file := range files {
		text, _ := os.ReadFile(file)
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil && !children.plugins[pid] {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// realUser is the user who has started a process. Only a program with a setuid bit
// has another one in effect.
func realUser(pid int) string {
	status, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	for line := range strings.Lines(string(status)) {
		if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
			return strings.Fields(ids)[0]
		}
	}
	return ""
}
