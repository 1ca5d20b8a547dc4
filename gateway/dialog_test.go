package gateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// A script is a conversation of testdata/dialogs. Above a line "---" stand
// comments and keys of the listener in TOML. Below it:
//
//	C: a line that the client sends, without its CRLF
//	C~ "octets that the client sends, as a Go string\n"
//	S: a line that the server sends; (ID) stands for an ID, and (NAME) for
//	   that of the gateway's process
//	S. the server hangs up
//
// Everything up to the next S is sent at once.
type script struct {
	config string
	turns  []turn
	hangUp bool
}

type turn struct {
	line int // of the first line that the server says
	say  []byte
	hear []string
}

func readScript(t testing.TB, path string) *script {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	preamble, dialog, ok := strings.Cut("\n"+string(text), "\n---\n")
	if !ok {
		t.Fatalf("%s: no line ---", path)
	}
	s := &script{config: preamble, turns: []turn{{}}}
	first := strings.Count(preamble, "\n") + 2
	for i, line := range strings.Split(strings.TrimSuffix(dialog, "\n"), "\n") {
		last := &s.turns[len(s.turns)-1]
		kind, rest, _ := strings.Cut(line, " ")
		if strings.HasPrefix(kind, "C") && last.hear != nil {
			s.turns = append(s.turns, turn{})
			last = &s.turns[len(s.turns)-1]
		}
		switch kind {
		case "C:":
			last.say = append(last.say, rest+"\r\n"...)
		case "C~":
			raw, err := strconv.Unquote(rest)
			if err != nil {
				t.Fatalf("%s:%d: %v", path, first+i, err)
			}
			last.say = append(last.say, raw...)
		case "S:":
			if last.hear == nil {
				last.line = first + i
			}
			last.hear = append(last.hear, rest)
		case "S.":
			s.hangUp = true
		case "", "#":
		default:
			t.Fatalf("%s:%d: line begins with %q", path, first+i, kind)
		}
	}
	return s
}

var transactionID = regexp.MustCompile(`\([0-9a-z]{16}\)`)

var gatewayName = regexp.MustCompile(`X-MAILGW [A-Z2-7]{26}$`)

func masked(line string) string {
	return gatewayName.ReplaceAllString(transactionID.ReplaceAllString(line, "(ID)"), "X-MAILGW (NAME)")
}

// testConfig is a whole configuration around the keys of one listener.
func testConfig(t testing.TB, all map[string]backends.Backend, listener string) *Config {
	t.Helper()
	text := "hostname = 'mx.example.org'\n[spool]\ndirectory = '" + t.TempDir() + "'\n"
	for name := range all {
		text += "[backend." + name + "]\nplugin = 'test'\n"
	}
	text += "[[listener]]\nname = 'test'\n"
	if !strings.Contains(listener, "address =") {
		text += "address = 'tcp:127.0.0.1:0'\n"
	}
	text += listener
	if !strings.Contains(listener, "[listener.routes]") {
		text += "\n[listener.routes]\n'*' = ['verdict']\n"
	}
	c, err := parseConfig("test.toml", text, []string{"test"})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return c
}

