package abuse

import (
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

const (
	timeout = time.Second           // of the listeners that have a short one
	pace    = 50 * time.Millisecond // of clients that say little at a time
)

// drip says text again and again, an octet at a time, until the connection
// ends.
func (c *client) drip(text string) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for n := 0; ; n++ {
		<-tick.C
		if _, err := io.WriteString(c, text[n%len(text):n%len(text)+1]); err != nil {
			return
		}
	}
}

// A client that is slow is cut off, no matter how it goes about it, and not
// before its time. The name of a listener is that of its only short timeout.
func TestSlowClientIsCutOff(t *testing.T) {
	t.Parallel()
	chunking := "chunking = true"
	g := start(t, gatewaytest.AsTested,
		listener("command", chunking, `limits.command_timeout = "1s"`, withTLS(t, "starttls")),
		listener("implicit", `limits.command_timeout = "1s"`, withTLS(t, "implicit")),
		listener("proxied", `proxy = ["127.0.0.1"]`, `limits.command_timeout = "1s"`),
		listener("message", chunking, `limits.message_timeout = "1s"`),
		listener("session", chunking, `limits.session_timeout = "1s"`, withTLS(t, "starttls")))
	begin := "EHLO client.peers.example\r\n" + envelope("slow")
	tests := []struct {
		name, listener string
		begin, heard   string
		drip           string // nothing if the client falls silent
		secure         bool   // the session is over TLS
		last           string // codes; none for an end without a word
	}{
		{"a command without end", "command", "", "220", "NOOP ", false, "421"},
		{"half a command", "command", "EHLO client.peers.example\r\nNOO", "220 250", "", false, "421"},
		{"silence at the start", "command", "", "220", "", false, "421"},
		{"silence in a transaction", "command", begin, "220 250 250 250", "", false, "421"},
		{"silence in a message", "command", begin + "DATA\r\nhalf", "220 250 250 250 354", "", false, "421"},
		{"silence in a chunk", "command", begin + "BDAT 10 LAST\r\nhalf", "220 250 250 250", "", false, "421"},
		{"silence between chunks", "command", begin + "BDAT 4\r\nhalf", "220 250 250 250 250", "", false, "421"},
		{"silence in a refused chunk", "command", "BDAT 10 LAST\r\nhalf", "220 503", "", false, "421"},
		{"a slow handshake", "command", "STARTTLS\r\n", "220 220", clientHello(t), false, ""},
		{"silence in a handshake", "command", "STARTTLS\r\n" + clientHello(t)[:20], "220 220", "", false, ""},
		{"a slow handshake at the start", "implicit", "", "", clientHello(t), false, ""},
		{"silence at the start of TLS", "implicit", "", "", "", false, ""},
		{"silence over TLS", "command", "", "220", "", true, "421"},
		{"a slow command over TLS", "command", "", "220", "NOOP ", true, "421"},
		{"no PROXY header", "proxied", "", "", "", false, ""},
		{"half a PROXY header", "proxied", "PROXY TCP4 192.0.2.1 ", "", "", false, ""},
		{"a slow PROXY header", "proxied", "", "", "PROXY UNKNOWN " + strings.Repeat("a", 80), false, ""},
		{"half a PROXY header of version 2", "proxied", "\r\n\r\n\x00\r\nQUIT\n\x21", "", "", false, ""},
		{"silence after a PROXY header", "proxied", "PROXY TCP4 192.0.2.1 192.0.2.2 1024 25\r\n", "220", "", false, "421"},
		{"a slow message", "message", begin + "DATA\r\n", "220 250 250 250 354", "a\r\n", false, "421"},
		{"a slow chunk", "message", begin + "BDAT 1000000 LAST\r\n", "220 250 250 250", "a\r\n", false, "421"},
		{"silence between chunks of a slow message", "message", begin + "BDAT 4\r\nhalf", "220 250 250 250 250", "", false, "421"},
		{"slow commands without end", "session", "", "220", "NOOP\r\n", false, "421"},
		{"a session that takes long over a message", "session", begin + "DATA\r\n", "220 250 250 250 354", "a\r\n", false, "421"},
		{"a session that takes long over a chunk", "session", begin + "BDAT 1000000 LAST\r\n", "220 250 250 250", "a\r\n", false, "421"},
		{"a session that takes long over a handshake", "session", "STARTTLS\r\n", "220 220", clientHello(t), false, ""},
	}
	patient := dial(t, "tcp", g.Address("smtp"))
	patient.send("EHLO client.peers.example\r\n" + envelope("patient") + "DATA\r\n")
	patient.expect("220 250 250 250 354")

	var all sync.WaitGroup
	for _, test := range tests {
		began := time.Now()
		c := dial(t, "tcp", g.Address(test.listener))
		if test.secure {
			c.expect("220")
			c.send("STARTTLS\r\n")
			c.expect("220")
			c = c.secure()
			test.heard = ""
		}
		c.send(test.begin)
		c.expect(test.heard)
		if test.drip != "" {
			go c.drip(test.drip)
		}
		all.Go(func() {
			got, err := c.rest()
			if took := time.Since(began); took < timeout {
				t.Errorf("%s: cut off after %v, want %v", test.name, took, timeout)
			}
			// There were answers before the last if it said NOOP.
			last := codes(strings.TrimLeft(strings.ReplaceAll(got, "250 2.0.0 ok\r\n", ""), "\r\n"))
			// What drips in after the end is told back as a reset.
			reset := test.drip != "" && errors.Is(err, syscall.ECONNRESET)
			if err != nil && !reset || last != test.last || last != "" && !strings.Contains(got, "421 4.4.2 gw.peers.example timeout\r\n") {
				t.Errorf("%s: got %q, %v, want %q", test.name, got, err, test.last)
			}
		})
	}
	// Nobody else is the slower for it.
	checkWorks(t, g)
	patient.send("Subject: ")
	all.Wait()
	patient.send("patient\r\n.\r\nQUIT\r\n")
	patient.expect("250 221")
	checkMail(t, g, "patient", "Subject: patient\r\n")
	checkMail(t, g, "slow")
}

// A client that never reads what it asked for is cut off when the answers
// fill what lies between.
func TestClientThatNeverReadsIsCutOff(t *testing.T) {
	t.Parallel()
	g := start(t, gatewaytest.AsTested,
		listener("plain", `limits.command_timeout = "1s"`),
		listener("implicit", `limits.command_timeout = "1s"`, withTLS(t, "implicit")),
		gatewaytest.LMTP, "limits.command_timeout = \"1s\"\n", gatewaytest.ToInbox)
	for _, to := range []struct{ listener, network string }{{"plain", "tcp"}, {"implicit", "tcp"}, {"lmtp", "unix"}} {
		began := time.Now()
		c := dial(t, to.network, g.Address(to.listener))
		if to.listener == "implicit" {
			c = c.secure()
		}
		var err error
		for err == nil {
			_, err = io.WriteString(c, strings.Repeat("HELP\r\n", 1000))
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: it is not cut off: %v", to.listener, err)
		}
		if took := time.Since(began); took < timeout {
			t.Errorf("%s: cut off after %v, want %v", to.listener, took, timeout)
		}
	}
}
