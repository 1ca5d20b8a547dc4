package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// serveScript starts a server for one connection that plays its part of a
// conversation, S: lines, and checks that of the client, C: lines. At the end
// it waits for the client to hang up, unless the last line is HANGUP. It
// returns the server's address.
func serveScript(t *testing.T, network, script string) string {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if err := play(conn, script); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return network + ":" + l.Addr().String()
}

func play(conn net.Conn, script string) error {
	r := bufio.NewReader(conn)
	for line := range strings.Lines(strings.TrimSpace(script)) {
		line = strings.TrimSpace(line)
		if line == "HANGUP" {
			return nil
		}
		side, text, _ := strings.Cut(line, ":")
		text = strings.TrimPrefix(text, " ")
		if side == "S" {
			if _, err := fmt.Fprintf(conn, "%s\r\n", strings.ReplaceAll(text, `\e`, "\x1b")); err != nil {
				return fmt.Errorf("%s: %w", line, err)
			}
			continue
		}
		if got, err := r.ReadString('\n'); got != text+"\r\n" {
			return fmt.Errorf("client said %q, %v; want %q", got, err, text)
		}
	}
	if rest, _ := io.ReadAll(r); len(rest) > 0 {
		return fmt.Errorf("client said more: %q", rest)
	}
	return nil
}

// command runs a command line and returns what it printed and its exit code.
func command(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(args, strings.NewReader(stdin), &out, &err)
	return out.String(), err.String(), code
}

const message = "Subject: hi\n\n.dot\nend\n"

