package relay

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
	"github.com/mailgw/mailgw/xforward"
)

// A dialog is a conversation of the relay with a target, and what it tells of it.
// The files in testdata/dialogs have lines that begin with
//
//	set   a setting, or lmtp
//	>     what the relay gets: MAIL, RCPT and what is of the session, and then
//	      the MESSAGE
//	S: C: what the target says, and what it hears
//	C~    what it hears, quoted, without a CRLF
//	S.    the target hangs up; the next line is of the next connection
//	C.    the same, but the relay hangs up
//	<     what the relay tells: each recipient's status, the answer of an SMTP
//	      client, the digest, warnings of the log
type dialog struct {
	settings    Settings
	lmtp        bool
	steps       []string
	connections [][]string
	want        []string
}

func readDialog(t *testing.T, path string) *dialog {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := &dialog{settings: Defaults, connections: [][]string{nil}}
	d.settings.Hello = "gw.example.org"
	for n, l := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		kind, rest, _ := strings.Cut(l, " ")
		switch kind {
		case "set":
			d.set(t, rest)
		case ">":
			d.steps = append(d.steps, rest)
		case "<":
			d.want = append(d.want, rest)
		case "S:", "C:", "C~", "S.", "C.":
			last := &d.connections[len(d.connections)-1]
			*last = append(*last, l)
			if kind[1] == '.' {
				d.connections = append(d.connections, nil)
			}
		case "#", "":
		default:
			t.Fatalf("%s:%d: line begins with %q", path, n+1, kind)
		}
	}
	if n := len(d.connections); d.connections[n-1] == nil {
		d.connections = d.connections[:n-1]
	}
	return d
}

func (d *dialog) set(t *testing.T, what string) {
	switch key, value, _ := strings.Cut(what, " "); key {
	case "lmtp":
		d.lmtp = true
	case "xclient":
		d.settings.XClient = true
	case "xforward_errors":
		d.settings.XForwardErrors = value
	default:
		t.Fatalf("no setting %q", what)
	}
}

// serve is the target. After an error nobody else is let wait for it.
func (d *dialog) serve(listener net.Listener) error {
	defer listener.Close()
	for n, lines := range d.connections {
		conn, err := listener.Accept()
		if err != nil {
			return fmt.Errorf("connection %d: %w", n+1, err)
		}
		if err := converse(conn, lines); err != nil {
			return fmt.Errorf("connection %d: %w", n+1, err)
		}
	}
	return nil
}

// patience is how long a target waits for a relay that waits for it.
const patience = 20 * time.Second

func converse(conn net.Conn, lines []string) error {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	r := bufio.NewReader(conn)
	for _, l := range lines {
		kind, text, _ := strings.Cut(l, " ")
		switch kind {
		case "S:":
			if _, err := io.WriteString(conn, text+"\r\n"); err != nil {
				return fmt.Errorf("before %s: %w", l, err)
			}
		case "C:":
			if got, err := r.ReadString('\n'); got != text+"\r\n" {
				return fmt.Errorf("relay said %q, %v; want %q", got, err, text)
			}
		case "C~":
			want, err := strconv.Unquote(text)
			if err != nil {
				return err
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(r, got); string(got) != want {
				return fmt.Errorf("relay said %q, %v; want %q", got, err, want)
			}
		case "S.":
			return nil
		}
	}
	if rest, _ := io.ReadAll(r); len(rest) > 0 {
		return fmt.Errorf("relay said more: %q", rest)
	}
	return nil
}

// A witness writes down what the relay tells.
type witness struct {
	mu   sync.Mutex
	told []string
}

func (w *witness) tell(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, fmt.Sprintf(format, args...))
}

// Handle has the witness hear warnings, without what differs each time.
func (w *witness) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "target", "pause":
		case "error":
			text += ": " + a.Value.String()
		default:
			text += " " + a.String()
		}
		return true
	})
	w.tell("log %s", text)
	return nil
}

func (w *witness) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (w *witness) WithAttrs([]slog.Attr) slog.Handler           { return w }
func (w *witness) WithGroup(string) slog.Handler                { return w }

// deliver gives the relay the transactions of the steps.
func (d *dialog) deliver(t *testing.T, b backends.Backend, w *witness) {
	tx := newTransaction()
	for _, step := range d.steps {
		verb, args, _ := strings.Cut(step, " ")
		switch verb {
		case "MAIL":
			path, params, err := smtp.CutPath(args, "FROM:")
			if err != nil {
				t.Fatal(step, err)
			}
			tx.Envelope.Sender, tx.Envelope.Params = path, params
		case "RCPT":
			path, params, err := smtp.CutPath(args, "TO:")
			if err != nil {
				t.Fatal(step, err)
			}
			tx.Envelope.Recipients = append(tx.Envelope.Recipients, backends.Recipient{Address: path, Params: params})
		case "XFORWARD":
			tx.Session.XForward = &xforward.Attrs{}
			if err := tx.Session.XForward.Parse(args); err != nil {
				t.Fatal(step, err)
			}
		case "USER":
			tx.Session.User = args
		case "GATEWAY":
			tx.Session.Gateway = args
		case "MESSAGE":
			message, err := strconv.Unquote(args)
			if err != nil {
				t.Fatal(step, err)
			}
			run(t, b, tx, message, w)
			tx = newTransaction()
		default:
			t.Fatalf("no step %q", step)
		}
	}
}

// run gives the relay one transaction.
func run(t *testing.T, b backends.Backend, tx *backends.DataContext, message string, w *witness) {
	t.Helper()
	digester := backends.NewDigester()
	io.WriteString(digester, message)
	before := digester.Digest()
	tx.Body, tx.Size = strings.NewReader(message), int64(len(message))
	undecided, err := backends.Run(t.Context(), b, tx, backends.Hooks{
		Status:       func(i int, s backends.Status) { w.tell("%d: %v", i, s.Sanitized()) },
		SMTPResponse: func(s backends.Status) { w.tell("response %v", s.Sanitized()) },
		Wrote: func(after backends.Digest) {
			added, removed, changed := after.Since(before)
			w.tell("header +%d-%d, body changed %t", added, removed, changed)
		},
		Ignored: func(i int, s backends.Status, why string) { w.tell("%d: ignored %v: %s", i, s, why) },
	})
	if err != nil || len(undecided) > 0 {
		w.tell("undecided %v, error %v", undecided, err)
	}
}

func newTransaction() *backends.DataContext {
	return &backends.DataContext{ID: "tx1", Session: backends.Session{
		Protocol: "ESMTP",
		HELO:     "client.example.net",
		Peer:     backends.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:2525")},
	}}
}

func TestDialogs(t *testing.T) {
	paths, err := filepath.Glob("testdata/dialogs/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) { readDialog(t, path).run(t) })
	}
}

func (d *dialog) run(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() { served <- d.serve(listener) }()

	w := &witness{}
	logTo(t, w)
	scheme := "smtp://"
	if d.lmtp {
		scheme = "lmtp://"
	}
	d.settings.Targets = []string{scheme + listener.Addr().String()}
	b, err := open(d.settings)
	if err != nil {
		t.Fatal(err)
	}
	d.deliver(t, b, w)
	b.Close()
	listener.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if !slices.Equal(w.told, d.want) {
		t.Errorf("it told\n\t%s\nwant\n\t%s", strings.Join(w.told, "\n\t"), strings.Join(d.want, "\n\t"))
	}
}

// logTo has a handler hear the log of the test.
func logTo(t *testing.T, h slog.Handler) {
	before := slog.Default()
	slog.SetDefault(slog.New(h))
	t.Cleanup(func() { slog.SetDefault(before) })
}
