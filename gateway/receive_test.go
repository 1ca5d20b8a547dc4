package gateway

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// LMTP replies go out as soon as they and those before them are known.
func TestRepliesGoOutAsKnown(t *testing.T) {
	next := make(chan struct{})
	all := map[string]backends.Backend{"slow": noEditor{func(_ context.Context, tx *backends.DataContext) error {
		for _, i := range []int{1, 0, 2} {
			<-next
			tx.SetStatus(i, backends.NewStatus(250, "2.0.0", fmt.Sprint("recipient ", i)))
		}
		return nil
	}}}
	c := dialServer(t, testServer(t, all, "protocol = 'lmtp'\n[listener.routes]\n'*' = ['slow']\n"))
	c.hear(t)
	c.ask(t, "LHLO x", "MAIL FROM:<>", "RCPT TO:<a@x.example>", "RCPT TO:<b@x.example>", "RCPT TO:<c@x.example>", "DATA")
	io.WriteString(c, ".\r\n")
	next <- struct{}{} // b has its status, and waits for a
	next <- struct{}{} // a has, too
	for i, want := range []string{"<a@x.example> recipient 0 (ID)", "<b@x.example> recipient 1 (ID)"} {
		if got := c.hear(t); got != "250 2.0.0 "+want {
			t.Errorf("reply %d: got %q, want %q", i, got, want)
		}
	}
	next <- struct{}{}
	if got := c.hear(t); got != "250 2.0.0 <c@x.example> recipient 2 (ID)" {
		t.Errorf("got %q", got)
	}
}

// On a full disk the client gets 452 4.3.1 after the end of the message, and
// the session goes on; when there is room again, mail flows.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("cannot mount the small file system that this fills, which takes root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s := testServer(t, testBackends, "protocol = 'lmtp'\n")
	s.spool = newSpool(SpoolConfig{Directory: dir, Memory: 1 << 20, Threshold: 64 << 10})

	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "LHLO x")
	for _, test := range []struct {
		lines int
		want  string
	}{
		{10_000, "452 4.3.1 <ok@example.org> insufficient system storage, try again later (ID)"},
		{100, "250 2.0.0 <ok@example.org> delivered (ID)"},
		{1500, "250 2.0.0 <ok@example.org> delivered (ID)"},
		{10_000, "452 4.3.1 <ok@example.org> insufficient system storage, try again later (ID)"},
	} {
		c.ask(t, "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA")
		io.WriteString(c, strings.Repeat(strings.Repeat("x", 98)+"\r\n", test.lines))
		if got := c.ask(t, "."); got != test.want {
			t.Errorf("%d octets: got %q, want %q", test.lines*100, got, test.want)
		}
	}
	if got := c.ask(t, "NOOP"); got != "250 2.0.0 ok" {
		t.Errorf("then: %q", got)
	}
}

// A line of a message may be longer than a command line and than any buffer,
// and comes out whole.
func TestLongLineOfMessage(t *testing.T) {
	line := strings.Repeat("x", 300_000) + "\r\n"
	all := map[string]backends.Backend{"compare": backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		b, err := io.ReadAll(tx.Body)
		if err == nil && string(b) != line {
			err = fmt.Errorf("%d octets, want %d", len(b), len(line))
		}
		tx.SetAll(backends.NewStatus(250, "2.0.0", fmt.Sprint(err)))
		return nil
	})}
	c := dialServer(t, testServer(t, all, "protocol = 'smtp'\n[listener.limits]\ncommand_line = 512\n[listener.routes]\n'*' = ['compare']\n"))
	c.hear(t)
	c.ask(t, "EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA")
	if got := c.ask(t, line+"."); got != "250 2.0.0 <nil> (ID)" {
		t.Errorf("got %q", got)
	}
}

// A message whose end never came is not delivered.
func TestIncompleteMessageIsNotDelivered(t *testing.T) {
	called := make(chan string, 10)
	all := map[string]backends.Backend{"note": backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		called <- tx.Envelope.Sender
		tx.SetAll(backends.Delivered)
		return nil
	})}
	s := testServer(t, all, "protocol = 'smtp'\n[listener.routes]\n'*' = ['note']\n")
	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "EHLO x", "MAIL FROM:<lost@example.net>", "RCPT TO:<ok@example.org>", "DATA")
	io.WriteString(c, "half a message\r\n.")
	c.Close()
	c = dial(t, s)
	c.hear(t)
	c.ask(t, "EHLO x", "MAIL FROM:<whole@example.net>", "RCPT TO:<ok@example.org>", "DATA", ".")
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(called)
	for sender := range called {
		if sender != "whole@example.net" {
			t.Errorf("a message of %s was delivered", sender)
		}
	}
}
