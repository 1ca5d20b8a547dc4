package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the command prints is in testdata/postfix: after the command line
// comes gateway.toml, and then, after >, what is printed. DIR is the directory
// of gateway.toml. That Postfix works with it is seen in internal/peers.
func TestPostfix(t *testing.T) {
	files, _ := filepath.Glob("testdata/postfix/*.txt")
	if len(files) == 0 {
		t.Fatal("no files")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel() // it waits for processes
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var args []string
			var config, want strings.Builder
			for line := range strings.Lines(string(text)) {
				switch kind, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " "); kind {
				case "$":
					args = strings.Fields(strings.TrimPrefix(rest, "mailgw "))
				case ">":
					want.WriteString(rest + "\n")
				default:
					config.WriteString(line)
				}
			}
			dir, gateway := configure(t, "")
			in := func(s string) string { return strings.ReplaceAll(s, "DIR", dir) }
			if err := os.WriteFile(gateway, []byte(in(config.String())), 0o600); err != nil {
				t.Fatal(err)
			}
			for i := range args {
				args[i] = in(args[i])
			}
			stdout, stderr, code := runToEnd(t, append(args, "--config", gateway, "--queue-directory", dir)...)
			if got := strings.ReplaceAll(stdout, dir, "DIR"); code != 0 || got != want.String() {
				t.Errorf("exit code %d, printed\n%s%s\nwant\n%s", code, stderr, got, want.String())
			}
		})
	}
}

func TestPostfixWithoutListener(t *testing.T) {
	t.Parallel() // it waits for processes
	_, file := configure(t, mainTOML)
	stdout, stderr, code := runToEnd(t, "postfix", "--config", file, "--listener", "lmtp,nobody")
	if stdout != "" || code != exitUsage || !strings.Contains(stderr, `no listener "nobody"`) {
		t.Errorf("exit code %d, printed\n%s%s", code, stdout, stderr)
	}
}
