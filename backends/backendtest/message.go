package backendtest

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
)

// A message is what a transaction carries: a text, again and again. It is
// never in memory as a whole.
type message struct {
	text   string
	times  int64
	fields int // of the header
}

const header = "From: <sender@example.net>\r\nTo: undisclosed\r\nSubject: test\r\n of a backend\r\n\r\n"

var (
	plain      = message{header + "Hello,\r\n.\r\n..\r\nbye.\r\n", 1, 3}
	empty      = message{"", 1, 0}
	unfinished = message{header + "no line end", 1, 3}
	binary     = message{header + allOctets() + "\r\n", 1, 3}
	large      = message{header + strings.Repeat(strings.Repeat("x", 76)+"\r\n", 20), 2300, 3} // 3.6 MiB
)

// allOctets has each octet but CR and LF, which messages have as a pair only.
func allOctets() string {
	var b strings.Builder
	for c := range 256 {
		if c != '\r' && c != '\n' {
			b.WriteByte(byte(c))
		}
	}
	return b.String()
}

func (m message) size() int64 { return int64(len(m.text)) * m.times }

// A body is a message as the backend reads it, with the trouble that it is
// to meet there.
type body struct {
	message
	trouble trouble
	ctx     context.Context
	cancel  context.CancelFunc // ends ctx
	late    func()             // is called when the body is read after close

	mu     sync.Mutex
	read   int64
	closed bool
}

var (
	errUnreadable = errors.New("the rest of the message cannot be had")
	errClosed     = errors.New("the message was read after the transaction ended")
)

func (b *body) Read(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		if b.trouble < overAtStart { // else it may not have noticed yet
			b.late()
		}
		return 0, errClosed
	}
	end, half := b.size(), b.size()/2
	switch b.trouble {
	case unreadable:
		return 0, errUnreadable
	case breaksOff, overAndStuck, overMidway:
		if b.read < half {
			end = half
			break
		}
		if b.trouble == breaksOff {
			return 0, errUnreadable
		}
		b.cancel()
		if b.trouble == overAndStuck {
			return 0, context.Cause(b.ctx)
		}
	}
	if b.read == end {
		return 0, io.EOF
	}
	at := b.read % int64(len(b.text))
	n = copy(p[:min(int64(len(p)), end-b.read)], b.text[at:])
	b.read += int64(n)
	return n, nil
}

// whole reports whether the message was read to its end.
func (b *body) whole() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.read == b.size()
}

// close says that the transaction has ended.
func (b *body) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
}
