package smtpclient

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/mailgw/mailgw/internal/smtp"
)

// A script is a dialogue of testdata:
//
//	> a command of steps, that the caller of the client gives
//	< what comes of it
//	C: a line that the client sends, without its CRLF
//	C~ "octets that the client sends, as a Go string\n", or the beginning of a line
//	C. the client hangs up
//	S: a line that the server sends
//	S~ "octets that the server sends, as a Go string\n"
//	S. the server hangs up
//
// Lines of the server go out together up to the next line of the client.
type script struct {
	server []string
	steps  []string
	want   []string
}

func readScript(t *testing.T, path string) (s script) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n, l := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		kind, rest, _ := strings.Cut(l, " ")
		switch kind {
		case ">":
			s.steps = append(s.steps, rest)
			s.want = append(s.want, l)
		case "<":
			s.want = append(s.want, l)
		case "C:", "C~", "C.", "S:", "S~", "S.":
			s.server = append(s.server, l)
		case "#", "":
		default:
			t.Fatalf("%s:%d: line begins with %q", path, n+1, kind)
		}
	}
	return s
}

// patience is how long a server waits for a client that waits for it.
const patience = 20 * time.Second

// play is the server's part. At the end the client has to hang up.
func (s script) play(conn net.Conn) error {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	r := bufio.NewReader(conn)
	if err := s.say(conn, r); err != nil || s.server[len(s.server)-1] == "S." {
		return err
	}
	if rest, _ := io.ReadAll(r); len(rest) > 0 {
		return fmt.Errorf("client said more: %q", rest)
	}
	return nil
}

func (s script) say(conn net.Conn, r *bufio.Reader) error {
	w := bufio.NewWriter(conn)
	for _, l := range s.server {
		kind, text, _ := strings.Cut(l, " ")
		switch kind {
		case "S:":
			w.WriteString(text + "\r\n")
			continue
		case "S~":
			raw, err := strconv.Unquote(text)
			if err != nil {
				return err
			}
			w.WriteString(raw)
			continue
		}
		if err := w.Flush(); err != nil {
			return fmt.Errorf("before %s: %w", l, err)
		}
		switch kind {
		case "S.":
			return nil
		case "C:":
			if got, err := r.ReadString('\n'); got != text+"\r\n" {
				return fmt.Errorf("client said %q, %v; want %q", got, err, text)
			}
		case "C~":
			if err := readRaw(r, text); err != nil {
				return err
			}
		case "C.":
			if rest, _ := io.ReadAll(r); len(rest) > 0 {
				return fmt.Errorf("client said %q; want it to hang up", rest)
			}
		}
	}
	return w.Flush()
}

// readRaw reads octets, or a line that begins with text.
func readRaw(r *bufio.Reader, text string) error {
	if raw, err := strconv.Unquote(text); err == nil {
		got := make([]byte, len(raw))
		if _, err := io.ReadFull(r, got); string(got) != raw {
			return fmt.Errorf("client said %q, %v; want %q", got, err, raw)
		}
		return nil
	}
	if got, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(got, text) {
		return fmt.Errorf("client said %q, %v; want %q", got, err, text)
	}
	return nil
}

// A caller does the steps of a script.
type caller struct {
	t          *testing.T
	c          *Conn
	message    string
	unreadable bool     // after its first octets
	said       []string // what came of them
}

func (u *caller) step(text string) {
	u.said = append(u.said, "> "+text)
	verb, args, _ := strings.Cut(text, " ")
	words := strings.Fields(args)
	ctx := u.t.Context()
	switch verb {
	case "lmtp":
		u.c.LMTP = true
	case "hello":
		u.result(u.c.Hello(ctx))
	case "extension":
		params, ok := u.c.Extension(args)
		u.say("%q %v", params, ok)
	case "xforward":
		u.result(u.c.XForward(ctx, []string{"XFORWARD " + args}))
	case "xclient":
		u.result(u.c.XClient(ctx, []string{"XCLIENT " + args}))
	case "auth":
		u.result(u.c.Auth(ctx, Credentials{User: words[0], Password: words[1], InClear: len(words) > 2}))
	case "message":
		var err error
		if u.message, err = strconv.Unquote(args); err != nil {
			u.t.Fatal(err)
		}
	case "unreadable":
		u.unreadable = true
	case "send":
		u.send(words)
	case "provoke":
		octets, err := strconv.Unquote(args)
		if err != nil {
			u.t.Fatal(err)
		}
		replies, err := u.c.Provoke(ctx, &Transaction{Sender: "s@x", Recipients: []Recipient{{Address: "a@x"}}}, octets)
		for _, r := range replies {
			u.say("%s", Line(r))
		}
		if err != nil {
			u.say("%v", err)
		}
	case "reset":
		u.result(u.c.Reset(ctx))
	case "noop":
		u.result(u.c.Noop(ctx))
	case "quit":
		u.result(u.c.Quit(ctx))
	default:
		u.t.Fatalf("no step %q", verb)
	}
}

// send sends to the words that are no parameters of MAIL, not "chunking" and
// not the size that is said to be the message's.
func (u *caller) send(words []string) {
	tx := Transaction{Sender: "s@x", Message: strings.NewReader(u.message), Size: int64(len(u.message))}
	if u.unreadable {
		tx.Message = io.MultiReader(strings.NewReader("Sub"), iotest.ErrReader(errors.New("disk on fire")))
	}
	for _, w := range words {
		switch {
		case w == "chunking":
			tx.Chunking = true
		case strings.HasPrefix(w, "size="):
			tx.Size, _ = strconv.ParseInt(w[5:], 10, 64)
		case strings.Contains(w, "="):
			tx.Params = append(tx.Params, w)
		default:
			tx.Recipients = append(tx.Recipients, Recipient{Address: w})
		}
	}
	answered := make([]int, len(tx.Recipients))
	u.c.Send(u.t.Context(), &tx, func(i int, r smtp.Reply, err error) {
		answered[i]++
		if err == nil {
			u.say("%s %s", tx.Recipients[i].Address, Line(r))
		} else {
			u.say("%s %v", tx.Recipients[i].Address, err)
		}
	})
	for i, n := range answered {
		if n != 1 {
			u.t.Errorf("recipient %d has %d answers", i, n)
		}
	}
}

func (u *caller) say(format string, args ...any) {
	u.said = append(u.said, "< "+fmt.Sprintf(format, args...))
}

func (u *caller) result(err error) {
	if err != nil {
		u.say("%v", err)
	} else {
		u.say("ok")
	}
}

// TestDialogs plays the scripts of testdata.
func TestDialogs(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.txt")
	if len(files) == 0 {
		t.Fatal("no dialogues")
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			s := readScript(t, file)
			conn := serve(t, s.play)
			c := New(conn, Settings{Name: "me"})
			u := caller{t: t, c: c, message: "Subject: hi\r\n\r\n.dot\r\n"}
			for _, step := range s.steps {
				u.step(step)
			}
			c.Close()
			if got, want := strings.Join(u.said, "\n"), strings.Join(s.want, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// serve returns a connection to a server, whose end the test waits for.
func serve(t *testing.T, server func(net.Conn) error) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server(conn); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		client.Close()
		<-done
	})
	return client
}
