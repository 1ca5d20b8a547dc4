package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// fake starts a target on a unix socket that answers each verb, and "connect", as
// it is told. To an empty answer it says nothing.
func fake(t *testing.T, answer func(verb string) string) (url string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "relay")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var talks sync.WaitGroup
	talks.Go(func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			talks.Go(func() { talk(conn, answer) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		talks.Wait() // the relay was closed before
	})
	return "smtp+unix://" + path
}

func talk(conn net.Conn, answer func(verb string) string) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for verb := "connect"; ; {
		if reply := answer(verb); reply != "" {
			fmt.Fprintf(conn, "%s\r\n", reply)
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, _ = smtp.ParseCommand(strings.TrimSuffix(line, "\r\n"))
	}
}

// answers are those of a target that lets nobody send.
func answers(more map[string]string) func(verb string) string {
	all := map[string]string{"connect": "220 mx.example.org", "EHLO": "250 mx.example.org", "RSET": "250 ok", "MAIL": "450 4.2.1 busy", "QUIT": "221 bye"}
	for verb, reply := range more {
		all[verb] = reply
	}
	return func(verb string) string { return all[verb] }
}

// nobody returns the URL of a target that is not there.
func nobody(t *testing.T) string { return "lmtp+unix://" + t.TempDir() + "/none" }

