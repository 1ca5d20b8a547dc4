package plugins

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
		}
		return configured{s}, nil
	})
}

func (c configured) Deliver(_ context.Context, tx *backends.DataContext) error {
	tx.SetStatus(0, backends.NewStatus(250, "2.0.0", fmt.Sprintf("%+v", c.testSettings)))
	return nil
}

func (configured) Capabilities() backends.Capabilities { return backends.Capabilities{DSN: true} }

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
	if !h.Capabilities().DSN {
		t.Error("the capabilities are lost")
	}
	if err := h.Close(t.Context()); err != nil {
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
	_, err := Start(t.Context(), c)
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
	} {
		t.Run(path, func(t *testing.T) {
			checkLeaks(t)
			c := command(t, "settings", newGatewayLog())
			c.Settings = map[string]any{"path": path}
			if _, err := Start(t.Context(), c); err == nil || err.Error() != want {
				t.Errorf("got the error %v, want %s", err, want)
			}
		})
	}
}

func TestPluginStartedByHand(t *testing.T) {
	self := command(t, "answers", newGatewayLog())
	p := exec.Command(self.Path, self.Args...)
	var stderr strings.Builder
	p.Stderr = &stderr
	p.Run()
	if code := p.ProcessState.ExitCode(); code != 2 {
		t.Errorf("got the exit code %d, want 2", code)
	}
	for _, text := range []string{"gateway.toml", fmt.Sprintf("plugin = %q\n", self.Path), `args = ["plugin", "answers"]`} {
		if !strings.Contains(stderr.String(), text) {
			t.Errorf("got %q, want %q in it", stderr.String(), text)
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
