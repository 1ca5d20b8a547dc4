package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"time"
)

// A target is where a server listens, and what it speaks there.
type target struct {
	protocol         string // "lmtp" or "smtp"
	network, address string
}

// patience is how long a session may take in one run.
const patience = 5 * time.Minute

// A session is a client's connection. It sends what was encoded before, and
// looks at each reply.
type session struct {
	conn       net.Conn
	buf        [16 << 10]byte
	next, last int // what was read and not looked at, in buf
}

// open connects and says hello.
func (t target) open() (*session, error) {
	conn, err := net.Dial(t.network, t.address)
	if err != nil {
		return nil, err
	}
	s := &session{conn: conn}
	conn.SetDeadline(time.Now().Add(patience))
	if err := s.greet(t.protocol); err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

func (s *session) greet(protocol string) error {
	if err := s.hear("220"); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	hello := "EHLO bench.example\r\n"
	if protocol == "lmtp" {
		hello = "LHLO bench.example\r\n"
	}
	return s.say([]byte(hello), "250")
}

func (s *session) quit() error {
	defer s.conn.Close()
	return s.say([]byte("QUIT\r\n"), "221")
}

// say sends text, and hears what is answered.
func (s *session) say(text []byte, codes ...string) error {
	if s.next != s.last {
		return fmt.Errorf("a reply too much: %q", s.buf[s.next:s.last])
	}
	if _, err := s.conn.Write(text); err != nil {
		return err
	}
	return s.hear(codes...)
}

// hear reads one reply for each code. One with another code is an error.
func (s *session) hear(codes ...string) error {
	for _, want := range codes {
		for {
			line, err := s.line()
			if err != nil {
				return err
			}
			if len(line) < 4 || string(line[:3]) != want {
				return fmt.Errorf("got %q, want %s", line, want)
			}
			if line[3] != '-' {
				break
			}
		}
	}
	return nil
}

var errLongLine = errors.New("a reply is too long")

// line returns the next line without its end, until the next call.
func (s *session) line() ([]byte, error) {
	for searched := s.next; ; {
		if i := bytes.IndexByte(s.buf[searched:s.last], '\n'); i >= 0 {
			line := s.buf[s.next : searched+i]
			s.next = searched + i + 1
			return bytes.TrimSuffix(line, []byte("\r")), nil
		}
		if s.next > 0 {
			s.last = copy(s.buf[:], s.buf[s.next:s.last])
			s.next = 0
		}
		if s.last == len(s.buf) {
			return nil, errLongLine
		}
		searched = s.last
		n, err := s.conn.Read(s.buf[s.last:])
		if err != nil {
			return nil, err
		}
		s.last += n
	}
}

// A transaction is what a session says for each message, as it goes over the
// wire, and the codes of the replies that it wants.
type transaction struct {
	envelope []byte // up to DATA, in one piece, as RFC 2920 has it
	begun    []string
	message  []byte // its last dot too
	ended    []string
}

func newTransaction(protocol string, recipients, size int) *transaction {
	envelope := []byte("MAIL FROM:<sender@bench.example>\r\n")
	begun := []string{"250"}
	for i := range recipients {
		envelope = fmt.Appendf(envelope, "RCPT TO:<recipient-%d@bench.example>\r\n", i)
		begun = append(begun, "250")
	}
	t := &transaction{
		envelope: append(envelope, "DATA\r\n"...),
		begun:    append(begun, "354"),
		message:  message(size),
		ended:    []string{"250"},
	}
	if protocol == "lmtp" {
		t.ended = begun[1:]
	}
	return t
}

// message returns a message of size octets, and the dot that ends it.
func message(size int) []byte {
	text := make([]byte, 0, size+100)
	text = append(text, "From: <sender@bench.example>\r\n"+
		"To: <recipient@bench.example>\r\n"+
		"Subject: a message of the benchmark\r\n"+
		"Date: Thu, 01 Jan 2026 00:00:00 +0000\r\n"+
		"Message-ID: <1@bench.example>\r\n\r\n"...)
	for len(text) < size-2 {
		text = append(text, "The quick brown fox jumps over the lazy dog, and the lazy dog sleeps on.....\r\n"...)
	}
	text = bytes.TrimSuffix(text[:size-2], []byte("\r"))
	for len(text) < size-2 {
		text = append(text, 'x')
	}
	return append(text, "\r\n.\r\n"...)
}
