package main

import (
	"bytes"
	"net"
	"strings"
	"testing"
)

// What a server answers is looked at, to the last reply.
func TestWrongRepliesAreErrors(t *testing.T) {
	tx := newTransaction("lmtp", 2, 1000)
	begun := "250 2.1.0 a\r\n250-b\r\n250 b\r\n250 c\r\n354 d\r\n"
	ended := "250 a\r\n250 b\r\n"
	silence := "250 a\r\n"
	for name, test := range map[string]struct{ begun, ended, want string }{
		"as it should be":            {begun, ended, ""},
		"a recipient is refused":     {strings.Replace(begun, "250 c", "452 c", 1), ended, `got "452 c", want 250`},
		"no word for a recipient":    {strings.Replace(begun, "250 c\r\n", "", 1), ended, `got "354 d", want 250`},
		"DATA is refused":            {strings.Replace(begun, "354", "554", 1), ended, `got "554 d", want 354`},
		"a message is refused":       {begun, "250 a\r\n451 b\r\n", `got "451 b", want 250`},
		"silence for a recipient":    {begun, silence, "EOF"},
		"a reply that is none":       {begun, "250 a\r\n250\r\n", `got "250", want 250`},
		"a reply too much":           {begun + "250 d\r\n", ended, `a reply too much: "250 d\r\n"`},
		"a reply too much at last":   {begun, ended + "250 c\r\n", `a reply too much: "250 c\r\n"`},
		"a line that does not end":   {begun, strings.Repeat("250 a", 4000), errLongLine.Error()},
		"a reply that is multi-line": {begun, "250-a\r\n250-a\r\n250 a\r\n250 b\r\n", ""},
	} {
		conn, server := net.Pipe()
		go func() {
			defer server.Close()
			for _, step := range []struct {
				heard  []byte
				answer string
			}{{tx.envelope, test.begun}, {tx.message, test.ended}, {[]byte("QUIT\r\n"), "221 bye\r\n"}} {
				if _, err := server.Read(make([]byte, len(step.heard))); err != nil {
					return
				}
				server.Write([]byte(step.answer))
				if step.answer == silence {
					return
				}
			}
		}()
		c := &client{tx: tx, session: &session{conn: conn}}
		c.err = c.send()
		c.quit()
		err := c.err
		if (err == nil) != (test.want == "") || err != nil && err.Error() != test.want {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
		conn.Close()
	}
}

func TestMessageHasItsSize(t *testing.T) {
	for size := 4 << 10; size < 5<<10; size++ {
		text, dot := bytes.CutSuffix(message(size), []byte("\r\n.\r\n"))
		if len(text)+2 != size || !dot || bytes.Contains(text, []byte("\n.")) || bytes.Count(text, []byte("\r")) != bytes.Count(text, []byte("\r\n")) {
			t.Fatalf("a message of %d octets ends in %q", size, text[size-20:])
		}
	}
}