var sendTests = []struct {
	name    string
	network string
	args    string
	stdin   string // message, "-" for the usual one
	script  string
	want    string // on standard output
	code    int
}{
	// Whose answer is whose.
	{
		name: "smtp, one reply for all that were accepted", network: "tcp", args: "--to a@x.example --to bb@x.example --to c@x.example",
		script: `
			S: 220 mx ready
			C: EHLO me
			S: 250-mx
			S: 250 ENHANCEDSTATUSCODES
			C: MAIL FROM:<s@x.example>
			S: 250 2.1.0 ok
			C: RCPT TO:<a@x.example>
			S: 250 2.1.5 ok
			C: RCPT TO:<bb@x.example>
			S: 550-5.1.1 no such user,
			S: 550 5.1.1 at \e[5mall
			C: RCPT TO:<c@x.example>
			S: 251 2.1.5 will forward
			C: DATA
			S: 354 go on
			C: Subject: hi
			C:
			C: ..dot
			C: end
			C: .
			S: 250 2.0.0 taken
			C: QUIT
			S: 221 2.0.0 bye`,
		want: `
			a@x.example   250 2.0.0 taken
			bb@x.example  550 5.1.1 no such user, at ?[5mall
			c@x.example   250 2.0.0 taken`,
		code: exitRefused,
	},
	{
		name: "lmtp, pipelined, a reply for each, duplicates too", network: "unix", args: "--to a@x --to b@x --to c@x --to a@x",
		script: `
			S: 220 mx LMTP
			C: LHLO me
			S: 250-mx
			S: 250 pipelining
			C: MAIL FROM:<s@x.example>
			C: RCPT TO:<a@x>
			C: RCPT TO:<b@x>
			C: RCPT TO:<c@x>
			C: RCPT TO:<a@x>
			S: 250 2.1.0 ok
			S: 250 2.1.5 ok
			S: 452 4.5.3 too many
			S: 250 2.1.5 ok
			S: 250 2.1.5 ok
			C: DATA
			S: 354 go on
			C: Subject: hi
			C:
			C: ..dot
			C: end
			C: .
			S: 250 2.0.0 first
			S: 550 5.2.2 full
			S: 250 2.0.0 second
			C: QUIT
			S: 221 2.0.0 bye`,
		want: `
			a@x  250 2.0.0 first
			b@x  452 4.5.3 too many
			c@x  550 5.2.2 full
			a@x  250 2.0.0 second`,
		code: exitTemporary,
	},
	{
		name: "a server without extensions", network: "tcp", args: "--to a@x",
		script: `
			S: 220 mx
			C: EHLO me
			S: 500 what
			C: HELO me
			S: 250 mx
			C: MAIL FROM:<s@x.example>
			S: 250 ok
			C: RCPT TO:<a@x>
			S: 250 ok
			C: DATA
			S: 354
			C: Subject: hi
			C:
			C: ..dot
			C: end
			C: .
			S: 250 ok
			C: QUIT
			HANGUP`,
		want: `a@x  250 ok`,
	},

	// A refusal at each stage, and what is not said after it.
	{
		name: "greeting", network: "tcp", args: "--to a@x --to b@x",
		script: `
			S: 421 4.7.0 too many connections`,
		want: `
			a@x  421 4.7.0 too many connections
			b@x  421 4.7.0 too many connections`,
		code: exitTemporary,
	},
	{
		name: "LHLO", network: "tcp", args: "--lmtp --to a@x",
		script: `
			S: 220 mx
			C: LHLO me
			S: 500 5.5.1 this is SMTP`,
		want: `a@x  500 5.5.1 this is SMTP`,
		code: exitRefused,
	},
	{
		name: "MAIL", network: "tcp", args: "--to a@x --to b@x",
		script: `
			S: 220 mx
			C: EHLO me
			S: 250 mx
			C: MAIL FROM:<s@x.example>
			S: 451 4.3.0 later
			C: QUIT
			HANGUP`,
		want: `
			a@x  451 4.3.0 later
			b@x  451 4.3.0 later`,
		code: exitTemporary,
	},
	{
		name: "MAIL, pipelined", network: "tcp", args: "--to a@x --to b@x",
		script: `
			S: 220 mx
			C: EHLO me
			S: 250-mx
			S: 250 PIPELINING
			C: MAIL FROM:<s@x.example>
			C: RCPT TO:<a@x>
			C: RCPT TO:<b@x>
			S: 550 5.7.1 not you
			S: 503 5.5.1 no MAIL
			S: 503 5.5.1 no MAIL
			C: QUIT
			HANGUP`,
		want: `
			a@x  550 5.7.1 not you
			b@x  550 5.7.1 not you`,
		code: exitRefused,
	},
	{
		name: "every RCPT", network: "tcp", args: "--to a@x --to b@x",
		script: `
			S: 220 mx
			C: EHLO me
			S: 250 mx
			C: MAIL FROM:<s@x.example>
			S: 250 ok
			C: RCPT TO:<a@x>
			S: 550 5.1.1 no such user
			C: RCPT TO:<b@x>
			S: 450 4.2.1 busy
			C: QUIT
			HANGUP`,
		want: `
			a@x  550 5.1.1 no such user
			b@x  450 4.2.1 busy`,
		code: exitTemporary,
	},
	{
		name: "DATA", network: "unix", args: "--to a@x --to b@x",
		script: `
			S: 220 mx
			C: LHLO me
			S: 250 mx
			C: MAIL FROM:<s@x.example>
			S: 250 ok
			C: RCPT TO:<a@x>
			S: 250 ok
			C: RCPT TO:<b@x>
			S: 250 ok
			C: DATA
			S: 452 4.3.1 disk full
			C: QUIT
			HANGUP`,
		want: `
			a@x  452 4.3.1 disk full
			b@x  452 4.3.1 disk full`,
		code: exitTemporary,
	},
	{
		name: "XFORWARD", network: "unix", args: "--to a@x --xforward ADDR=192.0.2.1",
		script: `
			S: 220 mx
			C: LHLO me
			S: 250-mx
			S: 250 XFORWARD NAME ADDR
			C: XFORWARD ADDR=192.0.2.1
			S: 550 5.7.0 insufficient authorization
			C: QUIT
			HANGUP`,
		want: `a@x  550 5.7.0 insufficient authorization`,
		code: exitRefused,
	},
	{
		name: "XFORWARD that is not announced", network: "unix", args: "--to a@x --xforward NAME=mx.example,ADDR=192.0.2.1",
		script: `
			S: 220 mx
			C: LHLO me
			S: 250-mx
			S: 250 XFORWARD NAME
			C: QUIT
			HANGUP`,
		want: `a@x  no answer: the server does not announce XFORWARD ADDR`,
		code: exitRefused,
	},

	// Silence is never success.
	{
		name: "hang-up at once", network: "tcp", args: "--to a@x",
		script: `HANGUP`,
		want:   `a@x  no answer: connection lost`,
		code:   exitTemporary,
	},
	{
		name: "hang-up among the recipients", network: "tcp", args: "--to a@x --to b@x --to c@x",
		script: `
			S: 220 mx
			C: EHLO me
			S: 250-mx
			S: 250 PIPELINING
			C: MAIL FROM:<s@x.example>
			C: RCPT TO:<a@x>
			C: RCPT TO:<b@x>
			C: RCPT TO:<c@x>
			S: 250 ok
			S: 250 ok
			S: 421 4.3.2 shutting down
			HANGUP`,
		want: `
			a@x  no answer: connection lost
			b@x  421 4.3.2 shutting down
			c@x  no answer: connection lost`,
		code: exitTemporary,
	},
	{
		name: "hang-up after the message", network: "tcp", args: "--to a@x",
		script: `
			S: 220 mx
			C: EHLO me
			S: 250 mx
			C: MAIL FROM:<s@x.example>
			S: 250 ok
			C: RCPT TO:<a@x>
			S: 250 ok
			C: DATA
			S: 354
			C: Subject: hi
			C:
			C: ..dot
			C: end
			C: .
			HANGUP`,
		want: `a@x  no answer: connection lost`,
		code: exitTemporary,
	},
	{
		name: "hang-up among the answers", network: "unix", args: "--to a@x --to b@x --to c@x",
		script: `
			S: 220 mx
			C: LHLO me
			S: 250 mx
			C: MAIL FROM:<s@x.example>
			S: 250 ok
			C: RCPT TO:<a@x>
			S: 250 ok
			C: RCPT TO:<b@x>
			S: 250 ok
			C: RCPT TO:<c@x>
			S: 250 ok
			C: DATA
			S: 354
			C: Subject: hi
			C:
			C: ..dot
			C: end
			C: .
			S: 550 5.1.1 no
			S: 250 2.0.0 ok
			HANGUP`,
		want: `
			a@x  550 5.1.1 no
			b@x  250 2.0.0 ok
			c@x  no answer: connection lost`,
		code: exitTemporary,
	},
	{
		name: "a yes where there is nothing to say yes to", network: "tcp", args: "--to a@x",
		script: `
			S: 220 mx
			C: EHLO me
			S: 250 mx
			C: MAIL FROM:<s@x.example>
			S: 250 ok
			C: RCPT TO:<a@x>
			S: 250 ok
			C: DATA
			S: 250 delivered
			C: QUIT
			HANGUP`,
		want: `a@x  no answer: unexpected reply 250`,
		code: exitTemporary,
	},
	{
		name: "nothing is believed after nonsense", network: "unix", args: "--to a@x --to b@x",
		script: `
			S: 220 mx
			C: LHLO me
			S: 250 mx
			C: MAIL FROM:<s@x.example>
			S: 250 ok
			C: RCPT TO:<a@x>
			S: 250 ok
			C: RCPT TO:<b@x>
			S: 250 ok
			C: DATA
			S: 354
			C: Subject: hi
			C:
			C: ..dot
			C: end
			C: .
			S: panic: oh no
			S: 250 2.0.0 ok
			S: 250 2.0.0 ok`,
		want: `
			a@x  no answer: not a reply: "panic: oh no"
			b@x  no answer: not a reply: "panic: oh no"`,
		code: exitTemporary,
	},

	// The rest of what is said.
	{
		name: "parameters, XFORWARD, the null sender", network: "unix",
		args: "--smtp --from= --to a@x --xforward name=mx.example,ADDR=IPV6:2001:db8::1 --xforward HELO=[UNAVAILABLE]" +
			" --mail-param BODY=8BITMIME --mail-param SIZE=10 --rcpt-param NOTIFY=NEVER",
		script: `
			S: 220 mx
			C: EHLO me
			S: 250-mx
			S: 250-PIPELINING
			S: 250 XFORWARD NAME ADDR HELO
			C: XFORWARD name=mx.example ADDR=IPV6:2001:db8::1
			S: 250 2.0.0 ok
			C: XFORWARD HELO=[UNAVAILABLE]
			S: 250 2.0.0 ok
			C: MAIL FROM:<> BODY=8BITMIME SIZE=10
			C: RCPT TO:<a@x> NOTIFY=NEVER
			S: 250 ok
			S: 250 ok
			C: DATA
			S: 354
			C: Subject: hi
			C:
			C: ..dot
			C: end
			C: .
			S: 250 2.0.0 ok
			C: QUIT
			HANGUP`,
		want: `a@x  250 2.0.0 ok`,
	},
	{
		name: "several messages", network: "tcp", args: "--to a@x --count 2 --file testdata/message",
		script: `
			S: 220 mx
			C: EHLO me
			S: 250 mx
			C: MAIL FROM:<s@x.example>
			S: 250 ok
			C: RCPT TO:<a@x>
			S: 250 ok
			C: DATA
			S: 354
			C: Subject: from a file
			C:
			C: .
			S: 250 2.0.0 first
			C: RSET
			S: 250 ok
			C: MAIL FROM:<s@x.example>
			S: 250 ok
			C: RCPT TO:<a@x>
			S: 250 ok
			C: DATA
			S: 354
			C: Subject: from a file
			C:
			C: .
			S: 250 2.0.0 second
			C: QUIT
			HANGUP`,
		want: `
			a@x  250 2.0.0 first
			a@x  250 2.0.0 second`,
	},
}

