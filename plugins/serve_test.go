package plugins

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/settings"
)

type testSettings struct {
	Path  string        `toml:"path"`
	Wait  time.Duration `toml:"wait"`
	Count int64         `toml:"count"`
	Rules []struct {
		To string `toml:"to"`
	} `toml:"rules"`
}

// configured is a backend that answers with its settings, and leaves a file
// when it is closed.
type configured struct{ testSettings }

func serveSettings() {
	Serve(testSettings{Wait: time.Minute, Path: "default"}, func(s testSettings) (backends.Backend, error) {
		switch s.Path {
		case "bad":
			return nil, errors.New("path is bad\xff")
		case "panic":
			panic("a bug")
		case "exit":
			fmt.Fprintln(os.Stderr, "giving up")
			os.Exit(4)
		case "nil":
			return nil, nil
		case "hang":
			hang()
		}
		return configured{s}, nil
	})
}

func (c configured) Deliver(_ context.Context, tx *backends.DataContext) error {
	tx.SetStatus(0, backends.NewStatus(250, "2.0.0", fmt.Sprintf("%+v", c.testSettings)))
	return nil
}

func (configured) Capabilities() backends.Capabilities {
	return backends.Capabilities{RequireTLS: true}
}

func (c configured) Close() error { return os.WriteFile(c.Path, []byte("closed"), 0o600) }

func TestSettingsReachThePlugin(t *testing.T) {
	file := filepath.Join(t.TempDir(), "closed")
	c := command(t, "settings", newGatewayLog())
	c.Settings = map[string]any{
		"path":  file,
		"count": int64(1)<<53 + 1, // no float64
		"rules": []map[string]any{{"to": "a"}, {"to": "b"}},
	}
	h := runCommand(t, c, defaultTimes)
	o := deliver(t.Context(), h, message("", "one"))
	want := fmt.Sprintf("{Path:%s Wait:1m0s Count:9007199254740993 Rules:[{To:a} {To:b}]}", file)
	if got := o.statuses[0].Text; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if h.Capabilities() != (backends.Capabilities{RequireTLS: true}) {
		t.Error("the capabilities are lost")
	}
	if err := closeHost(t, t.Context(), h); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(file); string(text) != "closed" {
		t.Error("the backend was not closed")
	}
}

func TestFaultsOfSettings(t *testing.T) {
	checkLeaks(t)
	c := command(t, "settings", newGatewayLog())
	c.Settings = map[string]any{"rules": []map[string]any{{"to": "a"}, {"too": "b", "to": 5}}, "wait": 3}
	_, err := startHost(t, t.Context(), c, defaultTimes)
	var e SettingsError
	if !errors.As(err, &e) {
		t.Fatalf("got the error %v, want a SettingsError", err)
	}
	keys := func(f settings.Fault) string { return f.Key }
	var got []string
	for _, f := range e.Faults {
		got = append(got, keys(f))
	}
	slices.Sort(got)
	if want := []string{"rules[1].to", "rules[1].too", "wait"}; !slices.Equal(got, want) {
		t.Errorf("got faults of %v, want %v", got, want)
	}
	if text := err.Error(); !strings.Contains(text, "rules[1].too: unknown key") {
		t.Errorf("got the text %q", text)
	}
}

func TestBackendThatCannotBeOpened(t *testing.T) {
	for path, want := range map[string]string{
		"bad":   "backend settings: path is bad?",
		"panic": "backend settings: panic: a bug",
		"nil":   "backend settings: there is no backend",
		"exit":  `backend settings: ended at its start: exit status 4; it wrote: ["giving up"]`,
		"hang":  "backend settings: it has not taken its settings within 3s",
	} {
		t.Run(path, func(t *testing.T) {
			checkLeaks(t)
			c := command(t, "settings", newGatewayLog())
			c.Settings = map[string]any{"path": path}
			times := defaultTimes
			if path == "hang" {
				times.configure = 3 * time.Second
			}
			if _, err := startHost(t, t.Context(), c, times); err == nil || err.Error() != want {
				t.Errorf("got the error %v, want %s", err, want)
			}
		})
	}
}

