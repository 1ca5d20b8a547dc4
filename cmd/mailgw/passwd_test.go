package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/smtp"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPasswd(t *testing.T) {
	const faulty = "ann\nbob x\n"
	long := strings.Repeat("x", 73)
	for _, test := range []struct {
		before, stdin, args string
		code                int
		want                string // of stderr if there is an error, else of the file
	}{
		{"", "pencil\n", "ann@example.org", 0, "ann@example.org bcrypt=$2a$10$"},
		{"", "pencil\r\nnot this\n", "--send-as <> --send-as @example.org ann", 0, " send-as=<> send-as=@example.org\n"},
		{"# comment\nann send-as=<>\n", "x", "ANN", 0, "# comment\nann bcrypt="},
		{"ann\nbob\n", "", "--delete ann", 0, "bob\n"},

		{"", "", "", exitUsage, "mailgw passwd: want one USER; found 0\nSee 'mailgw passwd --help'.\n"},
		{"", "", "ann bob", exitUsage, "want one USER; found 2"},
		{"", "", "@example.org", exitUsage, `mailgw passwd: "@example.org": the name of a user may not begin with`},
		{"", "", "ann:x", exitUsage, "may not have =, $ or : in it"},
		{"", "", "--send-as example.org ann", exitUsage, `send-as: "example.org": no domain`},
		{"ann\n", "", "--delete --send-as <> ann", exitUsage, "want --delete or --send-as, not both"},
		{"ann\n", "", "bob", exitData, "mailgw passwd: the password is empty\n"},
		{"ann\n", "\n", "bob", exitData, "the password is empty"},
		{"ann\n", long, "bob", exitData, "the password has 73 octets; bcrypt takes 72 at most"},
		{"ann\n", "a\tb\n", "bob", exitData, "the password has a character that SASLprep"},
		{"ann\n", "", "--delete bob", exitData, "no such user: bob\n"},
		{faulty, "x\n", "ann", exitConfig, "users:2: a word without ="},
		{faulty, "", "--delete bob", exitConfig, "users:2: a word without ="},
	} {
		file := filepath.Join(t.TempDir(), "users")
		if test.before != "" {
			if err := os.WriteFile(file, []byte(test.before), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		stdout, stderr, code := command(t, test.stdin, append([]string{"passwd", "--file", file}, strings.Fields(test.args)...)...)
		after, _ := os.ReadFile(file)
		got := string(after)
		if test.code != 0 {
			got = stderr
			if string(after) != test.before {
				t.Errorf("passwd %s: the file is now\n%s", test.args, after)
			}
		} else if stderr != "" {
			t.Errorf("passwd %s: printed %q", test.args, stderr)
		}
		if stdout != "" || code != test.code || !strings.Contains(got, test.want) {
			t.Errorf("passwd %s: exit code %d, printed %q, got\n%s\nwant exit code %d and %q", test.args, code, stdout, got, test.code, test.want)
		}
	}

	_, stderr, code := command(t, "x", "passwd", "--file", filepath.Join(t.TempDir(), "no", "users"), "ann")
	if code != exitSystem || !strings.HasSuffix(stderr, "no such file or directory\n") {
		t.Errorf("without a directory: exit code %d, printed %q", code, stderr)
	}
}

// Processes that change the file at the same time wait for each other.
func TestPasswdAtTheSameTime(t *testing.T) {
	t.Parallel() // it waits for processes
	file := filepath.Join(t.TempDir(), "users")
	const n = 6
	var running []*exec.Cmd
	for i := range n {
		cmd := program(t, "passwd", "--file", file, fmt.Sprintf("user%d", i))
		cmd.Stdin = strings.NewReader("pencil\n")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		running = append(running, cmd)
	}
	for _, cmd := range running {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%q: %v", cmd.Args, err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if want := fmt.Sprintf("\nuser%d bcrypt=", i); strings.Count(string(text), want) != 1 {
			t.Errorf("not once %q in\n%s", want, text)
		}
	}
	if got := strings.Count(string(text), "!secret "); got != 1 {
		t.Errorf("%d secrets", got)
	}
}

