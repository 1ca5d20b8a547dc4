package gateway

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends/clamav"
	"github.com/mailgw/mailgw/backends/discard"
	"github.com/mailgw/mailgw/backends/dkim"
	"github.com/mailgw/mailgw/backends/exec"
	"github.com/mailgw/mailgw/backends/maildir"
	"github.com/mailgw/mailgw/backends/milter"
	"github.com/mailgw/mailgw/backends/relay"
	"github.com/mailgw/mailgw/backends/rspamd"
	"github.com/mailgw/mailgw/backends/static"
	"github.com/mailgw/mailgw/backends/users"
	"github.com/mailgw/mailgw/backends/webhook"
	"github.com/mailgw/mailgw/internal/settings"
)

// The settings of the plugins that ship. gateway.toml has a backend of the
// name of each.
var shippedDefaults = map[string]any{
	"clamav":  clamav.Defaults,
	"dkim":    dkim.Defaults,
	"discard": discard.Defaults,
	"exec":    exec.Defaults,
	"maildir": maildir.Defaults,
	"milter":  milter.Defaults,
	"relay":   relay.Defaults,
	"rspamd":  rspamd.Defaults,
	"static":  static.Defaults,
	"users":   users.Defaults,
	"webhook": webhook.Defaults,
}

// reference is gateway.toml as it is, and with the keys that are commented out,
// each with its default.
func reference(t *testing.T) (asItIs, full string) {
	t.Helper()
	text, err := os.ReadFile("../gateway.toml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text), regexp.MustCompile(`(?m)^#(\S)`).ReplaceAllString(string(text), "$1")
}

func TestReferenceHasEveryKey(t *testing.T) {
	_, full := reference(t)
	documented := map[string]bool{}
	for path := range settings.FindLines(full) {
		documented[regexp.MustCompile(`\[\d+\]`).ReplaceAllString(path, "")] = true
	}
	want := keysOf("", reflect.TypeFor[Config]())
	for name, defaults := range shippedDefaults {
		want = append(want, keysOf("backend."+name+".settings", reflect.TypeOf(defaults))...)
	}
	for _, key := range want {
		if !documented[key] {
			t.Errorf("%s is not in gateway.toml", key)
		}
	}
}

// keysOf returns the keys of a struct at path, and of the structs in it.
// The keys of all backends are told once, for the backend maildir.
func keysOf(path string, t reflect.Type) (keys []string) {
	for i := range t.NumField() {
		field := t.Field(i)
		key, ok := field.Tag.Lookup("toml")
		if !ok {
			continue
		}
		key = settings.Join(path, key)
		keys = append(keys, key)
		inner := field.Type
		switch inner.Kind() {
		case reflect.Slice:
			inner = inner.Elem()
		case reflect.Map:
			key, inner = settings.Join(key, "maildir"), inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			keys = append(keys, keysOf(key, inner)...)
		}
	}
	return keys
}

// The defaults that gateway.toml tells, commented out, are those of the code:
// the file means the same with them.
func TestReferenceHasTheDefaults(t *testing.T) {
	asItIs, full := reference(t)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "var"), 0o700); err != nil {
		t.Fatal(err)
	}
	implicit, explicit := valuesOfReference(t, dir, asItIs), valuesOfReference(t, dir, full)
	for key, want := range implicit {
		if got := explicit[key]; got != want {
			t.Errorf("%s: gateway.toml tells the default %q, the code has %q", key, got, want)
		}
	}
}

// valuesOfReference returns the values that gateway.toml gives to all keys.
func valuesOfReference(t *testing.T, dir, text string) map[string]string {
	t.Helper()
	c, err := parseConfig(filepath.Join(dir, "gateway.toml"), text, slices.Collect(maps.Keys(shippedDefaults)))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	addValues(all, "", *c)
	for i, l := range c.Listeners {
		addValues(all, fmt.Sprintf("listener[%d]", i), l)
	}
	for name, b := range c.Backends {
		key := "backend." + name
		addValues(all, key, b)
		into := reflect.New(reflect.TypeOf(shippedDefaults[name]))
		into.Elem().Set(reflect.ValueOf(shippedDefaults[name]))
		for _, f := range settings.Decode(b.Settings, into.Interface()) {
			t.Errorf("%s.settings.%s: %s", key, f.Key, f.Text)
		}
		addValues(all, key+".settings", into.Elem().Interface())
	}
	return all
}

// addValues adds the values of a struct at path, as text, in which an empty
// list is the same as none.
func addValues(all map[string]string, path string, in any) {
	for field, value := range reflect.ValueOf(in).Fields() {
		key, ok := field.Tag.Lookup("toml")
		switch key = settings.Join(path, key); {
		case !ok || key == "backend":
		case value.Kind() == reflect.Slice && value.Type().Elem().Kind() == reflect.Struct: // there is none by default
		case strings.HasSuffix(key, ".settings"): // decoded by the plugin
		case value.Kind() == reflect.Struct:
			addValues(all, key, value.Interface())
		default:
			all[key] = fmt.Sprint(value.Interface())
		}
	}
}
