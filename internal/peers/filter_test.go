package peers

import (
	"errors"
	"fmt"
	"net/textproto"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// A loop is a Postfix whose mail goes through a gateway and comes back, before
// it is delivered to the inbox of the same gateway.
type loop struct {
	*postfix
	g    *gatewaytest.Gateway
	back string // where mail comes back, HOST:PORT
}

// A way is how mail goes through the gateway.
type way struct {
	address string // of the listener; %s is a directory that both find
	listen  string // other lines of the listener
	back    string // the URL of the relay's target; %s is Postfix's directory of sockets
	flags   string // of mailgw postfix
	edit    *strings.Replacer
}

// ways that mail can take. The listener takes all that Postfix may say.
var (
	afterByLMTP = way{address: "unix:%s/filter.sock", listen: "protocol = \"lmtp\"\ndsn = true\n"}
	afterBySMTP = way{address: "tcp:127.0.0.1:0", listen: "protocol = \"smtp\"\ndsn = true\n"}
)

const beforeListener = `protocol = "smtp"
unknown_parameters = "keep"
limits.answer_timeout = "90s"
`

// startLoop starts both. Postfix has just those lines for them that mailgw
// postfix prints, but for the port where it takes mail.
func startLoop(t *testing.T, w way, main string, config ...string) loop {
	t.Helper()
	p := newPostfix(t)
	if strings.HasSuffix(w.address, ":0") {
		w.address = "tcp:" + freeAddress(t)
	}
	address := freeAddress(t)
	if w.back == "" {
		w.back = "smtp://" + address
	}
	shared := filepath.Join(p.dir, "queue/mailgw")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	trusted := p.trusted()
	if strings.HasPrefix(w.address, "tcp:") {
		trusted = "xforward = [\"127.0.0.0/8\"]\n"
	}
	filter := fmt.Sprintf("\n[[listener]]\nname = \"filter\"\naddress = %q\n%s%s[listener.routes]\n\"*\" = [\"rules\", \"back\"]\n",
		strings.ReplaceAll(w.address, "%s", shared), w.listen, trusted)
	back := fmt.Sprintf("\n[backend.back]\nplugin = \"relay\"\n[backend.back.settings]\ntargets = [%q]\nhello = \"gw.peers.example\"\n",
		strings.ReplaceAll(w.back, "%s", filepath.Join(p.dir, "queue/public")))
	delivery := gatewaytest.LMTP + p.trusted() + "[listener.routes]\n\"@peers.example\" = [\"inbox\"]\n"
	g := gatewaytest.Start(t, gatewaytest.AsTested, filter, delivery, rules, back, gatewaytest.Inbox, strings.Join(config, ""))

	p.services = strings.Replace(printed(t, g, p, w, "master.cf"), "smtp  inet", p.address+"  inet", 1)
	if !strings.Contains(p.services, p.address) {
		p.services += p.address + "  inet  n  -  n  -     -  smtpd\n"
	}
	p.start(printed(t, g, p, w, "main.cf") + main)
	return loop{p, g, address}
}

// printed returns what mailgw postfix prints.
func printed(t *testing.T, g *gatewaytest.Gateway, p *postfix, w way, file string) string {
	t.Helper()
	args := append([]string{"postfix", file, "--queue-directory", p.dir + "/queue"}, strings.Fields(w.flags)...)
	out, err := g.Command(args...).Output()
	if err != nil {
		t.Fatalf("mailgw %q: %v\n%s", args, err, out)
	}
	text := string(out)
	if strings.Contains(text, "WARNING") {
		t.Errorf("mailgw %q warns:\n%s", args, text)
	}
	if w.edit != nil {
		text = w.edit.Replace(text)
	}
	return text
}

// The client that Postfix is told of by one that it trusts.
const (
	elsewhere    = "XCLIENT NAME=mail.elsewhere.example ADDR=192.0.2.7 PORT=4711"
	mayElsewhere = "smtpd_authorized_xclient_hosts = 127.0.0.0/8\nlocal_header_rewrite_clients =\n"
	fromThere    = "from client.peers.example (mail.elsewhere.example [192.0.2.7])"
)

// connectElsewhere connects to Postfix as a client of another place.
func (l loop) connectElsewhere() (*client, error) {
	c, err := connect("tcp", l.address)
	if err != nil {
		return nil, err
	}
	if err = c.say(220, elsewhere); err == nil {
		err = c.hello()
	}
	if err != nil {
		c.Close()
	}
	return c, err
}

// delicate is a message that does not survive those who know better.
var delicate = lines(
	"Received: from first.example by second.example with SMTP; Sat, 21 Nov 2026 12:00:00 +0000",
	"From:  Ann <ann@peers.example> , \"B\" <b@x>",
	"To: incomplete",
	"Subject: \u00e9  \u00fc ",
	"Message-Id: <delicate@peers.example>",
	"X-Odd: "+strings.Repeat("folded\r\n\t ", 20)+"end",
	"X-Long: "+strings.Repeat("x", 1500),
	"",
	".", "..", ".dot", "From here on",
	"eight bits: \x80\xff \u00e9",
	strings.Repeat("long ", 4000),
	"trailing space ",
	"", "",
)

var receivedField = regexp.MustCompile(`^Received: (from [^\r]*)\r\n\tby mx\.peers\.example \(Postfix\) with (\w+)(?: id (\w+))?(?:\r\n\t[^\r]*)*;\r\n(?:\t[^\r]*\r\n)*`)

// A hop is a Received field of Postfix.
type hop struct{ from, with, id string }

// hops cuts the fields of Postfix off from a message.
func hops(message string) (all []hop, rest string) {
	for {
		m := receivedField.FindStringSubmatch(message)
		if m == nil {
			return all, message
		}
		all = append(all, hop{m[1], m[2], m[3]})
		message = message[len(m[0]):]
	}
}

// mailOf returns the one message that a user has in the end, as hops and what
// is below them.
func (l loop) mailOf(t *testing.T, user string) ([]hop, string) {
	t.Helper()
	gatewaytest.Eventually(t, user+" has mail", func() bool { return len(l.g.MailFiles(user)) > 0 })
	mail := l.g.Mail(user)
	if len(mail) != 1 {
		t.Fatalf("%s has %d messages", user, len(mail))
	}
	return hops(mail[0])
}

// Mail goes through the filter after Postfix has it, and comes back as it was:
// the client, the queue id, DSN, and each octet.
func TestFilterAfterQueue(t *testing.T) {
	for name, w := range map[string]way{
		"LMTP on a unix socket":      afterByLMTP,
		"LMTP over TCP":              {address: "tcp:127.0.0.1:0", listen: afterByLMTP.listen},
		"SMTP":                       afterBySMTP,
		"back through a unix socket": {address: afterByLMTP.address, listen: afterByLMTP.listen, back: "smtp+unix://%s/filtered"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startLoop(t, w, mayElsewhere+"always_bcc = all@peers.example\n")
			c, err := l.connectElsewhere()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.send(delicate, "sender@peers.example> SMTPUTF8 BODY=8BITMIME RET=HDRS ENVID=e+2B1",
				"ann@peers.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;first@elsewhere.example",
				"\u00fcnn@peers.example> NOTIFY=NEVER", "gone@peers.example> NOTIFY=NEVER"); err != nil {
				t.Fatal(err)
			}

			var id string // of what has come back
			for _, user := range []string{"ann", "\u00fcnn", "all"} {
				received, rest := l.mailOf(t, user)
				if rest != string(delicate) {
					t.Errorf("%s has\n%q\nwant\n%q", user, rest, delicate)
				}
				if len(received) != 2 || received[0].with != "UTF8SMTP" || received[1].from != fromThere || received[1].with != "UTF8SMTP" {
					t.Fatalf("%s has hops %+v, want two, the last one %s", user, received, fromThere)
				}
				id = received[0].id
				l.checkClientKnown(t, id, received[1].id)
			}
			_, report := l.mailOf(t, "sender")
			for _, want := range []string{
				"\r\nX-Postfix-Queue-ID: " + id + "\r\n",
				"\r\nOriginal-Envelope-Id: e+1\r\n",
				"\r\nOriginal-Recipient: rfc822;first@elsewhere.example\r\n",
				"\r\nStatus: 2.0.0\r\n",
			} {
				if !strings.Contains(report, want) {
					t.Errorf("no %q in the notification\n%s", want, report)
				}
			}
			if n := strings.Count(report, "\r\nFinal-Recipient: "); n != 1 {
				t.Errorf("the notification is about %d recipients, want 1:\n%s", n, report)
			}
		})
	}
}

