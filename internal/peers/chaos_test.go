package peers

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

var chaosTime = flag.Duration("chaos", 15*time.Second, "how long chaos reigns in TestChaos")

// While clients and Postfix send mail that is known, plugins are killed, stopped
// and misbehave, the gateway is killed, restarted and reloaded, disks fill up, and
// the target of the relay goes away. When it is over, everything that was sent has
// been delivered, to those whom it is for and as it was; nobody heard of a success
// without it; and nothing is left.
func TestChaos(t *testing.T) {
	if os.Geteuid() != 0 {
		gatewaytest.Without(t, "only root can start Postfix and fill a file system")
	}
	c := newChaos(t)
	var clients sync.WaitGroup
	var over atomic.Bool
	for i := range chaosClients {
		clients.Go(func() { c.client(i, over.Load) })
	}
	for end := time.Now().Add(*chaosTime); time.Now().Before(end); {
		c.strike()
	}
	c.calm()
	over.Store(true)
	ended := make(chan struct{})
	go func() {
		clients.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(gatewaytest.Patience):
		t.Fatal("a client still tries, or hangs")
	}
	c.drain()
	c.check()
}

const chaosClients = 6

// A chaos is all that takes part.
type chaos struct {
	t       *testing.T
	postfix *postfix
	g, end  *watched
	smtp    string // address of the gateway's listener
	spool   string
	strikes map[string]int

	next  atomic.Int64
	mu    sync.Mutex
	notes map[delivery]*note
}

// A watched gateway is one that has to leave nothing.
type watched struct {
	*gatewaytest.Gateway
	t        *testing.T
	name     string
	backends int   // that run
	files    int   // that it has open when it is idle
	peak     int64 // octets of memory that it has had
}

func watch(t *testing.T, name string, backends int, g *gatewaytest.Gateway) *watched {
	w := &watched{Gateway: g, t: t, name: name, backends: backends}
	w.files = len(w.open())
	return w
}

// A note is what a client has heard of one message for one recipient.
type note struct {
	message    int64
	byPostfix  bool
	ok, gone   bool // it heard 2yz, 5yz
	deferred   int  // it heard 4yz
	unanswered int  // the connection broke before an answer
}