func TestPluginStartedByHand(t *testing.T) {
	self := command(t, "answers", newGatewayLog())
	p := program(t, self)
	var stderr strings.Builder
	p.Stderr = &stderr
	p.Run()
	if code := p.ProcessState.ExitCode(); code != 64 {
		t.Errorf("got the exit code %d, want 64", code)
	}
	for _, text := range []string{"gateway.toml", "plugin = \"answers\"\n"} {
		if !strings.Contains(stderr.String(), text) {
			t.Errorf("got %q, want %q in it", stderr.String(), text)
		}
	}
	if got, want := manual([]string{"./p", "-v"}), fmt.Sprintf("plugin = %q\n", self.Path); !strings.Contains(got, want) {
		t.Errorf("got %q, want %q in it", got, want)
	}
}

func TestServeThatCannotListen(t *testing.T) {
	self := command(t, "answers", newGatewayLog())
	p := program(t, self)
	p.Env = []string{"MAILGW_PLUGIN=mailgw.plugin.v1", "PLUGIN_PROTOCOL_VERSIONS=1", "PLUGIN_UNIX_SOCKET_DIR=/nonexistent"}
	output, _ := p.CombinedOutput()
	if code := p.ProcessState.ExitCode(); code != 1 || !strings.Contains(string(output), "/nonexistent") {
		t.Errorf("got the exit code %d and %q", code, output)
	}
}

func TestNumbersThatCannotCross(t *testing.T) {
	c := command(t, "settings", newGatewayLog())
	c.Settings = map[string]any{"a": 1.5, "rules": []any{map[string]any{"to": math.Inf(-1)}}, "list": []map[string]any{{"x.y": math.NaN()}}}
	_, err := startHost(t, t.Context(), c, defaultTimes)
	var e SettingsError
	if !errors.As(err, &e) || len(e.Faults) != 2 {
		t.Fatalf("got the error %v, want two faults", err)
	}
	for _, text := range []string{"rules[0].to: want a finite number, found -Inf", `list[0]."x.y": want a finite number, found NaN`} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("got %q, want %q in it", err, text)
		}
	}
}

func TestFieldsWithoutTags(t *testing.T) {
	type inner struct {
		Tagged string `toml:"tagged"`
		To     string
	}
	for _, test := range []struct {
		settings any
		want     string
	}{
		{testSettings{}, ""},
		{struct {
			internal int
			Skipped  int       `toml:"-"`
			At       time.Time `toml:"at"`
		}{}, ""},
		{struct{ Name string }{}, "Name"},
		{struct {
			Rules map[string][]*inner `toml:"rules"`
		}{}, "Rules.To"},
	} {
		if got := untagged(reflect.TypeOf(test.settings)); got != test.want {
			t.Errorf("%T: got %q, want %q", test.settings, got, test.want)
		}
	}
}

// What open finds wrong with settings has its keys, but only if that is all
// that is wrong.
func TestSettingErrorsBecomeFaults(t *testing.T) {
	a := backends.SettingError{Key: "a", Err: errors.New("is odd")}
	b := backends.SettingError{Key: "b[0].c", Err: errors.New("is even")}
	other := errors.New("no license")
	for _, test := range []struct {
		err  error
		want []settings.Fault
	}{
		{nil, nil},
		{other, nil},
		{a, []settings.Fault{{Key: "a", Text: "is odd"}}},
		{errors.Join(a, errors.Join(b)), []settings.Fault{{Key: "a", Text: "is odd"}, {Key: "b[0].c", Text: "is even"}}},
		{errors.Join(a, other), nil},
	} {
		if got, ok := settingFaults(test.err); !slices.Equal(got, test.want) || ok != (test.want != nil) {
			t.Errorf("%v: got %v, %v, want %v", test.err, got, ok, test.want)
		}
	}
}
