// Package backendtest tests whether a backend keeps the promises of package
// backends, as testing/fstest does for file systems. A test of a backend says
//
//	if err := backendtest.Test(b, backendtest.Options{}); err != nil {
//		t.Fatal(err)
//	}
//
// beside its own tests of what becomes of the messages, which no stranger to
// the backend can see. With -race it finds data races too.
package backendtest

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// Options tell what is to be expected of a backend. The zero Options are for
// one that reads every message and takes mail for example.org.
type Options struct {
	// Recipients are addresses that the backend takes while nothing is
	// wrong: it answers 2yz or passes them on to the next backend, and does
	// not refuse the first of them when it is asked. If there are none, they
	// are one@example.org and two@example.org.
	Recipients []string

	// Final says that the backend decides or diverts every recipient, passes
	// none on and adds none, so that it can be the last of a route.
	Final bool

	// IgnoresMessage says that the backend decides without the message. Any
	// other one must not answer 2yz before it has read the message to its
	// end.
	IgnoresMessage bool

	// Remote says that the backend is in another process: goroutines here are
	// not its own, and are not counted.
	Remote bool

	// Patience is how long the backend may take over a transaction or a
	// question, and over ending what it left running. Zero is 10 seconds.
	Patience time.Duration

	// Report is called at the end of each check with its name, and with what
	// is wrong or nil. It may be nil. Once Test has given up, no further
	// checks are made.
	Report func(check string, err error)
}

// ErrGaveUp is wrapped in what Test returns if checks were not made, because a
// call did not return, or because the process of the backend has ended three
// times.
var ErrGaveUp = errors.New("the other checks were not made")

// A RefusedError is wrapped in what Test returns if the backend refuses an address
// of Options.Recipients in a plain transaction. Most other faults come of that.
type RefusedError struct {
	Address string
	Status  backends.Status
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("the backend refuses %s with %q, but is to take it: see Options.Recipients", e.Address, e.Status.Error())
}

// maxCrashes is how many times the process of a backend may end.
const maxCrashes = 3

// Test gives b transactions of many kinds, one by one and all at once, and
// asks it what it can be asked. It returns everything that is wrong with its
// answers, or nil. It counts goroutines, so no other test may run beside it.
// The ID of a transaction is the name of its kind: "many-recipients".
func Test(b backends.Backend, o Options) error {
	if len(o.Recipients) == 0 {
		o.Recipients = []string{"one@example.org", "two@example.org"}
	}
	if o.Patience == 0 {
		o.Patience = 10 * time.Second
	}
	t := &tester{Options: o, backend: b}
	for _, tr := range transactions {
		t.check(tr.name, func() { t.run(tr.name, tr) })
	}
	for _, about := range t.topics() {
		t.check(nameOf(about), func() { t.ask(about) })
	}
	if t.since(0) == nil {
		t.check("all at once", t.testAllAtOnce)
	}
	if !t.Remote {
		t.check("goroutines", t.testGoroutines)
	}
	all := []error{t.since(0)}
	if t.refused != nil {
		all = append(all, t.refused)
	}
	if t.gaveUp() {
		all = append(all, ErrGaveUp)
	}
	return errors.Join(all...)
}

// A tester gathers the faults of one backend.
type tester struct {
	Options
	backend backends.Backend

	mu      sync.Mutex
	faults  []error
	over    bool // it would be so again and again
	crashes int
	refused *RefusedError // the first one
}

// check makes one check and reports what it has found.
func (t *tester) check(name string, f func()) {
	if t.gaveUp() {
		return
	}
	t.mu.Lock()
	before := len(t.faults)
	t.mu.Unlock()
	f()
	if t.Report != nil {
		t.Report(name, t.since(before))
	}
}

// since returns the faults after the first n.
func (t *tester) since(n int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return errors.Join(t.faults[n:]...)
}

// faultf notes a fault. The same one is noted once only.
func (t *tester) faultf(format string, args ...any) {
	fault := fmt.Errorf(format, args...)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.ContainsFunc(t.faults, func(f error) bool { return f.Error() == fault.Error() }) {
		t.faults = append(t.faults, fault)
	}
}

