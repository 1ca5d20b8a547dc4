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
	lineStart dotState = iota // at the start, and after CRLF
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
		case dotStart:
			if d.state = inLine; c == '\r' {
				d.state = dotCR
				read++
			}
		case dotCR:
			if c == '\n' {
				d.state = dotEnd
				read++
			} else {
				d.state = inLine
				d.bare = true
				out[wrote] = '\r'
				wrote++
			}
		case afterCR:
			if d.state = inLine; c == '\n' {
				d.state = lineStart
				out[wrote] = c
				wrote++
				read++
			} else {
				d.bare = true
			}
		case inLine:
			n := d.through(in[read:min(len(in), read+len(out)-wrote)])
			wrote += copy(out[wrote:], in[read:read+n])
			read += n
		}
	}
	return read, wrote
}

// through returns how many octets of in, which begins in a line, go through
// as they are: those up to the next line that begins with a dot, or all. It
// sets the state that follows them. It looks for LFs alone and counts the
// CRs afterwards, which takes half the time of looking for both.
func (d *DotReader) through(in []byte) (n int) {
	crlfs := 0
	for d.state == inLine && n < len(in) {
		lf := bytes.IndexByte(in[n:], '\n')
		if lf < 0 {
			n = len(in)
			break
		}
		n += lf + 1
		if n == 1 || in[n-2] != '\r' {
			d.bare = true
			continue
		}
		crlfs++
		if n == len(in) || in[n] == '.' {
			d.state = lineStart
		}
	}
	crs := bytes.Count(in[:n], []byte{'\r'})
	if in[n-1] == '\r' {
		d.state = afterCR // whether it is bare, the next octet tells
		crs--
	}
	if crs != crlfs {
		d.bare = true
	}
	return n
}

// A DotWriter writes a message in the form that follows DATA. It refuses to
// write a bare CR or LF, which a lenient server could take for the end of a
// line and so for the end of the message. It never ends a message that it
// could not write as a whole.
type DotWriter struct {
	w     *bufio.Writer
	state dotState // lineStart, inLine or afterCR
	err   error    // the first one, which stays
}

// NewDotWriter returns a writer of one message to w.
func NewDotWriter(w *bufio.Writer) *DotWriter { return &DotWriter{w: w} }

// Write writes a part of the message, which may be cut anywhere. The error
// is ErrBareNewline at the first bare CR or LF. After an error the
// connection is of no more use, because the message cannot be ended.
func (d *DotWriter) Write(p []byte) (n int, err error) {
	for n < len(p) && d.err == nil {
		line := p[n:]
		if lf := bytes.IndexByte(line, '\n'); lf >= 0 {
			line = line[:lf+1]
		}
		if d.writeLine(line); d.err == nil {
			n += len(line)
		}
	}
	return n, d.err
}

// writeLine writes a part of a line, which has an LF at its end or none.
func (d *DotWriter) writeLine(line []byte) {
	next, ok := d.state.after(line)
	if !ok {
		d.err = ErrBareNewline
		return
	}
	if d.state == lineStart && line[0] == '.' {
		d.w.WriteByte('.') // an error stays until the next write
	}
	d.state = next
	_, d.err = d.w.Write(line)
}

// after returns the state after line, which has an LF at its end or none;
// ok is false if it has a CR or LF that stands alone.
func (s dotState) after(line []byte) (next dotState, ok bool) {
	if s == afterCR {
		return lineStart, line[0] == '\n'
	}
	text, ended := bytes.CutSuffix(line, []byte("\r\n"))
	cr := bytes.IndexByte(text, '\r')
	switch {
	case ended:
		return lineStart, cr < 0
	case text[len(text)-1] == '\n':
		return lineStart, false
	case cr < 0:
		return inLine, true
	}
	return afterCR, cr == len(text)-1
}

// Close ends the message, with a CRLF before the dot if the last line has
// none. It does not flush the writer beneath.
func (d *DotWriter) Close() error {
	end := ".\r\n"
	switch {
	case d.err != nil:
		return d.err
	case d.state == afterCR:
		return ErrBareNewline
	case d.state == inLine:
		end = "\r\n" + end
	}
	_, err := d.w.WriteString(end)
	return err
}
