package peers

import (
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

const (
	flow  = 500 // messages to each recipient
	kills = 8   // the plugin comes back later each time
)

// Messages flow from Postfix through two plugins. One of them is killed again
// and again while it has transactions under way.
func TestNothingIsLostWhenPluginIsKilled(t *testing.T) {
	p := newPostfix(t)
	g := gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.LMTP, p.trusted(), `
[listener.routes]
"*" = ["inbox"]
"bob@peers.example" = ["other"]
[backend.other]
plugin = "maildir"
[backend.other.settings]
path = "mail/{user}"
`, gatewaytest.Inbox, `
[backend.inbox.env]
GORACE = "atexit_sleep_ms=0" # else each instance for a suspect takes a second to end
`)
	// After one second only, Postfix may find that it is still at it, and then
	// it waits for a minute.
	p.start(deliversTo(g) + `
queue_run_delay = 1s
minimal_backoff_time = 2s
maximal_backoff_time = 2s
`)
	var sending sync.WaitGroup
	sending.Go(func() {
		if err := sendFlow(p.address, "ann@peers.example", "amy@peers.example", "bob@peers.example"); err != nil {
			t.Error(err)
		}
	})
	defer sending.Wait()

	log := newMailLog(p)
	killer := newKiller(t, g, "inbox")
	gatewaytest.Eventually(t, "Postfix has delivered everything", func() bool {
		killer.follow()
		log.follow()
		return len(log.sent) == 3*flow
	})
	killer.follow()
	if queue := p.queue(); len(queue) != 0 {
		t.Errorf("Postfix still has %v", queue)
	}
	sendOne(t, "unix", g.Address("lmtp"), lines("Subject: the gateway has never stopped", ""), "", "late@peers.example")

	t.Logf("%d of %d kills were in mid-transaction; Postfix deferred %v", len(killer.hit), len(killer.killed), log.deferred)
	if len(killer.killed) != kills || len(killer.hit) < kills/2 {
		t.Errorf("killed %d plugins, and %d in mid-transaction, want %d, and half of them at least", len(killer.killed), len(killer.hit), kills)
	}
	if n := log.deferred["bob@peers.example"]; n != 0 {
		t.Errorf("Postfix deferred %d messages for bob, whose plugin was well", n)
	}
	there := arrivals(t, g, "ann", "amy", "bob")
	if len(there) != 3*flow {
		t.Errorf("%d messages have arrived, want %d", len(there), 3*flow)
	}
	for d := range log.sent {
		answered := killer.answered[d]
		arrived, ok := there[delivery{log.message[d.id], d.to}]
		if !ok || arrived.After(answered) {
			t.Errorf("%v was answered with 250 at %v and arrived at %v", d, answered, arrived)
		}
	}
}

// A delivery is one message for one recipient. The message has one id in
// Postfix's queue, and another one in its header.
type delivery struct{ id, to string }

// A mailLog is what Postfix has logged.
type mailLog struct {
	t        *testing.T
	lines    *gatewaytest.Follower
	message  map[string]string // id in the header by id in the queue
	sent     map[delivery]bool // by id in the queue
	deferred map[string]int    // by recipient
}

func newMailLog(p *postfix) *mailLog {
	return &mailLog{p.t, gatewaytest.Follow(p.t, p.log), map[string]string{}, map[delivery]bool{}, map[string]int{}}
}

var messageID = regexp.MustCompile(`: (\w+): message-id=<(\d+@flow)>`)

func (l *mailLog) follow() {
	for _, line := range l.lines.Lines() {
		if m := messageID.FindStringSubmatch(line); m != nil {
			l.message[m[1]] = m[2]
		}
		entry, ok := parseLogged(line)
		switch {
		case !ok:
		case entry.status == "sent":
			l.sent[delivery{entry.id, entry.to}] = true
		case entry.status == "deferred":
			l.deferred[entry.to]++
		default:
			l.t.Errorf("Postfix gave up: %s", line)
		}
	}
}

