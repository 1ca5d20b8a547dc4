package peers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// A postfix is a Postfix with its own configuration, queue and log.
type postfix struct {
	Postfix
	t        *testing.T
	dir      string
	address  string // of its SMTP server, HOST:PORT
	services string // of master.cf, besides those that all have
	owner    *user.User
	log      string // path
	cmd      *exec.Cmd
	lifeline io.Closer
}

// findPostfix skips the test if there is no Postfix.
func findPostfix(t *testing.T) Postfix {
	t.Helper()
	p, err := FindPostfix("../..")
	if err != nil {
		gatewaytest.Without(t, "%v", err)
	}
	return p
}

// newPostfix prepares a Postfix that is not started yet.
func newPostfix(t *testing.T) *postfix {
	t.Helper()
	if os.Geteuid() != 0 {
		gatewaytest.Without(t, "Postfix runs as root only")
	}
	p := &postfix{Postfix: findPostfix(t), t: t, dir: gatewaytest.Directory(t), address: freeAddress(t)}
	p.log = filepath.Join(p.dir, "maillog")
	p.services = p.address + "  inet  n  -  n  -     -  smtpd\n"
	// Where Postfix is only unpacked it has no user. It bears any other one
	// that is not its group's.
	var err error
	p.owner, err = user.Lookup("postfix")
	if err != nil {
		p.owner, err = user.Lookup("mail")
	}
	if err != nil {
		t.Fatal(err)
	}
	p.makeQueue()
	return p
}

