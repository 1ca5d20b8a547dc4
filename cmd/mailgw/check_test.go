package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// runToEnd runs a command that ends by itself.
func runToEnd(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := program(t, args...)
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	cmd.Run()
	return out.String(), err.String(), cmd.ProcessState.ExitCode()
}

const badTOML = `
hostname = "mx.example.org"
[spool]
directory = "spool"
[[listener]]
name = "lmtp"
address = "unix:lmtp.sock"
protocol = "lmpt"
dsn = true
[listener.routes]
"*" = ["demo"]
[backend.demo]
plugin = "static"
[backend.demo.settings]
colour = "red"
[[backend.demo.settings.rule]]
to = "*"
status = 250
[backend.dies]
plugin = "/bin/false"
[backend.slow]
plugin = "static"
timeout = "0s"
`

// What is wrong with the file itself and what plugins say of it is told at
// once, with file and line.
func TestProblemsAreToldTogether(t *testing.T) {
	t.Parallel() // it waits for processes
	_, file := configure(t, strings.ReplaceAll(mainTOML, "plugin = ", "plug = "))
	for _, verb := range []string{"check", "serve"} {
		stdout, stderr, code := runToEnd(t, verb, "--config", file)
		if stdout != "" || code != exitConfig || strings.Count(stderr, "plug") < 3 {
			t.Errorf("%s: exit code %d, printed\n%s%s", verb, code, stdout, stderr)
		}
	}

	_, file = configure(t, badTOML)
	stdout, stderr, code := runToEnd(t, "check", "--config", file)
	lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, "warning: ") })
	if stdout != "" || code != exitConfig || len(lines) != 5 {
		t.Fatalf("exit code %d, printed\n%s%s", code, stdout, stderr)
	}
	for i, want := range []string{
		":8: listener[0].protocol: ",
		":15: backend.demo.settings.colour: ",
		":18: backend.demo.settings.rule[0].status: ",
		":19: backend.dies: ",
		":23: backend.slow.timeout: ",
	} {
		if !strings.HasPrefix(lines[i], file+want) {
			t.Errorf("line %d is %q, want %q", i+1, lines[i], file+want)
		}
	}

	// A plugin that no route names is not started.
	stdout, stderr, code = runToEnd(t, "serve", "--config", file)
	if stdout != "" || code != exitConfig || strings.Count(stderr, "\n"+file+":") != 4 || strings.Contains(stderr, "backend.dies: ended") {
		t.Errorf("serve: exit code %d, printed\n%s%s", code, stdout, stderr)
	}
}

// A plugin that does not know all its settings, or cannot read them, does not act on
// the others: one that was misspelt may be what keeps it from doing harm.
func TestSettingsAreJudgedWhenAllAreKnown(t *testing.T) {
	t.Parallel() // it waits for processes
	const bad = "path = 'm/{usr}'\nowner = 'nobody-here:x'\n"
	for unread, want := range map[string][]string{
		"":                         {"path", "owner"},
		"bogus = 1\ncreate = 'no'": {"create", "bogus"},
	} {
		_, file := configure(t, mainTOML+"\n[backend.more]\nplugin = \"maildir\"\n[backend.more.settings]\n"+bad+unread+"\n")
		_, stderr, code := runToEnd(t, "check", "--config", file)
		if code != exitConfig || strings.Count(stderr, ": backend.more.settings.") != len(want) {
			t.Errorf("%q: exit code %d, printed\n%s, want faults of %q", unread, code, stderr, want)
		}
		for _, key := range want {
			if !strings.Contains(stderr, ": backend.more.settings."+key+": ") {
				t.Errorf("%q: no fault of %s in\n%s", unread, key, stderr)
			}
		}
	}
}

func TestPromiseThatNoBackendKeeps(t *testing.T) {
	t.Parallel() // it waits for processes
	_, file := configure(t, strings.Replace(mainTOML, `protocol = "lmtp"`, "protocol = \"lmtp\"\ndsn = true", 1))
	stdout, stderr, code := runToEnd(t, "check", "--config", file)
	if stdout != "" || code != exitConfig || !strings.Contains(stderr, "listener[0].dsn: ") {
		t.Errorf("exit code %d, printed\n%s%s", code, stdout, stderr)
	}
}

