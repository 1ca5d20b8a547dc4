package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// ask sends lines and returns the last line of the reply to each.
func (c client) ask(t *testing.T, lines ...string) (last string) {
	t.Helper()
	for _, line := range lines {
		if _, err := io.WriteString(c, line+"\r\n"); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		last = c.hear(t)
	}
	return last
}

// hear returns the last line of one reply.
func (c client) hear(t *testing.T) string {
	t.Helper()
	for {
		line, err := c.ReadString('\n')
		if err != nil {
			t.Fatalf("after %q: %v", line, err)
		}
		if len(line) < 4 || line[3] != '-' {
			return masked(strings.TrimSuffix(line, "\r\n"))
		}
	}
}

// hearEnd checks that the server says want and hangs up.
func (c client) hearEnd(t *testing.T, want string) {
	t.Helper()
	rest, err := io.ReadAll(c)
	if masked(string(rest)) != want || err != nil {
		t.Errorf("got %q, %v, want %q and the end", rest, err, want)
	}
}

func TestConnectionLimits(t *testing.T) {
	for _, limit := range []string{"connections", "connections_per_peer"} {
		t.Run(limit, func(t *testing.T) {
			s := testServer(t, testBackends, "protocol = 'smtp'\n[listener.limits]\n"+limit+" = 2\n")
			first := dialServer(t, s)
			first.hear(t)
			second := dial(t, s)
			second.hear(t)
			dial(t, s).hearEnd(t, "421 4.7.0 mx.example.org too many connections, try again later\r\n")
			if got := first.ask(t, "NOOP"); got != "250 2.0.0 ok" {
				t.Errorf("the first session gets %q", got)
			}
			// A session that ends makes room.
			second.ask(t, "QUIT")
			second.hearEnd(t, "")
			for {
				c := dial(t, s)
				line, err := c.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(line, "220 ") {
					break
				}
			}
		})
	}
}

// Timeouts are of the whole command, not of each octet, and of the session.
func TestTimeouts(t *testing.T) {
	for _, test := range []struct{ limits, say, want string }{
		{"command_timeout = '50ms'", "NOO", "421 4.4.2 mx.example.org timeout\r\n"},
		{"session_timeout = '50ms'", "", "421 4.4.2 mx.example.org timeout\r\n"},
		{"command_timeout = '50ms'", "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<ok@example.org>\r\nDATA\r\nhalf a mess", "421 4.4.2 mx.example.org timeout\r\n"},
		{"message_timeout = '50ms'", "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<ok@example.org>\r\nDATA\r\nhalf a mess", "421 4.4.2 mx.example.org timeout\r\n"},
	} {
		s := testServer(t, testBackends, "protocol = 'smtp'\n[listener.limits]\n"+test.limits+"\n")
		c := dialServer(t, s)
		io.WriteString(c, test.say)
		all, err := io.ReadAll(c)
		if err != nil || !strings.HasSuffix(string(all), test.want) || strings.Contains(string(all), "delivered") {
			t.Errorf("%s: got %q, %v", test.limits, all, err)
		}
	}
}

// A client that sends and never reads is left after the command timeout.
func TestClientThatNeverReads(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'smtp'\n[listener.limits]\ncommand_timeout = '200ms'\n")
	c := dialServer(t, s)
	var err error
	for err == nil {
		_, err = io.WriteString(c, strings.Repeat("HELP\r\n", 1000))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the server still takes commands")
	}
}

// LMTP replies go out as soon as they and those before them are known.
func TestRepliesGoOutAsKnown(t *testing.T) {
	next := make(chan struct{})
	all := map[string]backends.Backend{"slow": backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		for _, i := range []int{1, 0, 2} {
			<-next
			tx.SetStatus(i, backends.NewStatus(250, "2.0.0", fmt.Sprint("recipient ", i)))
		}
		return nil
	})}
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

