package maildir

import (
	"context"
	"fmt"
	"io"
)

// A message comes from the body of a transaction, which can be read once, and
// goes into any number of files. The first file is written from the body, the
// others are copied from it. If the first one cannot be written to its end,
// the next one copies what is there and goes on with the body.
type message struct {
	ctx  context.Context
	body io.Reader
	size int64

	source *file  // has what was read of the body
	start  int64  // where it begins in source
	stored int64  // octets of it
	rest   []byte // read, but not yet in source
	ended  bool   // the body was read to its end
	err    error  // the message cannot be had, which is the trouble of all recipients
	buf    []byte
}

const (
	readAtOnce = 64 << 10
	copyAtOnce = 4 << 20 // before a look at the context
)

// writeTo writes header and message to f. An error other than m.err is of f
// alone.
func (m *message) writeTo(f *file, header string) error {
	if _, err := f.WriteString(header); err != nil {
		return err
	}
	if err := m.copyTo(f); err != nil {
		return err
	}
	if m.ended && len(m.rest) == 0 {
		return nil
	}
	m.close()
	m.source, m.start = f, int64(len(header))
	for {
		n, err := f.Write(m.rest)
		m.rest, m.stored = m.rest[n:], m.stored+int64(n)
		if err != nil || m.ended {
			return err
		}
		if err := m.read(); err != nil {
			return err
		}
	}
}

// copyTo copies to f what source has.
func (m *message) copyTo(f *file) error {
	if m.source == nil {
		return nil
	}
	if _, err := m.source.Seek(m.start, io.SeekStart); err != nil {
		return err
	}
	for left := m.stored; left > 0; {
		if err := m.over(); err != nil {
			return err
		}
		n, err := io.CopyN(f.File, m.source.File, min(left, copyAtOnce))
		if err != nil {
			return fmt.Errorf("copy message: %w", err)
		}
		left -= n
	}
	return nil
}

// read reads some of the body into rest.
func (m *message) read() error {
	if err := m.over(); err != nil {
		return err
	}
	if m.buf == nil {
		m.buf = make([]byte, readAtOnce)
	}
	n, err := m.body.Read(m.buf)
	m.rest = m.buf[:n]
	switch length := m.stored + int64(n); {
	case err == io.EOF && length == m.size:
		m.ended = true
	case err == io.EOF || length > m.size:
		m.err = fmt.Errorf("read message: got %d octets of %d", length, m.size)
	case err != nil:
		m.err = fmt.Errorf("read message: %w", err)
	}
	return m.err
}

// over returns an error if the transaction's time is over.
func (m *message) over() error {
	if err := m.ctx.Err(); err != nil {
		m.err = err
	}
	return m.err
}

// close closes the file that the message was read into.
func (m *message) close() {
	if m.source != nil {
		m.source.Close()
	}
}
