// Package entity parses the message of a transaction with go-message, for
// backends that want to see its text and its parts:
//
//	err := entity.Walk(tx, func(path []int, part *message.Entity) error {
//		disposition, params, _ := part.Header.ContentDisposition()
//		...
//	})
//
// It reads tx.Body, which can be read once. The message itself stays as it
// came: what goes on to the next backend has the same octets, whatever is done
// to an Entity, unless the backend makes edits of its DataContext.
//
// No message is too broken to be parsed: what cannot be understood is left out,
// or ends the part that it is in. Any error that a function or a Body of this
// package returns is thus one of reading tx.Body, or tells that the header is too
// large for [backends.ReadHeader]: Deliver should return it. Memory is bounded
// by the size of the header.
package entity

import (
	"bufio"
	"cmp"
	"errors"
	"io"
	"io/fs"
	"math"
	"slices"
	"strings"

	"github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset" // all that mail has seen
	"github.com/emersion/go-message/textproto"

	"github.com/mailgw/mailgw/backends"
)

const (
	// maxDepth is how deep Walk goes into multiparts within multiparts. Each
	// of them has a buffer.
	maxDepth = 100

	// maxBetween is how much may stand between the end of a part and the
	// body of the next one: its header, above all.
	maxBetween = 1 << 20
)

// Parse reads the header of the message of tx. The fields of the header are
// in order and complete: the position of one is its position in edits. Body is
// decoded, text from its charset into UTF-8; what is encoded in an unknown way,
// or in an unknown charset, stays as it is.
func Parse(tx *backends.DataContext) (*message.Entity, error) {
	return parse(&source{r: tx.Body, room: math.MaxInt64})
}

func parse(s *source) (*message.Entity, error) {
	r := bufio.NewReader(s)
	fields, err := backends.ReadHeader(r)
	if err != nil {
		return nil, err
	}
	if next, _ := r.Peek(2); string(next) == "\r\n" {
		r.Discard(2)
	}
	var header textproto.Header
	for _, field := range slices.Backward(fields) { // AddRaw adds before the first
		header.AddRaw(field)
	}
	m, _ := message.New(message.Header{Header: header}, r) // its errors mean that nothing is decoded
	m.Body = body{m.Body, s}
	return m, nil
}

// Walk parses the message of tx and calls f for it and for each of its parts,
// those within other parts too. path is empty for the message itself, [0] for
// its first part, and [0 1] for the second one in that. A message that is
// attached to another one is a part without parts. f may read the Body of part
// only until it returns, and not that of a multipart, which has the parts that
// follow. If f returns fs.SkipAll, Walk ends without an error; after any other
// error it ends with that.
func Walk(tx *backends.DataContext, f func(path []int, part *message.Entity) error) error {
	s := &source{r: tx.Body, room: math.MaxInt64}
	m, err := parse(s)
	if err != nil {
		return err
	}
	if err := s.walk(nil, m, f); err != nil && !errors.Is(err, fs.SkipAll) {
		return err
	}
	return s.err
}

func (s *source) walk(path []int, m *message.Entity, f func([]int, *message.Entity) error) error {
	if err := f(slices.Clone(path), m); err != nil {
		return err
	}
	kind, _, _ := m.Header.ContentType()
	if !strings.HasPrefix(kind, "multipart/") || len(path) == maxDepth {
		return nil
	}
	parts := m.MultipartReader()
	for i := 0; ; i++ {
		s.room = maxBetween
		part, _ := parts.NextPart() // s has the error, if it is one of reading
		if part == nil || s.err != nil || s.room == 0 {
			return s.err
		}
		s.room = math.MaxInt64
		part.Body = body{part.Body, s}
		if err := s.walk(append(path, i), part, f); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, part.Body); err != nil {
			return err
		}
	}
}

// A source is tx.Body. It knows whether that could be read.
type source struct {
	r    io.Reader
	room int64 // octets until it breaks off
	err  error // of r, unless that is at its end
}

func (s *source) Read(p []byte) (n int, err error) {
	if s.err != nil || s.room == 0 {
		return 0, cmp.Or(s.err, io.EOF)
	}
	n, err = s.r.Read(p[:min(int64(len(p)), s.room)])
	if err != nil && err != io.EOF {
		s.err = err
	}
	s.room -= int64(n)
	return n, err
}

// A body ends where it cannot be decoded, or is not as MIME wants it.
type body struct {
	r      io.Reader
	source *source
}

func (b body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil {
		err = cmp.Or(b.source.err, io.EOF)
	}
	return n, err
}