// A shutdown ends idle sessions with 421, lets transactions finish, and
// refuses who comes too late.
func TestShutdownWaitsForTransactions(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	all := map[string]backends.Backend{"slow": backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		close(entered)
		<-release
		tx.SetAll(backends.Delivered)
		return nil
	})}
	s := testServer(t, all, "protocol = 'smtp'\n[listener.routes]\n'*' = ['slow']\n")
	busy := dialServer(t, s)
	idle, mailing := dial(t, s), dial(t, s)
	for _, c := range []client{busy, idle, mailing} {
		c.hear(t)
		c.ask(t, "EHLO x")
	}
	mailing.ask(t, "MAIL FROM:<>")
	busy.ask(t, "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA")
	io.WriteString(busy, ".\r\n")
	<-entered

	done := make(chan error)
	go func() { done <- s.Shutdown(t.Context()) }()
	idle.hearEnd(t, "421 4.3.2 mx.example.org shutting down\r\n")
	if c, err := net.Dial("tcp", s.listeners[0].socket.Addr().String()); err == nil {
		c.Close()
		t.Error("a new connection is accepted during the shutdown")
	}
	// The one that is in a transaction ends it, and then is told.
	if got := mailing.ask(t, "RSET"); got != "250 2.0.0 ok" {
		t.Errorf("in the transaction: %q", got)
	}
	mailing.hearEnd(t, "421 4.3.2 mx.example.org shutting down\r\n")
	select {
	case err := <-done:
		t.Fatalf("shutdown ended before the transaction: %v", err)
	default:
	}
	close(release)
	busy.hearEnd(t, "250 2.0.0 delivered (ID)\r\n421 4.3.2 mx.example.org shutting down\r\n")
	if err := <-done; err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

// At the end of its patience a shutdown answers what is under way with 451.
func TestShutdownDeadline(t *testing.T) {
	entered := make(chan struct{})
	all := map[string]backends.Backend{"slow": backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	})}
	s := testServer(t, all, "protocol = 'smtp'\n[listener.routes]\n'*' = ['slow']\n")
	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA")
	io.WriteString(c, ".\r\n")
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: %v", err)
	}
	c.hearEnd(t, "451 4.3.0 try again later (ID)\r\n421 4.3.2 mx.example.org shutting down\r\n")
}

// A socket that a killed process left is taken over, one on which somebody
// answers is not, and neither is what is no socket.
func TestStaleSocketIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	config := "protocol = 'lmtp'\nmode = '0600'\naddress = 'unix:" + path + "'\n"

	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	if err := testServer(t, testBackends, config).Listen(); err == nil || !strings.Contains(err.Error(), "another process answers") {
		t.Errorf("while somebody listens: %v", err)
	}
	old.Close()
	s := testServer(t, testBackends, config)
	c := dialServer(t, s)
	if got := c.hear(t); got != "220 mx.example.org LMTP mailgw" {
		t.Errorf("greeting %q", got)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := testServer(t, testBackends, config).Listen(); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("where a file is: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file has become %q", b)
	}
}

func TestSocketOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	path := filepath.Join(t.TempDir(), "socket")
	serve(t, testServer(t, testBackends, "protocol = 'lmtp'\nmode = '0620'\nowner = 'nobody'\ngroup = 'daemon'\naddress = 'unix:"+path+"'\n"))
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	daemon, err := user.LookupGroup("daemon")
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	got := fmt.Sprintf("%v %d %d", info.Mode(), stat.Uid, stat.Gid)
	if want := fmt.Sprintf("%v %s %s", fs.ModeSocket|0o620, nobody.Uid, daemon.Gid); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A second server that took the path over does not lose it to the first one.
func TestShutdownLeavesAnothersSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	config := "protocol = 'lmtp'\naddress = 'unix:" + path + "'\n"
	first := testServer(t, testBackends, config)
	if err := first.Listen(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second := dialServer(t, testServer(t, testBackends, config))
	if err := first.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	second.hear(t)
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket of the second server: %v", err)
	}
}

func TestListenAllOrNone(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	path := filepath.Join(t.TempDir(), "socket")
	s := testServer(t, testBackends, "protocol = 'lmtp'\naddress = 'unix:"+path+"'\n[listener.routes]\n'*' = ['verdict']\n"+
		"[[listener]]\nname = 'second'\nprotocol = 'smtp'\naddress = 'tcp:"+taken.Addr().String()+"'\n[listener.routes]\n'*' = ['verdict']\n")
	err = s.Listen()
	if err == nil || !strings.Contains(err.Error(), "listener second: ") || !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the first listener's socket is still there: %v", err)
	}
}

