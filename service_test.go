package mailgw

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/internal/peers"
)

// What README.md says of the service and of Postfix, done by root on a copy of
// this machine: mail flows, and the service ends as systemd wants it.
func TestReadmeService(t *testing.T) {
	dir := t.TempDir()
	m := boot(t, dir)
	build(t, filepath.Join(dir, "bin"), "./cmd/mailgw", "./examples/attachments")
	installPostfix(t, m)
	m.run(t, "! id mailgw || userdel mailgw") // which this machine may have
	for _, block := range snippets(t, "bash") {
		if out := m.run(t, "cd /mnt\n"+block); out != "" {
			t.Errorf("%s\nprints %s", block, out)
		}
	}
	const owners = "drwxr-s--- mailgw:postfix\ndrwx------ mailgw:mailgw\n"
	if got := m.run(t, "stat -c '%A %U:%G' /var/spool/postfix/mailgw /var/vmail"); got != owners {
		t.Errorf("the directories are\n%swant\n%s", got, owners)
	}
	text := snippets(t, "ini")[0]
	m.write(t, "/etc/mailgw/gateway.toml", snippets(t, "toml")[0])

	u := parseUnit(text)
	checked := m.run(t, inline(t, "(runuser .*)` finds"))
	if want := fmt.Sprintf("shutdown_timeout %v\n", u.stopTimeout(t)-10*time.Second); !strings.Contains(checked, want) {
		t.Errorf("TimeoutStopSec is not ten seconds more than what check prints:\n%s", checked)
	}
	const capability = "AmbientCapabilities"
	privileged := strings.Replace(text, "\n#"+capability, "\n"+capability, 1)
	t.Run("verified", func(t *testing.T) { verifyUnit(t, m, text, privileged) })
	t.Run("delivers", func(t *testing.T) { deliverAndStop(t, m, u) })
	t.Run("filters before the queue", func(t *testing.T) { filterBeforeQueue(t, m, u) })
	t.Run("filters after the queue", func(t *testing.T) { filterAfterQueue(t, m, u) })
	t.Run("below 1024", func(t *testing.T) { listenBelow1024(t, m, u, parseUnit(privileged)) })
	t.Run("logs in", func(t *testing.T) { logIn(t, m, parseUnit(privileged)) })
	t.Run("fails", func(t *testing.T) { failForGood(t, m, u) })
}

const mainCF = `compatibility_level = 3.6
maillog_file = /var/log/readme.log
alias_maps =
alias_database =
`

// installPostfix puts a Postfix on the machine that is as Debian's is at first.
func installPostfix(t *testing.T, m machine) {
	t.Helper()
	postfix, err := peers.FindPostfix(".")
	if err != nil {
		missing(t, err.Error())
	}
	if postfix.Libraries != "" { // it is only unpacked
		unpacked := filepath.Join(postfix.Commands, "../..")
		if out, err := exec.Command("cp", "-a", unpacked+"/etc", unpacked+"/usr", m.path("/")).CombinedOutput(); err != nil {
			t.Fatalf("copy Postfix: %v\n%s", err, out)
		}
		m.run(t, "id postfix || useradd --system --user-group postfix; getent group postdrop || groupadd --system postdrop")
	}
	m.run(t, `
rm -rf /var/spool/postfix
mkdir /var/spool/postfix
cp /usr/share/postfix/master.cf.dist /etc/postfix/master.cf
`)
	m.write(t, "/etc/postfix/main.cf", mainCF)
	m.write(t, "/etc/postfix/mailboxes", inline(t, "has a line `(.*)` for each mailbox")+"\n")
}

// inline returns what README.md has where the pattern has a group.
func inline(t *testing.T, pattern string) string {
	t.Helper()
	match := regexp.MustCompile(pattern).FindStringSubmatch(contents(t, "README.md"))
	if match == nil {
		t.Fatalf("README.md has no %s", pattern)
	}
	return match[1]
}

// verifyUnit asks systemd for its opinion of units.
func verifyUnit(t *testing.T, m machine, texts ...string) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		missing(t, fmt.Sprintf("%v: internal/peers/install installs it", err))
	}
	for _, text := range texts {
		m.write(t, "/etc/systemd/system/mailgw.service", text)
		// What it says of the other units of this machine is not in question.
		out := m.run(t, "systemd-analyze verify --recursive-errors=no /etc/systemd/system/mailgw.service")
		if strings.Contains(out, "mailgw.service") {
			t.Error(out)
		}
	}
}

