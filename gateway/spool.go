package gateway

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/mailgw/mailgw/backends"
)

// A spool keeps messages while they are under way: in memory as long as the
// message is small and the budget that all messages share has room, else in
// a temporary file that has no name. Nothing survives the process, and need
// not: the client has the message until it is answered.
type spool struct {
	config    SpoolConfig
	directory string
	threshold int64        // of one message in memory
	reserve   int64        // what chunks leave of the budget to envelopes
	free      atomic.Int64 // what is left of the budget
}

// chunkSize is the unit in which the budget is spent.
const chunkSize = 16 << 10

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

func newSpool(c SpoolConfig) *spool {
	s := &spool{config: c, directory: c.Directory, threshold: int64(c.Threshold), reserve: int64(c.Memory) / 4}
	s.free.Store(int64(c.Memory))
	return s
}

// take spends a chunk of the budget. It returns nil if there is none left: a
// message can go into a file, an envelope cannot.
func (s *spool) take() *[chunkSize]byte {
	if s.free.Add(-chunkSize) < s.reserve {
		s.free.Add(chunkSize)
		return nil
	}
	return chunks.Get().(*[chunkSize]byte)
}

// charge spends octets of the budget that are not the message's. It reports
// false if there are not so many left.
func (s *spool) charge(octets int64) bool {
	if s.free.Add(-octets) < 0 {
		s.free.Add(octets)
		return false
	}
	return true
}

// refund gives back what was charged.
func (s *spool) refund(octets int64) { s.free.Add(octets) }

func (s *spool) give(c *[chunkSize]byte) {
	chunks.Put(c)
	s.refund(chunkSize)
}

// A message is one that the spool keeps. It may be read from several
// goroutines at once until it is closed.
type message struct {
	spool  *spool
	size   int64
	chunks []*[chunkSize]byte // if it is in memory
	file   *os.File           // if it is not
}

// Errors of store. Any other error comes from the reader.
var errTooLarge = errors.New("message too large")

// A spoolError is a trouble of the spool's own.
type spoolError struct{ err error }

func (e spoolError) Error() string { return "spool: " + e.err.Error() }
func (e spoolError) Unwrap() error { return e.err }

// status is what a client is told of the trouble.
func (e spoolError) status() backends.Status {
	if errors.Is(e.err, syscall.ENOSPC) || errors.Is(e.err, syscall.EDQUOT) {
		return backends.StorageFull
	}
	return backends.TryLater
}

// store reads a message of at most limit octets; zero is no limit. After
// errTooLarge and a spoolError, r has not been read to its end.
func (s *spool) store(r io.Reader, limit int64) (*message, error) {
	m := &message{spool: s}
	if err := m.fill(r, limit); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// fill adds what r gives to the message. It may be called again, unless it
// returned an error.
func (m *message) fill(r io.Reader, limit int64) error {
	if m.file != nil {
		return m.fillFile(r, limit)
	}
	for {
		room, err := m.room()
		if err != nil {
			return err
		}
		if room == nil {
			return m.fillFile(r, limit)
		}
		n, err := r.Read(room)
		m.size += int64(n)
		switch {
		case limit > 0 && m.size > limit:
			return errTooLarge
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// room returns memory for the next octets, or nil once the message has moved
// to a file.
func (m *message) room() ([]byte, error) {
	used := int(m.size - int64(len(m.chunks)-1)*chunkSize)
	if len(m.chunks) > 0 && used < chunkSize {
		return m.chunks[len(m.chunks)-1][used:], nil
	}
	if m.size < m.spool.threshold {
		if c := m.spool.take(); c != nil {
			m.chunks = append(m.chunks, c)
			return c[:], nil
		}
	}
	return nil, m.spill()
}

// spill moves the message from memory to a file without a name.
func (m *message) spill() error {
	f, err := os.CreateTemp(m.spool.directory, "mailgw-")
	if err != nil {
		return spoolError{err}
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return spoolError{err}
	}
	left := m.size
	for _, c := range m.chunks {
		n := min(left, chunkSize)
		if _, err := f.Write(c[:n]); err != nil {
			f.Close()
			return spoolError{err}
		}
		left -= n
	}
	m.giveChunks()
	m.file = f
	return nil
}

// fillFile reads the rest of a message that is kept in a file.
func (m *message) fillFile(r io.Reader, limit int64) error {
	buf := m.copyBuffer()
	defer m.giveChunks()
	for {
		n, err := readFull(r, buf)
		m.size += int64(n)
		if limit > 0 && m.size > limit {
			return errTooLarge
		}
		if _, err := m.file.Write(buf[:n]); err != nil {
			return spoolError{err}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// readFull fills buf unless r ends or fails before. Unlike io.ReadFull, it
// leaves the error as it is.
func readFull(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var more int
		more, err = r.Read(buf[n:])
		n += more
	}
	return n, err
}

// copyBuffer takes a chunk if the budget has one. Without, a buffer as small
// as the connection's own does.
func (m *message) copyBuffer() []byte {
	if c := m.spool.take(); c != nil {
		m.chunks = append(m.chunks, c)
		return c[:]
	}
	return make([]byte, 4<<10)
}

func (m *message) giveChunks() {
	for _, c := range m.chunks {
		m.spool.give(c)
	}
	m.chunks = nil
}

// Size returns the number of octets.
func (m *message) Size() int64 { return m.size }

// ReadAt returns a spoolError if the message cannot be read.
func (m *message) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d", off)
	}
	if m.file != nil {
		if n, err = m.file.ReadAt(p, off); err != nil && err != io.EOF {
			err = spoolError{err}
		}
		return n, err
	}
	for n < len(p) && off < m.size {
		c := m.chunks[off/chunkSize]
		i := off % chunkSize
		k := copy(p[n:], c[i:min(chunkSize, i+m.size-off)])
		n += k
		off += int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Close gives memory and file back. Nobody may read the message any more. It
// may be called again.
func (m *message) Close() error {
	m.giveChunks()
	if m.file == nil {
		return nil
	}
	return m.file.Close()
}
