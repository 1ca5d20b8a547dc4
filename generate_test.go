package mailgw

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The generated code is what make generate makes.
func TestGenerated(t *testing.T) {
	version, err := exec.Command("protoc", "--version").Output()
	if err != nil {
		missing(t, "protoc: "+err.Error())
	}
	// Its version stands in the code.
	if got := strings.TrimSpace(string(version)); got != "libprotoc 3.21.12" {
		t.Skipf("protoc is %s, want libprotoc 3.21.12", got)
	}
	const pb, python = "plugins/internal/pb", "plugins/python/plugin_pb2.py"
	dir := checkout(t)
	for _, generated := range []string{pb, python} {
		if err := os.RemoveAll(filepath.Join(dir, generated)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, pb), 0o755); err != nil {
		t.Fatal(err)
	}
	generate := exec.Command("go", "generate", "./plugins")
	generate.Dir = dir
	if out, err := generate.CombinedOutput(); err != nil {
		t.Fatalf("go generate: %v\n%s", err, out)
	}
	for _, generated := range []string{pb, python} {
		if out, err := exec.Command("diff", "-r", generated, filepath.Join(dir, generated)).CombinedOutput(); err != nil {
			t.Errorf("%s is not what make generate makes: %v\n%s", generated, err, out)
		}
	}
}
