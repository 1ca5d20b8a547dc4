package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// mainTOML is a configuration with every kind of backend that ships. Its
// paths are relative to the directory that it is in.
const mainTOML = `
hostname = "mx.example.org"
plugin_directory = "plugins"

[spool]
directory = "spool"

[[listener]]
name = "lmtp"
address = "unix:lmtp.sock"
protocol = "lmtp"
[listener.routes]
"*" = ["demo", "inbox"]
"@discard.example" = ["drop"]

[[listener]]
name = "smtp"
address = "tcp:127.0.0.1:0"
protocol = "smtp"
[listener.routes]
"*" = ["inbox"]

[backend.inbox]
plugin = "maildir"
[backend.inbox.settings]
path = "mail/{user}"

[backend.drop]
plugin = "discard"

[backend.demo]
plugin = "static"
[[backend.demo.settings.rule]]
to = "busy@example.org"
status = "450 4.2.1 mailbox busy"
[[backend.demo.settings.rule]]
to = "slow@example.org"
status = "250 2.0.0 at last"
delay = "300ms"
[[backend.demo.settings.rule]]
to = "stuck@example.org"
status = "250 2.0.0 never"
delay = "1h"
`

// configure writes a configuration and what it names into a directory, which
// it returns with the file.
func configure(t *testing.T, text string) (dir, file string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "mailgw") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, name := range []string{"plugins", "spool", "mail"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	file = filepath.Join(dir, "gateway.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, file
}

// A gatewayProcess is mailgw serve in a process of its own.
type gatewayProcess struct {
	cmd      *exec.Cmd
	dir      string
	hints    string
	log      chan string // lines
	children []int
}

// startGateway starts the gateway and waits until it is ready.
func startGateway(t *testing.T, text string) *gatewayProcess {
	t.Helper()
	return startGatewayIn(t, text, func(string) {})
}

// startGatewayIn starts it in a directory that was prepared.
func startGatewayIn(t *testing.T, text string, prepare func(dir string), flags ...string) *gatewayProcess {
	t.Helper()
	dir, file := configure(t, text)
	prepare(dir)
	// As a script does in its background, with SIGINT ignored.
	serve := program(t, append([]string{"serve", "--hints", "--config", file}, flags...)...)
	cmd := exec.Command("sh", append([]string{"-c", `trap "" INT; exec "$0" "$@"`}, serve.Args...)...)
	cmd.Dir = dir
	g := &gatewayProcess{cmd: cmd, dir: dir, log: make(chan string, 1000)}
	stdout, _ := g.cmd.StdoutPipe()
	stderr, _ := g.cmd.StderrPipe()
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.cmd.Process.Kill()
		g.cmd.Wait()
	})
	go func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			g.log <- lines.Text()
		}
		close(g.log)
	}()
	const last = "Ctrl-C ends it.\n"
	hints := bufio.NewReader(stdout)
	for !strings.HasSuffix(g.hints, last) {
		line, err := hints.ReadString('\n')
		if g.hints += line; err != nil {
			for line := range g.log {
				t.Log(line)
			}
			t.Fatalf("mailgw serve: %v, printed\n%s", err, g.hints)
		}
	}
	g.children = childrenOf(t, g.cmd.Process.Pid)
	return g
}

// waitForLog waits for a line of the log that has all these words.
func (g *gatewayProcess) waitForLog(t *testing.T, words ...string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case line, ok := <-g.log:
			if !ok {
				t.Fatalf("the log ended without a line of %q", words)
			}
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return
			}
		case <-deadline:
			t.Fatalf("no line of %q in the log", words)
		}
	}
}

// wait waits until the process has ended. Then nothing of it may be left.
func (g *gatewayProcess) wait(t *testing.T) *os.ProcessState {
	t.Helper()
	timer := time.AfterFunc(20*time.Second, func() {
		t.Error("the gateway does not end")
		g.cmd.Process.Kill()
	})
	defer timer.Stop()
	for range g.log { // to its end, as Wait wants
	}
	g.cmd.Wait()
	for _, pid := range g.children {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("plugin %d is still there: %v", pid, err)
		}
	}
	for _, pattern := range []string{"*.sock*", "plugins/*", "spool/*"} {
		if left, _ := filepath.Glob(filepath.Join(g.dir, pattern)); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
	return g.cmd.ProcessState
}

