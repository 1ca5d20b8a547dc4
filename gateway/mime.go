package gateway

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"time"

	gomessage "github.com/emersion/go-message"
	"github.com/emersion/go-message/textproto"

	"github.com/mailgw/mailgw/backends"
)

var (
	errMIME        = errors.New("more MIME parts than limits.mime_parts, or deeper than limits.mime_depth")
	mimeTooComplex = backends.NewStatus(554, "5.6.0", "message refused: too many MIME parts, or too deep") // RFC 3463, section 3.7
)

// What holds where no limit is set, to bound memory and time.
const (
	maxMIMEDepth  = 100 // each level has buffers, and all that lies in it passes through them
	maxMIMEParts  = 10000
	maxMIMEHeader = 16 << 10 // octets of the header of a part, and of the MIME fields of a message
	maxMIMETime   = time.Minute
)

// checkMIME returns an error if the MIME structure of m is beyond the limits.
// It reads m once, in constant memory. Where it finds no MIME, it looks no
// further: what is wrong there is for the backends to judge.
func checkMIME(ctx context.Context, m backends.Message, l LimitsConfig) error {
	if l.MIMEDepth == 0 && l.MIMEParts == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, maxMIMETime, errors.New("the MIME structure takes too long to read"))
	defer cancel()
	source := &source{ctx: ctx, r: io.NewSectionReader(m, 0, m.Size())}
	w := mimeWalk{most: cmp.Or(l.MIMEDepth, maxMIMEDepth), parts: cmp.Or(l.MIMEParts, maxMIMEParts)}
	err := w.message(source, 0)
	if source.err != nil {
		return spoolError{source.err}
	}
	return err
}

// A source reads r until ctx is done. It remembers why it ended early, which
// is no fault of the message.
type source struct {
	ctx context.Context
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		s.err = context.Cause(s.ctx)
		return 0, s.err
	}
	n, err := s.r.Read(p)
	if err != io.EOF {
		s.err = err
	}
	return n, err
}

// A mimeWalk goes through a message, part by part.
type mimeWalk struct {
	most  int // levels of multiparts and attached messages in one another
	parts int // that may still come
}

// message looks into a message that lies at a depth.
func (w *mimeWalk) message(r io.Reader, depth int) error {
	h := &headerReader{r: bufio.NewReader(r)}
	var fields bytes.Buffer
	taken := false
	for h.next() {
		if h.starts {
			name, _, _ := bytes.Cut(h.line, []byte(":"))
			name = bytes.TrimRight(name, " \t")
			taken = bytes.EqualFold(name, []byte("Content-Type")) || bytes.EqualFold(name, []byte("Content-Transfer-Encoding"))
		}
		if !taken {
			continue
		}
		if fields.Write(h.line); fields.Len() > maxMIMEHeader {
			return errMIME
		}
	}
	fields.WriteString("\r\n")
	header, err := textproto.ReadHeader(bufio.NewReader(&fields))
	if err != nil {
		return nil
	}
	return w.entity(header, h.r, "text/plain", depth)
}

// entity looks into a message or a part that lies at a depth. kind is what it
// is if it does not say so.
func (w *mimeWalk) entity(header textproto.Header, body io.Reader, kind string, depth int) error {
	// The error is about a charset or an encoding that is not known, and the
	// body is as it came.
	e, _ := gomessage.New(gomessage.Header{Header: header}, body)
	var params map[string]string
	if e.Header.Has("Content-Type") {
		var err error
		if kind, params, err = e.Header.ContentType(); err != nil {
			return nil
		}
	}
	switch {
	case strings.HasPrefix(kind, "multipart/"):
		return w.multipart(e.Body, kind, params["boundary"], depth+1)
	case kind == "message/rfc822", kind == "message/global":
		if depth++; depth > w.most {
			return errMIME
		}
		return w.message(e.Body, depth)
	}
	return nil
}

func (w *mimeWalk) multipart(body io.Reader, kind, boundary string, depth int) error {
	if depth > w.most {
		return errMIME
	}
	partKind := "text/plain"
	if kind == "multipart/digest" {
		partKind = "message/rfc822" // RFC 2046, section 5.1.5
	}
	// The reader keeps the header of a part in memory, and reads it with what
	// stands before it.
	fuse := &fuse{r: body}
	parts := textproto.NewMultipartReader(fuse, boundary)
	for {
		fuse.left = maxMIMEHeader
		part, err := parts.NextPart()
		switch {
		case fuse.blown:
			return errMIME
		case err != nil: // the end, or no MIME
			return nil
		}
		if w.parts--; w.parts < 0 {
			return errMIME
		}
		fuse.left = math.MaxInt64
		if err := w.entity(part.Header, part, partKind, depth); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, part); err != nil {
			return nil
		}
	}
}

// A fuse blows if more is read than is left.
type fuse struct {
	r     io.Reader
	left  int64
	blown bool
}

func (f *fuse) Read(p []byte) (int, error) {
	if f.left <= 0 {
		f.blown = true
		return 0, errMIME
	}
	n, err := f.r.Read(p)
	f.left -= int64(n)
	return n, err
}
