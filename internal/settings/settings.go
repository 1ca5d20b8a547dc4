// Package settings decodes trees of TOML or JSON values into structs,
// strictly, and finds the lines of keys in TOML text.
//
// Everything that is wrong comes back at once, as a list of [Fault]s. A
// fault names its key by a path such as
//
//	listener[1].limits.recipients
//	listener[0].routes."*@example.org"
//
// [Lines] uses the same paths, so that whoever has the text can add a line
// number to a fault that somebody else found, be it in another process.
package settings

import (
	"encoding"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Fault is what is wrong with the value of one key.
type Fault struct {
	Key  string // the path of the key
	Text string
}

// Decode sets the fields of the struct that into points to from values, as
// toml.Decode or json.Unmarshal gives them (numbers may be json.Number). It
// returns everything that is wrong; what is right is set nevertheless.
//
// A field takes the key in its `toml` tag, and none without a tag. What is not
// given stays as it is in into, so that defaults are set beforehand; a list
// or a map that is given replaces its default. New structs in lists and maps
// get their SetDefaults called first, if they have that method.
//
// Beyond what is obvious, a time.Duration is a string with units ("30s"), an
// fs.FileMode an octal string ("0660"), and an encoding.TextUnmarshaler a
// string or an integer, whose decimal digits it gets. A type that no value can
// be decoded into is a bug of the caller, and panics.
func Decode(values map[string]any, into any) []Fault {
	var d decoder
	d.structure("", values, reflect.ValueOf(into).Elem())
	return d.faults
}

type decoder struct{ faults []Fault }

func (d *decoder) fault(path, format string, args ...any) {
	d.faults = append(d.faults, Fault{path, fmt.Sprintf(format, args...)})
}

func (d *decoder) wrongType(path, want string, in any) {
	d.fault(path, "want %s, found %s", want, describe(in))
}

func (d *decoder) structure(path string, values map[string]any, into reflect.Value) {
	var known []string
	for i := range into.NumField() {
		key, _, _ := strings.Cut(into.Type().Field(i).Tag.Get("toml"), ",")
		if key == "" || key == "-" {
			continue
		}
		known = append(known, key)
		if v, ok := values[key]; ok {
			d.value(Join(path, key), v, into.Field(i))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(known, key) {
			d.fault(Join(path, key), "unknown key%s", DidYouMean(key, known))
		}
	}
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	fileModeType = reflect.TypeFor[fs.FileMode]()
)

func (d *decoder) value(path string, in any, into reflect.Value) {
	if u, ok := into.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.text(path, in, u)
		return
	}
	switch into.Type() {
	case durationType:
		d.duration(path, in, into)
		return
	case fileModeType:
		d.fileMode(path, in, into)
		return
	}
	switch into.Kind() {
	case reflect.Pointer:
		into.Set(newValue(into.Type().Elem()).Addr())
		d.value(path, in, into.Elem())
	case reflect.Struct:
		if values, ok := in.(map[string]any); ok {
			d.structure(path, values, into)
		} else {
			d.wrongType(path, "a table", in)
		}
	case reflect.Slice:
		d.list(path, in, into)
	case reflect.Map:
		d.mapping(path, in, into)
	case reflect.Interface:
		if in != nil {
			into.Set(reflect.ValueOf(in))
		}
	default:
		d.scalar(path, in, into)
	}
}

// newValue returns a settable T that has its defaults.
func newValue(t reflect.Type) reflect.Value {
	v := reflect.New(t)
	if s, ok := v.Interface().(interface{ SetDefaults() }); ok {
		s.SetDefaults()
	}
	return v.Elem()
}

func (d *decoder) list(path string, in any, into reflect.Value) {
	values := reflect.ValueOf(in)
	if values.Kind() != reflect.Slice {
		d.wrongType(path, "a list", in)
		return
	}
	into.Set(reflect.MakeSlice(into.Type(), 0, values.Len()))
	for i := range values.Len() {
		element := newValue(into.Type().Elem())
		d.value(fmt.Sprintf("%s[%d]", path, i), values.Index(i).Interface(), element)
		into.Set(reflect.Append(into, element))
	}
}

func (d *decoder) mapping(path string, in any, into reflect.Value) {
	values, ok := in.(map[string]any)
	if !ok {
		d.wrongType(path, "a table", in)
		return
	}
	into.Set(reflect.MakeMap(into.Type()))
	for _, key := range slices.Sorted(maps.Keys(values)) {
		element := newValue(into.Type().Elem())
		d.value(Join(path, key), values[key], element)
		into.SetMapIndex(reflect.ValueOf(key).Convert(into.Type().Key()), element)
	}
}

func (d *decoder) text(path string, in any, into encoding.TextUnmarshaler) {
	text, ok := in.(string)
	if n, isInteger := integer(in); isInteger {
		text, ok = strconv.FormatInt(n, 10), true
	}
	if t, isTime := in.(time.Time); isTime {
		text, ok = t.Format(time.RFC3339Nano), true
	}
	if !ok {
		d.wrongType(path, "a string", in)
		return
	}
	if err := into.UnmarshalText([]byte(text)); err != nil {
		d.fault(path, "%v", err)
	}
}

func (d *decoder) duration(path string, in any, into reflect.Value) {
	const want = `a duration such as "30s", "5m" or "1h30m"`
	text, ok := in.(string)
	if _, isNumber := float(in); isNumber {
		d.fault(path, "%v has no unit: want %s", in, want)
		return
	}
	if !ok {
		d.wrongType(path, want, in)
		return
	}
	v, err := time.ParseDuration(text)
	if err != nil {
		d.wrongType(path, want, in)
		return
	}
	into.SetInt(int64(v))
}

func (d *decoder) fileMode(path string, in any, into reflect.Value) {
	text, _ := in.(string)
	mode, err := strconv.ParseUint(text, 8, 32)
	if err != nil || mode > 0o777 {
		d.wrongType(path, `an octal number in quotes, such as "0660"`, in)
		return
	}
	into.SetUint(mode)
}

func (d *decoder) scalar(path string, in any, into reflect.Value) {
	switch kind := into.Kind(); {
	case kind == reflect.String:
		if s, ok := in.(string); ok {
			into.SetString(s)
		} else {
			d.wrongType(path, "a string", in)
		}
	case kind == reflect.Bool:
		if b, ok := in.(bool); ok {
			into.SetBool(b)
		} else {
			d.wrongType(path, "true or false", in)
		}
	case into.CanInt():
		if n, ok := integer(in); !ok {
			d.wrongType(path, "an integer", in)
		} else if into.OverflowInt(n) {
			d.fault(path, "%d is out of range", n)
		} else {
			into.SetInt(n)
		}
	case into.CanUint():
		if n, ok := integer(in); !ok {
			d.wrongType(path, "an integer", in)
		} else if n < 0 || into.OverflowUint(uint64(n)) {
			d.fault(path, "%d is out of range", n)
		} else {
			into.SetUint(uint64(n))
		}
	case into.CanFloat():
		if f, ok := float(in); ok {
			into.SetFloat(f)
		} else {
			d.wrongType(path, "a number", in)
		}
	default:
		panic(fmt.Sprintf("settings: %s: no value can be decoded into %s", path, into.Type()))
	}
}

// integer returns in as an integer, if it is one. JSON knows no integers, so
// a float64 without a fraction is one too.
func integer(in any) (n int64, ok bool) {
	switch v := in.(type) {
	case float64:
		return int64(v), v == math.Trunc(v) && math.Abs(v) < 1<<63
	case json.Number:
		n, err := v.Int64()
		return n, err == nil
	}
	if v := reflect.ValueOf(in); v.CanInt() {
		return v.Int(), true
	}
	return 0, false
}

func float(in any) (f float64, ok bool) {
	switch v := in.(type) {
	case float64:
		return v, true
	case json.Number:
		f, err := v.Float64()
		return f, err == nil
	}
	n, ok := integer(in)
	return float64(n), ok
}

// describe names a value in a fault.
func describe(in any) string {
	const longest = 60
	if s, ok := in.(string); ok {
		if len(s) > longest {
			return fmt.Sprintf("the string %.*q...", longest, s)
		}
		return fmt.Sprintf("the string %q", s)
	}
	if _, ok := float(in); ok {
		return fmt.Sprintf("the number %v", in)
	}
	switch v := in.(type) {
	case nil:
		return "nothing"
	case bool:
		return strconv.FormatBool(v)
	case time.Time:
		return "a date or time"
	case map[string]any:
		return "a table"
	}
	return "a list"
}
