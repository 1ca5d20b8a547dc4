package mailgw

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// logging matches a line of the sources that logs something, but for debugging,
// or that gathers attributes for one, or that names a state, which is an event.
var logging = regexp.MustCompile(`(^|[^s])[lL]og\.(Info|Warn|Error|With|LogAttrs)\(|\.enter\(|log(Together|Each)\(|slog\.(String|Int|Int64|Duration|Bool)\(|append\(.*attrs|attrs := |\bstate += |(?m)^\t\t"\w+", .*,$`)

var logWord = regexp.MustCompile(`"([a-z_]+)"`)

// README.md has each message of the log that is one word, each event of plugins,
// and each attribute.
func TestReadmeLog(t *testing.T) {
	words := map[string]bool{}
	for _, file := range sources(t, "gateway", "plugins", "cmd/mailgw") {
		for line := range strings.Lines(contents(t, file)) {
			if !logging.MatchString(line) {
				continue
			}
			for _, word := range logWord.FindAllStringSubmatch(line, -1) {
				words[word[1]] = true
			}
		}
	}
	readme := contents(t, "README.md")
	for word := range words {
		if !strings.Contains(readme, "`"+word+"`") && !strings.Contains(readme, "`"+word+"=") {
			t.Errorf("README.md does not say what %s means", word)
		}
	}
	for _, word := range []string{"received", "client_name", "delay", "added", "exited", "lived", "stack"} {
		if !words[word] {
			t.Errorf("this test does not find %s", word)
		}
	}
}

// sources returns the files of packages, without their tests.
func sources(t *testing.T, packages ...string) (files []string) {
	t.Helper()
	for _, dir := range packages {
		found, err := filepath.Glob(dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	return slices.DeleteFunc(files, func(name string) bool { return strings.HasSuffix(name, "_test.go") })
}