// deliverAndStop sees mail flow through Postfix, whose programs are in a
// chroot, and the service end on SIGTERM, with all its plugins.
func deliverAndStop(t *testing.T, m machine, u unit) {
	const socket = "/var/spool/postfix/mailgw/lmtp.sock"
	s := m.start(t, u, "")
	s.wait(t, "it listens", func() bool { return dial("", "unix:"+m.path(socket)) == nil })
	m.run(t, "postfix start")
	m.write(t, "/etc/postfix/main.cf", mainCF+snippets(t, "postfix")[0])
	m.run(t, inline(t, "`(postfix reload)`"))
	out, _ := m.command("mailgw send --to ann@example.org --to eve@example.org tcp:127.0.0.1:25").CombinedOutput()
	if got := string(out); !strings.Contains(got, "ann@example.org  250 2.0.0") || !strings.Contains(got, "eve@example.org  550 5.1.1") {
		t.Errorf("Postfix answers\n%s", got)
	}
	s.wait(t, "Postfix has tried to deliver", func() bool { return strings.Contains(contents(t, m.path("/var/log/readme.log")), "status=") })
	if log := contents(t, m.path("/var/log/readme.log")); !strings.Contains(log, "status=sent (250 2.0.0 <ann@example.org> delivered") {
		t.Errorf("Postfix logs\n%s", log)
	}
	if got := m.run(t, "stat -c %U:%G /var/vmail/example.org/ann/new/*"); got != "mailgw:mailgw\n" {
		t.Errorf("the message belongs to %q", got)
	}
	message := m.run(t, "cat /var/vmail/example.org/ann/new/*")
	for _, field := range []string{"Return-Path: <", "Delivered-To: ann@example.org\r\n"} {
		if !strings.Contains(message, field) {
			t.Errorf("no %q in\n%s", field, message)
		}
	}
	if _, err := m.command("runuser -u nobody -- test -w " + socket).Output(); err == nil {
		t.Error("everybody may connect to the socket")
	}
	m.run(t, "postfix stop; kill -TERM $(cat /run/service.pid)")
	if code := s.exit(t, u.stopTimeout(t)); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	// With KillMode=mixed systemd would kill them.
	if left := m.run(t, "readlink /proc/[0-9]*/exe || true"); strings.Contains(left, "mailgw") {
		t.Errorf("what still runs:\n%s", left)
	}
}

// filterBeforeQueue sees a message go through the filter of README.md, for which
// the program attachments stands, back into Postfix, and to the listener that
// delivers. Postfix's side is what mailgw postfix prints.
func filterBeforeQueue(t *testing.T, m machine, u unit) {
	m.run(t, "cp /mnt/bin/attachments /etc/mailgw/my-filter")
	m.write(t, "/etc/mailgw/gateway.toml", snippets(t, "toml")[0]+snippets(t, "toml")[1])
	master := snippets(t, "master")[0]
	m.run(t, "/usr/lib/postfix/configure-instance.sh -") // makes the chroot, as the start of the service does on Debian
	m.write(t, "/root/printed", m.run(t, inline(t, "`(mailgw postfix .*)` prints")+" --listener filter master.cf"))
	m.write(t, "/root/readme", master)
	const normal = `
for file in printed readme; do
	mkdir $file.d
	touch $file.d/main.cf
	cp $file $file.d/master.cf
	postconf -c $file.d -M >$file
done
cat printed
diff printed readme
`
	if out, err := m.command("cd /root" + normal).CombinedOutput(); err != nil {
		t.Errorf("mailgw postfix prints other lines than README.md has: %v\n%s", err, out)
	}

	m.write(t, "/etc/postfix/main.cf", mainCF+snippets(t, "postfix")[0])
	m.run(t, "sed -i '/^smtp *inet/d' /etc/postfix/master.cf")
	m.write(t, "/etc/postfix/master.cf", contents(t, m.path("/etc/postfix/master.cf"))+master)
	s := m.start(t, u, "")
	s.wait(t, "it listens", func() bool { return m.command(": </dev/tcp/127.0.0.1/10025").Run() == nil })
	m.run(t, "postfix start")
	if log := sendThroughFilter(t, m, s); !strings.Contains(log, "proxy-accept: END-OF-MESSAGE: 250 2.0.0 ") {
		t.Errorf("Postfix logs\n%s", log)
	}
	m.run(t, "postfix stop; kill -TERM $(cat /run/service.pid)")
	s.exit(t, u.stopTimeout(t))
}

