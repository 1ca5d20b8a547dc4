package gateway

import (
	"bufio"
	"bytes"
	"mime"
	"regexp"
	"strings"

	gomessage "github.com/emersion/go-message"
	"github.com/emersion/go-message/textproto"
)

// A mimeHeader has the fields of a header that matter here.
type mimeHeader struct {
	gomessage.Header
	whole    bool // an empty line ends it
	cut      bool // a delimiter ends it
	doubtful bool // parsers differ about where it ends
}

// header reads a header up to the empty line after it. Some parsers begin the
// body at a line that is no field: that matters if it may be a delimiter.
func (s *mimeScan) header() (h mimeHeader, err error) {
	var fields bytes.Buffer
	taken := false
	for !h.whole && s.next() {
		i, _, err := s.delimited()
		if err != nil {
			return h, err
		}
		if i >= 0 {
			s.held, h.cut = true, true
			break
		}
		line := bytes.TrimRight(s.line, "\r\n")
		if s.begins {
			bare := s.bare || s.endsBare()
			h.doubtful = h.doubtful || bare || bytes.HasPrefix(line, []byte("--"))
			h.whole = len(line) == 0 && !bare
			if len(line) == 0 || line[0] != ' ' && line[0] != '\t' {
				if taken = isMIMEField(line); taken {
					fields.WriteString("\r\n")
				}
			}
		}
		if taken {
			fields.Write(line)
		}
		if fields.Len() > maxMIMEHeader {
			return h, errMIME
		}
	}
	fields.WriteString("\r\n\r\n")
	fields.Next(len("\r\n")) // before the first one
	if h.Header.Header, err = textproto.ReadHeader(bufio.NewReader(&fields)); err != nil {
		return h, errMIME
	}
	return h, nil
}

func isMIMEField(line []byte) bool {
	name, _, ok := bytes.Cut(line, []byte(":"))
	name = bytes.TrimRight(name, " \t")
	return ok && (bytes.EqualFold(name, []byte("Content-Type")) || bytes.EqualFold(name, []byte("Content-Transfer-Encoding")))
}

// kind returns the type that the header tells, or else the one given. It is an
// error if not all parsers agree that parts or messages lie in there.
func (h mimeHeader) kind(otherwise string) (string, error) {
	types := h.Values("Content-Type")
	told, composite := otherwise, isComposite(otherwise)
	for i, value := range types {
		kind, _, _ := mime.ParseMediaType(value) // it tells the type even if a parameter is malformed
		switch {
		case !strings.Contains(kind, "/") && composites.MatchString(value):
			return "", errMIME
		case !strings.Contains(kind, "/"):
		case i == 0:
			told, composite = kind, isComposite(kind)
		default:
			composite = composite || isComposite(kind)
		}
	}
	if composite && (h.cut || h.doubtful || len(types) > 1 || len(h.Values("Content-Transfer-Encoding")) > 1) {
		return "", errMIME
	}
	return told, nil
}

// composites finds what may be a composite type to somebody.
var composites = regexp.MustCompile(`(?i)multipart|message|=\?`)

func isComposite(kind string) bool {
	return strings.HasPrefix(kind, "multipart/") || strings.HasPrefix(kind, "message/")
}

// encoding returns the Content-Transfer-Encoding, or "" if it leaves the octets
// as they are.
func (h mimeHeader) encoding() string {
	switch encoding := strings.ToLower(h.Get("Content-Transfer-Encoding")); encoding {
	case "7bit", "8bit", "binary":
		return ""
	default:
		return encoding
	}
}

// level returns what a header of a composite kind begins.
func (h mimeHeader) level(kind string) (mimeLevel, error) {
	level := mimeLevel{kind: "text/plain"}
	if strings.HasPrefix(kind, "message/") {
		return level, nil
	}
	if kind == "multipart/digest" {
		level.kind = "message/rfc822" // RFC 2046, section 5.1.5
	}
	boundary, err := h.boundary()
	level.delimiter = "--" + boundary
	return level, err
}

// boundary returns the boundary of a multipart. It is an error if some parsers
// may see another one.
func (h mimeHeader) boundary() (string, error) {
	value := h.Get("Content-Type")
	_, params, err := mime.ParseMediaType(value)
	boundary := strings.TrimRight(params["boundary"], " ")
	if err != nil || len(boundary) > maxBoundary || decoded.MatchString(value) || !boundaries.MatchString(boundary) {
		return "", errMIME
	}
	return boundary, nil
}

var (
	// decoded finds what only some parsers decode: RFC 2231, RFC 2047, quoted pairs.
	decoded = regexp.MustCompile(`(?i)boundary\*|=\?|\\`)
	// boundaries are printable, and single spaces may be in them.
	boundaries = regexp.MustCompile(`^[!#-:<-~]+( [!#-:<-~]+)*$`)
)