func TestCheckPrintsWhatHolds(t *testing.T) {
	t.Parallel() // it waits for processes
	rate := "[[listener.rate]]\nby = \"client\"\nmessages = 100\nrecipients = 200\nbytes = \"1GiB\"\nat_once = 5\n"
	dir, file := configure(t, strings.Replace(mainTOML, "[listener.routes]", "chunking = true\nunknown_parameters = 'keep'\nlimits.mime_parts = 1000\nlimits.connections = 0\nlimits.message_size = '10MiB'\n"+rate+"[listener.routes]", 1))
	stdout, stderr, code := runToEnd(t, "check", "--config", file)
	if code != 0 {
		t.Fatalf("exit code %d, printed\n%s", code, stderr)
	}
	for _, want := range []string{
		"\nlistener lmtp: lmtp on unix:" + dir + "/lmtp.sock\n",
		"\nlistener smtp: smtp on tcp:127.0.0.1:0\n",
		"\n  auth not offered\n  with chunking true, unknown_parameters keep\n  limits message_size 10MiB, mime_depth 100, mime_parts 1000, connections none\n",
		"\n  auth not offered\n  limits message_size 50MiB\n", // of the other listener
		"\n  rate by client (/32, /64): 100 messages per 1h0m0s, 200 recipients per 1h0m0s, bytes 1GiB per 1h0m0s, 5 transactions at once\n",
		"\n  routes\n    @discard.example  -> drop\n    *                 -> demo, inbox\n",
		"\nbackend drop: discard\n  starts, settings accepted, timeout 5m0s, on_failure tempfail\n",
		"\nbackend inbox: maildir, ",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is not in\n%s", want, stdout)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "plugins/*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A route that the settings of a plugin name has to be there.
func TestCheckFindsRoutesThatAreNotThere(t *testing.T) {
	t.Parallel() // it waits for processes
	for route, want := range map[string]string{
		"quarantine": "\n  diverts to quarantine\n",
		"quarantin":  `: backend.scan: it diverts to "quarantin", and there is no such route in [named_routes]; did you mean quarantine?`,
	} {
		_, file := configure(t, mainTOML+"\n[named_routes]\nquarantine = [\"drop\"]\n[backend.scan]\nplugin = \"clamav\"\n"+
			"[backend.scan.settings]\naddress = \"unix:clamd.sock\"\non_virus = \"divert\"\ndivert_to = \""+route+"\"\n")
		stdout, stderr, code := runToEnd(t, "check", "--config", file)
		if !strings.Contains(stdout+stderr, want) || (code == exitConfig) != (route == "quarantin") {
			t.Errorf("%s: exit code %d, printed\n%s%s", route, code, stdout, stderr)
		}
	}
}

// A route that ends in a filter leaves people without an answer.
func TestWarningOfRouteThatEndsInFilter(t *testing.T) {
	t.Chdir(".") // to come back
	for settings, want := range map[string]bool{
		"command = ['/bin/true']":               true,
		"command = ['/bin/true']\nfinal = true": false,
	} {
		_, file := configure(t, mainTOML+"\n[[listener]]\nname = \"filtered\"\naddress = \"unix:filtered.sock\"\nprotocol = \"lmtp\"\nroutes = { \"*\" = [\"scan\"] }\n[backend.scan]\nplugin = \"exec\"\n[backend.scan.settings]\n"+settings+"\n")
		_, stderr, code := command(t, "", "check", "--config", file)
		if got := strings.Contains(stderr, `backend.scan: a filter, but the last one in the route of "*"`); got != want || code != 0 {
			t.Errorf("%s: exit code %d\n%s", settings, code, stderr)
		}
	}
}

// Nothing is left of the plugins when the reader of the summary leaves.
func TestCheckForAReaderThatLeaves(t *testing.T) {
	dir, file := configure(t, mainTOML)
	cmd := program(t, "check", "--config", file)
	left, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	left.Close()
	defer stdout.Close()
	cmd.Stdout = stdout
	cmd.Run()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if found, err := os.ReadDir(filepath.Join(dir, "plugins")); len(found) > 0 || err != nil || !ok || status.Signal() != syscall.SIGPIPE {
		t.Errorf("check ended with %v, and has left %v, %v", cmd.ProcessState, found, err)
	}
}
