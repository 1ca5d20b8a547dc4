package backends

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// A Digest tells whether the message that leaves is the one that came, but
// for its header, and which of its header fields are others. The zero Digest
// is that of no message.
type Digest struct {
	// Fields has a number for each field of the header, in order, which comes
	// of all its octets.
	Fields []uint64

	// Body is the SHA-256 of what follows the header, with the empty line
	// between them.
	Body [sha256.Size]byte
}

// Since compares d with the digest of the message before. It returns how many
// header fields were added and removed since; a field that was changed or
// moved was removed and added.
func (d Digest) Since(before Digest) (added, removed int, bodyChanged bool) {
	now, then := d.Fields, before.Fields
	for len(now) > 0 && len(then) > 0 && now[0] == then[0] {
		now, then = now[1:], then[1:]
	}
	for len(now) > 0 && len(then) > 0 && now[len(now)-1] == then[len(then)-1] {
		now, then = now[:len(now)-1], then[:len(then)-1]
	}
	kept := longestCommon(now, then)
	return len(now) - kept, len(then) - kept, d.Body != before.Body
}

// maxCompared bounds what longestCommon compares. With more, all is told to
// have changed, which is only ever too much.
const maxCompared = 4 << 20

// longestCommon returns the length of the longest common subsequence.
func longestCommon(a, b []uint64) int {
	if len(a)*len(b) > maxCompared {
		return 0
	}
	row := make([]int, len(b)+1)
	for _, x := range a {
		diagonal := 0
		for j, y := range b {
			above := row[j+1]
			if x == y {
				row[j+1] = diagonal + 1
			} else {
				row[j+1] = max(above, row[j])
			}
			diagonal = above
		}
	}
	return row[len(b)]
}

// maxDigested is how many fields of a header are told apart. A stranger who
// sends more must not make the digest as large as his message.
const maxDigested = 16 << 10

// A Digester makes the Digest of a message that is written to it. The header
// ends before the first empty line, or before the first line that is no field.
// Of many thousand fields, the last ones count as one.
type Digester struct {
	fields  []uint64
	field   hash.Hash // nil before the first field
	body    hash.Hash // nil in the header
	line    []byte    // its beginning, as long as it is not known what it is
	inField bool      // the line is known to be a field's
}

// NewDigester returns a Digester of one message.
func NewDigester() *Digester { return &Digester{} }

// Write takes a part of the message, which may be cut anywhere. It never
// fails.
func (d *Digester) Write(p []byte) (n int, err error) {
	n = len(p)
	for len(p) > 0 && d.body == nil {
		part := p
		if lf := bytes.IndexByte(p, '\n'); lf >= 0 {
			part = p[:lf+1]
		}
		p = p[len(part):]
		d.header(part)
	}
	if d.body != nil {
		d.body.Write(p)
	}
	return n, nil
}

// header takes a part of a line.
func (d *Digester) header(part []byte) {
	if !d.inField {
		d.line = append(d.line, part...)
		if undecided(d.line) {
			return
		}
		d.begin()
		return
	}
	d.field.Write(part)
	d.inField = part[len(part)-1] != '\n'
}

// begin goes on with a line of which the beginning tells what it is.
func (d *Digester) begin() {
	switch {
	case len(d.line) == 0:
		return
	case !IsHeaderLine(d.line, d.field != nil):
		d.endField()
		d.body = sha256.New()
		d.body.Write(d.line)
	default:
		if starts := d.line[0] != ' ' && d.line[0] != '\t'; starts && len(d.fields) < maxDigested-1 || d.field == nil {
			d.endField()
			d.field = sha256.New()
		}
		d.field.Write(d.line)
		d.inField = d.line[len(d.line)-1] != '\n'
	}
	d.line = d.line[:0]
}

func (d *Digester) endField() {
	if d.field != nil {
		d.fields = append(d.fields, binary.BigEndian.Uint64(d.field.Sum(nil)))
		d.field = nil
	}
}

// Digest returns the digest of what was written, which is the whole message.
// Nothing can be written after it.
func (d *Digester) Digest() Digest {
	d.begin()
	d.endField()
	digest := Digest{Fields: d.fields}
	if d.body != nil {
		d.body.Sum(digest.Body[:0])
	}
	return digest
}
