package mailgw

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The service of README.md, as systemd runs it on a copy of this machine: what
// README.md says of systemctl is typed as it stands there.
func TestReadmeSystemd(t *testing.T) {
	if _, err := exec.LookPath("/lib/systemd/systemd"); err != nil {
		missing(t, fmt.Sprintf("%v: internal/peers/install installs it", err))
	}
	dir := t.TempDir()
	m := bootSystemd(t, dir)
	build(t, filepath.Join(dir, "bin"), "./cmd/mailgw")
	m.run(t, "id postfix || useradd --system --user-group postfix; mkdir -p /var/spool/postfix; ! id mailgw || userdel mailgw")
	for _, block := range snippets(t, "bash") {
		m.run(t, "cd /mnt\n"+block)
	}
	m.write(t, "/etc/systemd/system/mailgw.service", snippets(t, "ini")[0])
	m.write(t, "/etc/mailgw/gateway.toml", snippets(t, "toml")[0])

	m.run(t, snippets(t, "shell")[0])
	m.wait(t, "it runs and is enabled", "systemctl is-active mailgw && systemctl is-enabled mailgw")
	const send = "mailgw send --to ann@example.org unix:/var/spool/postfix/mailgw/lmtp.sock"
	m.wait(t, "it delivers", send)
	if got := m.run(t, "stat -c %U:%G /var/vmail/example.org/ann/new/*"); got != "mailgw:mailgw\n" {
		t.Errorf("the message belongs to %q", got)
	}

	// The unit's own reload, and one that fails and changes nothing.
	m.run(t, "systemctl reload mailgw")
	m.write(t, "/etc/mailgw/gateway.toml", "nonsense = 1\n")
	if out, err := m.command("systemctl reload mailgw").CombinedOutput(); err == nil {
		t.Errorf("a configuration with a problem is reloaded: %s", out)
	}
	m.run(t, send)

	// It is started again after a crash, but not where that would be in vain.
	before := m.run(t, "systemctl show --property MainPID mailgw")
	m.run(t, "systemctl kill --kill-who=main --signal=KILL mailgw")
	m.wait(t, "it does not start with nonsense, for good", "systemctl is-failed mailgw")
	if got := m.run(t, "systemctl show --property ExecMainStatus mailgw"); got != "ExecMainStatus=78\n" {
		t.Errorf("after %s it ended with %s, want 78", before, got)
	}
	m.write(t, "/etc/mailgw/gateway.toml", snippets(t, "toml")[0])
	m.run(t, "systemctl start mailgw")
	m.wait(t, "it delivers again", send)
	m.run(t, "systemctl stop mailgw")
	if got := m.run(t, "systemctl show --property Result mailgw"); got != "Result=success\n" {
		t.Errorf("it was stopped with %s", got)
	}
}

// wait waits until lines of shell succeed.
func (m machine) wait(t *testing.T, what, lines string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		out, err := m.command(lines).CombinedOutput()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			status, _ := m.command("systemctl status mailgw").CombinedOutput()
			t.Fatalf("not within a minute: %s: %s\n%s", what, strings.TrimSpace(string(out)), status)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
