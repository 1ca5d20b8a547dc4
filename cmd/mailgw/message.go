package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// A messageSource gives the message of each transaction, n counting from 0.
type messageSource func(n int) (io.Reader, error)

// givenMessage gives the content of r each time, with CRLF at the end of each
// line. After the first time r must be able to seek.
func givenMessage(r io.Reader) messageSource {
	return func(n int) (io.Reader, error) {
		if n == 0 {
			return newCRLFReader(r), nil
		}
		err := errors.New("not a file")
		if s, ok := r.(io.Seeker); ok {
			_, err = s.Seek(0, io.SeekStart)
		}
		if err != nil {
			return nil, fmt.Errorf("the message cannot be read again: %w", err)
		}
		return newCRLFReader(r), nil
	}
}

// testMessage gives small messages that tell each other apart.
func testMessage(from, helo string, to []string) messageSource {
	if from == "" {
		from = "MAILER-DAEMON@" + helo
	}
	return func(n int) (io.Reader, error) {
		now := time.Now()
		return strings.NewReader(fmt.Sprintf("Date: %s\r\n"+
			"From: <%s>\r\n"+
			"To: <%s>\r\n"+
			"Subject: test message %d\r\n"+
			"Message-ID: <%d.%d.%d@%s>\r\n"+
			"\r\n"+
			"This is test message %d of mailgw send.\r\n",
			now.Format(time.RFC1123Z), from, strings.Join(to, ">,\r\n <"), n+1,
			now.UnixNano(), os.Getpid(), n, helo, n+1)), nil
	}
}

// A crlfReader reads a message with CRLF in place of each LF that has no CR
// before it. It holds one line at most, and of a long line only a part. A CR
// elsewhere is an error, because there is no right way to send it.
type crlfReader struct {
	in   *bufio.Reader
	line int // that is read, counting from 1

	text, end []byte // of the line, to be read first; end is CRLF or nothing
	err       error  // to be returned after them
}

func newCRLFReader(r io.Reader) *crlfReader {
	return &crlfReader{in: bufio.NewReaderSize(r, 64<<10), line: 1}
}

func (c *crlfReader) Read(p []byte) (n int, err error) {
	for len(c.text) == 0 {
		switch {
		case len(c.end) > 0:
			c.text, c.end = c.end, nil
		case c.err != nil:
			return 0, c.err
		default:
			c.next()
		}
	}
	n = copy(p, c.text)
	c.text = c.text[n:]
	return n, nil
}

// next reads a line, or a part of a long one.
func (c *crlfReader) next() {
	text, err := c.in.ReadSlice('\n')
	switch {
	case err == nil:
		c.text, c.end = bytes.TrimSuffix(text[:len(text)-1], []byte("\r")), []byte("\r\n")
	case err == bufio.ErrBufferFull && text[len(text)-1] == '\r':
		c.text = text[:len(text)-1] // the CR is to be seen together with the LF
		c.in.UnreadByte()
	default:
		c.text = text
	}
	if bytes.IndexByte(c.text, '\r') >= 0 {
		c.text, c.end = nil, nil
		c.err = fmt.Errorf("message, line %d: CR without LF", c.line)
		return
	}
	if err == nil {
		c.line++
	} else if err != bufio.ErrBufferFull {
		c.err = err
	}
}
