package plugintest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/backendtest"
	"github.com/mailgw/mailgw/plugins"
)

// The test binary is a plugin if it is run as "plugin NAME".
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "plugin" {
		testPlugins[os.Args[2]]()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// take takes the message for all recipients.
func take(ctx context.Context, tx *backends.DataContext) error {
	if _, err := io.Copy(io.Discard, tx.Body); err != nil {
		return err
	}
	if ctx.Err() == nil {
		tx.SetAll(backends.Delivered)
	}
	return ctx.Err()
}

type settings struct {
	Name string `toml:"name"`
}

func serve(b backends.Backend) {
	plugins.Serve(settings{}, func(settings) (backends.Backend, error) { return b, nil })
}

// before serves a plugin that does something before it takes a message.
func before(f func()) {
	serve(backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
		f()
		return take(ctx, tx)
	}))
}

// A hanging backend never ends.
type hanging struct{ backends.Func }

func (hanging) Close() error { select {} }

// testPlugins are programs, most of which break one promise.
var testPlugins = map[string]func(){
	"good":      func() { serve(backends.Func(take)) },
	"no plugin": func() { fmt.Println("hello") },
	"lives on":  func() { os.Unsetenv("MAILGW_LIFELINE"); serve(backends.Func(take)) },
	"hangs at its end": func() {
		serve(hanging{take})
	},
	"heeds SIGTERM": func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM)
		go func() { <-signals; os.Exit(1) }()
		serve(backends.Func(take))
	},
	"leaks files": func() {
		before(func() {
			if f, err := os.Open("/dev/null"); err == nil {
				leaked = append(leaked, f)
			}
		})
	},
	"leaves a process": func() {
		before(func() {
			child := exec.Command("/bin/sleep", "600")
			child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			child.Env = []string{markName + "=" + os.Getenv(markName)} // the gateway knows it by the rest
			child.Start()
		})
	},
	"one at a time": func() {
		var mu sync.Mutex
		serve(backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			mu.Lock()
			defer mu.Unlock()
			return take(ctx, tx)
		}))
	},
	"stops when it is busy": func() {
		var busy atomic.Int32
		serve(backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			defer busy.Add(-1)
			if busy.Add(1) == 40 {
				syscall.Kill(os.Getpid(), syscall.SIGSTOP)
			}
			return take(ctx, tx)
		}))
	},
	"ends with a client that gives up": func() {
		serve(backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			if err := take(ctx, tx); err != nil {
				os.Exit(3)
			}
			return nil
		}))
	},
	"takes what it cannot read": func() {
		serve(backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			io.Copy(io.Discard, tx.Body)
			tx.SetAll(backends.Delivered)
			return nil
		}))
	},
	"answers for nobody": func() {
		serve(backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			tx.SetStatus(99, backends.Delivered)
			return take(ctx, tx)
		}))
	},
	"answers too late": func() {
		serve(backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			late := func() { tx.SetStatus(0, backends.Delivered) }
			if tx.ID == "null-sender" {
				time.AfterFunc(time.Millisecond, late)
				return nil
			}
			return take(ctx, tx)
		}))
	},
	"leaks threads": func() {
		before(func() {
			locked := make(chan bool)
			go func() {
				runtime.LockOSThread()
				close(locked)
				select {}
			}()
			<-locked
		})
	},
	"crashes": func() {
		before(func() {
			fmt.Fprintln(os.Stderr, "out of paper")
			os.Exit(3)
		})
	},
	"ends by itself": func() {
		serve(backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			if tx.ID == "one-recipient" {
				time.AfterFunc(time.Millisecond, func() { os.Exit(3) })
			}
			return take(ctx, tx)
		}))
	},
	"answers anything": func() {
		// A call of which the plugin reads nothing.
		serve(backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
			tx.SetAll(backends.NoSuchUser)
			return nil
		}))
	},
}

var leaked []*os.File