// crashed reports whether err tells of the end of the process, which is a fault
// whatever the trouble is. After too many of them it gives up.
func (t *tester) crashed(name string, err error) bool {
	crash, ok := errors.AsType[*backends.CrashError](err)
	if !ok {
		return false
	}
	words := ""
	if len(crash.Output) > 0 {
		words = "; its last words:\n  " + strings.Join(crash.Output, "\n  ")
	}
	t.faultf("%s: %w%s", name, crash, words)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.crashes++
	t.over = t.over || t.crashes >= maxCrashes
	return true
}

// A transaction is one kind of transaction that a backend is given.
type transaction struct {
	name       string
	sender     string
	recipients int  // how many
	same       bool // all of them the same address
	message    message
	trouble    trouble
}

// Trouble is what goes wrong in a transaction.
type trouble int

const (
	noTrouble    trouble = iota
	unreadable           // the first Read fails
	breaksOff            // a Read half-way fails
	overAtStart          // the context is over when Deliver is called
	overAndStuck         // the context ends half-way, and nothing more can be read
	overMidway           // the context ends half-way, and the message can be read to its end
)

// id is the ID of such transactions.
func (tr transaction) id() string { return strings.ReplaceAll(tr.name, " ", "-") }

var transactions = []transaction{
	{name: "one recipient", sender: "sender@example.net", recipients: 1, message: plain},
	{name: "many recipients", sender: "sender@example.net", recipients: 25, message: plain},
	{name: "the same recipient twice", sender: "sender@example.net", recipients: 2, same: true, message: plain},
	{name: "null sender", recipients: 1, message: plain},
	{name: "empty message", sender: "sender@example.net", recipients: 1, message: empty},
	{name: "message without a line end at its end", sender: "sender@example.net", recipients: 1, message: unfinished},
	{name: "message of all octets", sender: "sender@example.net", recipients: 1, message: binary},
	{name: "large message", sender: "sender@example.net", recipients: 2, message: large},
	{name: "message that cannot be read", sender: "sender@example.net", recipients: 2, message: plain, trouble: unreadable},
	{name: "message that breaks off", sender: "sender@example.net", recipients: 2, message: plain, trouble: breaksOff},
	{name: "large message that breaks off", sender: "sender@example.net", recipients: 2, message: large, trouble: breaksOff},
	{name: "context over at the start", sender: "sender@example.net", recipients: 2, message: plain, trouble: overAtStart},
	{name: "context over while a read waits", sender: "sender@example.net", recipients: 2, message: large, trouble: overAndStuck},
	{name: "context over half-way", sender: "sender@example.net", recipients: 2, message: plain, trouble: overMidway},
	{name: "context over half-way in a large message", sender: "sender@example.net", recipients: 2, message: large, trouble: overMidway},
}

// testAllAtOnce runs two of every kind at the same time, and asks besides.
func (t *tester) testAllAtOnce() {
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(t.askAll)
		for _, tr := range transactions {
			wg.Go(func() { t.run("all at once: "+tr.name, tr) })
		}
	}
	wg.Wait()
}

// testGoroutines finds goroutines that outlive their transactions. A backend
// may keep some for itself, but not one more for every transaction.
func (t *tester) testGoroutines() {
	const rounds, tolerance = 10, 5
	before := runtime.NumGoroutine()
	for range rounds {
		for _, tr := range transactions {
			if tr.message != large {
				t.run(tr.name, tr)
			}
		}
		t.askAll()
	}
	if t.gaveUp() {
		return
	}
	// The end of a goroutine tells nobody, so ask again and again.
	more := runtime.NumGoroutine() - before
	for end := time.Now().Add(t.Patience); more > tolerance && time.Now().Before(end); {
		<-time.After(time.Millisecond)
		more = runtime.NumGoroutine() - before
	}
	if more > tolerance {
		t.faultf("goroutines: %d more after %d transactions of each kind:\n%s", more, rounds, commonStacks())
	}
}

// commonStacks returns the stacks that the most goroutines have.
func commonStacks() string {
	const enough = 2000
	var b bytes.Buffer
	pprof.Lookup("goroutine").WriteTo(&b, 1)
	return string(b.Bytes()[:min(b.Len(), enough)])
}