// freeAddress returns an address that nobody listens on now. No connection takes
// its port by itself (ip_local_port_range in tcp(7)), so that it is still free when
// a Postfix that was killed is started again.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000))
		if listener, err := net.Listen("tcp", address); err == nil {
			listener.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

// start starts Postfix with more lines for main.cf, and stops it at the end
// of the test.
func (p *postfix) start(main string) {
	p.t.Helper()
	p.configure(main)
	gatewaytest.ShowOnFailure(p.t, p.log)
	p.launch()
	p.t.Cleanup(p.stop)
}

// launch starts Postfix and waits until it listens.
func (p *postfix) launch() {
	p.t.Helper()
	// Postfix ends when the shell finds the end of its standard input, which
	// it does even if the tests and their process group are killed.
	p.cmd = p.Command(context.Background(), "/bin/sh", "-c", `"$@" & read _; kill $!; wait $!`, "sh", p.Daemons+"/master", "-c", p.dir, "-s")
	p.cmd.Stdout, p.cmd.Stderr = p.t.Output(), p.t.Output()
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if p.lifeline, err = p.cmd.StdinPipe(); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	gatewaytest.Eventually(p.t, "Postfix listens", func() bool {
		c, err := net.Dial("tcp", p.address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// makeQueue makes the directories that Postfix wants, with their owners.
func (p *postfix) makeQueue() {
	p.t.Helper()
	group := p.sgidGroup()
	uid, _ := strconv.Atoi(p.owner.Uid)
	gid, _ := strconv.Atoi(group.Gid)
	mkdir := func(name string, mode os.FileMode, uid, gid int) {
		path := filepath.Join(p.dir, name)
		if err := os.Mkdir(path, mode); err != nil {
			p.t.Fatal(err)
		}
		if err := os.Chown(path, uid, gid); err != nil {
			p.t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			p.t.Fatal(err)
		}
	}
	mkdir("queue", 0o755, 0, 0)
	mkdir("queue/pid", 0o755, 0, 0)
	mkdir("queue/public", 0o710, uid, gid)
	mkdir("queue/maildrop", 0o730, uid, gid)
	for _, name := range []string{"active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"} {
		mkdir("queue/"+name, 0o700, uid, 0)
	}
	mkdir("data", 0o700, uid, 0)
}

// sgidGroup returns a group that is not the owner's.
func (p *postfix) sgidGroup() *user.Group {
	p.t.Helper()
	name := "postdrop"
	if p.owner.Username != "postfix" {
		name = "daemon"
	}
	group, err := user.LookupGroup(name)
	if err != nil {
		p.t.Fatal(err)
	}
	return group
}

func (p *postfix) configure(main string) {
	p.t.Helper()
	environment := "MAIL_CONFIG LANG=C TZ"
	if p.Libraries != "" {
		environment += " LD_LIBRARY_PATH=" + p.Libraries
	}
	files := map[string]string{
		"main.cf": fmt.Sprintf(`compatibility_level = 2
queue_directory = %[1]s/queue
data_directory = %[1]s/data
meta_directory = %[1]s
daemon_directory = %[2]s
command_directory = %[3]s
mail_owner = %[4]s
setgid_group = %[5]s
enable_long_queue_ids = yes
maillog_file = %[1]s/maillog
maillog_file_prefixes = %[1]s
import_environment = %[6]s

myhostname = mx.peers.example
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtpd_peername_lookup = no
smtp_host_lookup = native
alias_maps =
alias_database =
%[7]s`, p.dir, p.Daemons, p.Commands, p.owner.Username, p.sgidGroup().Name, environment, main),
		"master.cf": p.services + `
cleanup    unix       n  -  n  -     0  cleanup
qmgr       unix       n  -  n  300   1  qmgr
rewrite    unix       -  -  n  -     -  trivial-rewrite
bounce     unix       -  -  n  -     0  bounce
defer      unix       -  -  n  -     0  bounce
trace      unix       -  -  n  -     0  bounce
flush      unix       n  -  n  1000? 0  flush
proxymap   unix       -  -  n  -     -  proxymap
showq      unix       n  -  n  -     -  showq
error      unix       -  -  n  -     -  error
retry      unix       -  -  n  -     -  error
discard    unix       -  -  n  -     -  discard
lmtp       unix       -  -  n  -     -  lmtp
smtp       unix       -  -  n  -     -  smtp
smtps      unix       -  -  n  -     -  smtp -o smtp_tls_wrappermode=yes
tlsmgr     unix       -  -  n  1000? 1  tlsmgr
anvil      unix       -  -  n  -     1  anvil
scache     unix       -  -  n  -     1  scache
postlog    unix-dgram n  -  n  -     1  postlogd
`,
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o644); err != nil {
			p.t.Fatal(err)
		}
	}
}

// stop stops Postfix and sees to it that nothing of it is left.
func (p *postfix) stop() {
	group := p.group()
	p.lifeline.Close()
	p.cmd.Wait()
	gatewaytest.Eventually(p.t, "all of Postfix has ended", func() bool { return len(p.running(group)) == 0 })
}

// kill kills all processes of Postfix at once.
func (p *postfix) kill() {
	group := p.group()
	syscall.Kill(-group, syscall.SIGKILL)
	p.lifeline.Close()
	p.cmd.Wait()
	gatewaytest.Eventually(p.t, "all of Postfix has been killed", func() bool { return len(p.running(group)) == 0 })
}

// group is the group of all processes of Postfix. Its leader is master.
func (p *postfix) group() int {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join(p.dir, "queue/pid/master.pid"))
	if err != nil {
		p.t.Fatal(err)
	}
	group, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		p.t.Fatal(err)
	}
	return group
}

// running returns the processes of a group that have not ended.
func (p *postfix) running(group int) []gatewaytest.Process {
	return slices.DeleteFunc(gatewaytest.Processes(p.t), func(s gatewaytest.Process) bool { return s.Group != group || s.Zombie })
}

// run runs one of the commands of Postfix and returns what it prints.
func (p *postfix) run(name string, args ...string) string {
	p.t.Helper()
	cmd := p.Command(p.t.Context(), name, append([]string{"-c", p.dir}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// trusted are lines for an LMTP listener that Postfix may connect to and say
// whom it speaks for.
func (p *postfix) trusted() string {
	p.t.Helper()
	group, err := user.LookupGroupId(p.owner.Gid)
	if err != nil {
		p.t.Fatal(err)
	}
	return fmt.Sprintf("group = %q\nxforward = [\"uid:%s\"]\n", group.Name, p.owner.Username)
}

// asSent is for main.cf: messages stay as they were sent.
const asSent = `
local_header_rewrite_clients =
lmtp_line_length_limit = 0
`

// deliversTo is for main.cf: mail for peers.example goes to the LMTP socket of
// a gateway.
func deliversTo(g *gatewaytest.Gateway) string {
	return asSent + "virtual_mailbox_domains = peers.example\n" +
		"virtual_transport = lmtp:unix:" + g.Address("lmtp") + "\n" +
		"lmtp_send_xforward_command = yes\n"
}

// A queued message is an entry of Postfix's queue.
type queued struct {
	ID         string `json:"queue_id"`
	Recipients []struct {
		Address string
		Reason  string `json:"delay_reason"`
	}
}

// queue returns what is in the queue.
func (p *postfix) queue() (entries []queued) {
	p.t.Helper()
	for line := range strings.Lines(p.run("postqueue", "-j")) {
		var q queued
		if err := json.Unmarshal([]byte(line), &q); err != nil {
			p.t.Fatalf("postqueue -j: %v\n%s", err, line)
		}
		entries = append(entries, q)
	}
	return entries
}

// A logged is what Postfix has logged of a recipient of a message.
type logged struct {
	id     string // of the message in the queue
	to     string
	dsn    string // 2.0.0
	status string // sent, deferred, bounced
	reply  string // and where it comes from
}

var loggedLine = regexp.MustCompile(`: (\w+): to=<([^>]*)>, .*\bdsn=([0-9.]+), status=(\w+) \((.*)\)$`)

// parseLogged reads a line of the log. It reports false for one of another
// kind.
func parseLogged(line string) (l logged, ok bool) {
	m := loggedLine.FindStringSubmatch(strings.TrimSpace(line))
	if m == nil {
		return l, false
	}
	return logged{m[1], m[2], m[3], m[4], m[5]}, true
}
