package plugins

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mailgw/mailgw/backends"
)

// stranger is a user that nothing belongs to.
var stranger = &syscall.Credential{Uid: 54321, Gid: 54322, Groups: []uint32{54323}}

// sandboxed is the test binary as the plugin "inside" in a sandbox.
func sandboxed(t *testing.T, s Sandbox) (Command, *gatewayLog) {
	t.Helper()
	log := newGatewayLog()
	c := command(t, "inside", log)
	// As another user it could not enter the directory of the test binary.
	c.Path, c.Sandbox = "/proc/self/exe", s
	if err := os.Chmod(c.Directory, 0o711); err != nil {
		t.Fatal(err)
	}
	return c, log
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
}

func needLandlock(t *testing.T) {
	t.Helper()
	if _, err := newRuleset(false); err != nil {
		t.Skip(err)
	}
}

// inside is what the plugin "inside" says of an action.
func inside(t *testing.T, h *Host, action string) string {
	t.Helper()
	o := deliver(t.Context(), h, message("", action))
	if o.err != nil {
		t.Fatalf("%s: %v", action, o.err)
	}
	return o.status(t, 0).Text
}

// act does what the first recipient says, and tells what came of it.
func act(_ context.Context, tx *backends.DataContext) error {
	action, of, _ := strings.Cut(tx.Envelope.Recipients[0].Address, " ")
	var result any
	switch action {
	case "status":
		result = processStatus("self", of)
	case "limit":
		var l syscall.Rlimit
		resource, _ := strconv.Atoi(of)
		syscall.Getrlimit(resource, &l)
		result = fmt.Sprint(l.Cur, " ", l.Max)
	case "directory":
		result, _ = os.Getwd()
	case "read":
		_, result = os.ReadFile(of)
	case "list":
		_, result = os.ReadDir(of)
	case "write":
		result = os.WriteFile(of, []byte("x"), 0o600)
	case "truncate":
		result = os.Truncate(of, 0)
	case "mkdir":
		result = os.Mkdir(of, 0o700)
	case "run":
		result = exec.Command(of).Run()
	case "kill":
		pid, _ := strconv.Atoi(of)
		result = syscall.Kill(pid, 0)
	case "dial":
		var conn net.Conn
		if conn, result = net.Dial("unix", of); result == nil {
			conn.Close()
		}
	case "deepen": // the directory of its socket
		os.Chmod(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), 0o777)
		result = os.MkdirAll(os.Getenv("PLUGIN_UNIX_SOCKET_DIR")+strings.Repeat("/d", 1000), 0o777)
	case "descriptor":
		_, result = os.Stat("/proc/self/fd/" + of)
	case "move": // to the group of a child
		child := exec.Command("/bin/sleep", "1000")
		child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		if result = child.Start(); result == nil {
			result = syscall.Setpgid(0, child.Process.Pid)
		}
	case "stray": // that has left the group, and maybe traces this process
		child := exec.Command("/proc/self/exe", "plugin", "stray", of)
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		unix.Prctl(unix.PR_SET_PTRACER, ^uintptr(0), 0, 0, 0) // where Yama minds
		ready, _ := child.StdoutPipe()
		if result = child.Start(); result == nil {
			if _, result = ready.Read(make([]byte, 1)); result == nil {
				result = child.Process.Pid
			}
		}
	case "spin":
		for n := 1; n != 0; n += 2 { // which it never is
		}
	}
	if err, ok := result.(error); ok && errors.Is(err, fs.ErrPermission) {
		result = "denied"
	}
	tx.SetStatus(0, backends.NewStatus(250, "2.0.0", fmt.Sprint(result)))
	return nil
}

// processStatus is a line of /proc/PID/status.
func processStatus(pid, line string) string {
	status, _ := os.ReadFile("/proc/" + pid + "/status")
	match := regexp.MustCompile(`(?m)^` + line + `:(.*)$`).FindStringSubmatch(string(status))
	if match == nil {
		return ""
	}
	return strings.Join(strings.Fields(match[1]), " ")
}

