package plugintest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins"
)

// testStart starts the program, and ends it by Shutdown of plugin.GRPCController.
func (t *tester) testStart() error {
	h, err := plugins.Start(t.ctx, t.command)
	if err != nil {
		return err
	}
	return t.testEnd(h)
}

// testEnd ends the plugin as the gateway does, which waits for transactions.
func (t *tester) testEnd(h *plugins.Host) error {
	before := t.events.count("stopped")
	if err := t.close(h); err != nil {
		return err
	}
	if end, _ := t.events.find("stopped", before+1); end.how != "exit status 0" {
		return fmt.Errorf("it ended with %q, want exit status 0 within 2 seconds after Shutdown of plugin.GRPCController", end.how)
	}
	return nil
}

// testLifeline has the gateway die.
func (t *tester) testLifeline() error {
	return t.with(func(ctx context.Context, p *instance) error {
		p.Lifeline.Close()
		select {
		case <-p.Exited:
			return nil
		case <-time.After(t.Patience):
			return fmt.Errorf("it lives on %v after the end of file of MAILGW_LIFELINE", t.Patience)
		}
	})
}

// testSignals sends the signals that a whole service gets when it is stopped. The
// gateway decides when the plugin ends.
func (t *tester) testSignals() error {
	return t.with(func(ctx context.Context, p *instance) error {
		tx, err := t.open(ctx, p)
		if err != nil {
			return err
		}
		for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
			syscall.Kill(p.PID, signal)
		}
		if err = tx.finish(); err == nil {
			err = t.works(ctx, p)
		}
		if err != nil {
			return fmt.Errorf("SIGTERM, SIGINT and SIGHUP: %w", err)
		}
		return nil
	})
}

// testHealth has as many transactions as there may be wait for their messages.
func (t *tester) testHealth() error {
	many := 50
	if most := t.command.Transactions; most > 0 {
		many = min(many, most)
	}
	return t.with(func(ctx context.Context, p *instance) error {
		var all []*transaction
		for range many {
			tx, err := t.open(ctx, p)
			if err != nil {
				return err
			}
			all = append(all, tx)
		}
		checking, cancel := context.WithTimeout(ctx, t.Patience)
		defer cancel()
		if err := p.healthy(checking); err != nil {
			return fmt.Errorf("while %d transactions wait: %w", many, err)
		}
		for _, tx := range slices.Backward(all) { // so that none may wait for an earlier one
			if err := tx.finish(); err != nil {
				return fmt.Errorf("one of %d transactions: %w", many, err)
			}
		}
		return nil
	})
}

