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

// A messageError is trouble with the message itself, not with the server.
type messageError struct{ error }

func (e messageError) Unwrap() error { return e.error }

// givenMessage gives the content of r each time. After the first time r must
// be able to seek.
func givenMessage(r io.Reader) messageSource {
	return func(n int) (io.Reader, error) {
		if n == 0 {
			return r, nil
		}
		err := errors.New("not a file")
		if s, ok := r.(io.Seeker); ok {
			_, err = s.Seek(0, io.SeekStart)
		}
		if err != nil {
			return nil, fmt.Errorf("the message cannot be read again: %w", err)
		}
		return r, nil
	}
}

// testMessage gives small messages that tell each other apart.
func testMessage(from, helo string, to []string) messageSource {
	if from == "" {
		from = "MAILER-DAEMON@" + helo
	}
	return func(n int) (io.Reader, error) {
		now := time.Now()
		return strings.NewReader(fmt.Sprintf("Date: %s\n"+
			"From: <%s>\n"+
			"To: <%s>\n"+
			"Subject: test message %d\n"+
			"Message-ID: <%d.%d.%d@%s>\n"+
			"\n"+
			"This is test message %d of mailgw send.\n",
			now.Format(time.RFC1123Z), from, strings.Join(to, ">,\n <"), n+1,
			now.UnixNano(), os.Getpid(), n, helo, n+1)), nil
	}
}

// copyMessage copies the message that r gives, with CRLF in place of an LF
// that has no CR before it. It holds one line at most, and of a long line
// only a part. A CR elsewhere is an error, because there is no right way to
// send it. Errors of the message are a messageError, others are of w.
func copyMessage(w io.Writer, r io.Reader) (octets int64, err error) {
	in := bufio.NewReaderSize(r, 64<<10)
	for line := 1; ; line++ {
		n, err := copyLine(w, in)
		octets += n
		switch {
		case err == io.EOF:
			return octets, nil
		case err == errBareCR:
			return octets, messageError{fmt.Errorf("message, line %d: %w", line, err)}
		case err != nil:
			return octets, err
		}
	}
}

var (
	errBareCR = errors.New("CR without LF")
	crlf      = []byte("\r\n")
)

// copyLine copies one line with its end. After the last one it returns
// io.EOF.
func copyLine(w io.Writer, in *bufio.Reader) (octets int64, err error) {
	for {
		part, err := in.ReadSlice('\n')
		var end []byte
		switch {
		case err == bufio.ErrBufferFull:
			if part[len(part)-1] == '\r' {
				part = part[:len(part)-1] // to be seen together with the LF
				in.UnreadByte()
			}
		case err == nil:
			part, end = bytes.TrimSuffix(part[:len(part)-1], []byte("\r")), crlf
		case err != io.EOF:
			return octets, messageError{err}
		}
		if bytes.IndexByte(part, '\r') >= 0 {
			return octets, errBareCR
		}
		for _, b := range [][]byte{part, end} {
			n, err := w.Write(b)
			if octets += int64(n); err != nil {
				return octets, err
			}
		}
		if err != bufio.ErrBufferFull {
			return octets, err
		}
	}
}
