package peers

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

const (
	loopFlow = 300 // messages to each recipient
	strikes  = 4
)

// Postfix does not wait for long after a failure, of others or its own.
const quickly = `
queue_run_delay = 1s
minimal_backoff_time = 2s
maximal_backoff_time = 2s
service_throttle_time = 1s
`

// Messages flow from Postfix through a filter and back. What takes them is
// killed again and again while it does.
func TestNothingIsLostInTheLoop(t *testing.T) {
	for name, strike := range map[string]func(loop, *striker){
		"plugin":  func(_ loop, s *striker) { syscall.Kill(s.plugin, syscall.SIGKILL); s.plugin = 0 },
		"gateway": func(l loop, _ *striker) { l.g.Kill() },
		"smtpd":   func(l loop, _ *striker) { l.killServers() },
		"Postfix": func(l loop, _ *striker) { l.kill(); l.launch() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startLoop(t, way{address: onUnix, listener: afterByLMTP, target: toTCP}, quickly)
			s := &striker{lines: gatewaytest.Follow(t, l.g.Log), open: map[string]bool{}, broken: map[string]bool{}}
			var striking sync.Mutex
			var sending sync.WaitGroup
			sent := make(chan bool)
			sending.Go(func() {
				defer close(sent)
				if err := l.sendAll(&striking, "ann@peers.example", "bob@peers.example"); err != nil {
					t.Error(err)
				}
			})
			defer sending.Wait()

			gatewaytest.Eventually(t, "all has come through", func() bool {
				if s.ready() {
					striking.Lock()
					strike(l, s)
					striking.Unlock()
				}
				select {
				case <-sent:
				default:
					return false
				}
				return len(l.g.MailFiles("ann")) >= loopFlow && len(l.g.MailFiles("bob")) >= loopFlow && len(l.queue()) == 0
			})
			s.ready()
			t.Logf("%d transactions were broken off by %d strikes", len(s.broken), s.struck)
			// Many that are struck have an answer already, and the relay tries an
			// smtpd again that has not heard of a message, so that of these all may.
			if s.struck != strikes || len(s.broken) == 0 && name != "smtpd" {
				t.Errorf("struck %d times, and broke %d transactions off, want %d, and some", s.struck, len(s.broken), strikes)
			}
			if there := arrivals(t, l.g, "ann", "bob"); len(there) != 2*loopFlow {
				t.Errorf("%d messages have arrived, want %d", len(there), 2*loopFlow)
			}
		})
	}
}

// sendAll sends the flow. A message for which Postfix was killed before it said
// yes is sent again when that is over.
func (l loop) sendAll(striking *sync.Mutex, to ...string) error {
	var c *client
	for n, broken := 0, 0; n < loopFlow; {
		if c == nil {
			var err error
			striking.Lock()
			c, err = connect("tcp", l.address)
			striking.Unlock()
			if err != nil {
				return err
			}
		}
		err := c.send(flowMessage(n), "sender@peers.example", to...)
		if err == nil {
			n++
			continue
		}
		if broken++; broken > strikes {
			return fmt.Errorf("message %d: %w", n, err)
		}
		c.Close()
		c = nil
	}
	return c.quit()
}

// killServers kills the servers where mail comes back.
func (l loop) killServers() {
	for _, process := range l.running(l.group()) {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", process.PID))
		if err == nil && bytes.HasPrefix(line, []byte("smtpd\x00-n\x00"+l.back+"\x00")) {
			syscall.Kill(process.PID, syscall.SIGKILL)
		}
	}
}

// A striker says when it is time to strike.
type striker struct {
	lines  *gatewaytest.Follower
	open   map[string]bool // transactions of the filter without an answer, since the last strike
	broken map[string]bool // all of which nobody has heard of success
	seen   int             // events since the last strike
	struck int
	plugin int // the process of the relay, zero if none runs
}

// ready reads what the gateway has logged, and reports whether the filter is at
// work. Each time it waits a little longer, so that strikes hit different places.
func (s *striker) ready() bool {
	for _, e := range s.lines.Events() {
		s.seen++
		switch {
		case e.Message == "backend" && e.Event == "started" && e.Backend == "back":
			s.plugin = e.PID
		case e.Listener != "filter":
		case e.Message == "received":
			s.open[e.TX], s.broken[e.TX] = true, true
		case e.Message == "status":
			delete(s.open, e.TX)
			if e.Code < 300 {
				delete(s.broken, e.TX)
			}
		}
	}
	if len(s.open) == 0 || s.plugin == 0 || s.struck == strikes || s.seen < 5*s.struck {
		return false
	}
	s.struck++
	s.seen = 0
	clear(s.open)
	return true
}
