package peers

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// Exim hands over one message for three recipients, in each of the ways that
// it knows. One is to be deferred and one to be bounced.
func TestExim(t *testing.T) {
	t.Parallel()
	findExim(t)
	c := startComplete(t)
	overTLS := `
  driver = smtp
  allow_localhost
  hosts_require_tls = *
  tls_verify_certificates = ` + c.ca.path() + `
  tls_verify_hosts = *
  hosts_require_auth = *
  port = `
	tests := map[string]struct {
		transport    string
		from         string // and parameters
		notify       string // parameter of the RCPT of the one who gets it
		sent, failed string // what is in the lines of Exim's log
		told         string
	}{
		"unix": {
			transport: "driver = lmtp\n  socket = " + c.Address("lmtp") + "\n  batch_max = 100",
			from:      "sender-unix@peers.example>",
			sent:      `C="250 2.0.0 <unix@peers.example> delivered`,
			failed:    "LMTP error after end of data: ",
			told:      "LMTP: MAIL <sender-unix@peers.example>, RCPT <unix@peers.example>",
		},
		"lmtp": {
			transport: overTLS + port(c.Address("lmtp-tcp")) + "\n  protocol = lmtp\n  hosts_try_chunking =",
			from:      "sénder-lmtp@peers.example> SMTPUTF8 RET=HDRS ENVID=lmtp",
			notify:    " NOTIFY=SUCCESS,DELAY ORCPT=rfc822;lmtp@elsewhere.example",
			sent:      `C="250 2.0.0 <lmtp@peers.example> delivered`,
			failed:    "LMTP error after DATA: ",
			told: "UTF8LMTPSA TLS 1.3 as login@peers.example by PLAIN: MAIL <sénder-lmtp@peers.example> SMTPUTF8 RET=HDRS ENVID=lmtp, " +
				"RCPT <lmtp@peers.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;lmtp@elsewhere.example",
		},
		"prdr": {
			transport: overTLS + port(c.Address("smtp")) + "\n  hosts_try_prdr = *\n  hosts_try_chunking =",
			from:      "sender-prdr@peers.example>",
			sent:      `CV=yes A=login PRDR C="250 2.0.0 <prdr@peers.example> delivered`,
			failed:    "PRDR error after DATA: ",
			told:      "ESMTPSA TLS 1.3 as login@peers.example by PLAIN: MAIL <sender-prdr@peers.example> PRDR, RCPT <prdr@peers.example>",
		},
		"bdat": {
			transport: overTLS + port(c.Address("smtps")) + "\n  protocol = smtps\n  hosts_try_prdr = *\n  hosts_try_chunking = *",
			from:      "sénder-bdat@peers.example> SMTPUTF8 RET=FULL",
			notify:    " NOTIFY=NEVER",
			sent:      `CV=yes A=login PRDR K C="250 2.0.0 <bdat@peers.example> delivered`,
			failed:    "PRDR error after BDAT ",
			told:      "UTF8SMTPSA TLS 1.3 as login@peers.example by PLAIN: MAIL <sénder-bdat@peers.example> PRDR SMTPUTF8 RET=FULL, RCPT <bdat@peers.example> NOTIFY=NEVER",
		},
	}
	for user, test := range tests {
		t.Run(user, func(t *testing.T) {
			e := newExim(t, "  "+test.transport)
			message := lines(
				"Date: Sat, 21 Nov 2026 12:06:42 +0000", "Message-ID: <"+user+"@peers.example>", "From: sender@peers.example",
				"Subject:  two  spaces and \u00e9 ", "", ".", "..", ".dot", "eight bits: \x80\xff", strings.Repeat("long ", 199), "", "",
			)
			log := e.send(message, test.from+" BODY=8BITMIME", user+"@peers.example>"+test.notify,
				"busy@peers.example> NOTIFY=NEVER", "gone@peers.example> NOTIFY=NEVER")
			for _, want := range []string{
				` => ` + user + `@peers.example .*` + regexp.QuoteMeta(test.sent),
				` == busy@peers.example .*` + test.failed + `.*450 4.2.1 <busy@peers.example> mailbox busy`,
				` \*\* gone@peers.example .*` + test.failed + `.*550 5.1.1 <gone@peers.example> no such user`,
			} {
				if !regexp.MustCompile(want).MatchString(log) {
					t.Errorf("Exim has not logged %q", want)
				}
			}
			if t.Failed() {
				t.Logf("but\n%s", log)
			}
			if got := e.undelivered(); !slices.Equal(got, []string{"busy@peers.example"}) {
				t.Errorf("in Exim's queue are %q, want the one who was busy", got)
			}
			checkReceived(t, c.Gateway, user, message)
			from, _, _ := strings.Cut(test.from, ">")
			if got := c.told(t, from); got != test.told {
				t.Errorf("the backend was told\n%s\nwant\n%s", got, test.told)
			}
		})
	}
}

