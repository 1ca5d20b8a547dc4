package gatewaytest

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A Gateway is a process of mailgw serve.
type Gateway struct {
	Dir string // of gateway.toml, where its paths begin
	Log string // path

	t         *testing.T
	program   string
	cmd       *exec.Cmd
	addresses map[string]string // of listeners, as the log has them
}

// Parts of gateway.toml that tests share.
const (
	common = `
hostname = "gw.peers.example"
plugin_directory = "plugins"
log.format = "json"
spool.directory = "spool"
`
	// LMTP and SMTP are listeners of these names. More of their keys and then
	// their routes may follow.
	LMTP = `
[[listener]]
name = "lmtp"
address = "unix:lmtp.sock"
protocol = "lmtp"
`
	SMTP = `
[[listener]]
name = "smtp"
address = "tcp:127.0.0.1:0"
protocol = "smtp"
`
	// ToInbox is a route to Inbox, which is a backend.
	ToInbox = `
[listener.routes]
"*" = ["inbox"]
`
	Inbox = `
[backend.inbox]
plugin = "maildir"
[backend.inbox.settings]
path = "mail/{user}"
`
)

// Start starts a program with a configuration, waits until it listens, and
// stops it at the end of the test.
func Start(t *testing.T, program Program, config ...string) *Gateway {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{t: t, Dir: Directory(t), program: path, addresses: map[string]string{}}
	g.Log = g.Path("gateway.log")
	for _, name := range []string{"plugins", "spool"} {
		if err := os.Mkdir(g.Path(name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(g.Path("gateway.toml"), []byte(common+strings.Join(config, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	ShowOnFailure(t, g.Log)
	g.start()
	return g
}

// start starts the process and waits until it listens.
func (g *Gateway) start() {
	g.t.Helper()
	events := Follow(g.t, g.Log)
	events.Lines() // of one that ran before
	log, err := os.OpenFile(g.Log, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		g.t.Fatal(err)
	}
	defer log.Close()
	g.cmd = g.Command("serve", "--hints")
	g.cmd.Stderr = log
	// It ends even if the tests are killed.
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	stdout, err := g.cmd.StdoutPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(g.Stop)
	// The hints come when it listens.
	hints := bufio.NewScanner(stdout)
	for hints.Scan() && !strings.HasPrefix(hints.Text(), "Ctrl-C") {
	}
	if hints.Text() == "" {
		g.t.Fatal("mailgw serve does not listen")
	}
	for _, e := range events.Events() {
		if e.Message == "listening" {
			g.addresses[e.Listener] = e.Address
		}
	}
}

// Command returns a command of the program that reads the configuration.
func (g *Gateway) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(g.program, append(args, "--config", g.Path("gateway.toml"))...)
	cmd.Dir = g.Dir
	return cmd
}

// Kill kills the process, sees its plugins end by themselves, and starts it
// again.
func (g *Gateway) Kill() {
	g.t.Helper()
	g.cmd.Process.Kill()
	g.cmd.Wait()
	Eventually(g.t, "the plugins have ended as their gateway has", func() bool { return len(g.Running()) == 0 })
	g.start()
}

// Path returns the path of a file of the gateway's.
func (g *Gateway) Path(name string) string { return filepath.Join(g.Dir, name) }

// Address returns where a listener is: HOST:PORT, or the path of its socket.
func (g *Gateway) Address(listener string) string {
	_, address, _ := strings.Cut(g.addresses[listener], ":")
	return address
}

// PID is the process of the gateway itself.
func (g *Gateway) PID() int { return g.cmd.Process.Pid }

// Running returns the processes of the program, plugins included.
func (g *Gateway) Running() (running []Process) {
	for _, p := range Processes(g.t) {
		if p.Program == g.program && p.Dir == g.Dir && !p.Zombie {
			running = append(running, p)
		}
	}
	return running
}

// Stop ends the gateway with SIGTERM, and sees to it that it ends well and
// leaves no process and no socket behind. The end of the test does it, if
// nothing has ended it before.
func (g *Gateway) Stop() {
	if g.cmd.ProcessState != nil {
		return
	}
	g.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(Patience, func() { g.cmd.Process.Kill() })
	defer kill.Stop()
	if err := g.cmd.Wait(); err != nil {
		g.t.Errorf("mailgw serve: %v", err)
	}
	g.checkRaces()
	for _, p := range g.Running() {
		g.t.Errorf("process %d is left", p.PID)
		syscall.Kill(p.PID, syscall.SIGKILL)
	}
	for _, name := range []string{"plugins", "spool"} {
		if left, err := os.ReadDir(g.Path(name)); err != nil || len(left) > 0 {
			g.t.Errorf("left in %s: %v, %v", name, left, err)
		}
	}
	sockets, err := filepath.Glob(g.Path("*.sock*"))
	if err != nil || len(sockets) > 0 {
		g.t.Errorf("left: %q, %v", sockets, err)
	}
}

func (g *Gateway) checkRaces() {
	if log, err := os.ReadFile(g.Log); err != nil || bytes.Contains(log, []byte("DATA RACE")) {
		g.t.Errorf("the gateway or a plugin has a data race: %v\n%s", err, log)
	}
}

// Mail returns the messages in the inbox of a user.
func (g *Gateway) Mail(user string) (messages []string) {
	g.t.Helper()
	for _, path := range g.MailFiles(user) {
		text, err := os.ReadFile(path)
		if err != nil {
			g.t.Fatal(err)
		}
		messages = append(messages, string(text))
	}
	return messages
}

// MailFiles returns the paths of what is in the inbox of a user.
func (g *Gateway) MailFiles(user string) (paths []string) {
	g.t.Helper()
	directory := g.Path("mail/" + user + "/new")
	entries, err := os.ReadDir(directory)
	if err != nil && !os.IsNotExist(err) {
		g.t.Fatal(err)
	}
	for _, entry := range entries {
		paths = append(paths, filepath.Join(directory, entry.Name()))
	}
	return paths
}