// filterAfterQueue does what the example says, and sees a message go through it.
// Postfix delivers to the listener of README.md, which is added.
func filterAfterQueue(t *testing.T, m machine, u unit) {
	m.run(t, "cp /usr/share/postfix/master.cf.dist /etc/postfix/master.cf")
	m.write(t, "/etc/postfix/main.cf", mainCF+snippets(t, "postfix")[0])
	m.run(t, "postfix start; mkdir /mnt/example")
	m.write(t, "/mnt/example/gateway.toml", contents(t, "examples/content-filter/gateway.toml"))
	var s service
	for line := range strings.Lines(contents(t, "examples/content-filter/README.md")) {
		command, ok := strings.CutPrefix(line, "    ")
		switch {
		case !ok:
		case strings.HasPrefix(command, "go build -o /usr/local/bin/attachments "):
			m.run(t, "cp /mnt/bin/attachments /usr/local/bin")
		case command == "systemctl restart mailgw\n":
			s = m.start(t, u, "")
			s.wait(t, "it listens", func() bool { return dial("", "unix:"+m.path("/var/spool/postfix/mailgw/filter.sock")) == nil })
		default:
			m.run(t, "cd /mnt/example\n"+command)
		}
		if strings.HasPrefix(command, "cp gateway.toml ") {
			m.write(t, "/etc/mailgw/gateway.toml", contents(t, "examples/content-filter/gateway.toml")+snippets(t, "toml")[0])
		}
	}
	if log := sendThroughFilter(t, m, s); !strings.Contains(log, ", orig_queue_id=") {
		t.Errorf("Postfix logs\n%s", log)
	}
	m.run(t, "postfix stop; kill -TERM $(cat /run/service.pid)")
	s.exit(t, u.stopTimeout(t))
}

// sendThroughFilter sees Postfix take a message, which the program attachments
// filters, and deliver it. It returns Postfix's log.
func sendThroughFilter(t *testing.T, m machine, s service) string {
	t.Helper()
	m.run(t, "rm -rf /var/vmail/example.org")
	out, _ := m.command("mailgw send --to ann@example.org --file - tcp:127.0.0.1:25 <<<'" + contents(t, "examples/attachments/message.eml") + "'").CombinedOutput()
	if !strings.Contains(string(out), "ann@example.org  250 2.0.0") {
		t.Errorf("Postfix answers\n%s", out)
	}
	s.wait(t, "the message is delivered", func() bool { return m.command("test -e /var/vmail/example.org/ann/new/*").Run() == nil })
	if message := m.run(t, "cat /var/vmail/example.org/ann/new/*"); !strings.Contains(message, "\r\nX-Attachment: ") {
		t.Errorf("it has not been through the filter:\n%s", message)
	}
	return contents(t, m.path("/var/log/readme.log"))
}

// listenBelow1024 sees that port 25 takes the capability that is commented out,
// and nothing else.
func listenBelow1024(t *testing.T, m machine, plain, privileged unit) {
	m.write(t, "/etc/mailgw/gateway.toml", `
[[listener]]
name = "smtp"
address = "tcp:127.0.0.1:25"
protocol = "smtp"
[listener.routes]
"*" = ["discard"]
[backend.discard]
plugin = "discard"
`)
	if code := m.start(t, plain, "").exit(t, plain.stopTimeout(t)); code != 71 {
		t.Errorf("exit code %d without the capability, want 71", code)
	}
	s := m.start(t, privileged, "")
	s.wait(t, "it answers on port 25", func() bool {
		return m.command("mailgw send --to ann@example.org tcp:127.0.0.1:25").Run() == nil
	})
	m.run(t, "kill -TERM $(cat /run/service.pid)")
	s.exit(t, privileged.stopTimeout(t))
}

