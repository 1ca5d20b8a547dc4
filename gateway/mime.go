package gateway

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"time"

	gomessage "github.com/emersion/go-message"

	"github.com/mailgw/mailgw/backends"
)

var (
	errMIME        = errors.New("more MIME parts than limits.mime_parts, deeper than limits.mime_depth, or a structure that can be read in two ways")
	mimeTooComplex = backends.NewStatus(554, "5.6.0", "message refused: too many MIME parts, too deep, or malformed") // RFC 3463, section 3.7
)

// What holds where no limit is set, to bound memory and time.
const (
	maxMIMEDepth  = 100
	maxMIMEParts  = 10000
	maxMIMEHeader = 16 << 10 // octets of the MIME fields of a message or a part
	maxBoundary   = 256      // RFC 2046, section 5.1.1, allows 70
	maxMIMETime   = time.Minute
)

// checkMIME returns an error if the MIME structure of m is beyond the limits.
// It reads m once, in constant memory.
//
// The limits are there for backends that take messages apart, and these read
// what is malformed each in its own way. So lines are read here as the most
// lenient of them do: too many parts may be counted, but never too few. A
// structure of which parsers have two readings is refused.
func checkMIME(ctx context.Context, m backends.Message, l LimitsConfig) error {
	if l.MIMEDepth == 0 && l.MIMEParts == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, maxMIMETime, errors.New("the MIME structure takes too long to read"))
	defer cancel()
	source := &source{ctx: ctx, r: io.NewSectionReader(m, 0, m.Size())}
	l = l.InForce()
	err := newMIMEScan(source, l.MIMEDepth, &l.MIMEParts).run()
	return cmp.Or(source.err, err)
}

// A source reads r until ctx is done. It remembers why it ended early, which
// is no fault of the message.
type source struct {
	ctx context.Context
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		s.err = spoolError{context.Cause(s.ctx)}
		return 0, s.err
	}
	n, err := s.r.Read(p)
	if err != io.EOF {
		s.err = err
	}
	return n, err
}

// A mimeScan goes through a message, line by line.
type mimeScan struct {
	lines  *bufio.Scanner
	line   []byte // or a piece of a long one, with what ends it
	begins bool   // the line begins here
	bare   bool   // it begins after a CR that stands alone
	held   bool   // next gives the line once more

	open  []mimeLevel // that the line lies in, the outermost first
	depth int         // how many of them may be open
	parts *int        // that may still come
	inner bool        // the message was decoded out of another one
}

// A mimeLevel is a multipart, or an attached message, which has no delimiter.
type mimeLevel struct {
	delimiter string // two hyphens and the boundary
	kind      string // of parts that do not say what they are
}

func newMIMEScan(r io.Reader, depth int, parts *int) *mimeScan {
	s := &mimeScan{lines: bufio.NewScanner(r), depth: depth, parts: parts}
	s.lines.Split(splitMIMELines)
	return s
}

func (s *mimeScan) run() error {
	err := s.entity("text/plain")
	for err == nil && len(s.open) > 0 && s.next() {
		err = s.bodyLine()
	}
	if err == nil && s.lines.Err() != nil {
		return errMIME // it cannot be decoded, or the source knows better
	}
	return err
}

// bodyLine looks at a line of a body, with which a part may begin or end. What
// follows the end of a multipart is read as a part, too, since some parsers go
// on with it.
func (s *mimeScan) bodyLine() error {
	i, last, err := s.delimited()
	if err != nil || i < 0 {
		return err
	}
	s.open = s.open[:i+1]
	if last {
		return s.entity("text/plain")
	}
	if err := s.countPart(); err != nil {
		return err
	}
	return s.entity(s.open[i].kind)
}

func (s *mimeScan) countPart() error {
	if *s.parts--; *s.parts < 0 {
		return errMIME
	}
	return nil
}

