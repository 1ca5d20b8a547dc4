package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// recording is mailgw record beside a gateway.
type recording struct {
	t              *testing.T
	stdout, stderr bytes.Buffer
	ended          chan int // its exit code
	kill           func()
}

// startRecording starts mailgw record and waits until the gateway records.
func (g *gatewayProcess) startRecording(t *testing.T, args ...string) *recording {
	t.Helper()
	r := &recording{t: t, ended: make(chan int, 1)}
	cmd := program(t, append([]string{"record", "--config", filepath.Join(g.dir, "gateway.toml")}, args...)...)
	cmd.Stdout, cmd.Stderr = &r.stdout, &r.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.kill = func() { cmd.Process.Kill() }
	t.Cleanup(r.kill)
	go func() {
		cmd.Wait()
		r.ended <- cmd.ProcessState.ExitCode()
	}()
	g.waitForLog(t, "recording", "backend") // in either format
	return r
}

// wait returns the files that were written.
func (r *recording) wait(wantCode int) []string {
	r.t.Helper()
	select {
	case code := <-r.ended:
		if code != wantCode {
			r.t.Errorf("mailgw record: exit code %d, want %d\n%s%s", code, wantCode, r.stdout.String(), r.stderr.String())
		}
	case <-time.After(20 * time.Second):
		r.t.Fatal("mailgw record does not end")
	}
	return strings.Fields(r.stdout.String())
}

const recordedMail = "From: Ann <ann@acme.example>\r\nSubject: the deal\r\n\r\nDear Bob\xff, \r\n.\r\nbye\r\n"

// What a running gateway records is what a plugin says again, another plugin or
// one with other settings says otherwise, and --update makes that the record.
func TestRecordAndReplay(t *testing.T) {
	t.Parallel() // it waits for processes
	g := startGateway(t, mainTOML)
	file := filepath.Join(g.dir, "gateway.toml")
	into := filepath.Join(g.dir, "records")
	plain := g.startRecording(t, "--backend", "demo", "--to", into, "--count", "2")
	redacted := g.startRecording(t, "--backend", "demo", "--to", filepath.Join(into, "redacted"), "--redact")
	for range 2 {
		command(t, recordedMail, "send", "--file", "-", "--from", "ann@acme.example", "--to", "busy@example.org", "--to", "bob@acme.example",
			"unix:"+filepath.Join(g.dir, "lmtp.sock"))
	}
	files := plain.wait(0)
	if len(files) != 2 {
		t.Fatalf("recorded %q, want 2 files", files)
	}
	text, err := os.ReadFile(files[0])
	if info, statErr := os.Stat(files[0]); err != nil || statErr != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v, mode %v", err, statErr, info.Mode())
	}
	for _, want := range []string{
		"\nBACKEND demo\n", "\nMAIL FROM:<ann@acme.example>\nRCPT TO:<busy@example.org>\nRCPT TO:<bob@acme.example>\n",
		"\nANSWER 0 450 4.2.1 mailbox busy\nANSWER 1 next\n", "\n|Subject: the deal\n|\n\"Dear Bob\\xff, \\r\\n\"\n|.\n|bye\nEND\n",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	secret := redacted.wait(0)[0]
	if text, err := os.ReadFile(secret); err != nil || bytes.Contains(text, []byte("acme")) || bytes.Contains(text, []byte("deal")) {
		t.Errorf("%v: not all is redacted in\n%s", err, text)
	}
	g.waitForLog(t, "msg=recorded", "count=2", "dropped=0")

	// The same plugin, of the configuration that was in force.
	stdout, stderr, code := runToEnd(t, append([]string{"replay", "--config", file, "--backend", "demo"}, files...)...)
	want := ""
	for _, file := range files {
		want += file + ": busy@example.org  same: 450 4.2.1 mailbox busy\n" + file + ": bob@acme.example  same: next backend\n"
	}
	if stdout != want || code != 0 {
		t.Errorf("exit code %d\n%s%s\nwant\n%s", code, stdout, stderr, want)
	}

	// Another one.
	stdout, stderr, code = runToEnd(t, "replay", files[0], "--plugin", "discard")
	want = files[0] + ": busy@example.org  differs: was 450 4.2.1 mailbox busy, is 250 2.0.0 discarded\n" +
		files[0] + ": bob@acme.example  differs: was next backend, is 250 2.0.0 discarded\n"
	if stdout != want || code != exitDiffers {
		t.Errorf("exit code %d\n%s%s\nwant\n%s", code, stdout, stderr, want)
	}

	// The addresses of the redacted one are others, to which the rules say nothing.
	stdout, _, code = runToEnd(t, "replay", secret, "--config", file, "--backend", "demo")
	want = secret + ": user2@domain2.example  differs: was 450 4.2.1 redacted, is next backend\n" + secret + ": user3@domain1.example  same: next backend\n"
	if stdout != want || code != exitDiffers {
		t.Errorf("exit code %d\n%s\nwant\n%s", code, stdout, want)
	}
	settings := filepath.Join(g.dir, "settings.toml")
	os.WriteFile(settings, []byte(`rule = [{to = "*", status = "550 5.7.1 no mail for you"}]`), 0o600)
	stdout, _, code = runToEnd(t, "replay", "--update", secret, "--plugin", "static", "--settings", settings)
	if !strings.HasSuffix(stdout, secret+": updated\n") || code != 0 {
		t.Errorf("exit code %d\n%s", code, stdout)
	}
	os.WriteFile(settings, []byte(`rule = [{to = "*", status = "550 5.7.1 no mail for you, sorry"}]`), 0o600)
	stdout, _, code = runToEnd(t, "replay", secret, "--plugin", "static", "--settings", settings)
	if strings.Count(stdout, "same but for the text: was 550 5.7.1 no mail for you, is 550 5.7.1 no mail for you, sorry\n") != 2 || code != 0 {
		t.Errorf("exit code %d\n%s", code, stdout)
	}
	stdout, _, code = runToEnd(t, "replay", "--exact", secret, "--plugin", "static", "--settings", settings)
	if strings.Count(stdout, "differs: was 550 5.7.1 no mail for you, is 550 5.7.1 no mail for you, sorry\n") != 2 || code != exitDiffers {
		t.Errorf("exit code %d\n%s", code, stdout)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(secret), ".*")); left != nil {
		t.Errorf("left behind: %q", left)
	}
	g.cmd.Process.Signal(syscall.SIGTERM)
	if state := g.wait(t); state.ExitCode() != 0 {
		t.Errorf("after SIGTERM: %v", state)
	}
}