func TestSend(t *testing.T) {
	for _, test := range sendTests {
		t.Run(test.name, func(t *testing.T) {
			server := serveScript(t, test.network, test.script)
			args := append([]string{"send", "--helo", "me", "--timeout", "10s", "--file", "-", "--from", "s@x.example"}, strings.Fields(test.args)...)
			stdout, stderr, code := command(t, message, append(args, server)...)
			want := strings.TrimLeft(strings.ReplaceAll(test.want, "\t", ""), "\n") + "\n"
			if stdout != want || stderr != "" || code != test.code {
				t.Errorf("got exit code %d, printed\n%s%s\nwant %d\n%s", code, stdout, stderr, test.code, want)
			}
		})
	}
}

// More recipients than go into one group.
func TestSendPipelinesInGroups(t *testing.T) {
	const n = 3*pipelined + 7
	var script, want strings.Builder
	script.WriteString("S: 220 mx\nC: LHLO me\nS: 250-mx\nS: 250 PIPELINING\nC: MAIL FROM:<>\n")
	args := []string{"send", "--helo", "me", "--file", "-", "--from", "", "--timeout", "10s"}
	sent := 1 // commands of the group so far
	for i := range n {
		if sent == pipelined {
			script.WriteString(strings.Repeat("S: 250 ok\n", sent))
			sent = 0
		}
		sent++
		fmt.Fprintf(&script, "C: RCPT TO:<%d@x>\n", i)
		args = append(args, "--to", fmt.Sprintf("%d@x", i))
		fmt.Fprintf(&want, "%-5s  250 2.0.0 %d\n", fmt.Sprintf("%d@x", i), i)
	}
	script.WriteString(strings.Repeat("S: 250 ok\n", sent) + "C: DATA\nS: 354\nC: x\nC: .\n")
	for i := range n {
		fmt.Fprintf(&script, "S: 250 2.0.0 %d\n", i)
	}
	script.WriteString("C: QUIT\nHANGUP\n")

	server := serveScript(t, "unix", script.String())
	stdout, stderr, code := command(t, "x", append(args, server)...)
	if stdout != want.String() || stderr != "" || code != 0 {
		t.Errorf("got exit code %d, printed\n%s%s\nwant\n%s", code, stdout, stderr, want.String())
	}
}