// logIn sees a user leave mail, whom root has put into the file that the service
// reads, and nobody else.
func logIn(t *testing.T, m machine, privileged unit) {
	if _, err := exec.LookPath("swaks"); err != nil {
		missing(t, fmt.Sprintf("%v: internal/peers/install installs it", err))
	}
	configs := snippets(t, "toml")
	i := slices.IndexFunc(configs, func(text string) bool { return strings.Contains(text, "[backend.users]") })
	m.write(t, "/etc/mailgw/gateway.toml", configs[i])
	makeCertificate(t, m.path("/etc/mailgw"))
	m.run(t, "chgrp mailgw /etc/mailgw/key.pem; chmod g+r /etc/mailgw/key.pem")
	m.run(t, passwdCommand(t)+" <<<secret")
	if got := m.run(t, "stat -c '%a %U:%G' /etc/mailgw/users"); got != "640 root:mailgw\n" {
		t.Errorf("the file of users is %s", got)
	}
	s := m.start(t, privileged, "")
	s.wait(t, "it listens", func() bool { return m.command(": </dev/tcp/127.0.0.1/465").Run() == nil })
	const swaks = "swaks --server 127.0.0.1:465 --tls-on-connect --from ann@example.org --to bob@example.org"
	for args, want := range map[string]string{
		" --auth PLAIN --auth-user ann@example.org --auth-password secret": "<~  250 2.0.0 ",
		" --auth PLAIN --auth-user ann@example.org --auth-password guess":  "<~* 535 5.7.8 ",
		"": "<~* 530 5.7.0 ",
	} {
		out, _ := m.command(swaks + args).CombinedOutput()
		if !strings.Contains(string(out), want) {
			t.Errorf("swaks%s\ndoes not hear %q:\n%s", args, want, out)
		}
	}
	m.run(t, "kill -TERM $(cat /run/service.pid)")
	s.exit(t, privileged.stopTimeout(t))
}

// failForGood sees the service end with codes after which systemd does not
// start it again, where that would be in vain.
func failForGood(t *testing.T, m machine, u unit) {
	m.write(t, "/etc/mailgw/gateway.toml", "nonsense = 1\n")
	for arg, want := range map[string]int{"": 78, " --nonsense": 64} {
		code := m.start(t, u, arg).exit(t, u.stopTimeout(t))
		if code != want || !slices.Contains(strings.Fields(u["RestartPreventExitStatus"]), fmt.Sprint(code)) {
			t.Errorf("%q: exit code %d, want %d, which is in RestartPreventExitStatus", arg, code, want)
		}
	}
}

// A unit has the settings of a unit of systemd's.
type unit map[string]string

func parseUnit(text string) unit {
	u := unit{}
	for _, line := range regexp.MustCompile(`(?m)^(\w+)=(.*)$`).FindAllStringSubmatch(text, -1) {
		u[line[1]] = line[2]
	}
	return u
}

// stopTimeout is how long systemd waits before it kills.
func (u unit) stopTimeout(t *testing.T) time.Duration {
	t.Helper()
	timeout, err := time.ParseDuration(u["TimeoutStopSec"] + "s")
	if err != nil {
		t.Fatal(err)
	}
	return timeout
}

// A service is a process that runs as a unit says.
type service struct {
	exited chan int // its exit code
}

// start starts a service as systemd does, with more arguments.
func (m machine) start(t *testing.T, u unit, args string) service {
	t.Helper()
	for key, want := range map[string]string{"KillMode": "mixed", "NoNewPrivileges": "yes", "ProtectSystem": "full"} {
		if u[key] != want {
			t.Fatalf("%s=%s, but the test runs services with %s", key, u[key], want)
		}
	}
	privileges := "--no-new-privs"
	if name := strings.TrimPrefix(u["AmbientCapabilities"], "CAP_"); name != "" {
		privileges += fmt.Sprintf(" --inh-caps +%[1]s --ambient-caps +%[1]s", strings.ToLower(name))
	}
	cmd := m.command(fmt.Sprintf(`
unshare --mount bash -euc '
	for dir in /boot /etc /usr; do
		mount --bind $dir $dir
		mount -o remount,bind,ro $dir
	done
	exec env -i PATH="$PATH" USER=%[1]s setpriv --reuid %[1]s --regid %[1]s --init-groups %[2]s %[3]s
' &
echo $! >/run/service.pid
wait $!
`, u["User"], privileges, u["ExecStart"]+args))
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := service{make(chan int, 1)}
	go func() {
		cmd.Wait()
		s.exited <- cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() {
		log.Close()
		if t.Failed() {
			t.Logf("the service printed:\n%s", contents(t, log.Name()))
		}
	})
	return s
}

// exit returns the exit code of the service.
func (s service) exit(t *testing.T, patience time.Duration) int {
	t.Helper()
	select {
	case code := <-s.exited:
		return code
	case <-time.After(patience):
		t.Fatalf("the service has not ended after %v", patience)
		return 0
	}
}

// wait waits until done reports true, as long as the service runs.
func (s service) wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for !done() {
		select {
		case code := <-s.exited:
			t.Fatalf("the service ends with %d, want: %s", code, what)
		case <-deadline:
			t.Fatalf("not within a minute: %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