// testBackends are the backends that dialogues name in their routes.
var testBackends = map[string]backends.Backend{
	"verdict":   backends.Func(byLocalPart),
	"few":       backends.Func(byLocalPart),
	"message":   backends.Func(tellMessage),
	"envelope":  backends.Func(tellEnvelope),
	"xforward":  backends.Func(tellXForward),
	"pass":      backends.Func(func(context.Context, *backends.DataContext) error { return nil }),
	"tag":       backends.Func(func(_ context.Context, tx *backends.DataContext) error { return tx.AddField(0, "X-Tag: seen") }),
	"redirect":  backends.Func(redirect),
	"add":       backends.Func(addRecipients),
	"divert":    backends.Func(divert),
	"dsn":       capable{backends.Func(tellEnvelope), backends.Capabilities{DSN: true}},
	"poor":      capable{backends.Func(tellEnvelope), backends.Capabilities{Relays: true, Unknown: true}},
	"narrow":    capable{backends.Func(tellEnvelope), backends.Capabilities{Relays: true, Size: 1000, EightBitMIME: true, DSN: true}},
	"idle":      editor{backends.Func(redirect), backends.EditHeader | backends.EditMessage},
	"early":     earlyBackend{Func: byLocalPart},
	"second":    earlyBackend{Func: byLocalPart, name: "the second "},
	"closed":    gatekeeper{backends.Func(byLocalPart), backends.NewStatus(550, "5.7.1", "you are not welcome")},
	"busy":      gatekeeper{backends.Func(byLocalPart), backends.NewStatus(450, "4.3.2", "too busy")},
	"broken":    gatekeeper{backends.Func(byLocalPart), errors.New("open /etc/secret: permission denied")},
	"open":      gatekeeper{backends.Func(byLocalPart), nil},
	"rcpt":      recipientChecker{backends.Func(byLocalPart)},
	"client":    backends.Func(tellClient),
	"localonly": localOnly{backends.Func(byLocalPart)},
	"login":     userChecker{backends.Func(tellUser)},
	"relay":     relayChecker{userChecker{backends.Func(tellUser)}},
}

// capable is a backend that tells what it can do.
type capable struct {
	backends.Func
	can backends.Capabilities
}

func (b capable) Capabilities() backends.Capabilities { return b.can }

// editor is a backend that tells which edits it may make.
type editor struct {
	backends.Func
	may backends.EditKinds
}

func (b editor) MayEdit() backends.EditKinds { return b.may }

// byLocalPart decides by the local part.
func byLocalPart(_ context.Context, tx *backends.DataContext) error {
	var err error
	for i, r := range tx.Envelope.Recipients {
		local, _ := smtp.SplitMailbox(r.Address)
		switch kind, _, _ := strings.Cut(strings.ToLower(local), "-"); kind {
		case "temp":
			tx.SetStatus(i, backends.NewStatus(450, "4.2.1", "mailbox busy"))
		case "perm":
			tx.SetStatus(i, backends.NoSuchUser)
		case "custom":
			tx.SetStatus(i, backends.Delivered)
			tx.SetSMTPResponse(backends.NewStatus(250, "2.6.0", "queued as 12345"))
			tx.SetSMTPResponse(backends.NewStatus(250, "2.6.0", "the first one counts"))
		case "odd":
			tx.SetStatus(i, backends.Delivered)
			tx.SetSMTPResponse(backends.NewStatus(221, "2.0.0", "good bye"))
		case "hostile":
			tx.SetStatus(i, backends.NewStatus(250, "5.1.1", "fine\r\n221 2.0.0 bye\x00\xff"))
		case "greeting":
			tx.SetStatus(i, backends.NewStatus(354, "", "go ahead"))
		case "closing":
			tx.SetStatus(i, backends.NewStatus(421, "4.3.2", "plugin shuts down"))
		case "silent":
		case "error":
			err = errors.New("open /etc/secret: permission denied")
		case "status":
			err = backends.NewStatus(554, "5.7.1", "refused as a whole")
		case "panic":
			panic("a bug in a backend")
		default:
			tx.SetStatus(i, backends.Delivered)
		}
	}
	return err
}

func tellMessage(_ context.Context, tx *backends.DataContext) error {
	b, err := io.ReadAll(tx.Body)
	if err != nil {
		return err
	}
	if int64(len(b)) != tx.Size {
		return fmt.Errorf("size %d, but %d octets", tx.Size, len(b))
	}
	tx.SetAll(backends.NewStatus(250, "2.0.0", strconv.Quote(string(b))))
	return nil
}

func tellEnvelope(_ context.Context, tx *backends.DataContext) error {
	for i, r := range tx.Envelope.Recipients {
		tx.SetStatus(i, backends.NewStatus(250, "2.0.0", fmt.Sprintf("%s %s from=%+q %q to=%+q %q", tx.Session.Protocol, tx.Session.HELO,
			tx.Envelope.Sender, tx.Envelope.Params, r.Address, r.Params)))
	}
	return nil
}

