package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// write makes a file of the test's, and returns its path.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// script makes a program.
func script(t *testing.T, text string) string {
	t.Helper()
	path := write(t, "plugin.sh", text)
	if err := os.Chmod(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTestPlugin(t *testing.T) {
	bad := write(t, "settings.toml", `paht = "x"`)
	reads := script(t, "#!/bin/sh\ncat "+bad+" >&2\n")
	knowsNobody := write(t, "nobody.toml", "[[rule]]\nto = '*'\nstatus = '550 5.1.1 no such user'\n")
	nothing := script(t, "#!/nonexistent/python3\n")
	config := write(t, "gateway.toml", `
[[listener]]
name = "lmtp"
address = "unix:@mailgw-test-plugin"
protocol = "lmtp"
routes = { "*" = ["storage"] }

[backend.storage]
plugin = "maildir"
env = { GORACE = "atexit_sleep_ms=0" } # else the race detector waits a second at each exit
settings = { path = "mail/{domain}/{user}" }

[backend.early]
plugin = "discard"
env = { GORACE = "atexit_sleep_ms=0" }

[backend.faulty]
plugin = "maildri"

[backend.attached]
plugin = "unix:/tmp/socket"
`)
	for _, tt := range []struct {
		args   string
		code   int
		stdout string // of which this is the end
		stderr string
	}{
		{"--final --config " + config + " --backend storage", 0, " checks are ok\n", ""},
		{"--final --config " + config + " --backend early", exitSoftware, " checks have failed; --verbose tells what the plugin has logged\n", ""},
		{"--settings " + knowsNobody + " static", exitSoftware, "\nthe plugin refuses one@example.org with \"550 5.1.1 no such user\", and most of this may come of that: name addresses that it takes with --recipient, or give it settings with --settings\n", ""},
		{"maildir --settings " + bad, exitSoftware, "FAILED  start: ", ""}, // flags behind the program are its own
		{"--settings " + bad + " maildir", exitConfig, "ok      nothing is left of it\n", ""},
		{"--recipient one --final discard", exitUsage, "", "--recipient one: "},
		{"--settings /nonexistent discard", exitConfig, "", "/nonexistent"},
		{"discrad", exitConfig, "", `no plugin "discrad" ships`},
		{"/nonexistent", exitSoftware, "FAILED  start: ", ""},
		{nothing, exitSoftware, "the interpreter that it names: ", ""},
		{reads, exitSoftware, `it wrote: ["paht = \"x\""]`, ""}, // no sandbox keeps it from reading
		{"--config " + config + " --backend faulty", exitConfig, "", "gateway.toml:18: backend.faulty.plugin: "},
		{"--config " + config + " --backend nobody", exitConfig, "", "has no [backend.nobody]"},
		{"--config " + config + " --backend attached", exitConfig, "", "is started by hand, and cannot be started again and again"},
		{"--config " + config, exitUsage, "", "--config is for --backend"},
		{"--backend storage", exitConfig, "", "gateway.toml: "},
		{"--config " + config + " --backend storage ./x", exitUsage, "", "want a program, or --backend"},
		{"", exitUsage, "", "want a program, or --backend"},
	} {
		t.Chdir(t.TempDir())
		stdout, stderr, code := command(t, "", append([]string{"test-plugin"}, strings.Fields(tt.args)...)...)
		if code != tt.code || !strings.Contains(stdout, tt.stdout) || !strings.Contains(stderr, tt.stderr) {
			t.Errorf("test-plugin %s: exit code %d, want %d; printed\n%s%s", tt.args, code, tt.code, stdout, stderr)
		}
	}
	if found, _ := filepath.Glob(filepath.Dir(config) + "/mail/example.org/*/new/*"); len(found) == 0 {
		t.Error("no mail was delivered")
	}
}
