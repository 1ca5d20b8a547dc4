package peers

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// The test file of the EICAR, in two parts, so that no scanner takes this file
// for it.
const eicar = `X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-` + `STANDARD-ANTIVIRUS-TEST-FILE!$H+H*`

// clamd has this limit of a message, in KiB.
const streamMaxLength = 64

// A clamd is a ClamAV with a database of one signature.
type clamd struct {
	t      *testing.T
	socket string
	cmd    *exec.Cmd
}

func startClamd(t *testing.T) *clamd {
	t.Helper()
	program := unpackedPeer(t, "clamav", "/usr/sbin/clamd")
	dir := gatewaytest.Directory(t)
	c := &clamd{t: t, socket: filepath.Join(dir, "clamd.sock")}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(filepath.Join(dir, "db"), 0o700); err != nil {
		t.Fatal(err)
	}
	write("db/test.ndb", "Eicar-Test-Signature:0:*:"+hex.EncodeToString([]byte(eicar))+"\n")
	config := write("clamd.conf", fmt.Sprintf(`
LocalSocket %s
DatabaseDirectory %s/db
TemporaryDirectory %s
StreamMaxLength %dK
Foreground yes
SelfCheck 0
MaxThreads 2
`, c.socket, dir, dir, streamMaxLength))
	c.cmd = exec.Command(program, "--config-file="+config)
	c.cmd.Stdout, c.cmd.Stderr = t.Output(), t.Output()
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	gatewaytest.Eventually(t, "clamd listens", func() bool {
		conn, err := net.Dial("unix", c.socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return c
}

func (c *clamd) kill() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

// TestClamAV sends mail through a filter that asks clamd, first with clamd and
// then without it.
func TestClamAV(t *testing.T) {
	t.Parallel()
	c := startClamd(t)
	clamav := func(name, onFailure string, settings ...string) string {
		return fmt.Sprintf("[backend.%s]\nplugin = \"clamav\"\non_failure = %q\n[backend.%[1]s.settings]\naddress = \"unix:%[3]s\"\n%[4]s\n",
			name, onFailure, c.socket, strings.Join(settings, "\n"))
	}
	g := gatewaytest.Start(t, gatewaytest.AsTested, `
[named_routes]
quarantine = ["quarantine"]
`, gatewaytest.LMTP, `
[listener.routes]
"ann@*" = ["strict", "inbox"]
"bob@*" = ["lenient", "inbox"]
"carol@*" = ["keeping", "inbox"]
"dave@*" = ["hasty", "inbox"]
`, gatewaytest.Inbox, `
[backend.quarantine]
plugin = "maildir"
[backend.quarantine.settings]
path = "mail/quarantine"
`,
		clamav("strict", "tempfail", `on_too_large = "reject"`),
		clamav("lenient", "pass", `on_virus = "pass"`, `header = "X-Virus-Status"`),
		clamav("keeping", "tempfail", `on_virus = "divert"`, `divert_to = "quarantine"`, `max_size = "1KiB"`, `on_too_large = "tempfail"`),
		strings.Replace(clamav("hasty", "pass"), "\n", "\ntimeout = \"200ms\"\n", 1),
	)

	clean := lines("Subject: clean", "X-Virus-Status: Clean, says the sender", "", "8-bit \xff\xfe", ".", "..", "end")
	infected := lines(
		"Subject: infected", "MIME-Version: 1.0", `Content-Type: multipart/mixed; boundary="b"`, "",
		"--b", "", "See the attachment.",
		"--b", "Content-Type: application/octet-stream", "Content-Transfer-Encoding: base64", "",
		base64.StdEncoding.EncodeToString([]byte(eicar)),
		"--b--")
	large := lines("Subject: large", "", strings.Repeat("x\r\n", streamMaxLength<<10))
	const (
		virus   = "Eicar-Test-Signature.UNOFFICIAL"
		refused = "550 5.7.1 <ann@peers.example> the message has a virus: " + virus
		down    = "451 4.3.0 <ann@peers.example> try again later"
	)
	steps := []struct {
		name, to string
		message  []byte
		want     string // the answer, "" if it is delivered
		mailbox  string // that has it then
		header   string // that is added, and takes the place of that of the sender
	}{
		{"clean", "ann", clean, "", "ann", "-"},
		{"clean, told", "bob", clean, "", "bob", "Clean"},
		{"virus refused", "ann", infected, refused, "", ""},
		{"virus told", "bob", infected, "", "bob", "Infected (" + virus + ")"},
		{"virus kept", "carol", infected, "", "quarantine", "-"},
		{"too large for clamd", "ann", large, "552 5.3.4 <ann@peers.example> the message is too large for the virus scanner", "", ""},
		{"too large for clamd, passes", "bob", large, "", "bob", "Not scanned (too large)"},
		{"too large for us", "carol", large, "451 4.7.1 <carol@peers.example> the message is too large for the virus scanner, try again later", "", ""},
		{"hangs", "stop", nil, "", "", ""},
		{"clamd hangs, passes", "dave", infected, "", "dave", "-"},
		{"ends", "kill", nil, "", "", ""},
		{"no clamd", "ann", clean, down, "", ""},
		{"no clamd, passes", "bob", infected, "", "bob", "-"},
	}
	for _, s := range steps {
		switch s.to {
		case "stop":
			c.cmd.Process.Signal(syscall.SIGSTOP)
			continue
		case "kill":
			c.kill()
			continue
		}
		if got := answerTo(t, g, s.message, s.to+"@peers.example"); got != s.want {
			t.Errorf("%s: got %q, want %q", s.name, got, s.want)
		}
		if s.mailbox != "" {
			want := string(s.message)
			if s.header != "-" {
				want = "X-Virus-Status: " + s.header + "\r\n" + strings.ReplaceAll(want, "X-Virus-Status: Clean, says the sender\r\n", "")
			}
			checkOnly(t, g, s.name, s.mailbox, want)
		}
	}
}

// checkOnly checks that one message is in a mailbox, and removes it.
func checkOnly(t *testing.T, g *gatewaytest.Gateway, name, user, want string) {
	t.Helper()
	if mail := g.Mail(user); len(mail) != 1 || mail[0] != want {
		t.Errorf("%s: %s has %.300q, want %.300q", name, user, mail, want)
	}
	for _, path := range g.MailFiles(user) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// answerTo sends a message and returns the answer, without the ID at its end,
// or "" if it is positive.
func answerTo(t *testing.T, g *gatewaytest.Gateway, message []byte, to string) string {
	t.Helper()
	c, err := connect("unix", g.Address("lmtp"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return firstRefusal(t, c.send(message, "sender@example.net", to))
}

// firstRefusal returns the answer that err is of, without the transaction, or
// nothing if there is no error.
func firstRefusal(t *testing.T, err error) string {
	t.Helper()
	if answer, ok := errors.AsType[*textproto.Error](err); ok {
		text, _, _ := strings.Cut(answer.Msg, " (")
		return fmt.Sprintf("%d %s", answer.Code, text)
	}
	if err != nil {
		t.Error(err)
	}
	return ""
}