// The server has enough in the middle of the message. What it says before it
// hangs up counts, but not if it is a yes.
func TestSendToServerThatHangsUpInMidMessage(t *testing.T) {
	for lastWords, want := range map[string]string{
		"S: 452 4.3.1 disk full\n": "a@x  452 4.3.1 disk full\n",
		"S: 250 2.0.0 delivered\n": "a@x  no answer: connection lost: ",
		"":                         "a@x  no answer: connection lost: ",
	} {
		server := serveScript(t, "unix", "S: 220 mx\nC: LHLO me\nS: 250 mx\nC: MAIL FROM:<>\nS: 250 ok\n"+
			"C: RCPT TO:<a@x>\nS: 250 ok\nC: DATA\nS: 354\nC: x\n"+lastWords+"HANGUP")
		stdout, stderr, code := command(t, strings.Repeat("x\n", 10<<20), "send", "--helo", "me", "--from", "", "--to", "a@x", "--file", "-", server)
		if !strings.HasPrefix(stdout, want) || stderr != "" || code != exitTemporary {
			t.Errorf("%sgot exit code %d, printed\n%s%s\nwant\n%s", lastWords, code, stdout, stderr, want)
		}
	}
}

func TestSendGivesUpAfterTimeout(t *testing.T) {
	server := serveScript(t, "tcp", "S: 220 mx\nC: EHLO me\n")
	stdout, _, code := command(t, "", "send", "--helo", "me", "--to", "a@x", "--to", "b@x", "--timeout", "50ms", server)
	if want := "a@x  no answer: timed out\nb@x  no answer: timed out\n"; stdout != want || code != exitTemporary {
		t.Errorf("got exit code %d, printed\n%s\nwant\n%s", code, stdout, want)
	}
}

