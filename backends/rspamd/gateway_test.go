package rspamd

import (
	"cmp"
	"fmt"
	"net/http"
	"net/textproto"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// What becomes of a message by each answer, through the gateway as it is built:
// the reply, and the message to the last octet. Messages that have no reply
// here are delivered.
func TestAnswers(t *testing.T) {
	const (
		header = "Received: from x\r\nSubject: old\r\n subject\r\nX-Two: 1\r\nFrom: a@b.example\r\nx-two: 2\r\n"
		body   = "\r\nbody\r\n.\r\n"
	)
	// with has the header with some of it replaced.
	with := func(oldnew ...string) string { return strings.NewReplacer(oldnew...).Replace(header) + body }
	tests := []struct {
		answer string
		reply  string
		want   string // message; empty stands for the one that came
		inbox  string // where the message is, if not in the recipient's
		utf8   bool   // SMTPUTF8
	}{
		{answer: `"no action"`},
		{answer: `"greylist", "messages": {"smtp_message": "come later"}`},
		{answer: `"add header", "messages": {"smtp_message": "spam"}`, want: header + "X-Spam: Yes\r\n" + body},
		{answer: `"soft reject"`, reply: "451 4.7.1 try again later"},
		{answer: `"soft reject", "messages": {"smtp_message": "come later"}`, reply: "451 4.7.1 come later"},
		{answer: `"reject", "messages": {}`, reply: "550 5.7.1 message rejected as spam"},
		{answer: `"reject", "messages": {"smtp_message": "Größe\r\n250 yes\u0000"}, "milter": {"reject": "harder"}`, reply: "550 5.7.1 Gr?"},
		{answer: `"quarantine"`, reply: "451 4.7.1 try again later"},
		{answer: `"made up"`, reply: "451 4.7.1 try again later"},
		{answer: `"discard"`, inbox: "none"},
		{answer: `"reject", "milter": {"reject": "discard"}`, inbox: "none"},
		{answer: `"reject", "milter": {"reject": "quarantine"}`, reply: "451 4.7.1 try again later"},
		// The settings of the test have rows for these.
		{answer: `"hold", "milter": {"add_headers": {"X-Why": "held"}}`, want: header + "X-Why: held\r\n" + body, inbox: "quarantine"},
		{answer: `"ignored", "subject": "new"`},

		{answer: `"rewrite subject"`},
		{answer: `"rewrite subject", "subject": ""`},
		{answer: `"rewrite subject", "subject": "*** SPAM *** old subject"`, want: with("old\r\n subject", "*** SPAM *** old subject")},
		{answer: `"rewrite subject", "subject": "größer\r\nBcc: x"`, want: with("old\r\n subject", "=?utf-8?q?gr=C3=B6=C3=9Fer_Bcc:_x?=")},
		{answer: `"rewrite subject", "subject": "größer\r\nBcc: x"`, utf8: true, want: with("old\r\n subject", "größer\r\n Bcc: x")},
		{
			answer: `"rewrite subject", "subject": "[SPAM] ` + strings.Repeat("word ", 20) + `"`,
			want:   with("old\r\n subject", "[SPAM]"+strings.Repeat(" word", 12)+"\r\n"+strings.Repeat(" word", 8)),
		},
		{answer: `"rewrite subject", "subject": "x", "milter": {"remove_headers": {"Subject": 0}}`, want: with("old\r\n subject", "x")},

		{answer: `"no action", "milter": {"remove_headers": {"X-Two": 0}}`, want: with("X-Two: 1\r\n", "", "x-two: 2\r\n", "")},
		{answer: `"no action", "milter": {"remove_headers": {"x-TWO": 1}}`, want: with("X-Two: 1\r\n", "")},
		{answer: `"no action", "milter": {"remove_headers": {"X-Two": 2}}`, want: with("x-two: 2\r\n", "")},
		{answer: `"no action", "milter": {"remove_headers": {"X-Two": -1}}`, want: with("x-two: 2\r\n", "")},
		{answer: `"no action", "milter": {"remove_headers": {"X-Two": -2}}`, want: with("X-Two: 1\r\n", "")},
		{answer: `"no action", "milter": {"remove_headers": {"X-Two": [1, 2, 1]}}`, want: with("X-Two: 1\r\n", "", "x-two: 2\r\n", "")},
		{answer: `"no action", "milter": {"remove_headers": {"X-Two": 3, "x-two": -3, "None": 0, "Not a name": 1}}`},

		{answer: `"no action", "milter": {"add_headers": {"X-New": "end"}}`, want: header + "X-New: end\r\n" + body},
		{answer: `"no action", "milter": {"add_headers": {"X-New": {"value": "end"}}}`, want: header + "X-New: end\r\n" + body},
		{answer: `"no action", "milter": {"add_headers": {"X-New": {"value": "end", "order": -1}}}`, want: header + "X-New: end\r\n" + body},
		{answer: `"no action", "milter": {"add_headers": {"X-New": {"value": "end", "order": 99}}}`, want: header + "X-New: end\r\n" + body},
		{answer: `"no action", "milter": {"add_headers": {"X-New": {"value": "last but one", "order": -2}}}`, want: with("x-two", "X-New: last but one\r\nx-two")},
		{answer: `"no action", "milter": {"add_headers": {"X-New": {"value": "top", "order": -99}}}`, want: "X-New: top\r\n" + header + body},
		{answer: `"no action", "milter": {"add_headers": {"X-New": {"value": "top", "order": 0}}}`, want: "X-New: top\r\n" + header + body},
		{answer: `"no action", "milter": {"add_headers": {"X-New": {"value": "top", "index": 1}}}`, want: "X-New: top\r\n" + header + body},
		{answer: `"no action", "milter": {"add_headers": {"X-New": {"value": "second", "order": 2}}}`, want: with("Subject", "X-New: second\r\nSubject")},
		{
			answer: `"no action", "milter": {"add_headers": {"X-B": [{"value": "1", "order": 1}, "2", {"value": ""}], "X-A": {"value": "0", "order": 1}}}`,
			want:   "X-A: 0\r\nX-B: 1\r\n" + header + "X-B: 2\r\nX-B: \r\n" + body,
		},
		{answer: `"no action", "milter": {"add_headers": {"X-New": "a\nb\r\n\tc\n\n \n d\r"}}`, want: header + "X-New: a\r\n b\r\n\tc\r\n d\r\n" + body},
		{answer: `"no action", "milter": {"add_headers": {"X-New": "a\u0000\u001bb\u0085"}}`, want: header + "X-New: a??b?\r\n" + body},
		{answer: `"no action", "milter": {"add_headers": [], "remove_headers": [], "add_rcpt": null, "spam_header": []}`},

		{answer: `"no action", "dkim-signature": "v=1;\n\tb=x"`, want: "DKIM-Signature: v=1;\r\n\tb=x\r\n" + header + body},
		{
			answer: `"add header", "dkim-signature": ["one", "two"], "milter": {"add_headers": {"ARC-Seal": {"value": "x", "order": 1}}}`,
			want:   "DKIM-Signature: one\r\nDKIM-Signature: two\r\nARC-Seal: x\r\n" + header + "X-Spam: Yes\r\n" + body,
		},

		{answer: `"add header", "milter": {"spam_header": "Probably"}`, want: header + "X-Spam: Probably\r\n" + body},
		{answer: `"add header", "milter": {"spam_header": {"X-Two": "3", "A": "b"}}`, want: with("X-Two: 1\r\n", "", "x-two: 2\r\n", "A: b\r\nX-Two: 3\r\n")},
		{answer: `"no action", "milter": {"spam_header": "Probably"}`},
		{answer: `"add header", "milter": {"spam_header": {}}`, want: header + "X-Spam: Yes\r\n" + body},
		{answer: `"reject", "milter": {"no_action": true}`, want: header + "X-Rspamd-Action: reject\r\n" + body},

		{answer: `"no action", "milter": {"change_from": "<new@b.example>"}`},
		{answer: `"no action", "milter": {"change_from": "not an address"}`, reply: "451 4.3.0 try again later"},
		{answer: `"no action", "milter": {"change_from": "größe@b.example"}`, reply: "451 4.3.0 try again later"},
		{answer: `"no action", "milter": {"add_rcpt": ["added@b.example"]}`, inbox: "USER added"},
		{answer: `"no action", "milter": {"add_rcpt": ["added@b.example"], "del_rcpt": ["<USER@B.EXAMPLE>"]}`, inbox: "added"},
		{answer: `"no action", "milter": {"del_rcpt": "*@b.example"}`},
	}
	answers := make(chan string, 1)
	address := serve(t, func(w http.ResponseWriter, r *http.Request) { answering(<-answers)(w, r) })
	g := gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.SMTP, `
[listener.routes]
"*" = ["rspamd", "inbox"]
[named_routes]
quarantine = ["quarantine"]
[backend.rspamd]
plugin = "rspamd"
[backend.rspamd.settings]
address = "`+address+`"
[backend.rspamd.settings.actions]
hold = "divert:quarantine"
ignored = "pass"
[backend.quarantine]
plugin = "maildir"
[backend.quarantine.settings]
path = "mail/quarantine"
`, gatewaytest.Inbox)
	for i, test := range tests {
		user := fmt.Sprintf("u%d", i)
		answers <- `{"action": ` + strings.ReplaceAll(test.answer, "USER", user) + `}`
		// The fields of ours that a sender has forged are removed.
		forged := with("X-Two", "X-SPAM: No\r\nx-rspamd-action : none\r\nX-Two")
		from := "<a@b.example>"
		if test.utf8 {
			from += " SMTPUTF8"
		}
		reply := send(t, g.Address("smtp"), from, "<"+user+"@b.example>", forged)
		if !strings.HasPrefix(reply, cmp.Or(test.reply, "250 2.0.0 ")) {
			t.Errorf("%s: got %q, want %q", test.answer, reply, test.reply)
		}
		mail := map[string][]string{}
		for _, inbox := range []string{user, "quarantine", "added"} {
			if messages := g.Mail(inbox); messages != nil {
				mail[inbox] = messages
				os.RemoveAll(g.Path("mail/" + inbox))
			}
		}
		want := map[string][]string{}
		if test.reply == "" && test.inbox != "none" {
			for inbox := range strings.FieldsSeq(cmp.Or(test.inbox, user)) {
				want[strings.ReplaceAll(inbox, "USER", user)] = []string{cmp.Or(test.want, header+body)}
			}
		}
		if !reflect.DeepEqual(mail, want) {
			t.Errorf("%s: got\n%q, want\n%q", test.answer, mail, want)
		}
	}
}

// send sends a message as it is, which ends with a line, and returns the reply.
func send(t *testing.T, address, from, to, message string) (reply string) {
	t.Helper()
	c, err := textproto.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c.W, "EHLO client.example\r\nMAIL FROM:%s\r\nRCPT TO:%s\r\nDATA\r\n", from, to)
	fmt.Fprintf(c.W, "%s.\r\n", strings.ReplaceAll(message, "\r\n.", "\r\n.."))
	c.W.Flush()
	for _, want := range []int{220, 250, 250, 250, 354} {
		if _, _, err := c.ReadResponse(want); err != nil {
			t.Fatal(err)
		}
	}
	code, text, err := c.ReadResponse(0)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", code, text)
}