// checkClientKnown checks that Postfix knows of mail that has come back by which
// name it went to the filter, and from which client it is: it tells its log, and
// whom it delivers to.
func (l loop) checkClientKnown(t *testing.T, id, before string) {
	t.Helper()
	text, err := os.ReadFile(l.log)
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`: ` + id + `: client=\w+\[127\.0\.0\.1\], orig_queue_id=` + before + `, orig_client=mail\.elsewhere\.example\[192\.0\.2\.7\]\n`)
	if !want.Match(text) {
		t.Errorf("Postfix has not logged %q", want)
	}
	deliveries := l.received(t, "lmtp", before)
	if len(deliveries) == 0 {
		t.Errorf("nothing has come back with the ident %s", before)
	}
	for _, e := range deliveries {
		if e.ClientName != "mail.elsewhere.example" || e.ClientAddr != "192.0.2.7" || e.ClientHELO != "client.peers.example" || e.ClientProto != "ESMTP" {
			t.Errorf("the gateway has delivered mail of %+v", e)
		}
	}
}

// received returns the messages that a listener of the gateway has logged under
// an ident.
func (l loop) received(t *testing.T, listener, ident string) (events []gatewaytest.Event) {
	t.Helper()
	for _, e := range gatewaytest.Follow(t, l.g.Log).Events() {
		if e.Message == "received" && e.Listener == listener && e.Ident == ident {
			events = append(events, e)
		}
	}
	return events
}