func TestPluginRunsAsItsUser(t *testing.T) {
	needRoot(t)
	c, log := sandboxed(t, Sandbox{User: stranger})
	h := runCommand(t, c, defaultTimes)
	for range 2 { // the second one after a restart
		for line, want := range map[string]string{
			"Uid":        "54321 54321 54321 54321",
			"Gid":        "54322 54322 54322 54322",
			"Groups":     "54323",
			"CapInh":     "0000000000000000",
			"CapPrm":     "0000000000000000",
			"CapEff":     "0000000000000000",
			"CapAmb":     "0000000000000000",
			"NoNewPrivs": "1",
		} {
			if got := inside(t, h, "status "+line); got != want {
				t.Errorf("%s is %q, want %q", line, got, want)
			}
		}
		if got := inside(t, h, "write "+c.Directory+"/x"); got != "denied" {
			t.Errorf("it writes to a directory of root: %s", got)
		}
		directories, _ := filepath.Glob(h.sockets.path + "/*")
		if len(directories) != 1 {
			t.Fatalf("got the socket directories %q", directories)
		}
		info, err := os.Stat(directories[0])
		if err != nil {
			t.Fatal(err)
		}
		if owner := info.Sys().(*syscall.Stat_t); owner.Uid != stranger.Uid || info.Mode().Perm() != 0o700 {
			t.Errorf("the socket directory has the owner %d and the mode %v", owner.Uid, info.Mode())
		}
		syscall.Kill(log.pid(t, 1), syscall.SIGKILL)
		log.wait(t, 2, "started", "")
	}
}

func TestStoppedPluginOfAnotherUserIsReplaced(t *testing.T) {
	needRoot(t)
	c, log := sandboxed(t, Sandbox{User: stranger})
	times := defaultTimes
	times.checkEvery, times.checkTimeout = 20*time.Millisecond, 50*time.Millisecond
	h := runCommand(t, c, times)
	pid := log.pid(t, 1)
	syscall.Kill(pid, syscall.SIGSTOP)
	log.wait(t, 1, "unhealthy", "")
	log.wait(t, 2, "started", "")
	if !gone(pid) {
		t.Errorf("process %d is still there", pid)
	}
	if got := inside(t, h, "status Uid"); !strings.HasPrefix(got, "54321 ") {
		t.Errorf("the next one runs as %q", got)
	}
}

// stray is what a plugin leaves behind.
func stray() {
	runtime.LockOSThread()
	if os.Args[3] == "trace" {
		if err := unix.PtraceSeize(os.Getppid()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	fmt.Println("ready")
	hang()
}

func TestPluginLeavesNothingBehind(t *testing.T) {
	for _, what := range []string{"run", "trace"} {
		t.Run(what, func(t *testing.T) { leaveNothingBehind(t, what, Sandbox{}) })
		t.Run(what+" as another user", func(t *testing.T) {
			needRoot(t)
			leaveNothingBehind(t, what, Sandbox{User: stranger})
		})
	}
}

func leaveNothingBehind(t *testing.T, what string, s Sandbox) {
	c, log := sandboxed(t, s)
	times := defaultTimes
	times.checkEvery, times.checkTimeout = 20*time.Millisecond, 500*time.Millisecond
	h := runCommand(t, c, times)
	stray, err := strconv.Atoi(inside(t, h, "stray "+what))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(stray, syscall.SIGKILL) })
	pid := log.pid(t, 1)
	syscall.Kill(pid, syscall.SIGKILL)
	log.wait(t, 2, "started", "")
	for _, pid := range []int{pid, stray} {
		if !gone(pid) {
			t.Errorf("process %d is still there: %s", pid, processState(pid))
		}
	}
}

// To remove directories takes a descriptor for each level.
func TestDirectoriesOfPluginAreNotEntered(t *testing.T) {
	needRoot(t)
	c, log := sandboxed(t, Sandbox{User: stranger})
	h := runCommand(t, c, defaultTimes)
	if got := inside(t, h, "deepen"); got != "<nil>" {
		t.Fatal(got)
	}
	if err := h.Close(t.Context()); err != nil {
		t.Error(err)
	}
	deep, _ := filepath.Glob(h.sockets.path + "/*/d/d/d")
	if len(deep) != 1 {
		t.Errorf("%s was removed", h.sockets.path)
	}
	log.wait(t, 2, "stopped", "") // one says that it is still there
	os.RemoveAll(h.sockets.path)
}

// What leads a group may still go over to another one.
func TestPluginThatLeavesItsGroupIsEnded(t *testing.T) {
	c, log := sandboxed(t, Sandbox{})
	h := runCommand(t, c, defaultTimes)
	pid := log.pid(t, 1)
	if got := inside(t, h, "move"); got != "<nil>" {
		t.Fatal(got)
	}
	syscall.Kill(pid, syscall.SIGSTOP) // it does not end by itself
	if err := h.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if !gone(pid) {
		t.Errorf("process %d is still there", pid)
	}
}