func TestSendStopsWhenConnectionIsLost(t *testing.T) {
	server := serveScript(t, "tcp", "S: 220 mx\nC: EHLO me\nS: 250 mx\nC: MAIL FROM:<s@x>\nS: 550 no\nHANGUP")
	stdout, stderr, code := command(t, "", "send", "--helo", "me", "--to", "a@x", "--from", "s@x", "--count", "5", server)
	if stdout != "a@x  550 no\n" || !strings.HasPrefix(stderr, "mailgw send: 4 of 5 messages not sent: connection lost") || code != exitTemporary {
		t.Errorf("got exit code %d, printed\n%s%s", code, stdout, stderr)
	}
}

func TestSendWithoutServer(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	stdout, stderr, code := command(t, "", "send", "--to", "a@x", "unix:"+missing)
	if stdout != "" || !strings.Contains(stderr, missing) || code != exitTemporary {
		t.Errorf("got exit code %d, printed\n%s%s", code, stdout, stderr)
	}
}

// A message that cannot be sent as it is never looks complete to the server.
func TestSendRefusesBareCR(t *testing.T) {
	server := serveScript(t, "tcp", "S: 220 mx\nC: EHLO me\nS: 250 mx\nC: MAIL FROM:<>\nS: 250 ok\n"+
		"C: RCPT TO:<a@x>\nS: 250 ok\nC: DATA\nS: 354\n")
	stdout, _, code := command(t, "one\r\ntwo\nth\rree\n.\n", "send", "--helo", "me", "--from", "", "--to", "a@x", "--file", "-", server)
	if want := "a@x  no answer: message, line 3: CR without LF\n"; stdout != want || code != exitMessage {
		t.Errorf("got exit code %d, printed %q, want %q", code, stdout, want)
	}
}

func TestSendVerbose(t *testing.T) {
	server := serveScript(t, "unix", "S: 220 mx\nC: LHLO me\nS: 250 mx\nC: MAIL FROM:<>\nS: 250 ok\nC: RCPT TO:<a@x>\nS: 250 ok\n"+
		"C: DATA\nS: 354 go on\nC: x\nC: .\nS: 250 ok\nC: QUIT\nS: 221 bye\n")
	_, stderr, _ := command(t, "x\n", "send", "--helo", "me", "--from", "", "--to", "a@x", "--file", "-", "--verbose", server)
	want := "S: 220 mx\nC: LHLO me\nS: 250 mx\nC: MAIL FROM:<>\nS: 250 ok\nC: RCPT TO:<a@x>\nS: 250 ok\n" +
		"C: DATA\nS: 354 go on\nC: (3 octets of message)\nS: 250 ok\nC: QUIT\nS: 221 bye\n"
	if stderr != want {
		t.Errorf("got\n%s\nwant\n%s", stderr, want)
	}
}

