package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"sync"

	"github.com/mailgw/mailgw/backends"
)

// edited is a message with header fields added, replaced and removed: a row
// of pieces, each of them a part of the message before or new text. What was
// not edited is never copied, so it cannot change.
type edited struct {
	pieces []piece
	size   int64
}

// A piece is what r has from offset from on.
type piece struct {
	start int64 // in the edited message
	size  int64
	r     io.ReaderAt
	from  int64
}

func (e *edited) add(r io.ReaderAt, from, size int64) {
	if size > 0 {
		e.pieces = append(e.pieces, piece{e.size, size, r, from})
		e.size += size
	}
}

func (e *edited) addField(field string) {
	text := []byte(field + "\r\n")
	e.add(bytes.NewReader(text), 0, int64(len(text)))
}

// Size returns the number of octets.
func (e *edited) Size() int64 { return e.size }

func (e *edited) ReadAt(p []byte, off int64) (n int, err error) {
	i := sort.Search(len(e.pieces), func(i int) bool { return e.pieces[i].start+e.pieces[i].size > off })
	for ; n < len(p) && i < len(e.pieces); i++ {
		piece := e.pieces[i]
		skip := off - piece.start
		want := p[n:min(int64(len(p)), int64(n)+piece.size-skip)]
		k, err := piece.r.ReadAt(want, piece.from+skip)
		n += k
		off += int64(k)
		if k < len(want) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// editHeader applies edits to the header of m. Positions past the last field
// are an error for an edit that needs one.
func editHeader(m backends.Message, edits []backends.FieldEdit) (backends.Message, error) {
	fields, err := fieldOffsets(m)
	if err != nil {
		return nil, err
	}
	last := len(fields) - 1 // fields[last] is where the header ends
	added := 0
	byPosition := map[int][]backends.FieldEdit{}
	for _, edit := range edits {
		if edit.At >= last {
			if edit.Op != backends.AddField {
				return nil, fmt.Errorf("edit: there is no header field %d, only %d", edit.At, last)
			}
			edit.At = last
		}
		if added += len(edit.Field); added > maxHeaderSize {
			return nil, errHeaderTooLarge
		}
		byPosition[edit.At] = append(byPosition[edit.At], edit)
	}
	e := &edited{}
	for at := range last {
		keep := true
		for _, edit := range byPosition[at] {
			if edit.Op != backends.RemoveField {
				e.addField(edit.Field)
			}
			keep = keep && edit.Op == backends.AddField
		}
		if keep {
			e.add(m, fields[at], fields[at+1]-fields[at])
		}
	}
	if len(byPosition[last]) > 0 && !endsLine(m, fields[last]) {
		e.add(strings.NewReader("\r\n"), 0, 2)
	}
	for _, edit := range byPosition[last] {
		e.addField(edit.Field)
	}
	if len(e.pieces) > 0 && startsFolded(m, fields[last]) {
		// Without a field before it this was text; it must not become the
		// continuation of one.
		e.add(strings.NewReader("\r\n"), 0, 2)
	}
	e.add(m, fields[last], m.Size()-fields[last])
	return e, nil
}

// startsFolded reports whether the line at offset begins with white space.
func startsFolded(m backends.Message, offset int64) bool {
	var first [1]byte
	n, _ := m.ReadAt(first[:], offset)
	return n == 1 && (first[0] == ' ' || first[0] == '\t')
}

// endsLine reports whether offset is at the start of a line of m.
func endsLine(m backends.Message, offset int64) bool {
	if offset == 0 {
		return true
	}
	var last [1]byte
	_, err := m.ReadAt(last[:], offset-1)
	return (err == nil || err == io.EOF) && last[0] == '\n'
}

// A header larger than this is not edited, and no more is added to one.
const (
	maxHeaderSize   = 1 << 20
	maxHeaderFields = 10000
)

var errHeaderTooLarge = errors.New("edit: the header is too large")

// fieldOffsets returns where each field of the header of m begins, and
// behind the last one where the header ends.
func fieldOffsets(m backends.Message) ([]int64, error) {
	var offsets []int64
	h := newHeaderReader(m)
	for h.next() {
		if h.starts {
			offsets = append(offsets, h.at-int64(len(h.line)))
		}
		if h.at > maxHeaderSize || len(offsets) > maxHeaderFields {
			return nil, errHeaderTooLarge
		}
	}
	return append(offsets, h.at), h.err
}

// lineEnds looks for a CR or LF that stands alone, in a message that comes in
// parts.
type lineEnds struct {
	last byte
	bare bool
}

func (l *lineEnds) scan(p []byte) {
	for _, c := range p {
		l.bare = l.bare || (c == '\n') != (l.last == '\r')
		l.last = c
	}
}

// end reports whether there was one, after the last part.
func (l *lineEnds) end() bool { return l.bare || l.last == '\r' }

// wholeLines passes on what r gives and fails at a CR or LF that stands
// alone, so that no edit brings one into a message.
type wholeLines struct {
	r     io.Reader
	lines lineEnds
}

func (w *wholeLines) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.lines.scan(p[:n])
	if w.lines.bare || err == io.EOF && w.lines.end() {
		return 0, errBareNewline
	}
	return n, err
}

// body reads a message for one backend. After close it reads no more, so
// that a backend that keeps it cannot see memory that serves another message.
type body struct {
	mu     sync.Mutex
	r      *io.SectionReader
	closed bool
}

func newBody(m backends.Message) *body {
	return &body{r: io.NewSectionReader(m, 0, m.Size())}
}

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, errBodyClosed
	}
	return b.r.Read(p)
}

var errBodyClosed = errors.New("the message was read after the transaction ended")

func (b *body) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
}
