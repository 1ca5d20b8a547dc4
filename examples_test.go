package mailgw

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The examples, with the address of each and what its commands print, among
// other things.
var examples = map[string]struct {
	address string
	want    []string
}{
	"roster":        {"unix:lmtp.sock", []string{"ann@example.org    250 2.0.0", "carol@example.org  450 4.2.1", "eve@example.org    550 5.1.1"}},
	"roster-python": {"unix:lmtp.sock", []string{"ann@example.org    250 2.0.0", "carol@example.org  450 4.2.1", "eve@example.org    550 5.1.1"}},
	"gatekeeper": {"unix:lmtp.sock", []string{
		"eve@example.org  550 5.1.1",
		"\nmail/example.org/ann/new/",
		"\nmail/example.org/archive/new/",
		"\nquarantine/example.org/ann/new/",
	}},
	"attachments":    {"tcp:127.0.0.1:2525", []string{`X-Attachment: "invoice.pdf" ("application/pdf")`}},
	"content-filter": {}, // TestReadmeService does what it says
}

// Each example does what its README says.
func TestExamples(t *testing.T) {
	dir := checkout(t)
	if out := (shell{dir}).run(t, "make -s build"); out != "" {
		t.Fatal(out)
	}
	readmes, err := filepath.Glob(dir + "/examples/*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, readme := range readmes {
		sh := shell{filepath.Dir(readme)}
		t.Run(filepath.Base(sh.dir), func(t *testing.T) {
			example, ok := examples[filepath.Base(sh.dir)]
			if !ok {
				t.Fatal("no test runs this example")
			}
			if example.address == "" {
				return
			}
			if strings.HasSuffix(sh.dir, "-python") {
				needPython(t)
			}
			sh.follow(t, readme, example.address, example.want)
		})
	}
}

// follow types the commands of a README. mailgw serve answers at the address.
// What the others print has want in it.
func (s shell) follow(t *testing.T, readme, address string, want []string) {
	t.Helper()
	var out strings.Builder
	for line := range strings.Lines(contents(t, readme)) {
		if strings.HasPrefix(line, "```") {
			t.Error("this test runs what is indented, not what is fenced")
		}
		line, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "    ")
		if !ok {
			continue
		}
		if strings.HasSuffix(line, "mailgw serve") {
			s.background(t, line, address)
		} else {
			out.WriteString(s.run(t, line))
		}
	}
	for _, w := range want {
		if !strings.Contains(out.String(), w) {
			t.Errorf("no %q in\n%s", w, out.String())
		}
	}
}

// A new plugin works, and does what its README says.
func TestNewPlugin(t *testing.T) {
	bin := t.TempDir()
	build(t, bin, "./cmd/mailgw")
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	sources, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for language, tested := range map[string]string{"go": "\nok  \texample.org/my-plugin", "python": "\nOK\n"} {
		t.Run(language, func(t *testing.T) {
			if language == "python" {
				needPython(t)
			}
			dir := filepath.Join(t.TempDir(), "my-plugin")
			args := []string{"new-plugin", "--lang", language, dir}
			if language == "go" {
				args = append(args, "--mailgw", sources)
			}
			if out, err := exec.Command("mailgw", args...).CombinedOutput(); err != nil || strings.Contains(string(out), "PATH") {
				t.Fatalf("%v\n%s", err, out)
			}
			shell{dir}.follow(t, dir+"/README.md", "unix:lmtp.sock", []string{
				tested, "\nall ", " checks are ok\n", "ann@example.org  250 2.0.0", "bob@example.org  550 5.1.1", ":X-Example: seen", "reloaded",
			})
		})
	}
}