// A shell or a service manager may have left descriptors to the gateway.
func TestPluginInheritsNoDescriptor(t *testing.T) {
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const fd = 100
	if err := syscall.Dup2(int(f.Fd()), fd); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	for name, s := range map[string]Sandbox{"bare": {}, "sandbox": {Directory: "/"}} {
		t.Run(name, func(t *testing.T) {
			c, _ := sandboxed(t, s)
			h := runCommand(t, c, defaultTimes)
			if got := inside(t, h, fmt.Sprint("descriptor ", fd)); !strings.Contains(got, "no such file") {
				t.Errorf("the plugin has it: %s", got)
			}
		})
	}
}

func TestPluginGainsNoPrivileges(t *testing.T) {
	for may, want := range map[bool]string{false: "1", true: "0"} {
		t.Run(fmt.Sprint(may), func(t *testing.T) {
			c, _ := sandboxed(t, Sandbox{NewPrivileges: may})
			h := runCommand(t, c, defaultTimes)
			if got := inside(t, h, "status NoNewPrivs"); got != want {
				t.Errorf("NoNewPrivs is %q, want %q", got, want)
			}
		})
	}
	if got := processStatus("self", "NoNewPrivs"); got != "0" {
		t.Errorf("NoNewPrivs of the gateway is %q", got)
	}
}

func TestLimits(t *testing.T) {
	needRoot(t) // who is not bound by the hard limits of this session
	directory := t.TempDir()
	c, _ := sandboxed(t, Sandbox{Directory: directory, OpenFiles: 77, Processes: 999, CPU: 90 * time.Second, Memory: 1 << 40})
	h := runCommand(t, c, defaultTimes)
	for resource, want := range map[int]string{
		unix.RLIMIT_NOFILE: "77 77",
		unix.RLIMIT_NPROC:  "999 999",
		unix.RLIMIT_CPU:    "90 90",
		unix.RLIMIT_DATA:   "1099511627776 1099511627776",
	} {
		if got := inside(t, h, fmt.Sprint("limit ", resource)); got != want {
			t.Errorf("the limit %d is %q, want %q", resource, got, want)
		}
	}
	if got := inside(t, h, "directory"); got != directory {
		t.Errorf("the working directory is %q, want %q", got, directory)
	}
}

func TestPluginThatSpinsIsEnded(t *testing.T) {
	c, log := sandboxed(t, Sandbox{CPU: time.Second})
	h := runCommand(t, c, defaultTimes)
	deliver(t.Context(), h, message("", "spin")).wantError(t, "has ended")
	log.wait(t, 2, "started", "")
	inside(t, h, "directory")
}

// leakMemory is a limit that a plugin in Go can live with.
const leakMemory = 256 << 20

func TestPluginThatLeaksIsEnded(t *testing.T) {
	program := filepath.Join(t.TempDir(), "leak")
	// Without the race detector, whose memory is beyond every limit.
	if out, err := exec.Command("go", "build", "-o", program, "./testdata/leak").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c, log := sandboxed(t, Sandbox{Memory: leakMemory})
	c.Path, c.Args = program, nil
	h := runCommand(t, c, defaultTimes)
	deliver(t.Context(), h, message("", "leak")).wantError(t, "has ended")
	log.wait(t, 2, "started", "")
	if o := deliver(t.Context(), h, message("", "one")); o.status(t, 0) != backends.Delivered {
		t.Errorf("the next one answers %v, %v", o.statuses, o.err)
	}
}

