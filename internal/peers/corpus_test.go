package peers

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// A corpusMessage is a message that is easily damaged.
type corpusMessage struct {
	name, text  string
	attachments int
}

// corpus returns messages by ann@author.example.
func corpus() []corpusMessage {
	head := "From: Ann <ann@author.example>\r\nTo: bob@peers.example\r\nSubject: test\r\n"
	multipart := string(lines(
		"MIME-Version: 1.0",
		`Content-Type: multipart/mixed;`, "\tboundary=\"=_outer 1\"", "",
		"A preamble.", "--=_outer 1 ", `Content-Type: multipart/alternative; boundary="=_outer 1.inner"`, "",
		"--=_outer 1.inner", "", "plain", "--=_outer 1.inner", "Content-Type: text/html", "", "<p>html  \t", "--=_outer 1.inner--", "An epilogue.", "",
		"--=_outer 1", "Content-Type: message/rfc822", "Content-Disposition: attachment; filename=inner.eml", "",
		"From: eve@elsewhere.example", "DKIM-Signature: v=1; d=elsewhere.example", "", ".", "..", "",
		"--=_outer 1", "Content-Type: application/octet-stream", `Content-Disposition: attachment; filename="a b.bin"`, "Content-Transfer-Encoding: base64", "",
		strings.Repeat("QUJD", 19), "QUI=",
		"--=_outer 1--", "", "Another epilogue.", ""))
	return []corpusMessage{
		{"plain", head + "\r\nHello.\r\n", 0},
		{"no final newline", head + "\r\nHello.\r\nbye", 0},
		{"no body", head + "\r\n", 0},
		{"empty lines at both ends", head + "\r\n\r\n\r\nHello.\r\n \r\n\t \r\n\r\n\r\n", 0},
		{"dots", head + "\r\n.\r\n..\r\n...\r\n. \r\n.", 0},
		{"long lines", head + "X-Long: " + strings.Repeat("x", 990) + "\r\n\r\n" + strings.Repeat("long ", 4000) + "\r\n" + strings.Repeat("y", 998) + "\r\n", 0},
		{"8-bit", head + "X-Latin: \xe4\xf6\xfc\r\nX-UTF-8: \u00e4\u00f6\u00fc\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\xe4\xf6\xfc \u00e4 \xed\xa0\x80\x80\xff\r\n", 0},
		{"control characters", head + "\r\n\x01\x7f\x1b[1m\x0b\x0c\x08\r\n", 0},
		{"odd folding", head + "X-Odd:\r\n  begins in the next line\t\r\n\t\tand goes on ,\r\n  with   spaces \r\nx-case:no space\r\nX-Empty:\r\nX-Empty: \r\nX-Twice: 1\r\nx-twice: 2\r\n\r\nHello.\r\n", 0},
		{"old results", "Authentication-Results: elsewhere.example; dkim=none\r\nReceived: from a by b;\r\n\tSat, 21 Nov 2026 15:00:00 +0000\r\n" + head + "\r\nHello.\r\n", 0},
		{"nested multiparts", head + multipart, 2},
		{"nested multiparts, no final newline", head + strings.TrimRight(multipart, "\r\n"), 2},
	}
}