// entity reads the header of a message or a part, and opens the levels that
// begin there. kind is what it is if it does not say so.
func (s *mimeScan) entity(kind string) error {
	for {
		h, err := s.header()
		if err != nil {
			return err
		}
		if kind, err = h.kind(kind); err != nil {
			return err
		}
		if !isComposite(kind) {
			return nil
		}
		if len(s.open) == s.depth {
			return errMIME
		}
		level, err := h.level(kind)
		if err != nil {
			return err
		}
		s.open = append(s.open, level)
		switch encoding := h.encoding(); {
		case level.delimiter != "":
			return nil // nobody decodes multiparts: RFC 2045, section 6.4
		case encoding == "base64" && kind != "message/delivery-status":
			return s.decode(h)
		case encoding != "":
			return errMIME
		case kind == "message/delivery-status":
			return s.reports()
		}
		kind = level.kind // of the attached message, whose header comes now
	}
}

// reports reads groups of fields, which some parsers take for parts: RFC 3464,
// section 2.1.
func (s *mimeScan) reports() error {
	for more := true; more; {
		h, err := s.header()
		if err != nil {
			return err
		}
		if kind, err := h.kind("text/plain"); err != nil || h.doubtful || isComposite(kind) {
			return errMIME
		}
		if err := s.countPart(); err != nil {
			return err
		}
		more = h.whole
	}
	return nil
}

// decode looks into an attached message in base64. RFC 2046, section 5.2.1,
// forbids that, but it is seen, and who does not decode it sees no parts. One
// in another one is refused, since each octet passes through all decoders.
func (s *mimeScan) decode(h mimeHeader) error {
	if s.inner {
		return errMIME
	}
	e, err := gomessage.New(h.Header, &mimeBody{s: s})
	if err != nil {
		return errMIME
	}
	attached := newMIMEScan(e.Body, s.depth-len(s.open), s.parts)
	attached.inner = true
	return attached.run()
}

// A mimeBody reads lines up to the next delimiter.
type mimeBody struct {
	s    *mimeScan
	rest []byte
}

func (b *mimeBody) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		if !b.s.next() {
			return 0, cmp.Or(b.s.lines.Err(), io.EOF)
		}
		switch i, _, err := b.s.delimited(); {
		case err != nil:
			return 0, err
		case i >= 0:
			b.s.held = true
			return 0, io.EOF
		}
		b.rest = b.s.line
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// delimited returns the level whose delimiter the line is, or -1, and whether
// it is the last one of its multipart. The innermost level goes first, as the
// depth can only be overrated then.
func (s *mimeScan) delimited() (i int, last bool, err error) {
	if !s.begins || !bytes.HasPrefix(s.line, []byte("--")) {
		return -1, false, nil
	}
	line := bytes.TrimRight(s.line, " \t\r\n")
	similar := false
	for i, level := range slices.Backward(s.open) {
		rest, ok := bytes.CutPrefix(line, []byte(level.delimiter))
		if !ok || level.delimiter == "" {
			continue
		}
		if len(rest) == 0 || string(rest) == "--" {
			if s.bare || s.endsBare() {
				return -1, false, errMIME // a line to some only
			}
			return i, len(rest) > 0, nil
		}
		similar = true
	}
	if similar {
		return -1, false, errMIME // a delimiter to parsers that RFC 2046, section 5.1.1, allows
	}
	return -1, false, nil
}

// next reads a line, or a piece of one. It reports false at the end.
func (s *mimeScan) next() bool {
	if s.held {
		s.held = false
		return true
	}
	s.bare = s.endsBare()
	s.begins = len(s.line) == 0 || s.bare || bytes.HasSuffix(s.line, []byte("\n"))
	if !s.lines.Scan() {
		return false
	}
	s.line = s.lines.Bytes()
	return true
}

func (s *mimeScan) endsBare() bool { return bytes.HasSuffix(s.line, []byte("\r")) }

// splitMIMELines splits after CR, LF and CRLF, and splits long lines. No piece
// of a line but its last one is too short for a delimiter.
func splitMIMELines(data []byte, atEOF bool) (int, []byte, error) {
	const long = 2048
	n := bytes.IndexAny(data, "\r\n") + 1
	switch {
	case n == 0 && (atEOF || len(data) >= long):
		n = len(data)
	case n == 0, data[n-1] == '\n':
	case n == len(data) && !atEOF:
		n = 0 // LF may follow
	case n < len(data) && data[n] == '\n':
		n++
	}
	if n == 0 {
		return 0, nil, nil
	}
	return n, data[:n], nil
}