// A killer kills the plugin of a backend while it has transactions under way.
type killer struct {
	g       *gatewaytest.Gateway
	backend string
	lines   *gatewaytest.Follower

	pid      int             // of the plugin, zero if none runs
	seen     int             // events since it runs
	open     map[string]bool // transactions without an answer
	killed   []int
	hit      map[int]bool // the killed ones that had transactions under way
	answered map[delivery]time.Time
}

func newKiller(t *testing.T, g *gatewaytest.Gateway, backend string) *killer {
	return &killer{
		g: g, backend: backend, lines: gatewaytest.Follow(t, g.Log),
		open: map[string]bool{}, hit: map[int]bool{}, answered: map[delivery]time.Time{},
	}
}

// follow reads what the gateway has logged, and then kills. Each plugin may
// live a little longer than the one before, so that they end at different
// places.
func (k *killer) follow() {
	for _, e := range k.lines.Events() {
		k.event(e)
	}
	if k.pid != 0 && len(k.open) > 0 && len(k.killed) < kills && k.seen > 5*len(k.killed) {
		syscall.Kill(k.pid, syscall.SIGKILL)
		k.killed = append(k.killed, k.pid)
		k.pid = 0
	}
}

func (k *killer) event(e gatewaytest.Event) {
	k.seen++
	switch e.Message {
	case "received":
		k.open[e.TX] = true
	case "status":
		if e.Backend == k.backend {
			delete(k.open, e.TX)
		}
		if e.Code == 250 {
			k.answered[delivery{e.Ident, e.To}] = e.Time
		}
	case "backend":
		if e.Backend != k.backend {
			return
		}
		if e.Event == "started" {
			k.pid, k.seen = e.PID, 0
		}
		for _, pid := range k.killed {
			if e.Event == "failure" && strings.Contains(e.Error, fmt.Sprintf("pid %d has ended", pid)) {
				k.hit[pid] = true
			}
		}
	}
}

// flowMessage is message n. Every tenth is large.
func flowMessage(n int) []byte {
	repeat := 10
	if n%10 == 0 {
		repeat = 3000
	}
	return lines(
		fmt.Sprintf("Message-ID: <%d@flow>", n),
		"",
		strings.Repeat(fmt.Sprintf("This is a line of the message with the number %d.\r\n", n), repeat)+"The end.",
	)
}

func sendFlow(address string, to ...string) error {
	c, err := connect("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	for n := range flow {
		if err := c.send(flowMessage(n), "sender@peers.example", to...); err != nil {
			return fmt.Errorf("message %d: %w", n, err)
		}
	}
	return c.quit()
}

// arrivals returns when each message of the flow was there first, by its id in
// the header and its recipient. All have to be whole.
func arrivals(t *testing.T, g *gatewaytest.Gateway, users ...string) map[delivery]time.Time {
	t.Helper()
	first := map[delivery]time.Time{}
	for _, user := range users {
		twice := 0
		for _, path := range g.MailFiles(user) {
			id, at := arrival(t, path)
			d := delivery{id, user + "@peers.example"}
			before, ok := first[d]
			if ok {
				twice++
			}
			if !ok || at.Before(before) {
				first[d] = at
			}
		}
		t.Logf("%s has %d duplicates", user, twice)
	}
	return first
}

// arrival checks a message of the flow and returns its id, and when its file
// got its name.
func arrival(t *testing.T, path string) (id string, at time.Time) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	_, rest, _ := strings.Cut(string(text), "\r\nMessage-ID: ")
	if _, err := fmt.Sscanf(rest, "<%d@flow>", &n); err != nil || !strings.HasSuffix(string(text), "\r\n"+string(flowMessage(n))) {
		t.Errorf("%s is not whole: %v", path, err)
	}
	return fmt.Sprintf("%d@flow", n), changed(info)
}

func changed(info fs.FileInfo) time.Time {
	c := info.Sys().(*syscall.Stat_t).Ctim
	return time.Unix(c.Sec, c.Nsec)
}
