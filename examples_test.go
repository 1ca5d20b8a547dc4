package mailgw

import (
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
					sh.background(t, line, example.address)
				} else {
					out.WriteString(sh.run(t, line))
				}
			}
			for _, want := range example.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in\n%s", want, out.String())
				}
			}
		})
	}
}
