package plugins

import (
	"errors"
	"fmt"
	"io/fs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// systemFiles are what every program may read and run, as far as it exists: the
// programs and libraries of the system, and what resolves names, verifies
// certificates and tells the time. Nothing there is secret.
var systemFiles = []string{
	"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64",
	"/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/timezone",
	"/etc/nsswitch.conf", "/etc/resolv.conf", "/run/systemd/resolve", "/etc/hosts", "/etc/host.conf", "/etc/gai.conf",
	"/etc/services", "/etc/protocols", "/etc/passwd", "/etc/group",
	"/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/pki/tls", "/etc/ca-certificates",
}

// devices are what every program may read and write.
var devices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}

// Rights of Landlock.
const (
	mayRead   = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	mayRun    = unix.LANDLOCK_ACCESS_FS_EXECUTE
	mayChange = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	mayListen = unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE
	mayMake   = mayListen | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_REFER
	nobodyMay = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK

	// ofFiles are those that mean something for what is no directory.
	ofFiles = unix.LANDLOCK_ACCESS_FS_READ_FILE | mayRun | mayChange
)

// A ruleset is one of Landlock: a descriptor, and the rights that it handles.
type ruleset struct {
	fd      int
	handled uint64
}

// confine keeps this thread, and what it becomes, from files beyond those of
// the sandbox, from signals to processes outside it, from abstract sockets of
// theirs, and from tracing them.
func (o *order) confine(sockets string) error {
	r, err := newRuleset(o.Sandbox.BestEffort)
	if err != nil {
		return o.Sandbox.attempt("sandbox.write_paths", err)
	}
	defer unix.Close(r.fd)
	for _, row := range []struct {
		key    string // what is missing without one does not matter
		rights uint64
		paths  []string
	}{
		{"", mayRead | mayRun, systemFiles},
		{"", mayRead | mayChange, devices},
		{o.programKey(), mayRead | mayRun, []string{o.Path}},
		{"plugin_directory", mayRead | mayChange | mayListen, []string{sockets}},
		{"sandbox.read_paths", mayRead | mayRun, o.Sandbox.Files.Read},
		{"sandbox.write_paths", mayRead | mayChange | mayMake, o.Sandbox.Files.Write},
	} {
		for _, path := range row.paths {
			err := r.allow(path, row.rights)
			if row.key == "" {
				continue
			}
			if err := o.Sandbox.attempt(row.key, err); err != nil {
				return err
			}
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(r.fd), 0, 0); errno != 0 {
		return o.Sandbox.attempt("sandbox.write_paths", fmt.Errorf("landlock: %w", errno))
	}
	return nil
}

// programKey is the key of the program. That in memory is in no file system, and so
// beyond Landlock: it can be run without its file.
func (o *order) programKey() string {
	if o.Verified {
		return ""
	}
	return "plugin"
}

// newRuleset returns a ruleset that allows nothing. What the kernel does not know
// it leaves alone.
func newRuleset(bestEffort bool) (*ruleset, error) {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return nil, fmt.Errorf("the kernel has no Landlock: %w", errno)
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: mayRead | mayRun | mayChange | mayMake | nobodyMay}
	for _, later := range []struct {
		since  uintptr
		rights uint64
	}{
		{2, unix.LANDLOCK_ACCESS_FS_REFER}, // refused by the first version
		{3, unix.LANDLOCK_ACCESS_FS_TRUNCATE},
		{5, unix.LANDLOCK_ACCESS_FS_IOCTL_DEV},
	} {
		if version < later.since {
			attr.Handled_access_fs &^= later.rights
		}
	}
	if attr.Handled_access_fs&unix.LANDLOCK_ACCESS_FS_TRUNCATE == 0 && !bestEffort {
		return nil, errors.New("the Landlock of this kernel does not keep files from being truncated; Linux 6.2 does")
	}
	if version >= 6 {
		// The socket by which mailgw is controlled has no place in the file system.
		attr.Scoped = unix.LANDLOCK_SCOPE_SIGNAL | unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return nil, fmt.Errorf("landlock: %w", errno)
	}
	return &ruleset{int(fd), attr.Handled_access_fs}, nil
}

// allow gives rights over what is at a path, and below it.
func (r *ruleset) allow(path string, rights uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= ofFiles
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights & r.handled, Parent_fd: int32(fd)}
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(r.fd), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
		return &fs.PathError{Op: "landlock", Path: path, Err: errno}
	}
	return nil
}
