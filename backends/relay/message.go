package relay

import (
	"bytes"
	"errors"
	"io"

	"github.com/mailgw/mailgw/backends"
)

// errSize says that a message is not as long as it was said to be, which is a
// bug of somebody's: what is there must not be delivered as if it were whole.
var errSize = errors.New("the message has another size than its transaction")

// A passage reads a message on its way to a target. At an octet that the target
// cannot take it ends with an error: the connection is given up in the middle
// of the message, so that the target throws away what it has.
type passage struct {
	message io.Reader
	left    int64 // octets to come
	digest  *backends.Digester

	// The statuses that end it at an octet beyond US-ASCII, in the header and
	// anywhere; zero if the target takes them.
	inHeader, anywhere backends.Status

	line    int             // octets of the line so far, CRs aside
	inBody  bool            // an empty line was read
	last    byte            // that was read; LF before the first
	refused backends.Status // why it has ended
}

// newPassage returns the passage of the message of tx to a target that makes this
// offer.
func newPassage(tx *backends.DataContext, message io.Reader, o offer) *passage {
	p := &passage{message: message, left: tx.Size, digest: backends.NewDigester(), last: '\n'}
	if !o.has("8BITMIME") {
		p.anywhere = noEightBit
	}
	if _, declared := tx.Envelope.Params.Lookup("SMTPUTF8"); declared && !o.has("SMTPUTF8") {
		p.inHeader = noUTF8Header
	}
	return p
}

func (p *passage) Read(b []byte) (int, error) {
	n, err := p.message.Read(b)
	if p.refuse(b[:n]) {
		return 0, p.refused
	}
	p.digest.Write(b[:n])
	if n > 0 {
		p.last = b[n-1]
	}
	p.left -= int64(n)
	if p.left < 0 || err == io.EOF && p.left > 0 {
		return 0, errSize
	}
	return n, err
}

// refuse reports whether there is an octet in b that the target cannot take.
func (p *passage) refuse(b []byte) bool {
	if !p.inHeader.IsZero() && !p.inBody {
		header := b[:p.header(b)]
		if beyondASCII(header) {
			p.refused = p.inHeader
		}
	}
	if p.refused.IsZero() && !p.anywhere.IsZero() && beyondASCII(b) {
		p.refused = p.anywhere
	}
	return !p.refused.IsZero()
}

// header returns how many octets at the beginning of b belong to the header,
// which ends before the first empty line.
func (p *passage) header(b []byte) (n int) {
	for _, c := range b {
		n++
		switch {
		case c == '\n' && p.line == 0:
			p.inBody = true
			return n
		case c == '\n':
			p.line = 0
		case c != '\r':
			p.line++
		}
	}
	return n
}

func beyondASCII(b []byte) bool {
	return bytes.ContainsFunc(b, func(r rune) bool { return r > 127 })
}

// wrote returns the digest of what the target got. Over DATA a message that does
// not end in CRLF gets one, since the dot that ends it begins a line.
func (p *passage) wrote(data bool) backends.Digest {
	if data && p.last != '\n' {
		io.WriteString(p.digest, "\r\n")
	}
	return p.digest.Digest()
}