// Who waits for another process hears of it.
func TestPasswdTellsThatItWaits(t *testing.T) {
	t.Parallel() // it waits for a process
	dir := t.TempDir()
	lock, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	cmd := program(t, "passwd", "--file", filepath.Join(dir, "users"), "ann")
	cmd.Stdin = strings.NewReader("pencil\n")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	want := "mailgw passwd: waiting for another process that has a lock on " + dir + "\n"
	said := bufio.NewReader(stderr)
	if got, err := said.ReadString('\n'); got != want {
		t.Errorf("got %q, error %v, want %q", got, err, want)
	}
	lock.Close()
	if rest, err := io.ReadAll(said); len(rest) > 0 || err != nil {
		t.Errorf("then got %q, error %v", rest, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// A terminal is a pseudo-terminal, with passwd on it.
type terminal struct {
	*os.File // the end of the one who types
	tty      *os.File
	cmd      *exec.Cmd
	prompts  io.Reader // stderr of passwd
}

// startOnTerminal starts passwd for ann on a terminal.
func startOnTerminal(t *testing.T, file string) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo-terminals: ", err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	cmd := program(t, "passwd", "--file", file, "ann")
	cmd.Stdin = tty
	// It is the terminal of a session of its own, so that Ctrl-C there is for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	prompts, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &terminal{master, tty, cmd, prompts}
}

// typeAt waits for a prompt and for the echo to be off, and types text.
func (c *terminal) typeAt(t *testing.T, prompt, text string) {
	t.Helper()
	got := make([]byte, len(prompt))
	if _, err := io.ReadFull(c.prompts, got); string(got) != prompt {
		t.Fatalf("got %q, error %v, want %q", got, err, prompt)
	}
	for end := time.Now().Add(20 * time.Second); c.echo(t); {
		if time.Now().After(end) {
			t.Fatal("the terminal echoes the password")
		}
		<-time.After(time.Millisecond) // no terminal tells of such a change
	}
	if _, err := c.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func (c *terminal) echo(t *testing.T) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(c.tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

func TestPasswdOnATerminal(t *testing.T) {
	t.Parallel() // it waits for processes
	const first, second = "New password for ann: ", "\nThe same again: "
	for _, test := range []struct {
		typed  [2]string
		code   int
		stderr string // the rest of it
	}{
		{[2]string{"pencil\n", "pencil\n"}, 0, "\n"},
		{[2]string{"pencil\n", "pencils\n"}, exitData, "\nmailgw passwd: these are two different passwords\n"},
		{[2]string{"pencil\n", "\x03"}, 128 + int(syscall.SIGINT), "\n"}, // Ctrl-C
	} {
		file := filepath.Join(t.TempDir(), "users")
		c := startOnTerminal(t, file)
		c.typeAt(t, first, test.typed[0])
		c.typeAt(t, second, test.typed[1])
		rest, _ := io.ReadAll(c.prompts)
		c.cmd.Wait()
		if code := c.cmd.ProcessState.ExitCode(); code != test.code || string(rest) != test.stderr {
			t.Errorf("%q: exit code %d, printed %q, want %d and %q", test.typed, code, rest, test.code, test.stderr)
		}
		if _, err := os.Stat(file); (err == nil) != (test.code == 0) {
			t.Errorf("%q: the file: error %v", test.typed, err)
		}
		if !c.echo(t) {
			t.Errorf("%q: the terminal is left without its echo", test.typed)
		}
	}
}

const usersTOML = `
hostname = "mx.example.org"
[spool]
directory = "spool"
[[listener]]
name = "submission"
address = "tcp:127.0.0.1:0"
protocol = "smtp"
ask = ["users"]
auth.in_clear = true
auth.required = true
[listener.routes]
"*" = ["drop"]
[backend.drop]
plugin = "discard"
[backend.users]
plugin = "users"
[backend.users.settings]
file = %q
`

// A password that passwd sets lets in at once, and holds for the user's own
// address.
func TestPasswdForTheGateway(t *testing.T) {
	t.Parallel() // it waits for processes
	file := filepath.Join(t.TempDir(), "users")
	set := func(password string) {
		t.Helper()
		if _, stderr, code := command(t, password, "passwd", "--file", file, "ann@example.org"); code != 0 {
			t.Fatalf("exit code %d, printed %q", code, stderr)
		}
	}
	set("pencil")
	g := startGateway(t, fmt.Sprintf(usersTOML, file))
	commands := g.sendLines(t)
	server := strings.TrimPrefix(commands[0][len(commands[0])-1], "tcp:")
	login := func(password string) *smtp.Client {
		t.Helper()
		c, err := smtp.Dial(server)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		err = c.Auth(smtp.PlainAuth("", "Ann@Example.org", password, "127.0.0.1"))
		if err == nil {
			return c
		}
		expect(t, err, 535)
		return nil
	}
	c := login("pencil")
	if c == nil {
		t.Fatal("refused")
	}
	if _, mechanisms := c.Extension("AUTH"); mechanisms != "SCRAM-SHA-256 PLAIN LOGIN" {
		t.Errorf("AUTH %s", mechanisms)
	}
	expect(t, c.Mail("bob@example.org"), 553)
	expect(t, c.Mail(""), 553)
	if err := c.Mail("ann@example.org"); err != nil {
		t.Error(err)
	}
	c.Quit()
	set("chalk")
	if login("pencil") != nil {
		t.Error("the old password lets in")
	}
	if c := login("chalk"); c == nil {
		t.Error("the new password does not let in")
	} else {
		c.Quit()
	}
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	g.wait(t)
}

// expect wants an error to be a reply with that code.
func expect(t *testing.T, err error, code int) {
	t.Helper()
	if reply, ok := errors.AsType[*textproto.Error](err); !ok || reply.Code != code {
		t.Errorf("got %v, want %d", err, code)
	}
}
