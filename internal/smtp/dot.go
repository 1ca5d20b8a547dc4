package smtp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// A DotReader reads the message that follows DATA: RFC 5321, section 4.5.2.
// It takes away dot-stuffing and changes nothing else. The message ends at
// the first CRLF.CRLF and nowhere else; the CRLF before the dot is part of the
// message. At the very start, .CRLF is the end of an empty message.
//
// After the end, Read returns io.EOF and the reader beneath stands at the
// next command. If the input ends before, the error is io.ErrUnexpectedEOF.
type DotReader struct {
	r     *bufio.Reader
	state dotState
	bare  bool
}

type dotState int

const (
	lineStart dotState = iota // after CRLF
	dotStart                  // after CRLF.
	dotCR                     // after CRLF.CR
	inLine                    // elsewhere
	afterCR                   // after CR, in a line
	dotEnd                    // after CRLF.CRLF
)

// NewDotReader returns a reader of one message from r.
func NewDotReader(r *bufio.Reader) *DotReader { return &DotReader{r: r} }

// Bare reports whether a CR without LF or an LF without CR has been read.
func (d *DotReader) Bare() bool { return d.bare }

func (d *DotReader) Read(p []byte) (n int, err error) {
	for n < len(p) && d.state != dotEnd {
		if d.r.Buffered() == 0 {
			if n > 0 {
				return n, nil
			}
			if _, err := d.r.Peek(1); err != nil {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return 0, err
			}
		}
		in, _ := d.r.Peek(d.r.Buffered())
		read, wrote := d.decode(p[n:], in)
		d.r.Discard(read)
		n += wrote
	}
	if n == 0 && d.state == dotEnd {
		return 0, io.EOF
	}
	return n, nil
}

// decode moves octets from in to out until one of them is used up or the
// message ends.
func (d *DotReader) decode(out, in []byte) (read, wrote int) {
	for read < len(in) && wrote < len(out) && d.state != dotEnd {
		c := in[read]
		switch d.state {
		case lineStart:
			if d.state = inLine; c == '.' {
				d.state = dotStart
				read++
			}
			continue
		case dotStart:
			if d.state = inLine; c == '\r' {
				d.state = dotCR
				read++
			}
			continue
		case dotCR:
			if c == '\n' {
				d.state = dotEnd
				read++
				continue
			}
			out[wrote] = '\r'
			wrote++
			d.bare = true
			d.state = inLine
			continue
		case afterCR:
			if d.state = inLine; c == '\n' {
				d.state = lineStart
				out[wrote] = c
				wrote++
				read++
			} else {
				d.bare = true
			}
			continue
		}
		// In a line: everything up to the next CR or LF goes at once.
		run := in[read:min(len(in), read+len(out)-wrote)]
		if i := bytes.IndexByte(run, '\n'); i >= 0 {
			run = run[:i+1]
		}
		if i := bytes.IndexByte(run, '\r'); i >= 0 {
			run = run[:i+1]
			d.state = afterCR
		} else if run[len(run)-1] == '\n' {
			d.bare = true
		}
		wrote += copy(out[wrote:], run)
		read += len(run)
	}
	return read, wrote
}

// A DotWriter writes a message in the form that follows DATA. Close writes
// the end of the message, with a CRLF before it if the message does not end in
// one. What is written must have no bare CR and no bare LF.
type DotWriter struct {
	w    *bufio.Writer
	last [2]byte // the last two octets written
	any  bool
}

// NewDotWriter returns a writer of one message to w.
func NewDotWriter(w *bufio.Writer) *DotWriter { return &DotWriter{w: w} }

func (d *DotWriter) Write(p []byte) (n int, err error) {
	for n < len(p) {
		if p[n] == '.' && (!d.any || d.last == [2]byte{'\r', '\n'}) {
			if err := d.w.WriteByte('.'); err != nil {
				return n, err
			}
		}
		line := p[n:]
		if i := bytes.IndexByte(line, '\n'); i >= 0 {
			line = line[:i+1]
		}
		if _, err := d.w.Write(line); err != nil {
			return n, err
		}
		n += len(line)
		if d.any = true; len(line) > 1 {
			d.last = [2]byte(line[len(line)-2:])
		} else {
			d.last = [2]byte{d.last[1], line[0]}
		}
	}
	return n, nil
}

// Close ends the message. It does not flush the writer beneath.
func (d *DotWriter) Close() error {
	end := ".\r\n"
	if d.any && d.last != [2]byte{'\r', '\n'} {
		end = "\r\n" + end
	}
	_, err := d.w.WriteString(end)
	return err
}
