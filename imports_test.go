package mailgw

import (
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// imports says what packages may import besides the standard library. A row
// with /... at its end is for a package and all those below it, unless they
// have a row of their own.
//
// The arrows point from cmd/mailgw to gateway to backends, and from examples
// to plugins to backends. The gateway does not know of plugins: to it they are
// backends. What carries them across the border of processes is an import of
// plugins alone.
var imports = map[string][]string{
	"backends":                {"xforward"},
	"backends/...":            {"backends", "internal/settings", "internal/smtp"},
	"backends/dkim":           {"backends", "blitiri.com.ar/go/spf", "github.com/emersion/go-msgauth/...", "golang.org/x/net/..."},
	"backends/entity":         {"backends", "github.com/emersion/go-message/..."},
	"backends/exec":           {"backends", "internal/settings", "golang.org/x/sys/unix"},
	"backends/relay":          {"backends", "internal/smtp", "internal/smtpclient", "xforward"},
	"backends/users":          {"backends", "internal/smtp", "github.com/xdg-go/...", "golang.org/x/crypto/bcrypt"},
	"xforward":                {},
	"internal/smtp":           {},
	"internal/smtpclient":     {"internal/smtp", "github.com/emersion/go-sasl", "github.com/xdg-go/scram"},
	"internal/nowait":         {"golang.org/x/sys/unix"},
	"internal/settings":       {},
	"gateway":                 {"backends", "internal/...", "xforward", "github.com/BurntSushi/toml", "github.com/emersion/go-message/...", "github.com/emersion/go-sasl", "github.com/pires/go-proxyproto", "github.com/xdg-go/scram", "golang.org/x/sys/unix"},
	"plugins":                 {"backends", "plugins/internal/...", "internal/nowait", "internal/settings", "xforward", "github.com/hashicorp/...", "google.golang.org/...", "golang.org/x/sys/unix"},
	"plugins/plugintest":      {"backends", "backends/backendtest", "plugins", "plugins/internal/...", "google.golang.org/..."},
	"plugins/internal/...":    {"google.golang.org/..."},
	"cmd/mailgw":              {"gateway", "plugins", "plugins/plugintest", "plugins/python", "github.com/BurntSushi/toml", "backends/...", "internal/...", "xforward", "github.com/spf13/cobra", "golang.org/x/sys/unix", "golang.org/x/term"},
	"cmd/mailgw/newplugin/go": {"backends", "plugins"},
	"plugins/python":          {},
	"internal/gatewaytest":    {},
	"internal/record":         {"backends", "xforward"},
	"internal/dnstest":        {"golang.org/x/net/dns/dnsmessage"},
	"internal/peers":          {},
	"internal/bench":          {"internal/peers"},
	"internal/bench/plugin":   {"backends", "plugins"},
	"examples/roster":         {"backends", "plugins"},
	"examples/gatekeeper":     {"backends", "plugins"},
	"examples/attachments":    {"backends", "backends/entity", "plugins", "github.com/emersion/go-message"},
}

func TestImports(t *testing.T) {
	const module = "github.com/mailgw/mailgw/"
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		packages := strings.Fields(line)
		from := strings.TrimPrefix(packages[0], module)
		rule, ok := matching(slices.Collect(maps.Keys(imports)), from)
		if !ok && len(packages) > 1 {
			t.Errorf("nothing is said of what %s may import", from)
		}
		for _, to := range packages[1:] {
			if domain, _, _ := strings.Cut(to, "/"); !strings.Contains(domain, ".") {
				continue // the standard library
			}
			to = strings.TrimPrefix(to, module)
			if _, ok := matching(imports[rule], to); !ok {
				t.Errorf("%s imports %s, want none but %q", from, to, imports[rule])
			}
		}
	}
}

// matching returns the pattern that a package matches, the package itself if
// it is one of them.
func matching(patterns []string, name string) (string, bool) {
	if slices.Contains(patterns, name) {
		return name, true
	}
	i := slices.IndexFunc(patterns, func(p string) bool {
		above, ok := strings.CutSuffix(p, "...")
		return ok && strings.HasPrefix(name+"/", above)
	})
	if i < 0 {
		return "", false
	}
	return patterns[i], true
}
