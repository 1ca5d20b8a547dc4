package peers

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// A Postfix that takes bare newlines splits messages, which mailgw check tells;
// one that refuses them does not.
func TestCheckSmugglingIntoPostfix(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, main string
		splits     bool
	}{
		{"split", "smtpd_forbid_bare_newline = no\n", true},
		{"reject", "smtpd_forbid_bare_newline = reject\nsmtpd_forbid_bare_newline_exclusions =\n", false},
		{"normalize", "smtpd_forbid_bare_newline = normalize\nsmtpd_forbid_bare_newline_exclusions =\n", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPostfix(t)
			p.start("virtual_mailbox_domains = peers.example\nvirtual_transport = discard:\n" + test.main)
			out, code := checkSmuggling(t, "smtp://"+p.address)
			split := strings.Contains(out, "LF . LF                  SPLIT: 250 2.0.0 Ok: queued as")
			if want := map[bool]int{true: 76, false: 0}[test.splits]; split != test.splits || code != want || strings.Contains(out, "SPLIT") != test.splits {
				t.Errorf("exit code %d, want %d, and a split: %v\n%s", code, want, test.splits, out)
			}
		})
	}
}

// checkSmuggling runs mailgw check --smuggling with a relay to a target, and
// returns what it prints and its exit code.
func checkSmuggling(t *testing.T, target string) (out string, code int) {
	t.Helper()
	program, err := gatewaytest.AsTested()
	if err != nil {
		t.Fatal(err)
	}
	dir := gatewaytest.Directory(t)
	for _, name := range []string{"plugins", "spool"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(dir, "gateway.toml")
	text := "hostname = \"gw.peers.example\"\nplugin_directory = \"plugins\"\nspool.directory = \"spool\"\n" +
		gatewaytest.LMTP + "[listener.routes]\n\"*\" = [\"relay\"]\n" +
		"[backend.relay]\nplugin = \"relay\"\nsettings.targets = [\"" + target + "\"]\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "check", "--config", config, "--smuggling", "inbox@peers.example")
	printed, _ := cmd.CombinedOutput()
	return string(printed), cmd.ProcessState.ExitCode()
}
