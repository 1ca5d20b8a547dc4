package peers

import (
	"errors"
	"fmt"
	"maps"
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

// A way is how mail goes through the gateway. QUEUE is the queue directory, and
// BACK is where mail comes back, over TCP.
type way struct {
	address  string // of the listener
	listener string // more lines of it
	target   string // of the relay
	relay    string // more lines of it
	filters  string // before it, of the route: `"tag", `
	flags    string // of mailgw postfix
	edit     *strings.Replacer
}

const (
	onUnix = "unix:QUEUE/mailgw/filter.sock"
	onTCP  = "tcp:127.0.0.1:0"
	toTCP  = "smtp://BACK"

	// Listeners take all that Postfix may say.
	afterByLMTP = "protocol = \"lmtp\"\ndsn = true\n"
	afterBySMTP = "protocol = \"smtp\"\ndsn = true\n"
	beforeQueue = "protocol = \"smtp\"\nunknown_parameters = \"keep\"\nlimits.answer_timeout = \"90s\"\n"
)

// startLoop starts both.
func startLoop(t *testing.T, w way, main string) loop {
	t.Helper()
	l := newLoop(t, w)
	l.startAsPrinted(w, main)
	return l
}

// newLoop starts the gateway, and not yet Postfix.
func newLoop(t *testing.T, w way) loop {
	t.Helper()
	l := loop{postfix: newPostfix(t), back: freeAddress(t)}
	if err := os.Mkdir(filepath.Join(l.dir, "queue/mailgw"), 0o755); err != nil {
		t.Fatal(err)
	}
	trusted := l.trusted()
	if w.address == onTCP {
		w.address, trusted = "tcp:"+freeAddress(t), "xforward = [\"127.0.0.0/8\"]\n"
	}
	filter := fmt.Sprintf(`
[[listener]]
name = "filter"
address = %q
%s%s[listener.routes]
"*" = [%s"rules", "back"]

[backend.back]
plugin = "relay"
[backend.back.settings]
targets = [%q]
hello = "gw.peers.example"
%s`, w.address, w.listener, trusted, w.filters, w.target, w.relay)
	filter = strings.NewReplacer("QUEUE", filepath.Join(l.dir, "queue"), "BACK", l.back).Replace(filter)
	l.g = gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.LMTP, l.trusted(), toPeers, filter, rules, gatewaytest.Inbox)
	return l
}

// startAsPrinted starts Postfix with just those lines that mailgw postfix prints,
// but for the port where it takes mail, and for the client there, which may say
// that it is elsewhere and is not taken for a local one.
func (l loop) startAsPrinted(w way, main string) {
	l.t.Helper()
	const believed = "  -o smtpd_authorized_xclient_hosts=127.0.0.0/8\n  -o local_header_rewrite_clients=\n"
	services := l.printed(w, "master.cf")
	if !strings.Contains(services, "smtp  inet") {
		services += "smtp  inet  n  -  n  -  -  smtpd\n"
	}
	l.services = regexp.MustCompile(`(?m)^smtp(  inet  .*\n)`).ReplaceAllString(services, l.address+"$1"+believed)
	l.start(l.printed(w, "main.cf") + main)
	for _, files := range []string{"-n", "-M", "-P"} {
		if read := l.run("postconf", files); strings.Contains(read, "warning: ") {
			l.t.Errorf("postconf %s:\n%s", files, read)
		}
	}
}

const toPeers = `
[listener.routes]
"@peers.example" = ["inbox"]
`

// printed returns what mailgw postfix prints for a file.
func (l loop) printed(w way, file string) string {
	l.t.Helper()
	args := append([]string{"postfix", file, "--queue-directory", l.dir + "/queue"}, strings.Fields(w.flags)...)
	cmd := l.g.Command(args...)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // no goroutine is left to wait for
	out, err := cmd.Output()
	text := string(out)
	if err != nil || strings.Contains(text, "WARNING") {
		l.t.Errorf("mailgw %q: %v\n%s", args, err, text)
	}
	if w.edit != nil {
		text = w.edit.Replace(text)
	}
	return text
}