// The next target is tried where the first one cannot be talked to, and where it
// cannot take the message. A refusal is a refusal.
func TestNextTarget(t *testing.T) {
	const reached = "450 4.2.1 reached"
	for _, test := range []struct {
		name   string
		first  map[string]string // nil: it is not there
		params []string
		want   string
	}{
		{"not there", nil, nil, reached},
		{"refused connection", map[string]string{"connect": "554 no"}, nil, reached},
		{"busy", map[string]string{"connect": "421 busy"}, nil, reached},
		{"refused EHLO", map[string]string{"EHLO": "550 no", "HELO": "550 no"}, nil, reached},
		{"nonsense", map[string]string{"EHLO": "mx.example.org"}, nil, reached},
		{"shutting down", map[string]string{"MAIL": "421 4.3.2 shutting down"}, nil, reached},
		{"cannot take it", map[string]string{}, []string{"REQUIRETLS"}, noRequireTLS.Error()}, // nor can the other
		{"puts it off", map[string]string{"MAIL": "452 4.3.1 disk full"}, nil, "452 4.3.1 disk full"},
		{"refuses it", map[string]string{"MAIL": "550 5.7.1 no"}, nil, "550 5.7.1 no"},
	} {
		logTo(t, &witness{})
		first := nobody(t)
		if test.first != nil {
			first = fake(t, answers(test.first))
		}
		b := newRelay(t, to(first, fake(t, answers(map[string]string{"MAIL": reached}))))
		if got := deliver(t, b, test.params...); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

// A target that can take the message gets it, before it is refused for good; and
// as long as one that could not be asked may be able to, it is not refused for good.
func TestTargetThatCannot(t *testing.T) {
	logTo(t, &witness{})
	small := fake(t, answers(map[string]string{"EHLO": "250-mx.example.org\r\n250 SIZE 10"}))
	other := fake(t, answers(map[string]string{"MAIL": "450 4.2.1 reached"}))
	for _, test := range []struct {
		targets []string
		want    string
	}{
		{[]string{small}, tooLarge.Error()},
		{[]string{small, other}, "450 4.2.1 reached"},
		{[]string{small, nobody(t)}, noAnswer.Error()},
		{[]string{nobody(t), small}, noAnswer.Error()},
	} {
		if got := deliver(t, newRelay(t, to(test.targets...))); got != test.want {
			t.Errorf("%v: got %q, want %q", test.targets, got, test.want)
		}
	}
}

// What one target cannot take now is not refused for good because another can never
// take it; each recipient for itself.
func TestNoTargetTakesRecipient(t *testing.T) {
	logTo(t, &witness{})
	old := fake(t, answers(nil))
	small := fake(t, answers(map[string]string{"EHLO": "250-mx.example.org\r\n250-DSN\r\n250-SMTPUTF8\r\n250 SIZE 10"}))
	for _, targets := range [][]string{{old, small}, {small, old}} {
		tx := newTransaction()
		tx.Envelope.Recipients = []backends.Recipient{
			{Address: "bob@example.org", Params: backends.Params{"NOTIFY=SUCCESS"}},
			{Address: "bób@example.org"},
		}
		run(t, newRelay(t, to(targets...)), tx, "Subject: one\r\n\r\n", &witness{})
		if got := tx.Status(0); got != noSuccess {
			t.Errorf("of DSN: got %v", got)
		}
		if got := tx.Status(1); !got.Permanent() {
			t.Errorf("of SMTPUTF8: got %v", got)
		}
	}
}

// A target that rests is left alone, unless there is no other.
func TestRestingTarget(t *testing.T) {
	logTo(t, &witness{})
	var mu sync.Mutex
	said := ""
	down := true
	first := fake(t, func(verb string) string {
		mu.Lock()
		defer mu.Unlock()
		said += " " + verb
		if down {
			return "421 down"
		}
		return answers(nil)(verb)
	})
	hear := func() string {
		mu.Lock()
		defer mu.Unlock()
		defer func() { said = "" }()
		return said
	}
	b := newRelay(t, to(first, fake(t, answers(map[string]string{"MAIL": "450 4.2.1 reached"}))))
	for i, want := range []string{" connect", "", ""} {
		if got := deliver(t, b); got != "450 4.2.1 reached" || hear() != want {
			t.Errorf("message %d: %s", i, got)
		}
	}
	mu.Lock()
	down = false
	mu.Unlock()
	b.targets[0].rest.began = time.Now().Add(-longestRest)
	if got := deliver(t, b); got != "450 4.2.1 busy" || b.targets[0].rest.pause != 0 {
		t.Errorf("after its rest: %s", got)
	}

	// Both are sick; one is tried anyway.
	hear()
	for _, target := range b.targets {
		target.rest.failed(time.Now(), time.Now())
	}
	if got := deliver(t, b); got != "450 4.2.1 busy" {
		t.Errorf("when all rest: %s", got)
	}
}

// A transaction that ends does so wherever the target keeps it waiting. Who was
// waited for in vain is rested, but not because a client went away.
func TestTransactionEnds(t *testing.T) {
	for _, verb := range []string{"connect", "EHLO", "MAIL", "RCPT", "DATA", "."} {
		for _, canceled := range []bool{false, true} {
			logTo(t, &witness{})
			waits := make(chan bool, 1)
			target := answers(map[string]string{"MAIL": "250 ok", "RCPT": "250 ok", "DATA": "354 go on", verb: ""})
			url := fake(t, func(v string) string {
				if v == verb {
					waits <- true
				}
				return target(v)
			})
			b := newRelay(t, to(url))
			ctx, cancel := context.WithCancel(t.Context())
			if !canceled {
				ctx, cancel = withDeadline(t.Context())
			}
			go func() {
				<-waits
				cancel()
			}()
			tx := newTransaction()
			tx.Envelope.Recipients = []backends.Recipient{{Address: "bob@example.org"}}
			const message = "Subject: one\r\n\r\n"
			tx.Body, tx.Size = strings.NewReader(message), int64(len(message))
			undecided, err := backends.Run(ctx, b, tx, backends.Hooks{})
			status := tx.Status(0)
			if len(undecided) > 0 {
				status = backends.StatusOf(err)
			}
			want := backends.TimedOut
			if canceled {
				want = backends.TryLater
			}
			if status != want {
				t.Errorf("at %s, canceled %t: got %q, want %q", verb, canceled, status.Error(), want.Error())
			}
			session := verb == "connect" || verb == "EHLO" || verb == "MAIL"
			if rests := b.targets[0].rest.pause > 0; rests != (session && !canceled) {
				t.Errorf("at %s, canceled %t: it rests %t", verb, canceled, rests)
			}
		}
	}
}

// withDeadline returns a context whose deadline passes when cancel is called.
func withDeadline(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	return passed{ctx}, func() { cancel(context.DeadlineExceeded) }
}

// passed says that its deadline passed, when it ends.
type passed struct{ context.Context }

func (p passed) Err() error { return context.Cause(p.Context) }

// A slow target leaves time for the next one.
func TestSlowTargetLeavesTime(t *testing.T) {
	logTo(t, &witness{})
	b := newRelay(t, to(fake(t, answers(map[string]string{"connect": ""})), fake(t, answers(nil))))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	tx := newTransaction()
	tx.Envelope.Recipients = []backends.Recipient{{Address: "bob@example.org"}}
	tx.Body = strings.NewReader("")
	backends.Run(ctx, b, tx, backends.Hooks{})
	if got := tx.Status(0).Error(); got != "450 4.2.1 busy" {
		t.Errorf("got %q of the second target", got)
	}
}

// Idle connections that a firewall has forgotten, say, do not use up the time for a
// new one.
func TestSilentConnectionsLeaveTime(t *testing.T) {
	logTo(t, &witness{})
	b := newRelay(t, to(fake(t, answers(map[string]string{"RSET": ""}))))
	var idle []*conn
	for range 3 {
		c, err := b.targets[0].connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	for _, c := range idle {
		b.targets[0].release(c)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	tx := newTransaction()
	tx.Envelope.Recipients = []backends.Recipient{{Address: "bob@example.org"}}
	tx.Body = strings.NewReader("")
	backends.Run(ctx, b, tx, backends.Hooks{})
	if got := tx.Status(0).Error(); got != "450 4.2.1 busy" {
		t.Errorf("got %q", got)
	}
}

// A target has no more connections than it may have. Transactions wait for one
// as long as they can.
func TestConnectionsAreBounded(t *testing.T) {
	logTo(t, &witness{})
	var mu sync.Mutex
	connections := 0
	proceed := make(chan bool)
	url := fake(t, func(verb string) string {
		switch verb {
		case "connect":
			mu.Lock()
			connections++
			mu.Unlock()
		case "MAIL":
			<-proceed
		}
		return answers(nil)(verb)
	})
	s := to(url)
	s.Connections = 2
	b := newRelay(t, s)
	var sending sync.WaitGroup
	for range 10 {
		sending.Go(func() {
			if got := deliver(t, b); got != "450 4.2.1 busy" {
				t.Error(got)
			}
		})
	}
	for range 10 {
		if b.targets[0].busy() > 2 {
			t.Error("more connections than 2 are in use")
		}
		proceed <- true
	}
	sending.Wait()
	if connections != 2 {
		t.Errorf("%d connections, want 2", connections)
	}

	// All are in use until the end of the transaction.
	b.targets[0].slots <- struct{}{}
	b.targets[0].slots <- struct{}{}
	ctx, cancel := withDeadline(t.Context())
	cancel()
	if _, err := b.targets[0].connect(ctx); !errors.Is(err, errBusy) {
		t.Errorf("got %v, want %v", err, errBusy)
	}
	<-b.targets[0].slots
	<-b.targets[0].slots
}

// What was idle for too long, or is too old, is ended with QUIT; so is the rest when
// the relay is closed.
func TestConnectionsEnd(t *testing.T) {
	for _, test := range []struct {
		name string
		edit func(*Settings)
		want string // before the relay is closed
	}{
		{"kept", func(s *Settings) {}, "connect EHLO MAIL RSET MAIL"},
		{"idle", func(s *Settings) { s.Idle = time.Millisecond }, "connect EHLO MAIL QUIT"},
		{"old", func(s *Settings) { s.MaxAge = 1 }, "connect EHLO MAIL QUIT connect EHLO MAIL QUIT"},
	} {
		said := make(chan string, 100)
		s := to(fake(t, func(verb string) string {
			said <- verb
			return answers(nil)(verb)
		}))
		s.Connections = 1 // so that one has ended before the next begins
		test.edit(&s)
		b, err := open(s)
		if err != nil {
			t.Fatal(err)
		}
		deliver(t, b)
		if test.name != "idle" {
			deliver(t, b)
		}
		for want := range strings.FieldsSeq(test.want) {
			if got := <-said; got != want {
				t.Errorf("%s: %s, want %s", test.name, got, want)
			}
		}
		b.Close()
		if test.name == "kept" && <-said != "QUIT" {
			t.Errorf("%s: no QUIT at the end", test.name)
		}
		if len(said) > 0 {
			t.Errorf("%s: then %s", test.name, <-said)
		}
	}
}

// A connection that grows too old while it is idle is not used again.
func TestIdleConnectionGrowsOld(t *testing.T) {
	said := make(chan string, 100)
	b := newRelay(t, to(fake(t, func(verb string) string {
		said <- verb
		return answers(nil)(verb)
	})))
	deliver(t, b)
	b.targets[0].maxAge = 1
	deliver(t, b)
	b.Close()
	times := map[string]int{}
	for len(said) > 0 {
		times[<-said]++
	}
	if times["connect"] != 2 || times["RSET"] != 0 {
		t.Errorf("the relay said %v, want two connections without RSET", times)
	}
}
