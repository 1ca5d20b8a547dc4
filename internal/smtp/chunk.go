package smtp

import (
	"bufio"
	"errors"
	"io"
	"strconv"
	"strings"
)

// ParseChunk reads the arguments of BDAT: RFC 3030, section 2.
func ParseChunk(args string) (size int64, last bool, err error) {
	number, rest, _ := strings.Cut(args, " ")
	rest = strings.Trim(rest, " ")
	if number == "" || strings.Trim(number, "0123456789") != "" || rest != "" && !(IsASCII(rest) && strings.EqualFold(rest, "LAST")) {
		return 0, false, errors.New("BDAT wants a number of octets, and LAST or nothing")
	}
	if size, err = strconv.ParseInt(number, 10, 64); err != nil {
		return 0, false, errors.New("the chunk of BDAT is too large")
	}
	return size, rest != "", nil
}

// A ChunkReader reads the octets that follow BDAT, as many as it said. If the
// input ends before, the error is io.ErrUnexpectedEOF.
type ChunkReader struct {
	r    *bufio.Reader
	left int64
}

// NewChunkReader returns a reader of one chunk from r.
func NewChunkReader(r *bufio.Reader, size int64) *ChunkReader { return &ChunkReader{r, size} }

func (c *ChunkReader) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