// testOpenFiles counts the file descriptors and the threads that the program keeps.
func (t *tester) testOpenFiles() error {
	const rounds, tolerance = 100, 20
	return t.with(func(ctx context.Context, p *instance) error {
		count := func(of string) int {
			names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/%s/*", p.PID, of))
			return len(names)
		}
		for range rounds / 10 {
			if err := t.deliver(ctx, p); err != nil {
				return err
			}
		}
		files, threads := count("fd"), count("task")
		for range rounds {
			if err := t.deliver(ctx, p); err != nil {
				return err
			}
		}
		if !t.until(func() bool { return count("fd") <= files+tolerance }) {
			return fmt.Errorf("%d files before %d transactions, %d after them", files, rounds, count("fd"))
		}
		if !t.until(func() bool { return count("task") <= threads+tolerance }) {
			return fmt.Errorf("%d threads before %d transactions, %d after them", threads, rounds, count("task"))
		}
		return nil
	})
}

// testKilled kills the program when it has half of a message. It has to come
// back, and to take mail.
func (t *tester) testKilled() error {
	return t.withHost(func(h *plugins.Host, pid int) error {
		d, message := t.begin(h), long()
		d.write(message[:len(message)/2])
		syscall.Kill(pid, syscall.SIGKILL)
		d.body.CloseWithError(io.ErrUnexpectedEOF) // the host waits for the message to end, too
		d.end(t.Patience)
		return t.comesBack(h)
	})
}

// testKilledAfterAnswer kills the program as soon as a recipient has its
// status. What it has said counts.
func (t *tester) testKilledAfterAnswer() error {
	return t.withHost(func(h *plugins.Host, pid int) error {
		d := t.begin(h)
		d.decided = func() { syscall.Kill(pid, syscall.SIGKILL) }
		d.write(long())
		d.end(t.Patience)
		if i := slices.IndexFunc(d.statuses(), func(s backends.Status) bool { return s.Permanent() }); i >= 0 {
			return fmt.Errorf("recipient %d: %v", i, d.statuses()[i])
		}
		if slices.IndexFunc(d.statuses(), func(s backends.Status) bool { return !s.IsZero() }) < 0 {
			return nil // it decides nobody
		}
		return t.comesBack(h)
	})
}

// testDrain ends the plugin while a transaction is under way. The gateway waits
// for that.
func (t *tester) testDrain() error {
	h, err := plugins.Start(t.ctx, t.command)
	if err != nil {
		return err
	}
	d, message := t.begin(h), long()
	d.write(message[:len(message)/2])
	closed := make(chan error, 1)
	go func() { closed <- t.testEnd(h) }()
	d.write(message[len(message)/2:])
	return errors.Join(d.end(t.Patience), <-closed)
}

// withHost calls f with the program as the gateway has it.
func (t *tester) withHost(f func(h *plugins.Host, pid int) error) error {
	started := t.events.count("started")
	h, err := plugins.Start(t.ctx, t.command)
	if err != nil {
		return err
	}
	defer t.close(h)
	e, _ := t.events.find("started", started+1)
	return f(h, e.pid)
}

// comesBack makes sure that the program takes mail again.
func (t *tester) comesBack(h *plugins.Host) error {
	var last error
	if !t.until(func() bool {
		d := t.begin(h)
		d.write(long())
		last = d.end(t.Patience)
		return last == nil
	}) {
		return fmt.Errorf("it does not come back: %w", last)
	}
	return nil
}

// long is a message of which the half is more than the host sends at once. It is
// made when a test wants it: the gateway has this package in it for mailgw test-plugin.
var long = sync.OnceValue(func() string {
	return text + strings.Repeat(strings.Repeat("x", 76)+"\r\n", 4000)
})

// A delivery is a transaction by way of a plugins.Host. Its message comes as it
// is written.
type delivery struct {
	tx      *backends.DataContext
	body    *io.PipeWriter
	decided func() // is called when a recipient has its status, if it is set
	ended   chan error
	cancel  context.CancelFunc

	mu  sync.Mutex
	all []backends.Status // zero for those that have none
}

func (t *tester) begin(h *plugins.Host) *delivery {
	r, w := io.Pipe()
	d := &delivery{body: w, ended: make(chan error, 1), decided: func() {}, all: make([]backends.Status, len(t.Recipients))}
	d.tx = &backends.DataContext{ID: "test", Session: backends.Session{ID: "test", Listener: "test", Protocol: "LMTP"}, Size: int64(len(long())), Body: r}
	d.tx.Envelope = backends.Envelope{Sender: "sender@example.net", Params: backends.Params{"BODY=8BITMIME", "SMTPUTF8"}}
	for _, address := range t.Recipients {
		d.tx.Envelope.Recipients = append(d.tx.Envelope.Recipients, backends.Recipient{Address: address})
	}
	var ctx context.Context
	ctx, d.cancel = context.WithTimeout(t.ctx, t.Patience)
	go func() {
		defer r.Close()
		_, err := backends.Run(ctx, h, d.tx, backends.Hooks{Status: func(i int, s backends.Status) {
			d.mu.Lock()
			d.all[i] = s
			d.mu.Unlock()
			d.decided()
		}})
		d.ended <- err
	}()
	return d
}

// write hands over octets of the message, unless nobody takes them.
func (d *delivery) write(octets string) { d.body.Write([]byte(octets)) }

// end waits for the end of the transaction.
func (d *delivery) end(patience time.Duration) error {
	defer d.cancel()
	defer d.body.Close()
	select {
	case err := <-d.ended:
		return err
	case <-time.After(patience):
		return fmt.Errorf("the transaction has not ended within %v", patience)
	}
}

func (d *delivery) statuses() []backends.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.all)
}

// markName names the variable by which the processes of the program are known.
const markName = "MAILGW_TEST"

// testLeftovers looks for processes that the program has started and left
// behind.
func (t *tester) testLeftovers() error {
	var left []string
	t.until(func() bool {
		left = t.processes()
		return left == nil
	})
	if left != nil {
		return fmt.Errorf("processes: %s", strings.Join(left, ", "))
	}
	return nil
}

// processes are those with the mark, each with its pid and command line.
func (t *tester) processes() (found []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		environment, err := os.ReadFile(file)
		if err != nil || !slices.Contains(strings.Split(string(environment), "\x00"), markName+"="+t.mark) {
			continue // gone, or another user's
		}
		pid := filepath.Base(filepath.Dir(file))
		command, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		if _, err := strconv.Atoi(pid); err == nil && len(command) > 0 { // a zombie has none
			found = append(found, fmt.Sprintf("%s (%s)", pid, bytes.TrimSpace(bytes.ReplaceAll(command, []byte{0}, []byte{' '}))))
		}
	}
	return found
}
