package main

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/spf13/cobra"

	"github.com/mailgw/mailgw/gateway"
	"github.com/mailgw/mailgw/plugins"
)

// launchCommand is what the gateway starts plugins with that have a sandbox.
func launchCommand() *cobra.Command {
	return &cobra.Command{
		Use:                plugins.LaunchArgument,
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return exitError{exitSystem, plugins.Launch(args)}
		},
	}
}

// becomeUser makes root the user of the configuration: the program starts again as
// that user, in this process, with the capabilities that it needs later and no
// other. What it opens, it opens as that user. It returns only if there is nothing
// to do, or an error.
func becomeUser(c *gateway.Config) error {
	if c == nil || c.Credential == nil || c.Credential.Uid == 0 || os.Geteuid() != 0 {
		return nil
	}
	// The threads of Go each have their own credentials. Those of the one that
	// calls execve become the process's.
	runtime.LockOSThread()
	if err := takeUser(c.Credential, neededCapabilities(c)); err != nil {
		return exitError{exitSystem, fmt.Errorf("user %s: %w", c.User, err)}
	}
	return exitError{exitSystem, fmt.Errorf("start again as %s: %w", c.User, syscall.Exec("/proc/self/exe", os.Args, os.Environ()))}
}

// neededCapabilities are those that restarts, kills and binds need later.
func neededCapabilities(c *gateway.Config) (needed []int) {
	for _, b := range c.Backends {
		if user := b.Sandbox.Credential; user != nil && (user.Uid != c.Credential.Uid || user.Gid != c.Credential.Gid) {
			needed = append(needed, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL, unix.CAP_CHOWN)
		}
	}
	for _, l := range c.Listeners {
		network, address, _ := strings.Cut(l.Address, ":")
		_, port, _ := net.SplitHostPort(address)
		if n, err := strconv.Atoi(port); network == "tcp" && err == nil && n > 0 && n < 1024 {
			needed = append(needed, unix.CAP_NET_BIND_SERVICE)
		}
		if l.Owner != "" {
			needed = append(needed, unix.CAP_CHOWN, unix.CAP_FOWNER) // to give it away, and to set its mode then
		}
		if l.Group != "" {
			needed = append(needed, unix.CAP_CHOWN)
		}
	}
	return needed
}

// takeUser gives this thread the ids, and makes the capabilities, which programs
// that it becomes have too, all that it can ever have.
func takeUser(user *syscall.Credential, needed []int) error {
	var keep uint64
	for _, c := range needed {
		keep |= 1 << c
	}
	for c := 0; c < 64; c++ {
		if keep&(1<<c) == 0 {
			unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0) // it fails for those that there are not
		}
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	// The functions of package syscall would change all threads.
	var groups unsafe.Pointer
	if len(user.Groups) > 0 {
		groups = unsafe.Pointer(&user.Groups[0])
	}
	uid, gid := uintptr(user.Uid), uintptr(user.Gid)
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(user.Groups)), uintptr(groups), 0); errno != 0 {
		return fmt.Errorf("setgroups: %w", errno)
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return fmt.Errorf("setresgid: %w", errno)
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return fmt.Errorf("setresuid: %w", errno)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	low, high := uint32(keep), uint32(keep>>32)
	sets := [2]unix.CapUserData{{Effective: low, Permitted: low, Inheritable: low}, {Effective: high, Permitted: high, Inheritable: high}}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	for _, c := range needed {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return fmt.Errorf("ambient capability %d: %w", c, err)
		}
	}
	return nil
}
