package settings

import (
	"encoding/json"
	"io/fs"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
)

type sample struct {
	Name     string            `toml:"name"`
	On       bool              `toml:"on"`
	Count    int               `toml:"count"`
	Small    uint8             `toml:"small"`
	Ratio    float64           `toml:"ratio"`
	Timeout  time.Duration     `toml:"timeout"`
	Mode     fs.FileMode       `toml:"mode"`
	Network  netip.Prefix      `toml:"network"`
	Pattern  *regexp.Regexp    `toml:"pattern"`
	Digits   digits            `toml:"digits"`
	Since    time.Time         `toml:"since"`
	Words    []string          `toml:"words"`
	Env      map[string]string `toml:"env"`
	Inner    inner             `toml:"inner"`
	Rows     []inner           `toml:"row"`
	Tables   map[string]inner  `toml:"tables"`
	Open     map[string]any    `toml:"open"`
	Anything any               `toml:"anything"`
	Untagged string
	Ignored  string `toml:"-"`
}

type inner struct {
	Limit int `toml:"limit"`
	Size  int `toml:"size"`
}

func (i *inner) SetDefaults() { i.Limit = 10 }

// digits keeps the text that it is made of.
type digits string

func (d *digits) UnmarshalText(text []byte) error { *d = digits(text); return nil }

const sampleText = `
name = "x"
on = true
count = -3
small = 255
ratio = 2
timeout = "1m30s"
mode = "0640"
network = "192.0.2.0/24"
pattern = "^a+$"
digits = 42
since = 2026-11-21T09:00:00Z
words = ["a", "b"]
env = { A = "1" }
open = { deep = { x = [1, 2] } }
anything = 7

[inner]
size = 1
[[row]]
[[row]]
limit = 5
[tables.t]
size = 2
`

var sampleWanted = sample{
	Name: "x", On: true, Count: -3, Small: 255, Ratio: 2, Timeout: 90 * time.Second, Mode: 0o640,
	Network: netip.MustParsePrefix("192.0.2.0/24"), Pattern: regexp.MustCompile("^a+$"), Digits: "42",
	Since: time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC),
	Words: []string{"a", "b"}, Env: map[string]string{"A": "1"},
	Inner: inner{Limit: 3, Size: 1}, // the default that was set beforehand stays
	Rows:  []inner{{Limit: 10}, {Limit: 5}}, Tables: map[string]inner{"t": {Limit: 10, Size: 2}},
	Untagged: "stays",
}

func decodeTOML(t *testing.T, text string) map[string]any {
	t.Helper()
	values := map[string]any{}
	if _, err := toml.Decode(text, &values); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return values
}

// throughJSON returns values as they look in another process.
func throughJSON(t *testing.T, values map[string]any, useNumber bool) map[string]any {
	t.Helper()
	text, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(strings.NewReader(string(text)))
	if useNumber {
		d.UseNumber()
	}
	out := map[string]any{}
	if err := d.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEveryTypeFromTOMLAndJSON(t *testing.T) {
	values := decodeTOML(t, sampleText)
	for name, values := range map[string]map[string]any{
		"TOML":                   values,
		"JSON":                   throughJSON(t, values, false),
		"JSON with json.Numbers": throughJSON(t, values, true),
	} {
		got := sample{Inner: inner{Limit: 3}, Words: []string{"default", "words", "go"}, Untagged: "stays"}
		if faults := Decode(values, &got); faults != nil {
			t.Errorf("%s: %v", name, faults)
		}
		if want := any(values["open"]); !reflect.DeepEqual(any(got.Open), want) {
			t.Errorf("%s: open is %v, want %v", name, got.Open, want)
		}
		if want := values["anything"]; got.Anything != want {
			t.Errorf("%s: anything is %v, want %v", name, got.Anything, want)
		}
		got.Open, got.Anything = nil, nil
		if !reflect.DeepEqual(got, sampleWanted) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, sampleWanted)
		}
	}
}

