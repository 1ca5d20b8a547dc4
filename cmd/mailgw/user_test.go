package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// userTOML begins a configuration that runs as a user of its own.
const userTOML = `
user = "54321"
group = "54322"
`

// ofAnother gives the backend inbox of mainTOML to another user, who owns its
// mailboxes.
const ofAnother = `
[backend.inbox.sandbox]
user = "54331"
group = "54332"
open_files = 100
write_paths = ["mail"]
`

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
}

// give gives a file, or all in a directory, to a user.
func give(t *testing.T, path string, uid, gid int) {
	t.Helper()
	if err := filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, uid, gid)
	}); err != nil {
		t.Fatal(err)
	}
}

// processStatus is a line of /proc/PID/status.
func processStatus(pid int, line string) string {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	match := regexp.MustCompile(`(?m)^` + line + `:(.*)$`).FindSubmatch(status)
	if match == nil {
		return ""
	}
	return string(bytes.Join(bytes.Fields(match[1]), []byte(" ")))
}

func wantStatus(t *testing.T, pid int, want map[string]string) {
	t.Helper()
	for line, value := range want {
		if got := processStatus(pid, line); got != value {
			t.Errorf("%s of process %d is %q, want %q", line, pid, got, value)
		}
	}
}

// startAsUser starts the gateway as root, with a configuration that belongs to
// the user of userTOML.
func startAsUser(t *testing.T, text string) *gatewayProcess {
	t.Helper()
	needRoot(t)
	return startGatewayIn(t, userTOML+text, func(dir string) {
		give(t, dir, 54321, 54322)
		give(t, filepath.Join(dir, "mail"), 54331, 54332)
		for _, name := range []string{dir, filepath.Join(dir, "plugins")} {
			if err := os.Chmod(name, 0o711); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestGatewayRunsAsItsUser(t *testing.T) {
	t.Parallel() // it waits for processes
	g := startAsUser(t, mainTOML+ofAnother)
	// CHOWN, KILL, SETGID, SETUID
	const capabilities, none = "00000000000000e1", "0000000000000000"
	wantStatus(t, g.cmd.Process.Pid, map[string]string{
		"Uid": "54321 54321 54321 54321", "Gid": "54322 54322 54322 54322", "Groups": "",
		"CapPrm": capabilities, "CapEff": capabilities, "CapBnd": capabilities,
	})
	others := 0
	for _, pid := range g.children {
		want := map[string]string{"CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none, "NoNewPrivs": "1", "Uid": "54321 54321 54321 54321"}
		if processStatus(pid, "Uid") != want["Uid"] {
			want["Uid"], want["Gid"] = "54331 54331 54331 54331", "54332 54332 54332 54332"
			others++
		}
		wantStatus(t, pid, want)
	}
	if others != 1 {
		t.Errorf("%d plugins of %v run as the other user, want 1", others, g.children)
	}

	// The plugin of another user can be killed and comes back.
	for _, pid := range g.children {
		if strings.HasPrefix(processStatus(pid, "Uid"), "54331 ") {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	g.waitForLog(t, "event=restarting", "backend=inbox")
	g.waitForLog(t, "event=started", "backend=inbox")
	g.children = childrenOf(t, g.cmd.Process.Pid)
	stdout, stderr, code := command(t, "x", "send", "--file", "-", "--to", "you@example.org", "unix:"+filepath.Join(g.dir, "lmtp.sock"))
	if code != 0 {
		t.Errorf("exit code %d, %s%s", code, stdout, stderr)
	}
	files, _ := filepath.Glob(filepath.Join(g.dir, "mail/you/new/*"))
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil || info.Sys().(*syscall.Stat_t).Uid != 54331 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	if len(files) != 1 {
		t.Errorf("got %q in the Maildir", files)
	}
	g.cmd.Process.Signal(syscall.SIGTERM)
	if state := g.wait(t); state.ExitCode() != 0 {
		t.Errorf("after SIGTERM: %v", state)
	}
}

// Without users of plugins and low ports it keeps nothing.
func TestGatewayKeepsNoCapabilityThatItDoesNotNeed(t *testing.T) {
	t.Parallel() // it waits for processes
	for text, want := range map[string]string{
		mainTOML: "0000000000000000",
		strings.Replace(mainTOML, "127.0.0.1:0", "127.0.0.99:1021", 1):                   "0000000000000400", // NET_BIND_SERVICE
		strings.Replace(mainTOML, `"lmtp"`+"\n[", `"lmtp"`+"\nowner = \"nobody\"\n[", 1): "0000000000000009", // CHOWN, FOWNER
	} {
		g := startAsUser(t, text)
		wantStatus(t, g.cmd.Process.Pid, map[string]string{"Uid": "54321 54321 54321 54321", "CapPrm": want, "CapEff": want, "CapBnd": want})
		g.cmd.Process.Signal(syscall.SIGTERM)
		if state := g.wait(t); state.ExitCode() != 0 {
			t.Errorf("after SIGTERM: %v", state)
		}
	}
}

func TestKilledGatewayLeavesNoPluginOfAnotherUser(t *testing.T) {
	t.Parallel() // it waits for processes
	g := startAsUser(t, mainTOML+ofAnother)
	g.cmd.Process.Kill()
	for range g.log {
	}
	g.cmd.Wait()
	deadline := time.After(20 * time.Second)
	for _, pid := range g.children {
		for state := processStatus(pid, "State"); state != "" && !strings.HasPrefix(state, "Z"); state = processStatus(pid, "State") {
			select {
			case <-deadline:
				t.Fatalf("plugin %d is left", pid)
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
}

func TestUserThatCannotBeTaken(t *testing.T) {
	needRoot(t)
	dir, file := configure(t, userTOML+mainTOML)
	give(t, dir, 54999, 54999)
	check := program(t, "check", "--config", file)
	self, err := os.Open(check.Path) // whose directory is root's
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	check.ExtraFiles = []*os.File{self}
	check.Path = "/proc/self/fd/3"
	check.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54999, Gid: 54999}}
	out, err := check.CombinedOutput()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != exitConfig || !strings.Contains(string(out), "gateway.toml:2: user: only root can become 54321, and mailgw runs as 54999") {
		t.Errorf("%v, printed\n%s", err, out)
	}
}

// check, too, starts the plugins as their users, and sees what those may do.
func TestCheckBecomesUser(t *testing.T) {
	needRoot(t)
	dir, file := configure(t, userTOML+mainTOML+ofAnother)
	give(t, dir, 54321, 54322)
	for _, name := range []string{dir, filepath.Join(dir, "plugins")} {
		os.Chmod(name, 0o711)
	}
	const warning = `text="path: Maildirs cannot be made"`
	stdout, stderr, code := runToEnd(t, "check", "--config", file)
	if code != 0 || !strings.Contains(stderr, warning) {
		t.Errorf("with mailboxes that are not its own: exit code %d, printed\n%s%s", code, stdout, stderr)
	}
	give(t, filepath.Join(dir, "mail"), 54331, 54332)
	stdout, stderr, code = runToEnd(t, "check", "--config", file)
	runs := "\nruns as user 54321 (uid 54321, gid 54322)\n"
	want := "\n  sandbox: user 54331 (uid 54331, gid 54332); open_files 100; reads /; writes " + dir + "/mail\n"
	needs := `  needs "writes mail"` + "\n"
	if code != 0 || strings.Contains(stderr, warning) || !strings.Contains(stdout, runs) || !strings.Contains(stdout, want) || !strings.Contains(stdout, needs) {
		t.Errorf("exit code %d, printed\n%s%s", code, stdout, stderr)
	}
}

// What the sandbox cannot have is a problem at its key, and told once.
func TestSandboxProblemHasItsPlace(t *testing.T) {
	needRoot(t)
	dir, file := configure(t, mainTOML+strings.Replace(ofAnother, `"mail"`, `"mail/inner"`, 1))
	for _, name := range []string{dir, filepath.Join(dir, "plugins")} {
		os.Chmod(name, 0o711)
	}
	const key = "backend.inbox.sandbox.write_paths"
	for _, want := range []string{
		key + ": stat " + dir + "/mail/inner: no such file or directory\n",
		key + ": open " + dir + "/mail/inner: permission denied\n", // for that user
	} {
		stdout, stderr, code := runToEnd(t, "check", "--config", file)
		place := regexp.MustCompile(`^` + regexp.QuoteMeta(file) + `:\d+: ` + regexp.QuoteMeta(want) + `$`)
		if code != exitConfig || !place.MatchString(stderr) {
			t.Errorf("exit code %d, printed\n%s%swant %s", code, stdout, stderr, want)
		}
		os.Mkdir(filepath.Join(dir, "mail/inner"), 0o700)
	}
}
