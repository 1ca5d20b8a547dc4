package mailgw

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/mailgw/mailgw/backends/backendtest"
	"github.com/mailgw/mailgw/plugins"
	"github.com/mailgw/mailgw/plugins/plugintest"
)

// The examples as programs keep the promises of package backends: Python's as
// Go's.
func TestExamplesKeepTheContract(t *testing.T) {
	users := []string{"ann@example.org", "bob@example.org"}
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin, "./examples/roster", "./examples/gatekeeper").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for _, c := range []plugins.Command{
		{Name: "roster", Path: filepath.Join(bin, "roster"), Settings: map[string]any{"users": users}},
		{Name: "gatekeeper", Path: filepath.Join(bin, "gatekeeper"), Settings: map[string]any{"users": users, "archive": "archive@example.org"}},
		{Name: "roster-python", Path: "examples/roster-python/roster.py", Settings: map[string]any{"users": users},
			Env: map[string]string{"PYTHONPATH": "plugins/python", "PYTHONDONTWRITEBYTECODE": "1"}},
	} {
		t.Run(c.Name, func(t *testing.T) {
			if filepath.Ext(c.Path) == ".py" {
				needPython(t)
			}
			testProgram(t, c, backendtest.Options{Recipients: users})
		})
	}
}

// testProgram runs the conformance test on a plugin, in a process of its own.
func testProgram(t *testing.T, c plugins.Command, o backendtest.Options) {
	t.Helper()
	if err := plugintest.Test(t.Context(), c, o); err != nil {
		t.Error(err)
	}
}

// needPython skips the test without what plugins in Python need.
func needPython(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("/usr/bin/python3", "-c", "import grpc, google.protobuf").CombinedOutput(); err != nil {
		missing(t, "python3-grpcio: "+err.Error()+"\n"+string(out))
	}
}
