package peers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// dovecotConfig is an LMTP server for the users of a file, one of whom may have no
// message.
const dovecotConfig = `
base_dir = DIR/run
state_dir = DIR/run
log_path = DIR/log
protocols = lmtp
ssl = no
first_valid_uid = 1
first_valid_gid = 1
mail_location = maildir:~/Maildir
postmaster_address = postmaster@peers.example
lmtp_user_concurrency_limit = 10
mail_plugins = quota
plugin {
  quota = maildir
  quota_rule = *:messages=1000
}
passdb {
  driver = static
  args = nopassword=y
}
userdb {
  driver = passwd-file
  args = username_format=%n DIR/users
}
service lmtp {
  unix_listener DIR/lmtp.sock {
    mode = 0600
  }
}
`

// startDovecot returns the directory of a Dovecot with the users ann and full. Its
// socket is lmtp.sock there.
func startDovecot(t *testing.T) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		gatewaytest.Without(t, "Dovecot runs as root only")
	}
	if _, err := os.Stat("/usr/lib/dovecot/lmtp"); err != nil {
		gatewaytest.Without(t, "%v: internal/peers/install installs it", err)
	}
	program := peer(t, "dovecot")
	dir = gatewaytest.Directory(t)
	const owner = 8 // mail
	for name, text := range map[string]string{
		"dovecot.conf": strings.ReplaceAll(dovecotConfig, "DIR", dir),
		"users":        fmt.Sprintf("ann::%d:%[1]d::%[2]s/ann::\nfull::%[1]d:%[1]d::%[2]s/full::userdb_quota_rule=*:bytes=1\n", owner, dir),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, user := range []string{"ann", "full"} {
		home := filepath.Join(dir, user)
		if err := os.Mkdir(home, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(home, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	gatewaytest.ShowOnFailure(t, filepath.Join(dir, "log"))
	cmd := exec.Command(program, "-F", "-c", filepath.Join(dir, "dovecot.conf"))
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	gatewaytest.Eventually(t, "Dovecot listens", func() bool {
		c, err := connect("unix", filepath.Join(dir, "lmtp.sock"))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return dir
}

// Mail goes through the relay to Dovecot, whose answer each recipient hears.
func TestRelayToDovecot(t *testing.T) {
	dir := startDovecot(t)
	g := gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.LMTP, "routes = { '*' = ['relay'] }\n[backend.relay]\nplugin = 'relay'\nsettings.targets = ['lmtp+unix://"+dir+"/lmtp.sock']\n")
	message := lines("From: sender@peers.example", "Subject: test", "", ".", "..", "8 bits: \xe4", "")
	c, err := connect("unix", g.Address("lmtp"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.begin("sender@peers.example> BODY=8BITMIME", "ann@peers.example", "gone@peers.example", "full@peers.example", "ann@peers.example"); err != nil {
		t.Fatal(err)
	}
	c.W.WriteString(strings.ReplaceAll(string(message), "\r\n.", "\r\n.."))
	c.PrintfLine(".")
	for i, want := range []string{"250 2.0.0 <ann@peers.example> ", "550 5.1.1 <gone@peers.example> ", "552 5.2.2 <full@peers.example> ", "250 2.0.0 <ann@peers.example> "} {
		line, err := c.ReadLine()
		if err != nil || !strings.HasPrefix(line, want) {
			t.Errorf("answer %d: %q, %v, want %q", i, line, err, want)
		}
	}
	mail, err := filepath.Glob(dir + "/ann/Maildir/new/*")
	if err != nil || len(mail) != 1 { // a recipient that is there twice gets it once
		t.Fatalf("ann has %q, %v, want one message", mail, err)
	}
	text, err := os.ReadFile(mail[0])
	if got := strings.ReplaceAll(string(text), "\r\n", "\n"); err != nil || !strings.HasSuffix(got, "\n"+strings.ReplaceAll(string(message), "\r\n", "\n")) {
		t.Errorf("ann has\n%q, %v\nwant\n%q", text, err, message)
	}
}
