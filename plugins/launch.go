package plugins

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Launch is the main function of the launcher, with the arguments that follow
// LaunchArgument. It enters the sandbox that they tell and becomes the program. It
// returns only if it cannot, with an error if it could not tell the gateway so.
func Launch(args []string) error {
	var o order
	if os.Getenv(handshake.MagicCookieKey) != handshake.MagicCookieValue || len(args) < 2 || json.Unmarshal([]byte(args[0]), &o) != nil {
		return errors.New("is for mailgw itself, which starts plugins with it")
	}
	runtime.LockOSThread() // much of the following is of one thread, which becomes the program's
	syscall.CloseOnExec(reportFD)
	err := o.enter()
	if err == nil {
		path := o.Path
		if o.Verified {
			path = fmt.Sprintf("/proc/self/fd/%d", verifiedFD)
		}
		err = noInterpreter(syscall.Exec(path, args[1:], os.Environ()), path)
		err = KeyError{"plugin", fmt.Errorf("run %s: %w", o.Path, err)}
	}
	return report(err)
}

// A failedLaunch is what the launcher tells the gateway, by reportFD, of why there is no
// program. The program itself does not have that descriptor.
type failedLaunch struct {
	Key  string // of a KeyError, or ""
	Text string
}

// mostReport is how much of it the gateway takes.
const mostReport = 16 << 10

// report returns err if it cannot be told.
func report(err error) error {
	told := failedLaunch{Text: err.Error()}
	if of, ok := err.(KeyError); ok {
		told = failedLaunch{of.Key, of.Err.Error()}
	}
	text, marshalErr := json.Marshal(told)
	if marshalErr != nil {
		return err
	}
	if _, writeErr := syscall.Write(reportFD, text); writeErr != nil {
		return err
	}
	return nil
}

// readReport returns nil if the launcher has told of none.
func readReport(f *os.File) error {
	text, _ := io.ReadAll(io.LimitReader(f, mostReport))
	var told failedLaunch
	switch {
	case json.Unmarshal(text, &told) != nil:
		return nil
	case told.Key == "":
		return errors.New(told.Text)
	}
	return KeyError{told.Key, errors.New(told.Text)}
}

// noInterpreter says what is not there when a program does not start although the
// program and all else is: the system has one error for all of them.
func noInterpreter(err error, there ...string) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, path := range there {
		if _, missing := os.Stat(path); missing != nil {
			return err
		}
	}
	return fmt.Errorf("the interpreter that it names: %w", err)
}

// enter applies the sandbox.
func (o *order) enter() error {
	s := &o.Sandbox
	if err := o.dieWithParent(); err != nil {
		return err
	}
	if s.Directory != "" {
		if err := os.Chdir(s.Directory); err != nil {
			return KeyError{"sandbox.directory", err}
		}
	}
	sockets := os.Getenv("PLUGIN_UNIX_SOCKET_DIR")
	if err := unix.Access(sockets, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("plugin_directory: uid %d cannot enter %s: %w", os.Getuid(), sockets, err)
	}
	if o.Verified && !isScript(verifiedFD) {
		syscall.CloseOnExec(verifiedFD) // the interpreter of a script would open it again
	}
	if s.Files != nil {
		if err := o.confine(sockets); err != nil {
			return err
		}
	}
	return s.limit() // last, since they are for the program and not for the launcher
}

// attempt makes err, which has kept a part of the sandbox from being applied, a
// warning if that will do.
func (s *Sandbox) attempt(key string, err error) error {
	if err == nil {
		return nil
	}
	err = KeyError{key, err}
	if s.BestEffort {
		fmt.Fprintln(os.Stderr, err)
		return nil
	}
	return err
}

// dieWithParent has the kernel kill this process when the gateway ends. That it
// would have been told to do so before does not count for certain any more: a
// change of privileges at the start of a program makes it forget.
func (o *order) dieWithParent() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("parent's death: %w", err)
	}
	if os.Getppid() != o.Parent {
		return errors.New("the gateway has ended")
	}
	return nil
}

// isScript reports whether a file begins as those do that an interpreter runs.
func isScript(fd int) bool {
	begin := make([]byte, 2)
	n, _ := syscall.Pread(fd, begin, 0)
	return n == 2 && string(begin) == "#!"
}

// limit sets the limits. At the end of its CPU a process gets SIGKILL: SIGXCPU,
// which a soft limit would send before, means nothing to Go.
func (s *Sandbox) limit() error {
	for _, l := range []struct {
		key      string
		resource int
		most     uint64
	}{
		{"cpu", unix.RLIMIT_CPU, uint64(s.CPU.Seconds())},
		{"open_files", unix.RLIMIT_NOFILE, s.OpenFiles},
		{"processes", unix.RLIMIT_NPROC, s.Processes},
		{"memory", unix.RLIMIT_DATA, s.Memory},
	} {
		if l.most == 0 {
			continue
		}
		err := syscall.Setrlimit(l.resource, &syscall.Rlimit{Cur: l.most, Max: l.most})
		if err := s.attempt("sandbox."+l.key, err); err != nil {
			return err
		}
	}
	return nil
}
