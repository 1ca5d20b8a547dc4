package gateway

import (
	"bufio"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// pipe begins a session over a connection in memory, on which the time is
// that of the test's bubble.
func pipe(t *testing.T, s *Server) client {
	t.Helper()
	here, there := net.Pipe()
	go newConn(s.listeners[0].dialog(backends.Peer{}, "test"), there).serve(t.Context())
	return client{here, bufio.NewReader(here)}
}

// A command has a time for the whole of it. A message has one for each part,
// so that a client on a slow line may go on as long as it makes progress, and
// one for the whole.
func TestTimeOfSlowClients(t *testing.T) {
	const (
		message = "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<ok@example.org>\r\nDATA\r\n"
		timeout = "421 4.4.2 mx.example.org timeout\r\n"
	)
	for _, test := range []struct {
		name, say string
		slowly    string // what is said octet by octet
		pause     time.Duration
		want      string // that the server says last
		after     time.Duration
	}{
		{"command in time", "", "QUIT\r\n", 9 * time.Second, "221 2.0.0 mx.example.org good bye\r\n", 54 * time.Second},
		{"slow command", "", "QUIT\r\n", 11 * time.Second, timeout, time.Minute},
		{"message that makes progress", message, "0123456789\r\n.\r\nQUIT\r\n", 9 * time.Second, "221 2.0.0 mx.example.org good bye\r\n", 189 * time.Second},
		{"message that stops", message, "0", 0, timeout, time.Minute},
		{"message that takes too long", message, strings.Repeat("0", 100), 50 * time.Second, timeout, 20 * time.Minute},
		{"transaction with refused chunks", "EHLO x\r\nMAIL FROM:<>\r\n", strings.Repeat("NOOP\r\n", 36) + "BDAT 999\r\n" + strings.Repeat("0", 999), 5 * time.Second, timeout, 20 * time.Minute},
		{"transaction that never comes to its message", "EHLO x\r\nMAIL FROM:<>\r\n", strings.Repeat("NOOP\r\n", 100), 9 * time.Second, timeout, 20 * time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testServer(t, testBackends, "protocol = 'smtp'\n[listener.limits]\ncommand_timeout = '1m'\nmessage_timeout = '20m'\n")
				c := pipe(t, s)
				began := time.Now()
				var saying sync.WaitGroup
				saying.Go(func() {
					_, err := io.WriteString(c, test.say)
					for i := 0; i < len(test.slowly) && err == nil; i++ {
						time.Sleep(test.pause)
						_, err = io.WriteString(c, test.slowly[i:i+1])
					}
				})
				all, err := io.ReadAll(c)
				waited := time.Since(began)
				c.Close()
				saying.Wait()
				if !strings.HasSuffix(string(all), test.want) || err != nil || waited != test.after {
					t.Errorf("got %q, %v after %v, want %q after %v", all, err, waited, test.want, test.after)
				}
				if delivered := strings.Contains(string(all), "delivered"); delivered != strings.Contains(test.slowly, "\r\n.\r\n") {
					t.Errorf("delivered: %v", delivered)
				}
			})
		})
	}
}

// A session that waits has no buffers, and none goes without its answer for that.
func TestRestingSessionsAreSmall(t *testing.T) {
	const sessions, most = 500, 14 << 10 // half of it with the race detector off
	address := "unix:" + filepath.Join(t.TempDir(), "socket")
	s := testServer(t, testBackends, "protocol = 'lmtp'\naddress = '"+address+"'\n")
	serve(t, s)
	memory := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	clients := make([]client, sessions)
	say := func(command, want string) {
		t.Helper()
		for _, c := range clients {
			if got := c.ask(t, command); got != want {
				t.Fatalf("%s: got %q, want %q", command, got, want)
			}
		}
	}
	before := memory()
	for i := range clients {
		clients[i] = dial(t, s)
		clients[i].Reader = bufio.NewReaderSize(clients[i].Conn, 16)
		clients[i].hear(t)
	}
	say("RSET", "250 2.0.0 ok")
	var each int64
	for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
		if each = (memory() - before) / sessions; each <= most {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a session that waits has %d octets, want at most %d", each, most)
		}
	}
	say("NOOP", "250 2.0.0 ok")
}
