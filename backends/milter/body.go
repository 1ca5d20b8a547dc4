package milter

import (
	"bytes"
	"fmt"
	"io"
	"os"
)

const (
	bodyInMemory = 256 << 10
	maxBody      = 256 << 20
)

// A body is a new body of a message: in memory while it is small, then in a
// temporary file, which has no name.
type body struct {
	directory string
	memory    bytes.Buffer
	file      *os.File
	size      int
	last      byte
}

// add adds a piece. Lines that end in LF alone end in CRLF afterwards, as they do
// in Sendmail and Postfix.
func (b *body) add(piece []byte) error {
	whole := make([]byte, 0, len(piece))
	for _, octet := range piece {
		if octet == '\n' && b.last != '\r' {
			whole = append(whole, '\r')
		}
		whole = append(whole, octet)
		b.last = octet
	}
	if b.size += len(whole); b.size > maxBody {
		return fmt.Errorf("a new body of more than %d octets", maxBody)
	}
	if b.file == nil && b.size <= bodyInMemory {
		b.memory.Write(whole)
		return nil
	}
	return b.write(whole)
}

// write writes a piece to the file, after what was in memory.
func (b *body) write(piece []byte) (err error) {
	if b.file == nil {
		if b.file, err = temporary(b.directory); err != nil {
			return err
		}
		if _, err = b.memory.WriteTo(b.file); err != nil {
			return err
		}
	}
	_, err = b.file.Write(piece)
	return err
}

// temporary makes a file without a name.
func temporary(directory string) (*os.File, error) {
	file, err := os.CreateTemp(directory, "mailgw-milter-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// probe finds out whether temporary files can be made in a directory.
func probe(directory string) error {
	file, err := temporary(directory)
	if err != nil {
		return err
	}
	return file.Close()
}

// reader reads the body from its beginning, once.
func (b *body) reader() (io.Reader, error) {
	if b.file == nil {
		return &b.memory, nil
	}
	_, err := b.file.Seek(0, io.SeekStart)
	return b.file, err
}

func (b *body) close() {
	if b.file != nil {
		b.file.Close()
	}
}