func TestFaultSaysWhatIsWantedAndWhatWasFound(t *testing.T) {
	for _, test := range []struct{ text, key, fault string }{
		{`name = 5`, `name`, `want a string, found the number 5`},
		{`name = true`, `name`, `want a string, found true`},
		{`name = 2026-11-21`, `name`, `want a string, found a date or time`},
		{`on = "yes"`, `on`, `want true or false, found the string "yes"`},
		{`count = "5"`, `count`, `want an integer, found the string "5"`},
		{`count = 1.5`, `count`, `want an integer, found the number 1.5`},
		{`count = []`, `count`, `want an integer, found a list`},
		{`small = 256`, `small`, `256 is out of range`},
		{`small = -1`, `small`, `-1 is out of range`},
		{`ratio = "1"`, `ratio`, `want a number, found the string "1"`},
		{`timeout = 30`, `timeout`, `30 has no unit: want a duration such as "30s", "5m" or "1h30m"`},
		{`timeout = "30"`, `timeout`, `want a duration such as "30s", "5m" or "1h30m", found the string "30"`},
		{`timeout = {}`, `timeout`, `want a duration such as "30s", "5m" or "1h30m", found a table`},
		{`mode = 432`, `mode`, `want an octal number in quotes, such as "0660", found the number 432`},
		{`mode = "0980"`, `mode`, `want an octal number in quotes, such as "0660", found the string "0980"`},
		{`mode = "7777"`, `mode`, `want an octal number in quotes, such as "0660", found the string "7777"`},
		{`network = "192.0.2.0"`, `network`, `netip.ParsePrefix("192.0.2.0"): no '/'`},
		{`network = [1]`, `network`, `want a string, found a list`},
		{`digits = 1.5`, `digits`, `want a string, found the number 1.5`},
		{`words = "a"`, `words`, `want a list, found the string "a"`},
		{`words = ["a", 1]`, `words[1]`, `want a string, found the number 1`},
		{`env = { A = 1 }`, `env.A`, `want a string, found the number 1`},
		{`env = { "A B" = 1 }`, `env."A B"`, `want a string, found the number 1`},
		{`env = "A=1"`, `env`, `want a table, found the string "A=1"`},
		{`inner = 1`, `inner`, `want a table, found the number 1`},
		{`row = { limit = 1 }`, `row`, `want a list, found a table`},
		{`row = [{}, { limit = "1" }]`, `row[1].limit`, `want an integer, found the string "1"`},
		{`tables.t.limit = "1"`, `tables.t.limit`, `want an integer, found the string "1"`},
		{`nmae = "x"`, `nmae`, `unknown key; did you mean name?`},
		{`time-out = "x"`, `time-out`, `unknown key; did you mean timeout?`},
		{`inner.limits = 1`, `inner.limits`, `unknown key; did you mean limit?`},
		{`elephant = 1`, `elephant`, `unknown key`},
		{`Untagged = "x"`, `Untagged`, `unknown key`},
		{`"a.b" = 1`, `"a.b"`, `unknown key`},
		{`name = "` + strings.Repeat("long ", 20) + `"` + "\ncount = \"" + strings.Repeat("x", 100) + `"`, `count`,
			`want an integer, found the string "` + strings.Repeat("x", 60) + `"...`},
	} {
		var into sample
		got := Decode(decodeTOML(t, test.text), &into)
		if want := []Fault{{test.key, test.fault}}; !slices.Equal(got, want) {
			t.Errorf("%s\n got %q\nwant %q", test.text, got, want)
		}
	}
}

func TestNullIsNoValue(t *testing.T) {
	var into sample
	got := Decode(map[string]any{"name": nil, "row": []any{nil}, "anything": nil}, &into)
	want := []Fault{{"name", "want a string, found nothing"}, {"row[0]", "want a table, found nothing"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	text := `
name = 1
bogus = 1
count = 7
[[row]]
limit = "x"
size = "y"
[[row]]
limit = 2
weight = 3
`
	var into sample
	got := Decode(decodeTOML(t, text), &into)
	want := []Fault{
		{"name", "want a string, found the number 1"},
		{"row[0].limit", `want an integer, found the string "x"`},
		{"row[0].size", `want an integer, found the string "y"`},
		{"row[1].weight", "unknown key"},
		{"bogus", "unknown key"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if into.Count != 7 || into.Rows[1].Limit != 2 {
		t.Errorf("count %d, limit %d of the second row: want what is right to be set", into.Count, into.Rows[1].Limit)
	}
}