// Mail that was signed goes through filters that add header fields, into a
// Maildir and through relays to another gateway. Its signatures stay good, and
// no octet is another one.
//
// Only DATA cannot carry a message that does not end with a line: its end takes
// one (RFC 5321, section 4.1.1.4). Who sends it so adds it, and that is all. The
// canonicalizations do that, too, so that the signatures do not mind.
func TestSignaturesSurvive(t *testing.T) {
	t.Parallel()
	k := newDKIMKeys(t)
	end := gatewaytest.Start(t, gatewaytest.AsTested,
		gatewaytest.LMTP, "chunking = true\n", gatewaytest.ToInbox, gatewaytest.SMTP, gatewaytest.ToInbox, gatewaytest.Inbox)
	g := gatewaytest.Start(t, gatewaytest.AsTested,
		gatewaytest.LMTP, "chunking = true\n", throughFilters, gatewaytest.SMTP, "chunking = true\n", throughFilters,
		gatewaytest.Inbox, fmt.Sprintf(`
[backend.dkim]
plugin = "dkim"
[backend.dkim.settings]
authserv_id = "mx.peers.example"
resolver = %q
[backend.counter]
plugin = "exec"
[backend.counter.settings]
command = ["/bin/sh", "-c", "echo X-Counted:; wc -c | sed 's/^/\\t/'"]
[backend.attachments]
plugin = %q
[backend.chunks]
plugin = "relay"
[backend.chunks.settings]
targets = ["lmtp+unix://%s"]
[backend.dots]
plugin = "relay"
[backend.dots.settings]
targets = ["smtp://%s"]
`, k.serve(t), buildExample(t, "attachments"), end.Address("lmtp"), end.Address("smtp")))

	ways := []struct{ network, address, command string }{
		{"unix", g.Address("lmtp"), "DATA"},
		{"unix", g.Address("lmtp"), "BDAT"},
		{"tcp", g.Address("smtp"), "DATA"},
		{"tcp", g.Address("smtp"), "BDAT"},
	}
	arrived := map[string]string{}
	for i, m := range corpus() {
		for j, canonicalization := range []string{"simple/simple", "simple/relaxed", "relaxed/relaxed"} {
			text := k.sign(t, canonicalization, m.text)
			for w, way := range ways {
				user := fmt.Sprintf("m%d-%d-%d", i, j, w)
				sendSigned(t, way.network, way.address, way.command, text, user+"-a@inbox.example", user+"-b@chunks.example", user+"-c@dots.example")
				for _, at := range []struct {
					mail   []string
					dotted bool
				}{
					{g.Mail(user + "-a"), way.command == "DATA"},
					{end.Mail(user + "-b"), way.command == "DATA"},
					{end.Mail(user + "-c"), true},
				} {
					name := fmt.Sprintf("%s, %s, %s by %s", m.name, canonicalization, way.network, way.command)
					checkFiltered(t, name, at.mail, text, at.dotted, m.attachments)
					arrived[fmt.Sprint(name, len(arrived))] = strings.Join(at.mail, "")
				}
			}
		}
	}
	k.check(t, arrived)
}

const throughFilters = `
[listener.routes]
"@inbox.example" = ["dkim", "counter", "attachments", "inbox"]
"@chunks.example" = ["dkim", "counter", "attachments", "chunks"]
"@dots.example" = ["dkim", "counter", "attachments", "dots"]
`

// checkFiltered checks that mail is one message, the one that was sent below
// the fields of the filters.
func checkFiltered(t *testing.T, name string, mail []string, sent string, dotted bool, attachments int) {
	t.Helper()
	if dotted && !strings.HasSuffix(sent, "\r\n") {
		sent += "\r\n"
	}
	if len(mail) != 1 {
		t.Errorf("%s: there are %d messages", name, len(mail))
		return
	}
	head, ok := strings.CutSuffix(mail[0], sent)
	if !ok || !filtered.MatchString(head) || strings.Count(head, "dkim=pass") != 2 || strings.Count(head, "X-Attachment:") != attachments {
		t.Errorf("%s: got\n%.3000q\nwant the fields of the filters and\n%.3000q", name, mail[0], sent)
	}
}

var filtered = regexp.MustCompile(`^(X-Attachment: .*\r\n)*X-Counted:\r\n\t\d+\r\nAuthentication-Results: mx\.peers\.example;\r\n(\t.*\r\n)+$`)

// buildExample builds a plugin of examples, and returns its path.
func buildExample(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(gatewaytest.Directory(t), name)
	if out, err := exec.Command("go", "build", "-o", path, "../../examples/"+name).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// sendSigned sends a message as it is, by DATA or in chunks by BDAT. By DATA it
// gets a line end if it has none.
func sendSigned(t *testing.T, network, address, command, message string, to ...string) {
	t.Helper()
	c, err := connect(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const from = "ann@author.example> BODY=8BITMIME"
	if command == "BDAT" {
		err = c.sendChunks([]byte(message), from, to...)
	} else {
		err = c.send([]byte(strings.TrimSuffix(message, "\r\n")+"\r\n"), from, to...)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// sendChunks sends a message by BDAT (RFC 3030), as it is.
func (c *client) sendChunks(message []byte, from string, to ...string) error {
	if err := c.envelope(from, to...); err != nil {
		return err
	}
	for len(message) > 0 {
		chunk := message[:min(len(message), 1000)]
		message = message[len(chunk):]
		last, replies := "", 1
		if len(message) == 0 {
			last = " LAST"
			if c.lmtp {
				replies = len(to)
			}
		}
		fmt.Fprintf(c.W, "BDAT %d%s\r\n%s", len(chunk), last, chunk)
		if err := c.W.Flush(); err != nil {
			return err
		}
		for range replies {
			if _, _, err := c.ReadResponse(250); err != nil {
				return fmt.Errorf("chunk: %w", err)
			}
		}
	}
	return nil
}