// An exim is an Exim with its own configuration, spool and log. No daemon
// runs: each message is given to a process that ends when it has tried to
// deliver it.
type exim struct {
	t            *testing.T
	dir, program string
}

// findExim finds the Exim that the script install has unpacked, or the one
// that is installed, and the user that it insists on, whatever its
// configuration says. It skips the test if something is missing.
func findExim(t *testing.T) (program string, owner *user.User) {
	t.Helper()
	if os.Geteuid() != 0 {
		gatewaytest.Without(t, "Exim runs as root only")
	}
	owner, err := user.Lookup("Debian-exim")
	if err != nil {
		gatewaytest.Without(t, "%v: internal/peers/install makes it", err)
	}
	program, err = filepath.Abs("../../var/peers/exim/usr/sbin/exim4")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		program = peer(t, "exim4")
	}
	return program, owner
}

// newExim prepares an Exim whose mail leaves by a transport, the lines of which
// are given.
func newExim(t *testing.T, transport string) *exim {
	t.Helper()
	program, owner := findExim(t)
	e := &exim{t: t, dir: gatewaytest.Directory(t)}
	e.program = e.copy(program)
	uid, _ := strconv.Atoi(owner.Uid)
	gid, _ := strconv.Atoi(owner.Gid)
	spool := filepath.Join(e.dir, "spool")
	if err := os.Mkdir(spool, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(spool, uid, gid); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`
exim_path = %s
exim_user = %s
spool_directory = %s
log_file_path = $spool_directory/%%slog
log_selector = +smtp_confirmation +tls_cipher +tls_certificate_verified +8bitmime
deliver_drop_privilege
keep_environment =
primary_hostname = mx.peers.example
host_lookup =
smtputf8_advertise_hosts = *
dsn_advertise_hosts = *
acl_smtp_rcpt = accept
begin routers
all:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = gateway
begin transports
gateway:
%s
begin authenticators
login:
  driver = plaintext
  public_name = PLAIN
  client_send = ^%s^%s
begin retry
* * F,1d,1h
`, e.program, owner.Username, spool, transport, loginName, password)
	if err := os.WriteFile(e.config(), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	return e
}

// copy copies the program to where Exim's user can run it, which may not
// be able to enter the directory of the sources.
func (e *exim) copy(program string) string {
	e.t.Helper()
	text, err := os.ReadFile(program)
	if err != nil {
		e.t.Fatal(err)
	}
	path := filepath.Join(e.dir, "exim4")
	if err := os.WriteFile(path, text, 0o755); err != nil {
		e.t.Fatal(err)
	}
	return path
}

func (e *exim) config() string { return filepath.Join(e.dir, "exim.conf") }
func (e *exim) log() string    { return filepath.Join(e.dir, "spool/mainlog") }

// send gives Exim a message over SMTP, and returns its log when it has tried to
// deliver it to all recipients.
func (e *exim) send(message []byte, from string, to ...string) string {
	e.t.Helper()
	cmd := exec.CommandContext(e.t.Context(), e.program, "-C", e.config(), "-bs", "-odf")
	c, err := typeInto(cmd)
	if err != nil {
		e.t.Fatal(err)
	}
	if err = c.greet(); err == nil {
		err = c.send(message, from, to...)
	}
	if err == nil {
		err = c.quit()
	}
	c.Close()
	if ended := cmd.Wait(); err != nil || ended != nil {
		e.t.Fatalf("exim: %v, %v", err, ended)
	}
	log, err := os.ReadFile(e.log())
	if err != nil {
		e.t.Fatal(err)
	}
	return string(log)
}

// undelivered returns the recipients of the queue.
func (e *exim) undelivered() []string {
	e.t.Helper()
	out, err := exec.Command(e.program, "-C", e.config(), "-bpu").CombinedOutput()
	if err != nil {
		e.t.Fatalf("exim -bpu: %v\n%s", err, out)
	}
	// A line for each message, a line for each of its recipients.
	var addresses []string
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) == 1 {
			addresses = append(addresses, fields[0])
		}
	}
	return addresses
}