func newChaos(t *testing.T) *chaos {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &chaos{t: t, postfix: newPostfix(t), smtp: freeAddress(t), strikes: map[string]int{}, notes: map[delivery]*note{}}
	c.end = watch(t, "the target", 1, gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.LMTP, gatewaytest.ToInbox, gatewaytest.Inbox))
	c.g = watch(t, "the gateway", 3, gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.LMTP, c.postfix.trusted(), chaosRoutes, fmt.Sprintf(`
[[listener]]
name = "smtp"
address = "tcp:%s"
protocol = "smtp"
%s
[backend.trouble]
plugin = %q
args = ["trouble"]
timeout = "3s"
poison_crashes = 0 # all messages are innocent
[backend.relay]
plugin = "relay"
timeout = "10s"
[backend.relay.settings]
targets = ["lmtp+unix://%s"]
`, c.smtp, chaosRoutes, program, c.end.Address("lmtp")), gatewaytest.Inbox))
	c.spool = c.g.Path("spool")
	if err := syscall.Mount("tmpfs", c.spool, "tmpfs", 0, "size=8m"); err != nil {
		gatewaytest.Without(t, "cannot mount a file system: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(c.spool, syscall.MNT_DETACH) })
	c.postfix.start(deliversTo(c.g.Gateway) + "transport_maps = inline:{relayed.example=lmtp:unix:" + c.g.Address("lmtp") + "}\nrelay_domains = relayed.example\n" + quickly)
	return c
}

const chaosRoutes = `
[listener.routes]
"*" = ["trouble", "inbox"]
"@relayed.example" = ["trouble", "relay"]
`

// strike does some harm, and gives it time to take effect.
func (c *chaos) strike() {
	harms := map[string]func(){
		"kill a plugin": func() { c.signal(syscall.SIGKILL) },
		"stop a plugin": func() {
			if pid := c.signal(syscall.SIGSTOP); pid != 0 {
				c.pause()
				syscall.Kill(pid, syscall.SIGCONT)
			}
		},
		"bad mood": func() {
			all := slices.Collect(maps.Keys(moods))
			c.mood(all[rand.IntN(len(all))])
			c.pause()
			c.mood("")
		},
		"kill the gateway": func() {
			c.g.weigh()
			c.g.Kill()
		},
		"reload": func() {
			c.rewrite()
			if out, err := c.g.Command("reload").CombinedOutput(); err != nil {
				c.t.Errorf("mailgw reload: %v\n%s", err, out)
			}
		},
		"fill the spool": func() {
			os.WriteFile(filepath.Join(c.spool, "fill"), make([]byte, 16<<20), 0o600)
			c.pause()
			os.Remove(filepath.Join(c.spool, "fill"))
		},
		"kill the target": func() {
			c.end.weigh()
			c.end.Kill()
		},
	}
	names := slices.Sorted(maps.Keys(harms))
	name := names[rand.IntN(len(names))]
	c.strikes[name]++
	harms[name]()
	c.pause()
}

func (c *chaos) pause() { time.Sleep(time.Duration(200+rand.IntN(600)) * time.Millisecond) }

func (c *chaos) mood(mood string) {
	if err := os.WriteFile(c.g.Path(moodFile), []byte(mood), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// signal sends a signal to one of the plugins.
func (c *chaos) signal(signal syscall.Signal) (pid int) {
	running := c.g.plugins()
	if len(running) == 0 {
		return 0
	}
	pid = running[rand.IntN(len(running))]
	syscall.Kill(pid, signal)
	return pid
}

// plugins returns the processes of the plugins that run.
func (w *watched) plugins() (running []int) {
	for _, p := range gatewaytest.Processes(w.t) {
		if p.Parent == w.PID() && !p.Zombie {
			running = append(running, p.PID)
		}
	}
	return running
}

// rewrite changes the configuration, so that the plugin trouble is replaced.
func (c *chaos) rewrite() {
	path := c.g.Path("gateway.toml")
	text, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	before, _, _ := strings.Cut(string(text), "\n[backend.trouble.env]\n")
	after := fmt.Sprintf("%s\n[backend.trouble.env]\nN = \"%d\"\n", before, rand.Int())
	if err := os.WriteFile(path, []byte(after), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// calm ends all harm.
func (c *chaos) calm() {
	c.mood("")
	os.Remove(filepath.Join(c.spool, "fill"))
}

// drain waits until Postfix has delivered everything, as long as it gets on.
func (c *chaos) drain() {
	least, since := len(c.postfix.queue()), time.Now()
	for n := least; n > 0; n = len(c.postfix.queue()) {
		if n < least {
			least, since = n, time.Now()
		}
		if time.Since(since) > gatewaytest.Patience {
			c.t.Fatalf("Postfix still has %d messages, and delivers none", n)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// chaosMessage is message n. Some are large.
func chaosMessage(n int64) []byte {
	repeat := 10
	switch {
	case n%50 == 0:
		repeat = 30_000
	case n%10 == 0:
		repeat = 6000
	}
	return lines(
		fmt.Sprintf("Message-ID: <%d@chaos>", n),
		"X-Odd:  \u00e9\t",
		"",
		strings.Repeat(fmt.Sprintf("This is a line of message %d.\r\n..dots\r\n", n), repeat)+"The end.",
	)
}

// client sends one message after the other until chaos is over, each until all
// its recipients have an answer for good.
func (c *chaos) client(i int, over func() bool) {
	for !over() {
		n := c.next.Add(1)
		var to []string
		switch {
		case i == 0: // to Postfix, which would make a bounce for gone
			to = []string{"ann@peers.example", "bob@relayed.example"}
		case i == 1: // by SMTP, where one answer is for all
			to = [][]string{{"ann@peers.example", "bob@peers.example"}, {"gone@peers.example"}, {"carol@relayed.example"}}[n%3]
		default:
			to = []string{"ann@peers.example", "gone@peers.example", "bob@relayed.example", "bob@peers.example", "gone@relayed.example"}[:1+n%5]
		}
		c.sendUntilDone(i, n, to)
		if i == 0 { // Postfix takes more at once than it can deliver in the end
			c.pause()
		}
	}
}

func (c *chaos) sendUntilDone(i int, n int64, to []string) {
	c.mu.Lock()
	for _, r := range to {
		c.notes[delivery{fmt.Sprint(n), r}] = &note{message: n, byPostfix: i == 0}
	}
	c.mu.Unlock()
	for tries := 0; len(to) > 0; tries++ {
		to = c.try(i, n, to)
		if len(to) > 0 {
			time.Sleep(time.Duration(50+rand.IntN(200)) * time.Millisecond)
		}
	}
}

// try sends a message once, and returns the recipients who have to wait.
func (c *chaos) try(i int, n int64, to []string) (again []string) {
	network, address := "unix", c.g.Path("lmtp.sock")
	switch i {
	case 0:
		network, address = "tcp", c.postfix.address
	case 1:
		network, address = "tcp", c.smtp
	}
	answers := c.exchange(network, address, n, to)
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, r := range to {
		note := c.notes[delivery{fmt.Sprint(n), r}]
		switch code := answers[k]; code / 100 {
		case 2:
			note.ok = true
		case 5:
			note.gone = true
		case 4:
			note.deferred++
			again = append(again, r)
		default:
			note.unanswered++
			again = append(again, r)
		}
	}
	return again
}

// hung is how long nothing may happen on a connection.
const hung = time.Minute

// exchange sends a message on a connection of its own, and returns the codes
// that the recipients got, 0 without an answer.
func (c *chaos) exchange(network, address string, n int64, to []string) []int {
	answers := make([]int, len(to))
	s, err := connectWithin(network, address, hung)
	if err != nil {
		c.judge(err)
		return answers
	}
	defer s.Close()
	if err := s.say(250, "MAIL FROM:<sender@peers.example>"); err != nil {
		c.judge(err)
		return repeated(codeOf(err), len(to))
	}
	var accepted []int
	for k, r := range to {
		err := s.say(250, "RCPT TO:<"+r+">")
		c.judge(err)
		if answers[k] = codeOf(err); err == nil {
			accepted = append(accepted, k)
		}
	}
	if len(accepted) == 0 {
		return answers
	}
	err = s.say(354, "DATA")
	if err == nil {
		err = s.message(chaosMessage(n))
	}
	if err == nil {
		err = s.PrintfLine(".")
	}
	code := 0
	for j, k := range accepted {
		if err == nil && (s.lmtp || j == 0) {
			code, _, err = s.ReadResponse(0)
		}
		if err != nil {
			c.judge(err)
			code = codeOf(err)
		}
		answers[k] = code
	}
	return answers
}

// judge tells a connection that hangs from one that breaks.
func (c *chaos) judge(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Errorf("a connection hung: %v", err)
	}
}

// codeOf returns the code of a reply that was not the one that was wanted.
func codeOf(err error) int {
	var reply *textproto.Error
	if errors.As(err, &reply) {
		return reply.Code
	}
	return 0
}

func repeated(code, n int) []int { return slices.Repeat([]int{code}, n) }

// check compares what was heard with what has arrived.
func (c *chaos) check() {
	arrived := map[delivery]int{}
	c.collect(arrived, c.g.Gateway, "peers.example")
	c.collect(arrived, c.end.Gateway, "relayed.example")
	var sent, deferred, unanswered, duplicates, unexplained int
	for d, note := range c.notes {
		sent++
		deferred += note.deferred
		unanswered += note.unanswered
		n := arrived[d]
		switch {
		case note.ok == isGone(d.to) || note.gone != isGone(d.to):
			c.t.Errorf("%v has the answer of another one: %+v", d, *note)
		case isGone(d.to) && n > 0:
			c.t.Errorf("%v was refused and is there", d)
		case note.ok && n == 0:
			c.t.Errorf("%v was answered with 250 and is not there", d)
		}
		if n > 1 {
			duplicates += n - 1
			if !note.byPostfix && n-1 > note.deferred+note.unanswered {
				unexplained++
			}
		}
		delete(arrived, d)
	}
	for d := range arrived {
		c.t.Errorf("%v was never sent", d)
	}
	if unexplained > 0 {
		c.t.Errorf("%d recipients have more copies than tries", unexplained)
	}
	c.t.Logf("%v of %v; %d messages for %d recipients; %d answers were 4yz, %d never came; %d duplicates, of tries that had no answer or 4yz though a copy was stored",
		*chaosTime, c.strikes, c.next.Load(), sent, deferred, unanswered, duplicates)
	c.g.checkLeaks()
	c.end.checkLeaks() // the relay of c.g, which has ended now, kept connections to it
}

// collect counts the messages in the inboxes of a gateway, which have to be
// whole.
func (c *chaos) collect(arrived map[delivery]int, g *gatewaytest.Gateway, domain string) {
	for _, user := range []string{"ann", "bob", "carol", "gone"} {
		for _, path := range g.MailFiles(user) {
			text, err := os.ReadFile(path)
			if err != nil {
				c.t.Fatal(err)
			}
			var n int64
			_, rest, _ := strings.Cut(string(text), "Message-ID: ")
			fmt.Sscanf(rest, "<%d@chaos>", &n)
			d := delivery{fmt.Sprint(n), user + "@" + domain}
			head, whole := strings.CutSuffix(string(text), string(chaosMessage(n)))
			if note := c.notes[d]; !whole || note != nil && !note.byPostfix && head != markField+"\r\n" || !strings.HasPrefix(head, markField+"\r\n") {
				c.t.Errorf("%v was changed: before it stands %.300q", d, head)
			}
			arrived[d]++
		}
	}
}

// checkLeaks looks for what is left when all is quiet, and ends the gateway.
func (w *watched) checkLeaks() {
	w.weigh()
	w.t.Logf("%s had up to %d MiB", w.name, w.peak>>20)
	if w.peak > 512<<20 {
		w.t.Errorf("%s: that is more than 512 MiB", w.name)
	}
	if !gatewaytest.Becomes(func() bool { return len(w.open()) <= w.files+2 }) {
		w.t.Errorf("%s had %d files open at first, and has now:\n%s", w.name, w.files, strings.Join(w.open(), "\n"))
	}
	// Each plugin has a process, and a directory for its socket.
	var sockets []os.DirEntry
	if !gatewaytest.Becomes(func() bool {
		var err error
		sockets, err = os.ReadDir(w.Path("plugins"))
		return err == nil && len(sockets) == w.backends && len(w.plugins()) == w.backends
	}) {
		w.t.Errorf("%s has the plugins %v and the sockets %v, want %d", w.name, w.plugins(), sockets, w.backends)
	}
	for by, stacks := range w.Goroutines() {
		most := few
		if strings.Contains(by, "gateway.(*delivery)") || strings.Contains(by, "gateway.(*Server).session") {
			most = 0
		}
		if len(stacks) > most {
			w.t.Errorf("%s: %d goroutines of %s are left:\n%s", w.name, len(stacks), by, stacks[0])
		}
	}
	if left, err := os.ReadDir(w.Path("spool")); err != nil || len(left) > 0 {
		w.t.Errorf("%s: left in the spool: %v, %v", w.name, left, err)
	}
}

// few is how many goroutines one function may have started for what lasts: a
// listener, a plugin, a connection to it. Those of transactions are many more.
const few = 20

// weigh notes the most memory that the gateway has had, while it is there.
func (w *watched) weigh() { w.peak = max(w.peak, gatewaytest.Memory(w.t, w.PID(), "VmHWM")) }

// open returns what the gateway has open.
func (w *watched) open() (files []string) {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", w.PID()))
	if err != nil || paths == nil {
		w.t.Errorf("%s: its files cannot be counted: %v", w.name, err)
	}
	for _, path := range paths {
		to, _ := os.Readlink(path) // if it is not closed by now
		files = append(files, to)
	}
	return files
}
