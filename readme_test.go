// Package mailgw tests what the documents say: each snippet of README.md and
// of the examples is run as a reader would run it.
package mailgw

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mailgw/mailgw/internal/peers"
)

// snippets returns the fenced blocks of README.md in one language.
func snippets(t *testing.T, language string) []string {
	t.Helper()
	fence := regexp.MustCompile("(?ms)^```" + language + "\n(.*?)^```$")
	var found []string
	for _, match := range fence.FindAllStringSubmatch(contents(t, "README.md"), -1) {
		found = append(found, match[1])
	}
	if len(found) == 0 {
		t.Fatalf("README.md has no %s", language)
	}
	return found
}

// Each snippet is in a language of which a test here runs all snippets, and
// the commands in gateway.toml are those of README.md.
func TestSnippetsAreTested(t *testing.T) {
	readme := contents(t, "README.md")
	tested := []string{"console", "sh", "bash", "ini", "postfix", "master", "shell", "toml", "go", ""}
	for _, fence := range regexp.MustCompile("(?m)^ *```(.*)$").FindAllStringSubmatch(readme, -1) {
		if !slices.Contains(tested, fence[1]) {
			t.Errorf("no test runs snippets of %q", fence[1])
		}
	}
	commands := regexp.MustCompile(`(?m)^#   (install .*|\w+ = .*)$`).FindAllStringSubmatch(contents(t, "gateway.toml"), -1)
	if len(commands) == 0 {
		t.Error("gateway.toml has no commands")
	}
	for _, command := range commands {
		if !strings.Contains(readme, "\n"+command[1]+"\n") {
			t.Errorf("gateway.toml has %q, README.md has not", command[1])
		}
	}
}

// checkout copies the sources to a directory of the test's, whose name is
// mailgw.
func checkout(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mailgw")
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name := entry.Name(); path != "." && (name == ".git" || name == "bin" || name == "var" || name == "fuzz") {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(dir, path), 0o755)
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, path), b, info.Mode())
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// A shell runs commands in a directory.
type shell struct{ dir string }

func (s shell) command(line string) *exec.Cmd {
	cmd := exec.Command("bash", "-c", line)
	cmd.Dir = s.dir
	return cmd
}

// run returns what a command prints, whatever its exit code.
func (s shell) run(t *testing.T, line string) string {
	t.Helper()
	out, err := s.command(line).CombinedOutput()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatalf("%s: %v", line, err)
	}
	return string(out)
}

