package smtpclient

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailgw/mailgw/internal/smtp"
)

// silences are what a server does before it says and reads nothing any more: it
// reads a command (<) or a message (.), and replies. The client bears that for
// some time.
var silences = []struct {
	stage   Stage
	server  string
	patient time.Duration
}{
	{Greeting, "", 5 * time.Minute},
	{EHLO, "220 <", 5 * time.Minute},
	{XFORWARD, "220 < 250 <", 5 * time.Minute},
	{MAIL, "220 < 250 < 250 <", 5 * time.Minute},
	{RCPT, "220 < 250 < 250 < 250 <", 5 * time.Minute},
	{DATA, "220 < 250 < 250 < 250 < 250 <", 2 * time.Minute},
	{Message, "220 < 250 < 250 < 250 < 250 < 354", 3 * time.Minute},
	{EndOfMessage, "220 < 250 < 250 < 250 < 250 < 354 .", 10 * time.Minute},
	{RSET, "220 < 250 < 250 < 250 < 250 < 354 . 250 <", 5 * time.Minute},
}

// fallSilent is such a server.
func fallSilent(conn net.Conn, server string, silent chan<- struct{}) {
	r := bufio.NewReader(conn)
	for word := range strings.FieldsSeq(server) {
		switch word {
		case "<":
			r.ReadString('\n')
		case ".":
			io.Copy(io.Discard, smtp.NewDotReader(r))
		default:
			io.WriteString(conn, word+" ok\r\n")
		}
	}
	close(silent)
}

// session does all that a client does, to its first error.
func session(ctx context.Context, c *Conn) error {
	if err := c.Hello(ctx); err != nil {
		return err
	}
	if err := c.XForward(ctx, []string{"XFORWARD NAME=x"}); err != nil {
		return err
	}
	tx := Transaction{Recipients: []Recipient{{Address: "a@x"}}, Message: strings.NewReader("one\r\n")}
	var failed error
	c.Send(ctx, &tx, func(_ int, _ smtp.Reply, err error) { failed = err })
	if failed != nil {
		return failed
	}
	return c.Reset(ctx)
}

// RFC 5321, section 4.5.3.2. The clock of the bubble is the only one that runs.
func TestSilenceEndsAtTimeout(t *testing.T) {
	for _, test := range silences {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer theirs.Close()
			go fallSilent(theirs, test.server, make(chan struct{}))
			c := New(ours, Settings{Name: "me"})
			began := time.Now()
			err := session(t.Context(), c)
			e, ok := errors.AsType[*Error](err)
			if waited := time.Since(began); !ok || e.Stage != test.stage || e.Err.Error() != "timed out" || waited != test.patient {
				t.Errorf("%s: %v after %v, want that it timed out after %v", test.stage, err, waited, test.patient)
			}
			if c.Err() == nil {
				t.Errorf("%s: the connection is said to be of use", test.stage)
			}
		})
	}
}

// A context that ends does so at once, and leaves nothing that runs: the bubble
// would not end.
func TestContextEndsSilence(t *testing.T) {
	stop := errors.New("the gateway ends")
	for _, test := range silences {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer theirs.Close()
			silent := make(chan struct{})
			go fallSilent(theirs, test.server, silent)
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				<-silent
				time.Sleep(time.Second) // until all wait
				cancel(stop)
			}()
			began := time.Now()
			err := session(ctx, New(ours, Settings{Name: "me"}))
			e, ok := errors.AsType[*Error](err)
			if waited := time.Since(began); !ok || e.Stage != test.stage || !errors.Is(err, stop) || waited != time.Second {
				t.Errorf("%s: %v after %v, want the end of the context", test.stage, err, waited)
			}
		})
	}
}

// The deadline of a context is one, too, and one that has passed lets nothing
// be said.
func TestContextDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c := New(ours, Settings{Name: "me"})
		if err := c.Hello(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}

		ours, theirs = net.Pipe()
		defer theirs.Close()
		go io.WriteString(theirs, "220 ok\r\n")
		c = New(ours, Settings{Name: "me"})
		if err := c.Hello(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v from a context that had ended", err)
		}
	})
}

// A context that ends after its method does not touch the next one.
func TestContextEndsWithItsMethod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		go fallSilent(theirs, "220 < 250 < 250", make(chan struct{}))
		ctx, cancel := context.WithCancel(t.Context())
		c := New(ours, Settings{Name: "me"})
		defer c.Close()
		if err := c.Hello(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := c.Noop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