// childrenOf returns the processes that process pid has started.
func childrenOf(t *testing.T, pid int) (children []int) {
	t.Helper()
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		var child, parent int
		var state string
		// After the name of the program, in parentheses: proc_pid_stat(5).
		fmt.Sscan(string(text), &child)
		fmt.Sscan(string(text[bytes.LastIndexByte(text, ')')+1:]), &state, &parent)
		if parent == pid {
			children = append(children, child)
		}
	}
	return children
}

// What a plugin has started, and let go, ends with it.
func TestPluginLeavesNothingBehind(t *testing.T) {
	t.Parallel() // it waits for processes
	text := strings.Replace(mainTOML, `plugin = "discard"`, `plugin = "./leaves"`, 1)
	g := startGatewayIn(t, text, func(dir string) {
		script := "#!/bin/sh\n/usr/bin/setsid /bin/sleep 1000 &\necho $! $$ >pids\nexec " + program(t).Path + " plugin discard\n"
		if err := os.WriteFile(filepath.Join(dir, "leaves"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	})
	pids, err := os.ReadFile(filepath.Join(g.dir, "pids"))
	var stray, plugin int
	if fmt.Sscan(string(pids), &stray, &plugin); err != nil || plugin == 0 {
		t.Fatalf("%q, %v", pids, err)
	}
	t.Cleanup(func() { syscall.Kill(stray, syscall.SIGKILL) })
	syscall.Kill(plugin, syscall.SIGKILL)
	g.waitForLog(t, "event=exited", "backend=drop")
	if err := syscall.Kill(stray, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is still there: %v", stray, err)
	}
}

// sendLines returns the commands that the hints tell.
func (g *gatewayProcess) sendLines(t *testing.T) (commands [][]string) {
	t.Helper()
	for _, line := range regexp.MustCompile(`(?m)^  \S+ (send .*)$`).FindAllStringSubmatch(g.hints, -1) {
		commands = append(commands, strings.Fields(line[1]))
	}
	return commands
}

func TestMessagesAreDeliveredByteForByte(t *testing.T) {
	t.Parallel() // it waits for processes
	g := startGateway(t, mainTOML)
	if len(g.children) != 3 {
		t.Errorf("%d plugins, want 3", len(g.children))
	}
	const body = "Subject: hi\r\nX-Odd:\ttab \xff\r\n\r\n.dot\r\n..\r\n" + "\r\n\r\nend\r\n"
	commands := g.sendLines(t)
	if len(commands) != 2 {
		t.Fatalf("%d commands for 2 listeners in\n%s", len(commands), g.hints)
	}
	for _, args := range commands {
		stdout, stderr, code := command(t, body, append(args, "--file", "-")...)
		if code != 0 || !strings.HasPrefix(stdout, "you@example.org  250 2.0.0 ") {
			t.Errorf("mailgw %q: exit code %d\n%s%s", args, code, stdout, stderr)
		}
	}
	if want := "find " + g.dir + "/mail -type f\n"; !strings.Contains(g.hints, want) {
		t.Errorf("%q is not in\n%s", want, g.hints)
	}
	files, _ := filepath.Glob(filepath.Join(g.dir, "mail/you/new/*"))
	if len(files) != len(commands) {
		t.Errorf("%d files in the Maildir, want %d", len(files), len(commands))
	}
	for _, file := range files {
		got, err := os.ReadFile(file)
		if err != nil || !strings.HasSuffix(string(got), body) {
			t.Errorf("%s: %v, got %q, want %q", file, err, got, body)
		}
		if !strings.Contains(filepath.Base(file), ".mx.example.org") {
			t.Errorf("%s: the plugin does not have the hostname of gateway.toml", file)
		}
	}

	g.cmd.Process.Signal(syscall.SIGTERM)
	if state := g.wait(t); state.ExitCode() != 0 {
		t.Errorf("after SIGTERM: %v", state)
	}
}

func TestEachRecipientItsOwnAnswer(t *testing.T) {
	t.Parallel() // it waits for processes
	g := startGateway(t, mainTOML)
	stdout, _, code := command(t, "x", "send", "--file", "-", "--to", "busy@example.org", "--to", "you@example.org", "--to", "a@discard.example",
		"unix:"+filepath.Join(g.dir, "lmtp.sock"))
	want := regexp.MustCompile(`^busy@example.org   450 4.2.1 .*mailbox busy.*\nyou@example.org    250 2.0.0 .*\na@discard.example  250 2.0.0 .*discarded.*\n$`)
	if !want.MatchString(stdout) || code != exitTemporary {
		t.Errorf("exit code %d, printed\n%s", code, stdout)
	}
	g.cmd.Process.Signal(syscall.SIGINT)
	if state := g.wait(t); state.ExitCode() != 0 {
		t.Errorf("after SIGINT: %v", state)
	}
}

// sendTo sends a message in the background, waits until the gateway has it,
// and returns what becomes of it.
func (g *gatewayProcess) sendTo(t *testing.T, to string) (answer <-chan string) {
	t.Helper()
	answers := make(chan string, 1)
	go func() {
		stdout, _, _ := command(t, "x", "send", "--file", "-", "--to", to, "unix:"+filepath.Join(g.dir, "lmtp.sock"))
		answers <- stdout
	}()
	g.waitForLog(t, "msg=received")
	return answers
}

func TestTransactionUnderWayIsWaitedFor(t *testing.T) {
	t.Parallel() // it waits for processes
	g := startGateway(t, mainTOML)
	answer := g.sendTo(t, "slow@example.org")
	g.cmd.Process.Signal(syscall.SIGTERM)
	if got := <-answer; !strings.HasPrefix(got, "slow@example.org  250 2.0.0 ") || !strings.Contains(got, "at last") {
		t.Errorf("got %q", got)
	}
	g.waitForLog(t, "msg=stopped")
	if state := g.wait(t); state.ExitCode() != 0 {
		t.Errorf("after SIGTERM: %v", state)
	}
}

func TestTransactionIsCutShortAfterShutdownTimeout(t *testing.T) {
	t.Parallel() // it waits for processes
	g := startGateway(t, "shutdown_timeout = \"100ms\"\n"+mainTOML)
	answer := g.sendTo(t, "stuck@example.org")
	g.cmd.Process.Signal(syscall.SIGTERM)
	if got := <-answer; !strings.HasPrefix(got, "stuck@example.org  451 4.") {
		t.Errorf("got %q", got)
	}
	if state := g.wait(t); state.ExitCode() != 0 {
		t.Errorf("after SIGTERM: %v", state)
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel() // it waits for processes
	g := startGateway(t, mainTOML)
	answer := g.sendTo(t, "stuck@example.org")
	g.cmd.Process.Signal(syscall.SIGINT)
	g.waitForLog(t, "msg=stopping")
	g.cmd.Process.Signal(syscall.SIGINT)
	if got := <-answer; !strings.HasPrefix(got, "stuck@example.org  no answer: connection lost") {
		t.Errorf("got %q", got)
	}
	for range g.log {
	}
	g.cmd.Wait()
	if code := g.cmd.ProcessState.ExitCode(); code != exitTemporary {
		t.Errorf("ended with %v", g.cmd.ProcessState)
	}
}

func TestServeRefusesAddressInUse(t *testing.T) {
	t.Parallel() // it waits for processes
	g := startGateway(t, mainTOML)
	second := strings.Replace(mainTOML, "unix:lmtp.sock", "unix:"+g.dir+"/lmtp.sock", 1)
	dir, file := configure(t, second)
	_, stderr, code := runToEnd(t, "serve", "--config", file)
	if code != exitSystem || !strings.Contains(stderr, "gateway.toml:10: listener[0].address: ") {
		t.Errorf("exit code %d, printed\n%s", code, stderr)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "plugins/*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if got := <-g.sendTo(t, "you@example.org"); !strings.HasPrefix(got, "you@example.org  250 ") {
		t.Errorf("the first gateway answers %q", got)
	}
}