// A filter before the queue takes and refuses mail while the client waits.
func TestFilterBeforeQueue(t *testing.T) {
	speedAdjust := strings.NewReplacer("#-o smtpd_proxy_options", "-o smtpd_proxy_options")
	for name, w := range map[string]way{
		"TCP":                       {address: "tcp:127.0.0.1:0"},
		"TCP, speed_adjust":         {address: "tcp:127.0.0.1:0", edit: speedAdjust},
		"unix socket":               {address: "unix:%s/filter.sock"},
		"unix socket, speed_adjust": {address: "unix:%s/filter.sock", edit: speedAdjust},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w.listen, w.flags = beforeListener, "--before-queue"
			l := startLoop(t, w, mayElsewhere)
			c, err := l.connectElsewhere()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			const sender = "sender@peers.example> SMTPUTF8 BODY=8BITMIME RET=HDRS ENVID=e+2B1"
			for _, refused := range []struct {
				to   []string
				want string
			}{
				{[]string{"gone@peers.example"}, "550 5.1.1 no such user ("},
				{[]string{"ann@peers.example", "busy@peers.example", "gone@peers.example"}, "450 4.2.1 mailbox busy ("},
			} {
				reply, ok := errors.AsType[*textproto.Error](c.send(delicate, sender, refused.to...))
				if !ok || !strings.HasPrefix(fmt.Sprint(reply.Code, " ", reply.Msg), refused.want) {
					t.Errorf("the answer to a message to %q is %v, want %q", refused.to, reply, refused.want)
				}
			}
			if err := c.send(delicate, sender, "bob@peers.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;first@elsewhere.example", "\u00fcnn@peers.example"); err != nil {
				t.Fatal(err)
			}
			for _, user := range []string{"bob", "\u00fcnn"} {
				received, rest := l.mailOf(t, user)
				if rest != string(delicate) {
					t.Errorf("%s has\n%q\nwant\n%q", user, rest, delicate)
				}
				if len(received) != 2 || received[0].with != "UTF8SMTP" || received[1].from != fromThere || received[1].with != "UTF8SMTP" {
					t.Fatalf("%s has hops %+v, want two, the last one %s", user, received, fromThere)
				}
				// Before the queue a message has no id yet but that of the gateway.
				taken := l.received(t, "filter", "")
				l.checkClientKnown(t, received[0].id, taken[len(taken)-1].TX)
			}
			_, report := l.mailOf(t, "sender")
			for _, want := range []string{"\r\nOriginal-Envelope-Id: e+1\r\n", "\r\nOriginal-Recipient: rfc822;first@elsewhere.example\r\n"} {
				if !strings.Contains(report, want) {
					t.Errorf("no %q in the notification\n%s", want, report)
				}
			}
		})
	}
}