func TestSendUsage(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"tcp:127.0.0.1:1"}, `required flag(s) "to" not set`, exitUsage},
		{[]string{"--to", "a@x"}, "accepts 1 arg(s), received 0", exitUsage},
		{[]string{"--to", "a@x", "127.0.0.1:25"}, `server "127.0.0.1:25": neither tcp:HOST:PORT, unix:PATH nor unix:@NAME`, exitUsage},
		{[]string{"--to", "a@x", "tcp:127.0.0.1"}, "missing port", exitUsage},
		{[]string{"--to", "a@x", "unix:"}, "no path", exitUsage},
		{[]string{"--to", "a@x>\r\nRSET", "unix:@x"}, "control character", exitUsage},
		{[]string{"--to", "a@x", "--lmtp", "--smtp", "unix:@x"}, "none of the others can be", exitUsage},
		{[]string{"--to", "a@x", "--xforward", "COLOUR=red", "unix:@x"}, "bad XFORWARD attribute name", exitUsage},
		{[]string{"--to", "a@x", "--count", "0", "unix:@x"}, "--count is less than 1", exitUsage},
		{[]string{"--to", "a@x", "--colour", "unix:@x"}, "unknown flag: --colour", exitUsage},
		{[]string{"--to", "a@x", "--file", "testdata/missing", "unix:@x"}, "testdata/missing", exitMessage},
	} {
		stdout, stderr, code := command(t, "", append([]string{"send"}, test.args...)...)
		if stdout != "" || !strings.Contains(stderr, test.want) || code != test.code {
			t.Errorf("send %q: got exit code %d, printed %q and %q, want %d, %q", test.args, code, stdout, stderr, test.code, test.want)
		}
	}
}

func TestCopyMessage(t *testing.T) {
	long := strings.Repeat("x", 64<<10-1) // with one octet more it fills the buffer
	for _, test := range []struct{ in, want, err string }{
		{"", "", ""},
		{"a", "a", ""},
		{"a\n", "a\r\n", ""},
		{"a\r\nb\nc\r\n\n", "a\r\nb\r\nc\r\n\r\n", ""},

		// The CR is the last octet of the buffer, or the one before.
		{long + "\r\nb", long + "\r\nb", ""},
		{long + long + "x\r\nb\n", long + long + "x\r\nb\r\n", ""},
		{long + "\rb", "", "message, line 1: CR without LF"},

		{"a\rb\n", "", "message, line 1: CR without LF"},
		{"a\nb\r", "", "message, line 2: CR without LF"},
		{"a\r\r\n", "", "message, line 1: CR without LF"},
	} {
		var out bytes.Buffer
		n, err := copyMessage(&out, strings.NewReader(test.in))
		if err != nil {
			if err.Error() != test.err {
				t.Errorf("copyMessage(%.20q): error %v, want %q", test.in, err, test.err)
			}
			continue
		}
		if out.String() != test.want || n != int64(len(test.want)) || test.err != "" {
			t.Errorf("copyMessage(%.20q) = %d octets %.20q, want %.20q, error %q", test.in, n, out.String(), test.want, test.err)
		}
	}
}

func TestSendsGeneratedMessage(t *testing.T) {
	source := testMessage("", "me", []string{"a@x", "b@x"})
	first, _ := source(0)
	second, _ := source(1)
	a, _ := io.ReadAll(first)
	b, _ := io.ReadAll(second)
	for _, want := range []string{"From: <MAILER-DAEMON@me>\n", "To: <a@x>,\n <b@x>\n", "Subject: test message 1\n", "\n\nThis is"} {
		if !strings.Contains(string(a), want) {
			t.Errorf("%q is not in\n%s", want, a)
		}
	}
	if id := headerLine(string(a), "Message-ID"); id == "" || id == headerLine(string(b), "Message-ID") {
		t.Errorf("messages with one %s", id)
	}
}

func headerLine(message, name string) string {
	for line := range strings.Lines(message) {
		if strings.HasPrefix(line, name+": ") {
			return line
		}
	}
	return ""
}
