package gateway

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/settings"
)

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

func parseReference(t *testing.T, dir, text string) *Config {
	t.Helper()
	c, err := parseConfig(filepath.Join(dir, "gateway.toml"), text, []string{"discard", "maildir", "static"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestReferenceHasEveryKey(t *testing.T) {
	_, full := reference(t)
	documented := map[string]bool{}
	index, backend := regexp.MustCompile(`\[\d+\]`), regexp.MustCompile(`^backend\.[^.]+`)
	for path := range settings.FindLines(full) {
		documented[backend.ReplaceAllString(index.ReplaceAllString(path, ""), "backend")] = true
	}
	for _, key := range keysOf(reflect.TypeFor[Config]()) {
		if !documented[key] {
			t.Errorf("%s is not in gateway.toml", key)
		}
	}
}

// keysOf returns the keys of a struct, with those of the structs in it.
func keysOf(t reflect.Type) (keys []string) {
	for i := range t.NumField() {
		field := t.Field(i)
		key, ok := field.Tag.Lookup("toml")
		if !ok {
			continue
		}
		keys = append(keys, key)
		inner := field.Type
		if inner.Kind() == reflect.Slice || inner.Kind() == reflect.Map {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			for _, k := range keysOf(inner) {
				keys = append(keys, key+"."+k)
			}
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
	implicit, explicit := parseReference(t, dir, asItIs), parseReference(t, dir, full)
	if len(implicit.Listeners) != len(explicit.Listeners) {
		t.Fatal("a listener is commented out")
	}
	compare := func(key string, one, other any) {
		got, want := values(key, one), values(key, other)
		for key, value := range want {
			if got[key] != value {
				t.Errorf("%s: gateway.toml tells the default %s, the code has %s", key, got[key], value)
			}
		}
	}
	for i := range implicit.Listeners {
		compare("listener", explicit.Listeners[i], implicit.Listeners[i])
	}
	for name := range implicit.Backends {
		compare("backend", explicit.Backends[name], implicit.Backends[name])
	}
	implicit.Listeners, implicit.Backends = nil, nil
	explicit.Listeners, explicit.Backends = nil, nil
	compare("", *explicit, *implicit)
}

// values returns the values of a struct by their keys, as text, in which an
// empty list is the same as none.
func values(path string, in any) map[string]string {
	all := map[string]string{}
	for field, value := range reflect.ValueOf(in).Fields() {
		key, ok := field.Tag.Lookup("toml")
		if !ok {
			continue
		}
		key = strings.TrimPrefix(path+"."+key, ".")
		if value.Kind() == reflect.Struct {
			for k, v := range values(key, value.Interface()) {
				all[k] = v
			}
		} else {
			all[key] = fmt.Sprint(value.Interface())
		}
	}
	return all
}
