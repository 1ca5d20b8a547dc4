package gateway

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// TestMain lets the test binary be the client of BenchmarkLoad.
func TestMain(m *testing.M) {
	if text := os.Getenv(loadVariable); text != "" {
		var l load
		err := json.Unmarshal([]byte(text), &l)
		if err == nil {
			err = l.serve(os.Stdin, os.Stdout)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

const loadVariable = "MAILGW_BENCH_LOAD"

// A load is what a client sends.
type load struct {
	Socket     string
	Sessions   int
	Recipients int
	Size       int
	New        bool // connection for each message
	Pipelined  bool
}

// What does a message cost from the socket to the answer, with its log and
// without the border to a plugin? The client is another process, so that the CPU
// time is the gateway's alone.
func BenchmarkLoad(b *testing.B) {
	for _, bench := range []struct {
		name string
		load
	}{
		{"1-session", load{Sessions: 1, Recipients: 1}},
		{"20-sessions", load{Sessions: 20, Recipients: 1}},
		{"20-sessions-pipelined", load{Sessions: 20, Recipients: 1, Pipelined: true}},
		{"50-recipients", load{Sessions: 20, Recipients: 50, Pipelined: true}},
		{"new-connections", load{Sessions: 20, Recipients: 1, New: true}},
		{"1-MiB", load{Sessions: 20, Recipients: 1, Size: 1 << 20}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			bench.Size = cmp.Or(bench.Size, 4<<10)
			bench.run(b)
		})
	}
}

func (l load) run(b *testing.B) {
	dir := b.TempDir()
	l.Socket = filepath.Join(dir, "socket")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	all := map[string]backends.Backend{"discard": noEditor{func(_ context.Context, tx *backends.DataContext) error {
		_, err := io.Copy(io.Discard, tx.Body)
		tx.SetAll(backends.Delivered)
		return err
	}}}
	c := testConfig(b, all, "protocol = 'lmtp'\naddress = 'unix:"+l.Socket+"'\n[listener.routes]\n'*' = ['discard']\n")
	s, err := New(c, all, NewLogger(c.Log, log))
	if err != nil {
		b.Fatal(err)
	}
	serve(b, s)
	client := l.start(b)
	client(2 * l.Sessions)
	b.SetBytes(int64(l.Size))
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime(b)
	client(b.N)
	b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
}

// start starts the client. The function has it send so many messages.
func (l load) start(b *testing.B) func(messages int) {
	text, err := json.Marshal(l)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), loadVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	return func(messages int) {
		fmt.Fprintln(stdin, messages)
		if _, err := fmt.Fscanln(stdout, &messages); err != nil {
			b.Fatal(err)
		}
	}
}

func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// serve sends as many messages as each line of r says, and then says so to w.
func (l load) serve(r io.Reader, w io.Writer) error {
	senders := make([]*sender, l.Sessions)
	for i := range senders {
		senders[i] = newSender(l)
	}
	for {
		var messages int
		if _, err := fmt.Fscanln(r, &messages); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		var left atomic.Int64
		left.Store(int64(messages))
		errs := make([]error, len(senders))
		var all sync.WaitGroup
		for i, s := range senders {
			all.Go(func() {
				for left.Add(-1) >= 0 && errs[i] == nil {
					errs[i] = s.send()
				}
			})
		}
		all.Wait()
		for _, err := range errs {
			if err != nil {
				return err
			}
		}
		fmt.Fprintln(w, messages)
	}
}

// A sender is one session of the client.
type sender struct {
	load
	envelope []string
	message  string
	conn     net.Conn
	r        *bufio.Reader
}

func newSender(l load) *sender {
	s := &sender{load: l, envelope: []string{"MAIL FROM:<ann@sender.example>\r\n"}}
	for i := range l.Recipients {
		s.envelope = append(s.envelope, fmt.Sprintf("RCPT TO:<recipient%d@example.org>\r\n", i))
	}
	s.envelope = append(s.envelope, "DATA\r\n")
	if l.Pipelined {
		s.envelope = []string{strings.Join(s.envelope, "")}
	}
	header := "Received: from client.example by mx.example.org; Sat, 21 Nov 2026 18:00:00 +0000\r\n" +
		"From: Ann <ann@sender.example>\r\nTo: Bob <bob@example.org>\r\nSubject: A message\r\n" +
		"Message-ID: <1@sender.example>\r\nContent-Type: text/plain\r\n\r\n"
	line := strings.Repeat("x", 62) + "\r\n"
	s.message = header + strings.Repeat(line, (l.Size-len(header))/len(line)) + ".\r\n"
	return s
}

func (s *sender) send() (err error) {
	if s.conn == nil {
		if s.conn, err = net.Dial("unix", s.Socket); err != nil {
			return err
		}
		s.r = bufio.NewReader(s.conn)
		if err := s.hear(1); err != nil {
			return err
		}
		if err := s.ask("LHLO client.example\r\n", 1); err != nil {
			return err
		}
	}
	for _, command := range s.envelope {
		if err := s.ask(command, strings.Count(command, "\n")); err != nil {
			return err
		}
	}
	if err := s.ask(s.message, s.Recipients); err != nil {
		return err
	}
	if s.New {
		err = s.ask("QUIT\r\n", 1)
		s.conn.Close()
		s.conn = nil
	}
	return err
}

func (s *sender) ask(command string, replies int) error {
	if _, err := io.WriteString(s.conn, command); err != nil {
		return err
	}
	return s.hear(replies)
}

func (s *sender) hear(replies int) error {
	for replies > 0 {
		line, err := s.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if line[0] != '2' && line[0] != '3' {
			return fmt.Errorf("got %q", line)
		}
		if line[3] == ' ' {
			replies--
		}
	}
	return nil
}

// What does a command cost between its line and its reply?
func BenchmarkCommand(b *testing.B) {
	s := testServer(b, testBackends, "protocol = 'lmtp'\n")
	for _, command := range []string{"NOOP", "MAIL FROM:<ann@sender.example>", "MAIL FROM:<ann@sender.example> SIZE=4096 BODY=8BITMIME", "RCPT TO:<recipient1@example.org>"} {
		b.Run(strings.ReplaceAll(command, " ", "_"), func(b *testing.B) {
			d := s.listeners[0].dialog(backends.Peer{}, "test")
			d.command("LHLO x")
			d.command("MAIL FROM:<ann@sender.example>")
			b.ReportAllocs()
			before := cpuTime(b)
			for b.Loop() {
				if strings.HasPrefix(command, "MAIL") {
					d.reset()
				} else if len(d.tx.recipients) == 50 {
					d.reset()
					d.command("MAIL FROM:<ann@sender.example>")
				}
				if r, _ := d.command(command); r.Code != 250 {
					b.Fatal(r)
				}
			}
			b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}

// What do the lines cost that tell of a transaction, from its log to the write?
func BenchmarkTransactionLines(b *testing.B) {
	for _, format := range []string{"text", "json"} {
		for _, recipients := range []int{1, 4, 50} {
			b.Run(fmt.Sprintf("%s/%d-recipients", format, recipients), func(b *testing.B) {
				s := testServer(b, testBackends, "protocol = 'lmtp'\n")
				s.log = NewLogger(LogConfig{Level: "info", Format: format}, io.Discard)
				d := s.listeners[0].dialog(backends.Peer{}, "test")
				d.command("LHLO client.example")
				log := d.sessionLog()
				d.command("MAIL FROM:<ann@sender.example>")
				for i := range recipients {
					d.command(fmt.Sprintf("RCPT TO:<recipient%d@example.org>", i))
				}
				tx := d.tx
				tx.message = &message{size: 4096}
				b.ReportAllocs()
				before := cpuTime(b)
				for b.Loop() {
					d.tx = tx
					delivery := d.gen.newDelivery(d, log)
					delivery.logReceived()
					for i := range delivery.fates {
						delivery.fates[i].holder, delivery.fates[i].decided = "discard", backends.Delivered
					}
					delivery.settle(0, recipients)
					flushLog(delivery.log)
				}
				b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
			})
		}
	}
}
