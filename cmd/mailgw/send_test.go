package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
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

// play writes replies together where the client has nothing to say between
// them, since it may hang up after the first.
func play(conn net.Conn, script string) error {
	r, w := bufio.NewReader(conn), bufio.NewWriter(conn)
	for line := range strings.Lines(strings.TrimSpace(script)) {
		line = strings.TrimSpace(line)
		if line == "HANGUP" {
			return w.Flush()
		}
		side, text, _ := strings.Cut(line, ":")
		text = strings.TrimPrefix(text, " ")
		if side == "S" {
			fmt.Fprintf(w, "%s\r\n", strings.ReplaceAll(text, `\e`, "\x1b"))
			continue
		}
		if err := w.Flush(); err != nil {
			return fmt.Errorf("before %s: %w", line, err)
		}
		if got, err := r.ReadString('\n'); got != text+"\r\n" {
			return fmt.Errorf("client said %q, %v; want %q", got, err, text)
		}
	}
	if err := w.Flush(); err != nil {
		return err
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

// TestSend runs the conversations in testdata/send. Each begins with a command
// line, to which the flags below are added. C: and S: lines are what client
// and server say, lines with > are what the command prints, and the last one
// is its exit code.
func TestSend(t *testing.T) {
	const message = "Subject: hi\n\n.dot\nend\n"
	files, _ := filepath.Glob("testdata/send/*.txt")
	if len(files) == 0 {
		t.Fatal("no conversations")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			args, script, want, code := readConversation(t, file)
			last := len(args) - 1
			network, _, _ := strings.Cut(args[last], ":")
			args[last] = serveScript(t, network, script)
			args = append([]string{"send", "--helo", "me", "--from", "s@x.example", "--file", "-", "--timeout", "10s"}, args...)
			stdout, stderr, got := command(t, message, args...)
			if stdout != want || stderr != "" || got != code {
				t.Errorf("got exit code %d, printed\n%s%s\nwant %d\n%s", got, stdout, stderr, code, want)
			}
		})
	}
}

func readConversation(t *testing.T, file string) (args []string, script, printed string, code int) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		kind, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch kind {
		case "#":
		case "$":
			args = strings.Fields(strings.TrimPrefix(rest, "mailgw send "))
		case ">":
			printed += rest + "\n"
		case "exit":
			code, err = strconv.Atoi(rest)
		default:
			script += line
		}
	}
	if err != nil || args == nil {
		t.Fatalf("%s has no command line or a bad exit code", file)
	}
	return args, script, printed, code
}

// More recipients than go into one group.
func TestSendPipelinesInGroups(t *testing.T) {
	const pipelined = 50
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
		"S: 250 2.0.0 delivered\n": "a@x  no answer: reply before the end of the message\n",
		"":                         "a@x  no answer: connection lost",
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
	if stdout != "a@x  550 no\n" || !strings.HasPrefix(stderr, "mailgw send: 4 of 5 messages not sent: RSET: connection lost") || code != exitTemporary {
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
	if want := "a@x  no answer: message, line 3: CR without LF\n"; stdout != want || code != exitData {
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
		{[]string{"tcp:127.0.0.1:1"}, "want a recipient, --to ADDRESS", exitUsage},
		{[]string{"--to", "a@x"}, "want one SERVER, tcp:HOST:PORT, unix:PATH or unix:@NAME; found 0", exitUsage},
		{[]string{"--to", "a@x", "127.0.0.1:25"}, `server "127.0.0.1:25": want tcp:HOST:PORT, unix:PATH or unix:@NAME; did you mean tcp:127.0.0.1:25?`, exitUsage},
		{[]string{"--to", "a@x", "var/lmtp.sock"}, "did you mean unix:var/lmtp.sock?", exitUsage},
		{[]string{"--to", "a@x", "tcp:127.0.0.1"}, "missing port", exitUsage},
		{[]string{"--to", "a@x", "unix:"}, "no path", exitUsage},
		{[]string{"--to", "a@x>\r\nRSET", "unix:@x"}, "control character", exitUsage},
		{[]string{"--to", "a@x", "--lmtp", "--smtp", "unix:@x"}, "want --lmtp or --smtp, not both", exitUsage},
		{[]string{"--to", "a@x", "--xforward", "COLOUR=red", "unix:@x"}, "bad XFORWARD attribute name", exitUsage},
		{[]string{"--to", "a@x", "--count", "0", "unix:@x"}, "--count is less than 1", exitUsage},
		{[]string{"--to", "a@x", "--count", "2", "--file", "-", "unix:@x"}, "standard input can be read once only", exitUsage},
		{[]string{"--to", "a@x", "--timeout", "0s", "unix:@x"}, "--timeout 0s is not above zero", exitUsage},
		{[]string{"--to", "a@x,b@x", "unix:@x"}, `--to "a@x,b@x" has several addresses`, exitUsage},
		{[]string{"--to", "a@x", "--colour", "unix:@x"}, "unknown flag: --colour", exitUsage},
		{[]string{"--to", "a@x", "--file", "testdata/missing", "unix:@x"}, "testdata/missing", exitData},
	} {
		stdout, stderr, code := command(t, "", append([]string{"send"}, test.args...)...)
		if stdout != "" || !strings.Contains(stderr, test.want) || code != test.code {
			t.Errorf("send %q: got exit code %d, printed %q and %q, want %d, %q", test.args, code, stdout, stderr, test.code, test.want)
		}
	}
}

func TestCRLFReader(t *testing.T) {
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
		got, err := io.ReadAll(newCRLFReader(strings.NewReader(test.in)))
		switch {
		case test.err != "" && (err == nil || err.Error() != test.err):
			t.Errorf("%.20q: error %v, want %q", test.in, err, test.err)
		case test.err == "" && (err != nil || string(got) != test.want):
			t.Errorf("%.20q is read as %.20q, %v, want %.20q", test.in, got, err, test.want)
		}
	}
}

func TestSendsGeneratedMessage(t *testing.T) {
	source := testMessage("", "me", []string{"a@x", "b@x"})
	first, _ := source(0)
	second, _ := source(1)
	a, _ := io.ReadAll(first)
	b, _ := io.ReadAll(second)
	for _, want := range []string{"From: <MAILER-DAEMON@me>\r\n", "To: <a@x>,\r\n <b@x>\r\n", "Subject: test message 1\r\n", "\r\n\r\nThis is"} {
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
