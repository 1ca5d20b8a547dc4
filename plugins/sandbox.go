package plugins

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Sandbox is what a plugin is kept in. The zero Sandbox keeps it from gaining
// privileges, and from nothing else.
//
// Where there is more to it, the process begins as the launcher: this very
// program with the argument LaunchArgument, whose main function then calls
// Launch. What cannot be applied is an error of the start.
type Sandbox struct {
	// User is who the plugin runs as. nil is the user of this process.
	// Another one takes the capabilities SETUID, SETGID, KILL and CHOWN.
	User *syscall.Credential

	// Directory is the working directory. "" is that of this process.
	Directory string

	// Memory, in octets, OpenFiles, Processes and CPU are limits as setrlimit(2)
	// has them: of data, of descriptors, of processes and threads that the
	// user has, and of the time until the process is ended. Zero is none.
	Memory, OpenFiles, Processes uint64
	CPU                          time.Duration

	// Files are those that it may use. nil is all that its user may.
	Files *Files

	// NewPrivileges lets it gain privileges by programs with a setuid bit, a
	// setgid bit or capabilities.
	NewPrivileges bool

	// BestEffort makes what cannot be applied a warning in the log.
	BestEffort bool
}

// Files are paths of files and directories. What is below a directory counts,
// too. The program itself, its socket, and some files that every program may want,
// the libraries of the system for instance, are always among them: see systemFiles.
type Files struct {
	Read  []string // what may be read and run
	Write []string // what may be read and changed
}

// LaunchArgument is the first argument of the launcher.
const LaunchArgument = "launch"

// An order is what the launcher is to do.
type order struct {
	Parent   int    // process that the plugin is not to outlive
	Path     string // of the program
	Verified bool   // the program is in memory, as verifiedFD
	Sandbox  Sandbox
}

// Descriptors that a plugin, or its launcher, begins with, besides the standard
// ones.
const lifelineFD, verifiedFD, reportFD = 3, 4, 5

// newCommand returns what starts the program: the launcher, if it is needed.
func newCommand(c Command) *exec.Cmd {
	name := c.Path
	if c.Path == "/proc/self/exe" {
		name = "mailgw: " + c.Name // for ps
	}
	if !c.launched() {
		cmd := exec.Command(c.Path, c.Args...)
		cmd.Args[0] = name
		return cmd
	}
	o := order{os.Getpid(), c.Path, c.Checksum != nil, c.Sandbox}
	o.Sandbox.User = nil // the process has changed it by then
	text, err := json.Marshal(o)
	if err != nil {
		panic(err) // there are but strings and numbers in it
	}
	return exec.Command("/proc/self/exe", append([]string{LaunchArgument, string(text), name}, c.Args...)...)
}

// launched reports whether the process begins as the launcher.
func (c *Command) launched() bool { return c.Sandbox.wantsLauncher() || c.Checksum != nil }

// wantsLauncher reports whether there is something in s that only the process
// itself can do.
func (s Sandbox) wantsLauncher() bool {
	s.NewPrivileges, s.BestEffort = false, false
	return !reflect.ValueOf(s).IsZero()
}

// shedPrivileges keeps what the calling thread starts from the privileges that
// this process has and may gain. It cannot be undone.
func (s Sandbox) shedPrivileges() error {
	if !s.NewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("no new privileges: %w", err)
		}
	}
	// Ambient capabilities, which programs inherit, are inheritable ones.
	header, sets, err := capabilitySets()
	if err == nil && (sets[0].Inheritable != 0 || sets[1].Inheritable != 0) {
		sets[0].Inheritable, sets[1].Inheritable = 0, 0
		err = unix.Capset(&header, &sets[0])
	}
	if err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	return nil
}

// capabilitySets returns the capabilities of the calling thread.
func capabilitySets() (header unix.CapUserHeader, sets [2]unix.CapUserData, err error) {
	header.Version = unix.LINUX_CAPABILITY_VERSION_3
	err = unix.Capget(&header, &sets[0])
	return header, sets, err
}

// forOthers are the capabilities that it takes to have a process of another
// user: to start it, to end it, and to give it a directory.
var forOthers = []struct {
	name string
	bit  int
}{
	{"CAP_SETUID", unix.CAP_SETUID},
	{"CAP_SETGID", unix.CAP_SETGID},
	{"CAP_KILL", unix.CAP_KILL},
	{"CAP_CHOWN", unix.CAP_CHOWN},
}

// settle makes User nil if that is who this process runs as, or if, with
// BestEffort, the plugin cannot run as somebody else.
func (s *Sandbox) settle(log *slog.Logger) error {
	if s.User == nil {
		return nil
	}
	if int(s.User.Uid) == os.Geteuid() && int(s.User.Gid) == os.Getegid() {
		s.User = nil
		return nil
	}
	err := mayHaveOthers()
	if err != nil && s.BestEffort {
		log.Warn("backend", "event", "sandbox", "error", err)
		s.User, err = nil, nil
	}
	return err
}

func mayHaveOthers() error {
	_, sets, err := capabilitySets()
	if err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	var missing []string
	for _, c := range forOthers {
		if sets[0].Effective&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	if missing != nil {
		return KeyError{"sandbox.user", fmt.Errorf("to run as another user takes root or %s, which mailgw has not", strings.Join(missing, ", "))}
	}
	return nil
}
