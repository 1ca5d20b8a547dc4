package peers

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A gateway is a process of mailgw serve.
type gateway struct {
	t       *testing.T
	dir     string
	program string
	log     string // path
	smtp    string // HOST:PORT of the listener on TCP, if there is one
	cmd     *exec.Cmd
}

// The parts of gateway.toml that tests share. Paths begin in its directory.
const (
	gatewayConfig = `
hostname = "gw.peers.example"
plugin_directory = "plugins"
log.format = "json"
spool.directory = "spool"
`
	lmtpListener = `
[[listener]]
name = "lmtp"
address = "unix:lmtp.sock"
protocol = "lmtp"
`
	smtpListener = `
[[listener]]
name = "smtp"
address = "tcp:127.0.0.1:0"
protocol = "smtp"
`
	toInbox = `
[listener.routes]
"*" = ["inbox"]
`
	inbox = `
[backend.inbox]
plugin = "maildir"
[backend.inbox.settings]
path = "mail/{user}"
`

	// A route that defers mail for busy, refuses it for gone, and delivers
	// it to all others.
	byRules = `
[listener.routes]
"*" = ["rules", "inbox"]
`
	rules = `
[backend.rules]
plugin = "static"
[[backend.rules.settings.rule]]
to = "busy@peers.example"
status = "450 4.2.1 mailbox busy"
[[backend.rules.settings.rule]]
to = "gone@peers.example"
status = "550 5.1.1 no such user"
`
)

// startGateway starts a program with a configuration, waits until it listens,
// and stops it at the end of the test.
func startGateway(t *testing.T, build func() (string, error), config ...string) *gateway {
	t.Helper()
	program, err := build()
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{t: t, dir: directory(t), program: program}
	g.log = g.path("gateway.log")
	for _, name := range []string{"plugins", "spool"} {
		if err := os.Mkdir(g.path(name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(g.path("gateway.toml"), []byte(gatewayConfig+strings.Join(config, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(g.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	showOnFailure(t, g.log)

	g.cmd = exec.Command(program, "serve", "--hints", "--config", g.path("gateway.toml"))
	g.cmd.Stderr = log
	// It ends even if the tests are killed.
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	stdout, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.stop)
	// The hints come when it listens.
	hints := bufio.NewScanner(stdout)
	for hints.Scan() && !strings.HasPrefix(hints.Text(), "Ctrl-C") {
		if m := tcpAddress.FindStringSubmatch(hints.Text()); m != nil {
			g.smtp = m[1]
		}
	}
	if hints.Text() == "" {
		t.Fatal("mailgw serve does not listen")
	}
	return g
}

var tcpAddress = regexp.MustCompile(` tcp:(\S+)$`)

// path returns the path of a file of the gateway's.
func (g *gateway) path(name string) string { return filepath.Join(g.dir, name) }

func (g *gateway) socket() string { return g.path("lmtp.sock") }

// running returns the processes of the program, plugins included.
func (g *gateway) running() (running []processStatus) {
	for _, p := range processes(g.t) {
		if p.program == g.program && !p.zombie {
			running = append(running, p)
		}
	}
	return running
}

// stop ends the gateway with SIGTERM, and sees to it that it ends well and
// leaves no process and no socket behind.
func (g *gateway) stop() {
	g.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(patience, func() { g.cmd.Process.Kill() })
	defer kill.Stop()
	if err := g.cmd.Wait(); err != nil {
		g.t.Errorf("mailgw serve: %v", err)
	}
	if log, err := os.ReadFile(g.log); err != nil || bytes.Contains(log, []byte("DATA RACE")) {
		g.t.Errorf("the gateway or a plugin has a data race: %v\n%s", err, log)
	}
	for _, p := range g.running() {
		g.t.Errorf("process %d is left", p.pid)
		syscall.Kill(p.pid, syscall.SIGKILL)
	}
	for _, name := range []string{"plugins", "spool"} {
		if left, err := os.ReadDir(g.path(name)); err != nil || len(left) > 0 {
			g.t.Errorf("left in %s: %v, %v", name, left, err)
		}
	}
	sockets, err := filepath.Glob(g.path("*.sock*"))
	if err != nil || len(sockets) > 0 {
		g.t.Errorf("left: %q, %v", sockets, err)
	}
}

// An event is a line of the gateway's log.
type event struct {
	Time    time.Time
	Message string `json:"msg"`
	TX      string
	Ident   string
	To      string
	Backend string
	Code    int
	Event   string
	PID     int
	Error   string
}

// parseEvents parses lines of the log, below warnings of the configuration:
// /var/tmp may be in memory. What is not JSON is the word of the Go runtime,
// of a panic or a data race.
func (g *gateway) parseEvents(lines []string) (events []event) {
	g.t.Helper()
	for _, line := range lines {
		if strings.HasPrefix(line, "warning: ") {
			continue
		}
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			g.t.Fatalf("the gateway wrote %q", line)
		}
		events = append(events, e)
	}
	return events
}

// mail returns the messages in the inbox of a user.
func (g *gateway) mail(user string) (messages []string) {
	g.t.Helper()
	for _, path := range g.mailFiles(user) {
		text, err := os.ReadFile(path)
		if err != nil {
			g.t.Fatal(err)
		}
		messages = append(messages, string(text))
	}
	return messages
}

func (g *gateway) mailFiles(user string) (paths []string) {
	g.t.Helper()
	directory := g.path("mail/" + user + "/new")
	entries, err := os.ReadDir(directory)
	if err != nil && !os.IsNotExist(err) {
		g.t.Fatal(err)
	}
	for _, entry := range entries {
		paths = append(paths, filepath.Join(directory, entry.Name()))
	}
	return paths
}
