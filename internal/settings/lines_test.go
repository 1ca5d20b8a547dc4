package settings

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

func TestLineOfEveryKey(t *testing.T) {
	text, err := os.ReadFile("testdata/lines.toml")
	if err != nil {
		t.Fatal(err)
	}
	decodeTOML(t, string(text))
	lines := FindLines(string(text))
	for i, line := range strings.Split(string(text), "\n") {
		_, paths, _ := strings.Cut(line, "#: ")
		for path := range strings.SplitSeq(strings.TrimSpace(paths), "  ") {
			if path != "" && lines[path] != i+1 {
				t.Errorf("%s is on line %d, want %d: %s", path, lines[path], i+1, line)
			}
		}
	}
}

func TestMissingKeyHasTheLineOfItsTable(t *testing.T) {
	lines := FindLines("x = 1\n[[a]]\n[a.\"b.c\"]\n[a.\"b.c\".d]\n")
	for path, want := range map[string]int{
		`a[0].gone`:                2,
		`a[0].gone.gone[3]`:        2,
		`a[0]."b.c".gone`:          3,
		`a[0]."b.c"."go\"ne.[1]"`:  3,
		`a[0]."b.c".d."gone"[1].x`: 4,
		`gone`:                     1,
		``:                         1,
	} {
		if got := lines.Of(path); got != want {
			t.Errorf("%s: line %d, want %d", path, got, want)
		}
	}
}

// FuzzFindLines looks for a TOML text with a key whose line is not found, or
// whose line does not have the key, and for a fault without a line.
func FuzzFindLines(f *testing.F) {
	text, err := os.ReadFile("testdata/lines.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(text))
	f.Add(sampleText)
	f.Fuzz(func(t *testing.T, text string) {
		lines := FindLines(text) // ends, whatever the text is
		values := map[string]any{}
		if _, err := toml.Decode(text, &values); err != nil {
			return
		}
		checkLines(t, lines, strings.Split(text, "\n"), "", values)
		for _, fault := range Decode(values, new(sample)) {
			if lines[fault.Key] == 0 {
				t.Fatalf("%s: %s: the key has no line", fault.Key, fault.Text)
			}
		}
	})
}

func checkLines(t *testing.T, lines Lines, text []string, path string, value any) {
	if path != "" && (lines[path] < 1 || lines[path] > len(text)) {
		t.Fatalf("%s: line %d of %d", path, lines[path], len(text))
	}
	switch value := value.(type) {
	case map[string]any:
		for key, v := range value {
			path := Join(path, key)
			checkLines(t, lines, text, path, v)
			// A key that is quoted may be written in other ways.
			line := text[lines[path]-1]
			if isBare(key) && !strings.Contains(line, key) && !strings.Contains(line, `\`) {
				t.Fatalf("%s: not on line %d: %q", path, lines[path], line)
			}
		}
	case []map[string]any:
		for i, v := range value {
			checkLines(t, lines, text, fmt.Sprintf("%s[%d]", path, i), v)
		}
	case []any:
		for i, v := range value {
			checkLines(t, lines, text, fmt.Sprintf("%s[%d]", path, i), v)
		}
	}
}