// The client that Postfix is told of.
const (
	elsewhere = "XCLIENT NAME=mail.elsewhere.example ADDR=192.0.2.7 PORT=4711"
	fromThere = "from client.peers.example (mail.elsewhere.example [192.0.2.7])"
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

var receivedField = regexp.MustCompile(`^Received: (from [^\r]*)\r\n\tby mx\.peers\.example \(Postfix\) with \w+(?: id (\w+))?[^\r]*\r\n(?:\t[^\r]*\r\n)*`)

// A hop is a Received field of Postfix.
type hop struct{ from, id string }

// hops cuts the fields of Postfix off from a message.
func hops(message string) (all []hop, rest string) {
	for {
		m := receivedField.FindStringSubmatch(message)
		if m == nil {
			return all, message
		}
		all = append(all, hop{m[1], m[2]})
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
	ca := newIssuer(t)
	cert, _ := ca.file(gatewayName)
	tls := fmt.Sprintf("tls.certificates = [%q]\ntls.mode = ", cert)
	for name, w := range map[string]way{
		"LMTP on a unix socket":          {address: onUnix, listener: afterByLMTP, target: toTCP},
		"LMTP over TCP":                  {address: onTCP, listener: afterByLMTP, target: toTCP},
		"SMTP":                           {address: onTCP, listener: afterBySMTP, target: toTCP},
		"back through a unix socket":     {address: onUnix, listener: afterByLMTP, target: "smtp+unix://QUEUE/public/filtered"},
		"STARTTLS there and back":        {address: onTCP, listener: afterBySMTP + tls + `"starttls"` + "\n", target: "smtp+starttls://BACK", relay: fmt.Sprintf("tls_ca = %q\n", ca.path())},
		"TLS from the first octet, both": {address: onTCP, listener: afterByLMTP + tls + `"implicit"` + "\n", target: "smtps://BACK", relay: fmt.Sprintf("tls_ca = %q\n", ca.path())},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startLoop(t, w, "always_bcc = all@peers.example\nsmtpd_tls_cert_file = "+cert+"\n")
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

			users := []string{"ann", "\u00fcnn"}
			if strings.HasPrefix(w.listener, afterByLMTP) {
				users = append(users, "all") // who gets all messages, of which there is one
			}
			ids := map[string]string{} // of what has come back
			for _, user := range users {
				received, rest := l.mailOf(t, user)
				if rest != string(delicate) {
					t.Errorf("%s has\n%q\nwant\n%q", user, rest, delicate)
				}
				if len(received) != 2 || received[1].from != fromThere {
					t.Fatalf("%s has hops %+v, want two, the last one %s", user, received, fromThere)
				}
				ids[user] = received[0].id
				l.checkClientKnown(t, received[0].id, received[1].id)
			}
			l.awaitStatus(t, map[string]string{"ann": "sent sent", "\u00fcnn": "sent sent", "gone": "bounced"})
			_, report := l.mailOf(t, "sender")
			for _, want := range []string{
				"\r\nX-Postfix-Queue-ID: " + ids["ann"] + "\r\n",
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

// A filter adds a field, and Postfix has the same message as without it, whatever is
// in it or missing.
func TestOddMessagesAfterQueue(t *testing.T) {
	t.Parallel()
	l := startLoop(t, way{address: onUnix, listener: afterByLMTP, target: toTCP, filters: `"tag", `, relay: `
[backend.tag]
plugin = "exec"
[backend.tag.settings]
command = ["/bin/echo", "X-Tag: yes"]
`}, "always_bcc =\n")
	c, err := l.connectElsewhere()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	messages := []string{
		"",
		"\r\n",
		"\r\n\r\n\r\n",
		"Subject: only a header\r\n",
		"Subject: an empty body\r\n\r\n",
		"\r\nonly a body\r\n",
		"\r\nSubject: of the body\r\n\r\n",
		"no field\r\n",
		"Subject: and then\r\nno field\r\n",
		"X-Folded:\r\n \t\r\n\tx \r\n\r\n.\r\n",
		"Subject: 8-bit, which nobody declared\r\n\r\n\x80\xff\r\n",
		"X-8-bit: \x80\xff \u00e9\r\n\r\n\x01\x7f\x1b\r\n",
		"Subject : a space\r\n\r\n \r\n",
		"Bcc: bob@peers.example\r\n\r\nx\r\n",
		"X-Long: " + strings.Repeat("x", 3000) + "\r\n\r\n" + strings.Repeat("y", 70000) + "\r\n",
	}
	for i, m := range messages {
		if err := c.send([]byte(m), "sender@peers.example> RET=FULL ENVID=e+2B1", fmt.Sprintf("odd%d@peers.example> NOTIFY=NEVER", i)); err != nil {
			t.Fatal(err)
		}
	}
	// Postfix does so by itself, before the filter sees it.
	changed := map[string]string{
		"no field\r\n":                        "\r\nno field\r\n",
		"Subject: and then\r\nno field\r\n":   "Subject: and then\r\n\r\nno field\r\n",
		"Subject : a space\r\n\r\n \r\n":      "Subject: a space\r\n\r\n \r\n",
		"Bcc: bob@peers.example\r\n\r\nx\r\n": "\r\nx\r\n",
	}
	for i, m := range messages {
		if as, ok := changed[m]; ok {
			m = as
		}
		_, rest := l.mailOf(t, fmt.Sprintf("odd%d", i))
		after, tagged := strings.CutPrefix(rest, "X-Tag: yes\r\n")
		before, rest := hops(after)
		if !tagged || len(before) != 1 || rest != m {
			t.Errorf("%.80q has become\n%.2000q, of hops %+v", m, rest, before)
		}
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
	var deliveries []gatewaytest.Event
	// Mail is there before the log tells of it, and that before the client is told.
	gatewaytest.Eventually(t, "something has come back with the ident "+before, func() bool {
		deliveries = l.received(t, "lmtp", before)
		return len(deliveries) > 0
	})
	for _, e := range deliveries {
		if e.ClientName != "mail.elsewhere.example" || e.ClientAddr != "192.0.2.7" || e.ClientHELO != "client.peers.example" || e.ClientProto != "ESMTP" {
			t.Errorf("the gateway has delivered mail of %+v", e)
		}
	}
}

// awaitStatus waits until Postfix has logged what became of some users, each time
// that it had a message for them.
func (l loop) awaitStatus(t *testing.T, want map[string]string) {
	t.Helper()
	log := gatewaytest.Follow(t, l.log)
	got := map[string]string{}
	gatewaytest.Eventually(t, fmt.Sprintf("Postfix has logged %v", want), func() bool {
		for _, line := range log.Lines() {
			entry, ok := parseLogged(line)
			user, _, _ := strings.Cut(entry.to, "@")
			if ok && want[user] != "" {
				got[user] = strings.TrimSpace(got[user] + " " + entry.status)
			}
		}
		return maps.Equal(got, want)
	})
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
		"TCP":                       {address: onTCP},
		"TCP, speed_adjust":         {address: onTCP, edit: speedAdjust},
		"unix socket":               {address: onUnix},
		"unix socket, speed_adjust": {address: onUnix, edit: speedAdjust},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w.listener, w.target, w.flags = beforeQueue, toTCP, "--before-queue"
			l := startLoop(t, w, "")
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
				if len(received) != 2 || received[1].from != fromThere {
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

// A relay that does not say who the client is lets Postfix take it for a local
// one. Even so the header stays as it is.
func TestFilterThatHidesTheClient(t *testing.T) {
	t.Parallel()
	l := startLoop(t, way{address: onUnix, listener: afterByLMTP, target: toTCP, relay: "xforward = false\n"}, "")
	sendOne(t, "tcp", l.address, delicate, "sender@peers.example> SMTPUTF8 BODY=8BITMIME", "ann@peers.example")
	if _, rest := l.mailOf(t, "ann"); rest != string(delicate) {
		t.Errorf("ann has\n%q\nwant\n%q", rest, delicate)
	}
}

// Postfix delivers over TCP, and each recipient has its own answer, in SMTP too.
func TestDeliveryAsPrinted(t *testing.T) {
	for _, protocol := range []string{"lmtp", "smtp"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			l := loop{postfix: newPostfix(t)}
			l.g = gatewaytest.Start(t, gatewaytest.AsTested, fmt.Sprintf(`
[[listener]]
name = "inbox"
address = "tcp:%s"
protocol = %q
xforward = ["127.0.0.1"]
[listener.routes]
"@peers.example" = ["rules", "inbox"]
`, freeAddress(t), protocol), rules, gatewaytest.Inbox)
			l.startAsPrinted(way{}, "")
			sendOne(t, "tcp", l.address, delicate, "sender@peers.example> SMTPUTF8 BODY=8BITMIME", "ann@peers.example", "gone@peers.example")
			if _, rest := l.mailOf(t, "ann"); rest != string(delicate) {
				t.Errorf("ann has\n%q\nwant\n%q", rest, delicate)
			}
			l.awaitStatus(t, map[string]string{"ann": "sent", "gone": "bounced"})
		})
	}
}