func tellXForward(_ context.Context, tx *backends.DataContext) error {
	text := "none"
	if x := tx.Session.XForward; x != nil {
		text = fmt.Sprintf("%+v", *x)
	}
	tx.SetAll(backends.NewStatus(250, "2.0.0", text))
	return nil
}

// redirect sends every recipient on to the addresses that its local part
// names, parted by "+".
func redirect(_ context.Context, tx *backends.DataContext) error {
	for i, r := range tx.Envelope.Recipients {
		local, domain := smtp.SplitMailbox(r.Address)
		var to []string
		for name := range strings.SplitSeq(local, "+") {
			to = append(to, name+"@"+domain)
		}
		if err := tx.Redirect(i, to...); err != nil {
			return err
		}
	}
	return nil
}

// addRecipients adds NAME for each recipient with-NAME.
func addRecipients(_ context.Context, tx *backends.DataContext) error {
	for _, r := range tx.Envelope.Recipients {
		if name, ok := strings.CutPrefix(r.Address, "with-"); ok {
			if err := tx.AddRecipient(backends.Recipient{Address: name, Params: backends.Params{"ADDED=1"}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// divert diverts each recipient ROUTE-NAME, and first redirects it to NAME.
func divert(_ context.Context, tx *backends.DataContext) error {
	for i, r := range tx.Envelope.Recipients {
		route, name, ok := strings.Cut(r.Address, "-")
		if !ok {
			continue
		}
		if err := tx.Redirect(i, name); err != nil {
			return err
		}
		if err := tx.Divert(i, route); err != nil {
			return err
		}
	}
	return nil
}

// testServer makes a server of the keys of one listener. It is not started.
func testServer(t testing.TB, all map[string]backends.Backend, listener string) *Server {
	t.Helper()
	c := testConfig(t, all, listener)
	if few, ok := c.Backends["few"]; ok {
		few.RecipientsPerTransaction = 2
		c.Backends["few"] = few
	}
	s, err := New(c, all, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestDialogs runs each conversation against the dialog alone and over a
// real socket.
func TestDialogs(t *testing.T) {
	paths, _ := filepath.Glob("testdata/dialogs/*.txt")
	if len(paths) == 0 {
		t.Fatal("no dialogues")
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".txt")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			script := readScript(t, path)
			t.Run("alone", func(t *testing.T) { script.runAlone(t, path) })
			t.Run("socket", func(t *testing.T) { script.runSocket(t, path) })
		})
	}
}

// runAlone gives the dialog all that the client says at once.
func (s *script) runAlone(t *testing.T, path string) {
	server := testServer(t, testBackends, s.config)
	l := server.listeners[0]
	peer := backends.Peer{Addr: netip.MustParseAddrPort("127.0.0.1:1024")}
	if strings.HasPrefix(l.Address, "unix:") {
		peer = backends.Peer{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	}
	d := l.dialog(peer, "test")
	var in bytes.Buffer
	var want, got []string
	turns := map[int]bool{} // octets that the client has said when it waits
	for _, turn := range s.turns {
		in.Write(turn.say)
		turns[in.Len()] = true
		want = append(want, turn.hear...)
	}
	hear := func(r smtp.Reply) { got = append(got, strings.Split(r.String(), "\n")...) }

	r := bufio.NewReader(&in)
	all := in.Len()
	hello, next := d.greeting()
	if next == askBackends {
		hello, next = d.answer(t.Context())
	}
	hear(hello)
	hungUp := next == hangUp
	for !hungUp {
		line, err := smtp.ReadLine(r, int(d.Limits.CommandLine))
		if err == io.EOF {
			break
		}
		var answer smtp.Reply
		var next action
		if err != nil {
			answer, next = d.badLine(err)
		} else {
			d.hasty = !turns[all-in.Len()-r.Buffered()]
			answer, next = d.command(string(line))
		}
		if next == askBackends {
			answer, next = d.answer(t.Context())
		}
		if next != readChunk {
			hear(answer)
		}
		hungUp = next == hangUp
		delivery, answer, err := readAlone(t, server, d, r, next)
		switch {
		case err != nil:
			t.Fatalf("%s: %v", path, err)
		case delivery != nil:
			for answer := range carry(t, delivery).told(d.Protocol) {
				if answer.Code/100 == 2 {
					d.forgive()
				}
				hear(answer)
			}
		case next == readChunk:
			hear(answer)
		}
	}
	for i := range max(len(got), len(want)) {
		g, w := "nothing", "nothing"
		if i < len(got) {
			g = masked(got[i])
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Fatalf("%s: reply line %d: got %q, want %q\nall: %q", path, i+1, g, w, got)
		}
	}
	if hungUp != s.hangUp {
		t.Errorf("%s: hangs up: %v, want %v", path, hungUp, s.hangUp)
	}
}

// readAlone reads what follows a command, as conn does. If that was the end
// of a message, it returns its delivery, and after another chunk the reply.
func readAlone(t *testing.T, s *Server, d *dialog, r *bufio.Reader, next action) (*delivery, smtp.Reply, error) {
	switch next {
	case readMessage:
		dots := smtp.NewDotReader(r)
		delivery, err := s.receive(t.Context(), d, dots, dots.Bare, s.log)
		return delivery, smtp.Reply{}, err
	case readChunk:
		return s.receiveChunk(t.Context(), d, smtp.NewChunkReader(r, d.chunk.size), s.log)
	case skipChunk:
		_, err := io.Copy(io.Discard, smtp.NewChunkReader(r, d.chunk.size))
		return nil, smtp.Reply{}, err
	}
	return nil, smtp.Reply{}, nil
}

// runSocket is the client of a server.
func (s *script) runSocket(t *testing.T, path string) {
	config := strings.ReplaceAll(s.config, "unix:SOCKET", "unix:"+filepath.Join(t.TempDir(), "socket"))
	server := testServer(t, testBackends, config)
	c := dialServer(t, server)
	for _, turn := range s.turns {
		if _, err := c.Write(turn.say); err != nil {
			t.Fatalf("%s:%d: %v", path, turn.line, err)
		}
		for i, want := range turn.hear {
			got, err := c.ReadString('\n')
			if got = masked(strings.TrimSuffix(got, "\r\n")); got != want || err != nil {
				t.Fatalf("%s:%d: got %q, %v, want %q", path, turn.line+i, got, err, want)
			}
		}
	}
	if s.hangUp {
		if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
			t.Errorf("%s: got %q, %v, want the end of the connection", path, rest, err)
		}
		return
	}
	// Nothing more comes than the dialogue says, and the session still lives.
	fmt.Fprint(c, "NOOP\r\n")
	if got, err := c.ReadString('\n'); got != "250 2.0.0 ok\r\n" {
		t.Errorf("%s: after the dialogue, NOOP gets %q, %v", path, got, err)
	}
}

// client is a connection with what it received in a buffer.
type client struct {
	net.Conn
	*bufio.Reader
}

func (c client) Read(p []byte) (int, error) { return c.Reader.Read(p) }

// serve runs a server until the test ends.
func serve(t testing.TB, s *Server) {
	t.Helper()
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		s.Serve()
		close(served)
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		<-served
	})
}

// dialServer starts a server and connects to its first listener.
func dialServer(t testing.TB, s *Server) client {
	t.Helper()
	serve(t, s)
	return dial(t, s)
}

func dial(t testing.TB, s *Server) client {
	t.Helper()
	l := s.listeners[0]
	network, address := l.socket.Addr().Network(), l.socket.Addr().String()
	if network == "unix" {
		_, address, _ = strings.Cut(l.Address, ":")
	}
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return client{c, bufio.NewReader(c)}
}
