package webhook

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	"github.com/mailgw/mailgw/backends"
)

// A message is kept while it is posted: its digest has to be known before, and
// a redirect wants it again. It may be read from several goroutines at once.
type message struct {
	io.ReaderAt
	size   int64
	sha256 string   // in hexadecimal digits
	file   *os.File // nil if it is in memory
}

// maxInMemory is the largest message that is kept in memory.
const maxInMemory = 64 << 10

// keep reads the message of tx to its end, into memory or into a file without
// a name in directory.
func keep(tx *backends.DataContext, directory string) (*message, error) {
	m := &message{size: tx.Size}
	if tx.Size <= maxInMemory {
		var text bytes.Buffer
		err := m.fill(&text, tx.Body)
		m.ReaderAt = bytes.NewReader(text.Bytes())
		return m, err
	}
	file, err := temporary(directory)
	if err != nil {
		return nil, err
	}
	m.ReaderAt, m.file = file, file
	if err := m.fill(file, tx.Body); err != nil {
		file.Close()
		return nil, err
	}
	return m, nil
}

// temporary makes a file without a name.
func temporary(directory string) (*os.File, error) {
	file, err := os.CreateTemp(directory, "mailgw-webhook-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// fill copies the message to w, and takes its digest.
func (m *message) fill(w io.Writer, r io.Reader) error {
	digest := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, digest), io.LimitReader(r, m.size+1))
	if err == nil && n != m.size {
		err = fmt.Errorf("the message is not of the %d octets that were told", m.size)
	}
	m.sha256 = hex.EncodeToString(digest.Sum(nil))
	return err
}

// Reader returns a Reader of the whole message.
func (m *message) Reader() io.Reader { return io.NewSectionReader(m, 0, m.size) }

func (m *message) Close() error {
	if m.file == nil {
		return nil
	}
	return m.file.Close()
}
