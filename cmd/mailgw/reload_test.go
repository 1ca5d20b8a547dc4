package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// rewrite changes the gateway's configuration file.
func (g *gatewayProcess) rewrite(t *testing.T, old, new string) {
	t.Helper()
	file := filepath.Join(g.dir, "gateway.toml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), old) {
		t.Fatalf("%q is not in\n%s", old, text)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), old, new, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A reload starts what is new, keeps what has not changed, and ends the rest.
func TestReload(t *testing.T) {
	t.Parallel() // it waits for processes
	g := startGateway(t, mainTOML)
	file := filepath.Join(g.dir, "gateway.toml")
	socket := "unix:" + filepath.Join(g.dir, "lmtp.sock")
	g.rewrite(t, `450 4.2.1 mailbox busy`, `450 4.2.1 still busy`)
	g.rewrite(t, `"@discard.example" = ["drop"]`, "")
	if stdout, stderr, code := command(t, "", "reload", "--config", file); stdout != "reloaded\n" || code != 0 {
		t.Fatalf("exit code %d\n%s%s", code, stdout, stderr)
	}
	stdout, _, _ := command(t, "x", "send", "--file", "-", "--to", "busy@example.org", "--to", "a@discard.example", socket)
	if !strings.Contains(stdout, "still busy") || !strings.Contains(stdout, "a@discard.example  250 2.0.0 <a@discard.example> delivered") {
		t.Errorf("the new configuration is not in force:\n%s", stdout)
	}
	g.waitForLog(t, "event=stopped") // of drop and of the demo before
	g.waitForLog(t, "event=stopped")
	now := childrenOf(t, g.cmd.Process.Pid)
	if kept := slices.DeleteFunc(slices.Clone(now), func(pid int) bool { return !slices.Contains(g.children, pid) }); len(now) != 2 || len(kept) != 1 {
		t.Errorf("plugins %v before and %v now, want two, one of them as it was", g.children, now)
	}

	// What cannot be used changes nothing, and says why.
	g.rewrite(t, `still busy`, `not to be seen`)
	g.rewrite(t, `path = "mail/{user}"`, `paht = "mail/{user}"`)
	stdout, stderr, code := command(t, "", "reload", "--config", file)
	if stdout != "" || code != exitConfig || !strings.Contains(stderr, ": backend.inbox.settings.paht: unknown key") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
	if stdout, _, _ := command(t, "x", "send", "--file", "-", "--to", "busy@example.org", socket); !strings.Contains(stdout, "still busy") {
		t.Errorf("a configuration with a problem is in force:\n%s", stdout)
	}
	if again := childrenOf(t, g.cmd.Process.Pid); !slices.Equal(again, now) {
		t.Errorf("plugins %v before and %v after", now, again)
	}

	// SIGHUP does the same. What is odd is in the log, as all that serve has to say.
	g.rewrite(t, `paht`, `path`)
	g.rewrite(t, `[backend.drop]`, "[named_routes]\nodd = ['scan']\n[backend.scan]\nplugin = 'exec'\nsettings.command = ['/bin/true']\n[backend.drop]")
	g.cmd.Process.Signal(syscall.SIGHUP)
	g.waitForLog(t, "level=WARN msg=configuration warning=", "backend.scan: a filter, but the last one in the route")
	g.waitForLog(t, "msg=reloaded")
	if stdout, _, _ := command(t, "x", "send", "--file", "-", "--to", "busy@example.org", socket); !strings.Contains(stdout, "not to be seen") {
		t.Errorf("after SIGHUP:\n%s", stdout)
	}
	g.children = append(g.children, childrenOf(t, g.cmd.Process.Pid)...)
	g.cmd.Process.Signal(syscall.SIGTERM)
	if state := g.wait(t); state.ExitCode() != 0 {
		t.Errorf("after SIGTERM: %v", state)
	}
}

func TestReloadOfNobody(t *testing.T) {
	_, file := configure(t, mainTOML)
	if _, stderr, code := command(t, "", "reload", "--config", file); code != exitSystem || !strings.Contains(stderr, "no gateway runs that was started with --config "+file) {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
}
