package smtpclient

import (
	"bufio"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/mailgw/mailgw/internal/smtp"
)

// endless is a message without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	const line = "one line like the other\r\n"
	n := 0
	for n+len(line) <= len(p) {
		n += copy(p[n:], line)
	}
	return n, nil
}

// The server has enough in the middle of the message, and hangs up or reads on.
// What it says then counts, unless it is a yes.
func TestServerStopsMessage(t *testing.T) {
	before := script{server: strings.Split("S: 220 mx|C: EHLO me|S: 250-mx|S: 250 CHUNKING|C: MAIL FROM:<>|S: 250 ok|C: RCPT TO:<a@x>|S: 250 ok", "|")}
	for _, test := range []struct {
		says     string
		hangsUp  bool
		chunking bool
		want     string // beginning of the error
	}{
		{"552 5.3.4 too large\r\n", true, false, "message: server said 552 5.3.4 too large"},
		{"552 5.3.4 too large\r\n", false, false, "message: server said 552 5.3.4 too large"},
		{"552 5.3.4 too large\r\n", true, true, "message: server said 552 5.3.4 too large"},
		{"552 5.3.4 too large\r\n", false, true, "message: server said 552 5.3.4 too large"},
		{"421 4.3.2 shutting down\r\n", true, false, "message: server said 421 4.3.2 shutting down"},
		{"250 2.0.0 delivered\r\n", false, false, "message: reply before the end of the message"},
		{"250 2.0.0 delivered\r\n", true, false, "message: reply before the end of the message"},
		{"250 2.0.0 delivered\r\n", false, true, "message: reply before the end of the message"},
		{"nonsense\r\n", false, false, `message: not a reply: "nonsense"`},
		{"", true, false, "message: connection lost"},
		{"", true, true, "message: connection lost"},
	} {
		c := New(serve(t, func(conn net.Conn) error {
			defer conn.Close()
			r := bufio.NewReader(conn)
			if err := before.say(conn, r); err != nil {
				return err
			}
			if !test.chunking {
				r.ReadString('\n')
				io.WriteString(conn, "354 go on\r\n")
			}
			r.ReadString('\n')
			r.ReadString('\n')
			io.WriteString(conn, test.says)
			if !test.hangsUp {
				io.Copy(io.Discard, r)
			}
			return nil
		}), Settings{Name: "me"})
		if err := c.Hello(t.Context()); err != nil {
			t.Fatal(err)
		}
		tx := Transaction{Recipients: []Recipient{{Address: "a@x"}}, Message: endless{}, Size: 1 << 40, Chunking: test.chunking}
		c.Send(t.Context(), &tx, func(_ int, _ smtp.Reply, err error) {
			if err == nil || !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("%q: got %v, want %s", test.says, err, test.want)
			}
		})
		if c.Err() == nil {
			t.Errorf("%q: the connection is said to be of use", test.says)
		}
	}
}

// What the server gets is what the message was, however it is read and however
// large it is.
func TestMessageArrivesAsItIs(t *testing.T) {
	line := strings.Repeat("x", 997) + "\r\n"
	for _, message := range []string{
		"",
		".\r\n..\r\n.x\r\n",
		strings.Repeat("\r\n", bufferSize),
		strings.Repeat(".\r\n", bufferSize),
		strings.Repeat(line, 3000),
		strings.Repeat("x", bufferSize-1) + "\r\n." + strings.Repeat("x", bufferSize-1) + "\r\n",
		strings.Repeat("\x00\xff", 1<<20) + "\r\n",
	} {
		for _, chunking := range []bool{false, true} {
			for _, one := range []bool{false, true} {
				if one && len(message) > 2*bufferSize {
					continue // slow
				}
				if got := passOn(t, message, chunking, one); got != message {
					t.Errorf("%.20q of %d octets, chunking %v, octet by octet %v: arrives as %.20q of %d octets", message, len(message), chunking, one, got, len(got))
				}
			}
		}
	}
}

// passOn returns what becomes of a message, which may be read octet by octet.
func passOn(t *testing.T, message string, chunking, one bool) (got string) {
	t.Helper()
	before := script{server: strings.Split("S: 220 mx|C: EHLO me|S: 250-mx|S: 250 CHUNKING|C: MAIL FROM:<>|S: 250 ok|C: RCPT TO:<a@x>|S: 250 ok", "|")}
	done := make(chan struct{})
	c := New(serve(t, func(conn net.Conn) error {
		defer close(done)
		defer conn.Close()
		r := bufio.NewReader(conn)
		if err := before.say(conn, r); err != nil {
			return err
		}
		var body io.Reader
		if command, _ := r.ReadString('\n'); command == "DATA\r\n" {
			io.WriteString(conn, "354 go on\r\n")
			body = smtp.NewDotReader(r)
		} else {
			body = smtp.NewChunkReader(r, int64(len(message)))
		}
		octets, err := io.ReadAll(body)
		got = string(octets)
		io.WriteString(conn, "250 ok\r\n")
		return err
	}), Settings{Name: "me"})
	defer c.Close()
	if err := c.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	var r io.Reader = strings.NewReader(message)
	if one {
		r = iotest.OneByteReader(r)
	}
	tx := Transaction{Recipients: []Recipient{{Address: "a@x"}}, Message: r, Size: int64(len(message)), Chunking: chunking}
	c.Send(t.Context(), &tx, func(_ int, _ smtp.Reply, err error) {
		if err != nil {
			t.Errorf("%.20q: %v", message, err)
		}
	})
	<-done
	return got
}

// RFC 2920, section 3.1: neither side has to wait for the other because the
// buffers are full. A command that is too long for a group is one.
func TestGroupsAreSmall(t *testing.T) {
	for _, length := range []int{1, 300, pipelinedOctets + 1} {
		tx := Transaction{Recipients: slices.Repeat([]Recipient{{Address: strings.Repeat("x", length)}}, 200)}
		d := delivery{Conn: &Conn{extensions: map[string]string{"PIPELINING": ""}}, tx: &tx}
		n := 0
		for _, group := range d.groups() {
			octets := 0
			for _, l := range group {
				octets += len(l.text)
			}
			if len(group) > pipelined || octets > pipelinedOctets && len(group) > 1 {
				t.Errorf("addresses of %d octets: %d commands of %d octets together", length, len(group), octets)
			}
			n += len(group)
		}
		if n != 202 {
			t.Errorf("addresses of %d octets: %d commands, want 202", length, n)
		}
	}
}

// Lines cost no memory.
func TestLongMessageCostsNoMore(t *testing.T) {
	cost := func(lines int) float64 {
		message := strings.NewReader("")
		text := strings.Repeat("a line\r\n", lines)
		return testing.AllocsPerRun(10, func() {
			message.Reset(text)
			c := New(&fakeConn{turns: []string{"220\r\n", "250\r\n", "250\r\n", "250\r\n", "354\r\n", "250\r\n"}}, Settings{})
			if err := c.Hello(t.Context()); err != nil {
				t.Fatal(err)
			}
			tx := Transaction{Recipients: []Recipient{{Address: "a@x"}}, Message: message}
			c.Send(t.Context(), &tx, func(_ int, _ smtp.Reply, err error) {
				if err != nil {
					t.Fatal(err)
				}
			})
		})
	}
	if few, many := cost(1), cost(10000); many > few+10 {
		t.Errorf("%v allocations for 10000 lines, %v for one", many, few)
	}
}
