package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/mailgw/mailgw/internal/settings"
)

// Load reads a configuration file and checks it. shipped are the names of
// the plugins that come with the program. What is wrong with the values of
// the file is an error of type Problems, which has all of it; the Config that
// comes with it is good only for finding more, in what has none of them.
func Load(path string, shipped []string) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseConfig(path, string(text), shipped)
}

// parseConfig returns the configuration that text, the contents of a file,
// says.
func parseConfig(file, text string, shipped []string) (*Config, error) {
	values := map[string]any{}
	if _, err := toml.Decode(text, &values); err != nil {
		var syntax toml.ParseError
		if errors.As(err, &syntax) {
			line, column := place(text, syntax.Position.Start)
			return nil, fmt.Errorf("%s:%d:%d: %s%s", file, line, column, strings.TrimSuffix(syntax.Message, "."), syntaxHint(syntax.Message))
		}
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	dir, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	c := &Config{Dir: dir, file: file, lines: settings.FindLines(text)}
	c.SetDefaults()
	v := validation{Config: c, shipped: shipped}
	for _, f := range settings.Decode(values, c) {
		v.fault(f.Key, "%s%s%s", f.Text, listenerHint(f.Key, values), settingsHint(f))
	}
	v.config()
	if len(v.problems) > 0 {
		c.Sort(v.problems)
		return c, v.problems
	}
	return c, nil
}

// place returns where an octet of text stands, from 1. The line that the parser tells
// is the next one if it is the end of a line that is wrong.
func place(text string, at int) (line, column int) {
	before := text[:min(max(at, 0), len(text))]
	return 1 + strings.Count(before, "\n"), len(before) - strings.LastIndexByte(before, '\n')
}

// syntaxHint tells what is often meant by what TOML does not take.
func syntaxHint(message string) string {
	for part, hint := range map[string]string{
		"Key 'listener' ":    "; each listener begins with a line [[listener]], with two brackets on each side",
		"leading zeroes":     `; a mode is written in quotes: "0600"`,
		"expected value but": "; want a number, true, false, or a text in quotes",
		"item to end with":   "; a text stands in quotes",
	} {
		if strings.Contains(message, part) {
			return hint
		}
	}
	return ""
}

// listenerHint tells those who wrote a key at the top how listeners are
// written.
func listenerHint(key string, values map[string]any) string {
	_, table := values[key].(map[string]any)
	switch {
	case table && key == "listener":
		return "; write [[listener]]"
	case key == "rate":
		return "; did you mean [[listener.rate]] below a [[listener]]?"
	case table && slices.Contains([]string{"auth", "limits", "recipients", "routes", "senders", "tls"}, key):
		return "; did you mean [listener." + key + "] below a [[listener]]?"
	}
	return ""
}

// settingsHint tells those who wrote a key of a plugin among those of its backend
// where it belongs.
func settingsHint(f settings.Fault) string {
	parts := strings.Split(f.Key, ".")
	if len(parts) == 3 && parts[0] == "backend" && f.Text == "unknown key" {
		return "; settings of the plugin stand in [backend." + parts[1] + ".settings]"
	}
	return ""
}

// A Problem is something that is wrong in a configuration file, or in a file
// that it names.
type Problem struct {
	File string
	Line int
	Key  string
	Text string
}

// String returns "gateway.toml:12: listener[0].limits.recipients: -1 is negative".
func (p Problem) String() string {
	return fmt.Sprintf("%s:%d: %s: %s", p.File, p.Line, p.Key, p.Text)
}

// Problem returns a problem with the value of a key, which has the line of
// the key or, if it is not given, of the table that it belongs to. The fault F
// in the settings of a backend has the key "backend.NAME.settings." + F.Key.
func (c *Config) Problem(key, text string) Problem {
	return Problem{c.file, c.lines.Of(key), key, text}
}

// Problems are all that is wrong.
type Problems []Problem

// Error returns one line for each problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].String()
	}
	return strings.Join(lines, "\n")
}

// In reports whether one of p is with the key at path or, if that is a table,
// with one in it.
func (p Problems) In(path string) bool {
	return slices.ContainsFunc(p, func(p Problem) bool {
		rest, ok := strings.CutPrefix(p.Key, path)
		return ok && (rest == "" || rest[0] == '.')
	})
}

// Sort puts problems into the order of the configuration file. Those of other
// files follow.
func (c *Config) Sort(p Problems) {
	slices.SortStableFunc(p, func(a, b Problem) int {
		if a.File != b.File && (a.File == c.file || b.File == c.file) {
			if a.File == c.file {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Key, b.Key))
	})
}