// background starts a command and returns once addresses answer. It returns
// the name of a file that has what the command prints. The test's end
// interrupts the command.
func (s shell) background(t *testing.T, line string, addresses ...string) (printed string) {
	t.Helper()
	for _, address := range addresses {
		if dial(s.dir, address) == nil {
			t.Fatalf("%s is taken already", address)
		}
	}
	out, err := os.Create(filepath.Join(s.dir, "printed"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := s.command("exec " + line)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		// To the whole group, as a terminal does at Ctrl-C.
		syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			t.Errorf("%s does not end", line)
		}
		for _, address := range addresses {
			if dial(s.dir, address) == nil {
				t.Errorf("%s answers after the end of %s", address, line)
			}
		}
		if t.Failed() {
			t.Logf("%s printed:\n%s", line, contents(t, out.Name()))
		}
	})
	for _, address := range addresses {
		for dial(s.dir, address) != nil {
			select {
			case err := <-done:
				t.Fatalf("%s ended: %v\n%s", line, err, contents(t, out.Name()))
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return out.Name()
}

func contents(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// dial connects to an address of gateway.toml.
func dial(dir, address string) error {
	network, rest, _ := strings.Cut(address, ":")
	if network == "unix" {
		rest = filepath.Join(dir, rest)
	}
	c, err := net.Dial(network, rest)
	if err == nil {
		c.Close()
	}
	return err
}

// build builds programs of ours in a directory.
func build(t *testing.T, dir string, packages ...string) {
	t.Helper()
	args := append([]string{"build", "-buildvcs=false", "-o", dir + "/"}, packages...)
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

var id = regexp.MustCompile(`\([0-9a-z]{16}\)`)

// What the first lines of README.md show is what a reader sees.
func TestReadmeFirstRun(t *testing.T) {
	console := snippets(t, "console")
	sh := shell{checkout(t)}
	command, firstLine, _ := strings.Cut(strings.TrimPrefix(console[0], "$ "), "\n")
	printed := sh.background(t, command, "tcp:127.0.0.1:2525", "unix:var/lmtp.sock")
	for _, block := range console[1:] {
		for part := range strings.SplitSeq(strings.TrimPrefix(block, "$ "), "\n$ ") {
			line, want, _ := strings.Cut(strings.TrimSuffix(part, "\n")+"\n", "\n")
			got := sh.run(t, line)
			if id.ReplaceAllString(got, "(ID)") != id.ReplaceAllString(want, "(ID)") {
				t.Errorf("%s\n got %q\nwant %q", line, got, want)
			}
		}
	}
	if !strings.Contains(contents(t, printed), strings.TrimSpace(firstLine)) {
		t.Errorf("%s does not print %q", command, firstLine)
	}
}

// They are typed into one shell.
func TestReadmeShell(t *testing.T) {
	blocks := strings.Join(snippets(t, "sh"), "")
	if out, err := (shell{checkout(t)}).command("set -ex\n" + blocks).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The program in README.md is the example.
func TestReadmeProgram(t *testing.T) {
	if got := snippets(t, "go"); len(got) != 1 || got[0] != contents(t, "examples/roster/main.go") {
		t.Error("the program in README.md is not examples/roster/main.go")
	}
}

// Each configuration of README.md is good, and its plugins start. The program
// attachments stands for a filter of the reader's own.
func TestReadmeConfigurations(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "./cmd/mailgw", "./examples/roster", "./examples/attachments")
	makeCertificate(t, dir)
	if err := os.Rename(filepath.Join(dir, "attachments"), filepath.Join(dir, "my-filter")); err != nil {
		t.Fatal(err)
	}
	elsewhere := strings.NewReplacer(
		"/var/spool/postfix/mailgw", dir,
		"/var/vmail", dir+"/mail",
		"/etc/mailgw", dir,
		// Users that this machine has not.
		`user = "mailgw"`, fmt.Sprintf("user = \"%d\"", os.Getuid()),
		`user = "my-filter"`, fmt.Sprintf("user = \"%d\"", os.Getuid()),
		"uid:postfix", fmt.Sprintf("uid:%d", os.Getuid()), // TestReadmeService has the user
	)
	passwd := (shell{dir}).command("./" + elsewhere.Replace(passwdCommand(t)))
	passwd.Stdin = strings.NewReader("secret\n")
	if out, err := passwd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, text := range snippets(t, "toml") {
		if err := os.WriteFile(filepath.Join(dir, "gateway.toml"), []byte(elsewhere.Replace(text)), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := (shell{dir}).command("./mailgw check").CombinedOutput(); err != nil {
			t.Errorf("%v\n%s\n%s", err, out, text)
		}
	}
}

// makeCertificate makes the certificate that a configuration of README.md names,
// and its key.
func makeCertificate(t *testing.T, dir string) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		missing(t, fmt.Sprintf("%v: internal/peers/install installs it", err))
	}
	out, err := shell{dir}.command("openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=example.org -keyout key.pem -out cert.pem").CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
}

// passwdCommand is the command of README.md that makes a user.
func passwdCommand(t *testing.T) string {
	t.Helper()
	return inline(t, "`(mailgw passwd .*)` asks for a password")
}

// HAProxy's line leads to the listener that it speaks to.
func TestReadmeProxy(t *testing.T) {
	address := inline(t, "`server mailgw (.*) send-proxy-v2`")
	listener := "name = \"haproxy\"\naddress = \"tcp:" + address + "\""
	if !strings.Contains(contents(t, "README.md"), listener) {
		t.Errorf("README.md has no listener with\n%s", listener)
	}
}

// The plugin that README.md starts for a debugger is found by the gateway. It does
// without the debugger here.
func TestReadmeDebugger(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "./cmd/mailgw", "./examples/roster")
	elsewhere := strings.NewReplacer("/tmp/", dir+"/", "dlv exec ", "")
	sh := shell{dir}
	sh.background(t, "env "+elsewhere.Replace(inline(t, "`(MAILGW_ATTACH=.* dlv exec .*)`")), "unix:roster.sock")
	roster := strings.Replace(contents(t, "examples/roster/gateway.toml"), `plugin = "./roster"`, elsewhere.Replace(inline(t, "`(plugin = \"unix:.*)`")), 1)
	if err := os.WriteFile(filepath.Join(dir, "gateway.toml"), []byte(roster), 0o644); err != nil {
		t.Fatal(err)
	}
	sh.background(t, "./mailgw serve", "unix:lmtp.sock")
	out := sh.run(t, "./mailgw send --to ann@example.org --to eve@example.org unix:lmtp.sock")
	for _, want := range []string{"ann@example.org  250 2.0.0", "eve@example.org  550 5.1.1"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// The example passes the test that README.md names.
func TestReadmeTestPlugin(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "./cmd/mailgw", "./examples/roster")
	if err := os.WriteFile(filepath.Join(dir, "gateway.toml"), []byte(contents(t, "examples/roster/gateway.toml")), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := (shell{dir}).run(t, "./"+inline(t, "`(mailgw test-plugin .*)` does")); !strings.HasSuffix(out, " checks are ok\n") {
		t.Error(out)
	}
}

// The call of backendtest in README.md is that of the example.
func TestReadmeContract(t *testing.T) {
	call := inline(t, "`(err := backendtest.*)`")
	if !strings.Contains(contents(t, "examples/gatekeeper/main_test.go"), call) {
		t.Errorf("examples/gatekeeper/main_test.go has no %s", call)
	}
}

// Postfix knows every parameter that README.md names.
func TestReadmePostfix(t *testing.T) {
	for _, text := range snippets(t, "postfix") {
		out := postconf(t, map[string]string{"main.cf": text, "master.cf": ""}, "-n")
		for line := range strings.Lines(text) {
			if !strings.Contains(out, line) {
				t.Errorf("postconf does not show %q:\n%s", line, out)
			}
		}
	}
}

// Postfix reads the services of master.cf that README.md names, with each of
// their parameters.
func TestReadmePostfixServices(t *testing.T) {
	for _, text := range snippets(t, "master") {
		out := postconf(t, map[string]string{"main.cf": "", "master.cf": text}, "-P")
		if got, want := strings.Count(out, "\n"), strings.Count(text, "\n  -o "); got != want {
			t.Errorf("postconf shows %d parameters, want %d:\n%s", got, want, out)
		}
	}
}

// postconf returns what Postfix makes of its files.
func postconf(t *testing.T, files map[string]string, flag string) string {
	t.Helper()
	postfix, err := peers.FindPostfix(".")
	if err != nil {
		missing(t, err.Error())
	}
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := postfix.Command(t.Context(), "postconf", "-c", dir, flag).CombinedOutput()
	if err != nil || strings.Contains(string(out), "warning") {
		t.Errorf("postconf: %v\n%s", err, out)
	}
	return string(out)
}

// missing skips a test for want of a peer, which continuous integration has.
func missing(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}