// Abstract and IPv6 sockets serve like the others, and the backend learns who
// is at the other end.
func TestPeers(t *testing.T) {
	name := fmt.Sprintf("@mailgw-test-%d", os.Getpid())
	for address, want := range map[string]string{
		"unix:" + name:    fmt.Sprintf("unix:uid=%d to %s", os.Getuid(), name),
		"tcp:127.0.0.1:0": "127.0.0.1:",
		"tcp:[::1]:0":     "[::1]:",
	} {
		if c, err := net.Listen("tcp", "[::1]:0"); err == nil {
			c.Close()
		} else if strings.Contains(address, "::1") {
			t.Logf("%s: not tested, this machine has no IPv6: %v", address, err)
			continue
		}
		all := map[string]backends.Backend{"peer": backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			tx.SetAll(backends.NewStatus(250, "2.0.0", tx.Session.Peer.String()+" to "+tx.Session.Local))
			return nil
		})}
		c := dialServer(t, testServer(t, all, "protocol = 'smtp'\naddress = '"+address+"'\n[listener.routes]\n'*' = ['peer']\n"))
		c.hear(t)
		c.ask(t, "EHLO x", "MAIL FROM:<>", "RCPT TO:<ok@example.org>", "DATA")
		if got := c.ask(t, "."); !strings.HasPrefix(got, "250 2.0.0 "+want) {
			t.Errorf("%s: got %q, want %q", address, got, want)
		}
	}
}

// On a full disk the client gets 452 4.3.1 after the end of the message, and
// the session goes on; when there is room again, mail flows.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount the small file system that this fills")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
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

// lockedBuffer is a log that is written from several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

// One grep for the transaction's ID tells the story of each recipient; what
// strangers send cannot forge a line; nothing of the message is logged.
func TestLogTellsEachRecipient(t *testing.T) {
	var log lockedBuffer
	s := testServer(t, testBackends, "protocol = 'lmtp'\nxforward = ['127.0.0.1']\n")
	s.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c := dialServer(t, s)
	c.hear(t)
	c.ask(t, "LHLO x", "XFORWARD ADDR=192.0.2.9 HELO=h+0Ad IDENT=4F3A2C", "MAIL FROM:<sender@example.net>",
		"RCPT TO:<ok@example.org>", "RCPT TO:<perm@example.org>", "RCPT TO:<error@example.org>")
	c.ask(t, "NOOP \x1b[31m\x00 level=ERROR", "DATA")
	io.WriteString(c, "Secret: 42\r\n\r\nsecret body\r\n.\r\n")
	for range 3 {
		c.hear(t)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	text := log.String()
	var id string
	for line := range strings.Lines(text) {
		if _, rest, ok := strings.Cut(line, "msg=received"); ok {
			_, rest, _ = strings.Cut(rest, "tx=")
			id, _, _ = strings.Cut(rest, " ")
		}
	}
	for _, want := range []string{
		"msg=received session=* listener=test peer=* tx=ID ident=4F3A2C from=sender@example.net size=27 recipients=3 protocol=LMTP helo=x client_name=\"\" client_addr=192.0.2.9 client_helo=h?d",
		"msg=status session=* listener=test peer=* tx=ID ident=4F3A2C from=sender@example.net to=ok@example.org backend=verdict code=250 enhanced=2.0.0 text=delivered delay=* wait=*",
		"to=perm@example.org backend=verdict code=550 enhanced=5.1.1 text=\"no such user\"",
		"to=error@example.org backend=verdict code=451 enhanced=4.3.0 text=\"try again later\"",
		"msg=backend session=* listener=test peer=* tx=ID ident=4F3A2C from=sender@example.net backend=verdict event=failure error=\"open /etc/secret: permission denied\"",
	} {
		found := false
		for line := range strings.Lines(text) {
			found = found || matches(line, strings.ReplaceAll(want, "tx=ID", "tx="+id))
		}
		if !found {
			t.Errorf("no line with %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, "secret body") || strings.Contains(text, "Secret: 42") || strings.ContainsAny(text, "\x1b\x00") {
		t.Errorf("the log has what it must not have:\n%s", text)
	}
}

// matches reports whether line has want in it, where * stands for a value.
func matches(line, want string) bool {
	for part := range strings.SplitSeq(want, "*") {
		_, rest, ok := strings.Cut(line, part)
		if !ok {
			return false
		}
		line = rest
	}
	return true
}

// A listener that promises DSN needs backends that see to it.
func TestDSNNeedsACapableBackend(t *testing.T) {
	for routes, want := range map[string]string{
		"'*' = ['dsn']": "",
		"'*' = ['pass', 'dsn']\n'a@x.example' = ['dsn', 'pass']": `test.toml:*: listener[0].dsn: the route of "a@x.example" ends in backend "pass"*`,
	} {
		c := testConfig(t, testBackends, "protocol = 'smtp'\ndsn = true\n[listener.routes]\n"+routes)
		_, err := New(c, testBackends, slog.New(slog.DiscardHandler))
		if (err == nil) != (want == "") || err != nil && !matches(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", routes, err, want)
		}
	}
}