// A recording ends with the command, and with the gateway. It delays neither's
// end, nor mail.
func TestRecordingEnds(t *testing.T) {
	t.Parallel() // it waits for processes
	g := startGateway(t, mainTOML)
	killed := g.startRecording(t, "--backend", "demo", "--to", g.dir)
	killed.kill()
	killed.wait(-1)
	g.waitForLog(t, "msg=recorded", "count=0")

	r := g.startRecording(t, "--backend", "inbox", "--to", g.dir)
	if got := <-g.sendTo(t, "slow@example.org"); !strings.HasPrefix(got, "slow@example.org  250 ") {
		t.Errorf("got %q", got)
	}
	// Who is decided by another backend does not come to the inbox.
	g.cmd.Process.Signal(syscall.SIGTERM)
	if files := r.wait(exitTemporary); len(files) > 0 || !strings.Contains(r.stderr.String(), "the gateway has ended; 0 of 1 recorded") {
		t.Errorf("recorded %q\n%s", files, r.stderr.String())
	}
	if state := g.wait(t); state.ExitCode() != 0 {
		t.Errorf("after SIGTERM: %v", state)
	}
}

// It logs as the configuration in force says.
func TestRecordingAfterReload(t *testing.T) {
	t.Parallel() // it waits for processes
	g := startGateway(t, mainTOML)
	g.rewrite(t, "[spool]", "[log]\nformat = \"json\"\n[spool]")
	if _, stderr, code := command(t, "", "reload", "--config", filepath.Join(g.dir, "gateway.toml")); code != 0 {
		t.Fatal(stderr)
	}
	killed := g.startRecording(t, "--backend", "demo", "--to", g.dir)
	killed.kill()
	killed.wait(-1)
	g.waitForLog(t, `"msg":"recorded"`, `"count":0`)
}

func TestRecordRefused(t *testing.T) {
	t.Parallel() // it waits for processes
	g := startGateway(t, mainTOML)
	file := filepath.Join(g.dir, "gateway.toml")
	_, nobody := configure(t, mainTOML)
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{}, exitUsage, `required flag(s) "backend" not set`},
		{[]string{"--backend", "demo", "--count", "0", "--config", file}, exitUsage, "--count: want 1 or more"},
		{[]string{"--backend", "demos", "--config", file}, exitConfig, `no backend "demos" stands in a route; want demo, drop, inbox`},
		{[]string{"--backend", "demo", "--config", nobody}, exitSystem, "no gateway runs that was started with --config " + nobody},
		{[]string{"--backend", "demo", "--config", file, "--to", file}, exitSystem, "not a directory"},
	} {
		stdout, stderr, code := runToEnd(t, append([]string{"record"}, test.args...)...)
		if stdout != "" || code != test.code || !strings.Contains(stderr, test.want) {
			t.Errorf("record %q: exit code %d, printed\n%s%s, want %q", test.args, code, stdout, stderr, test.want)
		}
	}
	c, err := ask(file, "frobnicate", "x")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answer := make([]byte, 100)
	if n, _ := c.Read(answer); string(answer[:n]) != "this gateway cannot \"frobnicate\"\n" {
		t.Errorf("got %q", answer[:n])
	}
	g.cmd.Process.Signal(syscall.SIGTERM)
	if state := g.wait(t); state.ExitCode() != 0 {
		t.Errorf("after SIGTERM: %v", state)
	}
}

// handWritten is a record that somebody has made up.
const handWritten = "MAILGW RECORD 1\nMAIL FROM:<>\nRCPT TO:<%s@example.org>\nMESSAGE\n|Subject: hi\n|\nEND\n"

