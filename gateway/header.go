package gateway

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"github.com/mailgw/mailgw/backends"
)

// Faults of a header, and what clients are told of them.
var (
	errHeaderLimit = errors.New("the header is larger than limits.header_size or limits.header_fields")
	errHops        = errors.New("more Received fields than limits.hops")

	headerTooLarge = backends.NewStatus(552, "5.3.4", "message header too large")
	tooManyHops    = backends.NewStatus(554, "5.4.6", "too many hops")
)

// checkHeader returns an error if the header of m is beyond the limits.
func checkHeader(m backends.Message, l LimitsConfig) error {
	fields, hops := 0, 0
	h := newHeaderReader(m)
	defer h.close()
	for h.next() {
		if h.starts {
			fields++
			if name, _, _ := bytes.Cut(h.line, []byte(":")); bytes.EqualFold(bytes.TrimRight(name, " \t"), []byte("Received")) {
				hops++
			}
		}
		switch {
		case l.HeaderSize > 0 && h.at > int64(l.HeaderSize), l.HeaderFields > 0 && fields > l.HeaderFields:
			return errHeaderLimit
		case l.Hops > 0 && hops > l.Hops:
			return errHops
		}
	}
	return h.err
}

// A headerReader reads the header of a message, line by line, as
// backends.ReadHeader does without keeping it.
type headerReader struct {
	r      *bufio.Reader
	line   []byte // a line or a part of one, until the next call of next
	at     int64  // octets of the header so far, the line's included
	starts bool   // the line begins a field
	begun  bool   // a field has begun
	part   bool   // the line has no end yet
	err    error  // of reading
}

// newHeaderReader returns a reader of the header of m, which is to be closed.
func newHeaderReader(m backends.Message) *headerReader {
	h := &headerReader{r: readers.Get().(*bufio.Reader)}
	h.r.Reset(io.NewSectionReader(m, 0, m.Size()))
	return h
}

func (h *headerReader) close() {
	h.r.Reset(nil)
	readers.Put(h.r)
}

// next reads a line. It reports false at the end of the header, and after an
// error.
func (h *headerReader) next() bool {
	line, err := h.r.ReadSlice('\n')
	if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
		h.err = err
		return false
	}
	h.starts = false
	if !h.part {
		if !backends.IsHeaderLine(line, h.begun) {
			return false
		}
		h.starts = line[0] != ' ' && line[0] != '\t'
		h.begun = true
	}
	h.line = line
	h.at += int64(len(line))
	h.part = err == bufio.ErrBufferFull
	return len(line) > 0
}
