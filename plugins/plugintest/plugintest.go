// Package plugintest tests whether a program is a plugin that the gateway can
// work with, whatever language it is written in. It runs the checks of
// [backendtest] across the border, and then those that concern a process: its
// start and its end, signals, health checks, garbage, crashes. A test of a
// plugin says
//
//	c := plugins.Command{Path: "./my-plugin", Settings: map[string]any{...}}
//	if err := plugintest.Test(t.Context(), c, backendtest.Options{}); err != nil {
//		t.Fatal(err)
//	}
//
// and mailgw test-plugin does the same from the command line.
package plugintest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/backendtest"
	"github.com/mailgw/mailgw/plugins"
)

// Test starts the program several times, and returns everything that is wrong
// with it, or nil. It wraps [backendtest.ErrGaveUp] if it has not made all checks: the
// program does not return from a call, or crashes again and again. It wraps a [plugins.SettingsError] if the plugin does not take
// c.Settings. Options.Recipients are those of the transactions of all checks; as
// Options.Patience 10 seconds are enough for most plugins.
func Test(ctx context.Context, c plugins.Command, o backendtest.Options) error {
	t := newTester(ctx, c, o)
	if t.check("start", t.testStart) && t.testContract() {
		for _, check := range checks {
			t.check(check.name, func() error { return check.test(t) })
		}
	}
	t.check("nothing is left of it", t.testLeftovers)
	return errors.Join(t.faults...)
}

// checks are those of a plugin that starts.
var checks = []struct {
	name string
	test func(*tester) error
}{
	{"open files and threads", (*tester).testOpenFiles},
	{"end with the gateway", (*tester).testLifeline},
	{"signals", (*tester).testSignals},
	{"health check while it is busy", (*tester).testHealth},
	{"what later versions may send", (*tester).testLaterVersions},
	{"garbage", (*tester).testGarbage},
	{"call that ends before its message", (*tester).testBreakOff},
	{"killed in a transaction", (*tester).testKilled},
	{"killed after its first answer", (*tester).testKilledAfterAnswer},
	{"end while a transaction is under way", (*tester).testDrain},
	{"answers that do not count", (*tester).testIgnored}, // after all others
}

// A tester tests one program.
type tester struct {
	backendtest.Options
	ctx     context.Context
	command plugins.Command
	events  *events
	mark    string // in the environment of all that the program starts
	faults  []error
}

func newTester(ctx context.Context, c plugins.Command, o backendtest.Options) *tester {
	if len(o.Recipients) == 0 {
		o.Recipients = []string{"one@example.org", "two@example.org"}
	}
	if o.Patience == 0 {
		o.Patience = 10 * time.Second
	}
	t := &tester{Options: o, ctx: ctx, command: c, events: &events{}, mark: rand.Text()}
	t.command.Env = map[string]string{markName: t.mark}
	maps.Copy(t.command.Env, c.Env)
	t.command.Log = t.events.logger(c.Log)
	t.command.Instances = 1
	return t
}

// check makes one check, reports it, and tells whether all is well.
func (t *tester) check(name string, test func() error) bool {
	err := test()
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
		t.faults = append(t.faults, err)
	}
	if t.Report != nil {
		t.Report(name, err)
	}
	return err == nil
}

// testContract tests what any backend promises, and reports whether there is sense
// in going on.
func (t *tester) testContract() bool {
	before := t.events.count("exited")
	h, err := plugins.Start(t.ctx, t.command)
	if err != nil {
		return t.check("start again", func() error { return err })
	}
	o := t.Options
	o.Remote = true
	err = backendtest.Test(h, o)
	t.faults = append(t.faults, err)
	t.close(h)
	if errors.Is(err, backendtest.ErrGaveUp) {
		return false
	}
	if _, told := errors.AsType[*backends.CrashError](err); !told {
		t.check("no end of its own", func() error {
			if e, ended := t.events.find("exited", before+1); ended {
				return fmt.Errorf("%s; its last words: %q", e.how, e.output)
			}
			return nil
		})
	}
	return true
}

// testIgnored looks for answers that the program has kept back, and has logged:
// see docs/protocol.md.
func (t *tester) testIgnored() error {
	var all []error
	for _, answer := range t.events.ignoredAnswers() {
		all = append(all, errors.New(answer))
	}
	return errors.Join(all...)
}

// close stops a plugin that has nothing to finish.
func (t *tester) close(h *plugins.Host) error {
	ctx, cancel := context.WithTimeout(t.ctx, t.Patience)
	defer cancel()
	return h.Close(ctx)
}