func TestReplayRefused(t *testing.T) {
	t.Parallel() // it waits for processes
	dir, file := configure(t, mainTOML)
	good, bad := filepath.Join(dir, "good"), filepath.Join(dir, "bad")
	os.WriteFile(good, fmt.Appendf(nil, handWritten, "a"), 0o600)
	settings := filepath.Join(dir, "settings.toml")
	os.WriteFile(settings, []byte("# none\ncolour = 'red'\n"), 0o600)
	os.WriteFile(bad, []byte("MAILGW RECORD 1\nMAIL FROM:<>\n"), 0o600)
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{good}, exitUsage, "at least one of the flags in the group [plugin backend] is required"},
		{[]string{good, "--plugin", "discard", "--backend", "drop"}, exitUsage, "none of the others can be"},
		{[]string{good, "--backend", "drop", "--settings", file}, exitUsage, "none of the others can be"},
		{[]string{"--plugin", "discard"}, exitUsage, "requires at least 1 arg(s)"},
		{[]string{good, bad, "--plugin", "discard"}, exitData, bad + ":3: the record ends without END"},
		{[]string{dir + "/none", "--plugin", "discard"}, exitSystem, "no such file"},
		{[]string{good, "--plugin", "./none"}, exitConfig, "/none: no such file"},
		{[]string{good, "--plugin", "discard", "--settings", settings}, exitConfig, settings + ":2: colour: unknown key"},
		{[]string{good, "--plugin", "discard", "--settings", good}, exitConfig, good + ": toml: "},
		{[]string{good, "--plugin", "discord"}, exitConfig, `no plugin "discord" ships`},
		{[]string{good, "--config", file, "--backend", "dorp"}, exitConfig, "has no [backend.dorp]"},
	} {
		stdout, stderr, code := runToEnd(t, append([]string{"replay"}, test.args...)...)
		if stdout != "" || code != test.code || !strings.Contains(stderr, test.want) {
			t.Errorf("replay %q: exit code %d, printed\n%s%s, want %q", test.args, code, stdout, stderr, test.want)
		}
	}
}

// A plugin under a debugger can be given real mail.
func TestReplayToAPluginStartedByHand(t *testing.T) {
	t.Parallel() // it waits for processes
	dir := t.TempDir()
	socket, file := filepath.Join(dir, "s"), filepath.Join(dir, "gateway.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, attachedTOML, socket), 0o600); err != nil {
		t.Fatal(err)
	}
	mail := filepath.Join(dir, "mail")
	if err := os.WriteFile(mail, fmt.Appendf(nil, handWritten, "a"), 0o600); err != nil {
		t.Fatal(err)
	}
	byHand := program(t, "plugin", "discard")
	byHand.Env = append(byHand.Environ(), "MAILGW_ATTACH="+socket)
	stderr, err := byHand.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := byHand.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { byHand.Process.Kill(); byHand.Wait() })
	if line, err := bufio.NewReader(stderr).ReadString('\n'); err != nil {
		t.Fatalf("it says %q, %v", line, err)
	}
	for range 2 { // it is there for more than one
		stdout, stderr, code := runToEnd(t, "replay", mail, "--config", file, "--backend", "debugged")
		if want := mail + ": a@example.org  differs: was nothing, is 250 2.0.0 discarded\n"; stdout != want || code != exitDiffers {
			t.Errorf("exit code %d\n%s%s\nwant\n%s", code, stdout, stderr, want)
		}
	}
}

const attachedTOML = `
[[listener]]
name = "lmtp"
address = "unix:lmtp.sock"
protocol = "lmtp"
routes = { "*" = ["debugged"] }
[backend.debugged]
plugin = "unix:%s"
`

// A plugin that does not answer in time has failed, and the next file is given
// to it all the same. A record without answers gets them by --update.
func TestReplayThatTakesTooLong(t *testing.T) {
	t.Parallel() // it waits for processes
	dir, file := configure(t, mainTOML)
	stuck, busy := filepath.Join(dir, "stuck"), filepath.Join(dir, "busy")
	os.WriteFile(stuck, fmt.Appendf(nil, handWritten, "stuck"), 0o600)
	os.WriteFile(busy, fmt.Appendf(nil, handWritten, "busy"), 0o640)
	stdout, stderr, code := runToEnd(t, "replay", "--update", "--timeout", "200ms", stuck, busy, "--config", file, "--backend", "demo")
	want := stuck + ": stuck@example.org  differs: was nothing, is 451 4.4.7 not delivered in time, try again later\n" + stuck + ": updated\n" +
		busy + ": busy@example.org  differs: was nothing, is 450 4.2.1 mailbox busy\n" + busy + ": updated\n"
	if stdout != want || code != 0 {
		t.Errorf("exit code %d\n%s%s\nwant\n%s", code, stdout, stderr, want)
	}
	text, err := os.ReadFile(busy)
	if info, _ := os.Stat(busy); err != nil || info.Mode().Perm() != 0o640 || !strings.Contains(string(text), "\nANSWER 0 450 4.2.1 mailbox busy\n") {
		t.Errorf("%v, mode %v\n%s", err, info.Mode(), text)
	}
}
