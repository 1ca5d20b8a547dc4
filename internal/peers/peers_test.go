package peers

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case "witness":
			serveWitness()
		case "trouble":
			serveTrouble()
		}
	}
	gatewaytest.Main(m)
}

// peer returns the path of a program of Debian's.
func peer(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		gatewaytest.Without(t, "%v: internal/peers/install installs it", err)
	}
	return path
}

// unpackedPeer returns the path of a program in a package that the script install
// has unpacked below that name, or of the one that is installed.
func unpackedPeer(t *testing.T, name, program string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../../var/peers", name, program))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		return path
	}
	return peer(t, program)
}

// Routes and a backend that defer mail for busy, refuse it for gone, and
// deliver it to all others.
const (
	byRules = `
[listener.routes]
"*" = ["rules", "inbox"]
`
	rules = `
[backend.rules]
plugin = "static"
[[backend.rules.settings.rule]]
to = "busy@peers.example"
status = "450 4.2.1 mailbox busy"
[[backend.rules.settings.rule]]
to = "gone@peers.example"
status = "550 5.1.1 no such user"
`
)
