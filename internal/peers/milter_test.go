package peers

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// python is Debian's, which has Debian's packages.
const python = "/usr/bin/python3"

// runMilter runs a milter until the end of the test, once it listens.
func runMilter(t *testing.T, socket, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		cmd.Wait()
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-exited
	})
	gatewaytest.Eventually(t, program+" listens", func() bool {
		select {
		case <-exited:
			t.Fatalf("%s: %v", program, cmd.ProcessState)
		default:
		}
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// throughMilter is a gateway whose mail goes through a milter.
func throughMilter(t *testing.T, socket, settings string) *gatewaytest.Gateway {
	t.Helper()
	return gatewaytest.Start(t, gatewaytest.AsTested, `
[named_routes]
quarantine = ["quarantine"]
`, gatewaytest.LMTP, `chunking = true
xforward = ["unix"]
[listener.routes]
"*" = ["milter", "inbox"]
"twice@peers.example" = ["milter", "again", "inbox"]
`, gatewaytest.Inbox, `
return_path = true
delivered_to = true
[backend.quarantine]
plugin = "maildir"
[backend.quarantine.settings]
path = "mail/quarantine"
[backend.again]
plugin = "milter"
settings = { address = "unix:`+socket+`", quarantine = "quarantine" }
[backend.milter]
plugin = "milter"
[backend.milter.settings]
address = "unix:`+socket+`"
`+settings)
}

// TestPythonMilter sends messages through a milter on libmilter that does what
// they ask for.
func TestPythonMilter(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command(python, "-c", "import Milter").CombinedOutput(); err != nil {
		gatewaytest.Without(t, "%v: %s: internal/peers/install installs it", err, out)
	}
	socket := filepath.Join(gatewaytest.Directory(t), "milter.sock")
	runMilter(t, socket, python, "testdata/filter.py", socket)
	g := throughMilter(t, socket, `
quarantine = "quarantine"
macros = { j = "mx.peers.example", daemon_name = "peer" }
`)

	const (
		ann     = "Return-Path: <sender@example.net>\r\nDelivered-To: ann@peers.example\r\n"
		trace   = "Received: from elsewhere\r\n\tby here\r\n"
		one     = "Subject:  one\r\n"
		two     = "subject:two\r\n\tfolded\r\n"
		refused = "550 5.7.1 <refused@peers.example> refused by python,\n5.7.1 100% sure"
		body    = ".\r\n..\r\n8-bit \xff\r\n"
	)
	large := strings.Repeat("a new body\r\n", 50000)
	tests := []struct {
		name string
		do   [][]any
		want map[string]string // messages by mailbox, without the field X-Do
		told string            // the answer, "" if it is positive
	}{
		{"nothing", [][]any{}, map[string]string{"ann": ann + trace + one + two + "\r\n" + body}, ""},
		{"fields", [][]any{
			{"addheader", "X-Last", "1\n 2"}, {"addheader", "X-First", "f", 0}, {"addheader", "X-Third", "t", 3},
			{"chgheader", "SUBJECT", 2, "new"}, {"chgheader", "Subject", 1, ""},
		}, map[string]string{
			"ann": ann + "X-First: f\r\n" + trace + "X-Third: t\r\nSUBJECT: new\r\nX-Last: 1\r\n 2\r\n\r\n" + body,
		}, ""},
		{"body", [][]any{{"body", "a new body\r\n", 50000}, {"addheader", "X-Body", "new"}}, map[string]string{
			"ann": ann + trace + one + two + "X-Body: new\r\n\r\n" + large,
		}, ""},
		{"envelope", [][]any{{"chgfrom", "<new@example.net>"}, {"addrcpt", "<bob@peers.example>"}, {"delrcpt", "<ann@peers.example>"}}, map[string]string{
			"bob": "Return-Path: <new@example.net>\r\nDelivered-To: bob@peers.example\r\n" + trace + one + two + "\r\n" + body,
		}, ""},
		{"quarantine", [][]any{{"quarantine", "spam"}, {"addheader", "X-Spam", "yes"}}, map[string]string{
			"quarantine": trace + one + two + "X-Spam: yes\r\n\r\n" + body,
		}, ""},
		{"told", [][]any{{"told"}}, map[string]string{
			"ann": ann + trace + one + two +
				"X-Told: client.example.org ('2001:db8::1', 77, 0, 0)\r\n HELO helo.example.org\r\n" +
				" MAIL <sender@example.net> ()\r\n RCPT <refused@peers.example> () refused@peers.example\r\n RCPT <ann@peers.example> () ann@peers.example\r\n DATA\r\n" +
				" j=mx.peers.example\r\n {daemon_name}=peer\r\n {mail_addr}=sender@example.net\r\n 16 octets\r\n\r\n" + body,
		}, ""},
		{"reject", [][]any{{"REJECT"}}, nil, "550 5.7.1 <ann@peers.example> rejected by a mail filter"},
		{"own words", [][]any{{"setreply", "451", "4.2.0", "not", "now"}, {"TEMPFAIL"}}, nil, "451 4.2.0 <ann@peers.example> not\n4.2.0 now"},
		{"discard", [][]any{{"DISCARD"}}, nil, ""},
	}
	for _, tt := range tests {
		do, err := json.Marshal(tt.do)
		if err != nil {
			t.Fatal(err)
		}
		message := trace + "X-Do: " + string(do) + "\r\n" + one + two + "\r\n" + body
		answers := answersThrough(t, g, []byte(message), "refused@peers.example", "ann@peers.example")
		if want := []string{refused, tt.told}; !slices.Equal(answers, want) {
			t.Errorf("%s: got %q, want %q", tt.name, answers, want)
		}
		for _, user := range []string{"ann", "bob", "quarantine"} {
			got := ""
			for _, mail := range g.Mail(user) {
				got += strings.Replace(mail, "X-Do: "+string(do)+"\r\n", "", 1)
			}
			if want := tt.want[user]; got != want {
				t.Errorf("%s: %s has\n%.600q, want\n%.600q", tt.name, user, got, want)
			}
			for _, path := range g.MailFiles(user) {
				os.Remove(path)
			}
		}
	}
	testMilterParameters(t, g)
}

// testMilterParameters has a milter change ESMTP parameters. It tells of those that
// it sees the second time.
func testMilterParameters(t *testing.T, g *gatewaytest.Gateway) {
	t.Helper()
	const do = `[["chgfrom", "<new@example.net>", "RET=HDRS ENVID=new"], ["addrcpt", "<bob@peers.example>", "NOTIFY=NEVER"], ["told"]]`
	if got := answersThrough(t, g, []byte("X-Do: "+do+"\r\n\r\n"), "twice@peers.example"); !slices.Equal(got, []string{""}) {
		t.Errorf("got %q", got)
	}
	for _, user := range []string{"twice", "bob"} {
		mail := strings.Join(g.Mail(user), "")
		for _, want := range []string{
			" MAIL <sender@example.net> ()\r\n RCPT <twice@peers.example> () twice@peers.example\r\n DATA\r\n",
			" MAIL <new@example.net> ('RET=HDRS', 'ENVID=new')\r\n RCPT <twice@peers.example> () twice@peers.example\r\n" +
				" RCPT <bob@peers.example> ('NOTIFY=NEVER',) bob@peers.example\r\n DATA\r\n",
		} {
			if !strings.Contains(mail, want) {
				t.Errorf("%s has\n%q, want %q", user, mail, want)
			}
		}
	}
}

// answersThrough sends a message as Postfix does for a client, and returns the
// answer of each recipient, without the ID at its end, or "" if it is positive.
func answersThrough(t *testing.T, g *gatewaytest.Gateway, message []byte, to ...string) (answers []string) {
	t.Helper()
	c, err := connect("unix", g.Address("lmtp"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	err = c.say(250, "XFORWARD NAME=client.example.org ADDR=IPV6:2001:db8::1 PORT=77 PROTO=ESMTP HELO=helo.example.org SOURCE=REMOTE")
	if err == nil {
		err = c.begin("sender@example.net", to...)
	}
	if err == nil {
		err = c.message(message)
	}
	if err == nil {
		err = c.PrintfLine(".")
	}
	for range to {
		if err == nil {
			_, _, err = c.ReadResponse(250)
		}
		text := ""
		if answer, ok := errors.AsType[*textproto.Error](err); ok {
			text, _, _ = strings.Cut(fmt.Sprintf("%d %s", answer.Code, answer.Msg), " (")
			err = nil
		}
		answers = append(answers, text)
	}
	if err != nil {
		t.Fatal(err)
	}
	return answers
}

// opendkim signs what comes from this machine, and the signature is good for what
// leaves: in the form that forgives nothing, and in that which forgives what milters
// are not told.
func TestOpenDKIM(t *testing.T) {
	t.Parallel()
	const odd = "From : Ann <ann@author.example>\r\nTo\t: bob@peers.example\r\nSubject \t : test\r\nX-Odd :\r\n folded\r\n\r\nHello.\r\n"
	testOpenDKIM(t, "simple/simple", corpus())
	testOpenDKIM(t, "relaxed/simple", append(corpus(), corpusMessage{"white space before colons", odd, 0}))
}

func testOpenDKIM(t *testing.T, canonicalization string, messages []corpusMessage) {
	t.Helper()
	program := unpackedPeer(t, "opendkim", "/usr/sbin/opendkim")
	dir := gatewaytest.Directory(t)
	key, config, socket := filepath.Join(dir, "key"), filepath.Join(dir, "config"), filepath.Join(dir, "milter.sock")
	k := newDKIMKeys(t)
	der, err := x509.MarshalPKCS8PrivateKey(k.keys["r"])
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string][]byte{
		key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		config: fmt.Appendf(nil, `
Socket           local:%s
Mode             s
Domain           author.example
Selector         r
KeyFile          %s
RequireSafeKeys  no
Canonicalization %s
SignHeaders      From,To,Subject,X-Odd,X-Case,X-Empty,X-Twice,X-Long,X-Latin,X-UTF-8,Received,Content-Type
Syslog           no
`, socket, key, canonicalization),
	} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	runMilter(t, socket, program, "-f", "-x", config)
	g := throughMilter(t, socket, "")

	for i, m := range messages {
		user := fmt.Sprint("user", i)
		sendSigned(t, "unix", g.Address("lmtp"), "BDAT", m.text, user+"@peers.example")
		_, mail, _ := strings.Cut(strings.Join(g.Mail(user), ""), "Delivered-To: "+user+"@peers.example\r\n")
		if !strings.HasPrefix(mail, "DKIM-Signature: ") || !strings.HasSuffix(mail, "\r\n"+m.text) {
			t.Errorf("%s, %s: got\n%.2000q, want it below a signature", canonicalization, m.name, mail)
		}
		verified, err := dkim.VerifyWithOptions(strings.NewReader(mail), &dkim.VerifyOptions{
			LookupTXT: func(name string) ([]string, error) { return []string{k.records[name]}, nil },
		})
		if err != nil || len(verified) != 1 || verified[0].Err != nil {
			t.Errorf("%s, %s: %v, %+v, want a good signature of\n%.2000q", canonicalization, m.name, err, verified, mail)
		}
	}
}