func TestFilesOfSandbox(t *testing.T) {
	needLandlock(t)
	parent := t.TempDir()
	for _, name := range []string{"readable", "writable", "other"} {
		if err := os.Mkdir(filepath.Join(parent, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(parent, name, "file"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	listener, err := net.Listen("unix", fmt.Sprint("@mailgw-test-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	abstract := listener.Addr().String()
	for _, test := range []struct {
		name  string
		files Files
		want  map[string]string // action to what comes of it
	}{
		{"read-only", Files{Read: []string{"/"}}, map[string]string{
			"read other/file":     "<nil>",
			"run /bin/true":       "<nil>",
			"write other/file":    "denied",
			"write other/new":     "denied",
			"truncate other/file": "denied",
			"mkdir other/new":     "denied",
			"write /dev/null":     "<nil>",
		}},
		{"paths", Files{Read: []string{parent + "/readable"}, Write: []string{parent + "/writable"}}, map[string]string{
			"read readable/file":              "<nil>",
			"write readable/file":             "denied",
			"read writable/file":              "<nil>",
			"write writable/new":              "<nil>",
			"truncate writable/file":          "<nil>",
			"mkdir writable/new.d":            "<nil>",
			"read other/file":                 "denied",
			"list other":                      "denied",
			"truncate other/file":             "denied",
			"list /proc":                      "denied",
			"read /etc/resolv.conf":           "<nil>",
			"read /etc/shadow":                "denied",
			"run /bin/true":                   "<nil>",
			"write /dev/null":                 "<nil>",
			"kill " + fmt.Sprint(os.Getpid()): "denied",
			"dial " + abstract:                "denied",
		}},
		{"one file", Files{Write: []string{parent + "/writable/file"}}, map[string]string{
			"write writable/file": "<nil>",
			"write writable/more": "denied",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, _ := sandboxed(t, Sandbox{Files: &test.files, Directory: parent})
			h := runCommand(t, c, defaultTimes)
			for action, want := range test.want {
				if got := inside(t, h, action); got != want {
					t.Errorf("%s: got %s, want %s", action, got, want)
				}
			}
		})
	}
}

// All of it at once, as for a stranger's plugin.
func TestWholeSandbox(t *testing.T) {
	needRoot(t)
	needLandlock(t)
	c, log := sandboxed(t, Sandbox{User: stranger, Directory: "/", OpenFiles: 100, Processes: 200, Files: &Files{}})
	h := runCommand(t, c, defaultTimes)
	if got := inside(t, h, "read /etc/mtab"); got != "denied" {
		t.Errorf("got %s", got)
	}
	syscall.Kill(log.pid(t, 1), syscall.SIGKILL)
	log.wait(t, 2, "started", "")
	inside(t, h, "directory")
}

func TestSandboxThatCannotBeApplied(t *testing.T) {
	needRoot(t)
	tooMany := uint64(1 << 40) // more files than any limit of the kernel
	for _, test := range []struct {
		name    string
		sandbox Sandbox
		want    string
	}{
		{"path", Sandbox{Files: &Files{Write: []string{"/no/such/path"}}}, "sandbox.write_paths: open /no/such/path: no such file"},
		{"directory", Sandbox{Directory: "/no/such/path"}, "sandbox.directory: chdir /no/such/path: no such file"},
		{"limit", Sandbox{OpenFiles: tooMany}, "sandbox.open_files: operation not permitted"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.sandbox.Files != nil {
				needLandlock(t)
			}
			c, log := sandboxed(t, test.sandbox)
			checkLeaks(t)
			_, err := startHost(t, t.Context(), c, defaultTimes)
			if _, ok := errors.AsType[KeyError](err); !ok || !strings.Contains(err.Error(), ": "+test.want) {
				t.Errorf("got the error %v, want one of a key with %q", err, test.want)
			}
			if log.count("log") > 0 {
				t.Error("it is told twice")
			}
			if test.name == "directory" {
				return
			}
			test.sandbox.BestEffort = true
			c, log = sandboxed(t, test.sandbox)
			runCommand(t, c, defaultTimes)
			log.wait(t, 1, "log", test.want)
		})
	}
}

func TestSocketsThatUserCannotReach(t *testing.T) {
	needRoot(t)
	c, _ := sandboxed(t, Sandbox{User: stranger, Directory: "/"})
	os.Chmod(c.Directory, 0o700)
	checkLeaks(t)
	const want = "plugin_directory: uid 54321 cannot enter"
	if _, err := startHost(t, t.Context(), c, defaultTimes); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got the error %v, want one with %q", err, want)
	}
}

// copyOfSelf is a program of which nobody else has the file.
func copyOfSelf(t *testing.T, path string) (checksum []byte) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(path, text, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	return sum[:]
}

func TestChecksum(t *testing.T) {
	c, log := sandboxed(t, Sandbox{})
	c.Path = filepath.Join(t.TempDir(), "plugin")
	c.Checksum = copyOfSelf(t, c.Path)
	times := defaultTimes
	h := runCommand(t, c, times)
	inside(t, h, "directory")

	// Another file in its place is not started.
	if err := os.WriteFile(c.Path+".new", []byte("#!/bin/sh\ntouch "+c.Path+".ran\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	os.Rename(c.Path, c.Path+".old")
	os.Rename(c.Path+".new", c.Path)
	syscall.Kill(log.pid(t, 1), syscall.SIGKILL)
	found := log.wait(t, 2, "exited", "")[1]
	if text := fmt.Sprint(found["error"]); !strings.Contains(text, "is not the program of checksum") {
		t.Errorf("got the error %s", text)
	}
	os.Rename(c.Path+".old", c.Path)
	log.wait(t, 2, "started", "")
	if _, err := os.Stat(c.Path + ".ran"); err == nil {
		t.Error("the other program has run")
	}
}

func TestProgramThatIsPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o700); err != nil {
		t.Fatal(err)
	}
	within(t, "verified", func() {
		if _, err := verified(path, nil); err == nil || !strings.Contains(err.Error(), "is no file") {
			t.Errorf("got the error %v", err)
		}
	})
}

// What was verified is run, whatever becomes of the file, in any sandbox.
func TestVerifiedProgramIsTheOneThatRuns(t *testing.T) {
	needLandlock(t)
	const script = "#!/bin/sh\necho verified $1\n"
	for name, change := range map[string]func(path string) error{
		"in its place": func(path string) error {
			return errors.Join(os.Remove(path), os.WriteFile(path, []byte("#!/bin/sh\necho another\n"), 0o755))
		},
		"in place": func(path string) error { return os.WriteFile(path, []byte("#!/bin/sh\necho another\n"), 0o755) },
		"gone":     os.Remove,
	} {
		for _, sandbox := range []Sandbox{{}, {Files: &Files{}}} {
			path := filepath.Join(t.TempDir(), "program")
			if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256([]byte(script))
			f, err := verified(path, sum[:])
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := change(path); err != nil {
				t.Fatal(err)
			}
			cmd := newCommand(Command{Path: path, Args: []string{"argument"}, Checksum: sum[:], Sandbox: sandbox})
			cmd.Env = []string{handshake.MagicCookieKey + "=" + handshake.MagicCookieValue, "PLUGIN_UNIX_SOCKET_DIR=" + t.TempDir()}
			cmd.ExtraFiles = []*os.File{f, f}
			if out, err := cmd.CombinedOutput(); err != nil || string(out) != "verified argument\n" {
				t.Errorf("%s: got %q, %v", name, out, err)
			}
			if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, syscall.EPERM) {
				t.Errorf("%s: the copy can be written to: %v", name, err)
			}
		}
	}
}

func TestVerifiedProgramNeedsRightToRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	sum := copyOfSelf(t, path)
	os.Chmod(path, 0o644)
	if _, err := verified(path, sum); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got the error %v", err)
	}
}

// A program can start itself, in a sandbox too.
func TestVerifiedProgramFindsItself(t *testing.T) {
	needRoot(t)
	needLandlock(t)
	c, _ := sandboxed(t, Sandbox{User: stranger, Directory: "/", Files: &Files{}})
	c.Path = filepath.Join(t.TempDir(), "plugin") // which that user may not enter
	c.Checksum = copyOfSelf(t, c.Path)
	h := runCommand(t, c, defaultTimes)
	if got := inside(t, h, "stray run"); got == "0" || strings.Trim(got, "0123456789") != "" {
		t.Errorf("it cannot start itself: %s", got)
	}
}

// A script finds its modules by PYTHONPATH.
func TestVerifiedScriptInPython(t *testing.T) {
	c := python(t, newGatewayLog())
	text, err := os.ReadFile(c.Path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	c.Checksum = sum[:]
	h := runCommand(t, c, defaultTimes)
	if o := deliver(t.Context(), h, message("hello", "answers", "delivered")); o.statuses[1] != backends.Delivered {
		t.Errorf("got %v, %v", o.statuses, o.err)
	}
}

// The gateway may have lost its last chance to kill the plugin before it is one.
func TestLauncherDoesNotOutliveGateway(t *testing.T) {
	cmd := newCommand(Command{Path: "/bin/true", Sandbox: Sandbox{Directory: "/"}})
	order := strings.Replace(cmd.Args[2], fmt.Sprintf(`"Parent":%d`, os.Getpid()), `"Parent":1`, 1)
	cmd.Args[2] = order
	cmd.Env = []string{handshake.MagicCookieKey + "=" + handshake.MagicCookieValue, "PLUGIN_UNIX_SOCKET_DIR=/"}
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "the gateway has ended") {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestKilledGatewayLeavesNoPluginOfAnotherUser(t *testing.T) {
	needRoot(t)
	for _, plugin := range []string{"inside", "raw"} { // raw has no lifeline
		t.Run(plugin, func(t *testing.T) {
			self, _ := sandboxed(t, Sandbox{})
			self.Args = []string{"plugin", "gateway"}
			pid, sockets := killGateway(t, self, plugin, false, "SANDBOX=1")
			eventually(t, "the plugin has ended", func() bool { return dead(pid) })
			if _, err := os.Stat(sockets); err != nil {
				t.Fatal(err)
			}
			self.Name, self.Args = "b", []string{"plugin", "answers"}
			runCommand(t, self, defaultTimes)
			if _, err := os.Stat(sockets); err == nil {
				t.Errorf("%s is still there", sockets)
			}
		})
	}
}