func command(t *testing.T, name string) plugins.Command {
	t.Helper()
	return plugins.Command{
		Name: name, Path: "/proc/self/exe", Args: []string{"plugin", name},
		Env: map[string]string{"GORACE": "atexit_sleep_ms=0"},
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

func TestGoodPluginPasses(t *testing.T) {
	var names []string
	o := backendtest.Options{Final: true, Report: func(check string, err error) { names = append(names, check) }}
	if err := Test(t.Context(), command(t, "good"), o); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"start", "one recipient", "all at once", "end with the gateway", "nothing is left of it"} {
		if !slices.Contains(names, want) {
			t.Errorf("no check %q in %q", want, names)
		}
	}
}

// Plugins that break one promise each, the check that finds it, and a part of
// the fault.
func TestBrokenPromisesAreFound(t *testing.T) {
	tests := []struct {
		plugin string
		check  func(*tester) error
		fault  string
	}{
		{"no plugin", (*tester).testStart, "is it a mailgw plugin?"},
		{"lives on", (*tester).testLifeline, "it lives on 1s after the end of file of MAILGW_LIFELINE"},
		{"hangs at its end", (*tester).testStart, `it ended with "signal: killed"`},
		{"hangs at its end", (*tester).testDrain, `it ended with "signal: killed"`},
		{"heeds SIGTERM", (*tester).testSignals, "SIGTERM, SIGINT and SIGHUP: "},
		{"leaks files", (*tester).testOpenFiles, "100 transactions"},
		{"one at a time", (*tester).testHealth, "one of 50 transactions"},
		{"stops when it is busy", (*tester).testHealth, "50 transactions"},
		{"ends with a client that gives up", (*tester).testGarbage, "exit status 3"},
		{"answers anything", (*tester).testLaterVersions, "recipient 0: 550"},
		{"takes what it cannot read", (*tester).testBreakOff, "although the rest of the message cannot be had"},
		{"answers for nobody", contractAnd((*tester).testIgnored), "recipient 99: there is no such recipient"},
		{"answers too late", contractAnd((*tester).testIgnored), "transaction null-sender: recipient 0: Deliver had returned"},
		{"leaks threads", (*tester).testOpenFiles, "threads before 100 transactions"},
		{"crashes", contractAnd((*tester).testIgnored), "has ended: exit status 3; its last words:\n  out of paper"},
		{"ends by itself", contractAnd((*tester).testIgnored), "exit status 3"},
		{"leaves a process", func(t *tester) error { return errors.Join(t.testSignals(), t.testLeftovers()) }, "processes: "},
	}
	for _, tt := range tests {
		t.Run(tt.plugin, func(t *testing.T) {
			tester := newTester(t.Context(), command(t, tt.plugin), backendtest.Options{Patience: time.Second})
			t.Cleanup(func() { tester.killAll() })
			if err := tt.check(tester); err == nil || !strings.Contains(err.Error(), tt.fault) {
				t.Errorf("got %v\nwant %s", err, tt.fault)
			}
		})
	}
}

// contractAnd makes the checks of any backend, and then one more.
func contractAnd(check func(*tester) error) func(*tester) error {
	return func(t *tester) error {
		t.testContract()
		return errors.Join(append(t.faults, check(t))...)
	}
}

// A plugin that crashes each time is not tried for ever.
func TestCrashesEndTheTest(t *testing.T) {
	var failed []string
	o := backendtest.Options{Report: func(check string, err error) {
		if err != nil {
			failed = append(failed, check)
		}
	}}
	err := Test(t.Context(), command(t, "crashes"), o)
	want := []string{"one recipient", "many recipients", "the same recipient twice"}
	if !errors.Is(err, backendtest.ErrGaveUp) || !slices.Equal(failed, want) {
		t.Errorf("failed %q, want %q; %v", failed, want, err)
	}
}

// killAll ends what a plugin has left behind.
func (t *tester) killAll() {
	for _, process := range t.processes() {
		var pid int
		fmt.Sscan(process, &pid)
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

func TestBadSettings(t *testing.T) {
	c := command(t, "good")
	c.Settings = map[string]any{"nmae": "x"}
	err := Test(t.Context(), c, backendtest.Options{})
	if faults, ok := errors.AsType[plugins.SettingsError](err); !ok || len(faults.Faults) != 1 {
		t.Errorf("got %v, want a fault of the settings", err)
	}
}
