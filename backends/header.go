package backends

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

const (
	// maxFieldName is how much of a line is looked through for the colon of a
	// field.
	maxFieldName = 4096

	maxHeader = 4 << 20 // octets that ReadHeader takes
)

// ReadHeader reads the header of a message from r, which has a buffer of 4096
// octets or more, and leaves r at what follows: the empty line, in most
// messages. Each field is as it came, with the CRLF at its end and those that
// fold it; its index is the position that edits want. There may be white space
// before its colon.
func ReadHeader(r *bufio.Reader) (fields [][]byte, err error) {
	for room := maxHeader; ; {
		start, err := peekLine(r)
		if err != nil || !IsHeaderLine(start, len(fields) > 0) {
			return fields, err
		}
		line, err := readLine(r, room)
		if err != nil {
			return fields, err
		}
		room -= len(line)
		if line[0] == ' ' || line[0] == '\t' {
			fields[len(fields)-1] = append(fields[len(fields)-1], line...)
		} else {
			fields = append(fields, line)
		}
	}
}

// readLine reads a line of at most room octets. The last one may have no end.
func readLine(r *bufio.Reader, room int) (line []byte, err error) {
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > room {
			return nil, errors.New("the header is too large")
		}
		line = append(line, part...)
		if err == nil || err == io.EOF {
			return line, nil
		}
		if err != bufio.ErrBufferFull {
			return nil, err
		}
	}
}

// peekLine returns as much of the next line as tells whether it is of the
// header.
func peekLine(r *bufio.Reader) (start []byte, err error) {
	for n := 1; ; n++ {
		start, err = r.Peek(max(n, min(r.Buffered(), maxFieldName)))
		if lf := bytes.IndexByte(start, '\n'); lf >= 0 {
			return start[:lf+1], nil
		}
		n = len(start)
		switch {
		case err == io.EOF:
			return start, nil
		case err != nil || !undecided(start):
			return start, err
		}
	}
}

// undecided reports whether more of a line is needed to tell whether it is of
// the header.
func undecided(start []byte) bool {
	return len(start) == 0 || len(start) < maxFieldName && start[0] != ' ' && start[0] != '\t' && !bytes.ContainsAny(start, ":\n")
}

// IsHeaderLine reports whether a line belongs to the header: it continues a
// field or has a name and a colon. start is the line, or so much of its
// beginning as tells.
func IsHeaderLine(start []byte, continues bool) bool {
	if len(start) > 0 && (start[0] == ' ' || start[0] == '\t') {
		return continues
	}
	name, _, ok := bytes.Cut(start[:min(len(start), maxFieldName)], []byte(":"))
	name = bytes.TrimRight(name, " \t")
	return ok && len(name) > 0 && !bytes.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' })
}
