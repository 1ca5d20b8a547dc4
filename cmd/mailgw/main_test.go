package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestMain makes the test binary the program as well: for the tests that
// start it, and for the plugins that the program starts by itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-test.") {
		main()
	}
	os.Exit(m.Run())
}

// program returns a command that runs the program.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(self, args...)
}

func TestExitCodeOfProgram(t *testing.T) {
	for _, test := range []struct {
		args []string
		want int
	}{
		{[]string{"version"}, 0},
		{[]string{"no-such-command"}, exitUsage},
		{[]string{"send", "--to", "a@x", "unix:@mailgw-nobody-listens-here"}, exitTemporary},
		{[]string{"check", "--config", "testdata/missing"}, exitConfig},
	} {
		cmd := program(t, test.args...)
		cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != test.want {
			t.Errorf("mailgw %s: exit code %d, want %d", strings.Join(test.args, " "), got, test.want)
		}
	}
}

func TestHelp(t *testing.T) {
	help, _, code := command(t, "", "--help")
	if code != 0 || !strings.Contains(help, exitCodes) {
		t.Errorf("exit code %d, help\n%s", code, help)
	}
	for _, name := range []string{"serve", "check", "plugin", "new-plugin", "test-plugin", "record", "replay", "send", "passwd", "postfix", "version", "completion"} {
		if !strings.Contains(help, "\n  "+name+" ") {
			t.Errorf("%s is not in\n%s", name, help)
		}
		usage, _, code := command(t, "", name, "--help")
		if code != 0 || !strings.Contains(usage, "mailgw "+name) {
			t.Errorf("%s --help: exit code %d\n%s", name, code, usage)
		}
	}
	for _, name := range []string{"serve", "check", "new-plugin", "test-plugin", "record", "replay", "send", "passwd", "postfix"} {
		usage, _, _ := command(t, "", name, "--help")
		for _, want := range []string{"\nExamples:\n", "\nExit codes:\n  0 ", "\n  64  wrong usage\n"} {
			if !strings.Contains(usage, want) {
				t.Errorf("%s --help: %q is not in\n%s", name, want, usage)
			}
		}
	}
}

func TestUsage(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"frobnicate", `mailgw: unknown command "frobnicate" for "mailgw"`},
		{"serv", "serve"}, // cobra suggests what is near
		{"--colour", "mailgw: unknown flag: --colour\nSee 'mailgw --help'."},
		{"serve --colour", "mailgw serve: unknown flag: --colour\nSee 'mailgw serve --help'."},
		{"serve now", `mailgw serve: takes no argument "now"; give the configuration file with --config`},
		{"check gateway.toml", `mailgw check: takes no argument "gateway.toml"`},
		{"reload now", `mailgw reload: takes no argument "now"`},
		{"postfix virtual.cf", `mailgw postfix: invalid argument "virtual.cf"`},
		{"version now", "mailgw version: unknown command"},
		{"plugin no-such-plugin", `mailgw plugin: no plugin "no-such-plugin" ships with mailgw`},
		{"plugin discard twice", "mailgw plugin: accepts at most 1 arg(s)"},
	} {
		stdout, stderr, code := command(t, "", strings.Fields(test.args)...)
		if stdout != "" || !strings.Contains(stderr, test.want) || code != exitUsage {
			t.Errorf("mailgw %s: exit code %d, printed %q and %q, want %q", test.args, code, stdout, stderr, test.want)
		}
	}
}

func TestVersion(t *testing.T) {
	stdout, _, code := command(t, "", "version")
	if words := strings.Fields(stdout); code != 0 || len(words) != 4 || words[0] != "mailgw" || words[1] != version() {
		t.Errorf("exit code %d, printed %q", code, stdout)
	}
	if got, _, _ := command(t, "", "--version"); got != stdout {
		t.Errorf("--version printed %q, version %q", got, stdout)
	}
}

func TestPluginList(t *testing.T) {
	stdout, _, code := command(t, "", "plugin")
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, name := range []string{"clamav", "discard", "dkim", "maildir", "milter", "static", "users", "webhook"} {
		if !strings.Contains("\n"+stdout, "\n"+name+" ") {
			t.Errorf("%s is not in\n%s", name, stdout)
		}
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script, stderr, code := command(t, "", "completion", shell)
		if code != 0 || !strings.Contains(script, "mailgw") {
			t.Errorf("completion %s: exit code %d, %s", shell, code, stderr)
			continue
		}
		if _, err := exec.LookPath(shell); err != nil {
			continue
		}
		cmd := exec.Command(shell, "-n")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v\n%s", shell, err, out)
		}
	}

	// What the scripts ask the program.
	for line, want := range map[string]string{
		"plugin ma":          "maildir\n:4\n",             // 4: no files
		"send --to a@x un":   "tcp:\nunix:\nunix:@\n:6\n", // 2: no space after it
		"send --to ":         ":4\n",
		"send --file ":       ":0\n",
		"passwd --file ":     ":0\n",
		"passwd ":            ":4\n",
		"serve ":             ":4\n",
		"replay --plugin x ": "record\n:8\n",
		"check --config ":    "toml\n:8\n", // 8: files with that name
	} {
		stdout, _, _ := command(t, "", append([]string{"__complete"}, strings.Split(line, " ")...)...)
		if stdout != want {
			t.Errorf("%s<TAB> gives %q, want %q", line, stdout, want)
		}
	}
}
